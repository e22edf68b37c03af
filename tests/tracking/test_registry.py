"""The best model of a study in the registry: once, under one alias, as `metrics.json` has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from smallbatch.analysis.evaluation import evaluate
from smallbatch.errors import UserError
from smallbatch.tracking import registry, sync

VERSIONS = "select version, source, status from model_versions order by version"
ALIASES = "select name, alias, version from registered_model_aliases"


def best_in_metrics(root: Path) -> tuple[int, float, float]:
    evaluate(root, root.parent / "evaluation")
    content = (root.parent / "evaluation/metrics.json").read_text()
    best = json.loads(content)
    return best["study.batch_size"], best["study.base_lr"], best["study.accuracy"]


def best_in_registry(tables: Any) -> tuple[int, float, float]:
    [(name, alias, version)] = tables.query(ALIASES)
    assert (name, alias) == ("digits-study", "best")
    tags = dict(
        tables.query(f"select key, value from model_version_tags where version = {version}")
    )
    model = tags["smallbatch.model"].removeprefix("models:/")
    [(source,)] = tables.query(f"select source from model_versions where version = {version}")
    [(place,)] = tables.query(
        f"select artifact_location from logged_models where model_id = '{model}'"
    )
    assert source == place
    metrics = dict(
        tables.query(
            f"select metric_name, metric_value from logged_model_metrics where model_id = '{model}'"
        )
    )
    assert metrics["best_base_lr"] == 2.0 ** float(tags["log2_base_lr"])
    return int(tags["batch_size"]), metrics["best_base_lr"], metrics["best_accuracy"]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_it_is_the_one_of_metrics_json(columns: Any, tables: Any, seeds: int) -> None:
    for m in (2, 8, 32):
        columns.write(m, seeds=seeds, epochs=24)
    sync(columns.root)
    m, base_lr, accuracy = best_in_registry(tables)
    assert (m, base_lr, accuracy) == pytest.approx(best_in_metrics(columns.root), abs=1e-6)


def test_versions_do_not_pile_up_and_the_alias_moves_with_the_best(
    columns: Any, tables: Any
) -> None:
    seen: list[int] = []
    for salt in range(4):
        directory = columns.write(8, salt=salt)
        sync(directory)
        before = tables.query(VERSIONS)
        sync(columns.root)
        sync(directory)
        assert tables.query(VERSIONS) == before
        assert best_in_registry(tables) == pytest.approx(best_in_metrics(columns.root), abs=1e-6)
        seen.append(len(before))
    assert seen == [1, 2, 3, 4]  # each training gave another model


def test_it_is_registered_in_another_database_than_that_of_the_environment(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns.write(8)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    sync(columns.root, "sqlite:///mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert best_in_registry(tables) == pytest.approx(best_in_metrics(columns.root), abs=1e-6)


def test_a_column_that_is_logged_alone_is_compared_with_those_beside_it(
    columns: Any, tables: Any
) -> None:
    directories = [columns.write(m) for m in (2, 8, 32)]
    for directory in directories:
        sync(directory)
    assert best_in_registry(tables) == pytest.approx(best_in_metrics(columns.root), abs=1e-6)


def test_in_a_copied_project_the_alias_follows_the_copys_columns(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for m in (2, 8, 32):
        columns.write(m)
    sync(columns.root)
    best, *_ = best_in_registry(tables)
    copy = columns.root.parent / "copy" / columns.root.name
    shutil.copytree(columns.root, copy)
    [gone] = [it.parent for it in copy.rglob("runs.json") if it.parent.name == f"m{best}"]
    shutil.rmtree(gone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').absolute()}")
    monkeypatch.chdir(copy.parent)
    assert sync(copy).runs_created == 0
    assert best_in_registry(tables) == pytest.approx(best_in_metrics(copy), abs=1e-6)


def test_the_copy_of_an_experiment_moves_no_alias(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(columns.write(8))
    before = tables.query(VERSIONS), tables.query(ALIASES)
    directory = columns.write(8, salt=1)
    copy = Path(".dvc/tmp/exps/standalone/tmp1").absolute()
    shutil.copytree(columns.root, copy / "models")
    monkeypatch.chdir(copy)
    assert sync(Path("models")).runs_created > 0
    assert (tables.query(VERSIONS), tables.query(ALIASES)) == before
    monkeypatch.chdir(columns.root.parent)
    assert sync(directory).runs_discarded > 0
    assert len(tables.query(VERSIONS)) == 2  # once its results are the project's own


@pytest.mark.parametrize("code", ["ENDPOINT_NOT_FOUND", "PERMISSION_DENIED", "INTERNAL_ERROR"])
def test_a_server_without_a_registry_fails_nothing_and_a_fault_is_told(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("not today", ErrorCode.Value(code))

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "get_registered_model", refuse)
        if code == "INTERNAL_ERROR":
            with pytest.raises(UserError, match="not today"):
                sync(columns.write(8))
        else:
            assert sync(columns.write(8)).runs_created == 5
    assert tables.query(VERSIONS) == []
    sync(columns.root)
    assert len(tables.query(VERSIONS)) == 1


def test_a_model_of_somebody_else_with_that_name_stays(columns: Any, tables: Any) -> None:
    from smallbatch.tracking.store import open_store

    open_store().client.create_registered_model("digits-study", description="mine")
    sync(columns.write(8))
    assert tables.query(VERSIONS) == tables.query(ALIASES) == []


def test_names_have_no_slash(columns: Any) -> None:
    from smallbatch.tracking.records import read_column

    assert registry.model_name(read_column(columns.write(8)).info) == "digits-study"


BESTS = "select source_run_id, name from logged_models where lifecycle_stage = 'active'"
PARENTS = (
    "select r.run_uuid from runs r where r.lifecycle_stage = 'active' and not exists (select 1 "
    "from tags t where t.run_uuid = r.run_uuid and t.key = 'smallbatch.run')"
)


@pytest.mark.parametrize("salt", [0, 1])
def test_of_a_column_deleted_by_hand_there_is_one_best(
    columns: Any, tables: Any, salt: int
) -> None:
    """Its model is not in the trash. With other results by then, it goes there."""
    from smallbatch.tracking.store import open_store

    directory = columns.write(8)
    sync(directory)
    [(parent,)] = tables.query(PARENTS)
    open_store().client.delete_run(parent)
    columns.write(8, salt=salt)
    sync(directory)
    [(now,)] = tables.query(PARENTS)
    assert (now == parent) == (salt == 0)
    assert tables.query(BESTS) == [(now, "best")]
    assert len(tables.query(VERSIONS)) == 1 + salt
    assert best_in_registry(tables) == pytest.approx(best_in_metrics(columns.root), abs=1e-6)
    assert sync(directory).unchanged == 5


def test_a_second_best_that_lies_there_already_goes(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from smallbatch.tracking.store import open_store

    directory = columns.write(8)
    sync(directory)
    [(parent,)] = tables.query(PARENTS)
    open_store().client.delete_run(parent)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "restore_run", lambda *_: None)
        sync(directory)
    assert len(tables.query(BESTS)) == 2
    sync(directory)
    [(now,)] = tables.query(PARENTS)
    assert tables.query(BESTS) == [(now, "best")]
    assert sync(directory).unchanged == 5
