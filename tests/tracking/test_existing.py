"""One column in two folders that log to one store: neither touches what the other logged."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from smallbatch.tracking import SyncReport, sync
from smallbatch.tracking.live_process import LiveColumn
from smallbatch.tracking.records import read_column
from smallbatch.tracking.store import open_store
from tests.tracking.conftest import Columns
from tests.tracking.test_superseded import marked, shown

if TYPE_CHECKING:
    from tests.tracking.conftest import Tables

HALF, QUARTER = 0.5, 0.25
ACTIVE = "select run_uuid from runs where lifecycle_stage = 'active'"
TRASH = "select name from runs where lifecycle_stage = 'deleted'"


def write(columns: Columns, *base_lrs: float, **changed: Any) -> Columns:
    settings: dict[str, Any] = {"seeds": 1, "epochs": 1, **changed}
    columns.write(8, base_lrs=base_lrs, **settings)
    return columns


@pytest.fixture
def other(columns: Columns) -> Columns:
    """The folder of another project, or of a copy that DVC made for an experiment."""
    return Columns(columns.root.parent / "other")


def train(columns: Columns) -> None:
    """Log a column as a training does: live, and then from its files."""
    column = read_column(columns.root / "digits/study/m8")
    mirror = LiveColumn(column.info)
    for run in column.runs:
        mirror.add({"run": asdict(run.info), "row": run.rows[0], "time": 1777777777.0})
    mirror.flush(open_store())
    sync(columns.root)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("base_lrs", "theirs"),
    [((QUARTER,), {}), ((HALF,), {}), ((HALF, QUARTER), {"salt": 1}), ((HALF,), {"seeds": 2})],
)
def test_what_another_folder_logged_stays(
    base_lrs: tuple[float, ...],
    theirs: dict[str, Any],
    old: bool,
    columns: Columns,
    other: Columns,
    tables: Tables,
) -> None:
    sync(write(columns, HALF, QUARTER).root)
    if old:  # a version that noted the folder at the column's own run alone
        client = open_store().client
        for run in client.search_runs(["1"]):
            if "smallbatch.run" in run.data.tags and "smallbatch.place" in run.data.tags:
                client.delete_tag(run.info.run_id, "smallbatch.place")
    before = tables.content()
    write(other, *base_lrs, **theirs)
    train(other)
    after = tables.content()
    assert all(set(rows) <= set(after[name]) for name, rows in before.items())
    sync(columns.root)
    content = tables.content()
    for folder, runs in ((columns, 3), (other, len(tables.query(ACTIVE)) - 3)):
        assert sync(folder.root) == SyncReport(1, unchanged=runs)
    assert tables.content() == content
    assert not tables.query(TRASH)


def test_equal_results_of_another_folder_are_logged_once(
    columns: Columns, other: Columns, tables: Tables
) -> None:
    train(write(columns, HALF))
    before, ids = shown(tables), tables.query(ACTIVE)
    content = tables.content()
    assert sync(write(other, HALF).root) == SyncReport(1, unchanged=2)
    assert tables.content() == content
    sync(write(other, HALF, salt=1).root)
    assert len(tables.query(ACTIVE)) == 4
    assert sync(write(other, HALF).root) == SyncReport(1, unchanged=2, runs_discarded=2)
    train(other)
    assert (shown(tables), tables.query(ACTIVE)) == (before, ids)
    assert sync(columns.root) == SyncReport(1, unchanged=2)


def test_a_column_that_its_folder_gave_up_goes_to_the_one_that_has_it(
    columns: Columns, other: Columns, tables: Tables
) -> None:
    sync(write(columns, HALF).root)
    before = shown(tables)
    sync(write(other, HALF).root)
    sync(write(columns, HALF, epochs=2).root)
    assert len(marked(tables)) == 3
    sync(other.root)
    assert not marked(tables)
    assert all(it in shown(tables) for it in before)
    for folder in (columns, other):
        assert sync(folder.root) == SyncReport(1, unchanged=2)
    assert not marked(tables)
    assert not tables.query(TRASH)


CALLS = ("create_run", "log_batch", "log_outputs", "set_terminated", "set_tag", "delete_run")


def test_a_sync_that_was_cut_short_leaves_the_other_folder_alone(
    columns: Columns, other: Columns, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    sync(write(columns, HALF).root)
    before = tables.query(f"{ACTIVE} order by 1")
    sync(write(other, QUARTER).root)
    for salt, call in enumerate(CALLS, 1):
        real = getattr(MlflowClient, call)

        def cut(self: Any, *args: Any, real: Any = real, **kwargs: Any) -> None:
            real(self, *args, **kwargs)
            raise KeyboardInterrupt

        write(other, QUARTER, salt=salt)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, cut)
            with pytest.raises(KeyboardInterrupt):
                sync(other.root)
        assert sync(columns.root) == SyncReport(1, unchanged=2), call
        sync(other.root)
        assert sync(other.root) == SyncReport(1, unchanged=2), call
    write(other, HALF)
    sync(other.root)
    assert tables.query(f"{ACTIVE} order by 1") == before


def test_of_two_folders_that_logged_the_same_at_once_one_remains(
    columns: Columns, other: Columns, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(write(columns, HALF).root)
    with monkeypatch.context() as patch:
        patch.setattr("smallbatch.tracking.existing.Found.elsewhere", lambda *_: [])
        sync(write(other, HALF).root)
    assert len(tables.query(ACTIVE)) == 4
    for _ in range(2):
        for folder in (columns, other):
            sync(folder.root)
    assert len(tables.query(ACTIVE)) == 2
    assert len(tables.query(TRASH)) == 2
