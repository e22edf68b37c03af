"""What is written is, byte for byte, what it always was, and is read as the same records."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from smallbatch.config.study import StudyConfig
from smallbatch.errors import UserError
from smallbatch.protocol.column import plan_column
from smallbatch.protocol.outcome import RunResult
from smallbatch.records.columns import read_column, read_record
from smallbatch.records.files import _replace_folder, load_record, save_record, write_column
from smallbatch.records.schema import METRICS, Clock, ColumnClock, RunRecord, Timing
from smallbatch.tracking.records import read_column as tracked
from tests.noise import make_dataset
from tests.users import NOBODY, needs_two_users

GOLDEN = Path(__file__).with_name("golden")
THEN = "2026-01-02T03:04:05.678+00:00"


def row(**more: Any) -> dict[str, Any]:
    return {"epoch": 1, "updates": 5, "lr": 2.0**-5, **dict.fromkeys(METRICS, 0.25), **more}


FINAL: dict[str, float | None] = dict(
    zip(METRICS, (1e-7, 1.0, None, None, float("inf"), 1 / 3), strict=True)
)
LAST = {name: value for name, value in FINAL.items() if name.startswith(("validation", "test"))}
FINISHED = RunResult("finished", None, [row(**LAST)], FINAL, 75, {"w": torch.ones(2)})
DIVERGED = RunResult("diverged", 2, [row(updates=2, lr=256.0)], dict.fromkeys(FINAL), 75, {})


def test_a_column_is_written_and_read_as_records(tmp_path: Path) -> None:
    data = make_dataset()
    meta = replace(data.meta, mean=(0.5, 1 / 3), std=(0.25, 0.0))  # round on every processor
    settings = StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=1e-4)
    column = plan_column(
        "study", settings, data, batch_size=4, base_lrs=(2.0**-7, 64.0), seeds=(0,)
    )
    finished, diverged = column.runs
    timing = Timing(
        environment={"cpu": "some CPU", "cores": 2, "gpu": None, "git_dirty": False},
        column=ColumnClock(
            started="2026-01-02T03:04:05+00:00", seconds=2.5, images_per_second=100.0, workers=2,
            engine="loop", kernels=None, device="cpu", stage="train@study-4",
            peak_memory_bytes=2**30,
        ),
        runs={
            finished.hash: Clock(started=THEN, ended=THEN, seconds=1.5, images_per_second=40 / 3),
            diverged.hash: Clock(started=THEN, ended=THEN, seconds=0.0),
        },
    )  # fmt: skip
    write_column(
        tmp_path / "m4",
        dataset=meta,
        study="study",
        updates=5,
        results=[(diverged, DIVERGED), (finished, FINISHED)],
        timing=timing,
    )
    written = (tmp_path / "m4" / "weights.safetensors").read_bytes()
    assert hashlib.sha256(written).hexdigest() in (GOLDEN / "runs.json").read_text()
    for name in ("runs.json", "timing.json"):
        assert (tmp_path / "m4" / name).read_bytes() == (GOLDEN / name).read_bytes()
    found = read_column(tmp_path / "m4")
    assert found.timing == timing
    assert found.record.dataset == meta
    assert [run.run for run in found.record.runs] == [finished.hash, diverged.hash]


def test_what_a_column_was_linked_to_stays(tmp_path: Path) -> None:
    """And the next training finds no link in its way."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "runs.json").write_bytes(b"theirs")
    for content in (b"1", b"2"):
        shutil.rmtree(tmp_path / "m4", ignore_errors=True)
        (tmp_path / "m4").symlink_to(away)
        _replace_folder(tmp_path / "m4", {"runs.json": content})
        assert not (tmp_path / "m4").is_symlink()
        assert (tmp_path / "m4/runs.json").read_bytes() == content
    assert (away / "runs.json").read_bytes() == b"theirs"
    assert sorted(it.name for it in tmp_path.iterdir()) == ["away", "m4"]


def test_what_could_not_be_read_is_not_made() -> None:
    with pytest.raises(ValidationError, match="base_lr"):
        RunRecord(
            run="0" * 16, base_lr=float("nan"), lr=1.0, seed=0, outcome="finished",
            diverged_at=None, updates=5, parameters=75, final={},
        )  # fmt: skip


