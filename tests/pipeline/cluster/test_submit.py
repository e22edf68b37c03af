"""What is submitted, what is left alone and what is cancelled; the scheduler only notes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from ruamel.yaml import YAML

from smallbatch.config.params import Params, parse_params, parse_study
from smallbatch.data.prepare import prepare
from smallbatch.engines.made_by import made_by_on
from smallbatch.errors import UserError
from smallbatch.execution.watch import Watch
from smallbatch.pipeline.cluster import elsewhere, submit, targets
from smallbatch.pipeline.cluster.board import Board, State, Task
from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.pipeline.cluster.news import News
from smallbatch.pipeline.cluster.outstanding import WORK, outstanding, task_of_run
from smallbatch.pipeline.cluster.ray.files import column_of
from smallbatch.pipeline.cluster.wait import Waiter
from smallbatch.pipeline.experiments import plan_study_column, prepared
from smallbatch.pipeline.single import plan_on
from smallbatch.protocol.outcome import RunResult
from smallbatch.records import files
from smallbatch.records.schema import Clock
from tests.pipeline.cluster.test_outstanding import RAW, keep
from tests.project import Project

# The present code's engine `loop`, on some processor.
MAKER = made_by_on("loop", "cpu", parse_study(RAW["studies"]["a"], "a"))


class Noted:
    """A scheduler that does nothing else."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.submitted: list[tuple[str, int]] = []
        self.cancelled: list[str] = []

    def submit(self, tasks: Sequence[Task]) -> None:
        self.submitted += [(task.key, task.number) for task in tasks]

    def refresh(self) -> None:
        pass

    def cancel(self, keys: Collection[str]) -> None:
        self.cancelled += keys
        for key in keys:
            self.board.set_state(key, State(1, status="cancelled"))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.chdir(tmp_path)
    prepare(parse_params(RAW, "params.yaml").dataset)
    return Board()


