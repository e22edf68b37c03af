"""The results of a session as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from smallbatch.markdown import table
from smallbatch.placement.workload import TEST_IMAGES, training_flops_of
from smallbatch.speed.bench.memory import update_bytes
from smallbatch.speed.bench.session import JAX, LOADER_WORKERS, Bench, Series, Session
from smallbatch.speed.rate import BASE_LR
from smallbatch.speed.share import LEAST
from smallbatch.text import count

_COUNTED = ("loop", "stacked")

NOTES = {
    "images_per_second": (
        "training images of all runs that train side by side; each update with its gather, "
        "augmentation and metrics. Steady state: building the models, a run's first epoch "
        "(textbook: its first updates) and all evaluation are left out for every engine, "
        f"but for {TEST_IMAGES} test images an epoch with loop and stacked"
    ),
    "textbook": (
        "speed/bench/textbook.py: one run at a time in a process for all with torch's defaults; of "
        f"{' and '.join(map(str, LOADER_WORKERS))} loader workers, the faster after a short try"
    ),
    "jax-scan, jax-vmap, jax-einsum": (
        "speed/bench/peers: one run, K lanes by jax.vmap, K lanes by 3×3 patches and one batched "
        "product per convolution. The one run by XLA's convolutions or by patches, all by one "
        "program or by one in a thread for each core, which share the lanes (of jax-scan: a run "
        "each): the fastest after a short try. Each some updates as one compiled lax.scan over "
        "normalised images that lie on the device, in a process for all with JAX's default "
        "threads. To compile is left out"
    ),
    "over_best_jax": "images_per_second / the largest median of JAX's",
    "loop, stacked": (
        "through train_all, with the pipeline's worker processes. loop: a run at a time in each, "
        "so that the speed of a single run is images_per_second / live"
    ),
    "update_bytes": (
        "of one update of one run, counted and not measured in these trainings: by loop weights, "
        "gradient, moments, batch and what the forward pass leaves for the backward pass, by "
        "stacked the buffers of a lone lane, which has a whole vector's places (on a GPU the "
        "allocator's peak of either)"
    ),
    "base_lrs": (
        f"multiples of {BASE_LR:g}, so that no lane diverges: what an update costs does not depend "
        "on the learning rate, but a lane that diverged would cost nothing more"
    ),
    "order": "within a repeat, every case by every engine once, in the order listed",
    "share": (
        "of the cores that could be used; below "
        f"{LEAST:g} other programs disturbed the measurement, and it does not count in the median"
    ),
    "fraction_of_sgemm": (
        "images_per_second × flops_per_image / sgemm_flops_per_second, medians; flops_per_image "
        "counts convolutions and matrix products, forward and twice as much backward"
    ),
}


def as_json(
    bench: Bench, session: Session, command: Sequence[str], environment: dict[str, Any]
) -> dict[str, Any]:
    """All results of a session: settings, machine, every repeat, medians and ratios."""
    limits = {
        name: {"repeats": values, "median": median(values)}
        for name, values in session.limits.items()
    }
    sgemm = median(session.limits["sgemm_flops_per_second"]) if limits else None
    groups: dict[str, list[Series]] = {}
    for one in session.series:
        groups.setdefault(f"{one.pictures.name} {one.workload.key}", []).append(one)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "environment": environment,
        "settings": {
            "model": ", ".join(bench.models),
            "norm": bench.norm,
            "bn_batch_size": bench.bn_batch_size,
            "augment": bench.augment,
            "precision": "float32 (textbook on a GPU: torch's defaults)",
            "lanes": bench.lanes,
            "repeats": bench.repeats,
            "repeats_done": session.repeats,
            "seconds": bench.seconds,
            "device": bench.device,
            "workers": bench.workers,
        },
        "notes": NOTES,
        "limits": limits,
        "cases": [_case(group, sgemm) for group in groups.values()],
    }


def _case(group: Sequence[Series], sgemm: float | None) -> dict[str, Any]:
    workload = group[0].workload
    flops = training_flops_of(workload)
    medians = {one.engine: one.rate for one in group}
    base = medians.get("textbook")
    jax = max((rate for name, rate in medians.items() if name in JAX and rate), default=None)
    return {
        "dataset": group[0].pictures.name,
        "model": workload.model,
        "image": list(workload.image),
        "batch_size": workload.batch_size,
        "optimizer": workload.optimizer,
        "flops_per_image": flops,
        "update_bytes": update_bytes(workload),
        "engines": {
            one.engine: {
                "median": one.rate,
                "fraction_of_sgemm": one.rate * flops / sgemm if one.rate and sgemm else None,
                "over_textbook": one.rate / base if one.rate and base else None,
                "over_best_jax": one.rate / jax if one.rate and jax else None,
                "settled": one.settled,
                "failure": one.failure,
                "disturbed": one.disturbed,
                "disturbed_median": one.rough,
                "repeats": one.repeats,
            }
            for one in group
        },
    }


def as_text(record: dict[str, Any]) -> str:
    """The JSON record as text, with one repeat per line."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def as_markdown(record: dict[str, Any]) -> str:
    """The record as a table with a line for each workload."""
    engines = list(record["cases"][0]["engines"])
    others = [name for name in engines if name != "textbook" and "textbook" in engines]
    peers = [name for name in engines if name in JAX]
    ours = ["stacked"] if peers and "stacked" in engines else []
    several = any(case.get("optimizer", "sgd") != "sgd" for case in record["cases"])
    models = len({case["model"] for case in record["cases"]}) > 1
    what = ["images", *(["model"] if models else []), "m", *(["optimiser"] if several else [])]
    heads = [
        *what, *(f"{name}, images/s" for name in engines),
        *(f"{name} / textbook" for name in others), *(f"{name} / best of jax" for name in ours),
        *(f"{name}, of sgemm" for name in engines), *(f"update by {name}, MB" for name in _COUNTED),
    ]  # fmt: skip
    rows: list[list[str]] = []
    for workload in record["cases"]:
        found = workload["engines"]
        rows.append(
            [
                f"{workload['dataset']} {'×'.join(map(str, workload['image']))}",
                *([workload["model"]] if models else []),
                str(workload["batch_size"]),
                *([workload["optimizer"]] if several else []),
                *(_number(found[name], "median", "{:,.0f}") for name in engines),
                *(
                    _number(found[name], "over_textbook", "{:.2f}", found["textbook"])
                    for name in others
                ),
                *(
                    _number(
                        found[name], "over_best_jax", "{:.2f}", _best([found[p] for p in peers])
                    )
                    for name in ours
                ),
                *(_number(found[name], "fraction_of_sgemm", "{:.1%}") for name in engines),
                *(_megabytes(workload["update_bytes"][name]) for name in _COUNTED),
            ]
        )
    return f"{table(heads, rows, right=len(heads) - len(what))}\n\n{_about(record)}\n"


