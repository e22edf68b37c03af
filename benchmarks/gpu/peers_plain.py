"""One ordinary PyTorch run: a model, its loss, `backward` and `torch.optim.SGD`, without loader."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu.peers_batches import Batches
from benchmarks.gpu.peers_task import CLASSES, WEIGHT_DECAY, Result, State, Task
from smallbatch.models import build_model


class Plain:
    """A task of one lane."""

    def __init__(self, task: Task, starts: list[State], device: torch.device) -> None:
        if task.lanes != 1:
            raise ValueError(f"lanes: found {task.lanes}; allowed: 1")
        model = build_model(
            "resnet8", task.norm, num_classes=CLASSES, in_chans=3,
            image_size=task.images.shape[-1], seed=0, batch_size=task.m,
        )  # fmt: skip
        start = {name: torch.from_numpy(value) for name, value in starts[0].items()}
        model.load_state_dict(model.state_dict() | start)
        self.model = model.to(device).train()
        self.m = task.m
        # The mean of a batch's gradients times η is their sum times η̃.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=float(task.base_lrs[0]) * task.m,
            weight_decay=WEIGHT_DECAY, fused=True,
        )  # fmt: skip
        self.batches = Batches(task, device)
        self.counter = self.batches.counter

    def __call__(self) -> None:
        """One update."""
        images, labels = self.batches.take()
        # None, not zeros: backward then leaves its own tensors, in a capture too, and adds nothing.
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.batches.loss_sum.add_(loss.detach(), alpha=self.m)
        self.batches.right.add_((logits.detach().argmax(1) == labels).sum())

    def changed(self) -> list[Tensor]:
        """All tensors that a step changes."""
        floats = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        return [*self.batches.changed(), *floats]

    def result(self) -> Result:
        """The lane as it is."""
        named = self.model.state_dict().items()
        state = {n: v.cpu().numpy().copy() for n, v in named if v.is_floating_point()}
        return self.batches.result([state])
