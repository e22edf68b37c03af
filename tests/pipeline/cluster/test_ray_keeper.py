"""Which tasks a keeper takes off the board, and when it ends; the cluster is a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallbatch.config.params import parse_compute
from smallbatch.errors import UserError
from smallbatch.pipeline.cluster.board import Board, Status, Task
from smallbatch.pipeline.cluster.ray import keeper as module
from smallbatch.pipeline.cluster.ray import scheduler, shipped
from smallbatch.pipeline.cluster.ray.connect import address_of
from smallbatch.pipeline.cluster.ray.files import WORK, Column
from smallbatch.pipeline.cluster.ray.keeper import Keeper
from smallbatch.pipeline.cluster.ray.scheduler import NOTE, Ray, hold, is_held, keeper_runs
from smallbatch.records.fence import column_key

ADDRESS = "10.0.0.1:6379"
COMPUTE = {"cluster": "ray", "ray": {"address": ADDRESS}}
TASK = Task(
    "noise-plain-m4", "plain", 4, {"compute": COMPUTE, "studies": {"plain": {"model": "resnet8"}}},
    "params.yaml", (0.5,), None, None, runs=1, updates=8,
    needs={}, fingerprint="f" * 64, dataset="noise", cluster="ray", wanted="",
)  # fmt: skip


class Cluster:
    """Ray's module, as far as a keeper uses it: calls of actors happen at once."""

    def __init__(self) -> None:
        self.cloudpickle = SimpleNamespace(register_pickle_by_value=lambda _module: None)
        self.exceptions = SimpleNamespace(RayError=ConnectionError)
        self.handed_out: list[dict[str, Any]] = []
        self.cancelled: list[object] = []
        self.inbox = shipped.Inbox()

    def remote(self, what: object) -> Any:
        begin = self._actor if what is shipped.Inbox else self._task
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=begin))

    def _actor(self) -> object:
        names = ("push", "want", "admit", "take", "offer", "withdraw")
        return SimpleNamespace(
            **{it: SimpleNamespace(remote=getattr(self.inbox, it)) for it in names}
        )

    def _task(self, _inbox: object, message: str) -> str:
        self.handed_out.append(json.loads(message))
        return f"task {len(self.handed_out)}"

    def get(self, value: object, timeout: float = 0) -> object:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, refs: list[object], **_: object) -> tuple[list[object], list[object]]:
        return [], refs

    def cancel(self, ref: object, *, force: bool) -> None:
        self.cancelled.append(ref)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "IDLE_S", 0.0)
    monkeypatch.setattr(module, "_POLL_S", 0.0)

    def column(task: Task) -> Column:
        folder = Path(f"models/noise/plain/m{task.batch_size}")
        return Column(folder, column_key(WORK, folder), frozenset({"a" * 16}), (0.5,))

    monkeypatch.setattr(module, "column_of", column)
    return Board()


def keep(cluster: Cluster, board: Board, until: Callable[[], bool]) -> list[str]:
    """Let a keeper go on until something is so, or it ends; returns the keys it has handed out."""

    class Enough(Exception):  # noqa: N818
        pass

    take = cluster.inbox.take

    def enough() -> Any:
        if until():
            raise Enough
        return take()

    cluster.inbox.take = enough  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(Enough):
        held = hold(board)
        assert held is not None
        Keeper(board, cluster, ADDRESS, held).run(lambda: os.close(held))
    return [it["task"]["key"] for it in cluster.handed_out]


def said(board: Board, task: Task) -> tuple[Status, str]:
    state = board.state(task.key)
    assert state
    return state.status, state.message


@pytest.mark.parametrize(
    ("status", "taken"),
    [("queued", True), ("running", False), ("lost", False), ("stopped", False), ("done", False)],
)
def test_only_what_waits_is_taken(
    status: Status, taken: bool, cluster: Cluster, board: Board
) -> None:
    board.put(TASK)
    state = board.state(TASK.key)
    assert state
    board.set_state(TASK.key, replace(state, status=status))
    assert bool(keep(cluster, board, lambda: bool(cluster.handed_out))) == taken


