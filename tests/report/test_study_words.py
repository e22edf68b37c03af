"""What is said of a whole study, read from result files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from smallbatch.analysis.cells import summarise_cells
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.stability import stable_ranges
from smallbatch.report.study_words import StudyWords, study_words
from tests.analysis import synthetic

STUDY = synthetic.Study("a", batch_sizes=(2, 8), base_lrs=(2.0**-8, 2.0**-6, 2.0**-4, 2.0**-3))


def said(folder: Path, study: synthetic.Study) -> StudyWords:
    runs = load_results(synthetic.write_models(folder, (study,))).runs
    cells = summarise_cells(runs)
    best, ranges = best_cells(cells), stable_ranges(cells)
    on_validation = best_cells(cells, "validation")
    winners = best_by_study(best)
    return study_words(runs, cells, best, on_validation, winners, ranges, None, None)


def everything(words: StudyWords) -> str:
    texts = [words.best, words.validation, words.range, words.fit, *words.warnings]
    for table in words.tables:
        texts += [table.caption, *table.headers, *(cell for row in table.rows for cell in row)]
    return "\n".join(texts)


def test_a_study_that_learned_has_all_of_it(tmp_path: Path) -> None:
    words = said(tmp_path, STUDY)
    assert words.learned
    assert words.best.startswith("The highest reported accuracy is ")
    assert "The test set has only 256 images" in words.best
    assert words.validation == (
        "Chosen on the validation split instead of the test set, the best cell is the same."
    )
    assert words.range.startswith("The reliable range is η̃ = ")
    assert [table.caption.partition(" ")[0] for table in words.tables] == [
        "What", "Best", "Best", "What", "Base", "The", "The",
    ]  # fmt: skip


def test_a_study_at_chance_has_no_best_no_threshold_and_no_range(tmp_path: Path) -> None:
    words = said(tmp_path, replace(STUDY, peak=0.11))
    assert not words.learned
    assert words.best.startswith("Nothing here learned beyond chance: train longer, or try other")
    assert words.validation == words.range == words.fit == ""
    text = everything(words)
    for word in ("τ", "reliab", "highest reported", "lower bound", "Fitted"):
        assert word not in text
    # What was measured is still there to see.
    assert "Best cell at each batch size" in text


def test_a_study_of_diverged_runs_alone_says_so(tmp_path: Path) -> None:
    words = said(tmp_path, replace(STUDY, log_base_lr_0=-30.0))
    assert not words.learned
    assert words.best == "Every run diverged."
    assert "τ" not in everything(words)


@pytest.mark.parametrize("peak", [0.6, 0.11])
def test_stale_running_statistics_are_named_with_and_without_a_result(
    tmp_path: Path, peak: float
) -> None:
    study = replace(STUDY, peak=peak, population_gain=0.2, settings={"norm": "batch"})
    words = said(tmp_path, study)
    assert words.learned == (peak > 0.5)
    assert "Nothing here learned" not in words.best
    (line,) = [line for line in words.warnings if "running statistics lag" in line]
    assert "at m = 2 and " in line


def test_equal_updates_have_their_reported_epochs_at_each_batch_size(tmp_path: Path) -> None:
    for m, epochs in ((2, 4), (8, 16)):
        study = replace(STUDY, batch_sizes=(m,), epochs=epochs, settings={"budget": "updates of 2"})
        synthetic.write_models(tmp_path, (study,))
    runs = load_results(tmp_path).runs
    cells = summarise_cells(runs)
    best = best_cells(cells)
    words = study_words(
        runs, cells, best, best[:0], best_by_study(best), stable_ranges(cells), None, None
    )
    rows = {row[0]: row[1] for row in words.tables[0].rows}
    assert rows["Budget"] == "2048 updates for every run (4 to 16 epochs)"
    assert rows["Reported accuracy"] == (
        "after the last of 4 epochs (m = 2); median of the last 2 of 16 epochs (m = 8)"
    )
    assert words.validation == ""
