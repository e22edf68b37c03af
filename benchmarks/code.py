"""Which code a campaign was run with; `python -m benchmarks.code` shows which tables are stale."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CAMPAIGNS = {
    "faults": ("src/smallbatch",),
    "fuzz": ("src/smallbatch",),
    "verdicts": (
        "src/smallbatch/analysis/comparisons.py",
        "src/smallbatch/analysis/comparisons_rates.py",
        "src/smallbatch/analysis/inference.py",
    ),
}
"""Campaign → the product's code that it tries."""
_KINDS = {".py", ".cpp", ".h"}


def digest(campaign: str, root: Path = ROOT) -> str:
    """Hash of the code that a campaign tries, and of its own but for the table's."""
    own = root / "benchmarks" / campaign
    total = hashlib.sha256()
    for place in (*(root / tried for tried in CAMPAIGNS[campaign]), own):
        for path in sorted(it for it in (place, *place.rglob("*")) if it.suffix in _KINDS):
            if path != own / "table.py":
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def stale(campaign: str) -> str | None:
    """Which code the committed table of a campaign is of, if it is not the code as it stands."""
    path = ROOT / "results" / campaign / "summary.json"
    if not path.exists():
        return f"results/{campaign} has no table: run the campaign"
    ran, now = json.loads(path.read_text())["code"], digest(campaign)
    if ran == now:
        return None
    return f"results/{campaign} is of code {ran}, which is {now} now: run it again"


def main() -> int:
    """Say of each committed table whether it is of the code as it stands; 1 if one is not."""
    found = [stale(campaign) for campaign in CAMPAIGNS]
    for campaign, line in zip(CAMPAIGNS, found, strict=True):
        print(line or f"results/{campaign} is of the code as it stands")
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
