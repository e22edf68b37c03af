"""The tables on the page of `smallbatch advise`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.report.advice_words import is_recommended, number, rate_name, survived
from smallbatch.report.labels import DASH, duration, listed, percent, points, power_of_two
from smallbatch.report.tables import Table
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.analysis.advice import Advice, Raced, Stage

_FATES = {
    "behind": "stopped: behind",
    "diverged": "stopped: a seed diverged",
    "not trained on": "no time left",
    "finished": "trained to the end",
}


def raced_table(advice: Advice) -> Table:
    """Every raced cell, best first, at each rung that any of them came to."""
    shares = sorted({stage.share for cell in advice.raced for stage in cell.stages})
    both = rate_name(advice) != "η"
    rows = [
        [
            str(cell.batch_size),
            *([power_of_two(cell.base_lr)] if both else []),
            number(cell.lr),
            *(_at(cell, share) for share in shares),
            _FATES[cell.fate],
            "recommended" if is_recommended(advice, cell) else "tied" if cell.tied else "",
            duration(cell.seconds),
        ]
        for cell in advice.raced
    ]
    rungs = [f"after {100 * share:.3g} %" for share in shares]
    headers = ["m", *(["η̃"] if both else []), "η", *rungs, "its race", "", "one training"]
    caption = "Raced cells, best first: validation accuracy ± standard error over the seeds"
    return Table(caption, tuple(headers), rows)


def range_table(advice: Advice) -> Table:
    """What was found about each batch size."""
    rate = rate_name(advice)
    rows = [
        [
            str(own.batch_size),
            power_of_two(own.lowest),
            DASH if own.edge is None else power_of_two(own.edge),
            "none broke" if own.breaks is None else power_of_two(own.breaks),
            DASH if own.best is None else power_of_two(own.best),
            DASH if own.headroom is None else f"{own.headroom:.1f}".replace("-", "−"),
            listed(survived(own)),
            count(own.updates, "update"),
            f"{float(f'{own.images_per_second:.3g}'):,.6g}",
            DASH if own.memory_bytes is None else memory(own.memory_bytes),
        ]
        for own in advice.ranges
    ]
    headers = (
        "m", f"lowest {rate} tried", "stable up to", "breaks at", f"best {rate}",
        "headroom, octaves", "seeds that survived", "tried for", "images/s, all lanes",
        "memory of a lane",
    )  # fmt: skip
    return Table(
        f"Batch sizes: where training is stable in {rate}, and what it costs", headers, rows
    )


def final_table(advice: Advice) -> Table | None:
    """Both finalists' test accuracy by fresh seed; None without a final."""
    final, found = advice.final, advice.recommended
    if final is None or found is None:
        return None
    m, base_lr = final.rival
    rate = rate_name(advice)
    rows = [
        [str(seed), percent(own), percent(other), points(own - other, 2)]
        for seed, own, other in zip(
            final.seeds, final.accuracies, final.rival_accuracies, strict=True
        )
    ]
    headers = (
        "fresh seed",
        f"m = {found.batch_size}, {rate} = {power_of_two(found.base_lr)}",
        f"m = {m}, {rate} = {power_of_two(base_lr)}",
        "difference, points",
    )
    return Table("The final: test accuracy of the two best, trained anew", headers, rows)


def memory(size: int) -> str:
    """Bytes in the unit that suits them."""
    gib = size / 2**30
    return f"{gib:.3g} GiB" if gib >= 1 else f"{size / 2**20:.3g} MiB"


def _at(cell: Raced, share: float) -> str:
    stage: Stage | None = next((it for it in cell.stages if it.share == share), None)
    if stage is None:
        return DASH
    if stage.accuracy is None:
        return "diverged"
    if stage.error is None:
        return percent(stage.accuracy)
    return f"{100 * stage.accuracy:.1f} ± {100 * stage.error:.1f} %"
