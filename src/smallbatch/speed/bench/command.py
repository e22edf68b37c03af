"""What `smallbatch bench` does: measure, learn, write."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallbatch import durable, machine
from smallbatch.config.model_names import validate_model
from smallbatch.errors import UserError
from smallbatch.placement.known import case_key, learn
from smallbatch.placement.placement import resolve_device
from smallbatch.speed.bench import record
from smallbatch.speed.bench.images import SOURCES, load
from smallbatch.speed.bench.session import ENGINES, Bench, Session, run

BATCH_SIZES = (2, 8, 32, 128)
QUICK = {"batch_sizes": (2, 32), "lanes": 4, "repeats": 1, "seconds": 0.2}


def bench(
    *,
    datasets: Sequence[str],
    path: Path | None,
    image_size: int | None,
    engines: Sequence[str],
    out: Path | None,
    table: Path | None,
    device: str,
    learn: bool,
    settings: dict[str, Any],
) -> str:
    """Measure, add what was learnt to this machine's calibration, write; returns the table.

    Args:
        datasets: of SOURCES.
        path: CIFAR-10's folder of parquet files.
        image_size: in pixels.
        engines: of ENGINES.
        out: the JSON file.
        table: the markdown file.
        device: ``auto``, ``cpu`` or ``cuda``.
        learn: keep the rates for ``engine: auto``.
        settings: the rest of :class:`~speed.bench.session.Bench`.

    Raises:
        UserError: an option is at fault, or the images or the device are not there.
    """
    for m in settings["batch_sizes"]:
        validate_model(
            settings["model"], settings["norm"], batch_size=m,
            bn_batch_size=settings["bn_batch_size"],
        )  # fmt: skip
    for file in (out, table):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")
    found = resolve_device(device)
    what = Bench(
        pictures=[load(name, path=path, size=image_size) for name in _once(datasets)],
        engines=[name for name in ENGINES if name in engines],
        device=found,
        workers=1 if found == "cuda" else min(machine.cores(), settings["lanes"]),
        **settings,
    )

    about = machine.describe(found)  # before a file is written that git may know

    def write(session: Session) -> str:
        result = record.as_json(what, session, ["smallbatch", *sys.argv[1:]], about)
        text = record.as_markdown(result)
        if out is not None:
            durable.write(out, record.as_text(result).encode())
        if table is not None:
            durable.write(table, text.encode())
        return text

    with tempfile.TemporaryDirectory(prefix="smallbatch-bench-") as folder:
        session = run(what, Path(folder), _say, write)
    if learn:
        _learn(session)
    return write(session)


def _learn(session: Session) -> None:
    for one in session.series:
        # What computes on a GPU must agree with the loop engine first: calibration sees to that.
        if one.engine != "textbook" and one.rate is not None and one.way.kernels is None:
            learnt = {one.way.key: one.rate, **one.looks}
            learn(rates={case_key(one.case): learnt})


def _once(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise UserError(f"--dataset: found {unknown[0]!r}, allowed: {', '.join(SOURCES)}")
    return list(dict.fromkeys(names))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
