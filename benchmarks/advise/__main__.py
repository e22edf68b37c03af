"""Replay races on committed results, and compare them with the full grids.

`python -m benchmarks.advise [--results DIR ...] [--out DIR]`
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.advise.replay import orders, replay
from benchmarks.advise.studies import studies
from benchmarks.advise.table import met, page
from benchmarks.code import ROOT
from smallbatch.analysis.race import RULE, Rule
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = tuple(
    ROOT / "results" / name for name in ("paper-cifar10-small", "paper-cifar10", "cifar10-cpu")
)
VARIANTS = {
    "the best half goes on as well": Rule(quota=0.5),
    "no rung at 10 %": Rule(rungs=(0.3, 1.0)),
}
"""Rules that were tried after the result of `RULE` was known."""


def files(folders: Sequence[Path]) -> dict[str, str]:
    """The campaign's files, by name."""
    found, left_out = studies(folders)
    paired = [it for it in found if it.seeds > 1]
    single = [order for it in found if it.seeds == 1 for order in orders(it)]
    if not paired:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise UserError(f"no study to replay a race on: none of several seeds ({why})")
    replays = sorted(map(replay, paired), key=lambda it: not it.counts)
    by_name = {it.name: it for it in paired}
    variants = {
        words: [replay(by_name[it.study], rule) for it in replays]
        for words, rule in VARIANTS.items()
    }
    summary = {
        "rule": asdict(RULE),
        "studies": [asdict(it) for it in replays],
        "met": dict(zip(("regret", "images", "both"), met(replays), strict=True)),
        "found_afterwards": {
            words: {"rule": asdict(rule), "studies": [asdict(it) for it in variants[words]]}
            for words, rule in VARIANTS.items()
        },
        "one_seed": [asdict(it) for it in single],
        "left_out": left_out,
    }
    return {
        "replay.json": json.dumps(_rounded(summary), indent=1, ensure_ascii=False) + "\n",
        "replay.md": page(replays, variants, single, left_out),
    }


def _rounded(summary: dict[str, Any]) -> Any:
    """The same with nine digits: what a processor rounds differently does not matter."""
    return json.loads(json.dumps(summary), parse_float=lambda text: float(f"{float(text):.9g}"))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, nargs="+", default=RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "advise")
    given = parser.parse_args()
    for folder in given.results:
        if not folder.is_dir():
            parser.error(f"--results: {folder} is no folder")
    try:
        written = files(given.results)
    except UserError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (given.out / name).write_text(text)
        print(given.out / name)


if __name__ == "__main__":
    main()
