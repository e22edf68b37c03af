"""The process behind `LiveMirror`: reads lines of JSON, writes to MLflow in batches.

A fresh interpreter rather than a fork: it inherits neither threads nor CUDA state, and the end of
its input tells it that the trainer is gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from smallbatch.errors import UserError
from smallbatch.tracking import entries, mirror
from smallbatch.tracking.records import ColumnInfo, RunInfo
from smallbatch.tracking.store import Store, exclusive, hidden, open_store, tracking_uri
from smallbatch.tracking.sync import sync

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FLUSH_S = 5.0
"""Seconds between batches."""
RETRY_S = 15.0
"""Seconds of rest after the store failed."""
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""For the replay at the end, once the store has answered: uploads may take their time."""
LEAVE_S = 15.0
"""Seconds that a process without a trainer may take to leave."""

Message = dict[str, Any]


class LiveColumn:
    """A column that trains: what to log next, and where."""

    def __init__(self, column: ColumnInfo):
        self.column = column
        self._parent_id: str | None = None
        self._experiment_id = ""
        self._existing = mirror.Existing()
        self._ids: dict[str, str] = {}
        self._seen: dict[str, set[tuple[str, int]]] = {}
        self._waiting: dict[RunInfo, list[tuple[Mapping[str, Any], int]]] = {}

    def add(self, message: Message) -> None:
        """Takes in an epoch."""
        run = RunInfo(**message["run"])
        self._waiting.setdefault(run, []).append((message["row"], round(message["time"] * 1000)))

    def flush(self, store: Store) -> None:
        """Logs all that waits; what fails waits on, with the same timestamps."""
        # Alone, or a mirror that dies and the one of the resumed training would both create runs.
        with exclusive(store.uri, self.column.experiment):
            self._flush(store)

    def _flush(self, store: Store) -> None:
        parent_id = self._parent_id or self._open(store)
        # Unset until all is logged: after a failure, what the store has is looked up anew.
        self._parent_id = None
        for run in list(self._waiting):
            rows = self._waiting[run]
            if not self._is_complete(run):
                self._log(store, parent_id, run, rows)
            del self._waiting[run]
        self._parent_id = parent_id

    def kill(self, store: Store) -> None:
        """Marks what this process left running as killed."""
        with exclusive(store.uri, self.column.experiment):  # somebody may be ending it just now
            for run_id in [*self._ids.values(), *filter(None, [self._parent_id])]:
                if store.client.get_run(run_id).info.status == "RUNNING":
                    store.client.set_terminated(run_id, "KILLED")

    def _open(self, store: Store) -> str:
        self._experiment_id = store.experiment_id(self.column.experiment)
        key = self.column.key
        self._existing = mirror.find_existing(store, self._experiment_id, key)
        self._ids.clear()  # a replay beside us may have thrown one of two away
        parent = self._existing.columns.get(key)
        if parent is None:
            now = round(time.time() * 1000)
            parent_id = mirror.create(store, self._experiment_id, self.column, now)
            mirror.log(store, parent_id, [], {}, params=entries.column_params(self.column))
            return parent_id
        parent_id = parent.info.run_id
        store.client.update_run(parent_id, "RUNNING")
        if entries.SYNCED in parent.data.tags:
            store.client.delete_tag(parent_id, entries.SYNCED)  # or no replay would end it again
        return parent_id

    def _is_complete(self, run: RunInfo) -> bool:
        """Whether MLflow has this run from its result files; the next replay compares them."""
        existing = self._existing.runs.get((self.column.key, run.run))
        return existing is not None and entries.SYNCED in existing.data.tags

    def _log(
        self, store: Store, parent_id: str, run: RunInfo, rows: list[tuple[Mapping[str, Any], int]]
    ) -> None:
        params: dict[str, str] = {}
        run_id = self._ids.get(run.run)
        if run_id is None:
            run_id = self._adopt(store, parent_id, run, rows[0][1])
            params = entries.run_params(self.column, run)
        seen = self._seen[run.run]
        points = [point for row, _ in rows for point in entries.epoch_points(row)]
        points = [point for point in points if (point.key, point.step) not in seen]
        when = {int(row["epoch"]): moment for row, moment in rows}
        mirror.log(store, run_id, points, when, params=params)
        self._ids[run.run] = run_id
        seen.update((point.key, point.step) for point in points)

    def _adopt(self, store: Store, parent_id: str, run: RunInfo, now_ms: int) -> str:
        """Finds or creates the run; its id."""
        existing = self._existing.runs.get((self.column.key, run.run))
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
    """Handles messages one after another; a failing store is left alone for a while.

    Tells the trainer whether the store can be reached, and why MLflow is incomplete at the end.
    """

    def __init__(self, uri: str, answers: TextIO):
        self._uri = uri
        self._answers = answers
        self._store: Store | None = None
        self._column: LiveColumn | None = None
        self._due = 0.0
        self._reached: bool | None = None

    def handle(self, message: Message) -> None:
        """Acts on one message from the trainer."""
        kind = message.pop("kind")
        if kind == "start":
            self._column = LiveColumn(ColumnInfo(**message))
            self._due = 0.0
        elif kind == "epoch" and self._column:
            self._column.add(message)
        elif kind == "finish":
            self._column = None  # the files hold all that still waits
            error = _reason(self._probe)
            if error is None:
                os.environ.update(PATIENT)
                error = _reason(lambda: sync(Path(message["directory"]), self._uri))
            self._answer(error=error)

    def tick(self) -> None:
        """Flushes when it is time to."""
        if self._column is None or time.monotonic() < self._due:
            return
        reached = _reason(self._flush) is None
        if reached != self._reached:  # nobody reads before the end, so the pipe must not fill
            self._reached = reached
            self._answer(reached=reached)
        self._due = time.monotonic() + (FLUSH_S if reached else RETRY_S)

    def leave(self) -> None:
        """The trainer is gone."""
        if self._column and self._store:
            column, store = self._column, self._store
            _reason(lambda: column.kill(store))

    def _flush(self) -> None:
        store = self._open()
        if self._column:
            self._column.flush(store)

    def _probe(self) -> None:
        self._open().client.search_experiments(max_results=1)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._uri)
        return self._store

    def _answer(self, **content: object) -> None:
        print(json.dumps(content), file=self._answers, flush=True)


def main() -> None:
    """Runs until the input ends."""
    os.nice(19)  # the cores are the workers'
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; its end is ours
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox, os.getppid()), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    state = Mirror(tracking_uri(), answers)
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
    """Drains the pipe, so that the trainer never finds it full; at its end, sets a limit."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(LEAVE_S)
    os._exit(1)  # the store hangs, and nobody waits for it


def _watch(parent: int) -> None:
    # Workers forked by the trainer may hold its end of the pipe open when it is gone.
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(LEAVE_S)
    os._exit(1)


def _reason(action: Callable[[], object]) -> str | None:
    """Runs an action; in one line what went wrong, None if nothing did."""
    try:
        action()
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever mlflow raises, training goes on
        return hidden(f"{type(error).__name__}: {error}", tracking_uri())
    return None


if __name__ == "__main__":
    main()
