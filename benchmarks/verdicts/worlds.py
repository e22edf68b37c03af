"""Made-up truths at the boundary of a statement, where a verdict either way is false.

Accuracies are in units of their noise, and so are the margins. A world is the truth of all cells of
a study (or two), what its claim compares, and which verdicts would be false. Of each kind of claim
there are many worlds: other grids, other batch sizes that the claim is about, an optimum that is
peaked or flat over η̃, one rival or many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.verdicts.noises import Floats
from smallbatch.analysis import comparisons
from smallbatch.analysis.comparisons import Comparison
from smallbatch.analysis.inference import noise, noise_of_tables

FAR = 12.0
DEAD = 30.0
MARGIN = 1.0
GRIDS = ((8, 6), (11, 13), (2, 6), (3, 1), (4, 3), (2, 13))

SUPPORTED, STRICTLY, CONTRADICTED = "supported", "strictly supported", "contradicted"


@dataclass(frozen=True)
class World:
    """A truth and the verdict that is false there.

    Attributes:
        name: What is made up, in words.
        truth: The mean accuracy of each cell (B, C).
        judge: Gives the parts of the claim for accuracies (D, B, C, n) with noise.
        false: The verdict that is false.
    """

    name: str
    truth: Floats
    judge: Callable[[Floats], list[Comparison]]
    false: str

    def errs(self, values: Floats) -> Floats:
        """Whether each of some draws (D, B, C, n) is judged falsely, (D,)."""
        parts = self.judge(values)
        if self.false == CONTRADICTED:
            return np.any([part.high < 0 for part in parts], axis=0)
        least = 0.0 if self.false == STRICTLY else None
        return np.all(
            [part.low > (-part.margin if least is None else least) for part in parts], axis=0
        )


def profiles(cells: int) -> Iterator[tuple[str, Floats]]:
    """How accuracy may depend on η̃."""
    yield "flat", np.zeros(cells)
    if cells > 1:
        yield "peaked", -np.minimum(2.0 * np.abs(np.arange(cells) - cells // 2) ** 1.5, FAR)
        yield "a pair", np.where(np.arange(cells) < 2, 0.0, -FAR)


def _choices(sizes: int) -> Iterator[tuple[str, list[int]]]:
    found = {
        "the first m": [0],
        "the first two": [0, 1],
        "two in the middle": [sizes // 2 - 1, sizes // 2],
        "all but the last": list(range(sizes - 1)),
        "the first half": list(range(sizes // 2)),
    }
    seen: list[list[int]] = []
    for name, chosen in found.items():
        chosen = sorted({index for index in chosen if index >= 0})
        if 0 < len(chosen) < sizes and chosen not in seen:
            seen.append(chosen)
            yield name, chosen


def best_in(parts: int = 1) -> Iterator[World]:
    """The best m is among some, of one study or of several, each with its own noise."""
    for sizes, cells in GRIDS:
        if parts > 1 and cells > 6:
            continue
        for shape, profile in profiles(cells):
            for where, inside in _choices(sizes):
                outside = [index for index in range(sizes) if index not in inside]
                for crowd in ("all equal", "one inside", "one outside"):
                    level = np.zeros(sizes)
                    if crowd == "one inside":
                        level[inside[1:]] = -FAR
                    if crowd == "one outside":
                        level[outside[1:]] = -FAR
                    truth = np.tile(level[:, np.newaxis] + profile, (parts, 1))
                    judge = partial(_best_in, sizes, inside, outside)
                    name = f"{sizes} × {cells}, {where}, {shape}, {crowd}"
                    yield World(name, truth, judge, CONTRADICTED)
                    # A single part decides for support: the others are far from contradicting.
                    safe = truth.copy()
                    for part in range(1, parts):
                        safe[[part * sizes + index for index in outside]] -= FAR
                    yield World(name, safe, judge, STRICTLY)
                    behind = safe.copy()
                    behind[inside] -= MARGIN
                    yield World(name, behind, judge, SUPPORTED)


def dead() -> Iterator[World]:
    """The best m is among some, and other m learn nothing, with hardly any noise."""
    for sizes, cells in ((11, 1), (8, 6), (5, 4)):
        for live in (2, 3, 4):
            truth = np.full((sizes, cells), -DEAD)
            truth[:live] = 0.0
            judge = partial(_dead, live)
            name = f"{live} of {sizes} × {cells} learn"
            yield World(name, truth, judge, CONTRADICTED)
            yield World(name, truth, judge, STRICTLY)
            behind = truth.copy()
            behind[0] -= MARGIN
            yield World(name, behind, judge, SUPPORTED)


def _dead(live: int, values: Floats) -> list[Comparison]:
    cells = flat(values[:, :1]), flat(values[:, 1:])
    # As `SeedArray.noise` does: from the m that learn.
    known = noise([values[:, index] for index in range(live)])
    return [comparisons.best_is_in(*cells, known, margin=MARGIN)]


def _best_in(sizes: int, inside: list[int], outside: list[int], values: Floats) -> list[Comparison]:
    studies = np.split(values, values.shape[1] // sizes, axis=1)
    return [
        comparisons.best_is_in(
            flat(study[:, inside]),
            flat(study[:, outside]),
            noise([study[:, index] for index in range(sizes)]),
            len(studies),
            margin=MARGIN,
        )
        for study in studies
    ]


def bn_best(among: int = 2) -> Iterator[World]:
    """One of some BN batches is best at every SGD batch: rows of one table, their noise pooled."""
    for rows in (1, 2, 4):
        for columns in (among + 1, among + 2, 8):
            inside, outside = list(range(among)), list(range(among, columns))
            judge = partial(_bn_best, inside, outside)
            for crowd in ("all equal", "one inside", "one outside"):
                level = np.zeros(columns)
                level[1:among] -= FAR * (crowd == "one inside")
                level[among + 1 :] -= FAR * (crowd == "one outside")
                truth = np.tile(level, (rows, 1))
                name = f"{rows} rows of {columns}, {crowd}"
                yield World(name, truth, judge, CONTRADICTED)
                safe = truth.copy()
                safe[1:, outside] -= FAR
                yield World(name, safe, judge, STRICTLY)
                safe = safe.copy()
                safe[0, inside] -= MARGIN
                yield World(name, safe, judge, SUPPORTED)


def _bn_best(inside: list[int], outside: list[int], values: Floats) -> list[Comparison]:
    rows = [values[:, row] for row in range(values.shape[1])]
    pooled = noise_of_tables(rows)
    return [
        comparisons.best_is_in(
            cells[:, inside], cells[:, outside], pooled, len(rows), margin=MARGIN
        )
        for cells in rows
    ]


def bn_near() -> Iterator[World]:
    """The best BN batch is nearly the same at every SGD batch."""
    for rows in (2, 4):
        for columns in (4, 8):
            for gap in (0.0, 0.5, 1.0, 2.0, 4.0):
                flat = np.full(columns, -gap)
                here, next_to, far = (flat.copy() for _ in range(3))
                here[0] = next_to[1] = far[2] = 0.0
                name = f"{rows} rows of {columns}, the best ahead by {gap:g}"
                yield World(name, np.stack([here, *[next_to] * (rows - 1)]), _near, CONTRADICTED)
                if gap:
                    apart = np.stack([here, *[far] * (rows - 1)])
                    yield World(name, apart, _near, SUPPORTED)


def _near(values: Floats) -> list[Comparison]:
    rows = [values[:, row] for row in range(values.shape[1])]
    places = np.arange(float(values.shape[2]))
    found = comparisons.near([(places, row) for row in rows], 1.5, noise_of_tables(rows))
    return [found]


def mean_above(*, every: bool = False) -> Iterator[World]:
    """One study is better than another: on average over m, or at every m."""
    for sizes, cells in ((1, 1), (1, 6), (2, 6), (4, 1), (4, 6), (8, 6), (8, 13)):
        for shape, profile in profiles(cells):
            for many in ("winner", "loser", "both"):
                first = profile if many != "loser" else np.where(np.arange(cells) > 0, -FAR, 0.0)
                second = profile if many != "winner" else np.where(np.arange(cells) > 0, -FAR, 0.0)
                truth = np.concatenate([np.tile(first, (sizes, 1)), np.tile(second, (sizes, 1))])
                judge = partial(_mean_above, every)
                name = f"{sizes} × {cells}, {shape} over η̃ for {many}"
                yield World(name, truth, judge, CONTRADICTED)
                if every:
                    truth = truth.copy()
                    truth[1:sizes] += FAR
                yield World(name, truth, judge, SUPPORTED)


def _mean_above(every: bool, values: Floats) -> list[Comparison]:
    sizes = values.shape[1] // 2
    first = [values[:, index] for index in range(sizes)]
    second = [values[:, sizes + index] for index in range(sizes)]
    if not every:
        return [comparisons.mean_above(first, second)]
    return [
        comparisons.mean_above([one], [other], sizes)
        for one, other in zip(first, second, strict=True)
    ]


def gains_more() -> Iterator[World]:
    """One study's gain over another is larger at some m than at others."""
    for here, there in ((1, 1), (3, 4), (3, 5)):
        for cells in (1, 6):
            for shape, profile in profiles(cells):
                for gain in (0.0, 4.0):
                    first, second = (np.tile(profile, (here + there, 1)) for _ in range(2))
                    truth = np.concatenate([first + gain, second])
                    name = f"{here} and {there} m × {cells}, {shape}, a gain of {gain:g}"
                    for false in (CONTRADICTED, SUPPORTED):
                        yield World(name, truth, partial(_gains_more, here), false)


