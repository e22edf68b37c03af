"""The process behind `LiveMirror`: reads lines of JSON and writes to MLflow in batches.

It is a new interpreter, not a fork, so that it inherits neither threads nor CUDA state. When its
input ends, the trainer has ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from smallbatch.errors import UserError
from smallbatch.tracking import entries, mirror
from smallbatch.tracking.existing import Existing, find_existing
from smallbatch.tracking.experiment import describe_experiment
from smallbatch.tracking.locks import Busy, exclusive
from smallbatch.tracking.records import ColumnInfo, RunInfo
from smallbatch.tracking.store import Store, may_be_new, open_store
from smallbatch.tracking.sync import sync
from smallbatch.tracking.uri import TrackingUri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FLUSH_S = 5.0
"""Seconds between batches."""
RETRY_S = 15.0
"""Seconds before a store that failed is used again."""
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Timeout of a request in the final replay, where uploads may be slow."""
LEAVE_S = 15.0
"""Most seconds that the process lives after its trainer."""
INITIALISE_S = 900
"""Most seconds for the first creation of a database, which may outlast a short training."""
LOCK_S = 15.0
"""Most seconds to wait for another process that writes; a training's rows can wait longer."""

_OWN = ""  # the name of the column that the trainer itself trains, and so ends with it

Message = dict[str, Any]


class LiveColumn:
    """A column that trains, with the epochs that are still to be logged."""

    def __init__(self, column: ColumnInfo, started_ms: int | None = None):
        self.column = column
        self._started_ms = started_ms or round(time.time() * 1000)
        self._begun: dict[str, int] = {}
        self._parent_id: str | None = None
        self._experiment_id = ""
        self._existing = Existing()
        self._ids: dict[str, str] = {}
        self._seen: dict[str, set[tuple[str, int]]] = {}
        self._waiting: dict[RunInfo, list[tuple[Mapping[str, Any], int]]] = {}

    def begin(self, message: Message) -> None:
        """Note when a run began."""
        self._begun[message["run"]] = round(message["time"] * 1000)

    def add(self, message: Message) -> None:
        """Add an epoch to those that are to be logged."""
        run = RunInfo(**message["run"])
        self._waiting.setdefault(run, []).append((message["row"], round(message["time"] * 1000)))

    def flush(self, store: Store) -> None:
        """Log all waiting epochs; those that fail keep waiting, with their timestamps."""
        # With a lock: otherwise this mirror, if it is dying, and that of the resumed training could
        # both create the same runs.
        with exclusive(store.uri, self.column.experiment, wait=LOCK_S):
            self._flush(store)

    def _flush(self, store: Store) -> None:
        parent_id = self._parent_id or self._open(store)
        # Cleared until all is logged, so that after a failure the store is searched anew.
        self._parent_id = None
        for run in list(self._waiting):
            rows = self._waiting[run]
            if not self._is_complete(run):
                self._log(store, parent_id, run, rows)
            del self._waiting[run]
        self._parent_id = parent_id

    def kill(self, store: Store) -> None:
        """Mark the runs that this process left running as killed."""
        # Another process may just complete them.
        with exclusive(store.uri, self.column.experiment, wait=LOCK_S):
            for run_id in [*self._ids.values(), *filter(None, [self._parent_id])]:
                if store.client.get_run(run_id).info.status == "RUNNING":
                    store.client.set_terminated(run_id, "KILLED")

    def kill_all(self, store: Store) -> None:
        """Mark all of its runs as killed that are running, whichever process left them so."""
        with exclusive(store.uri, self.column.experiment, wait=LOCK_S):
            experiment_id = store.experiment_id(self.column.experiment)
            for run in find_existing(store, experiment_id, self.column.key).own(self.column):
                if run.info.status == "RUNNING":
                    store.client.set_terminated(run.info.run_id, "KILLED")

    def _open(self, store: Store) -> str:
        self._experiment_id = store.experiment_id(self.column.experiment)
        describe_experiment(store, self._experiment_id, self.column)
        found = find_existing(store, self._experiment_id, self.column.key)
        self._existing = found.own(self.column)
        self._ids.clear()  # a replay may meanwhile have deleted one of two equal runs
        parent = self._existing.parent
        if parent is None:
            parent_id = mirror.create(store, self._experiment_id, self.column, self._started_ms)
            mirror.log(store, parent_id, [], {}, params=entries.column_params(self.column))
            return parent_id
        parent_id = parent.info.run_id
        store.client.update_run(parent_id, "RUNNING")  # until a replay completes it
        return parent_id

    def _is_complete(self, run: RunInfo) -> bool:
        """Whether the run was replayed from result files; the next replay compares it again."""
        existing = self._existing.runs.get(run.run)
        return existing is not None and entries.SYNCED in existing.data.tags

    def _log(
        self, store: Store, parent_id: str, run: RunInfo, rows: list[tuple[Mapping[str, Any], int]]
    ) -> None:
        params: dict[str, str] = {}
        run_id = self._ids.get(run.run)
        if run_id is None:
            run_id = self._adopt(store, parent_id, run, self._begun.get(run.run, rows[0][1]))
            params = entries.run_params(self.column, run)
        seen = self._seen[run.run]
        points = entries.setting_points(self.column, run)
        points += [point for row, _ in rows for point in entries.epoch_points(row)]
        points = [point for point in points if (point.key, point.step) not in seen]
        when = {int(row["epoch"]): moment for row, moment in rows}
        when[0] = self._begun.get(run.run, rows[0][1])
        mirror.log(store, run_id, points, when, params=params)
        self._ids[run.run] = run_id
        seen.update((point.key, point.step) for point in points)

    def _adopt(self, store: Store, parent_id: str, run: RunInfo, now_ms: int) -> str:
        """Find or create the run in MLflow, and return its id."""
        existing = self._existing.runs.get(run.run)
        if existing is None:
            self._seen[run.run] = set()
            return mirror.create(
                store, self._experiment_id, self.column, now_ms, run=run, parent_id=parent_id
            )
        store.client.update_run(existing.info.run_id, "RUNNING")
        run_id, names = existing.info.run_id, existing.data.metrics
        logged = mirror.logged_metrics(store, run_id, names)
        self._seen[run.run] = {(metric.key, metric.step) for metric in logged}
        return run_id


