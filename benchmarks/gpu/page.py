"""The results as a page of Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.book import Book, Row, table
from benchmarks.gpu.parts import FIG2_BATCH_SIZES
from benchmarks.gpu.speed import fig2

FLOP = 75e6  # of one 32×32 training image of ResNet-8 (forward and backward)


def write(path: Path, book: Book, *, toy: bool = False) -> None:
    """Write the page; ``toy``: of a rehearsal."""
    found = {row.pop("what"): row for row in [dict(row) for row in book.rows("hardware")]}
    machine = found.get("machine", {})
    lines = [
        "# A rehearsal with toy sizes: no results\n"
        if toy
        else f"# Measured on {machine.get('gpu', machine.get('device', 'unknown'))}\n",
        ", ".join(f"{key} {value}" for key, value in machine.items()) + "; images: noise\n",
    ]
    if rates := found.get("rates"):
        lines.append(table(list(rates), [list(rates.values())]))
    lines += [*_speed(book), *_checks(book), *_grid(book), *_auto(book), *_profile(book)]
    for title, bad in (("Failed", book.failed()), ("Left out for time", book.skipped)):
        if bad:
            lines += [f"## {title}\n", *[f"- {line}" for line in bad], ""]
    path.write_text("\n".join(lines))


def _speed(book: Book) -> list[str]:
    """Images per second by way and batch size, and by how much stacked lanes are faster."""
    rows = [r for name in ("stacked", "script", "peer") for r in book.rows(name)]
    lines: list[str] = []
    for norm, title in (("batch", "with batch norm"), ("none", "without norm")):
        here = [row for row in rows if row.get("norm") == norm and "images_per_second" in row]
        if not here:
            continue
        ways: dict[str, dict[int, Row]] = {}
        for row in here:
            ways.setdefault(row.get("way") or row["peer"], {})[row["m"]] = row
        sizes = sorted({row["m"] for row in here})
        cells: list[list[Any]] = [
            [way, *[by_m[m]["images_per_second"] if m in by_m else None for m in sizes],
             next(iter(by_m.values()))["lanes"]]
            for way, by_m in ways.items()
        ]  # fmt: skip
        lines += [f"## Images per second, ResNet-8 {title}, 32×32\n"]
        lines += [table(["", *[f"m = {m}" for m in sizes], "lanes"], cells), *_ratios(ways, sizes)]
    return lines


def _ratios(ways: dict[str, dict[int, Row]], sizes: list[int]) -> list[str]:
    ours = ways.get("stacked, triton", {})
    others = {way: by_m for way, by_m in ways.items() if way.startswith(("jax", "grouped", "vmap"))}
    rows: list[list[Any]] = []
    if "script" in ways:
        ratios = [_ratio(ours, ways["script"], m) for m in sizes]
        rows.append(["stacked / plain PyTorch script", *ratios])
    if others:
        best: dict[int, Row] = {}
        for by_m in others.values():
            for m, row in by_m.items():
                if m not in best or row["images_per_second"] > best[m]["images_per_second"]:
                    best[m] = row
        ratios = [_ratio(ours, best, m) for m in sizes]
        rows.append(["stacked / best peer with as many lanes", *ratios])
        rows.append(["that peer", *[best[m]["peer"] if m in best else None for m in sizes]])
    return [table(["", *[f"m = {m}" for m in sizes]], rows)] if rows else []


def _ratio(ours: dict[int, Row], theirs: dict[int, Row], m: int) -> float | None:
    if m not in ours or m not in theirs:
        return None
    return ours[m]["images_per_second"] / theirs[m]["images_per_second"]


def _checks(book: Book) -> list[str]:
    rows: list[list[Any]] = []
    for row in book.rows("check"):
        name = row.get("check") or f"{row['peer']}, 20 updates of small images"
        numbers = [f"{row[k]:.0e}" if k in row else None for k in ("deviation", "loop", "limit")]
        rows.append([name, *numbers, "yes" if row["passed"] else "NO"])
    head = ["check", "deviation from float64", "the loop's own in float32", "limit", "passed"]
    return ["## Checks\n", table(head, rows)] if rows else []


def _grid(book: Book) -> list[str]:
    rows = {row["m"]: row for row in book.rows("grid")}
    evaluation = rows.pop("evaluation", None)
    if not rows or evaluation is None:
        return []
    steps = {m: row["step_us"] / 1e6 for m, row in sorted(rows.items())}
    found = fig2(steps, evaluation["seconds"])
    cells = [
        [
            m,
            rows[m]["step_us"],
            rows[m]["images_per_second"],
            found["minutes_by_batch_size"][str(m)],
        ]
        for m in steps
    ]
    total = f"{found['minutes']:.1f} minutes for {found['images']:.2g} training images"
    some = "" if set(steps) == set(FIG2_BATCH_SIZES) else " (not all batch sizes measured)"
    return [
        "## The paper's Fig. 2, extrapolated\n",
        table(["m", "µs a step", "images/s", "minutes of the column"], cells),
        f"In total {total}, evaluations included and no lane diverging{some}.\n",
    ]


def _auto(book: Book) -> list[str]:
    rows = [
        [row["norm"], row["m"], row["chosen"], row["seconds"], row["seconds_allowed_for"],
         ", ".join(f"{way} {rate:,.0f}" for way, rate in row["rates"].items())]
        for row in book.rows("auto")
    ]  # fmt: skip
    head = ["norm", "m", "chosen", "seconds", "allowed for", "images/s measured"]
    return ["## What `engine: auto` finds for a long column\n", table(head, rows)] if rows else []


def _profile(book: Book) -> list[str]:
    lines: list[str] = []
    for row in book.rows("profile"):
        cells = [[one["kernel"], one["calls"], one["us"]] for one in row["kernels"][:14]]
        title = f"norm {row['norm']}, K = {row['lanes']}, m = {row['m']}"
        lines += [f"## Kernels of a step, {title}\n", table(["kernel", "calls", "µs"], cells)]
    return lines