def _gains_more(here: int, values: Floats) -> list[Comparison]:
    sizes = values.shape[1] // 2
    rows = [values[:, index] for index in range(2 * sizes)]

    def mean(cells: list[Floats]) -> list[tuple[float, Floats]]:
        return [(1 / len(cells), each) for each in cells]

    better, worse = rows[:sizes], rows[sizes:]
    plus = [*mean(better[:here]), *mean(worse[here:])]
    return [comparisons.weighted(plus, [*mean(worse[:here]), *mean(better[here:])])]


def same_level() -> Iterator[World]:
    """The best accuracies of two studies differ by less than a width."""
    for sizes, cells in ((1, 1), (2, 6), (8, 6), (11, 13)):
        for shape, profile in profiles(cells):
            for width in (1.0, 2.0, 4.0):
                for side in (-1, 1):
                    truth = np.tile(profile, (2 * sizes, 1))
                    truth[:sizes] += side * width
                    name = f"{sizes} × {cells}, {shape}, {side * width:+g}"
                    for false in (CONTRADICTED, SUPPORTED):
                        yield World(name, truth, partial(_same_level, width), false)


def _same_level(width: float, values: Floats) -> list[Comparison]:
    first, second = np.split(values, 2, axis=1)
    return [comparisons.within(flat(first), flat(second), width)]


