"""The answer for a study of one's own, in words: batch size, learning rate, how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from smallbatch.analysis.answer import LEAST_SEEDS, TOLD, Answer, Standing, answer
from smallbatch.analysis.power import MOST_SEEDS
from smallbatch.analysis.sampling import interval, leaves_open
from smallbatch.analysis.stability import DIVERGED, EDGE
from smallbatch.records.reading import read_json
from smallbatch.report.labels import listed, percent, points_up, power_of_two, rate_of_cell, spread
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pandas as pd

NAME = "answers.json"

Sure = Literal["clear", "open", "undecided"]

_COUNTS = ("No seed", "One seed", "Two seeds")
_ENDS = {"lower": "lowest", "upper": "highest"}


@dataclass(frozen=True)
class Card:
    """One study's answer.

    Attributes:
        dataset, study: Their names.
        title: Batch size and learning rate, or that there is no answer.
        batch_size, base_lr: The same as numbers, m and η̃ (AdamW: η); None if there is no answer.
        not_distinguishable: The other m that may be the best; none if they were not compared.
        worse: The m than which another is better.
        sure: "clear" if every other batch size is worse, whatever η̃ of the grid it is given, and
            nothing else is in doubt; "open" if other batch sizes or η̃ may be as good; "undecided"
            if there are fewer than three seeds or nothing is compared.
        lines: Sentences, the accuracy first.
        main: That of them which says most about how far the answer goes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    dataset: str
    study: str
    title: str
    batch_size: int | None
    base_lr: float | None
    not_distinguishable: tuple[int, ...]
    worse: tuple[int, ...]
    sure: Sure
    lines: tuple[str, ...]
    main: str


class AnswersRecord(BaseModel):
    """A whole ``answers.json``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    answers: tuple[Card, ...]


def answer_card(runs: pd.DataFrame, *, nothing: str = "", doubts: Sequence[str] = ()) -> Card:
    """The answer of one study.

    Args:
        runs: The runs of one study, as `load_results` makes them, not one of several BN batch
            sizes.
        nothing: What to say instead of an answer, where nothing in it learned more than guessing.
        doubts: Sentences that put the accuracies themselves in doubt.

    Raises:
        UserError: Two runs have the same place in the grid.
    """
    found = answer(runs)
    if found.cell is None:
        finished = runs.loc[runs["outcome"].ne("diverged"), "reported_accuracy"]
        if len(finished) and finished.isna().all():
            return _none(found, "No finished run has an accuracy.")
        return _none(
            found,
            "In no cell did more than half of the seeds train to the end: try smaller learning "
            "rates.",
        )
    if nothing:
        return _none(found, nothing)
    cell, m = found.cell, int(found.cell["batch_size"])
    doubts = [*_doubts_of_cell(cell, m), *doubts]
    verdict = _verdict(found, cell, m) if found.standings else _nothing_compared(found)
    worse_grids = _doubts_of_others(found.standings, m, rate_of_cell(cell))
    lines = [_accuracy(found, cell), *_range(found, m), *_base_lrs(found, m)]
    lines += [*verdict, *worse_grids, *doubts]
    return Card(
        dataset=found.dataset,
        study=found.study,
        title=_title(cell, m),
        batch_size=m,
        base_lr=float(cell["base_lr"]),
        not_distinguishable=_others(found, m, "open"),
        worse=_others(found, m, "worse"),
        sure=_sure(found, m, in_doubt=bool(doubts or worse_grids)),
        lines=tuple(lines),
        main=[*verdict, *doubts, *lines][0],
    )


def as_json(cards: Iterable[Card]) -> str:
    """The content of ``answers.json`` as it is written."""
    return AnswersRecord(answers=tuple(cards)).model_dump_json(indent=1) + "\n"


def read_answers(path: Path) -> AnswersRecord:
    """Read an ``answers.json``.

    Raises:
        UserError: The file is missing, or it is not such a file.
    """
    return read_json(AnswersRecord, path, "`smallbatch report` writes it")


def answer_lines(reports: Path) -> list[str]:
    """A line of plain text for each study of a report: the answer, and how far it goes.

    Args:
        reports: The folder that `smallbatch report` wrote, with ``answers.json``.

    Raises:
        UserError: The file is missing, or it is not such a file.
    """
    return [told(card) for card in read_answers(reports / NAME).answers]


def told(card: Card) -> str:
    """One study's answer as a line."""
    return f"{card.dataset}/{card.study}: {card.title}. {card.main}"


