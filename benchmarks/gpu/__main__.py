"""Every measurement and check of the engines that needs a GPU, within a number of minutes.

    PYTHONPATH=src python -m benchmarks.gpu --out gpu-results --minutes 8

Run from the repository's root. Needs torch, torchvision, timm, numpy, pillow and pyarrow, Triton
for its kernels, and for some of what they are compared with JAX; the package itself need not be
installed. First come the parts in which nothing is timed, side by side: checks, and what must be
compiled. Then the timed ones, one by one, most informative first, until the minutes are over.
`gpu.json` grows line by line, `gpu.md` is written at the end. Called again with the same `--out` it
does the parts that are missing or failed. `--device cpu --toy` rehearses it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.book import Book
from benchmarks.gpu.page import write
from benchmarks.gpu.parts import Part, one_by_one, side_by_side
from smallbatch.machine import cores

LEAST = 5.0  # seconds without which no part is begun
TOGETHER = 0.4  # of the time, at most, for the parts in which nothing is timed


def main() -> int:
    """Run the parts; 1 if something failed or did not fit the time."""
    options = _options()
    if refusal := _refused(options):
        print(refusal, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    book = Book(options.out / "gpu.json", time.monotonic() + 60 * options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        npz = Path(folder, "images.npz")
        _images(npz, options.toy)
        runner = _Runner(book, options, options.cache or Path(folder))
        timed = _wanted(one_by_one(options.toy, npz), options.parts)
        runner.deadline -= 60 * options.minutes * (1 - TOGETHER) if timed else 0
        alone = runner.environment
        # More threads than cores cost processes side by side far more than they bring.
        runner.environment = alone | {"OMP_NUM_THREADS": "2"}
        with ThreadPoolExecutor(options.together) as pool:
            list(pool.map(runner.run, _wanted(side_by_side(options.toy), options.parts)))
        runner.environment, runner.deadline = alone, book.deadline
        for part in timed:
            runner.run(part)
    write(options.out / "gpu.md", book, toy=options.toy)
    print((options.out / "gpu.md").read_text())
    return 1 if book.failed() or book.skipped else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    names = sorted({name.split()[0] for name in _names(False)})
    parser.add_argument(
        "--parts", nargs="+",
        help=f"only parts whose names begin with one of these: {', '.join(names)}",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8, help="by default 8")
    parser.add_argument("--cache", type=Path, help="folder for JAX's programs, kept for a rerun")
    parser.add_argument("--together", type=int, default=max(1, cores() // 2),
                        help="processes at a time while nothing is timed")  # fmt: skip
    parser.add_argument("--commit", help="of these files, where git does not know it")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to rehearse")
    return parser.parse_args()


def _names(toy: bool) -> list[str]:
    return [part.name for part in (*side_by_side(toy), *one_by_one(toy, Path()))]


def _refused(options: argparse.Namespace) -> str | None:
    """Why nothing can be measured as asked for, in one line."""
    for name in options.parts or ():
        if not any(known.startswith(name) for known in _names(options.toy)):
            known = ", ".join(_names(options.toy))
            return f"--parts: found {name!r}, allowed: beginnings of {known}"
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "--device: found cuda, but torch sees no CUDA device; cpu --toy rehearses"
    machine = next(iter(Book(options.out / "gpu.json", 0.0).rows("hardware")), {})
    if machine.get("device", options.device) != options.device:
        return f"--out: {options.out} has results of {machine['device']}; name another folder"
    return None


def _wanted(parts: list[Part], names: list[str] | None) -> list[Part]:
    return [part for part in parts if not names or part.name.startswith(tuple(names))]


def _images(path: Path, toy: bool) -> None:
    """Noise in CIFAR-10's shape: what a pixel holds does not change what it costs."""
    rng, n, size = np.random.default_rng(0), *((96, 8) if toy else (50_000, 32))
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    np.savez(path, images=images, labels=rng.integers(0, 10, n))


class _Runner:
    """Runs parts as processes and keeps what they print.

    Args:
        book: the results.
        options: of the command line.
        cache: folder for compiled programs of JAX.
    """

    def __init__(self, book: Book, options: argparse.Namespace, cache: Path) -> None:
        self.book, self.options, self.deadline = book, options, book.deadline
        self.running: set[subprocess.Popen[str]] = set()
        signal.signal(signal.SIGTERM, self._stop)
        self.environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def _stop(self, *_: object) -> None:
        for process in list(self.running):
            _end(process, threading.Event())
        os._exit(1)  # threads that wait for parts do not keep it

    def run(self, part: Part) -> None:
        """Run a part unless it is done or the time is over."""
        if self.book.done(part.name):
            return
        left = self.deadline - time.monotonic()
        if left < LEAST:
            self.book.skip(part.name)
            return
        started, limit = time.monotonic(), min(part.limit, left)
        error = self._process(part, limit)
        took = time.monotonic() - started
        print(f"[{took:6.1f} s] {part.name}{': ' + error if error else ''}", flush=True)
        if part.kept or error:
            self.book.end(part.name, took, error)

    def _process(self, part: Part, limit: float) -> str | None:
        """Keep the part's lines; why it ended, if not by itself."""
        command = [sys.executable, *part.command, "--device", self.options.device]
        if self.options.toy and part.command[0] == "-m" and "--toy" not in part.command:
            command.append("--toy")
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=said, text=True,
                start_new_session=True,
            ) as process,
        ):  # fmt: skip
            ended = threading.Event()
            timer = threading.Timer(limit, _end, (process, ended))
            timer.daemon = True
            timer.start()
            self.running.add(process)
            for line in process.stdout or ():
                if part.kept and (row := _row(part, line)):
                    if row.get("what") == "machine" and self.options.commit:
                        row["commit"] = self.options.commit
                    self.book.add(part.name, row)
            code = process.wait()
            self.running.discard(process)
            timer.cancel()
            if code == 0:
                return None
            said.seek(0)
            last = [line for line in said.read().splitlines() if line.strip()][-1:]
            why = f"ended after {limit:.0f} s" if ended.is_set() else f"status {code}"
            return " ".join([why, *last])[:300]


def _row(part: Part, line: str) -> dict[str, Any] | None:
    """A result, or None for other lines, also for half of one, of a part that was ended."""
    try:
        row = part.tags | json.loads(line)
    except (ValueError, TypeError):
        return None
    if "images" in row and "images_per_second" not in row:  # the script counts
        row["images_per_second"] = row["images"] / row["seconds"]
    return row


def _end(process: subprocess.Popen[str], ended: threading.Event) -> None:
    """Kill a process and its children."""
    ended.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