@pytest.mark.parametrize("params", [
    {"compute": {"cluster": "moon"}}, {"compute": {"cluster": "ray", "unheard_of": 1}},
    {"compute": []}, {"compute": COMPUTE}, {"compute": COMPUTE, "studies": {"plain": 5}},
])  # fmt: skip
def test_a_task_that_cannot_be_read_fails_alone(
    params: Any, cluster: Cluster, board: Board
) -> None:
    odd = replace(TASK, key="noise-odd-m4", params=params)
    board.put(replace(odd, number=1))
    later = replace(TASK, key="noise-plain-m8", batch_size=8)
    board.put(later)
    assert keep(cluster, board, lambda: bool(cluster.handed_out)) == [later.key]
    status, message = said(board, odd)
    assert status == "failed"
    assert message
    assert "\n" not in message


def test_a_keeper_ends_with_its_board(cluster: Cluster, board: Board) -> None:
    board.put(TASK)

    def remove() -> bool:
        if cluster.handed_out and not cluster.cancelled:
            shutil.rmtree(board.folder)
            board.put(TASK)  # of the next keeper, which is not there yet
            assert not keeper_runs(board)
        return False

    assert keep(cluster, board, remove) == [TASK.key]
    assert cluster.cancelled == ["task 1"]
    assert said(board, TASK) == ("queued", "")


def test_a_task_of_another_address_is_left_alone(cluster: Cluster, board: Board) -> None:
    elsewhere = COMPUTE | {"ray": {"address": "10.0.0.2:6379"}}
    board.put(replace(TASK, params={**TASK.params, "compute": elsewhere}))
    assert keep(cluster, board, lambda: bool(cluster.handed_out)) == []
    assert said(board, TASK) == ("queued", "")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, board: Board) -> list[str]:
    """Notes what keepers are started; one of another address holds the board's lock."""
    started: list[str] = []
    monkeypatch.setattr(scheduler, "find_spec", lambda _name: True)
    monkeypatch.setattr(Ray, "_start", lambda self: started.append(self._address))
    board.put(TASK)
    (board.folder / NOTE).write_text(json.dumps({"asked": "10.0.0.2:6379", "status": "connected"}))
    return started


@pytest.fixture
def ray() -> Ray:
    return Ray(Board(), parse_compute(COMPUTE, "params.yaml"))


def test_an_idle_keeper_of_another_address_is_replaced(
    started: list[str], ray: Ray, board: Board
) -> None:
    held = hold(board)
    assert held is not None
    ray.submit([TASK])
    assert started == [ADDRESS]
    assert not is_held(board, held)
    os.close(held)


def test_one_that_has_columns_is_not(started: list[str], ray: Ray, board: Board) -> None:
    other = board.put(replace(TASK, key="noise-plain-m8", batch_size=8))
    held = hold(board)
    assert held is not None
    with pytest.raises(UserError, match=r"found 10\.0\.0\.1:6379, .* on 10\.0\.0\.2:6379"):
        ray.submit([TASK])
    assert not started
    assert is_held(board, held)
    assert said(board, other) == ("queued", "")
    status, message = said(board, TASK)
    assert status == "lost"  # it is submitted again when the other keeper has ended
    assert message.startswith("compute.ray.address: found")
    os.close(held)


def test_a_cluster_that_is_gone_is_told(
    started: list[str], board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "127.0.0.1:1"
    ray = Ray(board, parse_compute(COMPUTE | {"ray": {"address": address}}, "params.yaml"))
    note = {"asked": address, "address": address, "status": "connected", "message": ""}
    (board.folder / NOTE).write_text(json.dumps(note))
    ray.refresh()
    message = (
        f"the Ray cluster at {address} is gone; when it has been started again, "
        "the same command goes on"
    )
    assert said(board, TASK) == ("lost", message)

    def refused(_ray: Ray) -> None:
        address_of(address)

    monkeypatch.setattr(Ray, "_start", refused)
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        ray.submit([TASK])
    assert said(board, TASK) == ("lost", message)
    (board.folder / NOTE).unlink()  # it never was
    with pytest.raises(UserError, match="where no Ray cluster answers"):
        ray.submit([TASK])
