"""What the page says of one study: its sentences and tables, fewer of them where nothing learned.

Where the best cell is not beyond chance, τ lies at chance too. Ranges, a fit and a best batch size
would then be made of noise, so the page has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smallbatch.analysis.frames import on_lr_axis
from smallbatch.analysis.sampling import images_tested, learned
from smallbatch.analysis.scaling import scaling
from smallbatch.report import second_opinions, tables, wording
from smallbatch.report.answer import answer_card
from smallbatch.report.scaling_words import scaling_sentence
from smallbatch.report.settings import settings_table

if TYPE_CHECKING:
    import pandas as pd

    from smallbatch.analysis.limit_band import LimitBand
    from smallbatch.analysis.stability import LimitFit
    from smallbatch.report.answer import Card
    from smallbatch.report.tables import Table


@dataclass(frozen=True)
class StudyWords:
    """Sentences and tables of one study.

    Attributes:
        learned: Whether the best cell is beyond chance. Otherwise figures of ranges and of the best
            accuracy mean nothing either.
        best: What came out best and how sure that is, or that there is no best.
        validation: What changes when learning rate and m are chosen on the validation split; empty
            where there is none.
        range: How the reliable range changes with m; empty where nothing learned.
        fit: What the fit of the upper ends says, or under AdamW how the best η changes with m;
            empty where nothing learned.
        warnings: What limits the reading.
        tables: In the order of the page.
    """

    learned: bool
    best: str
    validation: str
    range: str
    fit: str
    warnings: list[str]
    tables: list[Table]


def study_card(
    runs: pd.DataFrame, cells: pd.DataFrame, best: pd.DataFrame, winners: pd.DataFrame
) -> Card:
    """The answer of one study, with what puts it in doubt; arguments as of `study_words`."""
    if winners.empty:
        return answer_card(runs, nothing=_no_winner(runs))
    if not learned(best, runs):
        return answer_card(runs, nothing=wording.nothing_learned(cells, runs))
    return answer_card(runs, doubts=wording.stale_statistics(best))


def _no_winner(runs: pd.DataFrame) -> str:
    why = tables.why_none(runs)
    return f"{why[0].upper()}{why[1:]}."


def study_words(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    best: pd.DataFrame,
    best_on_validation: pd.DataFrame,
    winners: pd.DataFrame,
    ranges: pd.DataFrame,
    fit: LimitFit | None,
    band: LimitBand | None,
) -> StudyWords:
    """Say what one study shows.

    Args:
        runs: Its runs, as `load_results` makes them.
        cells: Its rows of `summarise_cells`.
        best: Its rows of `best_cells`, chosen on the test set.
        best_on_validation: The same, chosen on the validation split; empty without one.
        winners: Its row of `best_by_study`; empty where no cell has an accuracy.
        ranges: Its rows of `stable_ranges`.
        fit: The fit of the upper ends at the main fraction, if there is one.
        band: How much it varies over resamples of the seeds, if known.
    """
    settings = settings_table(runs)
    if winners.empty:
        return StudyWords(False, _no_winner(runs), "", "", "", [], [settings])
    n_test = images_tested(runs)
    if not learned(best, runs):
        said = wording.nothing_learned(cells, runs)
        doubts = wording.stale_statistics(best) + wording.single_seeds(cells)
        shown = [settings, tables.best_table(best, "test", n_test)]
        return StudyWords(False, said, "", "", "", doubts, shown)
    winner: dict[Any, Any] = winners.iloc[0].to_dict()
    shown = [settings, tables.best_table(best, "test", n_test)]
    if len(best_on_validation):
        shown.append(tables.best_table(best_on_validation, "validation", n_test))
        shown.append(second_opinions.choice_table(best, best_on_validation))
    shown += [tables.range_table(ranges), tables.fraction_table(ranges)]
    of_eta = on_lr_axis(cells)
    if not of_eta:
        shown.append(tables.fit_table(ranges))
    return StudyWords(
        learned=True,
        best=wording.best_sentence(winner, n_test),
        validation=second_opinions.validation_sentence(best, best_on_validation) or "",
        range=wording.range_sentence(ranges),
        fit=scaling_sentence(scaling(best, cells)) if of_eta else wording.fit_sentence(fit, band),
        warnings=wording.warnings(best, ranges, cells, runs),
        tables=shown,
    )
