"""Earlier code that gives the same numbers: what it trained is not trained again.

Changed code trains runs again, as nothing tells whether it changes numbers. Where somebody has
made sure that it does not, `same_numbers.json` says so: which code is the present one, and which
earlier ones give the same bits, for runs with settings that these knew. With the next change of the
engine the entry no longer holds. `python -m benchmarks.same_numbers` compares and writes it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.engines.made_by import code_digest
from smallbatch.protocol.run import is_as_ever

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig
    from smallbatch.engines.kinds import Engine

FILE = Path(__file__).with_name("same_numbers.json")


def earlier_makers(made_by: str, engine: Engine, study: StudyConfig) -> tuple[str, ...]:
    """What made runs whose numbers are those of `made_by`, as their records say it.

    Args:
        made_by: Of the present code, as `made_by_on` gives it, or its digest alone.
        engine: The engine.
        study: The settings of the runs.
    """
    if not is_compared(made_by) or not is_as_ever(study.model_dump(mode="json")):
        return ()
    present, _, rest = made_by.partition(" ")
    return tuple(f"{digest} {rest}" for digest in _earlier(engine) if digest != present)


def is_compared(made_by: str) -> bool:
    """Whether the comparison covers what made some runs.

    Not Triton's kernels, batches in parts or shared by ranks, and images that are decoded.
    """
    words = f" {made_by} "
    return not any(it in words for it in (" triton ", " micro_batch=", " ranks=", " decoding "))


@cache
def _earlier(engine: Engine) -> tuple[str, ...]:
    """Digests of earlier code whose numbers are the present's."""
    entry = json.loads(FILE.read_text()).get(engine, {})
    return tuple(entry["earlier"]) if entry.get("now") == code_digest(engine) else ()
