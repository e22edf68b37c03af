"""A column on several devices: CPU processes stand for them, started and fed as on GPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from smallbatch import machine
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines.lanes import lane_bytes
from smallbatch.engines.resident import load_resident
from smallbatch.errors import WorkerLost
from smallbatch.execution.chunks import Job, plan_chunks
from smallbatch.execution.column import train_column
from smallbatch.execution.devices import Parcel
from smallbatch.execution.watch import GRACE_S, Watch
from smallbatch.placement import placement as placements
from smallbatch.placement.placement import Placement, place, workload_of
from smallbatch.placement.rules import CAPTURED_SHARE
from smallbatch.placement.workload import Method
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.run import Run
from smallbatch.records.checkpoints import ChunkPlan
from tests.columns import checkpoints
from tests.noise import make_dataset

ROOT = Path(__file__).parents[2]
RESULTS = ("history.parquet", "weights.safetensors", "runs.json")
LONG = 50  # epochs: about a second
MODEL = "NVIDIA H200"


def plan(epochs: int = 3, seeds: int = 2) -> Column:
    settings = StudyConfig(model="resnet8", norm="none", epochs=epochs, weight_decay=1e-4)
    return plan_column(
        "study", settings, make_dataset(), batch_size=4, base_lrs=(2.0**-9, 2.0**-7, 2.0**6),
        seeds=range(seeds),
    )  # fmt: skip


def placed(column: Column, devices: tuple[str, ...], engine: Any = "loop") -> Placement:
    compute = ComputeConfig(device="cpu", engine=engine, workers=1)
    placement = place(column, compute, keep=False)
    return replace(placement, devices=devices, workers=len(devices)) if devices else placement


def train(
    column: Column, root: Path, devices: tuple[str, ...] = (), engine: Any = "loop", **more: Any
) -> list[bytes]:
    """Train with frequent checkpoints; the content of the result files."""
    out, placement = root / "m4", placed(column, devices, engine)
    train_column(column, out, placement=placement, checkpoint_seconds=0.05, work=root / "work",
                 **more)  # fmt: skip
    return [(out / name).read_bytes() for name in RESULTS]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Those of its children that were started for devices, and live."""
    found: list[psutil.Process] = []
    for child in process.children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def long_results(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return train(plan(LONG), tmp_path_factory.mktemp("one"))


class Looks:
    """An observer that remembers what it is told, and calls a function at each epoch's end."""

    def __init__(self, at_epoch: Any = lambda: None) -> None:
        self.at_epoch = at_epoch
        self.words: dict[int, str | None] = {}
        self.begun: list[str] = []
        self.done: list[str] = []
        self.epochs: list[tuple[str, int]] = []

    def run_begun(self, run: Run, started: object) -> None:
        self.begun.append(run.hash)
        for worker in workers_of(psutil.Process()):
            self.words[worker.pid] = worker.environ().get("CUDA_VISIBLE_DEVICES")

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self.epochs.append((run.hash, row["epoch"]))
        self.at_epoch()

    def run_done(self, run: Run, outcome: str) -> None:
        self.done.append(run.hash)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "visible", "devices"),
    [("loop", None, ("0", "1")), ("stacked", "GPU-c3,GPU-a1", ("GPU-c3", "GPU-a1"))],
)
def test_devices_make_the_same_column_and_each_worker_sees_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    visible: str | None,
    devices: tuple[str, ...],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    # As on GPUs: native lanes, which train here in their place, would fill a vector of one worker.
    monkeypatch.setattr(Placement, "vector_of", lambda *_: 1)
    looks, column = Looks(), plan()
    found = train(column, tmp_path / "two", devices, engine, observers=[looks])
    assert found == train(column, tmp_path / "one", (), engine)
    assert sorted(looks.words.values(), key=str) == sorted(devices)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert sorted(looks.done) == sorted(run.hash for run in column.runs)
    assert not workers_of(psutil.Process())


@pytest.mark.slow
def test_a_killed_device_worker_is_one_line_and_the_same_call_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], long_results: list[bytes]
) -> None:
    killed: list[psutil.Process] = []

    def kill_one() -> None:
        both_train = len(first.begun) == len(first.done) + 2
        kept = {path.parent for path in checkpoints(tmp_path)}
        if both_train and not killed and len(kept) == 2:
            killed.append(workers_of(psutil.Process())[0])
            killed[0].kill()

    column, first = plan(LONG), Looks(kill_one)
    said = "a training worker was killed by signal 9: if memory ran out, set compute.micro"
    with pytest.raises(WorkerLost, match=said):
        train(column, tmp_path / "two", ("0", "1"), observers=[first])
    assert not workers_of(psutil.Process())
    assert "Traceback" not in capfd.readouterr().err
    again = Looks()
    found = train(column, tmp_path / "two", ("0", "1"), observers=[again])
    assert "from its checkpoint" in capfd.readouterr().err.replace("their", "its")
    assert found == long_results
    assert sorted(again.done) == sorted(run.hash for run in column.runs)
    before = {run: max(epoch for name, epoch in first.epochs if name == run)
              for run, _ in first.epochs}  # fmt: skip
    gone_on = [run for run in before if (run, 1) not in again.epochs]
    assert gone_on  # by a checkpoint or a record, not from the beginning
    assert len(set(again.epochs)) == len(again.epochs)


COMMAND = """
import sys
from pathlib import Path
from smallbatch.errors import Stopped
from smallbatch.execution.devices import Parcel
from smallbatch.execution.watch import Watch
from tests.execution.test_devices import LONG, plan, train
with Watch() as watch:
    try:
        train(plan(LONG), Path(sys.argv[1]), ("0", "1"), watch=watch)
    except Stopped as why:
        print(why, file=sys.stderr)
        sys.exit(why.exit_code)
"""


