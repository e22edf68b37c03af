"""The bytes of one update of a workload, beside its speeds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.placement.workload import Workload


@cache
def update_bytes(workload: Workload) -> dict[str, int | None]:
    """The bytes of one update of one run by each engine; see `engines.update_memory`.

    They are counted, not measured while it trains, and once for each workload.

    Returns:
        ``loop`` and ``stacked``; None where they cannot be told.
    """
    from smallbatch.engines.update_memory import loop_bytes, stacked_bytes

    found: dict[str, int | None] = {}
    for engine, count in (("loop", loop_bytes), ("stacked", stacked_bytes)):
        try:
            found[engine] = count(
                workload.settings(),
                workload.batch_size,
                workload.image,
                workload.classes,
                device=workload.device,
            )
        except UserError:
            found[engine] = None
    return found
