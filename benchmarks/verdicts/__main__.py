"""Simulate verdicts at the boundary of every kind of claim; `python -m benchmarks.verdicts`.

With ``--kinds`` only those are simulated, and the other counts are as the table has them: draws are
fixed by seeds, so they are the same while the code that they are of is.

Of each kind, noise and number of seeds the worlds are tried with a few draws; the worst then gets
4,000 others. Draws are fixed by seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.verdicts import table
from benchmarks.verdicts.kinds import KINDS
from benchmarks.verdicts.noises import NOISES
from benchmarks.verdicts.worlds import CONTRADICTED, World

SEEDS = (3, 5, 8)
SEARCH, DRAWS = 400, 4000
SHORT = 60, 400
_PIECE = 500  # draws that are judged at once, as memory allows


@dataclass(frozen=True)
class Count:
    """How often a verdict was false in the worst world of a kind.

    Attributes:
        kind: The kind of claim.
        noise: The noise.
        n: The number of seeds.
        direction: "contradicted", or "supported" for support of either scale.
        world: The worst world, in words.
        worlds: How many were tried.
        false: False verdicts.
        draws: Of so many.
    """

    kind: str
    noise: str
    n: int
    direction: str
    world: str
    worlds: int
    false: int
    draws: int


def count(world: World, noise: str, n: int, draws: int, seed: str) -> int:
    """How many draws of a world are judged falsely."""
    rng = np.random.default_rng(zlib.crc32(f"{seed} {world.name} {world.false}".encode()))
    total = 0
    for first in range(0, draws, _PIECE):
        shape = (min(_PIECE, draws - first), *world.truth.shape, n)
        total += int(world.errs(world.truth[..., np.newaxis] + NOISES[noise](rng, shape)).sum())
    return total


def worst(job: tuple[str, str, int, int, int]) -> list[Count]:
    """The counts of one kind, noise and number of seeds, in both directions."""
    kind, noise, n, search, draws = job
    found: list[Count] = []
    for direction in ("contradicted", "supported"):
        against = direction == CONTRADICTED
        worlds = [world for world in KINDS[kind]() if (world.false == CONTRADICTED) == against]
        tried = [count(world, noise, n, search, f"search {noise} {n}") for world in worlds]
        chosen = worlds[int(np.argmax(tried))]
        false = count(chosen, noise, n, draws, f"count {noise} {n}")
        name = f"{chosen.name} ({chosen.false})"
        found.append(Count(kind, noise, n, direction, name, len(worlds), false, draws))
    return found


def main() -> None:
    """Run the campaign and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/verdicts"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="few draws, for a look")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="only these, others as before")
    given = parser.parse_args()
    search, draws = SHORT if given.short else (SEARCH, DRAWS)
    jobs = list(itertools.product(given.kinds or KINDS, NOISES, SEEDS, [search], [draws]))
    counts: list[Count] = []
    with multiprocessing.Pool(given.workers) as pool:
        for index, each in enumerate(pool.imap(worst, jobs)):
            counts += each
            rates = ", ".join(f"{it.direction} {100 * it.false / it.draws:.1f} %" for it in each)
            print(f"{index + 1}/{len(jobs)} {jobs[index][:3]}: {rates}", flush=True)
    table.write(given.out, merged([asdict(each) for each in counts], given.out), draws)


def merged(counts: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The counts, with those of the table for the kinds that they lack, in the order of kinds."""
    lacking = set(KINDS) - {each["kind"] for each in counts}
    if lacking:
        before = json.loads((out / "summary.json").read_text())["counts"]
        counts = counts + [each for each in before if each["kind"] in lacking]
    return sorted(counts, key=lambda each: list(KINDS).index(each["kind"]))


if __name__ == "__main__":
    main()