class Mirror:
    """Handles messages one after another; does not use a store for a while after it failed.

    Tells the trainer whether the store can be reached, and at the end why MLflow is incomplete.
    """

    def __init__(self, answers: TextIO):
        self._answers = answers
        self._store: Store | None = None
        self._columns: dict[str, LiveColumn] = {}
        self._due = 0.0
        self._reached: bool | None = None

    def handle(self, message: Message) -> None:
        """Act on a message from the trainer."""
        kind, name = message.pop("kind"), message.pop("column", _OWN)
        column = self._columns.get(name)
        if kind == "start":
            started_ms = round(message.pop("time") * 1000)
            self._columns[name] = LiveColumn(ColumnInfo(**message), started_ms)
            self._due = 0.0
        elif kind == "begin" and column:
            column.begin(message)
        elif kind == "epoch" and column:
            column.add(message)
        elif kind == "kill" and column:
            del self._columns[name]
            _reason(lambda: column.kill_all(self._open()))
        elif kind == "drop":
            self._columns.pop(name, None)
        elif kind == "finish":
            self._columns.pop(name, None)  # epochs that still wait are in the result files
            error = _reason(self._probe)
            if error is None:
                os.environ.update(PATIENT)
                error = _reason(lambda: sync(Path(message["directory"])))
            self._answer(error=error)

    def initialise(self) -> None:
        """Create the database if there is none yet; what fails is tried again later."""
        with suppress(UserError):
            if not may_be_new(TrackingUri.parse()):
                return
        self._answer(initialising=True)
        signal.alarm(INITIALISE_S)  # which ends the process
        _reason(self._open)
        signal.alarm(0)
        self._answer(initialising=False)

    def begin(self) -> None:
        """Tell that all is imported and the database is there, if that was possible."""
        self._answer(began=True)

    def tick(self) -> None:
        """Log waiting epochs if it is time."""
        if not self._columns or time.monotonic() < self._due:
            return
        reached = _reason(self._flush) is None
        if reached != self._reached:  # only on changes: the trainer reads them at the end only
            self._reached = reached
            self._answer(reached=reached)
        self._due = time.monotonic() + (FLUSH_S if reached else RETRY_S)

    def leave(self) -> None:
        """Called when the trainer has ended."""
        column, store = self._columns.get(_OWN), self._store
        if column and store:
            _reason(lambda: column.kill(store))

    def _flush(self) -> None:
        store = self._open()
        for column in self._columns.values():
            with suppress(Busy):  # its epochs go with the next batch, as from a store in good order
                column.flush(store)

    def _probe(self) -> None:
        self._open().client.search_experiments(max_results=1)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store()
        return self._store

    def _answer(self, **content: object) -> None:
        with suppress(OSError):  # the trainer waits no longer
            print(json.dumps(content), file=self._answers, flush=True)


def main() -> None:
    """Handle messages until the input ends; the only argument is the niceness."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the trainer ends, and so the input
    trainer = os.getppid()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that text that a library prints is not read as an answer
    state = Mirror(answers)
    # At the usual priority, and whatever becomes of the trainer: else, on a busy machine, one
    # column after another would begin it and be over first.
    state.initialise()
    state.begin()
    os.nice(int(sys.argv[1]))  # the workers need the cores
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox, trainer), daemon=True).start()
    while True:
        try:
            message = inbox.get(timeout=0.5)
        except queue.Empty:
            state.tick()
            continue
        if message is None:
            break
        state.handle(message)
        state.tick()
    state.leave()


def _read(inbox: queue.SimpleQueue[Message | None], parent: int) -> None:
    """Read the pipe at once, so that it is never full; after its end, wait LEAVE_S and exit."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(LEAVE_S)
    os._exit(1)  # the store hangs


def _watch(parent: int) -> None:
    # The pipe may stay open after the trainer's end, because its forked workers have it too.
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(LEAVE_S)
    os._exit(1)


def _reason(action: Callable[[], object]) -> str | None:
    """Run an action and return in one line what went wrong, or None."""
    try:
        action()
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever mlflow raises, training goes on
        return TrackingUri.parse().reason(error)
    return None


if __name__ == "__main__":
    main()
