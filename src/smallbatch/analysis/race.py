"""A race: train every candidate a little, and train on only those that may still be the best.

A candidate is a cell, trained with the same seeds as all others. At a rung, a share of the
training, candidates are compared by their mean validation accuracy over the seeds. The best `least`
go on, and all that are behind the best by no more than `errors` standard errors of the difference,
paired by seed; at rungs before `every_batch_size_before` also the best of each batch size. A
candidate of which a seed has diverged stops.

Three differences by seed tell little of their own spread: their variance has two degrees of
freedom, so that of forty candidates some have by luck an error near 0, others one far too large.
So it is shrunk towards the noise of one run that all candidates at that rung show, as for verdicts
(`inference.spread`): the residual variance of the table of each batch size's best candidate × seed,
of those that learn (`SeedArray.noise`), or of all candidates left where that has too few rows.
This error knows neither how few images the validation split has, which are the same at every seed,
nor that the order at a rung is not that of the end: before the learning rate is first lowered a
high one looks worse than it will be. What comes of that is in ``results/advise``.

At the end the candidate of the highest mean wins. Those are tied with it whose difference has a
t-interval, with the same spread, that reaches 0. As the winner is chosen in hindsight, the interval
calls a rival worse somewhat more often than its level says; candidates that were stopped are not
looked at again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from smallbatch.analysis.inference import Noise, lower, noise_of_tables, spread
from smallbatch.analysis.seeds import SeedArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smallbatch.analysis.seeds import Floats

Why = Literal["among the best", "within the error", "best of its batch size", "behind", "diverged"]
"""Why a candidate goes on, the first reason that holds, or why it stops."""

_ROUNDING = 1e-9  # accuracies are ratios of small integers; rounding must not decide


@dataclass(frozen=True, order=True)
class Candidate:
    """A cell that takes part in a race.

    Attributes:
        batch_size: m.
        base_lr: η̃, under AdamW η.
    """

    batch_size: int
    base_lr: float


@dataclass(frozen=True)
class Progress:
    """How far one run has come.

    Attributes:
        accuracy: On the validation split, 0..1; None if the run has diverged.
        images: The training images it has seen since its start.
    """

    accuracy: float | None
    images: int


Standing: TypeAlias = "Mapping[Candidate, Mapping[int, Progress]]"
"""Candidate → seed → how far it has come, at one rung."""


@dataclass(frozen=True)
class Rule:
    """Who goes on.

    Attributes:
        rungs: Shares of the training, ascending; the last is 1.
        least: So many go on in any case, if there are as many that have not diverged.
        quota: So does this share of the candidates that came to the rung, rounded up.
        errors: How many standard errors a candidate may be behind the best.
        every_batch_size_before: At rungs below this share the best of each batch size goes on.
    """

    rungs: tuple[float, ...] = (0.1, 0.3, 1.0)
    least: int = 2
    quota: float = 0.0
    errors: float = 1.0
    every_batch_size_before: float = 0.3


RULE = Rule()


@dataclass(frozen=True)
class Ruling:
    """What is decided of one candidate at a rung.

    Attributes:
        candidate: The candidate.
        why: The reason.
        accuracy: Its mean over the seeds; NaN if one diverged.
        behind: The best candidate's mean less its own; NaN if one diverged.
        error: The standard error of that, paired by seed; NaN if one diverged.
    """

    candidate: Candidate
    why: Why
    accuracy: float
    behind: float
    error: float

    @property
    def goes_on(self) -> bool:
        """Whether the candidate is trained on."""
        return self.why not in ("behind", "diverged")


@dataclass(frozen=True)
class Finish:
    """How candidates that were trained to the end compare.

    Attributes:
        winner: The one of the highest mean; None if each has a seed that diverged.
        tied: The winner, and all others that the seeds do not tell from it, best first.
    """

    winner: Candidate | None
    tied: tuple[Candidate, ...]


@dataclass(frozen=True)
class Race:
    """A race that was run.

    Attributes:
        rulings: Of each rung but the last, best candidate first.
        finish: Its end.
        images: Training images seen by all runs of all candidates.
    """

    rulings: tuple[tuple[Ruling, ...], ...]
    finish: Finish
    images: int


def race(
    candidates: Iterable[Candidate],
    train: Callable[[Sequence[Candidate], float], Standing],
    chance: float,
    rule: Rule = RULE,
) -> Race:
    """Run a race.

    Args:
        candidates: Those that begin.
        train: Trains candidates on to a share of the training, and says where they stand then.
        chance: The accuracy of guessing.
        rule: Who goes on.

    Raises:
        ValueError: As `decide` does.
    """
    left = tuple(candidates)
    seen: dict[Candidate, int] = {}
    rulings: list[tuple[Ruling, ...]] = []
    for share in rule.rungs[:-1]:
        standing = train(left, share)
        seen |= _images(standing)
        rulings.append(decide(standing, share, chance, rule))
        left = tuple(ruling.candidate for ruling in rulings[-1] if ruling.goes_on)
    standing = train(left, rule.rungs[-1])
    seen |= _images(standing)
    return Race(tuple(rulings), finish(standing, chance), sum(seen.values()))


def decide(
    standing: Standing, share: float, chance: float, rule: Rule = RULE
) -> tuple[Ruling, ...]:
    """Which candidates go on after a rung.

    Args:
        standing: Of all candidates that were trained to it.
        share: The share of the training at that rung.
        chance: The accuracy of guessing.
        rule: Who goes on.

    Returns:
        A ruling for each candidate: best first, of equals that of the smaller m and then η̃; last
        those that have diverged.

    Raises:
        ValueError: Candidates differ in their seeds or have fewer than two; an accuracy is no
            number between 0 and 1.
    """
    field = _field(standing, chance)
    sure = max(rule.least, math.ceil(rule.quota * len(standing) - _ROUNDING))
    best_of: dict[int, Candidate] = {}
    rulings: list[Ruling] = []
    for place, (candidate, accuracies) in enumerate(field.ranked):
        leads = best_of.setdefault(candidate.batch_size, candidate) == candidate
        d = field.ranked[0][1] - accuracies
        behind, error = float(d.mean()), field.error(d)
        why: Why = "behind"
        if place < sure:
            why = "among the best"
        elif behind <= rule.errors * error + _ROUNDING:
            why = "within the error"
        elif leads and share < rule.every_batch_size_before - _ROUNDING:
            why = "best of its batch size"
        rulings.append(Ruling(candidate, why, float(accuracies.mean()), behind, error))
    diverged = (Ruling(it, "diverged", np.nan, np.nan, np.nan) for it in field.diverged)
    return (*rulings, *diverged)


def finish(standing: Standing, chance: float) -> Finish:
    """The winner among candidates that were trained to the end, and those tied with it.

    Args:
        standing: Of these candidates; it may be empty.
        chance: The accuracy of guessing.

    Raises:
        ValueError: As `decide` does.
    """
    field = _field(standing, chance)
    if not field.ranked:
        return Finish(None, ())
    winner = field.ranked[0][0]
    return Finish(winner, _tied_with(winner, field))


def tied_with(candidate: Candidate, standing: Standing, chance: float) -> tuple[Candidate, ...]:
    """A candidate, and those that the seeds do not tell to be worse, best first.

    Args:
        candidate: One of which no seed has diverged.
        standing: As of `finish`.
        chance: The accuracy of guessing.

    Raises:
        ValueError: As `decide` does.
    """
    return _tied_with(candidate, _field(standing, chance))


def _tied_with(candidate: Candidate, field: _Field) -> tuple[Candidate, ...]:
    best = dict(field.ranked)[candidate]
    return tuple(
        other
        for other, accuracies in field.ranked
        if other == candidate or field.at_least(best - accuracies) <= _ROUNDING
    )


@dataclass(frozen=True)
class _Field:
    """The candidates at one rung.

    Attributes:
        ranked: Those of which no seed has diverged, best first, with their accuracies (S,).
        diverged: The others, in order.
        noise: Of one run at this rung.
    """

    ranked: tuple[tuple[Candidate, Floats], ...]
    diverged: tuple[Candidate, ...]
    noise: Noise

    def error(self, d: Floats) -> float:
        """The standard error of the mean of differences by seed (S,)."""
        return float(spread(d, self.noise, 2) / np.sqrt(len(d)))

    def at_least(self, d: Floats) -> float:
        """The lower bound of the mean of differences by seed (S,)."""
        return float(lower(d, self.noise, 2))


def _field(standing: Standing, chance: float) -> _Field:
    if not standing:
        return _Field((), (), noise_of_tables([]))
    array = _array(standing, chance)
    rows = np.searchsorted(array.batch_sizes, [it.batch_size for it in standing])
    columns = np.searchsorted(array.columns, [it.base_lr for it in standing])
    placed = list(zip(standing, array.values[rows, columns], strict=True))
    usable = [(it, values) for it, values in placed if np.isfinite(values).all()]
    return _Field(
        ranked=tuple(sorted(usable, key=lambda it: (-round(float(it[1].mean()), 9), it[0]))),
        diverged=tuple(sorted(set(standing) - {it for it, _ in usable})),
        noise=_noise(array),
    )


def _noise(array: SeedArray) -> Noise:
    """The noise of one run, by the batch sizes or else by all candidates."""
    if not array.usable.any():
        return noise_of_tables([])
    found = array.noise()
    return found if found.prior else noise_of_tables([array.values[array.usable]])


def _array(standing: Standing, chance: float) -> SeedArray:
    """The accuracies as one study's: -inf where a run has diverged, NaN where no candidate is."""
    seeds = sorted(next(iter(standing.values())))
    if len(seeds) < 2:
        raise ValueError(f"a race needs two seeds or more, found {seeds}")
    batch_sizes = sorted({it.batch_size for it in standing})
    base_lrs = sorted({it.base_lr for it in standing})
    values = np.full((len(batch_sizes), len(base_lrs), len(seeds)), np.nan)
    for candidate, runs in standing.items():
        if sorted(runs) != seeds:
            raise ValueError(f"{candidate}: has seeds {sorted(runs)}, another has {seeds}")
        place = batch_sizes.index(candidate.batch_size), base_lrs.index(candidate.base_lr)
        values[place] = [_accuracy(candidate, runs[seed]) for seed in seeds]
    return SeedArray(
        name="race",
        batch_sizes=np.asarray(batch_sizes, dtype=np.int64),
        columns=np.asarray(base_lrs),
        seeds=np.asarray(seeds, dtype=np.int64),
        values=values,
        chance=chance,
    )


def _accuracy(candidate: Candidate, progress: Progress) -> float:
    if progress.accuracy is None:
        return -np.inf
    if not 0 <= progress.accuracy <= 1:
        raise ValueError(f"{candidate}: accuracy {progress.accuracy} is not between 0 and 1")
    return progress.accuracy


def _images(standing: Standing) -> dict[Candidate, int]:
    return {it: sum(run.images for run in runs.values()) for it, runs in standing.items()}
