"""What `engine: auto` finds out about a long column on the device, and how long that takes.

Needs pydantic and ruamel.yaml, as the package's params do.
"""

from __future__ import annotations

import time
from typing import Any

from smallbatch.placement.known import known, methods, workload_key
from smallbatch.placement.workload import Workload, training_flops_of
from smallbatch.speed import calibration

IMAGES = 10**11  # of a column so long that trying pays


def decided(norm: str, m: int, device: str, *, toy: bool) -> dict[str, Any]:
    """The way that a column of ResNet-8 is given, the rates it was chosen by, and the seconds.

    Args:
        norm: its normalisation.
        m: its batch size.
        device: ``cuda`` or ``cpu``.
        toy: of few small images, and so short that nothing pays.
    """
    lanes, size = (2, 8) if toy else ({"none": 13, "batch": 26}[norm], 32)
    workload = Workload(
        "resnet8", norm, None, True, "float32", 3, size, size, 10, m, lanes, device, 1
    )
    flops = training_flops_of(workload)
    cost = calibration.cost(workload, methods(workload, ("loop", "stacked")), flops)
    began = time.perf_counter()
    method = calibration.decide(f"{norm} {m}", workload, 0 if toy else IMAGES, lambda: True)
    return {
        "seconds": time.perf_counter() - began,
        "seconds_allowed_for": cost,
        "rates": known().rates.get(workload_key(workload), {}),
        "chosen": None if method is None else method.key,
    }
