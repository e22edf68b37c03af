"""A task's lanes in JAX: some updates of all of them as one compiled program.

The program is a `jax.lax.scan` over updates, which keeps weights and images on the device.
`jax-scan` trains one lane by a plain model, `jax-vmap` K lanes by the same model under `jax.vmap`,
`jax-einsum` K lanes by the 3×3 patches of their inputs times their weights, one batched matrix
product for a convolution; `jax-einsum-x3` does so by three TF32 products each. `jax-scan-patches`
trains one lane by patches, since XLA's own convolutions in a loop are slow on a CPU: a twentieth of
the speed on 32×32 at m = 2.
"""

# JAX is no dependency of the package: it may not be there.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from smallbatch.speed.bench.peers.task import Result, State, Task

PEERS = ("jax-scan", "jax-scan-patches", "jax-vmap", "jax-einsum", "jax-einsum-x3")


def set_up(device: str) -> Any:
    """JAX with float32 arithmetic, on the device (`cpu` or `cuda`) and nowhere else.

    To be called before anything else imports JAX.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_PLATFORMS", device)
    os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")  # else an error is not said last
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    return jax


class Program:
    """A task's lanes, and the compiled program that takes some updates of them a call.

    Args:
        peer: Of `PEERS`.
        task: The lanes and the examples of their updates; `jax-scan` and
            `jax-scan-patches` take one lane.
        starts: Every lane's initial weights, float32 by torch's names and shapes.
        updates: Updates in a call.

    Raises:
        ValueError: A peer of one lane was given several.
    """

    def __init__(self, peer: str, task: Task, starts: list[State], updates: int) -> None:
        import jax
        import jax.numpy as jnp

        if peer.startswith("jax-scan") and task.lanes != 1:
            raise ValueError(f"lanes: found {task.lanes}; allowed with {peer}: 1")
        self.seeds, self.lanes = task.seeds, task.lanes
        self.net, self.run = _compiled(peer, task.momentum, updates)
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


@cache
def _compiled(peer: str, momentum: float, updates: int) -> tuple[Any, Any]:
    """A peer's network, and its updates as a function that JAX compiles once for the same shapes.

    Kept, because to compile takes longer than a measurement.
    """
    import jax

    from smallbatch.speed.bench.peers.nets import Einsum, Single, Vmap

    makers: dict[str, Callable[[float], Any]] = {
        "jax-scan": Single,
        "jax-scan-patches": Einsum,
        "jax-vmap": Vmap,
        "jax-einsum": Einsum,
        "jax-einsum-x3": partial(Einsum, preset="TF32_TF32_F32_X3"),
    }
    net = makers[peer](momentum)
    return net, jax.jit(partial(_updates, net, updates), donate_argnums=0)


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
