"""Files that are not as this program writes them are refused in one line that names them."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.fuzz import damage
from click.testing import CliRunner

from smallbatch.analysis.evaluation import evaluate, read_evaluation
from smallbatch.analysis.measurements import read_memory, read_variances
from smallbatch.cli.main import main
from smallbatch.errors import UserError
from smallbatch.records import reading
from smallbatch.records.columns import read_column
from smallbatch.records.reading import read_table
from tests.analysis import synthetic

COLUMN = "models/synthetic/tiny/m2"
CLAIM = {
    "claim": "a",
    "figure": "2",
    "statement": "it holds",
    "criterion": "above 0",
    "unit": "accuracy",
    "findings": [
        {"dataset": "d", "scale": None, "verdict": "supported", "effect": 0.1, "low": 0.05,
         "high": 0.2, "n": 3, "reason": "", "parts": []},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small project by path."""
    root = tmp_path_factory.mktemp("intact")
    small = synthetic.Study("tiny", batch_sizes=(2,), base_lrs=(2**-6, 2**-5), seeds=2, epochs=6)
    synthetic.write_models(root / "models", (small,))
    evaluate(root / "models", root / "reports/evaluation")
    (root / "reports/measurements").mkdir()
    (root / "reports/measurements/d.csv").write_text(
        "dataset,study,seed,batch_size,base_lr,variance\nd,null,0,2,0.5,0.25\nd,null,0,4,0.5,\n"
    )
    (root / "reports/claims.json").write_text(json.dumps({"claims": [CLAIM]}))
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def project(intact: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in intact.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(command: str) -> str:
    """The one line with which a command refuses."""
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = done.output.splitlines()
    return line


def changed(name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(Path(name).read_text())
    change(content)
    Path(name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it["dataset"]["counts"].pop("validation"), "dataset: Value error, counts"),
        (lambda it: it["dataset"].update(classes=["a"]), "classes: found 1, allowed: 2 or more"),
        (lambda it: it["dataset"].update(height=10**30), "dataset"),
        (lambda it: it["settings"].pop("figure"), "settings.figure: Field required"),
        (lambda it: it["settings"].update(milestones=0.5), "settings.milestones"),
        (lambda it: it["settings"].update(warmup="0"), "settings.warmup"),
        (lambda it: it["settings"].update(bn_batch_sizes=[2]), "bn_batch_size: found none"),
        (lambda it: it["settings"].update(run="x"), "settings.run: no setting"),
        (lambda it: it["runs"][0].update(parameters=2**64), "runs.0.parameters"),
        (lambda it: it["runs"][0]["final"].update(test_accuracy=1e300), "final.test_accuracy"),
    ],
)
def test_runs_json(project: Path, change: Callable[[Any], None], said: str) -> None:
    changed(f"{COLUMN}/runs.json", change)
    line = told("evaluate")
    assert line.startswith(f"Error: {COLUMN}/runs.json: damaged")
    assert said in line


def test_runs_of_two_models_are_no_column(project: Path) -> None:
    """As where a variable has timm build another model of the same name."""
    count = json.loads(Path(f"{COLUMN}/runs.json").read_text())["runs"][0]["parameters"]
    changed(f"{COLUMN}/runs.json", lambda it: it["runs"][0].update(parameters=count + 64))
    assert told("evaluate") == (
        f"Error: {COLUMN}/runs.json: its runs are of different models, of {count} and "
        f"{count + 64} parameters; delete the folder and train again"
    )


def test_a_setting_that_is_not_known_may_differ_in_kind(project: Path) -> None:
    small = synthetic.Study("other", batch_sizes=(2,), base_lrs=(2**-6,))
    synthetic.write_models(project / "models", (small,))
    changed(f"{COLUMN}/runs.json", lambda it: it["settings"].update(lookahead=[[1, "x"]]))
    changed("models/synthetic/other/m2/runs.json", lambda it: it["settings"].update(lookahead=0.5))
    assert CliRunner().invoke(main, ["evaluate"]).exit_code == 0
    runs = read_evaluation(project / "reports/evaluation")[0]
    assert set(runs["lookahead"]) == {"0.5", '[[1, "x"]]'}


def test_environment_of_a_timing(project: Path) -> None:
    changed(f"{COLUMN}/timing.json", lambda it: it["environment"].update(git_commit=["x"]))
    assert f"{COLUMN}/timing.json: damaged, environment.git_commit" in told("report")


