"""A worker that refuses its task, or has lost it to another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from smallbatch.config.params import parse_params
from smallbatch.errors import TakenOver, UserError
from smallbatch.pipeline.cluster.board import Board, State
from smallbatch.pipeline.cluster.journal import Events, Journal
from smallbatch.pipeline.cluster.needs import check, needs
from smallbatch.pipeline.cluster.news import News
from smallbatch.pipeline.cluster.work import work
from smallbatch.tracking import LiveMirror
from smallbatch.tracking.place import place_of
from smallbatch.tracking.records import ColumnInfo, RunInfo
from tests.pipeline.cluster.test_board import TASK

PARAMS = {
    "dataset": {"name": "digits", "source": "digits"},
    "grid": {"studies": ["a"], "batch_sizes": [4], "base_lrs": [0.5], "seeds": 1},
    "studies": {"a": {"model": "resnet8", "norm": "none", "epochs": 1, "weight_decay": 0.0}},
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    return Board()


def test_other_versions_are_refused_by_a_line_that_names_both(board: Board) -> None:
    task = board.put(replace(TASK, params=PARAMS, needs={"torch": "1.0.0"}))
    with pytest.raises(UserError, match=r"torch: found \d+\.\d+\.\d+, wanted 1\.0\.0"):
        work(board.file_of(task))
    state = board.state(task.key)
    assert state
    assert state.status == "failed"
    assert "wanted 1.0.0" in state.message


def test_what_is_needed_and_not_known_here_is_refused() -> None:
    check({}, {"torch": "2"}, "node")
    check({"torch": "2"}, {"torch": "2", "other": "1"}, "node")
    with pytest.raises(UserError, match="node: timm: found none, wanted 1"):
        check({"torch": "2", "timm": "1"}, {"torch": "2"}, "node")
    check({"triton": "3"}, {}, "node")  # a build of torch for a CPU does without
    with pytest.raises(UserError, match="node: triton: found 2, wanted 3"):
        check({"triton": "3"}, {"triton": "2"}, "node")


def test_variables_that_choose_other_numbers_are_needed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = parse_params(PARAMS, "x").studies["a"]
    plain = needs(study)
    assert plain["variables"] == "none"
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    with pytest.raises(UserError, match="variables: found none, wanted TIMM_FUSED_ATTN=0"):
        check(needs(study), plain, "node")


def test_a_task_that_was_submitted_again_is_not_begun(board: Board) -> None:
    former = board.put(TASK)
    board.put(TASK)
    with pytest.raises(UserError, match="no such task"):
        work(board.file_of(former))
    assert board.state(TASK.key) == State(2)


@pytest.mark.parametrize("later", [State(1, 2, "running", "other"), State(2, 1, "queued")])
def test_who_was_overtaken_writes_no_state(board: Board, later: State) -> None:
    journal = Journal(board, board.put(TASK), "node")
    journal.tell("running")
    assert cast("State", board.state(TASK.key)).attempt == 1
    board.set_state(TASK.key, later)
    with pytest.raises(TakenOver, match="goes on with it"):
        journal.tell("done")
    assert board.state(TASK.key) == later


def test_a_cancelled_task_stays_cancelled_and_its_worker_stops(board: Board) -> None:
    task = board.put(replace(TASK, params=PARAMS))
    board.set_state(TASK.key, State(1, status="cancelled"))
    with pytest.raises(UserError, match="digits-a-m4: cancelled"):
        work(board.file_of(task))
    assert board.state(TASK.key) == State(1, status="cancelled")


def test_attempts_of_a_submission_are_counted(board: Board) -> None:
    task = board.put(TASK)
    for attempt in (1, 2):
        Journal(board, task, "node").tell("stopped")
        assert cast("State", board.state(TASK.key)).attempt == attempt


class Told:
    """A mirror that notes what it is told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def forward(self, column: str, message: dict[str, Any]) -> None:
        self.messages.append(message)


def test_news_are_passed_on_once_and_those_of_a_later_attempt_from_the_start(
    board: Board,
) -> None:
    task, told = board.put(TASK), Told()
    news = News(board, cast("LiveMirror", told))
    path = board.folder_of(task.key) / "events.jsonl"
    news.pass_on(task)
    assert told.messages == []

    events = Events(path)
    events.run_begun("a", datetime.fromtimestamp(5, UTC))
    news.pass_on(task)
    events.run_epoch(RunInfo("a", 0.5, 0, 10), {"epoch": 1, "updates": 5, "train_loss": 2.0})
    with path.open("a") as file:
        file.write('{"kind": "beg')  # half of a line
    news.pass_on(task)
    news.pass_on(task)
    assert [it["kind"] for it in told.messages] == ["begin", "epoch"]
    assert told.messages[1]["row"] == {"epoch": 1.0, "updates": 5.0, "train_loss": 2.0}
    with path.open("a") as file:
        file.write('in", "run": "b", "time": 5.0}\n')
    news.pass_on(task)
    assert told.messages[2:] == [{"kind": "begin", "run": "b", "time": 5.0}]

    Events(path).run_begun("c", datetime.fromtimestamp(6, UTC))
    news.pass_on(task)
    assert [it["run"] for it in told.messages[3:]] == ["c"]


