"""What an experiment contains already, told apart by column and by the folder that it is from.

Two folders may hold the same column with other grids or results: two projects that log to one
server, or a copy that `dvc exp run --temp` made. What one of them logged is no business of the
other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smallbatch.tracking import entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow.entities import Run

    from smallbatch.tracking.records import ColumnInfo, TrackedColumn
    from smallbatch.tracking.store import Store


@dataclass
class Existing:
    """The MLflow runs of one column of one folder.

    Attributes:
        parent: The column's own run.
        runs: Its runs, by hash.
        doubled: Further MLflow runs for the same column or run. They arise when a slow
            server answers too late: the request is repeated, and the server carries out both.
    """

    parent: Run | None = None
    runs: dict[str, Run] = field(default_factory=dict[str, "Run"])
    doubled: list[Run] = field(default_factory=list["Run"])

    def __iter__(self) -> Iterator[Run]:
        """All MLflow runs, the column's own first."""
        yield from [self.parent] if self.parent else []
        yield from [*self.runs.values(), *self.doubled]

    def add(self, run: Run) -> None:
        """Add an MLflow run; of equal ones, a complete one is kept, otherwise the first."""
        run_hash = run.data.tags.get(entries.RUN)
        held = self.parent if run_hash is None else self.runs.get(run_hash)
        if held is not None:
            if entries.SYNCED in held.data.tags or entries.SYNCED not in run.data.tags:
                held, run = run, held
            self.doubled.append(held)
        if run_hash is None:
            self.parent = run
        else:
            self.runs[run_hash] = run

    def shows(self, column: TrackedColumn) -> bool:
        """Whether a column's results are here, and whole."""
        shown = {run_hash: run.data.tags.get(entries.SYNCED) for run_hash, run in self.runs.items()}
        return (
            self.parent is not None
            and self.parent.data.tags.get(entries.SYNCED) == column.digest
            and self.parent.data.tags.get(entries.SUPERSEDED) != entries.DISCARDED
            and shown == {run.info.run: run.digest for run in column.runs}
        )

    @property
    def superseded(self) -> bool:
        """Whether its folder has other settings now."""
        return self.parent is not None and entries.SUPERSEDED in self.parent.data.tags

    @property
    def rank(self) -> tuple[bool, str]:
        """The smallest is the one to keep of equal ones, whichever folder asks."""
        return self.superseded, self.parent.info.run_id if self.parent else ""


class Found:
    """The columns of an experiment.

    Args:
        runs: Its MLflow runs, or all that have the key of one column.
    """

    def __init__(self, runs: Iterable[Run]):
        runs = list(runs)
        self._columns: dict[tuple[str, str], Existing] = {}
        places = {run.info.run_id: run.data.tags.get(entries.PLACE, "") for run in runs}
        for run in runs:
            tags = run.data.tags
            if entries.COLUMN in tags:
                # Older versions said at a column's own run alone where it is from.
                place = places[run.info.run_id] or places.get(tags.get(entries.PARENT, ""), "")
                self._columns.setdefault((tags[entries.COLUMN], place), Existing()).add(run)

    def own(self, column: ColumnInfo) -> Existing:
        """What the column's folder logged, or a version that did not say from where."""
        own = Existing()
        for place in dict.fromkeys((column.place, "")):
            for run in self._columns.pop((column.key, place), ()):
                own.add(run)
        self._columns[column.key, column.place] = own
        return own

    def elsewhere(self, column: ColumnInfo) -> list[Existing]:
        """What other folders logged of the same column."""
        return [
            existing
            for (key, place), existing in self._columns.items()
            if key == column.key and place not in (column.place, "")
        ]


def find_existing(store: Store, experiment_id: str, column_key: str | None = None) -> Found:
    """Search an experiment, or only one column in it."""
    found: list[Run] = []
    filter_string = f"tags.`{entries.COLUMN}` = '{column_key}'" if column_key else ""
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [experiment_id], filter_string, max_results=5000, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return Found(found)
