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
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu import peers_cli
from benchmarks.gpu.peers_oracle import checked_lanes, in_float32, initial
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
    jax = _jax(device)
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


class Program:
    """A task's lanes, and the compiled program that takes some updates of them a call."""

    def __init__(self, peer: str, task: Task, starts: list[State], updates: int) -> None:
        import jax
        import jax.numpy as jnp

        from benchmarks.gpu.peers_jax_nets import Einsum, Vmap

        self.seeds, self.lanes = task.seeds, task.lanes
        precision = "TF32_TF32_F32_X3" if peer.endswith("x3") else None
        self.net: Any = Vmap(task) if peer == "jax-vmap" else Einsum(task, precision)
        weights = {
            name: self.net.stored(name, np.stack([start[name] for start in starts]))
            for name in starts[0]
        }
        # As (S, K / S, …) on the device: lanes of one seed share their images.
        weights = {
            n: jax.device_put(v.reshape(self.seeds, -1, *v.shape[1:])) for n, v in weights.items()
        }
        running = {n: v for n, v in weights.items() if "running" in n}
        parameters = {n: v for n, v in weights.items() if "running" not in n}
        by_lane = (self.seeds, self.lanes // self.seeds)
        self.state: Any = {
            "parameters": parameters,
            "running": running,
            "counter": jnp.zeros((), jnp.int32),
            "loss": jnp.zeros(by_lane, jnp.float32),
            "right": jnp.zeros(by_lane, jnp.int32),
        }
        self.data: Any = jax.device_put(
            {
                "images": self.net.images(task.images),
                "labels": task.labels.astype(np.int32),
                "table": task.table.astype(np.int32),
                "decay": task.decays.astype(np.float32).reshape(by_lane),
                "rate": task.base_lrs.astype(np.float32).reshape(by_lane),
            }
        )
        self.run = jax.jit(partial(_updates, self.net, updates), donate_argnums=0)

    def __call__(self) -> None:
        """Some updates of all lanes."""
        self.state = self.run(self.state, self.data)

    def wait(self) -> None:
        """For all updates so far."""
        import jax

        jax.block_until_ready(self.state)

    def result(self) -> Result:
        """The lanes as they are."""
        weights = {
            name: self.net.plain(name, np.asarray(value).reshape(self.lanes, *value.shape[2:]))
            for name, value in (self.state["parameters"] | self.state["running"]).items()
        }
        states = [{n: v[lane] for n, v in weights.items()} for lane in range(self.lanes)]
        loss, right = (np.asarray(self.state[key]).ravel() for key in ("loss", "right"))
        return Result(states, loss.astype(np.float64), right)


def _updates(net: Any, updates: int, state: Any, data: Any) -> Any:
    from jax import lax

    return lax.scan(lambda s, _: (_update(net, s, data), None), state, length=updates)[0]


def _update(net: Any, state: Any, data: Any) -> Any:
    """One update of all lanes with the examples at the counter."""
    from jax import lax

    rows = lax.dynamic_index_in_dim(data["table"], state["counter"], keepdims=False)  # (S, m)
    x = data["images"].at[rows].get(mode="promise_in_bounds")
    y = data["labels"].at[rows].get(mode="promise_in_bounds")
    gradients, running, loss, right = net.gradients(state["parameters"], state["running"], x, y)

    def updated(parameter: Any, gradient: Any) -> Any:
        shape = (*data["rate"].shape, *[1] * (parameter.ndim - 2))
        decay, rate = data["decay"].reshape(shape), data["rate"].reshape(shape)
        return parameter * decay - rate * gradient

    parameters = state["parameters"]
    return {
        "parameters": {n: updated(v, gradients[n]) for n, v in parameters.items()},
        "running": running,
        "counter": (state["counter"] + 1) % len(data["table"]),
        "loss": state["loss"] + loss,
        "right": state["right"] + right,
    }


def _jax(device: str) -> Any:
    """JAX with float32 arithmetic, on the device and nowhere else."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_PLATFORMS", device)
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    return jax


def _usable(device: str) -> bool:
    """Whether the device still computes after an error."""
    try:
        jax = _jax(device)
        gc.collect()
        jax.block_until_ready(jax.numpy.ones(8).sum())
    except Exception:  # noqa: BLE001 - any failure of so little means that nothing works
        return False
    return True


if __name__ == "__main__":
    sys.exit(peers_cli.run(list(PEERS), measure, _usable))