CLOCK = Clock(started=THEN, ended=THEN, seconds=1.5)


def copied(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def linked(path: Path, other: Path) -> None:
    path.symlink_to(other)


def named_pipe(path: Path, other: Path) -> None:
    os.mkfifo(path)


def of_another_user(path: Path, other: Path) -> None:
    save_record(path.parent, FINISHED, CLOCK, "code")
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "plant",
    [copied, linked, named_pipe, pytest.param(of_another_user, marks=needs_two_users)],
)
def test_a_record_that_is_another_runs_or_another_users_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[Path, Path], None]
) -> None:
    save_record(tmp_path / "a", FINISHED, CLOCK, "code")
    (tmp_path / "b").mkdir()
    plant(tmp_path / "b/record", tmp_path / "a/record")
    assert load_record(tmp_path / "b", ["code"]) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'b/record'}: left out: ")
    save_record(tmp_path / "b", DIVERGED, CLOCK, "code")
    for name, outcome in (("a", "finished"), ("b", "diverged")):
        kept = load_record(tmp_path / name, ["code"])
        assert kept is not None
        assert kept[0].outcome == outcome


def test_a_record_does_not_go_through_a_link_to_another_runs_folder(tmp_path: Path) -> None:
    save_record(tmp_path / "a", FINISHED, CLOCK, "code")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert load_record(tmp_path / "b", ["code"]) is None
    save_record(tmp_path / "b", DIVERGED, CLOCK, "code")
    assert load_record(tmp_path / "a", ["code"]) is not None
    assert load_record(tmp_path / "b", ["code"]) is not None


def test_records_that_members_of_a_group_may_write_are_used(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        save_record(tmp_path / "a", FINISHED, CLOCK, "code")
    finally:
        os.umask(before)
    assert load_record(tmp_path / "a", ["code"]) is not None


@pytest.mark.parametrize(
    ("place", "refused"),
    [("data/study/m8", "study study at m=4"), ("data/other/m4", "study study at m=4"),
     ("data/study/m4", None), ("copy/m4", None), ("hash", None)],
)  # fmt: skip
def test_a_column_at_another_columns_place_is_refused(
    tmp_path: Path, place: str, refused: str | None
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    record = json.loads((GOLDEN / "runs.json").read_text())
    record["dataset"]["name"] = "data"
    (folder / "runs.json").write_text(json.dumps(record))
    if refused is None:
        assert read_record(folder).batch_size == 4
        return
    with pytest.raises(UserError, match=refused) as error:
        read_record(folder)
    assert str(error.value).startswith(f"{folder}/runs.json: ")


def edited(record: Any) -> None:
    record["settings"]["weight_decay"] = 0.5


def of_another_seed(record: Any) -> None:
    record["runs"][0]["seed"] = 1


def of_other_images(record: Any) -> None:
    record["dataset"]["fingerprint"] = "0" * 64


def renamed(record: Any) -> None:
    record["runs"][0]["run"] = "0" * 16


@pytest.mark.parametrize("change", [edited, of_another_seed, of_other_images, renamed])
def test_a_single_run_is_that_which_its_folder_is_named_after(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    column = plan_column(
        "run", StudyConfig(model="resnet8", norm="ghost", bn_batch_size=2, epochs=1,
                           weight_decay=0, warmup=0.1, figure="2"),
        make_dataset(), batch_size=4, base_lrs=(0.1,), seeds=(0,),
    )  # fmt: skip
    (run,) = column.runs
    folder = tmp_path / run.hash
    write_column(
        folder, dataset=column.dataset.meta, study="run", updates=5,
        results=[(run, FINISHED)], timing=Timing(),
    )  # fmt: skip
    assert read_record(folder).runs[0].run == run.hash
    (folder / "timing.json").unlink()
    assert tracked(folder).info.single == run.hash
    shutil.copytree(folder, tmp_path / ("0" * 16))
    with pytest.raises(UserError, match=f"{'0' * 16}/runs.json: is of run {run.hash}, not of that"):
        read_record(tmp_path / ("0" * 16))
    record = json.loads((folder / "runs.json").read_text())
    change(record)
    (folder / "runs.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"runs\.json: is of run \w+, not of that which the folder"):
        read_record(folder)
