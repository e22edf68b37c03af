"""The steps one after another, each told with what it costs before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from smallbatch.analysis.race import Candidate, finish
from smallbatch.config.base_lr import format_base_lr
from smallbatch.pipeline.advise.bracket import Bracket, first_start, search, start_after
from smallbatch.pipeline.advise.ledger import OutOfBudget
from smallbatch.pipeline.advise.racing import LEAST, Rung, going_on, run_rung, standing
from smallbatch.pipeline.advise.size import FRESH, SEEDS
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.pipeline.advise.calibrate import Speed
    from smallbatch.pipeline.advise.ledger import Ledger
    from smallbatch.pipeline.advise.request import Request
    from smallbatch.pipeline.advise.size import Size, Work
    from smallbatch.pipeline.advise.trials import Trainer, Trial, Trials

Fates = dict[Candidate, dict[int, "Trial"]]

_FOR_BRACKETS = 0.35
"""The share of the budget after which no bracket is extended."""
_FEWEST_FRESH = 3


@dataclass
class Session:
    """What an advice has found so far.

    Attributes:
        request: What the user asked for.
        size: Of a training.
        speeds: By m.
        chance: The accuracy of naming the most frequent class.
        brackets: By m.
        rungs: Those of the race that were run whole.
        cut: Candidates for which there was no budget.
        final: The trials of the two best with fresh seeds; empty if there was no final.
        in_time: Whether all steps were run; else the budget ended one.
        uneven: Whether images were taken evenly over classes that are not of one size.
    """

    request: Request
    size: Size
    speeds: dict[int, Speed]
    chance: float
    brackets: dict[int, Bracket] = field(default_factory=dict[int, Bracket])
    rungs: list[Rung] = field(default_factory=list[Rung])
    cut: list[Candidate] = field(default_factory=list[Candidate])
    final: Fates = field(default_factory=dict[Candidate, "dict[int, Trial]"])
    in_time: bool = True
    uneven: bool = False

    def seconds(self, m: int) -> float:
        """Of one whole training that is alone on a core, or on the GPU."""
        return self.size.n_train * self.size.epochs / self.speeds[m].images_per_second_alone

    @property
    def decisive(self) -> Rung | None:
        """The last rung at which a candidate survived with every seed."""
        return next((rung for rung in reversed(self.rungs) if rung.ranked), None)

    def two_best(self) -> tuple[Candidate, Candidate | None] | None:
        """The candidate that the race speaks for, and its rival; None if all diverged.

        By ``target: time`` that is the one of those tied with the best that trains fastest.
        """
        rung = self.decisive
        if rung is None:
            return None
        ranked = rung.ranked
        # Of those that a later rung broke none is left.
        broken = {it for later in self.rungs[self.rungs.index(rung) + 1 :] for it in later.trials}
        ranked = [it for it in ranked if it not in broken] or ranked
        first = ranked[0]
        if self.request.target == "time":
            tied = set(finish(standing(rung.trials), self.chance).tied) & set(ranked)
            tied = tied or {first}
            first = min(tied, key=lambda it: (self.seconds(it.batch_size), ranked.index(it)))
        rivals = [it for it in ranked if it != first]
        return first, rivals[0] if rivals else None


def run(session: Session, trainer: Trainer, ledger: Ledger, say: Callable[[str], object]) -> None:
    """Run bracket, race and final; `session` holds what they find, also if the budget ends them.

    Raises:
        Stopped: By a signal.
        UserError: The model cannot be trained on these images.
    """
    steps = _Steps(session, trainer, ledger, say)
    try:
        steps.bracket()
        steps.race()
        steps.final()
    except OutOfBudget:
        session.in_time = False
        say("the budget is spent: the answer is from what has been trained")
    trainer.log_all()


class _Steps:
    def __init__(
        self, session: Session, trainer: Trainer, ledger: Ledger, say: Callable[[str], object]
    ) -> None:
        self._session, self._trainer, self._ledger, self._say = session, trainer, ledger, say
        self._adamw = session.request.study.optimizer == "adamw"
        self._began = ledger.left

    def bracket(self) -> None:
        size, before = self._session.size, None
        for m in sorted(self._session.speeds):
            start = start_after(before, self._session.request.study, m) if before else None
            if start is None:
                start = first_start(self._session.request.study, m)
            epochs = size.bracket_epochs(m)

            def train(number: int, rates: Sequence[float], m: int = m) -> Trials | None:
                return self._bracket_pass(number, m, rates, size.bracket_epochs(m))

            found = search(m, start, train)
            if found is None:
                continue
            self._session.brackets[m] = before = found
            self._trainer.log("bracket", m)
            self._say(f"bracket  m={m}: {self._edge(found)} ({count(epochs, 'epoch')})")

    def _bracket_pass(
        self, number: int, m: int, rates: Sequence[float], epochs: int
    ) -> Trials | None:
        work = self._session.size.work(epochs)
        cost = self._trainer.cost(m, SEEDS * len(rates), work)
        enough = (1 - _FOR_BRACKETS) * self._began if number else 0.0
        name = f"bracket m={m} pass {number}"
        chosen = self._ledger.decide(
            name, lambda: list(rates) if self._ledger.left - cost >= enough else []
        )
        if not chosen:
            return None
        self._tell(
            f"bracket  m={m}: {count(len(rates), 'learning rate')} × {SEEDS} seeds × "
            f"{count(epochs, 'epoch')}",
            cost,
        )
        return self._trainer.train("bracket", m, chosen, range(SEEDS), epochs, work)

    def race(self) -> None:
        session, size = self._session, self._session.size
        brackets = session.brackets
        # The best of each batch size first, as the last are cut where the budget is short.
        left: list[Candidate] = []
        by_m = [self._by_loss(m) for m in brackets]
        for same_place in zip_longest(*by_m):
            left += [it for it in same_place if it is not None]
        tried: set[Candidate] = set()
        for place, epochs in enumerate(size.rungs):
            rung = Rung(epochs, epochs / size.epochs)
            left = self._affordable(epochs, left, size.rungs[place + 1 :])
            if not left:
                session.in_time = False
                return

            def train(wanted: Sequence[Candidate], number: int, rung: Rung = rung) -> Fates | None:
                return self._train_rung(rung, wanted, number)

            run_rung(rung, left, train, brackets, tried, session.chance)
            session.rungs.append(rung)
            for m in sorted({it.batch_size for it in rung.trials}):
                self._trainer.log(self._step(rung), m)
            left = going_on(rung)
            self._say(self._standing(rung, len(left)))
            if not left:
                return

    def _by_loss(self, m: int) -> list[Candidate]:
        """A batch size's candidates by their loss in the bracket, then those not tried there."""
        bracket = self._session.brackets[m]
        tried = {rate: bracket.loss(rate) for rate in bracket.candidates if rate in bracket.trials}
        rates = sorted(bracket.candidates, key=lambda rate: tried.get(rate, math.inf))
        return [Candidate(m, rate) for rate in rates]

    def _affordable(
        self, epochs: int, left: list[Candidate], later: Sequence[int]
    ) -> list[Candidate]:
        """The best candidates, as many as the budget has for a rung and a little for later ones."""
        size = self._session.size
        last = size.work(size.epochs)
        # The rungs after this one with the fewest candidates, and the final with as many seeds.
        rest = sum(self._cost(left[:LEAST], size.work(after)) for after in later)
        rest += self._cost(left[:LEAST], last)

        def choose() -> list[list[float]]:
            kept = list(left)
            work = size.work(epochs)
            while len(kept) > LEAST and self._cost(kept, work) > self._ledger.left - rest:
                kept.pop()
            if self._cost(kept, work) > self._ledger.left:
                kept = []
            return [[it.batch_size, it.base_lr] for it in kept]

        pairs = self._ledger.decide(f"rung of {epochs}", choose)
        kept = [Candidate(int(m), rate) for m, rate in pairs]
        if 0 < len(kept) < len(left):
            self._say(f"  the budget has room for {len(kept)} of {count(len(left), 'candidate')}")
        self._session.cut += [it for it in left if it not in kept]
        return kept

    def _cost(self, candidates: Sequence[Candidate], work: Work) -> float:
        by_m = groupby(sorted(it.batch_size for it in candidates))
        return sum(self._trainer.cost(m, SEEDS * len(list(same)), work) for m, same in by_m)

    def _train_rung(self, rung: Rung, wanted: Sequence[Candidate], number: int) -> Fates | None:
        work = self._session.size.work(rung.epochs)
        cost = self._cost(wanted, work)
        last = rung.share == 1
        if number:
            size = self._session.size
            rest = 0.0 if last else 2 * self._cost(wanted[:1], size.work(size.epochs))
            allowed = self._ledger.decide(
                f"rung of {rung.epochs} extension {number}",
                lambda: cost <= (self._ledger.left - rest) / 2,
            )
            if not allowed:
                return None
        how = "beyond the end of their range: " if number else ""
        self._tell(
            f"race {rung.share:4.0%}  {how}{count(len(wanted), 'candidate')} × {SEEDS} seeds × "
            f"{count(rung.epochs, 'epoch')}",
            cost,
        )
        return self._train(self._step(rung), wanted, range(SEEDS), rung.epochs, last)

    def _step(self, rung: Rung) -> str:
        return f"rung{round(100 * rung.share)}"

    def _train(
        self, step: str, wanted: Sequence[Candidate], seeds: Sequence[int], epochs: int, last: bool
    ) -> Fates:
        """Train candidates, batch size by batch size."""
        found: Fates = {}
        for m in sorted({it.batch_size for it in wanted}):
            rates = [it.base_lr for it in wanted if it.batch_size == m]
            work = self._session.size.work(epochs)
            trials = self._trainer.train(step, m, rates, seeds, epochs, work, keep_weights=last)
            found |= {Candidate(m, rate): trials[rate] for rate in rates}
        return found

    def final(self) -> None:
        session, size = self._session, self._session.size
        pair = session.two_best()
        if pair is None or pair[1] is None or not session.rungs[-1].ranked:
            return
        if session.rungs[-1].share < 1:
            return
        two = [pair[0], pair[1]]
        work = size.work(size.epochs)

        def choose() -> int:
            per_seed = self._cost(two, work) / SEEDS
            return next(
                (n for n in range(FRESH, _FEWEST_FRESH - 1, -1)
                 if n * per_seed <= self._ledger.left),
                0,
            )  # fmt: skip

        seeds = self._ledger.decide("seeds of the final", choose)
        if not seeds:
            session.in_time = False
            return
        self._tell(
            f"final    {' and '.join(map(self._named, two))} × {seeds} fresh seeds × "
            f"{count(size.epochs, 'epoch')}",
            self._cost(two, work) * seeds / SEEDS,
        )
        fresh = range(SEEDS, SEEDS + seeds)
        session.final = self._train("final", two, fresh, size.epochs, last=True)
        for m in sorted({it.batch_size for it in two}):
            self._trainer.log("final", m)

    def _tell(self, what: str, cost: float) -> None:
        unit = f"{cost:,.0f} images" if self._ledger.by_images else f"{max(1, cost):.0f} s"
        self._say(f"{what}, about {unit}")

    def _named(self, candidate: Candidate) -> str:
        rate = "η" if self._adamw else "η̃"
        return f"m={candidate.batch_size} {rate}={format_base_lr(candidate.base_lr)}"

    def _edge(self, bracket: Bracket) -> str:
        if bracket.edge is None:
            return f"diverges at all tried, down to {format_base_lr(bracket.tried[0])}"
        edge = format_base_lr(bracket.edge)
        if bracket.breaks is None:
            return f"survives up to {edge} at least"
        of = len(bracket.trials[bracket.breaks])
        return (
            f"survives up to {edge} with {of} of {of} seeds, at {format_base_lr(bracket.breaks)} "
            f"with {bracket.survived(bracket.breaks)}"
        )

    def _standing(self, rung: Rung, left: int) -> str:
        if not rung.ranked:
            return f"race {rung.share:4.0%}  every candidate has a seed that diverged"
        best = rung.ranked[0]
        accuracy = rung.rulings[0].accuracy
        go = "goes" if left == 1 else "go"
        on = f", {count(left, 'candidate')} of {len(rung.trials)} {go} on"
        return (
            f"race {rung.share:4.0%}  best {self._named(best)}: {accuracy:.1%} of the validation "
            f"images{on if rung.share < 1 else ''}"
        )
