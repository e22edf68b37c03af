"""What was learnt about this machine: the speed of each way to train a column, and past choices.

Kept in the user's cache folder, in a file of its own for every processor, torch and version of the
training code. A file that is damaged, missing or cannot be written costs nothing but the learning.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.errors import Stopped, Stopping, UserError, WorkerLost, first_line
from smallbatch.training import environment
from smallbatch.training.agreement import COMPARED, check
from smallbatch.training.engines import GPU_KERNELS, has_layers
from smallbatch.training.rate import Case, Way, few_updates, measure

if TYPE_CHECKING:
    from smallbatch.training.engines import Engine

CHUNK = 8  # lanes at a time, the alternative to as many as memory holds
MOST_LANES = 16  # of a worker: columns with more are as fast as with these
SHARE = 0.02  # of a column's time that may go into finding out how to train it,
MOST_SECONDS = {"cpu": 10.0, "cuda": 60.0}  # but never more than this
SECONDS = 0.5  # of measuring one way
# For the least time that a column can take: FLOP/s of one worker that no way exceeds by much, and
# seconds of an update however small. Of a GPU: what an H200 did with ResNet-8, rounded outwards.
FAST = {"cpu": 6e10, "cuda": 4e13}
QUICKEST = {"cpu": 0.0, "cuda": 1e-4}
# For the most that a measurement takes: FLOP/s of one worker that none falls far below, seconds
# that an update takes besides, seconds before there is anything to measure, and seconds in which
# the kernels of a model are compiled, once on a machine: some thirty of a second each.
SLOW = {"cpu": 1e10, "cuda": 2e12}
DISPATCH = {"cpu": 0.02, "cuda": 0.005}
START = {"cpu": 0.5, "cuda": 1.0}
COMPILE = 30.0


@dataclass
class Known:
    """The content of a cache file.

    Attributes:
        rates: images per second, by case and way.
        choices: the way that a column was given, by the column.
        startup: seconds from the start of a training process to its first update.
    """

    rates: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    choices: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    startup: float | None = None


# What this process learnt, for where the cache cannot be written.
_learnt = Known()


def known() -> Known:
    """All that is known about this machine."""
    return _merged(_read(_file()), _learnt)


def learn(
    *,
    rates: Mapping[str, Mapping[str, float]] | None = None,
    choices: Mapping[str, Way] | None = None,
    startup: float | None = None,
) -> None:
    """Add to what is known."""
    global _learnt
    news = Known(
        {case: dict(ways) for case, ways in (rates or {}).items()},
        {column: asdict(way) for column, way in (choices or {}).items()},
        startup,
    )
    _learnt = _merged(_learnt, news)
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(asdict(_merged(_read(path), news)), indent=1))
            part.replace(path)
    except OSError:
        return


def alike(case: Case) -> Case:
    """The case that stands for this one: on a CPU large numbers of lanes are equally fast."""
    if case.device == "cuda":
        return case
    return replace(case, lanes=min(case.lanes, MOST_LANES * case.workers))


def case_key(case: Case) -> str:
    """The case as the cache names it."""
    return alike(case).key


def ways(case: Case, engines: Iterable[Engine]) -> list[Way]:
    """The ways to train a column by some engines."""
    from smallbatch.training.stacked import native

    if case.device == "cuda" and has_layers(case.model):
        stacked = [Way("stacked", kernels=name) for name in GPU_KERNELS]
        return [
            way for engine in engines for way in (stacked if engine == "stacked" else [Way(engine)])
        ]
    found = [Way(engine) for engine in engines]
    torchs = case.device == "cpu" and not native.serves(case.settings(), case.device)
    if torchs and case.lanes > CHUNK * case.workers and Way("stacked") in found:
        found.append(Way("stacked", CHUNK))
    return found


def fastest(case: Case, candidates: Iterable[Way]) -> tuple[Way, float] | None:
    """The fastest way and its images per second, or None unless all of them are known."""
    rates = known().rates.get(case_key(case), {})
    candidates = list(candidates)
    if not candidates or any(way.key not in rates for way in candidates):
        return None
    best = max(candidates, key=lambda way: rates[way.key])
    return best, rates[best.key]


def calibrate(case: Case, candidates: Iterable[Way], memory: int | None = None) -> None:
    """Measure the ways that are not known yet; one that fails where others work has rate 0.

    So has one on a GPU whose first update is not the loop engine's; a line says why it is left out.

    Raises:
        UserError: the model cannot be built for these images.
        RuntimeError: no way works.
    """
    rates = dict(known().rates.get(case_key(case), {}))
    failure = None
    for way in candidates:
        if way.key not in rates:
            try:
                if _compared(case, way):
                    check(case, way, memory)
                rate = measure(alike(case), way, seconds=SECONDS, memory=memory)
                rates[way.key] = rate.images_per_second
            except Exception as error:  # a compiler's own errors too
                ends = isinstance(error, UserError | Stopping | Stopped)
                if ends and not isinstance(error, WorkerLost):
                    raise
                # Without its frames, which would keep the memory of what has failed.
                rates[way.key], failure = 0.0, error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
                if _compared(case, way):
                    _say(f"{case.key}: {way.key} is left out: {first_line(failure)}")
    if failure is not None and not any(rates.values()):
        raise failure
    learn(rates={case_key(case): rates})


def cost(case: Case, candidates: Iterable[Way], flops: int) -> float:
    """Seconds that measuring these ways takes at most; ``flops`` are those of a training image."""
    start, candidates = START[case.device], list(candidates)

    def update(way: Way) -> float:
        runs = case.workers if way.engine == "loop" else alike(case).lanes
        images = case.batch_size * runs / case.workers
        return DISPATCH[case.device] + images * flops / SLOW[case.device]

    # An epoch that is left out and at least one that is measured.
    updates = 2 * few_updates(case)
    seconds = sum(start + max(SECONDS, updates * update(way)) for way in candidates)
    compared = [way for way in candidates if _compared(case, way)]
    if compared:  # the first update, and the loop engine's for some of the runs
        seconds += sum(start + update(way) for way in compared)
        seconds += start + COMPARED * update(Way("loop"))
    if any(way.kernels == "triton" and not _compiled(case, way) for way in compared):
        seconds += COMPILE
    return seconds


def _compared(case: Case, way: Way) -> bool:
    """Whether a way must make the loop engine's first update: on a GPU, unless it is the loop."""
    return way.engine == "stacked" and case.device == "cuda"


