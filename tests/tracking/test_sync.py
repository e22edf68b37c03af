"""Replaying result files, checked against the sqlite tables themselves."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import SyncReport, entries, sync
from smallbatch.tracking.live_process import LiveColumn
from smallbatch.tracking.records import read_column
from smallbatch.tracking.store import open_store
from tests.tracking.conftest import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parents[2] / "src"
MARK = "`smallbatch.superseded`"


def test_every_point_arrives_exactly_once(columns: Any, tables: Any, expected_points: Any) -> None:
    small = columns.write(2, diverged=(2.0**-3,))
    large = columns.write(64)
    report = sync(columns.root)
    assert report.columns == 2
    assert report.runs_created == 2 + 8
    assert sorted(tables.points()) == sorted(expected_points(small) + expected_points(large))
    summary = 2 * 4
    assert report.points_logged == len(tables.points()) + summary


def test_the_second_sync_changes_nothing(columns: Any, tables: Any) -> None:
    columns.write(2, diverged=(2.0**-3,))
    columns.write(64, timing=False)
    columns.write(8, study="other")
    sync(columns.root)
    before = tables.content()
    assert sync(columns.root) == SyncReport(3, unchanged=3 * 5)
    assert tables.content() == before


def test_runs_carry_names_params_tags_and_the_data_set(columns: Any, tables: Any) -> None:
    directory = columns.write(8, base_lrs=(2.0**-6, 0.3), seeds=1, diverged=(0.3,))
    sync(columns.root)
    assert tables.query("select name from experiments where experiment_id > 0") == [
        ("digits/study",)
    ]
    runs = {name: (uuid, status, start, end) for name, uuid, status, start, end in tables.query(
        "select name, run_uuid, status, start_time, end_time from runs")}  # fmt: skip
    assert set(runs) == {"m=8", "m=8 η̃=2^-6 seed 0", "m=8 η̃=0.3 seed 0"}
    uuid, status, start, end = runs["m=8 η̃=0.3 seed 0"]
    assert (status, end - start) == ("FINISHED", 12_000)
    assert start == 1767323046_000  # 2026-01-02T03:04:06Z
    params = dict(tables.query(f"select key, value from params where run_uuid = '{uuid}'"))
    assert params["base_lr"] == "0.3"
    assert float(params["lr"]) == pytest.approx(2.4)
    assert params.items() >= {"batch_size": "8", "seed": "0", "milestones": "[0.5, 0.75]"}.items()
    tags = dict(tables.query(f"select key, value from tags where run_uuid = '{uuid}'"))
    hashes = [run["run"] for run in json.loads((directory / "runs.json").read_text())["runs"]]
    assert tags["smallbatch.run"] == hashes[1]
    assert tags["mlflow.parentRunId"] == runs["m=8"][0]
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    expected = {"diverged_at": "251", "git_dirty": "true", "device": "cpu"}
    assert tags["outcome"] == "diverged"
    assert tags.items() >= {f"smallbatch.{key}": value for key, value in expected.items()}.items()
    assert tags["dvc.stage"] == "train@study-8"
    assert tables.query("select name, digest from datasets") == [
        ("digits", ("0123456789abcdef" * 4)[:36])
    ]
    inputs = tables.query("select count(*) from inputs where destination_type = 'RUN'")
    assert inputs == [(3,)]


def test_the_parent_run_sums_up_its_column(columns: Any, tables: Any) -> None:
    directory = columns.write(8, diverged=(2.0**-3,))
    sync(directory)
    summary = dict(
        tables.query(
            "select m.key, m.value from metrics m join runs r using (run_uuid) where r.name = 'm=8'"
        )
    )
    history = pd.read_parquet(directory / "history.parquet")
    # Of six epochs the last alone is reported.
    last = history[(history["epoch"] == 6) & (history["base_lr"] == 2.0**-6)]
    expected_median = float(last["test_accuracy"].median())
    assert summary == {
        "runs_diverged": 2,
        "best_accuracy": expected_median,
        "best_base_lr": 2.0**-6,
        "images_per_second": 1234.5,
    }


def test_timestamps_come_from_the_timing_file(columns: Any, tables: Any) -> None:
    columns.write(8, base_lrs=(2.0**-6,), seeds=1, epochs=6)
    sync(columns.root)
    stamps = tables.query("select step, timestamp from metrics where key = 'lr' order by step")
    start = 1767323045_000
    assert stamps == [(epoch, start + 2000 * epoch) for epoch in range(1, 7)]


def test_an_empty_database_is_rebuilt_alike(columns: Any, tables: Any, workplace: Path) -> None:
    columns.write(8)
    shutil.copy(workplace / "mlflow.db", workplace / "rebuilt.db")
    sync(columns.root)
    sync(columns.root, f"sqlite:///{workplace / 'rebuilt.db'}")
    rebuilt = tables.of(workplace / "rebuilt.db")
    assert sorted(rebuilt.points()) == sorted(tables.points())
    stamps = "select key, step, timestamp from metrics order by 1, 2, 3"
    assert rebuilt.query(stamps) == tables.query(stamps)


def test_a_replay_cut_short_before_its_mark_logs_each_summary_once(
    columns: Any, tables: Any
) -> None:
    directory = columns.write(8)
    sync(columns.root)
    summaries = (
        "select m.key, m.step, m.value from metrics m join runs r using (run_uuid) where not "
        "exists (select 1 from tags t where t.run_uuid = r.run_uuid and t.key = 'smallbatch.run') "
        "and r.lifecycle_stage = 'active'"
    )
    before = {key: value for key, _, value in tables.query(summaries)}
    assert before.keys() >= {"runs_diverged", "best_accuracy", "images_per_second"}
    client = open_store().client
    (parent,) = tables.query(
        "select run_uuid from tags where key = 'smallbatch.synced' and \
        run_uuid not in (select run_uuid from tags where key = 'smallbatch.run')"
    )
    client.delete_tag(parent[0], entries.SYNCED)
    timing = json.loads((directory / "timing.json").read_text())
    timing["column"]["images_per_second"] += 1.0  # trained again, with the same results
    (directory / "timing.json").write_text(json.dumps(timing))
    sync(columns.root)
    expected = [(key, 0, it + (key == "images_per_second")) for key, it in before.items()]
    assert sorted(tables.query(summaries)) == sorted(expected)
    assert sync(columns.root).unchanged == 5


def test_a_widened_column_keeps_its_runs(columns: Any, tables: Any) -> None:
    columns.write(8, seeds=2)
    sync(columns.root)
    columns.write(8, seeds=3)
    report = sync(columns.root)
    assert (report.runs_created, report.runs_updated, report.runs_discarded) == (3, 4, 1)
    stages = "select lifecycle_stage, count(*) from runs where name = 'm=8' group by 1 order by 1"
    assert tables.query(stages) == [("active", 1), ("deleted", 1)]
    assert sync(columns.root).unchanged == 7


def test_single_runs_of_one_study_have_parents_of_their_own(columns: Any, tables: Any) -> None:
    columns.write(8, base_lrs=(2.0**-6,), seeds=1, salt=1)
    for seed in (0, 1):
        for base_lr in (2.0**-6, 2.0**-3):
            single = Columns(columns.root.parent / "single" / str(base_lr))
            single.write(8, base_lrs=(base_lr,), single_seed=seed)
    folders = [columns.root, columns.root.parent / "single"]
    assert sync(folders).runs_created == 5 * 2
    before = tables.content()
    assert sync(folders) == SyncReport(5, unchanged=10)
    assert tables.content() == before
    children = tables.query("select value from tags where key = 'mlflow.parentRunId'")
    assert len(set(children)) == 5


def test_an_edited_figure_changes_only_its_tag(columns: Any, tables: Any) -> None:
    columns.write(8)
    sync(columns.root)
    before = tables.content()
    columns.write(8, figure="8")
    report = sync(columns.root)
    assert (report.runs_updated, report.points_logged) == (5, 0)
    figures = "select value, count(*) from tags where key = 'smallbatch.figure' group by 1"
    assert tables.query(figures) == [("8", 5)]
    columns.write(8)
    sync(columns.root)
    assert tables.content() == before


def test_unfinished_columns_are_left_out(columns: Any) -> None:
    columns.write(8)
    (columns.write(2) / "history.parquet").unlink()
    written = columns.write(4)
    written.rename(written.with_name("m4.part"))
    assert sync(columns.root).columns == 1


def test_other_results_of_the_same_run_replace_it(
    columns: Any, tables: Any, expected_points: Any
) -> None:
    columns.write(8)
    sync(columns.root)
    directory = columns.write(8, salt=1)
    report = sync(columns.root)
    assert (report.runs_created, report.runs_discarded) == (5, 5)
    assert sorted(tables.points()) == expected_points(directory)
    stages = tables.query("select lifecycle_stage, count(*) from runs group by 1 order by 1")
    assert stages == [("active", 5), ("deleted", 5)]
    before = tables.content()
    assert sync(columns.root).unchanged == 5
    assert tables.content() == before


def test_what_an_older_version_logged_by_other_names_gives_way(
    columns: Any, tables: Any, expected_points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = columns.write(8, diverged=(2.0**-3,))
    with monkeypatch.context() as patch:
        patch.setattr(entries, "LAYOUT", 1)
        patch.setattr(entries, "FINAL_METRICS", {"train_loss": "final_train_loss"})
        sync(directory)
    report = sync(directory)
    assert (report.runs_created, report.runs_discarded, report.unchanged) == (5, 5, 0)
    assert sorted(tables.points()) == expected_points(directory)
    assert sync(directory).unchanged == 5


def test_a_replay_cut_short_is_taken_up_again(
    columns: Any, tables: Any, expected_points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    directory = columns.write(8)
    real, calls = MlflowClient.log_batch, 0

    def failing(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("cut")
        real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    with pytest.raises(UserError, match="cut"):
        sync(columns.root)
    monkeypatch.undo()
    monkeypatch.chdir(columns.root.parent)
    report = sync(columns.root)
    assert sorted(tables.points()) == expected_points(directory)
    assert report.unchanged == 2
    assert tables.query("select count(*) from runs") == [(5,)]
    assert sync(columns.root).points_logged == 0


MODEL_CALLS = ["create_logged_model", "log_artifacts", "finalize_logged_model", "log_outputs"]


@pytest.mark.parametrize("call", MODEL_CALLS)
def test_an_interrupted_sync_leaves_one_model_in_the_end(
    call: str, columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.tracking import MlflowClient

    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    called: Any = LocalArtifactRepository if call == "log_artifacts" else MlflowClient
    real = getattr(called, call)

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(called, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync(columns.root)
    monkeypatch.undo()
    monkeypatch.chdir(columns.root.parent)
    sync(columns.root)
    [(model, ready)] = tables.query("select model_id, status from logged_models")
    assert ready == 2  # LoggedModelStatus.READY
    outputs = "select destination_id from inputs where destination_type = 'MODEL_OUTPUT'"
    assert tables.query(outputs) == [(model,)]
    assert tables.query("select value from tags where key = 'smallbatch.model'") == [
        (f"models:/{model}",)
    ]
    assert sync(columns.root).unchanged == 2


def test_what_mlflow_does_not_take_is_told_without_secrets(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "S3cretPw")
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    real = MlflowClient.log_batch

    def picky(self: Any, *args: Any, **kwargs: Any) -> None:
        if tables.query("select count(*) from runs") == [(2,)]:
            raise MlflowException.invalid_parameter_value("no S3cretPw")
        real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    with pytest.raises(UserError, match=r"m8: MLflow does not take it: .*no …$") as caught:
        sync(columns.root)
    assert "S3" not in str(caught.value)


@pytest.mark.slow
def test_a_killed_sync_leaves_no_weights(columns: Any, workplace: Path) -> None:
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    temporary = workplace / "tmp"
    temporary.mkdir()
    program = (
        "import os, signal; from pathlib import Path; from smallbatch.tracking import sync\n"
        "from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Local\n"
        "Local.log_artifacts = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sync(Path('models'))"
    )
    cache = workplace / "cache"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    environment |= {"TMPDIR": str(temporary), "SMALLBATCH_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", program], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert not [*temporary.rglob("*.safetensors")]
    assert [*cache.rglob("*.safetensors")]
    again = "from pathlib import Path; from smallbatch.tracking import sync; sync(Path('models'))"
    subprocess.run([sys.executable, "-c", again], env=environment, check=True)
    assert not [*cache.rglob("*.safetensors")]


def test_odd_columns_do_not_withhold_the_others(columns: Any, tables: Any) -> None:
    for study in ("good", "zero", "clock", "weightless", "fine"):
        columns.write(8, study=study, base_lrs=(0.5,), seeds=1, epochs=1)
    folder = columns.root / "digits"
    zero = folder / "zero" / "m8" / "runs.json"
    zero.write_text(zero.read_text().replace('"base_lr": 0.5', '"base_lr": 0.0'))
    clock = folder / "clock" / "m8" / "timing.json"
    clock.write_text(clock.read_text().replace("2026-01-02", "yesterday"))
    (folder / "weightless" / "m8" / "weights.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        sync(columns.root)
    told = str(caught.value)
    assert "\n" not in told
    for study in ("zero", "clock", "weightless"):
        assert f"{folder}/{study}/m8" in told
    assert "/good/" not in told
    assert told.endswith("the other 2 of 5 columns are in MLflow")
    logged = (
        "select e.name from runs r join experiments e using (experiment_id) join tags t "
        "using (run_uuid) where r.name = 'm=8' and t.key = 'smallbatch.synced'"
    )
    assert sorted(tables.query(logged)) == [("digits/fine",), ("digits/good",)]
    assert sync([folder / "good", folder / "fine"]).unchanged == 4


def test_copies_of_a_column_with_different_results_are_both_refused(
    columns: Any, tables: Any, workplace: Path
) -> None:
    few: dict[str, Any] = {"base_lrs": (0.5,), "seeds": 1, "epochs": 1}
    one = columns.write(8, study="copied", **few)
    sync(columns.root)
    before = tables.content()["metrics"]
    other = Path(shutil.copytree(one, workplace / "backup"))
    assert sync([columns.root, other]).unchanged == 2  # the same results: nothing to choose
    columns.write(8, study="copied", salt=1, **few)
    columns.write(8, study="fine", **few)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            sync([columns.root, other])
        assert str(caught.value) == (
            f"{one}: holds runs of digits/copied that {other} holds too; move one of the two "
            f"elsewhere (also not logged: {other}); the other 1 of 3 columns are in MLflow"
        )
    assert sync(columns.root / "digits/fine").unchanged == 2
    assert set(before) <= set(tables.content()["metrics"])
    assert not tables.query("select * from runs where lifecycle_stage = 'deleted'")
    other.rename(workplace / "away")
    assert sync(columns.root).runs_created == 2


def test_what_is_there_twice_goes_to_the_trash(
    columns: Any, tables: Any, expected_points: Any
) -> None:
    """A slow server carries out a request that was given up, and its repetition too."""
    directory = columns.write(8)
    sync(columns.root)
    before = tables.query("select count(*) from runs where lifecycle_stage = 'active'")
    client = open_store().client
    runs = client.search_runs(["1"])
    late: list[str] = []
    for run in runs:
        tags = {key: value for key, value in run.data.tags.items() if key != entries.SYNCED}
        again = client.create_run("1", start_time=run.info.start_time + 1, tags=tags)
        if entries.RUN not in tags:
            model = client.create_logged_model(
                "1", "best", again.info.run_id, tags={entries.SYNCED: "late"}
            )
            late.append(model.model_id)
            client.set_tag(runs[0].info.run_id, entries.PARENT, again.info.run_id)
    assert tables.query("select count(*) from runs where lifecycle_stage = 'active'") == [(10,)]
    sync(columns.root)
    assert sorted(tables.points()) == expected_points(directory)
    active = "from runs r join tags t using (run_uuid) where r.lifecycle_stage = 'active'"
    assert tables.query(f"select count(distinct run_uuid) {active}") == before
    parents = tables.query(f"select distinct t.value {active} and t.key = 'mlflow.parentRunId'")
    assert parents == tables.query(f"select r.run_uuid {active} and t.value = 'm=8'")
    trash = "select model_id from logged_models where lifecycle_stage = 'deleted'"
    assert tables.query(trash) == [(it,) for it in late]


def live(directory: Path, epochs: tuple[int, ...], late_s: float = 0.0) -> None:
    """Logs some epochs of a column as its mirror does, an epoch a second from 2026-01-02 on."""
    column = read_column(directory)
    mirror = LiveColumn(column.info)
    for run in column.runs:
        for row in run.rows:
            if (epoch := int(row["epoch"])) in epochs:
                when = 1767323045 + epoch + late_s
                mirror.add({"run": asdict(run.info), "row": row, "time": when})
    mirror.flush(open_store())


def test_time_goes_on_with_the_epochs_after_an_outage(
    columns: Any, tables: Any, expected_points: Any
) -> None:
    directory = columns.write(8)  # a run takes 12 s by its files
    live(directory, (1, 2, 5), late_s=100)
    logged = "select run_uuid, key, step, timestamp from metrics order by 1, 2, 3, 4"
    before = set(tables.query(logged))
    sync(directory)
    assert sorted(tables.points()) == expected_points(directory)
    assert before <= set(tables.query(logged))
    for this, after in itertools.pairwise(tables.query(logged)):
        assert this[:2] != after[:2] or this[3] <= after[3]
    late = "select count(*) from runs r join metrics m using (run_uuid) where timestamp > end_time"
    assert tables.query(late) == [(0,)]


def test_a_request_that_arrives_late_doubles_nothing(
    columns: Any, tables: Any, expected_points: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    directory = columns.write(8)
    live(directory, (1, 2))
    real, late = MlflowClient.log_batch, [(3, 4)]

    def slow(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if late:
            live(directory, late.pop(), late_s=0.5)

    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    monkeypatch.setattr(
        "smallbatch.tracking.live_process.exclusive", lambda *_, **__: nullcontext()
    )
    sync(directory)
    assert not late
    assert sorted(tables.points()) == expected_points(directory)
    assert sync(directory).unchanged == 5


def test_long_runs_exceed_one_request(columns: Any, tables: Any, expected_points: Any) -> None:
    directory = columns.write(8, base_lrs=(2.0**-6,), seeds=1, epochs=300)
    sync(columns.root)
    assert sorted(tables.points()) == expected_points(directory)


def test_the_environment_names_the_store(
    columns: Any, tables: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = workplace / "elsewhere.db"
    shutil.copy(workplace / "mlflow.db", elsewhere)  # to make one takes seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    columns.write(8, base_lrs=(2.0**-6,), seeds=1)
    sync(columns.root)
    assert tables.of(elsewhere).points()
    assert not tables.points()


def test_nothing_found_needs_no_store(workplace: Path) -> None:
    (workplace / "mlflow.db").unlink()
    assert sync(workplace) == SyncReport()
    assert not (workplace / "mlflow.db").exists()


def test_bad_paths_files_and_stores_are_named(columns: Any, workplace: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        sync(workplace / "nowhere")
    directory = columns.write(8)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: found bogus://x, where"):
        sync(directory, "bogus://x")
    runs = (directory / "runs.json").read_text()
    (directory / "runs.json").write_text('{"protocol": 1}')
    with pytest.raises(UserError, match=r"runs\.json: damaged, dataset: Field required"):
        sync(directory)
    (directory / "runs.json").write_text(runs)
    (directory / "history.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match=r"history\.parquet"):
        sync(directory)


def test_an_absent_server_is_reported_soon(columns: Any) -> None:
    columns.write(8)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 cannot be used"):
        sync(columns.root, "http://127.0.0.1:9")
    assert time.monotonic() - started < 15


@pytest.mark.slow
def test_several_processes_open_a_fresh_database(
    columns: Any, tables: Any, workplace: Path
) -> None:
    (workplace / "mlflow.db").unlink()
    directories = [columns.write(m, seeds=1) for m in (2, 4, 8)]
    program = (
        "import sys; from pathlib import Path; from smallbatch.tracking import sync\n"
        "print(sync(Path(sys.argv[1])).runs_created)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory)],
            env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for directory in directories
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in answers] == ["3"] * 3, answers
    assert tables.query("pragma journal_mode") == [("wal",)]
    assert tables.query("select count(*) from runs") == [(9,)]


@pytest.mark.slow
def test_a_real_server_over_http(
    columns: Any,
    start_server: Callable[[str], Any],
    expected_points: Any,
    tables: Any,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow.artifacts

    from smallbatch.tracking.store import open_store

    directory = columns.write(8, diverged=(2.0**-3,))
    server = start_server("server")
    report = sync(columns.root, server.uri.replace("://", "://u:S3cretPw@"))
    assert report.runs_created == 5
    store = open_store(server.uri)
    experiment = store.client.get_experiment_by_name("digits/study")
    assert experiment is not None
    runs = store.client.search_runs([experiment.experiment_id])
    found = [
        (run.data.tags["smallbatch.run"], metric.key, metric.step, metric.value)
        for run in runs
        if "smallbatch.run" in run.data.tags
        for key in run.data.metrics
        for metric in store.client.get_metric_history(run.info.run_id, key)
    ]
    assert sorted(found) == expected_points(directory)
    uri = next(run.data.tags["smallbatch.model"] for run in runs if run.info.run_name == "m=8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = mlflow.artifacts.download_artifacts(uri, dst_path=str(workplace / "copy"))
    assert (Path(folder) / "data" / "data" / "weights.safetensors").exists()
    assert sync(columns.root, server.uri).unchanged == 5
    columns.write(8, seeds=1)
    report = sync(columns.root, server.uri)
    assert (report.runs_created, report.runs_discarded) == (2, 4)
    left = store.client.search_runs([experiment.experiment_id])
    assert [run.data.metrics["runs_diverged"] for run in left if run.info.run_name == "m=8"] == [0]
    assert len(left) == 3
    assert len(store.client.search_logged_models([experiment.experiment_id])) == 1
    assert sync(columns.root, server.uri).unchanged == 3
    columns.write(8, seeds=1, epochs=1)  # other settings
    assert sync(columns.root, server.uri).runs_created == 3
    marked = store.client.search_runs([experiment.experiment_id], f"tags.{MARK} LIKE '%'")
    assert {run.info.run_id for run in marked} == {run.info.run_id for run in left}
    assert not tables.points()
    kept = [path.read_bytes() for path in workplace.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert not [content for content in kept if b"S3cretPw" in content]


def test_a_database_whose_initialisation_was_killed_is_begun_anew(
    columns: Any, tables: Any, workplace: Path
) -> None:
    (workplace / "mlflow.db").unlink()
    half = workplace / "mlflow.db.new"
    with closing(sqlite3.connect(half)) as connection:
        connection.execute("create table _alembic_tmp_experiments (experiment_id integer)")
        connection.execute("create table experiments (experiment_id integer)")
    columns.write(8)
    assert sync(columns.root).runs_created == 5
    assert not half.exists()
    assert tables.query("select count(*) from runs") == [(5,)]


@pytest.mark.parametrize("made", ["by a process that was killed", "meanwhile"])
def test_what_the_creation_of_a_database_left_goes_with_the_next(
    made: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, database = workplace / "mlflow.db.new", workplace / "mlflow.db"
    before = database.read_bytes()
    if made == "meanwhile":  # by a program without our lock, such as MLflow's own server
        from smallbatch.tracking import store

        shutil.move(database, aside)
        monkeypatch.setattr(store, "_make_tables", lambda _: shutil.copy(aside, database))
        monkeypatch.setattr(store, "_remove", Path.unlink)
        store._create_sqlite(database, aside)
    else:
        aside.write_bytes(b"half")
        aside.with_name(f"{aside.name}-journal").write_bytes(b"half")
        open_store()
    assert database.read_bytes()[:4096] == before[:4096]
    assert [path.name for path in workplace.glob("*.new*")] == []


def test_git_ignores_a_database_that_is_being_made() -> None:
    names = ["mlflow.db", "mlflow.db.new", "mlflow.db.new-journal", "mlflow.db-wal"]
    done = subprocess.run(
        ["git", "check-ignore", *names], cwd=SOURCE.parent, capture_output=True, text=True
    )
    if done.returncode == 128:
        pytest.skip(done.stderr)
    assert done.stdout.split() == names


def test_a_database_that_is_none_is_refused_in_one_line(columns: Any, workplace: Path) -> None:
    columns.write(8)
    for content in (b"no database", b"SQLite format 3\0" + b"\xff" * 4096):
        (workplace / "mlflow.db").write_bytes(content)
        with pytest.raises(UserError, match=r"mlflow\.db cannot be used: ") as caught:
            sync(columns.root)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
@pytest.mark.parametrize("name", ["mlflow.db", "mlartifacts", "mlartifacts/digits"])
def test_nothing_is_logged_through_a_link_that_another_user_planted(
    name: str, columns: Any, workplace: Path
) -> None:
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    elsewhere = workplace / "elsewhere"
    link = workplace / name
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    os.lchown(link, 65534, 65534)
    with pytest.raises(UserError, match=f"{name}: a link that another user made, to {elsewhere}"):
        sync(columns.root)
    assert not elsewhere.exists()
    os.lchown(link, 0, 0)
    if name != "mlflow.db":
        elsewhere.mkdir()
    assert sync(columns.root).runs_created == 2


def test_a_run_that_was_trained_apart_has_tags_of_its_own_environment(
    columns: Any, tables: Any
) -> None:
    directory = columns.write(8, base_lrs=(2.0**-6,), seeds=2)
    path = directory / "timing.json"
    timing = json.loads(path.read_text())
    del timing["environment"]["git_commit"], timing["environment"]["git_dirty"]
    own = [{"git_commit": "old", "git_dirty": True}, {"git_commit": "new", "git_dirty": False}]
    for clock, environment in zip(timing["runs"].values(), own, strict=True):
        clock["environment"] = environment
    path.write_text(json.dumps(timing))
    sync(directory)
    found = tables.query(
        "select r.name, t.value, d.value from runs r "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.source.git.commit' "
        "left join tags d on d.run_uuid = r.run_uuid and d.key = 'smallbatch.git_dirty' "
        "order by r.name"
    )
    names = ["m=8", "m=8 η̃=2^-6 seed 0", "m=8 η̃=2^-6 seed 1"]
    values = [(None, None), ("old", "true"), ("new", "false")]
    assert found == [(name, *value) for name, value in zip(names, values, strict=True)]
    assert sync(directory).unchanged == 3