def start(root: Path) -> psutil.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return psutil.Popen(
        [sys.executable, "-c", COMMAND, str(root)], env=environment, cwd=ROOT,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop(process: psutil.Popen, by: signal.Signals) -> float:
    """As a terminal or a scheduler does it, to all processes at once; the seconds it takes."""
    asked = time.monotonic()
    os.killpg(process.pid, by)
    _, said = process.communicate(timeout=30)
    assert f"interrupted by {by.name}: finished runs and checkpoints are kept" in said
    assert "Traceback" not in said
    assert process.returncode == 75
    return time.monotonic() - asked


@pytest.mark.slow
def test_stopped_or_killed_the_parent_leaves_no_worker_and_all_progress(
    tmp_path: Path, long_results: list[bytes]
) -> None:
    early = start(tmp_path)
    wait_until(lambda: len(workers_of(early)) == 2)  # they have not even imported torch
    workers = workers_of(early)
    assert stop(early, signal.SIGINT) < GRACE_S
    assert not any(map(lives, workers))

    killed = start(tmp_path)
    wait_until(lambda: checkpoints(tmp_path))
    workers = workers_of(killed)
    killed.kill()
    killed.communicate(timeout=10)
    assert len(workers) == 2
    wait_until(lambda: not any(map(lives, workers)))
    kept = checkpoints(tmp_path)
    assert kept

    stopped = start(tmp_path)
    wait_until(lambda: checkpoints(tmp_path) - kept)
    workers = workers_of(stopped)
    assert stop(stopped, signal.SIGTERM) < GRACE_S + 1
    assert not any(map(lives, workers))
    assert checkpoints(tmp_path)
    assert train(plan(LONG), tmp_path) == long_results


def test_a_parcel_brings_arrays_of_any_size() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    content = [np.arange(n, dtype=kind) for n in (0, 1, 1000) for kind in (np.uint8, np.int64)]
    parcel = Parcel(content)
    process = context.Process(target=_echo, args=(parcel, queue))
    process.start()
    parcel.close()
    found = queue.get()
    process.join()
    for mine, theirs in zip(content, found, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _echo(parcel: Any, queue: Any) -> None:
    content = parcel.open()
    content[2] += 0  # they can be written, as torch wants it
    queue.put(content)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models of the GPUs that torch sees: to be changed."""
    models = [MODEL] * 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(models))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: models[i])
    monkeypatch.setattr(placements, "resolve_device", lambda _: "cuda")
    return models


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("4,2,7", ["4", "2", "7"]),
        ("GPU-8932f937,GPU-1a, GPU-0", ["GPU-8932f937", "GPU-1a", "GPU-0"]),
        ("5,6,7,-1,0", ["5", "6", "7"]),  # CUDA sees those before the first that is not there
    ],
)
def test_gpus_are_named_as_the_variable_names_them(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch, variable: str | None, expected: list[str]
) -> None:
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert list(machine.gpus()) == expected
    assert machine.gpu_indices(expected[1:]) == [1, 2]
    assert machine.gpu_indices(()) == [0]


def on_gpus(column: Column) -> Placement:
    return place(column, ComputeConfig(device="cuda", engine="loop"), keep=False)


def test_a_column_is_placed_on_all_gpus_of_one_model(gpus: list[str]) -> None:
    placement = on_gpus(plan())
    assert (placement.devices, placement.workers) == (("0", "1", "2"), 3)
    assert placement.remark is None
    gpus[1] = "NVIDIA T4"
    placement = on_gpus(plan())
    assert (placement.devices, placement.workers) == (("0", "2"), 2)
    assert placement.remark == (
        "1 GPU of another model left out (NVIDIA T4); NVIDIA H200 trains it"
    )
    gpus[2] = "NVIDIA T4"  # one is left, which this process uses itself
    placement = on_gpus(plan())
    assert (placement.devices, placement.workers) == ((), 1)


def test_there_are_no_more_devices_than_runs_and_a_workload_is_one_devices(
    gpus: list[str],
) -> None:
    column = plan(seeds=1)  # three runs
    gpus.append(MODEL)
    assert on_gpus(column).devices == ("0", "1", "2")
    one = replace(column, runs=column.runs[:1])
    assert (on_gpus(one).devices, on_gpus(one).workers) == ((), 1)
    seven = plan_column("s", column.runs[0].settings, column.dataset, batch_size=4,
                        base_lrs=[0.1], seeds=range(7))  # fmt: skip
    workload = workload_of(seven, ComputeConfig(device="cuda"))
    assert (workload.lanes, workload.workers) == (2, 1)  # seven runs on four GPUs


@pytest.mark.parametrize(("fits", "sizes"), [(100, [2, 2, 2]), (1, [1] * 6)])
@pytest.mark.usefixtures("gpus")
def test_each_gpu_has_a_chunk_and_its_own_memory(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, sizes: list[int]
) -> None:
    column = plan()
    data = load_resident(noise, augment=False, device=torch.device("cpu"))
    images = 4 * 34 * 2 * 6 * 6  # bytes in float32, which the workers will put there
    free = int(fits * lane_bytes(column.runs[0], data) / CAPTURED_SHARE) + images + 1000
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free + 10**9 * (i != 1), 0))
    placement = Placement("cuda", Method("stacked", kernels="triton"), 3, None, "",
                          devices=("0", "1", "2"))  # fmt: skip
    job = Job(column.runs, column.runs, noise, placement, tmp_path, {}, ChunkPlan(tmp_path), 60,
              Watch(), lambda: None)  # fmt: skip
    assert [len(chunk) for chunk in plan_chunks(job, data)] == sizes