def curves_alike() -> Iterator[World]:
    """Mean heights of curves, one of each m, differ by less than a width for every pair."""
    for sizes in (2, 3, 5):
        for width in (1.0, 3.0):
            # One curve apart, or the others spread between the two ends.
            for shape, truth in (
                ("one apart", np.concatenate([[width], np.zeros(sizes - 1)])),
                ("spread", np.linspace(0, width, sizes)),
            ):
                for false in (CONTRADICTED, SUPPORTED):
                    name = f"{sizes} curves, {shape}, {width:g} wide"
                    yield World(name, truth[:, np.newaxis], partial(_curves_alike, width), false)


def _curves_alike(width: float, values: Floats) -> list[Comparison]:
    heights = values[:, :, 0]
    known = noise_of_tables([heights])
    sizes = heights.shape[1]
    pairs = [(one, other) for other in range(sizes) for one in range(other)]
    return [
        comparisons.within(values[:, one], values[:, other], width, known, len(pairs))
        for one, other in pairs
    ]


def curves_low() -> Iterator[World]:
    """The same, and the curves of other m stay low, with hardly any noise."""
    for low in (4, 9):
        truth = np.concatenate([[0.0, 3.0], np.full(low, -DEAD)])[:, np.newaxis]
        for false in (CONTRADICTED, SUPPORTED):
            yield World(f"two curves, {low} low", truth, _curves_low, false)


