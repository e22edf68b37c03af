"""What is known of this machine: how fast each method trains a workload, and earlier choices.

It is kept in the user's cache folder, in a file for each combination of processor, torch and
version of the training code. If the file is missing, damaged or not writable, only this knowledge
is lost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch import durable, machine, private
from smallbatch.engines.kinds import GPU_KERNELS, Engine, serves
from smallbatch.engines.made_by import code_digest
from smallbatch.placement.workload import Method, Workload

if TYPE_CHECKING:
    from smallbatch.protocol.column import Column

CHUNK = 8  # lanes at a time; tried beside as many as memory holds


LOCK_S = 5.0  # to wait for another process that writes what it has learnt


MOST_LANES = 32  # lanes of a worker: two vectors at least; with more, speeds are about the same


@dataclass
class Known:
    """The content of a cache file.

    Attributes:
        rates: Images per second, by workload and method.
        choices: The method that each column was given, by `name_of` the column; and its
            micro-batch under `loop`, by a name of that.
        startup: Seconds from the start of a training process to its first update.
    """

    rates: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    choices: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    startup: float | None = None


# What this process has learnt, in case the cache file cannot be written.
_learnt = Known()
# Rates by workload and method that were measured while other programs took a part of the cores:
# better than none for the estimates of this process, not good enough to be kept or to decide.
_rough: dict[str, dict[str, float]] = {}


def known() -> Known:
    """All that is known about this machine."""
    path = _file()
    return _merged(_read(path), _learnt) if path else _learnt


def learn(
    *,
    rates: Mapping[str, Mapping[str, float]] | None = None,
    choices: Mapping[str, Method] | None = None,
    startup: float | None = None,
    keep: bool = True,
) -> None:
    """Add to what is known; with ``keep`` for other processes, too."""
    global _learnt
    news = Known(
        {workload: dict(methods) for workload, methods in (rates or {}).items()},
        {column: asdict(method) for column, method in (choices or {}).items()},
        startup,
    )
    _learnt = _merged(_learnt, news)
    if not keep or (path := _file()) is None:
        return
    with suppress(OSError), private.locked(path.with_suffix(".lock"), wait=LOCK_S):
        merged = asdict(_merged(_read(path), news))
        durable.write(path, json.dumps(merged, indent=1).encode(), mode=0o600)


def note_rough(workload: Workload, rates: Mapping[str, float]) -> None:
    """Note for this process, by method, what was measured beside other programs."""
    _rough.setdefault(workload_key(workload), {}).update(rates)


def rates_of(workload: Workload, *, rough: bool = False) -> dict[str, float]:
    """Images per second by method; with ``rough``, also those of :func:`note_rough`."""
    key = workload_key(workload)
    return {**(_rough.get(key, {}) if rough else {}), **known().rates.get(key, {})}


def name_of(column: Column, device: str) -> str:
    """The name of a column, unique among those that were placed on this machine."""
    return f"{replace(column.runs[0], base_lr=1.0, seed=0).hash} {device}"


def alike(workload: Workload) -> Workload:
    """A workload of about the same speed with at most MOST_LANES lanes per worker on a CPU."""
    if workload.device == "cuda":
        return workload
    return replace(workload, lanes=min(workload.lanes, MOST_LANES * workload.workers))


def workload_key(workload: Workload) -> str:
    """The workload's key in the cache file."""
    from smallbatch.engines.lanes import native

    # With a compiler that fails now, lanes are slower than they will be.
    by_others = native.left_out(workload.settings(), workload.device)
    return f"{alike(workload).key}{' without C++' if by_others else ''}"


def methods(workload: Workload, engines: Iterable[Engine]) -> list[Method]:
    """The methods to train a column with some engines."""
    by = serves(workload.settings(), workload.device)
    if workload.device == "cuda" and by == "layers":
        stacked = [Method("stacked", kernels=name) for name in GPU_KERNELS]
        return [
            method
            for engine in engines
            for method in (stacked if engine == "stacked" else [Method(engine)])
        ]
    found = [Method(engine) for engine in engines]
    if (
        workload.device == "cpu"
        and by != "native"
        and workload.lanes > CHUNK * workload.workers
        and Method("stacked") in found
    ):
        found.append(Method("stacked", CHUNK))
    return found


def fastest(
    workload: Workload, candidates: Iterable[Method], *, rough: bool = False
) -> tuple[Method, float] | None:
    """The fastest method and its images per second; None unless all candidates are measured."""
    rates = rates_of(workload, rough=rough)
    candidates = list(candidates)
    if not candidates or any(method.key not in rates for method in candidates):
        return None
    best = max(candidates, key=lambda method: rates[method.key])
    return best, rates[best.key]


def decided(column: str, workload: Workload, stackable: Callable[[], bool]) -> Method | None:
    """The method for a column: the one that it was given earlier, or else the fastest.

    Args:
        column: The column's name; a choice for a column on this machine is never changed.
        workload: The column's workload.
        stackable: Whether the stacked engine can train the model.

    Returns:
        None if too little is known.
    """
    if (past := known().choices.get(column)) is not None:
        return Method(**past)
    if workload.lanes == 1 or not stackable():
        return None
    best = fastest(workload, methods(workload, ("loop", "stacked")))
    return best[0] if best else None


def _file() -> Path | None:
    folder = private.cache_folder(machine.cache_folder)
    return folder / f"calibration-{_machine()}.json" if folder else None


@cache
def _machine() -> str:
    """Hash of everything that speeds depend on."""
    from smallbatch.engines.lanes.native.compiler import compiler

    identity = [
        machine.cpu_model(), machine.cores(), machine.gpu_name(),
        metadata.version("torch"), code_digest("loop"), code_digest("stacked"), compiler(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _read(path: Path) -> Known:
    try:
        return _checked(json.loads(private.read(path)))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
            RecursionError):  # fmt: skip
        return Known()


def _checked(raw: Any) -> Known:
    rates = {
        str(workload): {str(method): _number(rate) for method, rate in measured.items()}
        for workload, measured in raw["rates"].items()
    }
    choices = {str(column): asdict(_method(method)) for column, method in raw["choices"].items()}
    startup = raw["startup"]
    return Known(rates, choices, None if startup is None else _number(startup))


def _method(raw: Any) -> Method:
    lanes, kernels, micro_batch = raw["lanes"], raw.get("kernels"), raw.get("micro_batch")
    counts = [it for it in (lanes, micro_batch) if it is not None]
    if raw["engine"] not in ("loop", "stacked") or any(type(it) is not int for it in counts):
        raise ValueError("no way to train a column")
    if micro_batch is not None and micro_batch < 1:
        raise ValueError("no part of a batch")
    if kernels not in (None, *GPU_KERNELS):
        raise ValueError("no way to compute convolutions")
    return Method(raw["engine"], lanes, kernels, micro_batch)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("no rate")
    return float(value)


def _merged(old: Known, new: Known) -> Known:
    rates = {workload: dict(measured) for workload, measured in old.rates.items()}
    for workload, measured in new.rates.items():
        rates[workload] = {**rates.get(workload, {}), **measured}
    startup = old.startup if new.startup is None else new.startup
    # An earlier choice is never replaced, even if another process made it.
    return Known(rates, {**new.choices, **old.choices}, startup)
