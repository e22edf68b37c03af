"""One run on several devices: each rank computes a share of every batch, all make the same update.

An update takes the sum of its examples' gradients (paper, eq. 5), and a sum may be taken by several
processes: each has the gradient of its own examples' summed loss, and one all-reduce adds them up.
That is the update of one process but for the order of the additions.
"""

from __future__ import annotations

import math
import os
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from smallbatch.errors import UserError, WorkerLost, first_line
from smallbatch.models.norms import GhostBatchNorm
from smallbatch.models.population import moving_batch_norms
from smallbatch.models.together import Together, normalise_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

# Others wait so long while rank 0 evaluates. A rank that died is seen by who started it, at once.
PATIENCE = timedelta(days=7)


def shares(m: int, together: int, size: int) -> tuple[list[slice], int]:
    """What of a batch each rank computes: consecutive examples, as equal as can be.

    Args:
        m: Examples of a batch.
        together: Examples that are normalised together: the BN batch; 1 without batch norm.
        size: The number of ranks.

    Returns:
        Each rank's examples; and the number of ranks that share a BN batch, 1 if each has its own.

    Raises:
        UserError: A BN batch would be divided unevenly, or a rank would have nothing.
    """
    groups = -(-m // together)
    if size <= groups:
        edges = [min(m, i * groups // size * together) for i in range(size + 1)]
        return [slice(*pair) for pair in pairwise(edges)], 1
    if not _evenly(m, together, size):
        more = [str(n) for n in range(groups + 1, m + 1) if _evenly(m, together, n)]
        first = "1" if groups == 1 else f"1 to {groups}"
        norm = f" with a BN batch of {together}" if together > 1 else ""
        raise UserError(
            f"compute.ranks: found {size} at batch size {m}{norm}, allowed: "
            f"{', '.join([first, *more])}"
        )
    n = m // size
    return [slice(i * n, (i + 1) * n) for i in range(size)], size // groups


def _evenly(m: int, together: int, size: int) -> bool:
    return m % together == 0 and size % (m // together) == 0 and m % size == 0


class OthersLost(WorkerLost):
    """A rank waited for others of which one is gone, or could not be reached."""


class Ranks:
    """The processes that train a run together; by default this one alone.

    Args:
        rank: The number of this process; rank 0 also evaluates, and keeps what is kept.
        size: The number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._groups: dict[int, Any] = {}  # of torch, this rank's, by their number of ranks

    @classmethod
    def meet(cls, rank: int, size: int, device: str, file: str) -> Ranks:
        """Join the other ranks of this machine; returns when all are there.

        Args:
            rank: The number of this process.
            size: The number of processes.
            device: ``cpu`` or ``cuda``.
            file: An empty file that they alone can write, by which they find each other.

        Raises:
            OthersLost: Another rank is gone.
        """
        # They talk by no other network than this machine's own.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
        backend, found = "nccl" if device == "cuda" else "gloo", cls(rank, size)
        found._together(
            lambda: dist.init_process_group(
                backend,
                store=dist.FileStore(file, size),
                rank=rank,
                world_size=size,
                timeout=PATIENCE,
            )
        )
        return found

    @property
    def leads(self) -> bool:
        """Whether this process evaluates and keeps what is kept."""
        return self.rank == 0

    def divide(self, model: nn.Module, m: int) -> slice:
        """This rank's part of each batch; from now on batch norms that span ranks are computed so.

        Raises:
            UserError: Batches of m cannot be divided so, or the model has a batch norm of a class
                of its own that would span ranks.
        """
        sizes = sorted({
            min(m, layer.bn_batch_size) if isinstance(layer, GhostBatchNorm) else m
            for layer in moving_batch_norms(model)
        })  # fmt: skip
        parts, sharing = shares(m, min(m, math.lcm(*sizes)), self.size)
        if sharing > 1:
            if len(sizes) > 1:
                found = " and over ".join(map(str, sizes))
                raise UserError(
                    f"compute.ranks: found {self.size} at batch size {m} with a model that "
                    f"normalises over {found} examples; allowed: ranks that share none of these"
                )
            together = Together(sharing, self._summing(sharing))
            for layer in moving_batch_norms(model):
                normalise_together(layer, together)
        return parts[self.rank]

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, the same bits on each.

        Raises:
            OthersLost: Another rank is gone.
        """
        self._sum(tensor, None)

    def told(self, content: T) -> T:
        """What rank 0 says, on every rank."""
        box = [content]
        if self.size > 1:
            self._together(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def seed(self, seed: int, update: int) -> None:
        """Begin this rank's random numbers of an update, for layers such as dropout.

        They follow from seed, update and rank, so that a checkpoint need not hold those of all.
        """
        if self.size > 1:
            key = np.random.SeedSequence(entropy=seed, spawn_key=(update, self.rank))
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _summing(self, ranks: int) -> Any:
        """Sums over this rank's group of so many neighbours."""
        if ranks not in self._groups:
            groups = [range(i, i + ranks) for i in range(0, self.size, ranks)]
            made = self._together(  # every rank has to make every group
                lambda: [dist.new_group(list(group), timeout=PATIENCE) for group in groups]
            )
            self._groups[ranks] = made[self.rank // ranks]
        return lambda tensor: self._sum(tensor, self._groups[ranks])

    def _sum(self, tensor: Tensor, group: Any) -> None:
        if self.size > 1:
            self._together(lambda: dist.all_reduce(tensor, group=group))

    def _together(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:  # of torch.distributed, whatever happened to the others
            raise OthersLost(
                f"rank {self.rank} of {self.size} lost the others: {first_line(error)}"
            ) from error


class Exchange:
    """What the ranks add up at every update; afterwards all of them have the same.

    Running statistics are averages: of the steps p·s_i that the ranks' BN batches make from the
    same r, the average by examples is the one step that all BN batches make in one process.

    Args:
        ranks: The ranks.
        model: The model, of which each has a copy.
        share: This rank's part of the examples of a batch.
    """

    def __init__(self, ranks: Ranks, model: nn.Module, share: float) -> None:
        self._ranks, self._share = ranks, share
        self._statistics = [*_running_statistics(model)]

    def add(self, gradient: Tensor, loss: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the gradients, in place, and average the running statistics.

        Args:
            gradient: Of this rank's summed loss, (P,).
            loss: This rank's summed loss, ().
            correct: Its number of right answers, ().

        Returns:
            Loss and right answers of all ranks.
        """
        if self._ranks.size == 1:
            return loss, correct
        self._ranks.sum(gradient)
        # Few numbers, so they are added in float64: an average of equal ones is the same number.
        averaged = [it.double().view(-1) * self._share for it in self._statistics]
        vector = torch.cat([loss.double().view(1), correct.double().view(1), *averaged])
        self._ranks.sum(vector)
        averages = vector[2:].split([it.numel() for it in self._statistics])
        for statistic, average in zip(self._statistics, averages, strict=True):
            statistic.copy_(average.view_as(statistic))
        return vector[0].to(loss.dtype), vector[1].to(correct.dtype)


def _running_statistics(model: nn.Module) -> Iterator[Tensor]:
    for layer in moving_batch_norms(model):
        yield from (it for it in (layer.running_mean, layer.running_var) if it is not None)
