"""From what the steps have found to the answer, with all that limits it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.advice import (
    Advice,
    Diagnostics,
    Final,
    Raced,
    Range,
    Recommended,
    Stage,
)
from smallbatch.analysis.race import Candidate, tied_with
from smallbatch.analysis.sampling import CONFIDENCE, interval, is_guess
from smallbatch.pipeline.advise.bracket import Bracket
from smallbatch.pipeline.advise.racing import standing
from smallbatch.pipeline.advise.remarks import larger_budget, untested, warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smallbatch.analysis.advice import Fate
    from smallbatch.data.prepared import Meta
    from smallbatch.pipeline.advise.racing import Rung
    from smallbatch.pipeline.advise.session import Session
    from smallbatch.pipeline.advise.trials import Trial


_FOUND = {"base_lrs", "base_lr", "lrs", "epochs", "seeds"}
"""Of a study's settings: those that the advice finds or chooses, or that are of its grid alone."""


def conclude(
    session: Session,
    meta: Meta,
    *,
    available: int,
    seconds: float,
    images: int,
    device: str,
    processor: str,
    code: Callable[[int, float], str],
    diagnostics: Diagnostics,
) -> Advice:
    """Put the answer together.

    Args:
        session: What the steps found.
        meta: Of the images that were used.
        available: Training and validation images of the source.
        seconds: Spent until now.
        images: Training images seen by all runs.
        device: ``cpu`` or ``cuda``, on which all was trained,
        processor: and its name.
        code: PyTorch code for m and η.
        diagnostics: Measured beside it.
    """
    study = session.request.study
    chosen, final = _chosen(session)
    tied = _tied(session, chosen, final)
    recommended = _recommended(session, chosen, meta.counts["test"], code)
    raced = _raced(session, tied)
    advice = Advice(
        dataset=meta.name,
        n_train=meta.counts["train"],
        n_validation=meta.counts["validation"],
        n_test=meta.counts["test"],
        n_available=available,
        classes=len(meta.classes),
        model=study.model,
        norm=study.norm,
        optimizer=study.optimizer,
        schedule=study.schedule,
        epochs=session.size.epochs,
        target=session.request.target,
        budget=session.request.budget.text,
        seconds=seconds,
        images=images,
        device=device,
        processor=processor,
        recommended=recommended,
        final=final,
        raced=raced,
        ranges=tuple(_range(session, m, chosen) for m in sorted(session.brackets)),
        tied_batch_sizes=tuple(sorted({it.batch_size for it in tied})),
        warnings=(),
        larger_budget=(),
        untested=(),
        diagnostics=diagnostics,
        image_shape=(meta.channels, meta.height, meta.width),
        settings=study.model_dump(mode="json", exclude_defaults=True, exclude=_FOUND),
    )
    return replace(
        advice,
        warnings=warnings(advice, session),
        larger_budget=larger_budget(advice, session),
        untested=untested(advice, session),
    )


def best_trial(session: Session) -> tuple[Candidate, int] | None:
    """A training of the recommended cell whose weights were kept: cell and seed; None: none."""
    chosen, _ = _chosen(session)
    rung = session.decisive
    if chosen is None or rung is None or rung.share < 1:
        return None
    trials = session.final.get(chosen) or rung.trials[chosen]
    found = [seed for seed, trial in sorted(trials.items()) if trial.finished]
    return (chosen, found[0]) if found else None


def best_rates(session: Session) -> dict[int, float]:
    """The best η̃ of each m, ascending, at the last rung that m came to."""
    found: dict[int, float] = {}
    for rung in session.rungs:
        at_rung: dict[int, float] = {}
        for candidate in rung.ranked:
            at_rung.setdefault(candidate.batch_size, candidate.base_lr)
        found |= at_rung
    return dict(sorted(found.items()))


def _chosen(session: Session) -> tuple[Candidate | None, Final | None]:
    """The recommended cell, and how the final ended.

    The final overturns the race only if the whole interval says so, or if more of the first one's
    fresh seeds have diverged.
    """
    pair = session.two_best()
    if pair is None:
        return _of_brackets(session), None
    first, rival = pair
    if rival is None or rival not in session.final:
        return first, None
    final = _final(session.final, first, rival, overturned=False)
    lost, kept = (_diverged(session.final[it]) for it in (first, rival))
    if lost > kept or (lost == kept and final.high is not None and final.high < 0):
        return rival, _final(session.final, rival, first, overturned=True)
    return first, final


def _diverged(trials: dict[int, Trial]) -> int:
    return sum(not trial.finished for trial in trials.values())


def _longest(trials: dict[int, Trial]) -> int:
    """Training images of the seed that saw most; one that diverged saw fewer."""
    return max(trial.images for trial in trials.values())


def _of_brackets(session: Session) -> Candidate | None:
    """Where no rung was trained, the cell of the highest validation accuracy in the brackets."""
    if session.rungs:  # every candidate has diverged
        return None
    found = {
        Candidate(m, rate): _mean(trial.validation for trial in bracket.trials[rate].values())
        for m, bracket in session.brackets.items()
        for rate in bracket.stable
    }
    return max(found, key=lambda it: (found[it], -it.batch_size), default=None)


def _final(
    trials: dict[Candidate, dict[int, Trial]], first: Candidate, rival: Candidate, overturned: bool
) -> Final:
    from scipy.special import stdtrit

    seeds = tuple(sorted(trials[first]))
    one, other = (tuple(_accuracy(trials[cell][seed]) for seed in seeds) for cell in (first, rival))
    d = np.subtract(one, other)
    half = None
    if len(d) > 1:
        quantile = float(stdtrit(len(d) - 1, (1 + CONFIDENCE) / 2))
        half = quantile * float(d.std(ddof=1)) / math.sqrt(len(d))
    mean = float(d.mean())
    return Final(
        rival=(rival.batch_size, rival.base_lr),
        seeds=seeds,
        accuracies=one,
        rival_accuracies=other,
        difference=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        overturned=overturned,
    )


