"""What a column takes of a Ray cluster, and how many fit into it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig

_LOOK_S = 5.0


class Resources:
    """The cluster's nodes, looked at every few seconds: they come and go.

    Args:
        ray: Ray's module, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray, self._looked = ray, -_LOOK_S
        self._nodes: list[tuple[int, int]] = []

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self._found())

    def of(self, compute: ComputeConfig) -> tuple[int, int]:
        """Cores and GPUs of a column: one GPU where there are any, else a whole node's cores."""
        found = self._found()
        gpus = compute.ray.gpus
        if gpus == "auto":
            gpus = int(compute.device != "cpu" and any(it[1] for it in found))
        cpus = compute.ray.cpus
        if cpus == "auto":
            cpus = 1 if gpus else min((it[0] for it in found if it[0]), default=1)
        return cpus, gpus

    def slots(self, compute: ComputeConfig) -> int:
        """How many such columns are trained at once."""
        cpus, gpus = self.of(compute)
        return sum(min(it[0] // cpus, it[1] // gpus if gpus else it[0]) for it in self._found())

    def _found(self) -> list[tuple[int, int]]:
        if time.monotonic() >= self._looked + _LOOK_S:
            self._looked = time.monotonic()
            each = [it["Resources"] for it in self._ray.nodes() if it["Alive"]]
            self._nodes = [(int(it.get("CPU", 0)), int(it.get("GPU", 0))) for it in each]
        return self._nodes
