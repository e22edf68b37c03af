"""Carries out `smallbatch bench`: measures, keeps the rates and writes the results."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from smallbatch import durable, machine
from smallbatch.config.model_names import validate_model
from smallbatch.errors import UserError
from smallbatch.placement.known import learn, workload_key
from smallbatch.placement.placement import resolve_device
from smallbatch.speed.bench import record
from smallbatch.speed.bench.images import SOURCES, load
from smallbatch.speed.bench.peers.task import NORMS
from smallbatch.speed.bench.session import ENGINES, JAX, Bench, Session, run

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
    """Measure, keep the rates for ``engine: auto``, write the files, and return the table.

    Args:
        datasets: Names from SOURCES.
        path: The folder of CIFAR-10's parquet files.
        image_size: Height and width of the images in pixels.
        engines: Names from ENGINES, or ``jax`` for all of JAX's.
        out: The JSON file.
        table: The Markdown file.
        device: ``auto``, ``cpu`` or ``cuda``.
        learn: Whether to keep the rates for ``engine: auto``.
        settings: The other arguments of :class:`~speed.bench.session.Bench`.

    Raises:
        UserError: An option is wrong, or the images, the device or JAX do not exist.
    """
    settings["models"] = [*dict.fromkeys(settings["models"])]
    for model, m in product(settings["models"], settings["batch_sizes"]):
        validate_model(
            model, settings["norm"], batch_size=m, bn_batch_size=settings["bn_batch_size"]
        )
    if "jax" in engines:
        _check_jax(settings)
        engines = [*engines, *JAX]
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

    about = machine.describe(found)  # before writing files, which git may see as changes
    if found == "cpu":
        about |= {"cpu_kind": machine.cpu_kind(), "vector": _places_of_a_vector()}

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


def _places_of_a_vector() -> int | None:
    """Of the native kernels; None if there are none."""
    from smallbatch.engines.lanes.native import available
    from smallbatch.engines.lanes.native.width import vector_width

    return vector_width() if available() else None


def _learn(session: Session) -> None:
    for one in session.series:
        # Methods on a GPU must first agree with the loop engine, which only calibration checks.
        own = one.engine in ("loop", "stacked")
        if own and one.rate is not None and one.method.kernels is None:
            learnt = {one.method.key: one.rate, **one.looks}
            learn(rates={workload_key(one.workload): learnt})


def _check_jax(settings: dict[str, Any]) -> None:
    """Before anything is measured: JAX is there, and its peers train what is asked for.

    Raises:
        UserError: One of these is not so.
    """
    if find_spec("jax") is None:
        raise UserError(
            "--engine jax: jax is not installed; allowed after "
            '`pip install "smallbatch-study[jax]"`'
        )
    for option, found, allowed in (
        ("--model", settings["models"], ("resnet8",)),
        ("--norm", [settings["norm"]], NORMS),
        ("--optimizer", settings.get("optimizers", ()), ("sgd",)),
        ("--augment", ["on" if settings["augment"] else "off"], ("off",)),
    ):
        for other in [name for name in found if name not in allowed]:
            raise UserError(
                f"{option}: found {other}, allowed with --engine jax: {', '.join(allowed)}"
            )


def _once(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise UserError(f"--dataset: found {unknown[0]!r}, allowed: {', '.join(SOURCES)}")
    return list(dict.fromkeys(names))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
