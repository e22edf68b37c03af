"""A task's images, labels and table on the device, and the lanes' sums: for peers in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.peers_task import Result, State, Task


class Batches:
    """All tensors that PyTorch peers need on the device besides weights.

    Args:
        task: with S seeds.
        device: where everything lies.
        channels_last: keep images as (N, H, W, 3).
        by_seed: take an update's examples as (S·m, …), one seed after the other, not as (m·S, …).
    """

    def __init__(
        self,
        task: Task,
        device: torch.device,
        *,
        channels_last: bool = False,
        by_seed: bool = False,
    ) -> None:
        images = torch.from_numpy(task.images).to(device)
        self.images = images.permute(0, 2, 3, 1).contiguous() if channels_last else images
        self.labels = torch.from_numpy(task.labels).to(device)
        # By update, example and seed an update's images lie as a grouped conv wants them.
        table = task.table if by_seed else task.table.transpose(0, 2, 1)
        rows = np.ascontiguousarray(table).reshape(len(table), -1)
        self.table = torch.from_numpy(rows).to(device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros(task.lanes, device=device)
        self.right = torch.zeros(task.lanes, dtype=torch.int64, device=device)

    def take(self) -> tuple[Tensor, Tensor]:
        """The images and labels of the update, in the table's order; moves the counter on."""
        rows = self.table.index_select(0, self.counter).view(-1)
        self.counter.add_(1)
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)

    def changed(self) -> list[Tensor]:
        """What a step changes here."""
        return [self.counter, self.loss_sum, self.right]

    def result(self, states: list[State]) -> Result:
        """With the weights that belong to the sums."""
        loss = self.loss_sum.double().cpu().numpy()
        return Result(states, loss, self.right.cpu().numpy())


def stacked(starts: list[State], device: torch.device) -> dict[str, Tensor]:
    """Every weight of all lanes, (K, …)."""
    return {
        name: torch.from_numpy(np.stack([start[name] for start in starts])).to(device)
        for name in starts[0]
    }


def unstacked(weights: dict[str, Tensor]) -> list[State]:
    """Every lane's own weights from (K, …)."""
    arrays = {name: value.detach().cpu().numpy() for name, value in weights.items()}
    lanes = len(next(iter(arrays.values())))
    return [{name: value[lane] for name, value in arrays.items()} for lane in range(lanes)]