def _none(found: Answer, why: str) -> Card:
    return Card(
        found.dataset, found.study, "No answer", None, None, (), (), "undecided", (why,), why
    )


def _others(found: Answer, m: int, verdict: str) -> tuple[int, ...]:
    return tuple(
        standing.batch_size
        for standing in found.standings
        if standing.verdict == verdict and standing.batch_size != m
    )


def _title(cell: dict[Any, Any], m: int) -> str:
    rate = f"{rate_of_cell(cell)} = {power_of_two(cell['base_lr'])}"
    return f"Batch size {m}, learning rate {float(cell['lr']):.3g} ({rate})"


def _accuracy(found: Answer, cell: dict[Any, Any]) -> str:
    n = int(cell["n_seeds"])
    seeds = (
        "one seed"
        if n == 1
        else f"median of {n} seeds, {spread(cell['min_accuracy'], cell['max_accuracy'])}"
    )
    accuracy = f"accuracy {percent(cell['accuracy'])} ({seeds})."
    if found.chosen_on == "validation":
        images = found.n_chosen_on
        small = ""
        if images and leaves_open(cell["validation_accuracy"], images):
            low, high = interval(cell["validation_accuracy"], images)
            small = (
                f" of {count(images, 'image')}, too few to know an accuracy better than to "
                f"{math.ceil(50 * (high - low))} points either way"
            )
        return f"Chosen on the validation split{small}; test {accuracy}"
    # The best of several on the same images is in part luck.
    luck = " Chosen on the test set itself, so it may be a little high." if found.cells > 1 else ""
    return f"A{accuracy[1:]}{luck}"


def _nothing_compared(found: Answer) -> list[str]:
    """Why batch sizes are not compared; several reasons may hold."""
    lines: list[str] = []
    if found.cells == 1:
        lines.append("Only one batch size and learning rate was run: there is nothing to compare.")
    elif len(found.batch_sizes) == 1:
        lines.append(f"Only m = {found.batch_sizes[0]} was run: no batch sizes are compared.")
    if found.differing:
        lines.append(
            f"Its columns were trained with different {listed(list(found.differing))}: they are "
            "not compared."
        )
    if found.seeds < LEAST_SEEDS and found.cells > 1:
        lines.append(_too_few(found))
    return lines or [
        "Every seed of a cell trained to the end at fewer than two batch sizes: none are compared."
    ]


def _too_few(found: Answer) -> str:
    cell = found.cell or {}
    number = _COUNTS[found.seeds]
    if int(cell.get("n_seeds", 0)) > found.seeds:
        verb = "are" if found.seeds == 2 else "is"
        return f"{number} {verb} common to all cells, and three are needed to compare them."
    return f"{number} decide{'' if found.seeds == 2 else 's'} nothing: set `seeds: 3` or more."


def _verdict(found: Answer, cell: dict[Any, Any], m: int) -> list[str]:
    (own,) = (standing for standing in found.standings if standing.batch_size == m)
    others = [standing for standing in found.standings if standing is not own]
    near = [str(standing.batch_size) for standing in others if standing.verdict == "open"]
    worse = [standing for standing in others if standing.verdict == "worse"]
    lines: list[str] = []
    rate = rate_of_cell(cell)
    if own.verdict == "worse":
        lines.append(
            f"By the mean over seeds another batch size is better, though m = {m} has the "
            "highest median."
        )
    elif own.verdict == "unusable":
        lines.append(
            f"At m = {m} a seed diverged in every cell, so it is not compared with the others."
        )
    if near:
        than = "it" if own.verdict == "open" else "the best"
        lines.append(f"Not distinguishable from {than}: m = {listed(near)}.")
    if len(worse) == len(others):
        lines.append(f"With the {rate} tried, every other batch size is worse.")
    if worse:
        lines.append(f"Worse: {_listed_worse(worse)}.")
    # No accuracy is above 1, so a bound beyond that says nothing.
    room = 1.0 - float(cell["accuracy"])
    if near and own.verdict == "open" and 0 < own.at_most < room:
        lines.append(
            f"With the {rate} tried, no other is better than m = {m} by more than "
            f"{points_up(own.at_most)} points."
        )
    needed = found.seeds_needed
    if near and room > TOLD and (needed is None or needed > found.seeds):
        about = f"About {needed}" if needed is not None else f"More than {MOST_SEEDS}"
        lines.append(f"{about} seeds would be needed to see a difference of {100 * TOLD:g} points.")
    return lines


