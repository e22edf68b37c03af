"""What a keeper takes from a node, without Ray."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallbatch.pipeline.cluster.board import Board, State, Status, Task
from smallbatch.pipeline.cluster.ray import node, shipped
from smallbatch.pipeline.cluster.ray.files import WORK, Busy, Column, pieces
from smallbatch.pipeline.cluster.ray.jobs import ATTEMPTS, Job, Jobs
from smallbatch.pipeline.cluster.ray.offers import Offers
from smallbatch.records.fence import column_key
from smallbatch.records.lock import one_writer

FOLDER = Path("models/noise/plain/m4")
RUN, OTHER, KEY = "a" * 16, "b" * 16, column_key(WORK, FOLDER)
RECORD = f".smallbatch/work/{RUN}/record"
CHECKPOINT = f".smallbatch/work/{KEY}.checkpoints/{'d' * 16}/{'e' * 16}/{7:012}.checkpoint"
COLUMN = Column(FOLDER, KEY, frozenset({RUN}), (0.5,))
TASK = Task(
    "noise-plain-m4", "plain", 4, {}, "params.yaml", (0.5,), None, None, runs=1, updates=8,
    needs={}, fingerprint="f" * 64, dataset="noise", cluster="ray", wanted="",
)  # fmt: skip


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(Board())
    begin(jobs, jobs.board.put(TASK))
    return jobs


def begin(jobs: Jobs, task: Task, former: Job | None = None) -> Job:
    return jobs.begin(task, COLUMN, former, [], COLUMN.take_over())


def send(jobs: Jobs, name: str, body: bytes, attempt: int = 1, **changes: Any) -> None:
    """In pieces of three bytes."""
    for offset in range(0, len(body), 3):
        piece = body[offset : offset + 3]
        head = {"key": TASK.key, "of": [1, attempt], "kind": "file", "name": name,
                "offset": offset, "size": len(body)}  # fmt: skip
        head["sha256"] = hashlib.sha256(body).hexdigest()
        jobs.read(json.dumps(head | changes), piece)


def say(jobs: Jobs, content: dict[str, Any]) -> None:
    jobs.read(json.dumps({"key": TASK.key, "of": [1, 1]} | content), b"")


@pytest.mark.parametrize("name", [
    RECORD, CHECKPOINT, f".smallbatch/work/{KEY}.timing", "models/noise/plain/m4/runs.json",
])  # fmt: skip
def test_files_of_the_column_are_taken(name: str) -> None:
    assert COLUMN.takes(name)


@pytest.mark.parametrize("name", [
    RECORD.replace(RUN, OTHER), f"/{RECORD}", f"x/../{RECORD}", f"{RECORD}/../record",
    f"{RECORD}\n", f".smallbatch/work/{KEY}.lock", CHECKPOINT.replace(KEY, OTHER),
    CHECKPOINT.replace(".checkpoints", ".2-01234567.checkpoints"),
    "models/noise/plain/m8/runs.json", "models/noise/plain/m4/more.py", "params.yaml", "",
])  # fmt: skip
def test_no_others_are(name: str, jobs: Jobs) -> None:
    assert not COLUMN.takes(name)
    send(jobs, name, b"planted")
    assert "is no file of this column" in jobs.running[TASK.key].fault
    assert not Path(RECORD).exists()


def test_a_file_appears_whole(jobs: Jobs) -> None:
    send(jobs, RECORD, b"sent in pieces"[:3], size=14)
    assert not Path(RECORD).exists()
    send(jobs, RECORD, b"sent in pieces")
    assert Path(RECORD).read_bytes() == b"sent in pieces"


def test_a_damaged_file_does_not(jobs: Jobs) -> None:
    send(jobs, RECORD, b"sent in pieces", sha256="0" * 64)
    assert "it arrived damaged" in jobs.running[TASK.key].fault
    assert not Path(RECORD).exists()


def test_an_attempt_that_is_over_writes_nothing(jobs: Jobs) -> None:
    (job,) = jobs.running.values()
    assert jobs.end(job, None, "killed")
    begin(jobs, job.task, job)
    send(jobs, RECORD, b"late", attempt=1)
    assert not Path(RECORD).exists()
    send(jobs, RECORD, b"right", attempt=2)
    assert Path(RECORD).read_bytes() == b"right"


@pytest.mark.parametrize("status", ["cancelled", "lost", "done"])
def test_nor_does_one_that_was_cancelled_or_given_up(jobs: Jobs, status: Status) -> None:
    state = jobs.board.state(TASK.key)
    assert state
    jobs.board.set_state(TASK.key, replace(state, status=status))
    send(jobs, RECORD, b"late")
    assert not Path(RECORD).exists()


def test_attempts_that_leave_nothing_end(jobs: Jobs) -> None:
    for _ in range(ATTEMPTS):
        (job,) = jobs.running.values()
        again = jobs.end(job, None, "killed")
        if again:
            begin(jobs, job.task, job)
    state = jobs.board.state(TASK.key)
    assert state
    assert (state.status, state.attempt) == ("failed", ATTEMPTS)
    assert state.message == "3 attempts left no progress; the last: killed"


def test_checkpoints_that_a_node_has_no_more_go(jobs: Jobs) -> None:
    send(jobs, CHECKPOINT, b"old")
    send(jobs, RECORD, b"record")
    later = CHECKPOINT.replace("7.", "9.")
    send(jobs, later, b"new")
    (job,) = jobs.running.values()
    say(jobs, {"kind": "kept", "names": [later]})
    assert [str(it) for it in job.column.kept()] == [RECORD, later]
    say(jobs, {"kind": "kept", "names": []})
    assert [str(it) for it in COLUMN.kept()] == [RECORD]
    assert not list(WORK.glob("*.checkpoints"))


def end(jobs: Jobs) -> str:
    """The column is whole; returns what the board says then."""
    (job,) = jobs.running.values()
    send(jobs, RECORD, b"record")
    send(jobs, f"{FOLDER}/runs.json", b"theirs")
    assert not jobs.end(job, json.dumps({"exit": 0, "said": "", "files": {**job.receiver.digests}}))
    state = jobs.board.state(TASK.key)
    assert state
    return f"{state.status} {state.message}"


def test_a_whole_column_has_its_results_and_no_progress(jobs: Jobs) -> None:
    send(jobs, CHECKPOINT, b"progress")
    assert end(jobs) == "done "
    assert (FOLDER / "runs.json").read_bytes() == b"theirs"
    assert not list(WORK.glob("*.checkpoints"))


def test_results_that_were_made_here_meanwhile_stay(jobs: Jobs) -> None:
    with one_writer(WORK, FOLDER):
        FOLDER.mkdir(parents=True)
        (FOLDER / "runs.json").write_bytes(b"ours")
    assert end(jobs).startswith("done its runs are kept; ")
    assert (FOLDER / "runs.json").read_bytes() == b"ours"
    assert Path(RECORD).read_bytes() == b"record"


def test_whoever_trains_the_column_here_keeps_its_progress(jobs: Jobs) -> None:
    send(jobs, CHECKPOINT, b"progress")
    with one_writer(WORK, FOLDER) as lock:
        (taken,) = WORK.rglob("*.checkpoint")
        assert taken.is_relative_to(lock.fence.folder or "")
        send(jobs, CHECKPOINT.replace("7.", "9."), b"more")
        say(jobs, {"kind": "kept", "names": []})
        assert [*WORK.rglob("*.checkpoint")] == [taken]
        lock.fence.check()
        with pytest.raises(Busy, match="a process of this project trains it"):
            COLUMN.take_over()
        assert end(jobs).startswith("done its runs are kept; ")
        lock.fence.check()
    assert not FOLDER.exists()
    assert taken.read_bytes() == b"progress"
    COLUMN.take_over()
    assert [str(it) for it in COLUMN.kept()] == [RECORD, CHECKPOINT]


STATE = vars(State(1, 1, "running", "n1"))
PIECE = {"kind": "file", "name": RECORD, "offset": 0, "size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize("content", [
    {"kind": "state", "state": STATE | {"share": "abc"}},
    {"kind": "state", "state": STATE | {"share": float("nan")}},
    {"kind": "state", "state": STATE | {"status": "asleep"}}, {"kind": "state", "state": []},
    PIECE | {"offset": float("inf")}, PIECE | {"offset": 2**63}, PIECE | {"offset": -1},
    PIECE | {"offset": 1}, PIECE | {"size": "x"}, PIECE | {"name": [RECORD]}, {"kind": "file"},
    {"kind": "kept", "names": 5}, {"kind": "more", "name": "../state.json"}, {"kind": "odd"}, {},
])  # fmt: skip
def test_an_odd_message_fails_its_attempt_alone(content: dict[str, Any], jobs: Jobs) -> None:
    say(jobs, content)
    (job,) = jobs.faulty()
    assert jobs.end(job, None, "killed")
    state = jobs.board.state(TASK.key)
    assert state
    assert state.message.startswith("goes on elsewhere: ")
    assert "killed" not in state.message
    assert "\n" not in state.message
    assert (state.status, state.share) == ("queued", 0.0)


@pytest.mark.parametrize("text", ["[]", "5", "", "[" * 10**5, '{"key": [], "of": 1}', "{}"])
def test_what_is_of_no_attempt_is_dropped(text: str, jobs: Jobs) -> None:
    jobs.read(text, b"")
    assert not jobs.faulty()


@pytest.mark.parametrize("result", [
    None, [], 5, "", "[]", "{}", '{"exit": 0, "said": ""}', '{"exit": 0, "said": 5, "files": {}}',
    '{"exit": NaN, "said": "", "files": {}}', '{"exit": 0, "said": "", "files": {"x": "y"}}',
])  # fmt: skip
def test_an_odd_end_is_none(result: object, jobs: Jobs) -> None:
    (job,) = jobs.running.values()
    assert jobs.end(job, result, "lost")
    assert ("its end cannot be read" in job.fault) == (result is not None)


def test_how_far_a_node_is(jobs: Jobs) -> None:
    say(jobs, {"kind": "state", "state": STATE | {"share": 0.5, "number": 7}})
    state = jobs.board.state(TASK.key)
    assert state
    assert (state.number, state.status, state.node, state.share) == (1, "running", "n1", 0.5)
    assert not jobs.faulty()


def test_an_inbox_waits_for_its_keeper_and_refuses_the_late() -> None:
    inbox = shipped.Inbox()
    head = '{"key": "k", "of": [1, 2]}'
    assert inbox.push(head, b"") == shipped.FULL
    inbox.admit({"k": [1, 2]})
    assert inbox.push(head, b"body") == shipped.TAKEN
    assert inbox.push('{"key": "k", "of": [1, 1]}', b"") == shipped.STALE
    assert inbox.take() == ([(head, b"body")], [])
    assert inbox.want("images") is None
    assert inbox.take() == ([], ["images"])
    inbox.offer("images", ["file"])
    assert (inbox.want("images"), inbox.take()) == (["file"], ([], []))


def test_a_node_asks_in_a_thread_for_whose_waiting_ray_frees_no_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name(_inbox: object, message: object) -> str:
        return f"{message} {threading.current_thread() is threading.main_thread()}"

    monkeypatch.setattr(node, "carry_out", name)
    assert shipped.carry_out(None, "[1]") == "[1] False"


def test_the_same_images_in_another_folder_are_another_offer() -> None:
    other = replace(TASK, seed=7, prepared=".smallbatch/data/0/prepared/noise")
    assert Offers.images(other) != Offers.images(TASK)
    assert other.images == Path(other.prepared)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 8])
def test_pieces_make_the_file(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(size)))
    found = [*pieces(tmp_path / "file", 4)]
    assert b"".join(body for _, _, body in found) == bytes(range(size))
    assert found[-1][0] + len(found[-1][2]) == size == found[0][1]
