"""Every measurement and check of the stacked engine that needs a GPU, in under 10 minutes.

    PYTHONPATH=src python -m benchmarks.gpu --out results/bench/gpu --data PATH_TO_CIFAR10_PARQUET

Run from the repository's root. Needs torch, torchvision, timm, numpy, pillow and pyarrow, and
Triton for its kernels; the package itself need not be installed. Writes `gpu.json` after every
entry and `gpu.md` at the end; a second call with the same `--out` does what is missing or failed.
`--device cpu --toy` rehearses it in a minute.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import checks, precision, speed
from benchmarks.gpu.book import Book
from benchmarks.gpu.hardware import describe, rates
from benchmarks.gpu.inputs import Settings, load_images
from benchmarks.gpu.page import write
from smallbatch.data.prepared import Dataset
from smallbatch.training.resident import Resident, load_resident

PARTS = (
    "hardware", "speed", "grid", "checks", "precision", "columns", "profile", "compile"
)  # fmt: skip


def main() -> int:
    """Run the parts asked for; 1 if something failed or did not fit the time."""
    options = _options()
    device = torch.device(options.device)
    torch.backends.cudnn.deterministic = True  # as when the engine trains
    options.out.mkdir(parents=True, exist_ok=True)
    book = Book(options.out / "gpu.json", time.monotonic() + options.minutes * 60)
    size, train, test = (8, 96, 40) if options.toy else (32, 50_000, 10_000)
    dataset = load_images(options.data, train, test, size)
    try:
        for part in options.parts:
            _PARTS[part](book, dataset, device, options.toy)
    finally:
        write(options.out / "gpu.md", book, dataset.meta.name)
    print((options.out / "gpu.md").read_text())
    return 1 if book.errors() or book.skipped else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's Parquet shards, else noise")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="what would take longer is left out"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to rehearse")
    return parser.parse_args()


def _resident(dataset: Dataset, device: torch.device) -> Resident:
    return load_resident(dataset, augment=True, device=device)


def _hardware(book: Book, _dataset: Dataset, device: torch.device, toy: bool) -> None:
    book.do("hardware", "machine", lambda: describe(device))
    book.do("hardware", "rates", lambda: rates(device, toy))


def _checks(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    names = ["grouped", "triton-ieee"]
    names += [] if toy else ["triton-tf32x3", "triton-tf32"]
    for name in names:
        book.do("convolutions", name, partial(checks.convolutions, device, name, toy))
    data = _resident(dataset, device)
    for model, norm in [("resnet8", "batch")] if toy else checks.CASES:
        against = partial(checks.against_loop, model, norm, data, 1, torch.float32)
        book.do("one step", f"{model} {norm}", against)
    updates = 5 if toy else 50
    long = [("resnet8", "none"), ("resnet8", "batch"), ("alexnet", "none")]
    for model, norm in long[: 1 if toy else 3]:
        against = partial(checks.against_loop, model, norm, data, updates, torch.float64)
        book.do("float64 updates", f"{model} {norm}", against)
    book.do("itself", "captured step", lambda: checks.captured(data, 5))
    book.do("itself", "lanes beside a diverging one", lambda: checks.neighbours(data, 5))
    book.do("itself", "chunks", lambda: checks.chunks(data, 5))
    book.do("itself", "divergence as in the loop", lambda: checks.divergence(data, 5))


def _speed(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data, every = _resident(dataset, device), speed.variants(device)
    some = [name for name in every if name in ("grouped", "triton-ieee", "triton-tf32x3", "auto")]
    families = [("batch", 26, every), ("none", 13, some), ("batch", 104, some[-1:])]
    for norm, lanes, variants in [("batch", 2, every)] if toy else families:
        settings = Settings("resnet8", norm, augment=True)
        for m in (2, 8) if toy else (2, 8, 32, 128):
            for variant in variants:
                rate = partial(speed.images_per_second, variant, settings, m, lanes, data, toy)
                book.do("speed", f"{norm} K={lanes} m={m} {variant}", rate)


def _grid(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data = load_resident(dataset, augment=False, device=device)
    settings, lanes = Settings("resnet8", "none"), 2 if toy else 13
    variant = "auto" if device.type == "cuda" else "grouped"
    for m in (2, 8) if toy else speed.FIG2_BATCHES:
        rate = partial(speed.images_per_second, variant, settings, m, lanes, data, toy)
        book.do("grid", str(m), rate)
    book.do(
        "grid",
        "evaluation",
        lambda: {"seconds": speed.evaluation_seconds(settings, lanes, data)},
    )


def _columns(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data = load_resident(dataset, augment=False, device=device)
    base_lrs = [2.0**-9, 2.0**60] if toy else speed.BASE_LRS
    for m in (8,) if toy else (8, 128, 2048):
        settings = Settings("resnet8", "none", epochs=1 if m == 8 else 3)
        book.do("columns", f"m={m}", partial(speed.column, settings, m, base_lrs, data))


def _compile(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data = _resident(dataset, device)
    for norm, m in () if toy else (("none", 8), ("batch", 8), ("batch", 128)):  # a minute each
        lanes, settings = 26 if norm == "batch" else 13, Settings("resnet8", norm)
        rate = partial(speed.images_per_second, "compile", settings, m, lanes, data, toy)
        book.do("speed", f"{norm} K={lanes} m={m} compile", rate, needs=120)


def _precision(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data = _resident(dataset, device)
    m, seeds, epochs = (32, 2, 1) if toy else (32, 8, 4)
    for way in precision.WAYS:
        book.do("precision", way, partial(precision.train, way, data, m, seeds, epochs))


def _profile(book: Book, dataset: Dataset, device: torch.device, toy: bool) -> None:
    data = _resident(dataset, device)
    large = [("batch", 26, 2), ("batch", 26, 128), ("none", 13, 2), ("none", 13, 128)]
    for norm, lanes, m in [("batch", 2, 2)] if toy else large:
        settings = Settings("resnet8", norm, augment=True)
        measure = partial(speed.kernels, settings, m, lanes, data)
        book.do("profile", f"{norm} K={lanes} m={m}", measure)


_PARTS = {
    "hardware": _hardware,
    "checks": _checks,
    "speed": _speed,
    "grid": _grid,
    "precision": _precision,
    "columns": _columns,
    "profile": _profile,
    "compile": _compile,
}

if __name__ == "__main__":
    raise SystemExit(main())
