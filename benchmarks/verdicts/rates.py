"""Made-up truths at the boundary of what is said of single learning rates (Fig. 12)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.verdicts.noises import Floats
from benchmarks.verdicts.worlds import (
    CONTRADICTED,
    FAR,
    MARGIN,
    STRICTLY,
    SUPPORTED,
    World,
    flat,
    profiles,
)
from smallbatch.analysis import comparisons_rates
from smallbatch.analysis.comparisons import Comparison
from smallbatch.analysis.inference import noise

WIDTH, BESIDE = 2, 3
TOP, HALF = 40.0, 20.0


def best_over_a_range() -> Iterator[World]:
    """Two m are best at some two neighbouring η̃; the others have one good cell or many."""
    for sizes, cells in ((3, 3), (4, 3), (8, 6), (8, 13), (11, 13)):
        places = {
            "everywhere": np.ones(cells, dtype=bool),
            "at one place": np.arange(cells) < WIDTH,
            "at every third": np.arange(cells) % 3 != 0,
        }
        for where, good in places.items():
            for shape, profile in profiles(cells):
                for crowd in ("both", "one of them"):
                    name = f"{sizes} × {cells}, {where}, {crowd}, others {shape}"
                    truth = np.tile(profile, (sizes, 1))
                    truth[:2] = np.where(good, 0.0, -FAR)
                    truth[1] -= FAR * (crowd == "one of them")
                    yield World(name, truth, _best_over_a_range, CONTRADICTED)
                    # At each place one column falls behind, or both do.
                    for kept, words in ((0.0, "both behind"), (FAR, "every second behind")):
                        for gap, false in ((0.0, STRICTLY), (MARGIN, SUPPORTED)):
                            behind = truth.copy()
                            behind[:2] += np.where(np.arange(cells) % 2, kept, -gap)
                            yield World(f"{name}, {words}", behind, _best_over_a_range, false)


def _best_over_a_range(values: Floats) -> list[Comparison]:
    inside, outside = values[:, :2], flat(values[:, 2:])
    known = noise([values[:, row] for row in range(values.shape[1])])
    return [comparisons_rates.best_at_neighbours(inside, outside, known, WIDTH, margin=MARGIN)]


def more_sensitive() -> Iterator[World]:
    """One m loses more than others where its best η̃ is missed, by exactly what is asked."""
    for others in (1, 2):
        for cells in (3, 6, 13):
            for by in (0.0, 2.0, 4.0):
                for lost in (0.0, 2.0, 12.0):
                    for shape, sharp in _losing(cells, lost + by):
                        for its, rest in _losing(cells, lost):
                            truth = np.stack([sharp, *[rest] * others])
                            judge = partial(_more_sensitive, by)
                            name = f"{others} others × {cells}, {lost:g} lost ({its}), {shape}"
                            for false in (CONTRADICTED, SUPPORTED):
                                yield World(f"{name}, by {by:g}", truth, judge, false)


def _losing(cells: int, lost: float) -> Iterator[tuple[str, Floats]]:
    """Profiles whose best three neighbours are on average ``lost`` below the best."""
    spike = np.full(cells, -1.5 * lost)
    spike[cells // 2] = 0.0
    yield "a spike", spike
    # On one side nothing is lost at first.
    cliff = np.full(cells, -3.0 * lost)
    cliff[cells // 2 - 1 : cells // 2 + 1] = 0.0
    yield "a cliff", cliff


def _more_sensitive(by: float, values: Floats) -> list[Comparison]:
    others = [values[:, row] for row in range(1, values.shape[1])]
    return [comparisons_rates.more_sensitive(values[:, 0], others, BESIDE, by)]


def works_wherever() -> Iterator[World]:
    """Some m get half-way at every η̃ at which others do, or just do not."""
    for sizes, cells in ((3, 2), (4, 6), (8, 6), (11, 13)):
        for judged in {1, sizes // 2}:
            judge = partial(_works_wherever, judged)
            for where in ("one column", "every second", "all"):
                at = {"one column": [1], "every second": list(range(1, cells, 2))}
                columns = at.get(where, list(range(1, cells)))
                # At these the judged are just half-way and others work, or those are just half-way
                # and the judged do not work, or both are just half-way.
                for own, other in ((HALF, TOP - 5), (5.0, HALF), (HALF, HALF)):
                    truth = np.full((sizes, cells), 5.0)
                    truth[:, 0] = TOP - 5
                    truth[-1, 0] = TOP
                    truth[:judged, columns] = own
                    truth[judged:, columns] = other
                    name = f"{judged} of {sizes} × {cells}, {where}, {own:g} against {other:g}"
                    yield World(name, truth, judge, CONTRADICTED)
                    safe = truth.copy()
                    safe[1:judged, columns] = TOP - 5
                    yield World(name, safe, judge, SUPPORTED)


def _works_wherever(judged: int, values: Floats) -> list[Comparison]:
    return [
        comparisons_rates.works_wherever(
            values[:, row], values[:, judged:], flat(values), 0.5, 0.0, judged
        )
        for row in range(judged)
    ]
