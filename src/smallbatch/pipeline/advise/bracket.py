"""The second step: up to which learning rate each batch size trains, and where it learns fastest.

A bracket trains learning rates an octave apart for a few hundred updates, three seeds each. It
searches upwards until a seed diverges, or until learning has long got slower, and downwards until
it gets slower, too. Then it tries half an octave above the edge. Nothing is fitted: a learning rate
survived with so many of so many seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallbatch.pipeline.advise.size import CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.config.study import StudyConfig
    from smallbatch.pipeline.advise.trials import Trials

LOWEST, HIGHEST = -40, 20
"""Octaves, log₂ of a learning rate, that are searched."""

_FIRST = 4  # octaves of the first pass
_BELOW, _ABOVE = 3, 2  # octaves that a pass adds
_LONG_SLOWER = 3  # octaves above the fastest after which no edge is searched


@dataclass(frozen=True)
class Bracket:
    """What was found of one batch size.

    Attributes:
        batch_size: m.
        trials: Of every learning rate that was tried.
    """

    batch_size: int
    trials: Trials

    @property
    def tried(self) -> list[float]:
        """Learning rates, ascending."""
        return sorted(self.trials)

    def survived(self, rate: float) -> int:
        """With how many seeds."""
        return sum(trial.finished for trial in self.trials[rate].values())

    def is_stable(self, rate: float) -> bool:
        """Whether every seed survived."""
        return self.survived(rate) == len(self.trials[rate])

    @property
    def edge(self) -> float | None:
        """The highest learning rate up to which all that were tried are stable."""
        below = None
        for rate in self.tried:
            if not self.is_stable(rate):
                return below
            below = rate
        return below

    @property
    def breaks(self) -> float | None:
        """The lowest at which a seed diverged."""
        return next((rate for rate in self.tried if not self.is_stable(rate)), None)

    def loss(self, rate: float) -> float:
        """The mean training loss over the seeds, of a stable learning rate."""
        losses = [trial.train_loss for trial in self.trials[rate].values()]
        return sum(loss or 0.0 for loss in losses) / len(losses)

    @property
    def stable(self) -> list[float]:
        """The learning rates up to the edge."""
        edge = self.edge
        return [] if edge is None else [rate for rate in self.tried if rate <= edge]

    @property
    def fastest(self) -> float | None:
        """The stable learning rate of the lowest training loss."""
        return min(self.stable, key=self.loss, default=None)

    @property
    def limit(self) -> float:
        """The highest learning rate that a race may try: the edge, if it is known."""
        if self.breaks is None:
            return 2.0**HIGHEST
        return self.edge or 0.0

    @property
    def candidates(self) -> list[float]:
        """What the race begins with: octaves around the fastest, not above the edge; descending.

        More lie below it than above: a long training has more time for a small step.
        """
        fastest = self.fastest
        if fastest is None:
            return []
        above = min(2 * fastest, self.limit)
        top = [above] if above > fastest else []
        return [*top, *(fastest / 2**k for k in range(CANDIDATES - len(top)))]


def next_rates(bracket: Bracket | None, start: int) -> list[float]:
    """The learning rates of the next pass; none if the search is over.

    Args:
        bracket: What was found so far; None before the first pass.
        start: log₂ of the second lowest of the first pass.
    """
    if bracket is None:
        return [2.0**k for k in range(start - 1, start - 1 + _FIRST)]
    low, high = bracket.tried[0], bracket.tried[-1]
    fastest, breaks, edge = bracket.fastest, bracket.breaks, bracket.edge
    wanted: list[float] = []
    if fastest is None:
        wanted = [low / 2**k for k in range(1, _FIRST + 1)]
    elif fastest == low:
        wanted = [low / 2**k for k in range(1, _BELOW + 1)]
    if breaks is None and fastest is not None and high < fastest * 2**_LONG_SLOWER:
        wanted += [high * 2**k for k in range(1, _ABOVE + 1)]
    if not wanted and edge is not None and breaks is not None and breaks == 2 * edge:
        wanted = [edge * 2**0.5]
    return [rate for rate in wanted if 2.0**LOWEST <= rate <= 2.0**HIGHEST]


def first_start(study: StudyConfig, m: int) -> int:
    """Where a search begins that nothing is known for: log₂ of a usual learning rate.

    AdamW's is near 2^-10 (its default, 0.001); plain SGD's η̃ near 2^-8 for one image, and with
    momentum μ as much less as 1/(1 - μ) says. Pretrained weights take an eighth of it.
    """
    start = -10 if study.optimizer == "adamw" else -8
    if study.optimizer in ("momentum", "nesterov"):
        start -= round_log2(1 / (1 - (study.momentum or 0.0)))
    if study.optimizer != "adamw":
        start -= round_log2(m / 4) // 2 if m > 4 else 0
    return start - (3 if study.pretrained else 0)


def start_after(before: Bracket, study: StudyConfig, m: int) -> int | None:
    """Where a search begins, from that of a smaller batch size; None if that found nothing.

    η̃ falls with m at most as 1/m, η under AdamW grows at most as m: half of that is assumed.
    """
    if before.fastest is None:
        return None
    step = round(log2(m / before.batch_size) / 2)
    shift = step - 1 if study.optimizer == "adamw" else -step
    return round_log2(before.fastest) + shift


def search(
    m: int,
    start: int,
    train: Callable[[int, Sequence[float]], Trials | None],
    passes: int = 8,
) -> Bracket | None:
    """Search the range of one batch size.

    Args:
        m: The batch size.
        start: As `next_rates` takes it.
        train: Trains the learning rates of the pass with this number, from 0; None if there is no
            budget for it.
        passes: The most that are made.

    Returns:
        None if there was no budget for the first pass.
    """
    found: Bracket | None = None
    for number in range(passes):
        rates = next_rates(found, start)
        trials = train(number, rates) if rates else None
        if trials is None:
            break
        found = Bracket(m, {**(found.trials if found else {}), **trials})
    return found


def log2(value: float) -> float:
    """The number of octaves above 1."""
    from math import log2 as log

    return log(value)


def round_log2(value: float) -> int:
    """The same as a whole number."""
    return round(log2(value))
