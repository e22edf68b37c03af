"""What `smallbatch advise` found, in sentences, for the terminal and for the page alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smallbatch.analysis.frames import ADAMW
from smallbatch.report.labels import duration, listed, percent, points, power_of_two, spread
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.analysis.advice import Advice, Final, Raced, Range, Recommended

NOTHING = "No batch size and learning rate can be recommended."
_MOST_NAMED = 3  # cells; of more, the batch sizes alone are named
_NEAR = 0.05  # octaves that are shown as none


def rate_name(advice: Advice) -> str:
    """What the learning rates are: η̃, under AdamW η."""
    return "η" if advice.optimizer == ADAMW else "η̃"


def number(value: float) -> str:
    """A learning rate as it is typed, in digits: 0.0625, 0.00012, 1.5e-05."""
    exact = f"{value:.12g}"
    return exact if len(exact) <= len("0.0009765625") else f"{value:.3g}"


def headline(advice: Advice) -> str:
    """The recommended cell, or that there is none."""
    found = advice.recommended
    if found is None:
        return NOTHING
    lr = f"η = {number(found.lr)}"
    if not found.beyond_chance:
        return (
            "No answer: nothing was learned that can be told from guessing. The best guess was "
            f"m = {found.batch_size}, {lr}."
        )
    cell = f"batch size m = {found.batch_size} and learning rate {lr}"
    if rate_name(advice) != "η":
        cell += f" (η̃ = η/m = {power_of_two(found.base_lr)})"
    if found.on == "bracket":
        return f"Provisional, as the budget ended before the race: {cell}."
    return f"Train with {cell}."


def answer(advice: Advice) -> list[str]:
    """The sentences below the headline; none where there is no answer: warnings then say why."""
    found = advice.recommended
    if found is None or not found.beyond_chance:
        return []
    return [
        _accuracy(advice, found),
        _against(advice),
        *_tied(advice),
        *_stable(advice, found),
    ]


def told_apart(final: Final | None) -> bool:
    """Whether the interval of the difference to the runner-up leaves 0 out."""
    if final is None or final.low is None or final.high is None:
        return False
    return final.low > 0 or final.high < 0


def cell_name(advice: Advice, batch_size: int, base_lr: float) -> str:
    """A cell in a sentence: "m = 16 at η̃ = 2⁻⁸"."""
    return f"m = {batch_size} at {rate_name(advice)} = {power_of_two(base_lr)}"


def is_recommended(advice: Advice, cell: Raced) -> bool:
    """Whether a raced cell is the recommended one."""
    found = advice.recommended
    if found is None:
        return False
    return (cell.batch_size, cell.base_lr) == (found.batch_size, found.base_lr)


def others_tied(advice: Advice) -> list[Raced]:
    """The raced cells that cannot be told from the recommended one, best first."""
    return [cell for cell in advice.raced if cell.tied and not is_recommended(advice, cell)]


def _accuracy(advice: Advice, found: Recommended) -> str:
    seeds = len(advice.final.seeds) if advice.final else 0
    source = {
        "final": f"mean of {count(seeds, 'fresh seed')}",
        "race": "mean of the race's runs",
        "bracket": "mean of the runs that looked for the stable range",
    }[found.on]
    return (
        f"Expect {percent(found.accuracy)} of new images to be right: {source} on "
        f"{found.n_test:,} test images kept apart; 95 % interval by their number: "
        f"{spread(found.low, found.high)}."
    )


def _against(advice: Advice) -> str:
    final = advice.final
    if final is None:
        return "It was not compared with a runner-up on fresh seeds: no final was run."
    rival = f"the runner-up, {cell_name(advice, *final.rival)}"
    if final.low is None or final.high is None:
        return (
            f"With {count(len(final.seeds), 'fresh seed')} nothing is known of chance: "
            f"{points(final.difference)} points against {rival}."
        )
    by = (
        f"{points(final.difference)} points, {points(final.low)} … {points(final.high)} "
        f"(95 %, paired, {count(len(final.seeds), 'fresh seed')}, on these test images)"
    )
    turned = " The race had them the other way round." if final.overturned else ""
    if final.low > 0:
        return f"Better than {rival}: {by}.{turned}"
    if final.high < 0:
        why = ", taken as it trains faster" if advice.target == "time" else ""
        return f"Less accurate than {rival}{why}: {by}.{turned}"
    return f"Cannot be told apart from {rival}: {by}.{turned}"


def _tied(advice: Advice) -> list[str]:
    others = others_tied(advice)
    seconds = [cell.seconds for cell in advice.raced if is_recommended(advice, cell)]
    takes = f" One training alone takes {duration(seconds[0])} here." if seconds else ""
    if not others:
        alone = "No other raced cell is tied with it." if len(advice.raced) > 1 else ""
        return [(alone + takes).strip()] if alone or takes else []
    if len(others) <= _MOST_NAMED:
        named = listed([cell_name(advice, it.batch_size, it.base_lr) for it in others])
    else:
        sizes = sorted({cell.batch_size for cell in others})
        named = f"{len(others)} cells of m = {listed([str(m) for m in sizes])}"
    fastest = ""
    if advice.target == "time":
        fastest = " Of the tied, the one that trains fastest was taken."
    return [f"Tied in the race: {named}.{fastest}{takes}"]


def _stable(advice: Advice, found: Recommended) -> list[str]:
    own = next((it for it in advice.ranges if it.batch_size == found.batch_size), None)
    if own is None:
        return []
    m, rate = found.batch_size, rate_name(advice)
    if own.edge is None:
        lowest = power_of_two(own.lowest)
        return [f"At m = {m} a seed diverged even at the lowest {rate} tried, {lowest}."]
    span = f"from {rate} = {power_of_two(own.lowest)} to {power_of_two(own.edge)}"
    tried = f"{count(own.seeds, 'seed')}, {count(own.updates, 'update')} or more each"
    whole = f"At m = {m} stable {span} ({tried})"
    room = math.log2(own.edge / found.base_lr)
    if own.breaks is None and room <= _NEAR:
        return [f"{whole}; nothing broke, so the edge is not known."]
    if own.breaks is None:
        return [f"{whole}; nothing broke, so the edge is not known: {_octaves(room)} or more away."]
    edge = f"it breaks at {power_of_two(own.breaks)}"
    if room < -_NEAR:
        return [f"{whole}; {edge}. What is recommended lies {_octaves(-room)} above that range."]
    if room <= _NEAR:
        return [f"{whole}; {edge}. What is recommended lies at the edge, with no headroom."]
    return [f"{whole}; {edge}. Headroom to the edge: {_octaves(room)}."]


def _octaves(value: float) -> str:
    value = max(value, 0.0)
    shown = f"{value:.1f}".removesuffix(".0")
    return f"{shown} octave{'' if shown == '1' else 's'} (a factor of {2**value:.2g})"


def survived(own: Range) -> list[str]:
    """How many seeds survived at each rate: "3 of 3 at 2⁻⁸ … 2⁻⁶", "1 of 3 at 2⁻⁵"."""
    groups: list[tuple[int, list[float]]] = []
    for rate, seeds in own.survived:
        if groups and groups[-1][0] == seeds:
            groups[-1][1].append(rate)
        else:
            groups.append((seeds, [rate]))
    return [
        f"{seeds} of {own.seeds} at "
        + " … ".join(power_of_two(it) for it in dict.fromkeys([rates[0], rates[-1]]))
        for seeds, rates in groups
    ]


def spent(advice: Advice) -> str:
    """What it took: time, images, where."""
    return (
        f"Answered after {duration(advice.seconds)} of {advice.budget}, {advice.images:,} training "
        f"images seen by all runs, on {advice.device} ({advice.processor})."
    )


def settings(advice: Advice) -> str:
    """What was trained, on what."""
    used = advice.n_train + advice.n_validation
    part = f" (of {advice.n_available:,} for training)" if used < advice.n_available else ""
    return (
        f"{advice.model}, norm {advice.norm}, {advice.optimizer}, schedule {advice.schedule}, "
        f"{count(advice.epochs, 'epoch')}; {advice.n_train:,} training, {advice.n_validation:,} "
        f"validation{part} and {advice.n_test:,} test images of "
        f"{count(advice.classes, 'class', 'classes')}{_pixels(advice)}."
    )


def _pixels(advice: Advice) -> str:
    if advice.image_shape is None:
        return ""
    channels, height, width = advice.image_shape
    return f", {height} × {width} pixels, {count(channels, 'channel')}"


def diagnostics(advice: Advice) -> list[tuple[str, str, str]]:
    """Each diagnostic that was measured: name, value, and what it is."""
    found, rows = advice.diagnostics, list[tuple[str, str, str]]()
    if found.noise_scale is not None:
        rows.append(("Gradient noise scale", f"{found.noise_scale:.3g} examples", _NOISE))
    if found.sharpness is not None:
        beside = "" if found.two_over_lr is None else f", beside 2/η = {found.two_over_lr:.3g}"
        rows.append(("Batch sharpness", f"{found.sharpness:.3g}{beside}", _SHARPNESS))
    if found.fit is not None:
        fit, rate = found.fit, rate_name(advice)
        value = (
            f"best {rate} ≈ {fit.base_lr_0:.3g} / (1 + m/{fit.m_star:.3g}), off by "
            f"{fit.rms_octaves:.2f} octaves (root mean square)"
        )
        what = (
            f"Least squares over the best {rate} of each batch size: about constant well below "
            f"m = {fit.m_star:.3g}, and falling as 1/m well above it."
        )
        rows.append((f"How the best {rate} falls with m", value, what))
    return rows


_NOISE = (
    "The spread of single gradients over the square of their mean, at the end of a recommended "
    "training (McCandlish et al. 2018): batches well below it are mostly noise, and those well "
    "above it gain little from more examples."
)
_SHARPNESS = (
    "How strongly the loss of a batch curves along its own gradient, there, at the recommended m "
    "(Andreyev & Beneventano 2024): training by plain SGD at a constant η settles near 2/η."
)