def _accuracy(trial: Trial) -> float:
    """On the test images; 0 if it diverged, as nobody can use it."""
    return trial.test or 0.0


def _tied(session: Session, chosen: Candidate | None, final: Final | None) -> set[Candidate]:
    """The recommended cell, and those that cannot be told from it."""
    if chosen is None:
        return set()
    rung = session.decisive
    if rung is None or chosen not in rung.ranked:
        return {chosen}
    tied = {chosen, *tied_with(chosen, standing(rung.trials), session.chance)}
    if final is not None and (final.overturned or (final.low is not None and final.low > 0)):
        tied.discard(Candidate(*final.rival))
    elif final is not None:
        tied.add(Candidate(*final.rival))
    return tied


def _recommended(
    session: Session,
    chosen: Candidate | None,
    n_test: int,
    code: Callable[[int, float], str],
) -> Recommended | None:
    if chosen is None:
        return None
    if session.decisive is not None:
        trials = session.final.get(chosen) or session.decisive.trials[chosen]
    else:
        trials = session.brackets[chosen.batch_size].trials[chosen.base_lr]
    accuracy = _mean(trial.test or 0.0 for trial in trials.values())
    low, high = interval(accuracy, n_test)
    return Recommended(
        batch_size=chosen.batch_size,
        base_lr=chosen.base_lr,
        lr=_lr(session, chosen),
        code=code(chosen.batch_size, _lr(session, chosen)),
        accuracy=accuracy,
        low=low,
        high=high,
        n_test=n_test,
        beyond_chance=not is_guess(accuracy, n_test, session.chance, _cells(session)),
        on="final" if chosen in session.final else "race" if session.decisive else "bracket",
    )


def _cells(session: Session) -> int:
    """Among how many cells was chosen: each may be beyond chance by luck."""
    return max(1, len({it for rung in session.rungs for it in rung.trials}))


def _raced(session: Session, tied: set[Candidate]) -> tuple[Raced, ...]:
    """Every candidate: those that came furthest first, of these the best."""
    order: dict[Candidate, tuple[int, int]] = {}
    for number, rung in enumerate(session.rungs):
        for place, ruling in enumerate(rung.rulings):
            order[ruling.candidate] = (-number, place)
    return tuple(
        Raced(
            batch_size=it.batch_size,
            base_lr=it.base_lr,
            lr=_lr(session, it),
            stages=tuple(_stage(rung, it) for rung in session.rungs if it in rung.trials),
            fate=_fate(session, it),
            tied=it in tied,
            seconds=session.seconds(it.batch_size),
            curve=_curve(session.rungs[-order[it][0]].trials[it]),
        )
        for it in sorted(order, key=lambda it: order[it])
    )


def _stage(rung: Rung, candidate: Candidate) -> Stage:
    values = [trial.validation for trial in rung.trials[candidate].values()]
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return Stage(rung.share, None, None)
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return Stage(rung.share, _mean(found), error)


def _fate(session: Session, candidate: Candidate) -> Fate:
    last = [rung for rung in session.rungs if candidate in rung.trials][-1]
    if candidate not in last.ranked:
        return "diverged"
    if last.share == 1:
        return "finished"
    ruling = next(it for it in last.rulings if it.candidate == candidate)
    return "not trained on" if ruling.goes_on else "behind"


def _curve(trials: dict[int, Trial]) -> tuple[float, ...]:
    curves = [trial.curve for trial in trials.values()]
    shortest = min(map(len, curves))
    return tuple(_mean(curve[epoch] for curve in curves) for epoch in range(shortest))


def _range(session: Session, m: int, chosen: Candidate | None) -> Range:
    bracket, speed = _all_trials(session, m), session.speeds[m]
    best = best_rates(session).get(m)
    if chosen is not None and chosen.batch_size == m:
        best = chosen.base_lr
    edge, seeds = bracket.edge, max(map(len, session.brackets[m].trials.values()))
    tried = [it for it in bracket.tried if edge is None or it <= edge]
    updates = min(_longest(bracket.trials[rate]) for rate in tried) // m
    return Range(
        batch_size=m,
        lowest=bracket.tried[0],
        edge=edge,
        breaks=bracket.breaks,
        best=best,
        headroom=math.log2(edge / best) if edge is not None and best is not None else None,
        survived=tuple(
            (rate, max(0, seeds - _diverged(bracket.trials[rate]))) for rate in bracket.tried
        ),
        seeds=seeds,
        updates=updates,
        images_per_second=speed.images_per_second,
        memory_bytes=speed.memory_bytes,
    )


def _all_trials(session: Session, m: int) -> Bracket:
    """The bracket, with what race and final add.

    Of several trials of a rate those count of which most seeds diverged, then the longest.
    """
    trials = dict(session.brackets[m].trials)
    for step in (*(rung.trials for rung in session.rungs), session.final):
        for candidate, found in step.items():
            if candidate.batch_size != m:
                continue
            before = trials.setdefault(candidate.base_lr, found)
            if (_diverged(found), _longest(found)) > (_diverged(before), _longest(before)):
                trials[candidate.base_lr] = found
    return Bracket(m, trials)


def _lr(session: Session, candidate: Candidate) -> float:
    study = session.request.study
    return study.examples_per_rate(candidate.batch_size) * candidate.base_lr


def _mean(values: Iterable[float | None]) -> float:
    found = [value or 0.0 for value in values]
    return sum(found) / len(found)
