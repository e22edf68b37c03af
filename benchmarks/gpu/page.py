"""The results as a page of Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.book import Book, table
from benchmarks.gpu.speed import FIG2_BATCHES, fig2

FLOP = 75e6  # of one 32×32 training image of ResNet-8 (forward and backward)


def write(path: Path, book: Book, dataset: str) -> None:
    """Write the page."""
    machine = book.get("hardware").get("machine", {})
    lines = [
        f"# Stacked engine on {machine.get('gpu', machine.get('device', 'unknown'))}\n",
        ", ".join(f"{key} {value}" for key, value in machine.items()) + f"; images: {dataset}\n",
        *_rates(book),
        *_checks(book),
        *_speed(book),
        *_grid(book),
        *_precision(book),
        *_columns(book),
        *_profile(book),
    ]
    for title, found in (("Failed", book.errors()), ("Left out for time", book.skipped)):
        if found:
            lines += [f"## {title}\n", *[f"- {line}" for line in found], ""]
    path.write_text("\n".join(lines))


def _rates(book: Book) -> list[str]:
    rates = book.get("hardware").get("rates")
    return [table(list(rates), [list(rates.values())])] if rates else []


def _checks(book: Book) -> list[str]:
    lines = ["## Checks\n"]
    errors = book.get("convolutions")
    if errors:
        rows = [[name, *[f"{v[k]:.1e}" for k in ("forward", "input", "weight")]]
                for name, v in errors.items()]  # fmt: skip
        head = ["algorithm", "forward", "input gradient", "weight gradient"]
        lines += ["Relative error of the convolutions against float64, worst shape:\n"]
        lines += [table(head, rows)]
    rows = [
        [f"{part}: {name}", *[f"{v[k]:.0e}" if k in v else None for k in _NUMBERS],
         "yes" if v["passed"] else "NO"]
        for part in ("one step", "float64 updates", "itself") for name, v in book.get(part).items()
    ]  # fmt: skip
    head = ["check", "deviation", "the loop's own in float32", "limit", "passed"]
    return [*lines, table(head, rows)] if rows else []


_NUMBERS = ("deviation", "loop", "limit")


def _speed(book: Book) -> list[str]:
    entries = book.get("speed")
    peak = book.get("hardware").get("rates", {}).get("float32_tflops")
    groups: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for name, value in entries.items():
        norm, lanes, m, variant = name.split()
        groups.setdefault((norm, lanes), {}).setdefault(variant, {})[m] = value["images_per_second"]
    lines = ["## Images per second, ResNet-8, training steps with augmentation\n"] if groups else []
    for (norm, lanes), variants in groups.items():
        sizes = sorted({m for row in variants.values() for m in row}, key=lambda m: int(m[2:]))
        rows: list[list[Any]] = [
            [name, *[row.get(m) for m in sizes]] for name, row in variants.items()
        ]
        lines += [f"norm {norm}, {lanes} (loop: one run):\n", table(["", *sizes], rows)]
        best = [max(row.get(m, 0.0) for row in variants.values()) for m in sizes]
        if peak:
            shares = [
                f"{m}: {100 * rate * FLOP / peak / 1e12:.1f} %"
                for m, rate in zip(sizes, best, strict=True)
            ]
            lines += [f"Best, of the measured float32 matrix rate: {', '.join(shares)}.\n"]
    return lines


def _grid(book: Book) -> list[str]:
    entries = book.get("grid")
    steps = {int(m): v["step_us"] / 1e6 for m, v in entries.items() if m != "evaluation"}
    if not steps or "evaluation" not in entries:
        return []
    found = fig2(steps, entries["evaluation"]["seconds"])
    whole = set(steps) == set(FIG2_BATCHES)
    rows = [[m, entries[str(m)]["step_us"], entries[str(m)]["images_per_second"],
             found["minutes_by_batch_size"][str(m)]] for m in steps]  # fmt: skip
    total = f"{found['minutes']:.1f} minutes for {found['images']:.2g} training images"
    return [
        "## The paper's Fig. 2, extrapolated\n",
        table(["m", "µs a step", "images/s", "minutes of the column"], rows),
        f"In total {total}, evaluations included and no lane diverging"
        + ("" if whole else " (not all batch sizes measured)")
        + ".\n",
    ]


def _precision(book: Book) -> list[str]:
    rows = [
        [way, v["mean"], v["standard_error"], len(v["accuracies"]), v["diverged"], v["seconds"]]
        for way, v in book.get("precision").items()
    ]
    head = ["precision", "test accuracy", "standard error", "seeds", "diverged", "seconds"]
    return ["## Precision\n", table(head, rows)] if rows else []


def _columns(book: Book) -> list[str]:
    rows = [
        [name, v["images_per_second"], v["seconds"], f"{v['finished']} of {len(v['diverged_at'])}"]
        for name, v in book.get("columns").items()
    ]
    head = ["column", "images/s", "seconds", "finished"]
    return ["## Columns trained as the engine does it\n", table(head, rows)] if rows else []


def _profile(book: Book) -> list[str]:
    lines: list[str] = []
    for name, rows in book.get("profile").items():
        cells = [[row["kernel"], row["calls"], row["us"]] for row in rows[:12]]
        lines += [f"## Kernels of a step, {name}\n", table(["kernel", "calls", "µs"], cells)]
    return lines
