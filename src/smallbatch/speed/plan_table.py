"""A plan as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.protocol.run import PROTOCOL

if TYPE_CHECKING:
    from smallbatch.speed.plan import Plan

_HEADS = (
    "column",
    "runs",
    "kept",
    "shared",
    "updates",
    "images",
    "FLOPs",
    "memory",
    "engine",
    "images/s",
    "time",
)


def lines(plan: Plan) -> list[str]:
    """A table with a line for each column and for the total, followed by remarks.

    Where all is trained, and it is known by what code, a line says that instead.
    """
    total = plan.total()
    recorded = all(column.recorded for column in plan.columns)
    if total["kept"] == total["runs"] and recorded:
        runs = "the only run is" if total["runs"] == 1 else f"all {total['runs']} runs are"
        return [f"nothing left to do: {runs} trained"]
    rows: list[tuple[str, ...]] = [_HEADS]
    for column in plan.columns:
        speed = column.images_per_second
        marks = f"{'' if column.measured else '~'}{'!' if column.rough else ''}"
        rate = "" if speed is None else f"{marks}{speed:,.0f}"
        rows.append(
            (
                f"{column.study} m={column.batch_size}", str(column.runs),
                f"{'' if column.recorded else '*'}{column.kept}", str(column.shared),
                f"{column.updates:,}", f"{column.images:,}", scaled(column.flops, "FLOP"),
                scaled(column.memory_bytes, "B"), column.engine,
                rate, clock(column.seconds),
            )
        )  # fmt: skip
    rows.append(
        (
            "total", str(total["runs"]), str(total["kept"]), str(total["shared"]),
            f"{total['updates']:,}", f"{total['images']:,}", scaled(total["flops"], "FLOP"),
            scaled(total["memory_bytes"], "B"), "", "", clock(total["seconds"]),
        )
    )  # fmt: skip
    shown = [i for i, head in enumerate(_HEADS) if head != "shared" or total["shared"]]
    widths = {i: max(len(row[i]) for row in rows) for i in shown}
    left_side = [_HEADS.index("column"), _HEADS.index("engine")]
    table = [
        "  ".join(
            row[i].ljust(widths[i]) if i in left_side else row[i].rjust(widths[i]) for i in shown
        ).rstrip()
        for row in rows
    ]
    left = "Updates, images, FLOPs, time: those of the runs left to train, if none diverges."
    if total["shared"]:
        left += " Shared runs are trained once, in a column further up."
    if any(column.images_per_second and not column.measured for column in plan.columns):
        left += " ~ is interpolated."
    if any(column.rough for column in plan.columns):
        left += (
            " ! was measured while other programs took a part of the cores, so that times are too "
            "long: repeat it when they have ended."
        )
    notes = [left if total["kept"] < total["runs"] else "Nothing left to do: all runs are trained."]
    if not plan.prepared:
        notes.append(
            f"data/prepared/{plan.dataset} does not hold this data set yet: kept runs are unknown."
        )
    if not recorded:
        notes.append(
            "* Results of the present code without records in .smallbatch/work, so that it is not "
            "known what libraries and hardware made them: `dvc repro` keeps them, `smallbatch "
            "train` trains them again."
        )
    if again := _trained_again(plan):
        notes.append(
            f"Trained again, under protocol {PROTOCOL} instead of an older one: {again}. Until a "
            "column is complete its old results stay."
        )
    return [*table, "", *notes]


def _trained_again(plan: Plan) -> str:
    """Columns with results of an older protocol, by study."""
    sizes: dict[str, list[str]] = {}
    for column in plan.columns:
        if column.older_protocol is not None:
            sizes.setdefault(column.study, []).append(str(column.batch_size))
    return "; ".join(f"{study} m={', '.join(own)}" for study, own in sizes.items())


def scaled(value: float, unit: str) -> str:
    """A number with three digits and a metric prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def clock(seconds: float) -> str:
    """A duration in suitable units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