def _curves_low(values: Floats) -> list[Comparison]:
    known = noise_of_tables([values[:, :2, 0]])
    return [comparisons.within(values[:, 0], values[:, 1], 3.0, known)]


def curves_worse() -> Iterator[World]:
    """Mean heights of curves at some m exceed those at every other."""
    for alike, beyond in ((2, 1), (5, 1), (5, 5)):
        judge = partial(_curves_worse, alike)
        truth = np.zeros((alike + beyond, 1))
        yield World(f"{alike} against {beyond}", truth, judge, CONTRADICTED)
        lower = truth.copy()
        lower[alike + 1 :] -= FAR
        yield World(f"{alike} against {beyond}", lower, judge, SUPPORTED)


def _curves_worse(alike: int, values: Floats) -> list[Comparison]:
    winners = [values[:, index] for index in range(alike)]
    losers = range(alike, values.shape[1])
    return [comparisons.mean_above(winners, [values[:, index]], len(losers)) for index in losers]


def of_the_way(*, short: bool = False) -> Iterator[World]:
    """The best at each of some m gets a fraction of the way to the best of all, or does not."""
    for sizes, cells in ((2, 6), (8, 6), (11, 13), (3, 1)):
        for shape, profile in profiles(cells):
            for fraction in (0.25, 0.5, 0.9):
                for judged in {1, sizes - 1}:
                    truth = np.tile(profile, (sizes, 1)) + 40.0
                    truth[:judged] -= (1 - fraction) * 40.0
                    judge = partial(_of_the_way, judged, fraction, short)
                    name = f"{judged} of {sizes} × {cells}, {shape}, {fraction:g} of the way"
                    yield World(name, truth, judge, CONTRADICTED)
                    safe = truth.copy()
                    safe[1:judged] += (-FAR if short else 0.9 * (1 - fraction) * 40.0) * 0.9
                    yield World(name, safe, judge, SUPPORTED)


def _of_the_way(judged: int, fraction: float, short: bool, values: Floats) -> list[Comparison]:
    compare = comparisons.short_of_the_way if short else comparisons.of_the_way
    everything, rows = flat(values), [values[:, index] for index in range(values.shape[1])]
    return [compare(rows[row], everything, fraction, 0.0, judged) for row in range(judged)]


