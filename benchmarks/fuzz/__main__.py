"""The fuzzer; see docs/reliability.md.

    python -m benchmarks.fuzz --cases 100000 --workers 2      # all of it, into results/fuzz
    python -m benchmarks.fuzz --only claims --cases 1000 --out /tmp/fuzz

It can be interrupted: batches of cases that this code has done, listed in OUT/batches.jsonl, are
not run again. Those of other code or another seed are dropped. TMPDIR in memory makes it faster.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import code
from benchmarks.fuzz import table, targets
from benchmarks.fuzz.runner import LIMIT_S, Tally, Target, run_cases

BATCH = 300
"""Cases of a batch, fewer of dear ones. Each is a process: what a library keeps ends with it."""


@dataclass(frozen=True)
class Batch:
    """Cases of one target, from a number on."""

    target: Target
    first: int
    count: int

    @property
    def name(self) -> str:
        """Its name in `batches.jsonl`."""
        return f"{self.target.name} {self.first}+{self.count}"


@dataclass
class Process:
    """A batch that is being run; its file tells the number of the case, then the result."""

    batch: Batch
    pid: int
    file: Path
    seen: tuple[str, float] = field(default_factory=lambda: ("", time.monotonic()))


def main() -> int:
    """Run what is missing and write the table; exit status 1 if a case ended as none may."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="targets whose names begin with this")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"))
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = out / "batches.jsonl"
    ours = {"code": code.digest("fuzz"), "seed": arguments.seed}
    lines = log.read_text().splitlines() if log.exists() else []
    done = [batch for batch in map(json.loads, lines) if ours.items() <= batch.items()]
    log.write_text("".join(json.dumps(batch) + "\n" for batch in done))
    warm_up()
    wanted = [it for it in targets.TARGETS if it.name.startswith(arguments.only)]
    known = {batch["name"] for batch in done}
    left = [it for it in batches(wanted, arguments.cases) if it.name not in known]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, log.open("a") as file:
        pool = Pool(Path(scratch).resolve(), arguments.seed, {it.target.name for it in left})
        for batch, tally in pool.run(left, arguments.workers):
            when = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"name": batch.name, "target": batch.target.name, **tally.plain(), **ours}
            done.append(entry | {"date": when})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            print(f"{batch.name}: {dict(tally.codes)}, {len(tally.failures)} wrong", flush=True)
    return table.write(out, done, [it.name for it in wanted])


def warm_up() -> None:
    """Import once what the processes need."""
    warnings.simplefilter("ignore")
    targets.warm_up()
    import torch

    torch.set_num_threads(1)  # no pool of threads may exist when it forks


def batches(wanted: Sequence[Target], cases: int) -> list[Batch]:
    """All batches, in turns over the targets, the dear ones first."""
    total = sum(target.share for target in wanted)
    found: list[tuple[float, Batch]] = []
    for target in wanted:
        count = max(1, round(cases * target.share / total))
        size = max(1, round(BATCH * min(1.0, target.share / 6)))
        found += [
            (first / count, Batch(target, first, min(size, count - first)))
            for first in range(0, count, size)
        ]
    return [batch for _, batch in sorted(found, key=lambda it: (it[0], it[1].target.share))]


class Pool:
    """Runs batches in forked processes.

    Args:
        scratch: An empty folder.
        seed: That of all cases.
        names: The targets whose intact files are needed.
    """

    def __init__(self, scratch: Path, seed: int, names: set[str]) -> None:
        self.scratch, self.seed, self.numbers = scratch, seed, 0
        for target in targets.TARGETS:
            if target.name in names:  # alone: each process is to find them made
                process = self._start(Batch(target, 0, 0))
                _, status = os.waitpid(process.pid, 0)
                if status:
                    said = (process.file.parent / "said").read_text()
                    raise RuntimeError(f"{target.name}: its files cannot be made: {said}")

    def run(self, left: Sequence[Batch], workers: int) -> Any:
        """Yield each batch and how its cases ended."""
        queue, running = [*left], list[Process]()
        try:
            while queue or running:
                while queue and len(running) < workers:
                    running.append(self._start(queue.pop(0)))
                time.sleep(0.02)
                for process in [*running]:
                    ended = os.waitpid(process.pid, os.WNOHANG)[0] or self._hangs(process)
                    if ended:
                        running.remove(process)
                        yield from self._result(process, queue)
        finally:
            for process in running:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)

    def _start(self, batch: Batch) -> Process:
        self.numbers += 1
        scratch = self.scratch / str(self.numbers)
        scratch.mkdir()
        file = scratch / "result"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _work(batch, self.seed, scratch, self.scratch / f"intact {batch.target.name}", file)
                status = 0
            except BaseException:  # noqa: BLE001 - whatever it is, only this process ends
                traceback.print_exc()
            os._exit(status)
        return Process(batch, pid, file)

    def _hangs(self, process: Process) -> bool:
        """End a process whose case takes three times as long as it may: no signal reached it."""
        told = process.file.read_text() if process.file.exists() else ""
        if told != process.seen[0]:
            process.seen = (told, time.monotonic())
        if time.monotonic() < process.seen[1] + 3 * LIMIT_S + (0 if told else 60):
            return False
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        return True

    def _result(self, process: Process, queue: list[Batch]) -> Any:
        batch, told = process.batch, process.file.read_text() if process.file.exists() else ""
        if told.startswith("{"):
            found = json.loads(told)
            found["codes"] = Counter(found["codes"])
            yield batch, Tally(**found)
            return
        number = int(told or batch.first)  # the process ended with this case
        failure = {"target": batch.target.name, "seed": self.seed, "number": number,
                   "kind": "hang", "why": "the process ended, or had to be ended",
                   "command": " ".join(batch.target.words), "edits": []}  # fmt: skip
        tally = Tally(failures=[failure])
        tally.codes["hang"] = 1
        yield Batch(batch.target, number, 1), tally
        end = batch.first + batch.count
        for first, count in ((batch.first, number - batch.first), (number + 1, end - number - 1)):
            if count:
                queue.insert(0, Batch(batch.target, first, count))


def _work(batch: Batch, seed: int, scratch: Path, intact: Path, file: Path) -> None:
    with (scratch / "said").open("w") as said:
        os.dup2(said.fileno(), 2)  # what libraries say of damaged files

    def begin(number: int) -> None:
        file.write_text(str(number))

    numbers = range(batch.first, batch.first + batch.count)
    tally = run_cases(batch.target, numbers, seed, scratch, intact=intact, begin=begin)
    part = file.with_name("part")
    part.write_text(json.dumps(tally.plain()))
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main())
