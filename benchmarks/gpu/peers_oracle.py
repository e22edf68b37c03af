"""The peers' lanes, one after another in float64 by a plain PyTorch loop on the CPU.

As a program, `python -m benchmarks.gpu.peers_oracle TASK.npz RESULT.npz`, it serves processes that
must not import torch next to another framework's GPU libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.gpu.peers_task import CLASSES, Array, Result, State, Task, checked_task


def train(task: Task) -> tuple[list[State], Result]:
    """Weights before, and weights, losses and right answers after all updates of the table."""
    import torch
    from torch.nn.functional import cross_entropy

    from smallbatch.models import build_model

    def weights(model: torch.nn.Module) -> State:
        named = model.state_dict().items()
        return {name: value.numpy().copy() for name, value in named if value.is_floating_point()}

    images, labels = torch.from_numpy(task.images).double(), torch.from_numpy(task.labels)
    table = torch.from_numpy(task.table)
    starts, ends, losses, rights = list[State](), list[State](), list[float](), list[int]()
    for lane in range(task.lanes):
        model = build_model(
            "resnet8", task.norm, num_classes=CLASSES, in_chans=3,
            image_size=images.shape[-1], seed=task.seed(lane), batch_size=task.m,
        ).double().train()  # fmt: skip
        parameters, loss_sum, right = list(model.parameters()), 0.0, 0
        starts.append(weights(model))
        for rows in table[:, task.seed(lane)]:
            logits = model(images[rows])
            loss = cross_entropy(logits, labels[rows], reduction="sum")
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.mul_(task.decays[lane]).sub_(gradient, alpha=task.base_lrs[lane])
            loss_sum += loss.item()
            right += int((logits.argmax(1) == labels[rows]).sum().item())
        ends.append(weights(model))
        losses.append(loss_sum)
        rights.append(right)
    return starts, Result(ends, np.array(losses), np.array(rights))


def train_elsewhere(task: Task) -> tuple[list[State], Result]:
    """As `train`, in a process of its own that sees no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("task.npz", "result.npz")]
        np.savez(
            paths[0], norm=np.array(task.norm), images=task.images, labels=task.labels,
            table=task.table, base_lrs=task.base_lrs,
        )  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.peers_oracle", *map(str, paths)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True, stdout=sys.stderr,
        )  # fmt: skip
        with np.load(paths[1]) as arrays:
            kept: dict[str, Array] = dict(arrays)
    starts, ends = (
        [_unpacked(kept, f"{phase}/{lane}/") for lane in range(task.lanes)]
        for phase in ("start", "end")
    )
    return starts, Result(ends, kept["loss"], kept["right"])


def _unpacked(kept: dict[str, Array], prefix: str) -> State:
    return {key[len(prefix) :]: kept[key] for key in kept if key.startswith(prefix)}


def checked_lanes(
    norm: str, images: Array, labels: Array, *, elsewhere: bool = False
) -> tuple[Task, list[State], Result]:
    """The check's task on these images, its lanes' weights before, and what they should become.

    Computed once per process and norm: a process has one set of images.
    """
    if norm not in _checked:
        task = checked_task(norm, images, labels)
        _checked[norm] = task, *(train_elsewhere if elsewhere else train)(task)
    return _checked[norm]


_checked: dict[str, tuple[Task, list[State], Result]] = {}


@lru_cache
def initial(norm: str, lanes: int, seeds: int, *, elsewhere: bool = False) -> list[State]:
    """Every lane's initial weights in float32, which are drawn in it and fit images of any size."""
    images, labels = np.zeros((1, 3, 8, 8), np.float32), np.zeros(1, np.int64)
    task = Task(norm, images, labels, np.zeros((0, seeds, 8), np.int64), np.zeros(lanes))
    states, _ = (train_elsewhere if elsewhere else train)(task)
    return [in_float32(state) for state in states]


def in_float32(state: State) -> State:
    """A copy."""
    return {name: value.astype(np.float32) for name, value in state.items()}


def main() -> None:
    """Read a task, write its result."""
    with np.load(sys.argv[1]) as arrays:
        task = Task(norm=str(arrays["norm"]), **{k: arrays[k] for k in arrays if k != "norm"})
    starts, result = train(task)
    kept = {"loss": result.loss, "right": result.right}
    for phase, states in (("start", starts), ("end", result.states)):
        for lane, state in enumerate(states):
            kept |= {f"{phase}/{lane}/{name}": value for name, value in state.items()}
    np.savez(sys.argv[2], **kept)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
