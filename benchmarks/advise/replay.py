"""A race against the full grid: what its choice loses, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.inference import spread
from smallbatch.analysis.race import RULE, finish, race

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.advise.studies import Study
    from smallbatch.analysis.race import Candidate, Race, Rule

MOST_IMAGES = 0.2
MOST_REGRET = 1.0
"""In seed standard deviations of the study."""

LEAST_MET = 8
BEFORE = 0.5
"""The share of the training after which the learning rate is first lowered."""

GRID = 48
"""The cells of a study that the bar speaks of: eight batch sizes × six η̃. There are nine."""


@dataclass(frozen=True)
class Lost:
    """A candidate that was stopped.

    Attributes:
        share: The rung, as a share of the training.
        place: Its place at that rung, from 1.
        of: Among how many.
        behind: How far it was behind the best there, on the validation split.
        error: The standard error of that.
    """

    share: float
    place: int
    of: int
    behind: float
    error: float


@dataclass(frozen=True)
class Replay:
    """A race on one study, compared with its full grid; accuracies are fractions of 1.

    Attributes:
        results, study: Where it is from.
        seeds, epochs: Of its runs.
        n_train, n_validation, n_test: Images of its splits.
        counts: Whether the bar speaks of it.
        grid, raced: The choice of the full grid, and of the race: batch size, η̃.
        grid_accuracy, raced_accuracy: Their mean test accuracies.
        best_accuracy: The highest mean test accuracy of any candidate, chosen on the test set.
        regret: What the race's choice loses on the test set against the grid's.
        regret_seeds: Its standard error over the seeds.
        regret_images: Its standard error for the size of the test set, at most.
        deviation: The seed standard deviation of the study's test accuracy.
        deviation_of: Whether that is the noise of the study or, where only one batch size learns,
            the deviation of the grid's choice.
        candidates: How many there were at the start and after each rung.
        diverged: How many had stopped at each rung because a seed diverged.
        lost: Where the race stopped the grid's choice; None if it did not.
        tied: How many the race calls tied, its choice included.
        tied_with_grid: Whether the grid's choice is among them.
        images: Training images of the race.
        grid_images: Those of the grid.
        planned_images: Those of the grid if no run of it had diverged.
        edge_images: Those of a race of the candidates below the stability edge alone.
        edge_raced: What that race would choose.
    """

    results: str
    study: str
    seeds: int
    epochs: int
    n_train: int
    n_validation: int
    n_test: int
    counts: bool
    grid: tuple[int, float]
    raced: tuple[int, float]
    grid_accuracy: float
    raced_accuracy: float
    best_accuracy: float
    regret: float
    regret_seeds: float
    regret_images: float
    deviation: float
    deviation_of: str
    candidates: tuple[int, ...]
    diverged: tuple[int, ...]
    lost: Lost | None
    tied: int
    tied_with_grid: bool
    images: int
    grid_images: int
    planned_images: int
    edge_images: int
    edge_raced: tuple[int, float]

    @property
    def share(self) -> float:
        """The images of the race, as a share of the grid's."""
        return self.images / self.grid_images

    @property
    def planned_share(self) -> float:
        """The images of the race, as a share of those that the grid was planned to take."""
        return self.images / self.planned_images

    @property
    def edge_share(self) -> float:
        """The images of the race below the edge, as a share of the grid's."""
        return self.edge_images / self.grid_images

    @property
    def regret_met(self) -> bool:
        """Whether the regret is within the bar."""
        return self.regret <= MOST_REGRET * self.deviation

    @property
    def images_met(self) -> bool:
        """Whether the images are within the bar."""
        return self.share <= MOST_IMAGES


