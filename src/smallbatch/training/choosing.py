"""How a column is trained on this machine: its device, workers and engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.training import calibration, environment
from smallbatch.training.engines import Choice, choose
from smallbatch.training.rate import Case, Way

if TYPE_CHECKING:
    from smallbatch.config import ComputeConfig, EngineSetting
    from smallbatch.training.column import Column


def choose_engine(column: Column, compute: ComputeConfig, *, learn: bool = True) -> Choice:
    """The engine that trains a column; see :func:`~training.engines.choose`.

    ``auto`` follows what is known, or worth finding out, about this machine's speed
    (:mod:`~training.calibration`), else the rule of :mod:`~training.engines`; either way the choice
    for a column stays. Without ``learn`` nothing is measured and the choice is not kept.

    Raises:
        UserError: the device is not there, or the model cannot be built for these images.
    """
    device = resolve_device(compute.device)
    if device == "cpu":
        import torch

        torch.set_num_threads(1)  # no OpenMP pool may exist before workers are forked
    if compute.engine != "auto" or len(column.runs) == 1:
        return _choose(column, compute.engine, device)
    run = column.runs[0]
    name = f"{replace(run, base_lr=1.0, seed=0).hash} {device}"
    case = case_of(column, compute)
    images = len(column.runs) * column.updates(run) * run.batch_size if learn else 0
    way = calibration.decide(
        name, case, images, lambda: can_stack(column, device), memory_of(compute)
    )
    if way is None:
        choice = _choose(column, "auto", device)
    else:
        choice = _choose(column, way.engine, device, tried=True)
        if choice.engine == "stacked":
            choice = replace(choice, lanes=way.lanes, kernels=way.kernels or choice.kernels)
    if choice.engine == "stacked" and device == "cpu" and not _fits(column, case, compute):
        choice = Choice("loop")
    if learn:
        calibration.learn(choices={name: Way(choice.engine, choice.lanes, choice.kernels)})
    return choice


def case_of(column: Column, compute: ComputeConfig) -> Case:
    """What decides how fast a column trains.

    Raises:
        UserError: the device is not there.
    """
    run, meta, device = column.runs[0], column.dataset.meta, resolve_device(compute.device)
    return Case(
        model=run.settings.model,
        norm=run.settings.norm,
        bn_batch_size=run.settings.bn_batch_size,
        augment=run.settings.augment,
        precision=run.settings.precision,
        channels=meta.channels,
        size=meta.height,
        classes=len(meta.classes),
        batch_size=run.batch_size,
        lanes=len(column.runs),
        device=device,
        workers=workers_of(column, compute, device),
    )


def _fits(column: Column, case: Case, compute: ComputeConfig) -> bool:
    """Whether every worker has memory for a vector of lanes, which native kernels always take."""
    import torch

    from smallbatch.training.engines import MEMORY_SHARE, free_memory
    from smallbatch.training.loop import initial_model
    from smallbatch.training.rate import noise
    from smallbatch.training.resident import load_resident
    from smallbatch.training.stacked import lane_bytes
    from smallbatch.training.stacked.native.algorithms import lanes_of_a_vector

    data = load_resident(noise(case, 1), augment=False, device=torch.device("cpu"))
    run, image = column.runs[0], (case.channels, case.size, case.size)
    lanes = lanes_of_a_vector(initial_model(run, data), case.batch_size, image)
    needed = case.workers * lanes * lane_bytes(run, data)
    return needed <= (memory_of(compute) or int(MEMORY_SHARE * free_memory()))


def can_stack(column: Column, device: str) -> bool:
    """Whether the stacked engine takes a column's model."""
    return _choose(column, "stacked", device, tried=True).engine == "stacked"


def workers_of(column: Column, compute: ComputeConfig, device: str) -> int:
    """Processes that train a column: one on a GPU, else as many as asked for, or one per core."""
    workers = 1 if device == "cuda" else compute.workers
    return min(environment.cores() if workers == "auto" else workers, len(column.runs))


def memory_of(compute: ComputeConfig) -> int | None:
    """Bytes for the lanes of all workers, or None for a part of what is free."""
    return None if compute.memory == "auto" else int(compute.memory * 2**30)


def _choose(column: Column, asked: EngineSetting, device: str, *, tried: bool = False) -> Choice:
    """The choice of :func:`~training.engines.choose`; ``tried``: Triton need not be tried."""
    run, meta = column.runs[0], column.dataset.meta

    def try_vmap() -> bool:
        from smallbatch.models import build_model
        from smallbatch.training.stacked.vmap import vmap_works

        model = build_model(
            run.settings.model,
            run.settings.norm,
            num_classes=len(meta.classes),
            in_chans=meta.channels,
            image_size=meta.height,
            seed=run.seed,
            batch_size=run.batch_size,
            bn_batch_size=run.settings.bn_batch_size,
        )
        return vmap_works(model, meta.channels, meta.height, run.batch_size)

    def try_triton() -> bool:
        import torch

        from smallbatch.training.stacked.choice import triton_works

        return tried or triton_works(torch.device(device), run.settings.precision)

    return choose(
        asked,
        run.settings,
        batch_size=run.batch_size,
        pixels=meta.height * meta.width,
        lanes=len(column.runs),
        device=device,
        vmap_works=try_vmap,
        triton_works=try_triton,
    )


def resolve_device(choice: str) -> str:
    """``auto`` → ``cuda`` where there is one, else ``cpu``.

    Raises:
        UserError: ``cuda`` was asked for and is not there.
    """
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("device: found 'cuda', allowed here: cpu (torch sees no CUDA device)")
    return "cuda" if available and choice in ("auto", "cuda") else "cpu"
