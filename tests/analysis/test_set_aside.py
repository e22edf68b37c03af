"""Columns that params.yaml no longer names take no part in what is said of its experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from smallbatch.analysis.evaluation import read_evaluation, read_set_aside, refuse_stale
from smallbatch.cli.main import main
from smallbatch.errors import UserError
from smallbatch.report.claims import judged_record
from smallbatch.report.page import build_report
from tests.analysis import synthetic

PARAMS = """
dataset: {name: digits, source: digits}
grid: {studies: [kept], dependent: [{name: after, after: kept}], batch_sizes: [2, 8],
       base_lrs: [2^-6], seeds: 3}
advise: {studies: []}
studies:
  kept: {model: resnet8, epochs: 12, weight_decay: 0.0001}
  after: {model: resnet8, norm: batch, epochs: 12, weight_decay: 0.0001, base_lr: best of kept}
  old: {model: resnet8, epochs: 12, weight_decay: 0.0001}
"""
LINE = (
    "set aside, not named by params.yaml: digits/kept m32; digits/old m2, m8; "
    "`smallbatch evaluate --all` brings them in"
)
NAMES = ("digits/kept/m32", "digits/old/m2", "digits/old/m8")
EVALUATION = Path("reports/evaluation")


def study(name: str, *batch_sizes: int, **more: Any) -> synthetic.Study:
    """Whose best accuracy is at its last batch size."""
    return synthetic.Study(name, batch_sizes=batch_sizes, best_m=batch_sizes[-1], **more)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of an earlier grid, better than the present ones, and of another data set."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    own = (study("kept", 2, 8, 32, peak=0.7, settings={"figure": "2"}), study("old", 2, 8))
    after = study("after", 2, 8, peak=0.7, settings={"norm": "batch"})
    synthetic.write_models(Path("models"), (*own, after), "digits")
    synthetic.write_models(Path("models"), (study("other", 2, 8),), "synthetic")


def evaluate(*words: str) -> Result:
    result = CliRunner().invoke(main, ["evaluate", *words])
    assert result.exit_code == 0, result.output
    return result


def columns() -> set[str]:
    """Those in the table of runs."""
    runs = read_evaluation(EVALUATION)[0]
    places = runs[["dataset", "study", "batch_size"]].drop_duplicates()
    return {f"{dataset}/{study}/m{m}" for dataset, study, m in places.itertuples(index=False)}


PRESENT = {f"{study}/m{m}" for study in ("digits/kept", "digits/after", "synthetic/other")
           for m in (2, 8)}  # fmt: skip


def test_the_best_accuracy_is_not_that_of_a_column_set_aside() -> None:
    output = evaluate("--all").output
    assert "set aside" not in output
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    assert metrics["digits.kept.batch_size"] == 32
    assert metrics["digits.old.accuracy"] > 0.8
    assert metrics["synthetic.other.batch_size"] == 8
    assert columns() == PRESENT | set(NAMES)
    assert read_set_aside(EVALUATION) == ()

    assert LINE in evaluate().output.splitlines()
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    assert {name.partition(".")[0] for name in metrics} == {"kept", "after"}
    assert metrics["kept.batch_size"] == 8
    assert metrics["kept.accuracy"] < 0.8
    assert columns() == PRESENT
    for table in read_evaluation(EVALUATION):
        assert set(table["study"]) == {"kept", "after", "other"}
        assert set(table["batch_size"]) == {2, 8}
    assert json.loads((EVALUATION / "set_aside.json").read_text()) == list(NAMES)
    build_report()
    best = pd.read_csv("reports/tables/best_accuracy.csv")
    assert set(best["study"]) == {"kept", "after", "other"}
    assert set(best["batch_size"]) == {2, 8}


def test_what_is_not_the_pipelines_folder_is_evaluated_whole(tmp_path: Path) -> None:
    shutil.copytree("models", "results/models")
    evaluate("--models", "results/models")
    assert columns() == PRESENT | set(NAMES)
    Path("mine.yaml").write_text(PARAMS)
    evaluate("--models", "results/models", "--params", "mine.yaml")
    assert columns() == PRESENT
    evaluate("--models", str(tmp_path / "models/digits"))  # a part of it
    assert columns() == {name for name in PRESENT if name.startswith("digits")}
    Path("params.yaml").unlink()
    evaluate()
    assert columns() == PRESENT | set(NAMES)


def test_a_wrong_params_file_is_told_and_not_passed_over() -> None:
    Path("params.yaml").write_text(PARAMS.replace("batch_sizes", "batchsizes"))
    result = CliRunner().invoke(main, ["evaluate"])
    assert result.exit_code == 2
    assert "params.yaml: unknown key 'grid.batchsizes'" in result.output
    assert not EVALUATION.exists()
    evaluate("--all")


def test_nothing_that_is_named_is_no_evaluation() -> None:
    shutil.rmtree("models/synthetic")
    Path("params.yaml").write_text(PARAMS.replace("[2, 8]", "[64]"))
    result = CliRunner().invoke(main, ["evaluate"])
    assert result.exit_code == 2
    assert "no complete column that params.yaml names, and 7 more" in result.output


def test_an_evaluation_is_of_the_present_columns_with_those_set_aside_known() -> None:
    evaluate()
    runs = read_evaluation(EVALUATION)[0]
    refuse_stale(runs, EVALUATION, Path("models"))
    synthetic.write_models(Path("more"), (study("kept", 2, 8, 32, 128), study("old", 2, 8)),
                           "digits")  # fmt: skip
    for name, change in {
        "one set aside is gone": lambda: shutil.rmtree("models/digits/old/m2"),
        "one that is named is gone": lambda: shutil.rmtree("models/digits/kept/m2"),
        "one more": lambda: shutil.copytree("more/digits/kept/m128", "models/digits/kept/m128"),
        "one taken for set aside": lambda: (EVALUATION / "set_aside.json").write_text(
            json.dumps(sorted([*NAMES, "digits/kept/m2"]))
        ),
        "none set aside": lambda: (EVALUATION / "set_aside.json").unlink(),
        "not as it is written": lambda: (EVALUATION / "set_aside.json").write_text('["a", 1]'),
    }.items():
        before = {path: shutil.copytree(path, f"{name}/{path}") for path in ("models", EVALUATION)}
        change()
        with pytest.raises(UserError, match=r"run smallbatch evaluate$"):
            refuse_stale(runs, EVALUATION, Path("models"))
        for path, copy in before.items():
            shutil.rmtree(path)
            shutil.copytree(copy, path)
        refuse_stale(runs, EVALUATION, Path("models"))


def test_memory_of_columns_set_aside_decides_no_claim() -> None:
    """The memory of `kept` falls from m = 2 to 8 and rises to 32, which is set aside."""
    evaluate()
    runs, _, history = read_evaluation(EVALUATION)
    runs, history = (frame[frame["dataset"] == "digits"] for frame in (runs, history))
    assert "digits/kept/m32" in read_set_aside(EVALUATION)
    of_kept = runs[runs["study"] == "kept"].iloc[0]
    memory = pd.DataFrame([
        {**{key: of_kept[key] for key in ("dataset", "fingerprint", "study", "model", "norm")},
         "batch_size": m, "engine": "loop", "device": "cpu", "bytes": count}
        for m, count in ((2, 2000), (8, 1000), (32, 8000))
    ])  # fmt: skip
    record = judged_record(runs, history, pd.DataFrame(), memory)
    (claim,) = (claim for claim in record.claims if claim.claim == "memory-grows")
    assert claim.findings[0].effect == -1