def replay(study: Study, rule: Rule = RULE) -> Replay:
    """Run a race on a study's records."""
    whole = study.at(study.candidates, 1.0)
    grid = finish(whole, study.chance).winner
    found = race(study.candidates, study.at, study.chance, rule)
    below = race(study.below_the_edge, study.at, study.chance, rule)
    raced, edge = found.finish.winner, below.finish.winner
    if grid is None or raced is None or edge is None:
        raise ValueError(f"{study.name}: every candidate has a seed that diverged")
    chosen = study.test_accuracies(grid), study.test_accuracies(raced)
    noise = study.tested.noise()
    d = chosen[0] - chosen[1]
    p = np.array([it.mean() for it in chosen])
    same = grid == raced
    return Replay(
        results=study.results,
        study=study.name,
        seeds=study.seeds,
        epochs=study.epochs,
        n_train=study.images("train"),
        n_validation=study.images("validation"),
        n_test=study.images("test"),
        counts=len(study.candidates) == GRID,
        grid=_pair(grid),
        raced=_pair(raced),
        grid_accuracy=float(p[0]),
        raced_accuracy=float(p[1]),
        best_accuracy=float(study.tested.sample().max()),
        regret=float(d.mean()),
        regret_seeds=0.0 if same else float(spread(d, noise, 2) / np.sqrt(len(d))),
        regret_images=0.0 if same else float(np.sqrt((p * (1 - p)).sum() / study.images("test"))),
        deviation=float(np.sqrt(noise.variance) or chosen[0].std(ddof=1)),
        deviation_of="study" if noise.variance else "choice",
        candidates=(
            len(study.candidates),
            *(sum(it.goes_on for it in rung) for rung in found.rulings),
        ),
        diverged=tuple(sum(it.why == "diverged" for it in rung) for rung in found.rulings),
        lost=_lost(found, grid, rule),
        tied=len(found.finish.tied),
        tied_with_grid=grid in found.finish.tied,
        images=found.images,
        grid_images=sum(run.images for runs in whole.values() for run in runs.values()),
        planned_images=len(study.runs) * study.epochs * study.images("train"),
        edge_images=below.images,
        edge_raced=_pair(edge),
    )


@dataclass(frozen=True)
class Order:
    """The order of candidates of one seed at a rung; accuracies are the validation split's.

    Attributes:
        results, study: Where it is from.
        epoch, epochs: The rung, and the whole training.
        running: How many candidates have not diverged.
        first: The best there: batch size, η̃.
        place: The place of the best at the end, from 1.
        behind: How far that one is behind the first.
        loss: How far the first is behind it at the end.
    """

    results: str
    study: str
    epoch: int
    epochs: int
    running: int
    first: tuple[int, float]
    place: int
    behind: float
    loss: float


def orders(study: Study, shares: Sequence[float] = (*RULE.rungs[:-1], BEFORE)) -> list[Order]:
    """How the candidates of a study of one seed stand at shares of the training."""
    end = _accuracies(study, 1.0)
    best = max(end, key=end.__getitem__)
    found: list[Order] = []
    for share in shares:
        now = _accuracies(study, share)
        ranked = sorted(now, key=lambda it: -now[it])
        first = ranked[0]
        found.append(
            Order(
                results=study.results,
                study=study.name,
                epoch=study.epoch(share),
                epochs=study.epochs,
                running=len(now),
                first=_pair(first),
                place=ranked.index(best) + 1,
                behind=now[first] - now[best],
                loss=end[best] - end.get(first, study.chance),
            )
        )
    return found


def _accuracies(study: Study, share: float) -> dict[Candidate, float]:
    """The validation accuracies of one seed's candidates that have not diverged."""
    return {
        candidate: run.accuracy
        for candidate, runs in study.at(study.candidates, share).items()
        for run in runs.values()
        if run.accuracy is not None
    }


def _lost(found: Race, candidate: Candidate, rule: Rule) -> Lost | None:
    for share, rung in zip(rule.rungs, found.rulings, strict=False):
        usable = [it for it in rung if it.why != "diverged"]
        for place, it in enumerate(usable, 1):
            if it.candidate == candidate and not it.goes_on:
                return Lost(share, place, len(usable), it.behind, it.error)
    return None


def _pair(candidate: Candidate) -> tuple[int, float]:
    return candidate.batch_size, candidate.base_lr