def _listed_worse(worse: Sequence[Standing]) -> str:
    named: list[str] = []
    words = "by {} points or more"  # once, then the numbers alone
    for standing in worse:
        least = _least(standing)
        named.append(f"m = {standing.batch_size}")
        if least:
            named[-1] += f" ({words.format(least)})"
            words = "{}"
    return ", ".join(named)


def _least(standing: Standing) -> str:
    """By how many points a batch size is worse, rounded down, so that it stays true."""
    least = math.floor(1000 * standing.at_least + 1e-9) / 10
    return f"{least:.1f}" if least > 0 else ""


def _doubts_of_others(standings: Sequence[Standing], m: int, rate: str) -> list[str]:
    """Batch sizes that lose, but might not with a learning rate that was not tried."""
    others = [standing for standing in standings if standing.batch_size != m]
    edge = [str(it.batch_size) for it in others if it.verdict == "worse" and it.on_edge]
    lost = [str(it.batch_size) for it in others if it.verdict == "unusable"]
    lines: list[str] = []
    if edge:
        lines.append(
            f"At m = {listed(edge)} the best {rate} is at the end of those tried: another may do "
            "better."
        )
    if lost:
        lines.append(f"At m = {listed(lost)} a seed diverged at every {rate}: try smaller ones.")
    return lines


def _doubts_of_cell(cell: dict[Any, Any], m: int) -> list[str]:
    lines: list[str] = []
    lost, rate = int(cell["n_diverged"]), rate_of_cell(cell)
    if (edge := _ENDS.get(cell["grid_edge"])) and not (lost and edge == "highest"):
        lines.append(f"The best {rate} at m = {m} is the {edge} tried: extend the grid.")
    elif cell["grid_edge"] == "only":
        lines.append(f"Only one {rate} was tried at m = {m}.")
    if lost:
        lines.append(f"{lost} of its {int(cell['n_seeds'])} seeds diverged: try a smaller {rate}.")
    return lines


def _base_lrs(found: Answer, m: int) -> list[str]:
    """How sure the learning rate is: others that may be as good, and whether it is the last."""
    lines: list[str] = []
    rate = rate_of_cell(found.cell or {})
    if found.near_base_lrs:
        near = listed([power_of_two(base_lr) for base_lr in found.near_base_lrs])
        lines.append(f"At m = {m} {rate} = {near} may be as good.")
    own, cell = found.reliable, found.cell
    if own is None or cell is None or not own["n_reliable"]:
        return lines
    if cell["base_lr"] == own["upper"] and own["upper_limit"] not in (EDGE, ""):
        why = "a seed diverges" if own["upper_limit"] == DIVERGED else "a seed falls behind"
        safer = ": a lower one is safer" if own["n_reliable"] > 1 else ""
        lines.append(f"This {rate} is the highest that is reliable; at the next {why}{safer}.")
    return lines


def _range(found: Answer, m: int) -> list[str]:
    own = found.reliable
    if own is None or own["n_base_lrs"] == 1:
        return []
    if not own["n_reliable"]:
        return [f"At m = {m} no {rate_of_cell(own)} is reliable."]
    rate = rate_of_cell(own)
    low, high = (
        f"{power_of_two(own[end])}{_in_brackets(own, end, word)}" for end, word in _ENDS.items()
    )
    if own["n_reliable"] == 1:
        return [f"At m = {m} reliable at {rate} = {low} alone."]
    holes = listed([power_of_two(base_lr) for base_lr in own["holes"]])
    but = f", but not at {holes}" if holes else ""
    return [f"At m = {m} reliable from {rate} = {low} to {high}{but}."]


def _in_brackets(own: dict[Any, Any], end: str, word: str) -> str:
    """What is said beside an end of the range: η, where the grid is of η̃, and the grid's edge."""
    notes = [] if rate_of_cell(own) == "η" else [f"η = {power_of_two(own[f'{end}_lr'])}"]
    notes += [f"the {word} tried"] if own[f"{end}_limit"] == EDGE else []
    return f" ({', '.join(notes)})" if notes else ""


def _sure(found: Answer, m: int, *, in_doubt: bool) -> Sure:
    if not found.standings:
        return "undecided"
    alone = all((it.verdict == "open") == (it.batch_size == m) for it in found.standings)
    return "clear" if alone and not in_doubt else "open"