@pytest.fixture
def noted(board: Board, monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted(board)
    monkeypatch.setattr(submit, "scheduler_of", lambda _board, _compute: noted)
    return noted


def params(**changes: Any) -> Params:
    """Those of the tests of what is outstanding, with some settings of study a or the grid."""
    raw = {**RAW, "studies": {**RAW["studies"]}, "grid": {**RAW["grid"]}}
    for key, value in changes.items():
        if key in raw["grid"]:
            raw["grid"][key] = value
        else:
            raw["studies"]["a"] = {**raw["studies"]["a"], key: value}
    return parse_params(raw, "params.yaml")


def give(
    noted: Noted, given: Params, columns: Collection[tuple[str, int]] = (("a", 4),)
) -> tuple[list[str], list[str]]:
    """Keys of what is under way after a submission, and of what it cancelled."""
    cancelled: list[Task] = []

    def note(tasks: list[Task]) -> None:
        events = (noted.board.folder_of(task.key) / EVENTS for task in tasks)
        assert all(path.exists() for path in events)  # by which MLflow is told
        cancelled.extend(tasks)

    going = submit.submit(
        noted.board, noted, given, "params.yaml", columns, None, lambda: None, note
    )
    for task in going:
        (noted.board.folder_of(task.key) / EVENTS).touch()
    return [it.key for it in going], [it.key for it in cancelled]


def test_a_column_is_submitted_once_whoever_asks(noted: Noted) -> None:
    assert give(noted, params()) == (["digits-a-m4"], [])
    assert give(noted, params()) == (["digits-a-m4"], [])
    assert noted.submitted == [("digits-a-m4", 1)]


@pytest.mark.parametrize("status", ["lost", "stopped", "failed", "cancelled", "done"])
def test_what_is_under_way_no_more_is_submitted_again(noted: Noted, status: Any) -> None:
    give(noted, params())
    noted.board.set_state("digits-a-m4", State(1, status=status))
    give(noted, params())
    assert noted.submitted == [("digits-a-m4", 1), ("digits-a-m4", 2)]


def test_other_settings_take_the_place_of_those_under_way(noted: Noted) -> None:
    give(noted, params(epochs=100))
    assert give(noted, params()) == (["digits-a-m4"], ["digits-a-m4"])
    assert noted.submitted == [("digits-a-m4", 1), ("digits-a-m4", 2)]


def test_they_are_cancelled_where_nothing_is_to_be_trained(noted: Noted) -> None:
    # A column that is complete would be replaced by one of other settings.
    give(noted, params(epochs=100))
    keep(params(), MAKER)
    assert give(noted, params()) == ([], ["digits-a-m4"])


def test_columns_that_the_grid_no_longer_names_are_cancelled(noted: Noted) -> None:
    give(noted, params(), [("a", 4), ("a", 16)])
    assert give(noted, params(batch_sizes=[16])) == ([], ["digits-a-m4"])
    other: list[Task] = []
    submit.submit(
        noted.board, noted, params(), "other.yaml", [("a", 4)], None, lambda: None, other.extend
    )
    assert other == []


def test_a_dependent_column_goes_on_when_its_source_is_complete(noted: Noted) -> None:
    columns = [("a", 4), ("b", 4)]
    give(noted, params(), columns)
    tasks = {key: noted.board.task(key) for key in ("digits-a-m4", "digits-b-m4")}
    dependent = cast("Task", tasks["digits-b-m4"])
    assert (dependent.after, dependent.base_lrs) == ("digits-a-m4", None)
    now = replace(dependent, after=None, base_lrs=(0.5,))
    assert submit.is_same(dependent, now)
    assert not submit.is_same(now, replace(now, base_lrs=(0.25,)))


def run_task(given: Params) -> Task:
    """That of a run outside the pipeline, with the settings of study a and another seed."""
    column = plan_study_column(given, "a", 4, [0.5])
    run = replace(column.runs[0], seed=7)
    return task_of_run(replace(column, runs=(run,)), given.compute, Path("images"), Path("results"))


def give_run(noted: Noted, task: Task) -> list[str]:
    going = submit.submit_run(noted.board, noted, task, lambda: None, lambda _: None)
    return [it.key for it in going]


def test_runs_outside_the_pipeline_and_columns_of_it_leave_each_other_alone(noted: Noted) -> None:
    task = run_task(params())
    assert give_run(noted, task) == [task.key]
    assert give(noted, params()) == (["digits-a-m4"], [])
    assert give_run(noted, task) == [task.key]
    # Even where a params file has the name that stands for none.
    going = submit.submit(
        noted.board, noted, params(), task.origin, [("a", 4)], None, lambda: None, lambda _: None
    )
    assert [it.key for it in going] == ["digits-a-m4"]
    assert noted.submitted == [(task.key, 1), ("digits-a-m4", 1)]
    assert noted.cancelled == []


def test_a_run_with_other_compute_settings_takes_the_place_of_that_under_way(noted: Noted) -> None:
    task = run_task(params())
    give_run(noted, task)
    give_run(noted, replace(task, params={**task.params, "compute": {"device": "cuda"}}))
    assert noted.cancelled == [task.key]
    assert noted.submitted == [(task.key, 1), (task.key, 2)]


def test_a_run_that_is_kept_is_not_submitted(noted: Noted) -> None:
    task = run_task(params())
    result = RunResult("finished", None, [], {}, 10, {})
    clock = Clock(started="2026-01-01T00:00:00+00:00", seconds=1.0)
    files.save_record(WORK / task.key[-16:], result, clock, MAKER)
    assert give_run(noted, task) == []
    record = WORK / task.key[-16:] / "record"
    record.write_bytes(record.read_bytes()[:-1])
    assert give_run(noted, task) == [task.key]


@pytest.mark.parametrize("settings", [
    {"optimizer": "adamw", "betas": (0.8, 0.99), "schedule": "cosine", "warmup": 0.1},
    {"optimizer": "nesterov", "momentum": 0.8, "augment": True},
    {"norm": "ghost", "bn_batch_size": 2},
])  # fmt: skip
def test_a_node_has_the_run_that_was_asked_for(board: Board, settings: dict[str, Any]) -> None:
    study = parse_study({"model": "resnet8", "epochs": 1, "weight_decay": 0.1, **settings}, "run")
    data = prepared(params())
    column = plan_on(data, "net.mine-net", study, batch_size=4, base_lrs=[0.5], seeds=[2**32 - 1])
    (run,) = column.runs
    task = task_of_run(column, params().compute, Path("images"), Path("results"))
    board.put(task)
    found = column_of(cast("Task", board.task(f"digits-net.mine-net-m4-{run.hash}")))
    assert found.runs == {run.hash}
    assert found.folder == Path("results")


def test_a_run_outside_the_pipeline_is_cancelled_by_its_key_alone(noted: Noted) -> None:
    task = run_task(params())  # of the name of a study
    give_run(noted, task)
    give(noted, params())
    assert elsewhere.cancel_columns(["a"], []) == ["digits-a-m4"]
    assert elsewhere.cancel_columns([task.key], []) == [task.key]


class Silent:
    """A mirror that is told nothing of use."""

    def forward(self, column: str, message: dict[str, Any]) -> None:
        pass


def waiter(noted: Noted) -> Waiter:
    news = News(noted.board, cast("Any", Silent()))
    tasks = noted.board.tasks()
    return Waiter(noted.board, noted, tasks, news, Watch(), lambda _: None)


def test_who_waits_follows_the_same_column_of_another_command(noted: Noted) -> None:
    give(noted, params())
    waiting = waiter(noted)
    noted.board.put(cast("Task", noted.board.task("digits-a-m4")))
    noted.board.set_state("digits-a-m4", State(2, status="done"))
    assert waiting.until_ended(["digits-a-m4"])["digits-a-m4"].number == 2


def test_who_waits_does_not_take_another_one_s_settings(noted: Noted) -> None:
    give(noted, params())
    waiting = waiter(noted)
    give(noted, params(epochs=100))
    noted.board.set_state("digits-a-m4", State(2, status="lost"))
    with pytest.raises(UserError, match="digits-a-m4: another command submitted it with other"):
        waiting.until_ended(["digits-a-m4"])
    assert noted.submitted == [("digits-a-m4", 1), ("digits-a-m4", 2)]


def test_a_column_that_is_lost_again_and_again_has_failed(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallbatch.pipeline.cluster.wait.ASK_S", 0.0)
    monkeypatch.setattr("smallbatch.pipeline.cluster.wait.POLL_S", 0.0)

    def lose() -> None:
        state = noted.board.state("digits-a-m4")
        if state and state.status == "queued":
            noted.board.set_state("digits-a-m4", state.now(status="lost", message="no node"))

    noted.refresh = lose
    give(noted, params())
    state = waiter(noted).until_ended(["digits-a-m4"])["digits-a-m4"]
    assert (state.status, state.message) == ("failed", "was lost 3 times without progress: no node")
    assert [number for _, number in noted.submitted] == [1, 2, 3, 4]


def test_cancel_names_what_is_not_there(noted: Noted) -> None:
    give(noted, params())
    with pytest.raises(UserError, match="study, column or run: found 'all', submitted: a"):
        elsewhere.cancel_columns(["all"], [])
    with pytest.raises(UserError, match="--batch-size: found 8, submitted: 4"):
        elsewhere.cancel_columns([], [8])
    assert elsewhere.cancel_columns(["a"], [4]) == ["digits-a-m4"]
    assert cast("State", noted.board.state("digits-a-m4")).message == "by `smallbatch cancel`"


def _waited(noted: Noted, end: State, monkeypatch: pytest.MonkeyPatch, *, log: bool = False) -> str:
    """What is said of a column that ends so while it is waited for."""
    monkeypatch.setattr(elsewhere, "scheduler_of", lambda _board, _compute: noted)

    def refresh() -> None:
        if noted.board.state("digits-a-m4"):  # submitted
            noted.board.set_state("digits-a-m4", end)
            if log:
                (noted.board.folder_of("digits-a-m4") / "log").touch()

    noted.refresh = refresh
    given = parse_params({**RAW, "compute": {"cluster": "ray"}}, "params.yaml")
    with Watch() as watch:
        return elsewhere.train_elsewhere(given, "params.yaml", "a", 4, cast("Any", Silent()), watch)


def test_who_waited_is_told_where_and_in_what_time_it_was_trained(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:05+00:00"
    done = State(1, 1, "done", "node7", started=began, told=ended)
    assert _waited(noted, done, monkeypatch) == "trained by ray on node7 in 1:05 min"


@pytest.mark.parametrize("log", [False, True])
def test_a_log_is_named_only_where_there_is_one(
    noted: Noted, monkeypatch: pytest.MonkeyPatch, log: bool
) -> None:
    cancelled = State(1, status="cancelled", message="by `smallbatch cancel`")
    with pytest.raises(UserError) as told:
        _waited(noted, cancelled, monkeypatch, log=log)
    more = "; its log is .smallbatch/cluster/digits-a-m4/log" if log else ""
    said = "digits-a-m4: cancelled on the cluster: by `smallbatch cancel`"
    assert str(told.value) == said + more


def test_runs_are_not_complete_if_the_engine_that_is_asked_for_did_not_make_them(
    board: Board,
) -> None:
    keep(params(), MAKER)
    for engine, left in (("auto", []), ("loop", []), ("stacked", ["digits-a-m4"])):
        given = parse_params({**RAW, "compute": {"cluster": "slurm", "engine": engine}}, "x")
        assert [it.key for it in outstanding(given, "x", {("a", 4)})] == left


def test_a_column_whose_files_are_made_now_has_whole_records(board: Board) -> None:
    keep(params(), MAKER)
    record = next(WORK.glob("*/record"))
    checksum, *rest = record.read_bytes()
    record.write_bytes(bytes([checksum ^ 1, *rest]))
    assert outstanding(params(), "x", {("a", 4)}) == []
    assert len(outstanding(params(), "x", {("a", 4)}, own=("a", 4))) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries that DVC imports
def test_the_stages_of_a_repro_are_those_that_dvc_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project", "")
    YAML(typ="safe").dump({**RAW, "advise": {"studies": []}}, project.root / "params.yaml")
    monkeypatch.chdir(project.root)
    both = {"code", "prepare", "train@a-4", "train_dependent@study0-4"}
    for words, found in (
        ("repro train_dependent@study0-4", both),
        ("repro -s train@a-4", {"train@a-4"}),
        ("repro --glob train@*", {"code", "prepare", "train@a-4", "train@a-16"}),
        ("exp run train_dependent@study0-4", both),
    ):
        assert targets._stages(words.split()) == found
    everything = targets._stages(["repro"])
    assert {"train@a-16", "evaluate", "report", *both} <= everything
