"""What a column costs on a Ray cluster beside its training.

    PYTHONPATH=src python -m benchmarks.scale                          # into results/scale
    PYTHONPATH=src python -m benchmarks.scale --columns 50 --nodes 2 --out /tmp/scale

Simulated nodes of one core each on this machine, the real keeper, board and transfers; only the
worker is a stand-in, which trains nothing and leaves 66 KB of results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from tests.pipeline.cluster.ray_cluster import Cluster

from smallbatch import machine
from smallbatch.config.params import parse_params
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import load_meta
from smallbatch.pipeline.cluster.board import FINAL, Board, Task
from smallbatch.pipeline.cluster.ray.scheduler import Ray, read_note

STAND_IN = Path(__file__).parent / "stand_in"
PARAMS: dict[str, Any] = {
    "dataset": {"name": "digits", "source": "digits", "subset": 200, "test_subset": 50},
    "grid": {"studies": ["plain"], "dependent": [], "batch_sizes": [8], "base_lrs": ["2^-8"],
             "seeds": 1},
    "studies": {"plain": {"model": "resnet8", "norm": "none", "epochs": 1, "weight_decay": 0.0001}},
    "compute": {"device": "cpu", "cluster": "ray", "ray": {"cpus": 1}},
}  # fmt: skip
_SAMPLE_S = 5.0  # more often, and measuring is what takes the time


@dataclass
class Watched:
    """What a process uses while it runs."""

    process: psutil.Process
    peak_bytes: int = 0
    seconds: float = 0.0
    first: float | None = None
    name: str = ""

    def sample(self) -> None:
        """Look at it again."""
        with suppress(psutil.NoSuchProcess):
            self.peak_bytes = max(self.peak_bytes, self.process.memory_info().rss)
            times = self.process.cpu_times()
            if self.first is None:
                self.first = times.user + times.system
                self.name = _name(self.process)
            self.seconds = times.user + times.system - self.first


def main() -> int:
    """Measure, and write `scale.json`."""
    parser = argparse.ArgumentParser(description="What a column costs beside its training.")
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=20.0, help="give up after this time")
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    options = parser.parse_args()
    out = options.out.absolute()
    paths = [str(STAND_IN), *(str(Path(it).absolute()) for it in sys.path if it.endswith("src"))]
    paths += [it for it in os.environ.get("PYTHONPATH", "").split(os.pathsep) if it.startswith("/")]
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    os.chdir(folder)
    cluster = Cluster()
    try:
        for _ in range(options.nodes):
            cluster.add_node(PYTHONPATH=os.pathsep.join(paths))
        cluster.wait()
        os.environ.update(cluster.environment)
        found = measure(cluster, options.columns, options.nodes, options.minutes * 60)
    finally:
        cluster.close()
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    (out / "scale.json").write_text(f"{text}\n")
    print(text)
    return 0 if found["done"] == options.columns else 1


def measure(cluster: Cluster, columns: int, nodes: int, limit: float) -> dict[str, Any]:
    """Carry stand-ins for columns out, in the working folder."""
    PARAMS["compute"]["ray"]["address"] = cluster.address
    params = parse_params(PARAMS, "params.yaml")
    prepare(params.dataset)
    fingerprint = load_meta(Path("data/prepared/digits")).fingerprint
    board = Board()
    scheduler = Ray(board, params.compute)
    began = time.monotonic()
    with board.lock():
        tasks = [board.put(_task(m, fingerprint)) for m in range(1, columns + 1)]
        put = time.monotonic() - began
        scheduler.submit(tasks)
    submitted = time.monotonic() - began
    keeper = Watched(psutil.Process(read_note(board)["pid"]))
    head = [Watched(it) for it in (cluster.head, *cluster.head.children(recursive=True))]
    done, times, until = set[str](), list[float](), time.monotonic() + limit
    while len(done) < columns and time.monotonic() < until:
        time.sleep(_SAMPLE_S)
        for each in (keeper, *head):
            each.sample()
        for task in tasks:
            if task.key not in done:
                state = board.state(task.key)
                if state is None or state.status not in FINAL:
                    continue
                if state.status != "done":
                    raise RuntimeError(f"{task.key}: {state.status}: {state.message}")
                done.add(task.key)
                times.append(time.monotonic() - began - submitted)
    wall = times[-1] if times else limit
    with suppress(psutil.NoSuchProcess):
        keeper.process.terminate()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": machine.cpu_model(),
        "cores": machine.cores(),
        "ray": _version("ray"),
        "nodes": nodes,
        "columns": columns,
        "done": len(done),
        "seconds_to_put_and_submit": [round(put, 2), round(submitted - put, 2)],
        "seconds_to_the_first": round(times[0], 1) if times else None,
        "seconds": round(wall, 1),
        "seconds_per_column": round(wall / max(1, len(done)), 4),
        "load_average": round(os.getloadavg()[0], 1),
        "keeper_cpu_seconds_per_column": round(keeper.seconds / max(1, len(done)), 5),
        "keeper_peak_mebibytes": keeper.peak_bytes >> 20,
        "head_cpu_seconds_per_column": round(sum(it.seconds for it in head) / max(1, len(done)), 5),
        "head_peak_mebibytes": {f"{it.process.pid} {it.name}": it.peak_bytes >> 20 for it in head},
        "seconds_of_each_tenth": [
            round(times[min(len(times) - 1, len(times) * k // 10)], 1) for k in range(1, 11)
        ],
    }


def _task(batch_size: int, fingerprint: str) -> Task:
    return Task(
        f"digits-plain-m{batch_size}", "plain", batch_size, PARAMS, "params.yaml", (2**-8,), None,
        None, runs=1, updates=1, needs={}, dataset="digits", fingerprint=fingerprint,
        cluster="ray", wanted="",
    )  # fmt: skip


def _name(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    known = ("gcs_server", "log_monitor", "monitor", "client.server", "dashboard", "runtime_env",
             "raylet")  # fmt: skip
    return next((it for it in known if it in words), words[:30])


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    sys.exit(main())
