"""Results that took the place of others: MLflow shows what a fresh store would, and no more."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from smallbatch.tracking.live_process import LiveColumn
from smallbatch.tracking.records import read_column
from smallbatch.tracking.store import open_store
from tests.tracking.conftest import Columns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tracking.conftest import Tables

LOW, HIGH = 2.0**-6, 2.0**-3

_RUNS = """
    select r.run_uuid, r.name, r.status, r.start_time, r.end_time, p.name from runs r
    left join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'
    left join runs p on p.run_uuid = t.value and p.lifecycle_stage = 'active'
    where r.lifecycle_stage = 'active'
"""
_MODELS = """
    select m.model_id, m.name, m.status, r.run_uuid from logged_models m
    left join runs r on r.run_uuid = m.source_run_id and r.lifecycle_stage = 'active'
    where m.lifecycle_stage = 'active'
"""


def shown(tables: Tables) -> list[Any]:
    """What a store shows: all of its runs and models that are not in the trash, without ids."""
    found: list[Any] = []
    ids: dict[str, str] = {}
    for uuid, name, status, start, end, parent in tables.query(_RUNS):
        ids[uuid] = name
        of_run = f"where run_uuid = '{uuid}'"
        tags = dict(tables.query(f"select key, value from tags {of_run}"))
        tags.pop("smallbatch.place", None)
        child = tags.pop("mlflow.parentRunId", None)
        latest = tables.query(f"select key, value, step, timestamp from latest_metrics {of_run}")
        logged = tables.query(f"select key, value, step, timestamp from metrics {of_run}")
        params = tables.query(f"select key, value from params {of_run}")
        if child is None:
            model = tags.pop("smallbatch.model").removeprefix("models:/")
            outputs = "select destination_id from inputs where destination_type = 'MODEL_OUTPUT'"
            own = tables.query(f"{outputs} and source_id = '{uuid}'")
            live = [it for it, *_ in tables.query(_MODELS)]
            assert (own == []) if model == "none" else (own == [(model,)] and model in live)
        lists = map(sorted, (tags.items(), latest, logged, params))
        found.append((name, status, start, end, child is None, parent, *lists))
    for model, name, status, run in tables.query(_MODELS):
        of_model = f"where model_id = '{model}'"
        tags = tables.query(f"select tag_key, tag_value from logged_model_tags {of_model}")
        params = tables.query(f"select param_key, param_value from logged_model_params {of_model}")
        found.append((name, status, ids.get(run), sorted(tags), sorted(params)))
    return sorted(found, key=repr)


@pytest.fixture(scope="module")
def remembered() -> dict[str, Any]:
    return {}


@pytest.fixture
def fresh(
    workplace: Path,
    initialised_database: Path,
    columns: Columns,
    tables: Tables,
    remembered: dict[str, Any],
) -> Callable[[str], Any]:
    """What a store shows that has seen nothing but these results."""

    def of(name: str) -> Any:
        if name not in remembered:
            shutil.copy(initialised_database, workplace / "fresh.db")
            RESULTS[name](columns)
            sync(columns.root, f"sqlite:///{workplace / 'fresh.db'}")
            remembered[name] = shown(tables.of(workplace / "fresh.db"))
        return remembered[name]

    return of


def elsewhere(directory: Path, *, seconds: float) -> Path:
    """Edits `timing.json` as if the column had been trained later, on another machine."""
    path = directory / "timing.json"
    timing = json.loads(path.read_text())
    timing["environment"] |= {"gpu": "a GPU", "git_commit": "deadbeef", "platform": "Linux"}
    timing["column"]["seconds"] = seconds
    del timing["column"]["images_per_second"]
    path.write_text(json.dumps(timing))
    return directory


def later(directory: Path) -> Path:
    path = elsewhere(directory, seconds=7.0) / "timing.json"
    path.write_text(path.read_text().replace("2026-01-02", "2026-05-02"))
    return directory


RESULTS: dict[str, Callable[[Columns], Path]] = {
    "some": lambda it: it.write(8, base_lrs=(LOW,), epochs=2),
    "more": lambda it: it.write(8, base_lrs=(LOW, HIGH), epochs=2, seeds=3),
    "others": lambda it: elsewhere(it.write(8, base_lrs=(LOW,), epochs=2, salt=1), seconds=7.0),
    "later": lambda it: later(it.write(8, base_lrs=(LOW,), epochs=2, salt=1)),
    "equal": lambda it: elsewhere(it.write(8, base_lrs=(LOW,), epochs=2, figure=None), seconds=7.0),
    "diverged": lambda it: it.write(8, base_lrs=(LOW,), epochs=2, diverged=(LOW,), timing=False),
}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("more", "some"),
        ("later", "some"),
        ("equal", "some"),
        ("some", "diverged"),
    ],
)
def test_results_that_were_put_back_are_all_that_shows(
    before: str, now: str, columns: Any, tables: Any, fresh: Callable[[str], Any]
) -> None:
    for name in (before, now):
        RESULTS[name](columns)
        sync(columns.root)
    assert shown(tables) == fresh(now)
    content = tables.content()
    report = sync(columns.root)
    assert (report.runs_created, report.runs_updated, report.runs_discarded) == (0, 0, 0)
    assert tables.content() == content


CUTS = (
    ("set_tag", "is taken back"),
    ("delete_logged_model", "is taken back"),
    ("delete_run", "goes on"),
    ("create_run", "is taken back"),
    ("log_outputs", "is taken back"),
    ("set_terminated", "goes on"),
)


def test_a_replacement_that_was_cut_short_goes_on_or_is_taken_back(
    columns: Any, tables: Any, fresh: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    there, other = "some", "others"
    RESULTS[there](columns)
    sync(columns.root)
    for call, then in CUTS:
        real = getattr(MlflowClient, call)

        def cut(self: Any, *args: Any, real: Any = real, **kwargs: Any) -> None:
            real(self, *args, **kwargs)
            raise KeyboardInterrupt

        RESULTS[other](columns)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, cut)
            with pytest.raises(KeyboardInterrupt):
                sync(columns.root)
        if then == "goes on":
            there, other = other, there
        RESULTS[there](columns)
        sync(columns.root)
        assert shown(tables) == fresh(there), call


def test_a_live_training_hides_no_results_that_are_put_back(
    columns: Any, tables: Any, fresh: Callable[[str], Any]
) -> None:
    RESULTS["some"](columns)
    sync(columns.root)
    column = read_column(RESULTS["others"](columns))
    mirror = LiveColumn(column.info)
    for run in column.runs:
        mirror.add({"run": asdict(run.info), "row": run.rows[0], "time": 1777777777.0})
    mirror.flush(open_store())
    assert tables.query("select name from runs where status = 'RUNNING'") == [("m=8",)]
    RESULTS["some"](columns)
    sync(columns.root)
    assert shown(tables) == fresh("some")


def marked(tables: Tables) -> set[tuple[str, str]]:
    """The runs and models that are marked: the ids of their columns' runs, and their names."""
    mark = "'smallbatch.superseded'"
    runs = tables.query(
        f"select coalesce(p.value, r.run_uuid), r.name from runs r join tags t using (run_uuid) "
        f"left join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId' "
        f"where t.key = {mark}"
    )
    models = "select m.source_run_id, m.name from logged_models m join logged_model_tags t "
    return {*runs, *tables.query(f"{models} using (model_id) where t.tag_key = {mark}")}  # type: ignore[arg-type]


