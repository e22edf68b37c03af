"""Whether budgets hold: runs `smallbatch advise` with budgets of 1 to 20 minutes, and times it.

`python -m benchmarks.advise.budgets --cifar10 DIR --photographs DIR --work DIR [--cases 1-9]`

DIR are folders of Parquet. From the photographs 60 are written as JPEGs into folders by class, as a
newcomer may have them. What was measured is kept in the work folder, and goes on from there.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.code import ROOT
from smallbatch import machine
from smallbatch.markdown import table

ALLOWED = 1.1
"""Of the budget."""

_LONG = (
    "--model resnet8 --image-size 64 --optimizer momentum --momentum 0.9 --schedule cosine "
    "--weight-decay 0.0005"
)
JPEGS, CIFAR, PHOTOS = "JPEGS", "CIFAR", "PHOTOS"
CASES = (
    ("1m", "digits", ()),
    ("1m", JPEGS, ("--image-size", "32")),
    ("1m", CIFAR, ("--batch-sizes", "8,32")),
    ("2m", "digits", ("--optimizer", "adamw", "--schedule", "cosine")),
    ("2m", JPEGS, ("--model", "resnet18", "--image-size", "32")),
    ("2m", CIFAR, ("--norm", "none", "--optimizer", "momentum")),
    ("3m", "digits", ("--batch-sizes", "2,8,32,128")),
    ("4m", CIFAR, ("--model", "resnet20", "--target", "time")),
    ("5m", PHOTOS, ("--image-size", "64")),
    ("20m", PHOTOS, tuple(_LONG.split())),
)
"""Budget, images, options; the first nine are of 1 to 5 minutes, the last is that of `live`."""


def write_jpegs(source: Path, target: Path, classes: int = 3, each: int = 20) -> None:
    """Write a few photographs of a Parquet folder as JPEGs, in a folder for each class."""
    from PIL import Image

    file = next(iter(sorted(source.glob("*train*.parquet")))) if source.is_dir() else source
    names = pq.read_schema(file).names
    image, label = (next(it for it in options if it in names) for options in
                    (("img", "image"), ("label", "fine_label")))  # fmt: skip
    written: dict[int, int] = {}
    for batch in pq.ParquetFile(file).iter_batches(64, columns=[image, label]):
        for row in batch.to_pylist():
            kind = int(row[label])
            if kind >= classes or written.get(kind, 0) == each:
                continue
            written[kind] = written.get(kind, 0) + 1
            folder = target / f"class{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.open(io.BytesIO(row[image]["bytes"])).convert("RGB")
            picture.save(folder / f"{written[kind]:02d}.jpg")
        if sum(written.values()) == classes * each:
            return


def measure(case: tuple[str, str, tuple[str, ...]], data: dict[str, str], work: Path) -> Any:
    """Run one case in a folder of its own; returns what came of it."""
    budget, images, options = case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    words = ["--data", data.get(images, images), "--budget", budget, *options]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "smallbatch", "advise", *words],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    (work / "output.txt").write_text(done.stdout + done.stderr)
    advice = json.loads((work / "reports/advice.json").read_text())
    told = advice["recommended"] or {}
    return {
        "budget": budget,
        "allowed_seconds": 60.0 * float(budget.removesuffix("m")),
        "seconds": seconds,
        "exit": done.returncode,
        "data": images if images not in data else advice["dataset"],
        "options": " ".join(options),
        "training": f"{advice['epochs']} × {advice['n_train']}",
        "answer": f"m = {told.get('batch_size')}, η = {told.get('lr', 0):.3g}",
        "on": told.get("on") if told.get("beyond_chance") else "nothing learned: no answer",
        "warning_of_mlflow": "MLflow" in done.stderr,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    shown = [
        (it["budget"], it["data"], it["options"], it["training"],
         it["answer"], it["on"], f"{it['seconds']:.0f} s",
         f"{100 * it['seconds'] / it['allowed_seconds']:.0f} %")
        for it in rows
    ]  # fmt: skip
    held = sum(it["seconds"] <= ALLOWED * it["allowed_seconds"] for it in rows)
    late = sum(it["warning_of_mlflow"] for it in rows)
    return "\n".join([
        "# Budgets of time",
        "",
        ("`python -m benchmarks.advise.budgets`: the command from its start to its end, on "
        f"{machine.cores()} idle cores, {machine.cpu_model()}."),
        "",
        table(("budget", "images", "options", "epochs × images", "answer", "decided by", "took",
               "of the budget"), shown, right=2),
        "",
        (f"{held} of {len(rows)} ended within 110 % of their budget. In {late} the copy in MLflow "
        "was not complete by then, which `smallbatch sync` makes up for."),
        "",
    ])  # fmt: skip


def main() -> None:
    """Measure the cases that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", default=f"1-{len(CASES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "advise")
    given = parser.parse_args()
    first, last = map(int, given.cases.split("-"))
    jpegs = given.work / "jpegs"
    if not jpegs.exists():
        write_jpegs(given.photographs, jpegs)
    data = {JPEGS: str(jpegs.absolute()), CIFAR: given.cifar10, PHOTOS: str(given.photographs)}
    for number in range(first, last + 1):
        kept = given.work / f"case{number}.json"
        if not kept.exists():
            found = measure(CASES[number - 1], data, given.work / f"case{number}")
            kept.write_text(json.dumps(found))
            print(found, flush=True)
    paths = given.work.glob("case*.json")
    ordered = sorted(paths, key=lambda it: int(it.stem.removeprefix("case")))
    rows = [json.loads(path.read_text()) for path in ordered]
    (given.out / "budgets.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    (given.out / "budgets.md").write_text(page(rows))


if __name__ == "__main__":
    main()