SETTINGS = parse_params(PARAMS, "params.yaml").studies["a"].model_dump(mode="json")
COLUMN = ColumnInfo("digits", "f", "a", 4, SETTINGS, place="of a node", environment={"gpu": None})


def test_the_folder_that_mlflow_is_told_is_that_of_this_project(board: Board) -> None:
    task, told = board.put(TASK), Told()
    Events(board.folder_of(task.key) / "events.jsonl").start(COLUMN)
    News(board, cast("LiveMirror", told)).pass_on(task)
    (message,) = told.messages
    assert message.pop("place") == place_of(Path("models/digits/a/m4"))
    assert message.pop("kind") == "start"
    assert message.pop("time") > 1e9
    # This is what the mirror's process makes of it.
    assert ColumnInfo(**message, place="of a node") == COLUMN


BEGIN = {"kind": "begin", "run": "a", "time": 5.0}
RUN = {"run": "a", "base_lr": 0.5, "seed": 0, "updates": 10}
EPOCH = {"kind": "epoch", "run": RUN, "row": {"epoch": 1.0, "train_loss": None}, "time": 5.0}
START = {"kind": "start", "dataset": "d", "fingerprint": "f", "study": "a", "batch_size": 4,
         "settings": SETTINGS, "time": 5.0}  # fmt: skip
NAN = float("nan")


@pytest.mark.parametrize(
    "line",
    ["", "[1]", "5", '"x"', "null", "{}", "[" * 100_000, '{"kind": ' * 1000, "\udcff"]
    + [
        json.dumps(it)
        for it in (
            *({**BEGIN, "kind": it} for it in ("finish", "kill", "drop", "odd", None, [])),
            *({**BEGIN, "time": it} for it in (None, "5", NAN, -1, 1e300)),
            *({**BEGIN, **it} for it in ({"run": 1}, {"odd": 1}, {"column": "other"})),
            {"kind": "begin", "run": "a"},
            *({**START, "batch_size": it} for it in ("4", 0, 10**400)),
            *({**START, "settings": it} for it in ([], {}, {**SETTINGS, "model": 1})),
            {**START, "odd": 1},
            {"kind": "start", "time": 5.0},
            *({**EPOCH, "run": it} for it in ("a", {}, {**RUN, "odd": 1}, {**RUN, "seed": "0"})),
            *({**EPOCH, "run": {**RUN, "base_lr": it}} for it in (0, -1, NAN)),
            *({**EPOCH, "row": it} for it in ([], {}, {"epoch": NAN}, {"epoch": "1"})),
            EPOCH,  # a value is None
        )
    ],
    ids=lambda line: line[:20],
)
def test_what_mlflow_cannot_be_told_is_left_out(board: Board, line: str) -> None:
    task, told = board.put(TASK), Told()
    path = board.folder_of(task.key) / "events.jsonl"
    right = {**EPOCH, "row": {"epoch": 1.0, "train_loss": 1e9}}
    lines = [line, json.dumps(START), json.dumps(BEGIN), line, json.dumps(right)]
    path.write_text("\n".join([*lines, ""]), errors="surrogateescape")
    News(board, cast("LiveMirror", told)).pass_on(task)
    assert [it["kind"] for it in told.messages] == ["start", "begin", "epoch"]


def test_the_loss_of_a_run_that_diverged_is_no_number_and_passed_on(board: Board) -> None:
    task, told = board.put(TASK), Told()
    row = {"epoch": 1, "train_loss": float("inf"), "test_loss": NAN}
    Events(board.folder_of(task.key) / "events.jsonl").run_epoch(RunInfo("a", 0.5, 0, 10), row)
    News(board, cast("LiveMirror", told)).pass_on(task)
    assert str(told.messages[0]["row"]) == str({key: float(it) for key, it in row.items()})


def test_a_line_that_is_too_long_is_left_out_and_a_long_file_read_in_parts(board: Board) -> None:
    task, told = board.put(TASK), Told()
    news = News(board, cast("LiveMirror", told))
    begin = f"{json.dumps(BEGIN)}\n".encode()
    with (board.folder_of(task.key) / "events.jsonl").open("wb") as file:
        file.write(begin)
        file.write(b"x" * 3 * 2**20 + b"\n" + b"x" * 9 * 2**20 + b"\n")
        file.write(begin)
    passed = list[int]()
    for _ in range(5):
        news.pass_on(task)
        passed.append(len(told.messages))
    assert (passed[0], passed[-1]) == (1, 2)


def test_events_that_are_no_file_or_behind_a_link_are_none(board: Board, tmp_path: Path) -> None:
    task, told = board.put(TASK), Told()
    news, path = News(board, cast("LiveMirror", told)), board.folder_of(TASK.key) / "events.jsonl"
    other = tmp_path / "other"
    other.write_text(f"{json.dumps(BEGIN)}\n")
    for make in (lambda: path.symlink_to(other), lambda: os.mkfifo(path), path.mkdir):
        make()
        news.pass_on(task)
        Events(path).run_begun("b", datetime.fromtimestamp(5, UTC))  # takes its place
        path.unlink()
    assert told.messages == []
    assert other.read_text() == f"{json.dumps(BEGIN)}\n"
