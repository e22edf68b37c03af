"""Columns on a Ray cluster of real processes, some of which are killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from smallbatch.config.params import load_params
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError
from smallbatch.modules import PACKAGE
from smallbatch.pipeline import experiments
from smallbatch.pipeline.cluster.board import Board, State, Task
from smallbatch.pipeline.cluster.outstanding import outstanding
from smallbatch.pipeline.cluster.ray.scheduler import Ray, keeper_runs, read_note
from smallbatch.pipeline.single import single_run
from smallbatch.records.fence import column_key
from tests.columns import checkpoints, place_and_train
from tests.pipeline.cluster.ray_cluster import TOKEN, Cluster, wait_for, workers

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

DATA = "dataset: {name: digits, source: digits, subset: 200, test_subset: 50}\n"
GRID = """\
grid:
  studies: [plain, normed]
  dependent: [{name: decayed, after: plain}]
  batch_sizes: [8, 16]
  base_lrs: [2^-8, 2^-4]
  seeds: 1
studies:
  plain: {model: resnet8, norm: none, epochs: 1, weight_decay: 0.0001}
  normed: {model: resnet8, norm: batch, epochs: 1, weight_decay: 0.0001}
  decayed: {model: resnet8, norm: none, epochs: 1, weight_decay: 0.001, base_lr: best of plain}
"""
LONG = """\
grid: {studies: [long], dependent: [], batch_sizes: [2, 4], base_lrs: [2^-8], seeds: 1}
studies:
  long: {model: resnet8, norm: none, epochs: 25, weight_decay: 0.0001}
"""
COMPUTE = """\
compute:
  {{device: cpu, engine: stacked, workers: auto, checkpoint_seconds: 0.3, cluster: ray,
   ray: {{address: "{address}"}}}}
"""


class Project:
    """A project whose folder is the working folder."""

    def __init__(self, studies: str, address: str) -> None:
        Path("params.yaml").write_text(DATA + studies + COMPUTE.format(address=address))
        self.params, self.board = load_params(), Board()
        prepare(self.params.dataset)
        self.ray = Ray(self.board, self.params.compute)

    def submit(self) -> list[Task]:
        tasks = outstanding(self.params, "params.yaml", self.params.columns)
        with self.board.lock():
            tasks = [self.board.put(task) for task in tasks]
            self.ray.submit(tasks)
        return tasks

    def state(self, task: Task) -> State:
        state = self.board.state(task.key)
        assert state
        return state

    def wait(self, tasks: list[Task], cluster: Cluster | None = None) -> int:
        """Wait until tasks are done; returns the most that a node trained at once."""
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max([most, *(len(workers(it)) for it in (cluster.nodes if cluster else []))])
            states = [self.state(task) for task in tasks]
            assert not [it for it in states if it.status in ("failed", "lost")], states
            return all(it.status == "done" for it in states)

        wait_for(ended, f"{[self.state(it) for it in tasks]}")
        return most

    def checkpoints(self, task: Task) -> set[int]:
        """Updates at which a column's kept checkpoints are."""
        work = Path(".smallbatch/work")
        folder = experiments.column_folder(self.params, task.study, task.batch_size)
        key = column_key(work, folder)
        return {int(it.stem) for at in work.glob(f"{key}*.checkpoints") for it in checkpoints(at)}

    def assert_as_here(self, tasks: list[Task], elsewhere: Path) -> None:
        """Results have the bytes of a training in this process."""
        compute = self.params.compute.model_copy(update={"workers": 1})
        for task in tasks:
            column = experiments.plan_study_column(self.params, task.study, task.batch_size)
            place = experiments.column_folder(self.params, task.study, task.batch_size)
            place_and_train(column, elsewhere / place, compute=compute, work=elsewhere / "work")
            for name in ("history.parquet", "weights.safetensors", "runs.json"):
                assert (place / name).read_bytes() == (elsewhere / place / name).read_bytes()
            assert (place / "timing.json").is_file()
            for run in column.runs:
                assert Path(".smallbatch/work", run.hash, "record").is_file()
        assert not list(Path(".smallbatch/work").glob("*.checkpoints"))
        assert not list(Path(".smallbatch/cluster").glob("*/incoming"))

    def end_keeper(self) -> None:
        if keeper_runs(self.board):
            psutil.Process(read_note(self.board)["pid"]).terminate()
        wait_for(lambda: not keeper_runs(self.board), "the keeper's end")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    found.nodes = [found.add_node(), found.add_node(SMALLBATCH_NODE_DATA="fetch")]
    found.wait()
    yield found
    found.close()


