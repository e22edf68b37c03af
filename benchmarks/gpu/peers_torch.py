"""Other people's ways to train K lanes in PyTorch, each as fast as it was made to be here.

`plain`: one run, eager, its data on the device. `plain-graph`: its whole step as one CUDA graph.
`grouped-graph`: HFTA's manner, K models side by side in the channels of grouped convolutions, as
one CUDA graph; `grouped-graph-cl` the same in channels-last order. `vmap-compile`: the whole step
of `torch.func`'s vmapped gradients through `torch.compile`, as one CUDA graph.

On a CPU nothing is captured: the same functions run eagerly.

    python -m benchmarks.gpu.peers_torch --peer grouped-graph --norm batch --m 2 --lanes 26
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import peers_cli
from benchmarks.gpu.peers_grouped import Grouped
from benchmarks.gpu.peers_oracle import checked_lanes, in_float32, initial
from benchmarks.gpu.peers_plain import Plain
from benchmarks.gpu.peers_task import (
    CHECKED_UPDATES,
    Array,
    Result,
    State,
    Task,
    compare,
    median_seconds,
    timed_task,
)
from benchmarks.gpu.peers_vmap import Vmapped

WARM_UP = 3  # steps before a capture: cuDNN chooses its algorithms, torch.compile compiles


class Peer(Protocol):
    """The lanes of a task on a device. A call is an update; it must not wait for the device."""

    counter: Tensor

    def __call__(self) -> None:
        """One update of all lanes with the examples at the counter, which moves on."""
        ...

    def changed(self) -> list[Tensor]:
        """All tensors that a step changes."""
        ...

    def result(self) -> Result:
        """The lanes as they are."""
        ...


PEERS: dict[str, tuple[Callable[[Task, list[State], torch.device], Peer], bool]] = {
    "plain": (Plain, False),
    "plain-graph": (Plain, True),
    "grouped-graph": (Grouped, True),
    "grouped-graph-cl": (partial(Grouped, channels_last=True), True),
    "vmap-compile": (Vmapped, True),
}  # and whether it is captured


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
        peer: of `PEERS`; the plain ones have one lane, whatever `lanes` says.
        norm: `batch` or `none`.
        m: examples per update and lane.
        lanes: K.
        images: float32 (N, 3, H, W), normalised.
        labels: int64 (N,).
        seconds: to time; none is timed if 0.
        device: `cuda` or `cpu`.
        check: whether to compare 20 updates of four other lanes with the oracle.
    """
    where = torch.device(device)
    _pin_arithmetic()
    lanes = 1 if peer.startswith("plain") else lanes
    found: dict[str, Any] = {"lanes": lanes, **_versions(where)}
    try:
        if check:
            found |= _check(peer, norm, images, labels, where)
            _tidy(where)
        if seconds > 0:
            found |= _time(peer, timed_task(norm, m, lanes, images, labels), seconds, where)
    finally:
        _tidy(where)
    return found


def _time(peer: str, task: Task, seconds: float, device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = _prepare(peer, task, initial(task.norm, task.lanes, task.seeds), device)[1]
    step()
    _wait(device)
    compiled = time.perf_counter() - start
    took = median_seconds(step, partial(_wait, device), seconds)
    found = {
        "images_per_second": task.lanes * task.m / took,
        "step_us": 1e6 * took,
        "compile_seconds": compiled,
    }
    if device.type == "cuda":
        found["memory_mib"] = torch.cuda.max_memory_reserved() / 2**20
    return found


def _check(
    peer: str, norm: str, images: Array, labels: Array, device: torch.device
) -> dict[str, Any]:
    """Twenty updates of the check's lanes against float64; one after another for a plain peer."""
    task, starts, expected = checked_lanes(norm, images, labels)
    tasks, chosen = [task], [list(range(task.lanes))]
    if peer.startswith("plain"):
        chosen = [[lane] for lane in range(task.lanes)]
        tasks = [_one_lane(task, lane) for lane in range(task.lanes)]
    results = list[Result]()
    for part, lanes in zip(tasks, chosen, strict=True):
        at, step = _prepare(peer, part, [in_float32(starts[lane]) for lane in lanes], device)
        for _ in range(CHECKED_UPDATES):
            step()
        _wait(device)
        results.append(at.result())
    found = Result(
        [state for result in results for state in result.states],
        np.concatenate([result.loss for result in results]),
        np.concatenate([result.right for result in results]),
    )
    return compare(found, starts, expected)


def _one_lane(task: Task, lane: int) -> Task:
    seed = task.seed(lane)
    return replace(
        task, table=task.table[:, seed : seed + 1], base_lrs=task.base_lrs[lane : lane + 1]
    )


def _prepare(
    peer: str, task: Task, starts: list[State], device: torch.device
) -> tuple[Peer, Callable[[], None]]:
    """The peer's lanes at their start, and a warm step that begins anew where the table ends."""
    build, captured = PEERS[peer]
    lanes = build(task, starts, device)
    call = _warm(lanes, captured and device.type == "cuda")
    rows, done = len(task.table), [0]

    def step() -> None:
        if done[0] == rows:
            done[0] = 0
            lanes.counter.zero_()
        done[0] += 1
        call()

    return lanes, step


def _warm(lanes: Peer, captured: bool) -> Callable[[], None]:
    """Take some steps and undo them; then the step itself, or a CUDA graph of it."""
    changed = lanes.changed()
    before = [tensor.clone() for tensor in changed]

    def steps() -> None:
        for _ in range(WARM_UP):
            lanes()
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)

    if not captured:
        steps()
        return lanes
    # Warmed up and captured on one stream, so that nothing remembers another one.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        lanes()
    torch.cuda.synchronize()
    return graph.replay


def _pin_arithmetic() -> None:
    """Float32 without TF32, and cuDNN's algorithms by measurement."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _tidy(device: torch.device) -> None:
    """Leave no memory and no compiled code to the next entry."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _versions(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _usable(device: str) -> bool:
    """Whether the device still computes after an error."""
    if device != "cuda":
        return True
    try:
        gc.collect()
        torch.cuda.empty_cache()
        torch.ones(8, device=device).sum().item()
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(peers_cli.run(list(PEERS), measure, _usable))
