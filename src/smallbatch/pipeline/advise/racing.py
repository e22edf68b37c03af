"""The third step: a race of candidates, and with it the search beyond the ends of their range.

At each rung candidates are trained for a share of the epochs, each with a schedule of its own that
runs to its end, so that a rung's order is not that before the learning rate is lowered. Who goes
on is decided by `analysis.race`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smallbatch.analysis.race import RULE, Candidate, Progress, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.analysis.race import Ruling, Standing
    from smallbatch.pipeline.advise.bracket import Bracket
    from smallbatch.pipeline.advise.trials import Trial

LEAST = RULE.least
_ROUNDING = 1e-9
_EXTENSIONS = 3  # at most, at one rung and batch size


@dataclass
class Rung:
    """What a rung has shown.

    Attributes:
        epochs: Of a training at it.
        share: Of the epochs of a whole training.
        trials: Candidate → seed → how that run ended.
        rulings: Who goes on, best candidate first.
    """

    epochs: int
    share: float
    trials: dict[Candidate, dict[int, Trial]] = field(
        default_factory=dict[Candidate, "dict[int, Trial]"]
    )
    rulings: tuple[Ruling, ...] = ()

    @property
    def ranked(self) -> list[Candidate]:
        """Those of which no seed diverged, best first."""
        return [ruling.candidate for ruling in self.rulings if ruling.why != "diverged"]


def standing(trials: dict[Candidate, dict[int, Trial]]) -> Standing:
    """Trials as `analysis.race` takes them."""
    return {
        candidate: {
            seed: Progress(trial.validation, trial.images) for seed, trial in of_seed.items()
        }
        for candidate, of_seed in trials.items()
    }


def beyond(rung: Rung, brackets: dict[int, Bracket], tried: set[Candidate]) -> list[Candidate]:
    """Candidates next to the best of a batch size where that is the lowest or highest tried.

    At rungs before a batch size may be dropped that is looked at for each, later for the leader's.

    Args:
        rung: With rulings.
        brackets: By m.
        tried: All candidates of the race, at any rung.
    """
    leaders: dict[int, Candidate] = {}
    for candidate in rung.ranked:
        leaders.setdefault(candidate.batch_size, candidate)
    if rung.share >= RULE.every_batch_size_before:
        leaders = dict(list(leaders.items())[:1])
    wanted: list[Candidate] = []
    accuracies = {it.candidate: it.accuracy for it in rung.rulings}
    for m, best in leaders.items():
        same = [it for it in rung.ranked if it.batch_size == m and it != best]
        if any(accuracies[it] >= accuracies[best] - _ROUNDING for it in same):
            continue  # it is at an end only because of equal ones the lowest is named

        rates = sorted(it.base_lr for it in tried if it.batch_size == m)
        limit = brackets[m].limit
        if best.base_lr == rates[0]:
            wanted.append(Candidate(m, best.base_lr / 2))
        elif best.base_lr == rates[-1] and best.base_lr * 2**0.5 <= limit:
            wanted.append(Candidate(m, min(2 * best.base_lr, limit)))
    return wanted


def run_rung(
    rung: Rung,
    field: Sequence[Candidate],
    train: Callable[[Sequence[Candidate], int], dict[Candidate, dict[int, Trial]] | None],
    brackets: dict[int, Bracket],
    tried: set[Candidate],
    chance: float,
) -> None:
    """Train candidates at a rung, extend their range while the best is at an end, and decide.

    Args:
        rung: Is filled.
        field: The candidates that came to it.
        train: Trains candidates; called with the number of the extension, 0 for the field itself;
            None if the budget does not allow it.
        brackets: By m.
        tried: All candidates of the race; extended.
        chance: The accuracy of guessing.
    """
    wanted = list(field)
    for number in range(_EXTENSIONS + 1):
        tried |= set(wanted)
        found = train(wanted, number)
        if found is None:
            break
        rung.trials |= found
        rung.rulings = decide(standing(rung.trials), rung.share, chance)
        wanted = beyond(rung, brackets, tried)
        if not wanted:
            break


def going_on(rung: Rung) -> list[Candidate]:
    """Who goes on after a rung, best first."""
    return [ruling.candidate for ruling in rung.rulings if ruling.goes_on]
