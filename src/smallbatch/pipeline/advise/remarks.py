"""Sentences on what limits an answer, what a larger budget could change, what was not tested."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scipy.special import ndtri, stdtrit

from smallbatch.analysis.sampling import is_guess
from smallbatch.config.base_lr import format_base_lr
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.analysis.advice import Advice, Final, Raced, Range
    from smallbatch.pipeline.advise.session import Session

FEW_IMAGES = 200
"""With fewer in a split an accuracy is known to 7 points at best."""
RISING = 0.02
"""Accuracy that the last rung gained on the one before, from which on training is called short."""
_FEW_UPDATES = 50  # after which 99.8 % of divergences had come in results/paper-cifar10-small
_MOST_SEEDS = 100  # more are not worth naming
_POWER = 0.8


def warnings(advice: Advice, session: Session) -> tuple[str, ...]:
    """What limits an answer, the worst first."""
    found = [
        *_nothing(advice, session),
        *_images(advice, session),
        *_cut(advice, session),
        *_edges(advice),
        *_fresh(session),
        *_undecided(advice),
        *_length(session),
        *_order(session),
        *_brackets(advice),
    ]
    return tuple(found)


def larger_budget(advice: Advice, session: Session) -> tuple[str, ...]:
    """What a larger budget could still change."""
    found: list[str] = []
    used = advice.n_train + advice.n_validation
    if used < advice.n_available:
        found.append(
            f"Trainings had {advice.n_train:,} images, as {used:,} of {advice.n_available:,} were "
            "taken, evenly over the classes: with all of them the best learning rate and batch "
            "size may be others."
        )
    if open_ends := [str(it.batch_size) for it in advice.ranges if _ends_open(advice, it)]:
        found.append(
            f"Lower or higher learning rates at m = {', '.join(open_ends)}: the best there was at "
            "an end of those raced."
        )
    if session.cut:
        found.append(f"The budget left out {count(len(session.cut), 'candidate')} of the race.")
    if not session.in_time or advice.final is None:
        found.append("The comparison of the two best with fresh seeds could be made.")
    if session.request.epochs is None and advice.epochs < 30:
        found.append(f"Trainings of more than {count(advice.epochs, 'epoch')}.")
    if advice.final is not None and advice.final.difference and _is_open(advice.final):
        found.append("More seeds in the final could tell the two best apart.")
    return tuple(found)


def untested(advice: Advice, session: Session) -> tuple[str, ...]:
    """What was not tested."""
    sizes = ", ".join(str(it.batch_size) for it in advice.ranges)
    rate = "η" if advice.optimizer == "adamw" else "η̃"
    weight_decay = session.request.study.weight_decay
    settings = f"{advice.optimizer} with the schedule {advice.schedule}"
    return (
        f"Other batch sizes than {sizes}, and values of {rate} between octaves.",
        f"Trainings longer than {count(advice.epochs, 'epoch')} of {advice.n_train:,} images.",
        f"Other settings than {settings} and weight decay {weight_decay:g}.",
    )


def _nothing(advice: Advice, session: Session) -> list[str]:
    if advice.recommended is None:
        if not advice.ranges:
            return ["Nothing was trained: the budget ended first."]
        if session.rungs or not any(it.edge for it in advice.ranges):
            return ["Every candidate diverged with one seed or more."]
        return ["The budget ended before any candidate was trained."]
    if not advice.recommended.beyond_chance:
        if is_guess(1.0, advice.n_test, session.chance, len(advice.raced) or 1):
            text = (
                f"{session.chance:.1%} of the test images are of one class: even all "
                f"{advice.n_test} right could not be told from guessing. This takes more images of "
                "the other classes."
            )
            return [text]
        text = (
            f"Nothing was learned that can be told from guessing ({session.chance:.3g} of the "
            "images): this answers nothing. Train longer (--epochs) or check images and labels."
        )
        return [text]
    return []


def _images(advice: Advice, session: Session) -> list[str]:
    found: list[str] = []
    few = min(advice.n_validation, advice.n_test)
    if few < FEW_IMAGES:
        half = 100 * 1.96 * math.sqrt(0.25 / max(1, few))
        found.append(
            f"{count(advice.n_train, 'training image')}, {advice.n_validation} for choosing and "
            f"{advice.n_test} for testing decide little: an accuracy near a half is known to "
            f"±{half:.0f} points."
        )
    if session.uneven:
        found.append(
            "Images were taken evenly over the classes, which are not of one size: the accuracies "
            "are those of such a mix. With a budget for all images they are those of yours."
        )
    return found


def _cut(advice: Advice, session: Session) -> list[str]:
    if advice.recommended is None:
        return []
    if advice.recommended.on == "bracket":
        return ["The budget ended before the race: the answer is from the search's few updates."]
    rung = session.decisive
    undecided = [it for it in advice.raced if it.fate == "not trained on"]
    if rung is not None and rung.share == 1 and undecided:
        sizes = sorted({it.batch_size for it in undecided})
        text = (
            f"The budget ended before {count(len(undecided), 'cell')} of m = "
            f"{', '.join(map(str, sizes))} could be trained to the end: not known to be worse."
        )
        return [text]
    if rung is not None and rung != session.rungs[-1]:
        after = session.rungs[-1].share
        text = (
            f"Every candidate that came to {after:.0%} of the training diverged with a seed there: "
            f"this is the best of {rung.share:.0%}, and may diverge as well."
        )
        return [text]
    if rung is not None and rung.share < 1:
        return [f"The budget ended the race at {rung.share:.0%} of the training."]
    missing = sorted(set(session.speeds) - {it.batch_size for it in advice.ranges})
    found = [f"The budget ended before m = {', '.join(map(str, missing))}."] if missing else []
    raced = {it.batch_size for it in advice.raced}
    left_out = [
        str(it.batch_size) for it in advice.ranges if it.batch_size not in raced and it.edge
    ]
    if left_out:
        found.append(f"The budget had no room to race m = {', '.join(left_out)}.")
    if advice.final is None and sum(it.fate == "finished" for it in advice.raced) > 1:
        found.append("No budget was left to compare the two best with fresh seeds.")
    return found


def _edges(advice: Advice) -> list[str]:
    """The best is the lowest or highest tried, and no seed diverged just above it."""
    told = advice.recommended
    if told is None:
        return []
    own = next(it for it in advice.ranges if it.batch_size == told.batch_size)
    raced = [it for it in advice.raced if it.batch_size == told.batch_size]
    rates = [it.base_lr for it in raced] or [rate for rate, _ in own.survived]
    if min(rates) < told.base_lr < max(rates) or _has_equals(raced, told.base_lr):
        return []
    side = "lowest" if told.base_lr == min(rates) else "highest"
    which = "raced" if raced else "tried"
    if side == "highest" and own.breaks is not None and told.base_lr * 2 >= own.breaks:
        text = (
            f"The best learning rate is at the edge: at {format_base_lr(own.breaks)} a seed broke, "
            "so a slightly different training may diverge. Half of it is safer."
        )
        return [text]
    text = (
        f"The best learning rate is the {side} that was {which} at m = {told.batch_size}: one "
        "beyond it may be better."
    )
    return [text]


def _has_equals(raced: Sequence[Raced], base_lr: float) -> bool:
    """Whether another rate is as good: then the best is at an end only as equals have an order."""
    last = {it.base_lr: it.stages[-1] for it in raced}
    best = last.pop(base_lr, None)
    return best is not None and any(
        (it.share, it.accuracy) == (best.share, best.accuracy) for it in last.values()
    )


def _ends_open(advice: Advice, own: Range) -> bool:
    """Whether the best of a batch size other than the recommended one may lie beyond those raced.

    Their range is extended only while they lead or no batch size may be dropped; see `racing`.
    """
    rates = [it.base_lr for it in advice.raced if it.batch_size == own.batch_size]
    told = advice.recommended
    if told is None or own.batch_size == told.batch_size or not rates or own.best is None:
        return False
    above_is_open = own.breaks is None or own.best * 2 < own.breaks
    return own.best == min(rates) or (own.best == max(rates) and above_is_open)


def _fresh(session: Session) -> list[str]:
    """Fresh seeds of the two best that diverged, though those of the race did not."""
    found: list[str] = []
    for cell, trials in session.final.items():
        lost = sum(not trial.finished for trial in trials.values())
        if lost:
            rate = format_base_lr(cell.base_lr)
            found.append(
                f"{lost} of {count(len(trials), 'fresh seed')} diverged at m = {cell.batch_size} "
                f"with {rate}: it is not stable."
            )
    return found


def _undecided(advice: Advice) -> list[str]:
    final = advice.final
    if final is None or not _is_open(final):
        return []
    text = "The two best cannot be told apart"
    needed = _seeds_needed(final)
    if needed is None:
        return [f"{text} by these seeds and images."]
    text = (
        f"{text}: if their difference is as measured, about {count(needed, 'seed')} each would "
        f"show it, on {_images_needed(final):,} test images or more."
    )
    return [text]


def _length(session: Session) -> list[str]:
    """Longer trainings gain, so that there the best may be another."""
    ranked = [rung for rung in session.rungs if rung.ranked]
    if len(ranked) < 2 or session.rungs[-1].share < 1 or ranked[-1] != session.rungs[-1]:
        return []
    before, last = ranked[-2:]
    # Of the best of each: the last one's may have come to the race at the last rung only.
    one, other = (rung.rulings[0].accuracy for rung in (before, last))
    if other - one <= RISING:
        return []
    text = (
        f"Training is short: the best accuracy still rose from {one:.1%} after {before.epochs} to "
        f"{other:.1%} after {count(last.epochs, 'epoch')}. Longer trainings may have another best."
    )
    return [text]


def _order(session: Session) -> list[str]:
    """The order changed from rung to rung, so what was stopped may have been better."""
    found: list[str] = []
    for rung, after in zip(session.rungs[:-1], session.rungs[1:], strict=True):
        if not rung.ranked or not after.ranked or rung.ranked[0] == after.ranked[0]:
            continue
        first = rung.ranked[0]
        if first not in after.ranked:
            continue
        place = after.ranked.index(first) + 1
        text = (
            f"The order changed: the best at {rung.share:.0%} of the training is number {place} at "
            f"{after.share:.0%}."
        )
        if any(ruling.why == "behind" for ruling in rung.rulings):
            text += f" One that was stopped at {rung.share:.0%} may have been better."
        found.append(text)
    return found[-1:]


def _brackets(advice: Advice) -> list[str]:
    few = [it for it in advice.ranges if it.updates < _FEW_UPDATES]
    if not few:
        return []
    sizes = ", ".join(f"{it.batch_size} ({count(it.updates, 'update')})" for it in few)
    text = (
        f"The stable range was searched with few updates at m = {sizes}: later ones may break at "
        "lower learning rates."
    )
    return [text]


def _is_open(final: Final) -> bool:
    return final.low is None or final.high is None or final.low <= 0 <= final.high


def _seeds_needed(final: Final) -> int | None:
    """Seeds for which the measured difference, if true, is decided in four of five cases."""
    if final.low is None or final.high is None or not final.difference:
        return None
    n = len(final.seeds)
    error = (final.high - final.low) / 2 / float(stdtrit(n - 1, 0.975))
    deviation = error * math.sqrt(n)
    needed = ((ndtri(0.975) + ndtri(_POWER)) * deviation / abs(final.difference)) ** 2
    return max(2, math.ceil(needed)) if needed <= _MOST_SEEDS else None


def _images_needed(final: Final) -> int:
    """Test images on which two accuracies this far apart differ by more than sampling does.

    As if each were tested on images of its own, which is at most what the same images need.
    """
    p = sum(final.accuracies) / len(final.accuracies)
    spread = 2 * p * (1 - p)
    return max(1, math.ceil(spread * (1.96 / final.difference) ** 2))