def _compiled(case: Case, way: Way) -> bool:
    """Whether a way was measured for such a model: a machine keeps what it has compiled."""
    kind = f"{case.model} ", f" {case.precision} "
    rates = known().rates.items()
    return any(all(word in key for word in kind) and way.key in ways for key, ways in rates)


def least_seconds(case: Case, images: int, flops: int) -> float:
    """Seconds that so many training images, of all runs, take at least."""
    arithmetic = images * flops / (FAST[case.device] * case.workers)
    return max(arithmetic, images / (case.batch_size * case.lanes) * QUICKEST[case.device])


def decide(
    column: str, case: Case, images: int, stackable: Callable[[], bool], memory: int | None = None
) -> Way | None:
    """The way to train a column, or None where finding out would not pay.

    Args:
        column: identifies it; what was decided for a column on this machine stays.
        case: its case.
        images: all training images of its runs; with 0, nothing is measured.
        stackable: whether the stacked engine takes its model at all.
        memory: bytes for the lanes of all workers.
    """
    if (past := known().choices.get(column)) is not None:
        return Way(**past)
    if case.lanes == 1 or not stackable():
        return None
    candidates = ways(case, ("loop", "stacked"))
    if fastest(case, candidates) is None:
        flops = training_flops_of(case)
        worth = min(MOST_SECONDS[case.device], SHARE * least_seconds(case, images, flops))
        if cost(case, candidates, flops) > worth:
            return None
        _say(f"finding the fastest way to train {case.key}")
        calibrate(case, candidates, memory)
    best = fastest(case, candidates)
    return best[0] if best else None


@cache
def training_flops_of(case: Case) -> int:
    """Operations of one training image of a case."""
    from smallbatch.flops import forward_flops, training_flops
    from smallbatch.models import build_model

    model = build_model(
        case.model,
        case.norm,
        num_classes=case.classes,
        in_chans=case.channels,
        image_size=case.size,
        seed=0,
        batch_size=max(2, case.batch_size),
        bn_batch_size=case.bn_batch_size,
    )
    return training_flops(forward_flops(model, case.channels, case.size))


def _file() -> Path:
    own, caches = os.environ.get("SMALLBATCH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own or Path(caches or "~/.cache") / "smallbatch").expanduser()
    return folder / f"calibration-{_machine()}.json"


@cache
def _machine() -> str:
    """Digest of all that the speeds depend on."""
    from smallbatch.training.files import code_digest
    from smallbatch.training.stacked.native.compile import compiler

    identity = [
        environment.cpu_model(), environment.cores(), environment.gpu_name(),
        metadata.version("torch"), code_digest("loop"), code_digest("stacked"), compiler(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _read(path: Path) -> Known:
    try:
        return _checked(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return Known()


def _checked(raw: Any) -> Known:
    rates = {
        str(case): {str(way): _number(rate) for way, rate in measured.items()}
        for case, measured in raw["rates"].items()
    }
    choices = {str(column): asdict(_way(way)) for column, way in raw["choices"].items()}
    startup = raw["startup"]
    return Known(rates, choices, None if startup is None else _number(startup))


def _way(raw: Any) -> Way:
    lanes, kernels = raw["lanes"], raw.get("kernels")
    if raw["engine"] not in ("loop", "stacked") or not (lanes is None or type(lanes) is int):
        raise ValueError("no way to train a column")
    if kernels not in (None, *GPU_KERNELS):
        raise ValueError("no way to compute convolutions")
    return Way(raw["engine"], lanes, kernels)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("no rate")
    return float(value)


def _merged(old: Known, new: Known) -> Known:
    rates = {case: dict(measured) for case, measured in old.rates.items()}
    for case, measured in new.rates.items():
        rates[case] = {**rates.get(case, {}), **measured}
    startup = old.startup if new.startup is None else new.startup
    # The first choice stays, whoever made it.
    return Known(rates, {**new.choices, **old.choices}, startup)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