def _about(record: dict[str, Any]) -> str:
    settings, machine = record["settings"], record["environment"]
    limits = {name: limit["median"] for name, limit in record["limits"].items()}
    hardware = machine["gpu"] or f"{count(machine['cores'], 'core')} of {machine['cpu']}"
    if kind := machine.get("cpu_kind"):
        hardware += f" ({kind})"
    if vector := machine.get("vector"):
        hardware += f", vectors of {vector} places"
    speeds = (
        f"sgemm {limits['sgemm_flops_per_second'] / 1e9:,.0f} GFLOP/s, copies "
        f"{limits['copy_bytes_per_second'] / 1e9:,.1f} GB/s"
        if limits
        else "its limits were not measured undisturbed"
    )
    every = [engine for case in record["cases"] for engine in case["engines"].values()]
    left_out = sum(engine.get("disturbed", 0) for engine in every)
    total = sum(len(engine["repeats"]) for engine in every)
    remark = (
        f" Other programs took more than {1 - LEAST:.0%} of the cores during {left_out} of "
        f"{count(total, 'measurement')}, which {'does' if left_out == 1 else 'do'} not count: "
        "`engine: auto` learns nothing of what stands in brackets. Repeat it when they have ended."
    )
    return (
        f"{settings['model']}, norm {settings['norm']}, {count(settings['lanes'], 'lane')}; "
        f"medians of {settings['repeats_done']}. {_of_what(settings)}{hardware}: {speeds}. "
        f"torch {machine['torch']}, {_jax(every)}{record['date'][:10]}."
        f"{remark if left_out else ''}"
    )


def _of_what(settings: dict[str, Any]) -> str:
    """Of how many runs speeds and bytes are."""
    workers = settings["workers"]
    side_by_side = f"{count(workers, 'run')} at a time, one a worker"
    return (
        f"Speeds of textbook are of one run, of loop of {side_by_side}, of stacked of all lanes "
        "together; the bytes of an update (MB: 10⁶) of one run alone, counted. "
    )


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.3g}" if size < 1e9 else f"{size / 1e6:,.0f}"


def _jax(engines: Sequence[dict[str, Any]]) -> str:
    """JAX's version, which only its own process knows."""
    found = {engine.get("settled", {}).get("jax") for engine in engines} - {None}
    return "".join(f"jax {version}, " for version in sorted(found))


def _best(engines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One that did not fail, if there is any."""
    return min(engines, key=lambda engine: engine["failure"] is not None)


def _number(
    engine: dict[str, Any], name: str, form: str, beside: dict[str, Any] | None = None
) -> str:
    if (value := engine[name]) is not None:
        return form.format(value)
    if engine["failure"] or (beside or engine)["failure"]:
        return "failed"
    rough = engine["disturbed_median"] if name == "median" else None
    return "disturbed" if rough is None else f"({form.format(rough)})"
