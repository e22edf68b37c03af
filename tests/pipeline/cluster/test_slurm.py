"""Columns as jobs of a real Slurm, which these tests start; most with a stand-in for the worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from smallbatch.cli.main import main
from smallbatch.config.params import ComputeConfig, SlurmConfig, load_params
from smallbatch.errors import UserError
from smallbatch.pipeline.cluster import slurm as road
from smallbatch.pipeline.cluster.board import Board, State, Status, Task
from smallbatch.pipeline.cluster.slurm import Slurm
from smallbatch.pipeline.experiments import plan_study_column
from tests.columns import checkpoints, place_and_train
from tests.pipeline.cluster.slurm_site import CORES, MOST, Site, missing, slurm_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"no {', '.join(missing())} (slurm-wlm, munge)"),
]

WORKER = road.WORKER
PARAMS = """
dataset: {name: digits, source: digits, subset: 400, test_subset: 100}
grid: {studies: [bn], dependent: [{name: gn, after: bn}], batch_sizes: [8], base_lrs: [1], seeds: 1}
advise: {studies: []}
studies:
  bn:
    {model: resnet8, norm: batch, epochs: 8, weight_decay: 0.0001,
      optimizer: adamw, schedule: cosine, lrs: [2^-10]}
  gn:
    {model: resnet8, norm: group, epochs: 1, weight_decay: 0.0001,
      optimizer: adamw, schedule: cosine, base_lr: best of bn}
compute: {device: cpu, engine: loop, workers: 1, checkpoint_seconds: 0.1, cluster: slurm}
"""

# Does what its study is called, and writes states as a worker does.
STAND_IN = """\
import json, os, signal, sys, time
from pathlib import Path

file = Path(sys.argv[1])
task = json.loads(file.read_text())
state = file.with_name("state.json")
found = json.loads(state.read_text())
attempt = found["attempt"] + 1

def tell(status):
    found = json.loads(state.read_text())
    if found["attempt"] > attempt or found["status"] == "cancelled":
        sys.exit(2)
    part = state.with_suffix(".new")
    part.write_text(json.dumps({**found, "attempt": attempt, "status": status}))
    part.rename(state)

def keep(*_):
    file.with_name("kept").touch()
    tell("stopped")
    sys.exit(75)

signal.signal(signal.SIGTERM, keep)
file.with_name(f"environment-{attempt}").write_text(json.dumps(dict(os.environ)))
tell("running")
print(f"attempt {attempt} of {task['study']}", flush=True)
if task["study"] == "works" or (task["study"] == "twice" and attempt == 1):
    while not file.with_name("go").exists():
        time.sleep(0.02)
if task["study"] == "fails":
    tell("failed")
    sys.exit(2)
if task["study"] == "crashes":
    os.kill(os.getpid(), 9)
tell("done")
"""


@pytest.fixture(scope="module")
def site() -> Generator[Site]:
    with slurm_site() as site:
        yield site


class Road:
    """A project's board and its road to Slurm."""

    def __init__(self, *options: str) -> None:
        self.board = Board()
        self.slurm = Slurm(self.board, ComputeConfig(slurm=SlurmConfig(options=options)))

    def put(self, study: str, batch_size: int = 1, after: str | None = None) -> Task:
        key = f"images-{study}-m{batch_size}"
        return self.board.put(
            Task(key, study, batch_size, {}, "params.yaml", (0.1,), None, after, 1, 1, {}, "images",
                 "", "slurm")
        )  # fmt: skip

    def state(self, task: Task) -> State:
        state = self.board.state(task.key)
        assert state
        return state

    def file(self, task: Task, name: str) -> Path:
        return self.board.folder_of(task.key) / name

    def wait(self, task: Task, status: Status, seconds: float = 180) -> State:
        """Until a task is so; meanwhile Slurm is asked now and then."""
        self._until(lambda: self.state(task).status == status, seconds, lambda: self.state(task))
        return self.state(task)

    def wait_file(self, task: Task, name: str, seconds: float = 180) -> str:
        file = self.file(task, name)
        self._until(file.exists, seconds, lambda: self.state(task))
        return file.read_text()

    def goes_on(self, task: Task, seconds: float = 180) -> None:
        """Until a stopped task is done; as whoever waits for it does, submit it again if need be.

        Slurm 22.05 sometimes, on a busy machine, takes the late word of a script's end for that of
        the job which it has just put back into the queue: the job has then failed. Its task is lost
        where that is seen only after the job was seen to wait.
        """
        again: list[Task] = []

        def done() -> bool:
            self.slurm.refresh()
            if not again and self.state(task).status in ("stopped", "lost"):
                again.append(self.board.put(task))
                self.slurm.submit(again)
            return self.state(task).status == "done"

        self._until(done, seconds, lambda: self.state(task))
        state = self.state(task)
        assert (state.number, state.attempt) == ((2, 1) if again else (1, 2))

    def _until(self, met: Callable[[], bool], seconds: float, found: Callable[[], object]) -> None:
        end = time.monotonic() + seconds
        while not met():
            self.slurm.refresh()
            if time.monotonic() > end:
                queue = subprocess.run(["squeue", "--states=all"], capture_output=True, check=False)
                log = self.board.folder / "slurm.log"
                said = log.read_text() if log.exists() else ""
                raise TimeoutError(f"{found()}\n{queue.stdout.decode()}\n{said}")
            time.sleep(0.1)


