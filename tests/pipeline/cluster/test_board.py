"""Tasks and states on disk, and what is said of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from smallbatch.errors import UserError
from smallbatch.pipeline.cluster.board import Board, State, Task, read_task
from smallbatch.pipeline.cluster.wait import seconds_left, summary

TASK = Task(
    key="digits-a-m4", study="a", batch_size=4, params={"compute": {}}, origin="params.yaml",
    base_lrs=(0.5,), stage="train@a-4", after=None, runs=2, updates=10, needs={}, dataset="digits",
    fingerprint="f", cluster="slurm", wanted="w",
)  # fmt: skip
RUN = "0123456789abcdef"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    return Board()


def test_a_later_submission_takes_the_place_of_the_former(board: Board) -> None:
    first = board.put(TASK)
    assert (first.number, board.state(TASK.key)) == (1, State(1))
    board.set_state(TASK.key, State(1, 3, "failed"))
    board.set_job(TASK.key, {"id": "7"})
    second = board.put(TASK)
    assert (second.number, board.state(TASK.key), board.job(TASK.key)) == (2, State(2), {})
    # A worker that was started for the first finds no task.
    assert read_task(board.file_of(first)) is None
    assert board.task(TASK.key) == board.tasks()[0]
    assert json.loads(json.dumps(board.tasks()[0].base_lrs)) == [0.5]


@pytest.mark.parametrize(
    "key", ["", "..", "../x-m4", "a/b-m4", "x-m", "x", "-m4", "x-m4-", "x-m4-..", f"x-{RUN}"]
)
def test_keys_lead_nowhere_else(board: Board, key: str) -> None:
    with pytest.raises(UserError, match="allowed: DATASET-STUDY-mM"):
        board.folder_of(key)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"5", b"{", b'{"number": 1, "odd": 2}', b"\xff", b"[" * 100_000, b" " * 2**23],
)
def test_damaged_files_are_as_if_they_were_not_there(board: Board, content: bytes) -> None:
    task = board.put(TASK)
    board.file_of(task).write_bytes(content)
    (board.folder_of(TASK.key) / "state.json").write_bytes(content)
    (board.folder_of(TASK.key) / "job.json").write_bytes(content)
    assert (board.tasks(), board.state(TASK.key)) == ([], None)
    assert isinstance(board.job(TASK.key), dict)
    assert board.put(TASK).number == 2
    assert (board.tasks()[0].number, board.state(TASK.key)) == (2, State(2))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "number": [None, "7", 1.0, True, -1, 10**9, 10**12, [], {}],
        "attempt": [None, "1", 1.0, -1, 10**9],
        "status": [None, [], "unknown", 1],
        "node": [None, 1, []],
        "message": [None, 1, {}],
        "runs_done": [None, -1, 0.5],
        "share": [None, "abc", NAN, INF, -INF, []],
        "images_per_second": ["fast", NAN, INF, -1.0, 5e-324],
    }.items(),
)
def test_a_state_with_a_wrong_value_cannot_be_read(
    board: Board, key: str, values: list[Any]
) -> None:
    board.put(TASK)
    path = board.folder_of(TASK.key) / "state.json"
    right = State(1, 2, "running", "n", share=0.5, images_per_second=3)
    path.write_text(json.dumps(asdict(right)))
    assert board.state(TASK.key) == right
    for value in values:
        path.write_text(json.dumps({**asdict(right), key: value}))
        assert board.state(TASK.key) is None, value
    assert board.put(TASK).number == 2


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "key": [None, 4, "digits-b-m4"],
        "study": [None, 1],
        "batch_size": [None, "4", 4.0, 0, -4, 2**60],
        "params": [None, [], "x"],
        "base_lrs": [0.5, "0.5", ["0.5"], [None], [NAN], [INF], [-1], {}],
        "after": [1, []],
        "runs": [None, 0, "2"],
        "updates": [None, 0, 1.5],
        "needs": [None, [], {"torch": 2}],
        "cluster": [None, []],
        "seed": ["1", -1, 2**32, 1.0],
        "prepared": [None, 1],
        "folder": [None, 1],
        "number": [None, "1", 0, 2, 10**12],  # 2 is that of another file
    }.items(),
)
def test_a_task_with_a_wrong_value_cannot_be_read(
    board: Board, key: str, values: list[Any]
) -> None:
    task = board.put(replace(TASK, base_lrs=None))
    assert board.task(TASK.key) == task
    for value in values:
        board.file_of(task).write_text(json.dumps({**asdict(task), key: value}))
        assert board.tasks() == [], value
    assert board.put(TASK).number == 2


def test_tasks_of_before_there_were_runs_outside_the_pipeline_are_columns_of_it(
    board: Board,
) -> None:
    task = board.put(TASK)
    later = ("seed", "prepared", "folder")
    former = {key: value for key, value in asdict(task).items() if key not in later}
    board.file_of(task).write_text(json.dumps(former))
    found = board.task(TASK.key)
    assert found
    assert (found.images, found.results) == (
        Path("data/prepared/digits"),
        Path("models/digits/a/m4"),
    )


def test_what_can_be_set_right_is(board: Board) -> None:
    board.put(TASK)
    board.set_state(TASK.key, State(1, node="é\udcff", message="x" * 5000, share=1.5))
    assert board.state(TASK.key) == State(1, node="é?", message="x" * 1000, share=1.0)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "kept").touch()


def link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("make", [folder, link_to_a_folder, os.mkfifo])
def test_what_is_no_file_is_as_if_it_was_not_there_and_makes_way(
    board: Board, make: Callable[[Path], None]
) -> None:
    task = board.put(TASK)
    place = board.folder_of(TASK.key)
    for name in ("state.json", "job.json", "events.jsonl", board.file_of(task).name):
        (place / name).unlink(missing_ok=True)
        make(place / name)
    assert (board.tasks(), board.state(TASK.key), board.job(TASK.key)) == ([], None, {})
    assert board.put(TASK).number == 2
    board.set_job(TASK.key, {"id": 1})
    assert (board.tasks()[0].number, board.state(TASK.key)) == (2, State(2))
    assert board.job(TASK.key) == {"id": 1}
    # What a folder held is still there, under another name.
    assert len([*place.glob("*.part/kept")]) == (4 if make is folder else 0)


def test_a_board_in_whose_place_is_a_file_is_empty(board: Board) -> None:
    board.folder.parent.mkdir()
    board.folder.touch()
    assert (board.tasks(), board.task(TASK.key), board.state(TASK.key)) == ([], None, None)


def test_numbers_end(board: Board) -> None:
    board.put(TASK)
    (board.folder_of(TASK.key) / "task-999999999.json").touch()
    with pytest.raises(UserError, match=r"digits-a-m4: found the submission 999999999, the last"):
        board.put(TASK)


def test_a_link_in_the_place_of_a_state_is_not_followed(board: Board, tmp_path: Path) -> None:
    board.put(TASK)
    other = tmp_path / "other"
    other.write_text(json.dumps({"number": 9}))
    path = board.folder_of(TASK.key) / "state.json"
    path.unlink()
    path.symlink_to(other)
    assert board.state(TASK.key) is None
    board.set_state(TASK.key, State(1))
    assert json.loads(other.read_text()) == {"number": 9}


def test_the_lock_keeps_others_out_and_who_waits_may_leave(board: Board) -> None:
    def leave() -> None:
        raise InterruptedError

    with board.lock(), pytest.raises(InterruptedError), board.lock(leave):
        pass
    with board.lock(leave):
        pass
    assert (board.folder / "lock").stat().st_mode & 0o077 == 0


def states(*given: tuple[str, dict[str, Any]]) -> tuple[list[Task], dict[str, State]]:
    tasks = [replace(TASK, key=f"digits-a-m{m}", batch_size=int(m)) for m, _ in given]
    return tasks, {task.key: State(1, **it) for task, (_, it) in zip(tasks, given, strict=True)}


def test_the_time_left_is_that_of_all_columns_at_the_present_speed() -> None:
    running = {"status": "running", "share": 0.5, "images_per_second": 10.0}
    # 2 runs × 10 updates × m images: of m = 4 half of 80 are left, of m = 8 all 160.
    tasks, found = states(("4", running), ("8", {}), ("16", {"status": "done"}))
    assert seconds_left(tasks, found) == (40 + 160) / 10
    # No less than what the slowest takes that runs.
    slow = {"status": "running", "share": 0.0, "images_per_second": 1.0}
    tasks, found = states(("4", running), ("8", slow))
    assert seconds_left(tasks, found) == 160
    tasks, found = states(("4", {}), ("8", {"status": "running"}))
    assert seconds_left(tasks, found) is None


def test_one_line_says_where_all_columns_are() -> None:
    running = {"status": "running", "share": 0.5, "images_per_second": 10.0, "node": "n1"}
    tasks, found = states(("4", running), ("8", {}), ("16", {"status": "done"}))
    line = (
        "slurm: 1 queued, 1 running, 1 done (digits-a-m4 on n1 50%, 10 images/s); about 20 s left"
    )
    assert summary(tasks, found) == line