def optimum(fraction: float = 0.5) -> Iterator[World]:
    """At the η̃ of the best cell other m fail; where another η̃ is nearly the best, they may not."""
    edge = fraction * 40.0  # above it an m works
    works = (edge + 40.0) / 2
    for sizes, cells in ((2, 6), (8, 6), (5, 4), (11, 13)):
        for judged in {1, sizes // 2}:
            # The best cell is in the last row; rival columns are as good there.
            for rivals in (0, 1, 2):
                truth = np.zeros((sizes, cells))
                best = list(range(1 + rivals))
                truth[-1, best] = 40.0
                truth[:-1, best] = works
                truth[:judged, best] = edge
                judge = partial(_optimum, judged, fraction)
                name = f"{judged} of {sizes} × {cells}, {rivals} columns as good"
                yield World(name, truth, judge, CONTRADICTED)
                safe = truth.copy()
                safe[1:judged, best] = 0.0
                yield World(name, safe, judge, SUPPORTED)
            # The judged rows work at the best column and fail at its rival, or the other way round.
            for gap in (0.1, 0.3, 0.5, 1.0, 2.0):
                for here, there, false in ((works, 5.0, SUPPORTED), (5.0, works, CONTRADICTED)):
                    truth = np.zeros((sizes, cells))
                    truth[-1, :2] = 40.0, 40.0 - gap
                    truth[:judged, :2] = here, there
                    name = f"{judged} of {sizes} × {cells}, a rival behind by {gap:g}"
                    yield World(name, truth, partial(_optimum, judged, fraction), false)
    # The best cell and, at another m, rivals in all other columns; the judged row is exactly at the
    # threshold at the optimum and clear elsewhere. Of the noises with two wild m, these are they.
    for sizes, cells in ((6, 5), (11, 3), (11, 6), (13, 9)):
        for gap in (0.05, 0.3, 1.0):
            for clear, false in ((0.0, SUPPORTED), (works, CONTRADICTED)):
                truth = np.full((sizes, cells), edge)
                truth[0, 0], truth[sizes // 2, 1:] = 40.0, 40.0 - gap
                truth[1:, 0] = np.where(np.arange(1, sizes) == sizes // 2, edge, works)
                truth[-1] = clear
                truth[-1, 0] = edge
                name = f"{sizes} × {cells}, rivals at another m behind by {gap:g}"
                yield World(name, truth, partial(_optimum_of_last, fraction), false)


def _optimum(judged: int, fraction: float, values: Floats) -> list[Comparison]:
    # Of the rows in between none may be called learning.
    known = noise([values[:, -1]])
    return [
        comparisons.short_at_the_best_column(values, row, fraction, 0.0, known, judged)
        for row in range(judged)
    ]


def _optimum_of_last(fraction: float, values: Floats) -> list[Comparison]:
    # All but the judged row learn.
    known = noise([values[:, index] for index in range(values.shape[1] - 1)])
    last = values.shape[1] - 1
    return [comparisons.short_at_the_best_column(values, last, fraction, 0.0, known)]


def shrinks() -> Iterator[World]:
    """The range of η̃ at which a run learns does not change with m; noise moves its ends."""
    for sizes, cells in ((3, 5), (4, 6), (5, 6), (8, 6), (11, 13)):
        for width in (1.0, 1.5, 2.3):
            for moved in (0.0, 0.1, 0.5, 1.0):
                for parts in (1, 5, 13):
                    # An end moves by `moved` steps when the noise is one.
                    truth = np.tile(np.arange(float(cells)), (parts * sizes, 1))
                    judge = partial(_shrinks, parts, width, moved)
                    name = f"{parts} of {sizes} × {cells}, {width:g} wide, ends move by {moved:g}"
                    yield World(name, truth, judge, CONTRADICTED)
                    if parts == 1:
                        yield World(name, truth, judge, SUPPORTED)


def _shrinks(parts: int, width: float, moved: float, values: Floats) -> list[Comparison]:
    cells = values.shape[2]
    steps = np.arange(float(cells))[:, np.newaxis]
    noises = values - steps
    # Where a range lies on the grid is chance, at each m: a number that no end depends on.
    phase = np.modf(np.abs(100 * noises[:, :, 1, :1]))[0]
    low = 0.5 + phase
    ends = low + moved * noises[:, :, 0], low + width + moved * noises[:, :, -1]
    inside = (steps >= ends[0][:, :, np.newaxis]) & (steps <= ends[1][:, :, np.newaxis])
    widths = np.split(inside.sum(axis=2).astype(float), parts, axis=1)
    return [comparisons.falls(own, np.arange(float(own.shape[1])), 1.0, parts) for own in widths]


def measured() -> Iterator[World]:
    """A mean of a few measurements, such as slopes or growths: above 0, or near a value."""
    zero = np.zeros((1, 1))
    for false in (CONTRADICTED, SUPPORTED):
        yield World("above 0", zero, _measured_above, false)
        yield World("near 0", zero + 1.0, partial(_measured_near, 1.0), false)


def _measured_above(values: Floats) -> list[Comparison]:
    cells = values[:, 0]
    return [comparisons.mean_above([cells], [np.zeros_like(cells)])]


def _measured_near(width: float, values: Floats) -> list[Comparison]:
    return [comparisons.mean_within(values[:, 0, 0], 0.0, width)]


def flat(values: Floats) -> Floats:
    """All cells (D, B·C, n) of accuracies (D, B, C, n)."""
    return values.reshape(len(values), -1, values.shape[-1])
