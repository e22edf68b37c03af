"""One column, or single runs of it, trained by JAX: a peer that the engines are compared with.

A script of its own, `python jax_script.py --peer jax-vmap --data images.npz --batch-size 8 ...`, so
that torch stays out of its process and JAX has its default threads. It trains until it has been
timed for long enough and prints one line of JSON. With `--requests` it does so for each line that
it reads: a JSON list of options. Images are normalised and on the device before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np

from smallbatch.speed.bench.peers.program import PEERS, Program, set_up
from smallbatch.speed.bench.peers.task import (
    NORMS,
    Array,
    Task,
    drawn,
    make_task,
    normalised,
    parts,
    seeds_of,
)  # fmt: skip
from smallbatch.speed.bench.serve import serve

MOST_UPDATES = 100  # in a call of the compiled program
CALL_PIXELS = 2**17  # of all images in a call on a CPU: about a second at the slowest


def updates_per_call(pixels: int, device: str) -> int:
    """How many updates make one program.

    On a GPU always the most, since to start a program costs as much as many updates. On a CPU so
    many that a measurement of a second or two is not one call alone.

    Args:
        pixels: Of the images of one update of all lanes.
        device: ``cpu`` or ``cuda``.
    """
    return MOST_UPDATES if device == "cuda" else max(1, min(MOST_UPDATES, CALL_PIXELS // pixels))


def task_of(options: argparse.Namespace, images: Array, labels: Array) -> Task:
    """The lanes that bench's other engines train: two seeds, at multiples of a base learning rate.

    Args:
        options: With ``lanes`` K, ``base_lr``, ``norm`` and ``batch_size``.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
    """
    lanes = options.lanes
    base_lrs = options.base_lr * (1.0 + np.arange(lanes) % (lanes // seeds_of(lanes)))
    return make_task(
        options.norm, options.batch_size, base_lrs, normalised(np.moveaxis(images, 3, 1)), labels,
        max(1, len(labels) // options.batch_size),
    )  # fmt: skip


def train(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Train; the clock starts after the first calls, which compile, and runs for ``--seconds``.

    Programs side by side are called by a thread each, and their speeds add up: ``seconds`` are the
    images of all, divided by the sum of the speeds.
    """
    channels, height, width = task.images.shape[1:]
    classes, programs = int(task.labels.max()) + 1, list[Program]()
    dealt = parts(task, options.programs)
    pixels = max(part.lanes for part in dealt) * task.m * height * width
    updates = updates_per_call(pixels, options.device)
    for number, part in enumerate(dealt):
        # Which weights a lane starts with does not change what an update costs.
        seeds = [number + part.seed(lane) for lane in range(part.lanes)]
        starts = [drawn(task.norm, channels, classes, seed) for seed in seeds]
        programs.append(Program(options.peer, part, starts, updates))
        programs[-1]()
        programs[-1].wait()
    with ThreadPoolExecutor(len(programs)) as threads:
        timed = list(threads.map(lambda program: _calls(program, options.seconds), programs))
    counts = [updates * part.lanes * task.m for part in dealt]  # images of a call
    both = [*zip(counts, timed, strict=True)]
    images = sum(count * calls for count, (calls, _) in both)
    seen = images + sum(counts)
    results = [program.result() for program in programs]
    named = results[0].states[0].items()
    return {
        "images": images,
        "seconds": images / sum(count * calls / seconds for count, (calls, seconds) in both),
        "loss": float(sum(result.loss.sum() for result in results) / seen),
        "accuracy": float(sum(result.right.sum() for result in results) / seen),
        "parameters": sum(value.size for name, value in named if "running" not in name),
        "updates_per_call": updates,
    }


def _calls(program: Program, least: float) -> tuple[int, float]:
    """Call a program for so many seconds, at least once; returns calls and seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        program()
        program.wait()
        calls += 1
        seconds = time.perf_counter() - start
        if seconds >= least:
            return calls, seconds


def answer(words: list[str], out: IO[str]) -> None:
    """Train by options and write the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--data", required=True, help="npz of images (N, H, W, C) and labels (N,)")
    parser.add_argument("--norm", choices=NORMS, default="batch")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument(
        "--programs", type=int, default=1, help="that share the lanes, side by side"
    )
    parser.add_argument("--base-lr", type=float, default=2.0**-30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(words)
    jax = set_up(options.device)
    with np.load(options.data) as arrays:
        task = task_of(options, arrays["images"], arrays["labels"])
    found = train(task, options) | {"jax": jax.__version__}
    print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    serve(answer)
