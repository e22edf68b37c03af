"""The stacked engine on the device: `python -m benchmarks.gpu.ours WHAT …`, lines of JSON.

check MODEL NORM       one update, and 20 of small images, against float64
itself                 bits of captured steps, neighbours, chunks; outcomes of diverging runs
speed NORM M… SECONDS  images per second by each kind of kernels
hardware, profile, grid, auto
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import checks, speed
from benchmarks.gpu.hardware import describe, rates
from benchmarks.gpu.inputs import Settings, load_images
from benchmarks.gpu.parts import FIG2_BATCH_SIZES, LANES
from smallbatch.engines.resident import Resident, load_resident


def main() -> None:
    """Do one thing and print what comes of it, line by line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHATS)
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to rehearse")
    options = parser.parse_args()
    torch.backends.cudnn.deterministic = True  # as when the engine trains
    WHATS[options.what](torch.device(options.device), options.toy, *options.rest)


def say(measure: Callable[[], dict[str, Any]], **tags: Any) -> None:
    """Print an entry, or why there is none; an error that spoils the device ends the process."""
    try:
        found = measure()
    except Exception as error:  # noqa: BLE001 - one failure must not take the others along
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(tags | found), flush=True)
    if "error" in found and torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _data(device: torch.device, toy: bool) -> Resident:
    size, train, test = (8, 96, 40) if toy else (32, 50_000, 10_000)
    return load_resident(load_images(None, train, test, size), augment=False, device=device)


def _few(device: torch.device, size: int) -> Resident:
    return load_resident(load_images(None, 400, 40, size), augment=True, device=device)


def _check(device: torch.device, toy: bool, model: str, norm: str) -> None:
    """One update of full-sized images, twenty of small ones: see `peers_task.LIMIT`."""
    full, small = _few(device, 8 if toy else 32), _few(device, 8)
    one = lambda: checks.against_loop(model, norm, full, 1)  # noqa: E731
    say(one, check=f"{model} {norm}, one update")
    if model != "alexnet" or norm == "none":  # FC norms over 16 examples amplify rounding
        twenty = lambda: checks.against_loop(model, norm, small, 20)  # noqa: E731
        say(twenty, check=f"{model} {norm}, 20 updates of small images")


def _itself(device: torch.device, toy: bool) -> None:
    data, updates = _few(device, 8 if toy else 32), 2 if toy else 5
    for name, check in (
        ("captured step, bits", checks.captured),
        ("lanes beside a diverging one, bits", checks.neighbours),
        ("chunks, bits", checks.chunks),
        ("divergence as in the loop", checks.divergence),
    ):
        say(lambda check=check: check(data, updates), check=name)


def _speed(device: torch.device, toy: bool, norm: str, *rest: str) -> None:
    data, settings, lanes = _data(device, toy), Settings("resnet8", norm), LANES[norm]
    lanes, sizes, seconds = 2 if toy else lanes, map(int, rest[:-1]), float(rest[-1])
    for m in sizes:
        ways = ("triton", "grouped", "loop") if norm == "batch" else ("triton",)
        for way in ways if device.type == "cuda" else ("grouped", "loop"):
            count = 1 if way == "loop" else lanes
            rate = partial(speed.images_per_second, way, settings, m, lanes, data, seconds)
            say(
                rate,
                way=f"stacked, {way}" if way != "loop" else way, norm=norm, m=m, lanes=count,
            )  # fmt: skip


def _hardware(device: torch.device, toy: bool) -> None:
    say(lambda: describe(device), what="machine")
    say(lambda: dict(rates(device, toy)), what="rates")


def _profile(device: torch.device, toy: bool) -> None:
    data = _data(device, toy)
    for norm in ("none",) if toy else LANES:
        for m in (2,) if toy else (2, 8, 128):
            lanes = 2 if toy else LANES[norm]
            found = lambda norm=norm, m=m, lanes=lanes: {  # noqa: E731
                "kernels": speed.kernels(Settings("resnet8", norm), m, lanes, data)
            }
            say(found, norm=norm, m=m, lanes=lanes)


def _grid(device: torch.device, toy: bool) -> None:
    """The paper's Fig. 2: seconds of an update at every batch size, and of an evaluation."""
    data, settings, lanes = _data(device, toy), Settings("resnet8", "none"), 2 if toy else 13
    way, seconds = ("grouped", 0.02) if toy else ("triton", 0.5)
    say(lambda: {"seconds": speed.evaluation_seconds(settings, lanes, data)}, m="evaluation")
    for m in (2, 8) if toy else FIG2_BATCH_SIZES[::-1]:
        rate = lambda m=m: speed.images_per_second(way, settings, m, lanes, data, seconds)  # noqa: E731
        say(rate, m=m)


def _auto(device: torch.device, toy: bool) -> None:
    """Of long columns; for the first, kernels must be compiled unless the machine has them."""
    from benchmarks.gpu.auto import decided

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMALLBATCH_CACHE"] = folder
        for norm, m in (("batch", 8), ("none", 128)):
            say(lambda norm=norm, m=m: decided(norm, m, device.type, toy=toy), norm=norm, m=m)


WHATS: dict[str, Callable[..., None]] = {
    "check": _check,
    "itself": _itself,
    "speed": _speed,
    "hardware": _hardware,
    "profile": _profile,
    "grid": _grid,
    "auto": _auto,
}

if __name__ == "__main__":
    main()