def retyped(name: str, column: str, values: Any) -> None:
    """Write a table with another column in one's place; None takes it out."""
    table = pq.read_table(name)
    at = table.column_names.index(column)
    table = table.remove_column(at)
    if values is not None:
        table = table.add_column(at, column, pa.array([values] * len(table)))
    pq.write_table(table, name)


TABLES = {
    "evaluate": f"{COLUMN}/history.parquet",
    "report": "reports/evaluation/history.parquet",
}


@pytest.mark.parametrize("command", TABLES)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("outcome", None), ("run", b"\xff"), ("run", 3), ("epoch", "1"), ("epoch", 0.5),
        ("test_loss", [1.0]), ("lr", None), ("base_lr", {"a": 1.0}), ("seed", True),
        ("batch_size", 4),
    ],
)  # fmt: skip
def test_history_of_another_schema(project: Path, command: str, column: str, values: Any) -> None:
    retyped(TABLES[command], column, values)
    assert told(command).startswith(f"Error: {TABLES[command]}: ")


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("runs", "figure", None), ("runs", "figure", 8), ("runs", "milestones", 0.5),
        ("runs", "milestones", "[0.5"), ("runs", "dataset", "other"),
        ("cells", "reliable", "yes"), ("cells", "study", "other"),
    ],
)  # fmt: skip
def test_evaluation_of_another_schema(project: Path, name: str, column: str, values: Any) -> None:
    retyped(f"reports/evaluation/{name}.parquet", column, values)
    line = told("report")
    assert line.startswith("Error: reports/evaluation/")
    assert line.endswith("run smallbatch evaluate")


def test_a_damaged_page_of_an_evaluation_is_noticed_by_its_checksum(project: Path) -> None:
    path = project / "reports/evaluation/history.parquet"
    content = path.read_bytes()
    at = content.index(b"finished")
    path.write_bytes(content[:at] + b"diverged" + content[at + 8 :])
    assert "history.parquet: damaged" in told("report")


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "dataset,study,seed,batch_size,base_lr,variance\nd,s,x,2,1,1\n",
             "\0", "dataset,study,seed,batch_size,base_lr,variance\nd,s,1,2,1\n",
             *(f"dataset,study,seed,batch_size,base_lr,variance\nd,s,1,2,1,{value}\n"
               for value in (-1, "-inf", "inf", "x"))],
)  # fmt: skip
def test_measurements(project: Path, text: str) -> None:
    path = project / "reports/measurements/d.csv"
    assert read_variances(path.parent)["study"].tolist() == ["null", "null"]  # a study's name
    path.write_text(text)
    with pytest.raises(UserError, match=r"d\.csv: damaged .*; run smallbatch measure again"):
        read_variances(path.parent)


def test_a_measurement_that_lies_there_twice(project: Path) -> None:
    path = project / "reports/measurements/d.csv"
    other = path.with_name("d.old.csv")
    header, first, second = path.read_text().splitlines(keepends=True)
    other.write_text(header + second)
    with pytest.raises(UserError, match=r"d\.old\.csv: .* m=4, seed 0 is in .*/d\.csv already"):
        read_variances(path.parent)
    other.write_text(header + first + first)
    path.unlink()
    with pytest.raises(UserError, match=r"d\.old\.csv: .* m=2, seed 0 is there twice; run sm"):
        read_variances(path.parent)


MEMORY = (
    "dataset,fingerprint,study,model,norm,batch_size,engine,device,bytes\n"
    "d,f,null,resnet8,none,2,loop,cpu,1000\nd,f,null,resnet8,none,2,stacked,cpu,9000\n"
)


def test_tables_of_memory_lie_in_a_folder_of_their_own(project: Path) -> None:
    folder = project / "reports/measurements"
    assert read_memory(folder).empty
    (folder / "memory").mkdir()
    (folder / "memory/d.csv").write_text(MEMORY)
    found = read_memory(folder)
    assert found["bytes"].tolist() == [1000, 9000]
    assert found["study"].tolist() == ["null", "null"]
    assert len(read_variances(folder)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [(",1000", ",0"), (",1000", ",x"), (",1000", ","), (",1000", ",1.5"), ("loop", "jax"),
     ("cpu,1", "tpu,1"), ("none,2,loop", "none,0,loop"), ("study,model", "study,net")],
)  # fmt: skip
def test_damaged_memory(project: Path, old: str, new: str) -> None:
    path = project / "reports/measurements/memory/d.csv"
    path.parent.mkdir()
    assert old in MEMORY
    path.write_text(MEMORY.replace(old, new, 1))
    with pytest.raises(UserError, match=r"memory/d\.csv: damaged .*; run smallbatch measure again"):
        read_memory(path.parents[1])