@contextmanager
def a_project(folder: Path) -> Generator[Path]:
    """A working folder with a stand-in for the worker."""
    root = folder / "a project, 100%"  # all that a script has to quote
    root.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(road, "WORKER", (sys.executable, "-S", str(folder / "worker.py")))
        patch.setattr(road, "_LAG_S", 1.0)
        yield root


@pytest.fixture(scope="module", autouse=True)
def limited(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with a task of one minute, which Slurm looks at twice a minute."""
    folder = tmp_path_factory.mktemp("limited")
    with a_project(folder):
        road = Road("--partition=calm", "--time=1")
        road.slurm.submit([road.put("twice")])
    return folder


@pytest.fixture(autouse=True)
def project(limited: Path, tmp_path: Path) -> Generator[Path]:
    with a_project(tmp_path) as root:
        yield root
        jobs = [job for task in Board().tasks() if (job := Board().job(task.key).get("job"))]
        for kind in ("--signal=KILL", "--state=PENDING") if jobs else ():
            subprocess.run(["scancel", "--quiet", "--full", kind, *jobs], check=False)


def test_arrays_end_and_are_split_at_the_site_s_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    road = Road("--time=5")
    tasks = [road.put("ends", 2**power) for power in range(MOST + 2)]
    road.slurm.submit(tasks)
    for task in tasks:
        state = road.wait(task, "done")
        assert (state.number, state.attempt) == (1, 1)
        assert road.file(task, "log").read_text() == "attempt 1 of ends\n"
        environment = road.file(task, "environment-1").read_text()
        assert "MLFLOW_TRACKING_TOKEN" not in environment
        assert '"NODES_OWN": "here"' in environment
    jobs = [road.board.job(task.key)["job"] for task in tasks]
    assert [jobs.count(job) for job in sorted(set(jobs), key=int)] == [MOST, 2]
    assert site.call("squeue", "-h", "--states=all", "-o", "%l", "-j", jobs[0]).split()[0] == "5:00"


def test_a_dependent_starts_after_its_source_and_never_if_that_fails() -> None:
    road = Road()
    source, failing = road.put("works"), road.put("fails")
    after = [road.put("ends", 1, source.key), road.put("ends", 2, failing.key)]
    road.slurm.submit([*after, source, failing])
    road.wait(failing, "failed")
    state = road.wait(after[1], "failed")
    assert state.message == "images-fails-m1, which it comes after: failed"
    assert road.wait(source, "running").attempt == 1
    assert road.state(after[0]).message == "waits in Slurm: Dependency"
    late = road.put("ends", 3, source.key)  # by a later call
    road.slurm.submit([late])
    assert not road.file(after[0], "environment-1").exists()
    road.file(source, "go").touch()
    for task in (source, after[0], late):
        road.wait(task, "done")
    begun = road.file(after[0], "environment-1").stat().st_mtime
    assert begun > road.file(source, "state.json").stat().st_mtime
    assert not road.file(after[1], "environment-1").exists()


def test_a_preempted_task_keeps_its_progress_and_goes_on(site: Site) -> None:
    road = Road(f"--cpus-per-task={CORES - 1}")
    task = road.put("works")
    road.slurm.submit([task])
    road.wait(task, "running")
    site.call("sbatch", "--partition=high", f"--cpus-per-task={CORES - 1}", "--output=/dev/null",
              "--wrap=sleep 1")  # fmt: skip
    road.wait_file(task, "kept")
    road.file(task, "go").touch()
    road.goes_on(task)
    assert road.file(task, "log").read_text().count("attempt") == 2


def test_cancelled_tasks_end_and_others_go_on(site: Site) -> None:
    road = Road("--cpus-per-task=2")  # so that the third has to wait
    tasks = [road.put("works", m) for m in (1, 2, 3)]
    road.slurm.submit(tasks)
    for task in tasks[:2]:
        road.wait(task, "running")
    road.slurm.cancel([tasks[0].key, tasks[2].key, "images-unknown-m1"])
    assert [road.state(task).status for task in tasks] == ["cancelled", "running", "cancelled"]
    road.wait_file(tasks[0], "kept")
    road.file(tasks[1], "go").touch()
    road.wait(tasks[1], "done")
    job = road.board.job(tasks[0].key)["job"]
    end = time.monotonic() + 20
    while site.call("squeue", "--noheader", "--jobs", job):
        assert time.monotonic() < end
        time.sleep(0.1)
    road.slurm.refresh()
    assert [road.state(task).status for task in tasks] == ["cancelled", "done", "cancelled"]
    assert not road.file(tasks[2], "environment-1").exists()
    assert not road.file(tasks[0], "environment-2").exists()


def test_what_ended_without_a_word_is_lost_or_cancelled(site: Site) -> None:
    road = Road()
    crashing, unknown, none, ended, behind = tasks = [
        road.put(study) for study in ("crashes", "unknown", "none", "works", "ends")
    ]
    road.slurm.submit([crashing, ended])
    Road("--hold").slurm.submit([behind])
    road.board.set_job(unknown.key, {"job": "987654", "index": 0})
    road.wait(ended, "running")
    assert road.state(behind).message == "waits in Slurm: JobHeldUser"
    job = road.board.job(ended.key)
    site.call("scancel", f"{job['job']}_{job['index']}", road.board.job(behind.key)["job"])
    for task in tasks[:3]:
        road.wait(task, "lost")
    job = road.board.job(crashing.key)
    assert road.state(crashing).message == (
        f"its job {job['job']}_{job['index']} ended in Slurm: FAILED NonZeroExitCode; see "
        ".smallbatch/cluster/images-crashes-m1/log and .smallbatch/cluster/slurm.log"
    )
    assert road.state(unknown).message == "Slurm no longer knows its job 987654_0"
    assert road.state(none).message == "it was not given to Slurm"
    for task in (ended, behind):
        assert road.wait(task, "cancelled").message == "cancelled in Slurm"


def test_slurm_s_refusal_is_one_line() -> None:
    road = Road("--partition=nowhere")
    with pytest.raises(UserError, match=r"^sbatch: .*invalid partition specified.*$"):
        road.slurm.submit([road.put("ends")])


def test_real_columns_stopped_on_the_way_have_the_numbers_of_an_undisturbed_training(
    site: Site, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road, "WORKER", WORKER)
    (project / "params.yaml").write_text(PARAMS)
    _smallbatch("prepare")
    _smallbatch("submit", "--detach")
    it = Road()
    first, second = it.board.task("digits-bn-m8"), it.board.task("digits-gn-m8")
    assert first
    assert second
    it._until(lambda: bool(checkpoints(Path(".smallbatch"))),
              120, lambda: it.state(first))  # fmt: skip
    job = it.board.job(first.key)
    # As Slurm does before a time limit.
    site.call("scancel", "--batch", "--signal=TERM", f"{job['job']}_{job['index']}")
    params = load_params(Path("params.yaml"))
    column = plan_study_column(params, "bn", 8)
    undisturbed = tmp_path / "column"
    place_and_train(column, undisturbed, compute=params.compute, work=tmp_path)
    it.goes_on(first)
    assert it.wait(second, "done").share == 1
    for name in ("history.parquet", "weights.safetensors"):
        made = Path("models/digits/bn/m8", name).read_bytes()
        assert made == (undisturbed / name).read_bytes()
    assert Path("models/digits/gn/m8/runs.json").exists()


# Late, as Slurm had to see the limit first; before the controller starts again, and its clock.
def test_a_task_that_its_time_limit_stops_goes_on(limited: Path) -> None:
    with a_project(limited):
        road = Road()
        (task,) = road.board.tasks()
        road.wait_file(task, "kept")
        road.file(task, "go").touch()
        road.goes_on(task)


def test_without_its_controller_states_stay(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    road = Road()
    task = road.put("works")
    road.slurm.submit([task])
    road.wait(task, "running")
    other = road.put("ends")
    road.board.set_job(other.key, {"job": "987654", "index": 0})
    site.stop("slurmctld")
    try:
        with pytest.raises(UserError, match=r"^\w+: .*Unable to contact slurm controller.*$"):
            road.slurm.submit([other])
        for _ in range(3):
            road.slurm.refresh()
        said = capsys.readouterr().err
        assert said.startswith("warning: squeue: ")
        assert said.count("\n") == 1
        assert [road.state(it).status for it in (task, other)] == ["running", "queued"]
    finally:
        site.start("slurmctld")
        site.wait_until_up()
    road.slurm._away_until = 0.0
    road.wait(other, "lost")
    road.file(task, "go").touch()
    road.wait(task, "done")


def _smallbatch(*words: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
