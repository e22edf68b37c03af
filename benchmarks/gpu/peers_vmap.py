"""K lanes by `torch.func`: vmapped gradients of an ordinary model, compiled with the whole step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from benchmarks.gpu.peers_batches import Batches, stacked, unstacked
from benchmarks.gpu.peers_task import CLASSES, Result, State, Task
from smallbatch.models import build_model


class Vmapped:
    """All lanes of a task, every weight as (S, K / S, …): lanes of one seed share their images."""

    def __init__(self, task: Task, starts: list[State], device: torch.device) -> None:
        self.batches = Batches(task, device, by_seed=True)
        self.counter = self.batches.counter
        self.seeds, self.m = task.seeds, task.m
        weights = {
            name: value.unflatten(0, (task.seeds, -1)).clone()
            for name, value in stacked(starts, device).items()
        }
        self.parameters = {n: v for n, v in weights.items() if "running" not in n}
        self.running = {n: v for n, v in weights.items() if "running" in n}
        self.decay, self.rate = (
            torch.from_numpy(rates).to(device, torch.float32).view(task.seeds, -1)
            for rates in (task.decays, task.base_lrs)
        )
        self.gradients = _gradients(task, device)
        # The default mode, which compiles in seconds: autotuning would only add choices for matrix
        # products, and grouped convolutions are cuDNN's in every mode.
        # On a CPU the traced step runs as it is: Inductor's C++ takes a minute to compile.
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        self.compiled: Any = torch.compile(
            self._step, fullgraph=True, dynamic=False, backend=backend
        )

    def __call__(self) -> None:
        """One update of all lanes."""
        with torch.no_grad():
            self.compiled()

    def _step(self) -> None:
        images, labels = self.batches.take()
        x, y = images.unflatten(0, (self.seeds, self.m)), labels.view(self.seeds, self.m)
        gradients, (losses, right) = self.gradients(self.parameters, self.running, x, y)
        for name, parameter in self.parameters.items():
            shape = (*self.rate.shape, *[1] * (parameter.dim() - 2))
            step = gradients[name] * self.rate.view(shape)
            parameter.copy_(parameter * self.decay.view(shape) - step)
        self.batches.loss_sum.add_(losses.flatten())
        self.batches.right.add_(right.flatten())

    def changed(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [
            *self.batches.changed(),
            *self.parameters.values(),
            *self.running.values(),
        ]

    def result(self) -> Result:
        """The lanes as they are."""
        whole = self.parameters | self.running
        return self.batches.result(unstacked({n: v.flatten(0, 1) for n, v in whole.items()}))


def _gradients(task: Task, device: torch.device) -> Any:
    """(parameters, running statistics, images (S, m, …), labels (S, m)) → gradients, (loss, right).

    Weights, gradients, losses and right answers are by seed and lane, (S, K / S, …).
    """
    model = build_model(
        "resnet8", task.norm, num_classes=CLASSES, in_chans=3,
        image_size=task.images.shape[-1], seed=0, batch_size=task.m,
    ).to(device).train()  # fmt: skip

    def of_lane(
        parameters: dict[str, Tensor], running: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, (parameters, running), (x,))
        return cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()

    of_lane_gradients = grad_and_value(of_lane, has_aux=True)
    return vmap(vmap(of_lane_gradients, in_dims=(0, 0, None, None)))
