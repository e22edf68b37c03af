"""The replay's page, from its numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.advise.replay import LEAST_MET, MOST_IMAGES
from smallbatch.analysis.race import RULE
from smallbatch.markdown import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.advise.replay import Order, Replay


def page(
    replays: Sequence[Replay],
    variants: Mapping[str, Sequence[Replay]],
    single: Sequence[Order],
    left_out: Mapping[str, str],
) -> str:
    """The page in Markdown.

    Args:
        replays: By the rule.
        variants: What a variant of the rule is → the same studies by it, in the same order.
        single: Of studies of one seed.
        left_out: What was not replayed → why.
    """
    within, cheap, both = met(replays)
    bar = [it for it in replays if it.counts]
    verdict = "The race meets it" if both >= LEAST_MET else "The race misses it"
    lost = [it.lost for it in bar if it.lost]
    first = sum(it.share == RULE.rungs[0] for it in lost)
    other = [it for it in replays if it.grid != it.raced]
    lower = sum(it.raced[1] < it.grid[1] for it in other)
    higher = sum(it.raced[1] > it.grid[1] for it in other)
    missed = [it for it in bar if not it.regret_met]
    clearly = sum(it.regret - it.deviation > 2 * it.regret_seeds for it in missed)
    same = sum(it.edge_raced == it.raced for it in replays)
    return f"""# A race against the full grid, replayed

`python -m benchmarks.advise` writes this page and [replay.json](replay.json) from the records of
committed runs; nothing is trained. The rule is `src/smallbatch/analysis/race.py`: rungs at
{" / ".join(f"{100 * it:g}" for it in RULE.rungs)} % of the training; at a rung go on the best
{RULE.least}, all within {RULE.errors:g} paired standard error of the best, and before the one at
{100 * RULE.every_batch_size_before:g} % the best of each batch size. No fixed share goes on: the
best half at each rung would by itself take 38 % of the images.

Race and grid choose by the same numbers, the mean over {_span(replays, "seeds")} seeds of the
accuracy on {_span(replays, "n_validation")} validation images, the grid after all its cells were
trained to the end. Both choices are judged by their mean accuracy on {_span(replays, "n_test")}
test images. The runs are short, {_span(replays, "epochs")} epochs of
{_span(replays, "n_train")} images, and accuracies are known after each epoch only,
so that a rung is at the end of the nearest epoch.

**The bar**, set before the replay: a regret of at most one seed standard deviation and at most
{100 * MOST_IMAGES:g} % of the grid's images, both in at least {LEAST_MET} of the nine studies of
eight batch sizes × six η̃. **{verdict}**: both are met in {both} of {len(bar)}, the regret in
{within}, the images in {cheap}.

## Does it choose as well as the grid?

Regret: the test accuracy of the grid's choice less that of the race's, in points; ± its standard
error over the seeds, ± that for the test set's size, at most (as if each had been tested on images
of its own). The deviation is that of one run's test accuracy in the study, from the best cell of
each batch size; ° of the grid's choice, as no two batch sizes learn. "Best" is the highest test
accuracy of any cell, flattered by having been picked on the test set. * has three batch sizes only
and is no part of the bar.

{_choices(replays)}

Of the {len(missed)} studies of the bar that are not within it, {clearly} are above it by more than
twice the seeds' error; of the others this replay cannot tell.

## What does it cost?

Training images of the race as a share of the grid's, where diverged runs ended early and cost what
they trained; as a share of those that the grid would have taken had none diverged; and, of the
grid's again, if the race began only with the cells below the lowest η̃ at which a seed diverged at
some time (of the {len(replays)} studies it then chooses the same cell in {same}). That edge is
known here from whole trainings; a search for it with a few hundred updates, which knows less and
costs something itself, cannot be replayed.

{_costs(replays)}

## Why?

How many candidates began, how many went on after either rung, and how many the race calls tied at
its end; how many a diverged seed stopped at either rung; and what became of the grid's choice.

{_fields(replays)}

The grid's choice is stopped in {len(lost)} of the {len(bar)} studies, in {first} at the first rung.
Two things the error over seeds does not know: the few validation images, and that the order at a
rung is not that of the end. Where the race chooses another cell, its η̃ is lower in {lower} of
{len(other)} studies and higher in {higher}: both rungs lie before the learning rate is first
lowered, and until then a high one looks worse than it will be, as in the full-scale runs below.

The images' bar has a floor: the first rung alone takes about a tenth of what does not diverge, and
where nearly all diverges there is little to save.