@pytest.fixture
def driver(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, for a project in a folder of its own."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    if keeper_runs(board := Board()):
        psutil.Process(read_note(board)["pid"]).kill()


@needs_ray
@pytest.mark.usefixtures("untracked")
def test_columns_are_as_if_trained_here(
    driver: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(GRID, driver.client)
    tasks = project.submit()
    assert len(tasks) == 6
    together = project.wait(tasks, driver)
    assert together == 1  # at most, on a node of one core
    project.assert_as_here(tasks, tmp_path / "here")
    for task in tasks:
        state = project.state(task)
        assert (state.attempt, state.runs_done, state.share) == (1, task.runs, 1.0)
        events = (project.board.folder_of(task.key) / "events.jsonl").read_text().splitlines()
        assert len([it for it in events if json.loads(it)["kind"] == "epoch"]) == task.runs
    # One node sees the project's images, the other fetched them, once.
    kept = [
        len(list(it.glob("?" * 64))) for it in sorted(driver.folder.glob("cache*/nodes/content"))
    ]
    assert kept == [0, len(list(Path("data/prepared/digits").iterdir()))]

    # So is a run outside the pipeline, of the same images in a folder of its own.
    ours = run_files()
    (key,) = {it.key for it in project.board.tasks()} - {it.key for it in tasks}
    state = project.board.state(key)
    assert state
    assert (state.status, state.attempt, state.runs_done) == ("done", 1, 1)
    (tmp_path / "other").mkdir()
    shutil.copy("params.yaml", tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "other")
        assert run_files("none") == ours


def run_files(cluster: str | None = None) -> list[bytes]:
    """What a run outside the pipeline leaves, but for times; None: by compute.cluster."""
    folder = single_run(
        Path("params.yaml"), "digits", {"model": "resnet8", "epochs": 1, "weight_decay": 0.0},
        batch_size=8, base_lr=2**-8, seed=7, device="cpu", cluster=cluster,
    ).folder  # fmt: skip
    return [
        (folder / it).read_bytes() for it in ("history.parquet", "weights.safetensors", "runs.json")
    ]


@needs_ray
def test_what_is_killed_goes_on_elsewhere(driver: Cluster, tmp_path: Path) -> None:
    project = Project(LONG, driver.address)
    first, second = project.submit()
    wait_for(lambda: project.checkpoints(first) and project.checkpoints(second), "checkpoints")
    node = next(it for it in driver.nodes if _trains(it, first))
    other = next(it for it in driver.nodes if _trains(it, second))
    assert node != other
    (worker,) = workers(node)
    above = worker.parent()
    assert above
    above.kill()  # Ray's own, without which the worker ends
    driver.kill(other)
    driver.nodes.remove(other)
    wait_for(lambda: not worker.is_running(), "the worker's end", 5)
    kept = {it.key: project.checkpoints(it) for it in (first, second)}
    driver.nodes.append(driver.add_node())
    for task in (first, second):
        assert_goes_on(project, task, kept[task.key])
        assert project.state(task).attempt == 2
    project.wait([first, second])
    project.assert_as_here([first, second], tmp_path / "here")


@needs_ray
def test_the_head_is_killed_and_started_again(
    driver: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seconds until Ray ends its driver, instead of 60.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
    project = Project(LONG, driver.address)
    tasks = project.submit()
    wait_for(lambda: all(project.checkpoints(it) for it in tasks), "checkpoints")
    driver.kill(driver.head)
    wait_for(lambda: not keeper_runs(project.board), "the keeper's end")
    with project.board.lock():
        project.ray.refresh()
    assert {project.state(it).status for it in tasks} == {"lost"}
    assert f"{driver.address} is gone; when it has been" in project.state(tasks[0]).message
    for node in driver.nodes:
        driver.kill(node)
    kept = {it.key: project.checkpoints(it) for it in tasks}
    driver.start_head()
    driver.nodes = [driver.add_node(), driver.add_node()]
    tasks = project.submit()
    assert [it.number for it in tasks] == [2, 2]
    for task in tasks:
        assert_goes_on(project, task, kept[task.key])

    # What is cancelled ends, and writes no more.
    found = [it for node in driver.nodes for it in workers(node)]
    assert found
    with project.board.lock():
        project.ray.cancel([it.key for it in tasks])
    wait_for(lambda: not any(it.is_running() for it in found), "the workers' end", 10)
    left = [project.checkpoints(it) for it in tasks]
    wait_for(lambda: not keeper_runs(project.board), "the keeper's end", 20)
    assert {project.state(it).status for it in tasks} == {"cancelled"}
    assert [project.checkpoints(it) for it in tasks] == left
    assert read_note(project.board)["status"] == "ended"


@needs_ray
def test_a_wrong_token_is_refused(driver: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("token").write_text("0" * 64)
    monkeypatch.setenv(TOKEN, str(Path("token").absolute()))
    project = Project(LONG, driver.address)
    with pytest.raises(UserError, match="the cluster refuses the token") as caught:
        project.submit()
    assert "\n" not in str(caught.value)
    assert not keeper_runs(project.board)


@needs_ray
def test_no_cluster_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1, where no Ray cluster answers"):
        Project(LONG, "127.0.0.1:1").submit()


@needs_ray
def test_without_a_cluster_this_machine_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no other cluster is noted
    project = Project(GRID, "auto")
    task = project.submit()[0]
    try:
        keeper = psutil.Process(read_note(project.board)["pid"])
        ports = [
            it.laddr.ip
            for process in [keeper, *keeper.children(recursive=True)]
            for it in process.net_connections("tcp")
            if it.status == psutil.CONN_LISTEN
        ]
        assert ports
        assert {it.removeprefix("::ffff:") for it in ports} == {"127.0.0.1"}
        wait_for(lambda: project.state(task).status == "running", "a column")
    finally:
        project.end_keeper()


def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'ray' else found(name, *more)\n"
        "from smallbatch.config.params import ComputeConfig\n"
        "from smallbatch.pipeline.cluster.board import Board\n"
        "from smallbatch.pipeline.cluster.ray.scheduler import Ray\n"
        "Ray(Board(), ComputeConfig(cluster='ray')).submit([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert 'pip install "smallbatch-study[ray]"' in done.stderr.splitlines()[-1]


def assert_goes_on(project: Project, task: Task, kept: set[int]) -> None:
    """A column's next checkpoint comes after those that were kept: it did not begin anew."""

    def further() -> set[int]:
        return project.checkpoints(task) - kept

    wait_for(lambda: further() or project.state(task).status == "done", "another checkpoint")
    assert all(it > max(kept) for it in further())


def _trains(node: psutil.Process, task: Task) -> bool:
    return any(task.key in word for it in workers(node) for word in it.cmdline())
