"""What `engine: auto` finds out about a long column on the device, and how long that takes.

Needs pydantic and ruamel.yaml, as the package's params do.
"""

from __future__ import annotations

import time
from typing import Any

from smallbatch.training import calibration
from smallbatch.training.rate import Case


def decided(m: int, device: str, *, toy: bool) -> dict[str, Any]:
    """The way that a column of Fig. 2 is given, the rates it was chosen by, and the seconds.

    Args:
        m: the column's batch size.
        device: ``cuda`` or ``cpu``.
        toy: of few small images, so that nothing pays.
    """
    lanes, size = (2, 8) if toy else (13, 32)
    case = Case("resnet8", "none", None, False, "float32", 3, size, 10, m, lanes, device, 1)
    images = lanes * 82 * 50_000
    began = time.perf_counter()
    way = calibration.decide(f"benchmark {m}", case, 0 if toy else images, lambda: True)
    took = time.perf_counter() - began
    rates = calibration.known().rates.get(calibration.case_key(case), {})
    share = took * max(rates.values()) / images if rates else None
    return {
        "seconds": took,
        "rates": rates,
        "chosen": None if way is None else way.key,
        "share_of_the_column": share,
    }
