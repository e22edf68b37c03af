"""Other people's ways to train K lanes in JAX: `vmap`, or one batched product per convolution.

`jax-vmap`: a plain model under `jax.vmap`, which makes grouped convolutions of its lanes.
`jax-einsum`: the 3×3 patches of all lanes' inputs times their weights, one batched matrix product
per convolution. `jax-einsum-x3`: the same by three TF32 products each, nearly of float32's accuracy
on tensor cores. All run 100 updates as one program (`jax.lax.scan`), which keeps its state on the
device. Torch stays out of this process.

    python -m benchmarks.gpu.peers_jax --peer jax-vmap --norm batch --m 2 --lanes 26
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import gc
import os
import sys
import time
from typing import Any

from benchmarks.gpu import peers_cli
from benchmarks.gpu.peers_oracle import checked_lanes, in_float32, initial
from benchmarks.gpu.peers_task import (
    CHECKED_UPDATES,
    Array,
    Task,
    compare,
    median_seconds,
    timed_task,
)
from smallbatch.speed.bench.peers.program import Program, set_up

PEERS = ("jax-vmap", "jax-einsum", "jax-einsum-x3")
UPDATES = {"cuda": 100, "cpu": 5}  # of a call


def measure(
    peer: str,
    norm: str,
    m: int,
    lanes: int,
    images: Array,
    labels: Array,
    seconds: float,
    device: str,
    *,
    check: bool = False,
) -> dict[str, Any]:
    """Images per second of all lanes together, and if wanted the check against float64.

    Args:
        peer: of `PEERS`.
        norm: `batch` or `none`.
        m: examples per update and lane.
        lanes: K.
        images: float32 (N, 3, H, W), normalised.
        labels: int64 (N,).
        seconds: to time; none is timed if 0.
        device: `cuda` or `cpu`.
        check: whether to compare 20 updates of four other lanes with the oracle.
    """
    jax = set_up(device)
    found: dict[str, Any] = {
        "lanes": lanes, "jax": jax.__version__, "device": jax.devices()[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip
    try:
        if check:
            task, starts, expected = checked_lanes(norm, images, labels, elsewhere=True)
            program = Program(peer, task, [in_float32(s) for s in starts], CHECKED_UPDATES)
            program()
            found |= compare(program.result(), starts, expected)
            del program
        if seconds > 0:
            task = timed_task(norm, m, lanes, images, labels)
            found |= _time(peer, task, seconds, UPDATES[device])
    finally:
        jax.clear_caches()
        gc.collect()
    return found


def _time(peer: str, task: Task, seconds: float, updates: int) -> dict[str, float]:
    start = time.perf_counter()
    starts = initial(task.norm, task.lanes, task.seeds, elsewhere=True)
    began = time.perf_counter() - start
    program = Program(peer, task, starts, updates)
    program()
    program.wait()
    # The weights come from another process, which says nothing about this framework.
    compiled = time.perf_counter() - start - began
    took = median_seconds(program, program.wait, seconds) / updates
    return {
        "images_per_second": task.lanes * task.m / took,
        "step_us": 1e6 * took,
        "compile_seconds": compiled,
        "updates_per_call": updates,
    }


def _usable(device: str) -> bool:
    """Whether the device still computes after an error."""
    try:
        jax = set_up(device)
        gc.collect()
        jax.block_until_ready(jax.numpy.ones(8).sum())
    except Exception:  # noqa: BLE001 - any failure of so little means that nothing works
        return False
    return True


if __name__ == "__main__":
    sys.exit(peers_cli.run(list(PEERS), measure, _usable))
