"""The command line of both frameworks' peers: one line of JSON for every entry as soon as it is."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.peers_task import load

GRACE = 20.0  # seconds from the interruption of a slow entry to the end of the process


def run(
    peers: list[str],
    measure: Callable[..., dict[str, Any]],
    usable: Callable[[str], bool],
) -> int:
    """Measure what the command line asks for.

    Args:
        peers: names that exist.
        measure: of a module of peers.
        usable: whether the device can go on after an error.

    Returns:
        The exit status: 1 if an entry failed, 2 if the device was lost.
    """
    options = _parse(peers)
    images, labels = load(options.data, options.toy)
    status = 0
    for peer in options.peer or peers:
        for m in options.m:
            entry = {"peer": peer, "norm": options.norm, "m": m}
            found = _attempt(measure, entry, options, images, labels)
            print(json.dumps(entry | found), flush=True)
            if "error" in found:
                status = 1
                if not usable(options.device):
                    print("the device is lost", file=sys.stderr)
                    return 2
            elif not found.get("passed", True):
                status = 1
    return status


def _attempt(
    measure: Callable[..., dict[str, Any]],
    entry: dict[str, Any],
    options: argparse.Namespace,
    images: Any,
    labels: Any,
) -> dict[str, Any]:
    try:
        with _limited(options.limit, entry):
            return measure(
                entry["peer"], options.norm, entry["m"], options.lanes, images, labels,
                options.seconds, options.device, check=options.check,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever it is, the other entries are still wanted
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}"}


@contextmanager
def _limited(seconds: float, entry: dict[str, Any]) -> Generator[None, None, None]:
    """Interrupt a block that takes too long; if it does not heed that, say so and end it all.

    Python handles a signal between two of its own instructions: a compiler in C++ is not stopped.
    """

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    def end() -> None:
        error = f"TimeoutError: not done after {seconds:g} s, process ended"
        print(json.dumps(entry | {"error": error}), flush=True)
        os._exit(3)

    before = signal.signal(signal.SIGALRM, interrupt)
    timer = threading.Timer(seconds + GRACE, end)
    timer.daemon = True
    timer.start()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        timer.cancel()


def _parse(peers: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", nargs="+", choices=peers, help="all by default")
    parser.add_argument("--norm", choices=("batch", "none"), default="batch")
    parser.add_argument("--m", nargs="+", type=int, default=[2])
    parser.add_argument("--lanes", type=int, default=26)
    parser.add_argument("--seconds", type=float, default=1.0, help="timed; 0 to check only")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds of an entry")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", type=Path, help="npz of uint8 images and labels; else noise")
    parser.add_argument("--toy", action="store_true", help="few and small images")
    parser.add_argument("--check", action="store_true", help="20 updates against float64 first")
    return parser.parse_args()