def test_memory_whose_last_number_was_cut_off(project: Path) -> None:
    """It has lost digits and is a number all the same."""
    path = project / "reports/measurements/memory/d.csv"
    path.parent.mkdir()
    path.write_text(MEMORY[:-3])
    with pytest.raises(UserError, match=r"damaged \(its last line has no end\); run smallbatch"):
        read_memory(path.parents[1])


def test_memory_that_lies_there_twice(project: Path) -> None:
    folder = project / "reports/measurements/memory"
    folder.mkdir()
    for name in ("d.csv", "old.csv"):
        (folder / name).write_text(MEMORY)
    with pytest.raises(UserError, match=r"old\.csv: row of d/null, m=2, loop on cpu is in .*/d\.c"):
        read_memory(folder.parent)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("reports/claims.json", "claims"),
        (f"{COLUMN}/runs.json", "evaluate"),
        (f"{COLUMN}/timing.json", "evaluate"),
        ("reports/measurements/d.csv", "report"),
        ("reports/measurements/memory/d.csv", "report"),
        ("data/prepared/digits/meta.json", "measure"),
    ],
)
def test_a_pipe_is_not_waited_for(project: Path, name: str, command: str) -> None:
    Path("params.yaml").write_text(
        "dataset: {name: digits, source: digits, subset: 60, test_subset: 40}\n"
        "grid: {studies: [a], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}\n"
        "studies:\n  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}\n"
    )
    Path(name).unlink(missing_ok=True)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(name)
    # Opens the other end, should the command wait: it then fails, and does not hang.
    late = threading.Timer(3, lambda: os.close(os.open(name, os.O_RDWR | os.O_NONBLOCK)))
    late.daemon = True
    late.start()
    assert "found a FIFO" in told(command)
    late.cancel()


@pytest.mark.parametrize("key", ["statement", "figure", "verdict", "reason"])
@pytest.mark.parametrize("value", ["null", "3", "[]", '"\\ud800"', "[" * 5000])
def test_claims(project: Path, key: str, value: str) -> None:
    text = json.dumps({"claims": [CLAIM]})
    text, count = re.subn(rf'("{key}": )"[^"]*"', lambda it: it[1] + value, text)
    assert count == 1
    Path("reports/claims.json").write_text(text)
    assert told("claims").startswith("Error: reports/claims.json: damaged")


def test_claims_with_a_number_of_400_digits(project: Path) -> None:
    path = Path("reports/claims.json")
    path.write_text(path.read_text().replace('"effect": 0.1', f'"effect": {"9" * 400}'))
    assert "damaged, claims.0.findings.0.effect" in told("claims")


def test_damaged_tables_are_read_as_they_were_or_refused(project: Path) -> None:
    """Of an evaluation all pages have checksums; a column's own files may change their numbers."""
    evaluation = Path("reports/evaluation")
    before = read_evaluation(evaluation)
    random, read = Random(0), 0
    for _ in range(60):
        name = random.choice(("runs", "cells", "history"))
        file = evaluation / f"{name}.parquet"
        content = file.read_bytes()
        damage.apply(damage.bytes_of(random, str(file)), project)
        with suppress(UserError):
            for one, other in zip(read_evaluation(evaluation), before, strict=True):
                pd.testing.assert_frame_equal(one, other)  # the damage was in what nobody reads
            read += 1
        file.write_bytes(content)
    assert read < 60


@pytest.mark.parametrize("name", ["history.parquet", "timing.json"])
def test_damaged_columns_are_refused_by_the_name_of_the_file(project: Path, name: str) -> None:
    file, random, refused = project / COLUMN / name, Random(0), list[str]()
    content = file.read_bytes()
    for _ in range(30):
        damage.apply(damage.bytes_of(random, f"{COLUMN}/{name}"), project)
        try:
            read_column(project / COLUMN)
        except UserError as error:
            refused.append(str(error))
        file.write_bytes(content)
    assert refused
    assert all(name in line for line in refused)


def test_a_table_that_does_not_fit_into_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values take next to nothing in a file."""
    path = tmp_path / "x.parquet"
    table = pa.table({"run": ["a"] * 100_000, "epoch": [1] * 100_000})
    pq.write_table(table, path)
    assert path.stat().st_size < 2000
    assert len(read_table(path, {"run": "text", "epoch": "whole"}, "train")) == 100_000
    monkeypatch.setattr(reading, "free_memory", lambda: 7_000_000)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    with pytest.raises(UserError, match=r"damaged .its 100000 rows need 0\.01 GiB of memory"):
        read_table(path, {"run": "text", "epoch": "whole"}, "train")