def test_other_settings_in_the_same_folder_are_marked(columns: Any, tables: Any) -> None:
    colleague = Columns(columns.root.parent / "colleague")
    colleague.write(8, base_lrs=(0.5,), seeds=1, epochs=3)
    sync(colleague.root)
    client = open_store().client
    client.create_run("1", tags={"smallbatch.place": "unknown"}, run_name="a stranger's")

    def write(epochs: int) -> str:
        columns.write(8, base_lrs=(0.5,), seeds=1, epochs=epochs)
        sync(columns.root)
        parents = "select r.run_uuid from runs r join params p using (run_uuid) where r.name"
        return tables.query(f"{parents} = 'm=8' and p.key = 'epochs' and value = '{epochs}'")[0][0]

    def of(parent: str) -> set[tuple[str, str]]:
        return {(parent, name) for name in ("m=8", "m=8 η̃=2^-1 seed 0", "best")}

    short = write(1)
    assert marked(tables) == set()
    long = write(2)
    assert marked(tables) == of(short)
    assert write(1) == short
    assert marked(tables) == of(long)
    before = tables.content()
    assert sync([columns.root, colleague.root]).unchanged == 4
    assert tables.content() == before
    assert tables.query("select count(*) from runs where lifecycle_stage = 'deleted'") == [(0,)]


def test_one_column_in_two_folders_is_logged_once(columns: Any, tables: Any) -> None:
    first = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    copy = shutil.copytree(first, columns.root / "copy" / "m8")
    sync(columns.root)
    assert tables.query("select count(*) from runs") == [(2,)]
    Columns(columns.root).write(8, base_lrs=(0.5,), seeds=2, epochs=1)
    with pytest.raises(UserError, match=f"{copy}: holds runs of .* that {first} holds too"):
        sync(columns.root)
    assert tables.query("select count(*) from runs") == [(2,)]


def test_a_column_that_was_moved_aside_is_not_superseded(columns: Any, tables: Any) -> None:
    first = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    sync(columns.root)
    first.rename(columns.root / "digits/z-old")
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=2)
    sync(columns.root)
    assert marked(tables) == set()
