"""What a store holds of results that are no longer those on disk: it goes, or is marked.

Other results of the same column go to MLflow's trash. Those of other settings that lay in the same
folder stay, to be compared with, but carry the tag `smallbatch.superseded`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smallbatch.tracking import entries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mlflow.entities import LoggedModel, Run

    from smallbatch.tracking.records import ColumnInfo, TrackedColumn
    from smallbatch.tracking.store import Store


def is_outdated(store: Store, parent: Run, column: TrackedColumn) -> bool:
    """Whether a column's run shows anything of other results than those on disk."""
    tags, true = parent.data.tags, {it.key: it.value for it in entries.column_points(column)}
    if tags.get(entries.SUPERSEDED) == entries.DISCARDED or any(
        key not in true or not math.isclose(value, true[key], rel_tol=1e-9)
        for key, value in parent.data.metrics.items()
        if key in entries.COLUMN_METRICS
    ):
        return True
    if entries.SYNCED in tags:
        ended_ms = max(column.ended_ms, parent.info.start_time)
        return tags[entries.SYNCED] != column.digest or parent.info.end_time != ended_ms
    # A replay of other results, cut short, may have come as far as the model.
    digest = column.best.digest if column.best else None
    logged = models(store, parent.info.experiment_id, parent.info.run_id)
    return any(it.tags[entries.SYNCED] != digest for it in logged)


def discard(store: Store, run: Run) -> None:
    """Move an MLflow run to the trash, and a column's models with it."""
    run_id = run.info.run_id
    if entries.RUN not in run.data.tags:
        # The mark comes first: a column that was discarded by half is then not taken for whole.
        store.client.set_tag(run_id, entries.SUPERSEDED, entries.DISCARDED)
        for model in models(store, run.info.experiment_id, run_id):
            store.client.delete_logged_model(model.model_id)
    store.client.delete_run(run_id)


def restore_deleted(store: Store, experiment_id: str, columns: Iterable[ColumnInfo]) -> None:
    """Take columns' own runs out of the trash that somebody else than :func:`discard` put there.

    Their models are not in the trash, and would stay beside those that are logged anew.
    """
    from mlflow.entities import ViewType

    own = {(column.key, place) for column in columns for place in (column.place, "")}
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [experiment_id],
            f"tags.`{entries.MODEL}` LIKE 'models:/%'",
            ViewType.DELETED_ONLY,
            page_token=token,
        )
        for run in page:
            tags = run.data.tags
            if (
                (tags.get(entries.COLUMN), tags.get(entries.PLACE, "")) in own
                and tags.get(entries.SUPERSEDED) != entries.DISCARDED
            ):  # fmt: skip
                store.client.restore_run(run.info.run_id)
        token = page.token
        if not token:
            return


def supersede(
    store: Store, experiment_id: str, place: str, key: str, present: Collection[str] = ()
) -> None:
    """Mark the columns of other keys whose results lay in a folder before, with all they have.

    Args:
        store: The store.
        experiment_id: The experiment.
        place: The folder's tag.
        key: The key of the column that is there now.
        present: Keys of columns that lie elsewhere now, which are left alone.
    """
    client = store.client
    # Runs have no such tag as MODEL, but only columns that were complete.
    complete = f"tags.`{entries.PLACE}` = '{place}' AND tags.`{entries.MODEL}` LIKE '%'"
    for parent in client.search_runs([experiment_id], complete):
        other, parent_id = parent.data.tags.get(entries.COLUMN, key), parent.info.run_id
        if other == key or other in present:
            continue
        # The parent comes first, as only a marked one has its marks removed if it comes back.
        runs = client.search_runs(
            [experiment_id], f"tags.`{entries.PARENT}` = '{parent_id}'", max_results=5000
        )
        for run in [parent, *runs]:
            if entries.SUPERSEDED not in run.data.tags:
                client.set_tag(run.info.run_id, entries.SUPERSEDED, key)
        for model in models(store, experiment_id, parent_id):
            if entries.SUPERSEDED not in model.tags:
                client.set_logged_model_tags(model.model_id, {entries.SUPERSEDED: key})


def models(store: Store, experiment_id: str, parent_id: str) -> list[LoggedModel]:
    """The models that were logged for a column, but none that somebody added to its run."""
    # The status cannot be in the filter: MLflow compares the word with a number, which is false in
    # sqlite and an error in PostgreSQL.
    found = store.client.search_logged_models([experiment_id], f"source_run_id = '{parent_id}'")
    return [it for it in found if entries.SYNCED in it.tags]