## Is it for the short runs?

Studies of one seed have no paired error, so that the rule cannot be replayed. Their order at a
rung can be looked at: where the best cell at the end then was, how far it was behind the first, and
how far this one is behind it at the end, in points of the validation split. The last row is the
epoch at which the learning rate is first lowered.

{_single(single)}

## Found afterwards

Variants that were tried after the above was known, and so are no evidence for themselves: regret in
points, and share of the grid's images.

{_variants(replays, variants)}

## Not replayed

{table(("results", "why"), left_out.items())}
"""


def met(replays: Sequence[Replay]) -> tuple[int, int, int]:
    """In how many studies of the bar the regret, the images and both are within it."""
    bar = [it for it in replays if it.counts]
    return (
        sum(it.regret_met for it in bar),
        sum(it.images_met for it in bar),
        sum(it.regret_met and it.images_met for it in bar),
    )


def _choices(replays: Sequence[Replay]) -> str:
    head = ("study", "grid chooses", "race chooses", "grid %", "race %", "best %")
    rows = [
        (
            _name(it),
            _cell(it.grid),
            "the same" if it.grid == it.raced else _cell(it.raced),
            *(f"{100 * a:.1f}" for a in (it.grid_accuracy, it.raced_accuracy, it.best_accuracy)),
            f"{_points(it.regret)} ± {100 * it.regret_seeds:.1f} ± {100 * it.regret_images:.1f}",
            f"{100 * it.deviation:.1f}" + ("" if it.deviation_of == "study" else "°"),
            _yes(it.regret_met),
        )
        for it in replays
    ]
    return table((*head, "regret ± seeds ± images", "deviation", "within it"), rows, 6)


def _costs(replays: Sequence[Replay]) -> str:
    head = ("study", "of the grid", "of the planned grid", "from below the edge", "within 20 %")
    rows = [
        (
            _name(it),
            *(_share(share) for share in (it.share, it.planned_share, it.edge_share)),
            _yes(it.images_met),
        )
        for it in replays
    ]
    return table(head, rows, 4)


def _fields(replays: Sequence[Replay]) -> str:
    first, second, _ = (f"{100 * share:g} %" for share in RULE.rungs)
    head = ("study", "begin", f"after {first}", f"after {second}", "tied", "diverged", "the grid's")
    rows = [
        (
            _name(it),
            *it.candidates,
            it.tied,
            " + ".join(map(str, it.diverged)),
            f"stopped at {100 * it.lost.share:g} %: place {it.lost.place} of {it.lost.of}, "
            f"{100 * it.lost.behind:.1f} ± {100 * it.lost.error:.1f} points behind"
            if it.lost
            else "chosen"
            if it.grid == it.raced
            else "at the end, not chosen",
        )
        for it in replays
    ]
    return table(head, rows)


def _single(single: Sequence[Order]) -> str:
    head = ("study", "epoch", "not diverged", "first", "the best's place", "behind", "first's loss")
    rows = [
        (
            f"{it.results}: {it.study}",
            f"{it.epoch} of {it.epochs}",
            it.running,
            _cell(it.first),
            it.place,
            f"{100 * it.behind:.1f}",
            f"{100 * it.loss:.1f}",
        )
        for it in single
    ]
    return table(head, rows)


def _variants(replays: Sequence[Replay], variants: Mapping[str, Sequence[Replay]]) -> str:
    columns = [replays, *variants.values()]
    rows = [
        (
            _name(each[0]),
            *(f"{_points(it.regret)}, {_share(it.share)}" for it in each),
        )
        for each in zip(*columns, strict=True)
    ]
    regret, images, both = zip(*map(met, columns), strict=True)
    rows += [
        ("regret within it, of nine", *map(str, regret)),
        ("images within it, of nine", *map(str, images)),
        ("both, of nine", *map(str, both)),
    ]
    return table(("study", "the rule", *variants), rows, len(columns))


def _span(replays: Sequence[Replay], name: str) -> str:
    values = sorted({getattr(it, name) for it in replays})
    return " to ".join(f"{it:,}" for it in dict.fromkeys((values[0], values[-1])))


def _name(it: Replay) -> str:
    return it.study if it.counts else f"{it.study}*"


def _cell(cell: tuple[int, float]) -> str:
    return f"m = {cell[0]}, η̃ = 2^{round(math.log2(cell[1]))}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}" if round(100 * value, 1) else "0.0"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _yes(met: bool) -> str:
    return "yes" if met else "no"
