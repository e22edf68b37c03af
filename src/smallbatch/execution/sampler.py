"""Looks now and then at what a training takes of the machine: processor, memory, GPU.

It runs within the loop that waits for the workers, as a thread of its own would be no good beside
forks. A look takes less than a millisecond every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from smallbatch import durable, private
from smallbatch.machine import gpu_indices
from smallbatch.records.fence import OPEN, Fence
from smallbatch.records.system import MOST, Sample, SystemUse

INTERVAL_S = 5.0
_SAVE_S = 30.0
_MEGABYTE = 1e6


class Sampler:
    """The samples of a column, over all attempts to train it.

    Args:
        path: Where they are kept while it trains.
        device: `cpu` or `cuda`.
        gpus: The GPUs that train it, if they are several; see `Placement.devices`.
        fence: Of the attempt that trains.
    """

    def __init__(
        self, path: Path, device: str, gpus: Sequence[str] = (), fence: Fence = OPEN
    ) -> None:
        self._path, self._fence = path, fence
        self._gpu = _look_at_gpus(gpus) if device == "cuda" else None
        self._use = SystemUse(interval=INTERVAL_S, samples=())
        psutil.cpu_percent()  # counts from here on
        self._last = self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the samples of an earlier attempt, if they are there and whole."""
        with suppress(OSError, ValueError):
            self._use = SystemUse.model_validate_json(private.read_shared(self._path))

    def tick(self) -> None:
        """Take a sample if it is time; to be called often."""
        now = time.monotonic()
        if now < self._last + self._use.interval:
            return
        self._take()
        if now >= self._saved + _SAVE_S:
            self._save()

    def finish(self) -> bytes | None:
        """Take the last sample; returns the content of `system.json`, None if there is no sample.

        Of a training that was over before the first sample there is one all the same.
        """
        if time.monotonic() > self._last + 1 or not self._use.samples:
            self._take()
        self._save()
        return self.content()

    def content(self) -> bytes | None:
        """The samples so far, as the file holds them."""
        return f"{self._use.model_dump_json()}\n".encode() if self._use.samples else None

    def _take(self) -> None:
        self._last = time.monotonic()
        with suppress(psutil.Error, OSError):
            values = {
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": psutil.virtual_memory().used / _MEGABYTE,
                **(self._gpu() if self._gpu else {}),
            }
            shown = {name: round(value, 1) for name, value in values.items()}
            if len(self._use.samples) == MOST:
                self._use = self._use.joined()
            sample = Sample(time=round(time.time() * 1000), values=shown)
            self._use = self._use.model_copy(update={"samples": (*self._use.samples, sample)})

    def _save(self) -> None:
        self._saved = time.monotonic()
        with suppress(OSError):  # of a full disk the training itself tells
            if content := self.content():
                with self._fence.writing():
                    durable.write(self._path, content, draft=self._fence.draft(self._path))


def _look_at_gpus(gpus: Sequence[str]) -> Callable[[], dict[str, float]]:
    """What looks at the GPUs: by NVIDIA's library, else by torch at the memory of this process.

    Neither asks anything of the device that a captured graph would not stand.
    """
    import torch

    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        uuids = [torch.cuda.get_device_properties(i).uuid for i in gpu_indices(gpus)]
        handles = [nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
    except Exception:  # noqa: BLE001 - whatever the library lacks, training goes on
        if gpus:  # other processes train on them
            return dict[str, float]
        return lambda: {"gpu_0_memory_usage_megabytes": torch.cuda.memory_reserved() / _MEGABYTE}

    def look() -> dict[str, float]:
        found: dict[str, float] = {}
        for i, handle in enumerate(handles):
            with suppress(nvml.NVMLError):
                memory = nvml.nvmlDeviceGetMemoryInfo(handle).used / _MEGABYTE
                busy = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
                found[f"gpu_{i}_memory_usage_megabytes"] = memory
                found[f"gpu_{i}_utilization_percentage"] = busy
        return found

    return look
