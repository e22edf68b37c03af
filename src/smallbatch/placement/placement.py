"""Where and how a column is trained, decided once and then passed on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from smallbatch import machine
from smallbatch.engines.made_by import made_by_on, native_version
from smallbatch.engines.same_numbers import earlier_makers
from smallbatch.errors import UserError
from smallbatch.machine import free_memory
from smallbatch.placement.known import decided, learn, name_of
from smallbatch.placement.makers import Makers, makers_of
from smallbatch.placement.memory import memory_of, micro_batch_of
from smallbatch.placement.ranks import refuse_too_few_gpus
from smallbatch.placement.rules import MEMORY_SHARE, Choice, choose
from smallbatch.placement.trying import vmap_works
from smallbatch.placement.workload import Method, Workload, noise
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig, EngineSetting
    from smallbatch.engines.batches import BatchSource
    from smallbatch.engines.kinds import Engine
    from smallbatch.protocol.column import Column
    from smallbatch.protocol.run import Run


@dataclass(frozen=True)
class Placement:
    """Where and how a column is trained.

    Attributes:
        device: ``cpu`` or ``cuda``.
        method: The engine, and how it computes lanes.
        workers: The number of processes; one for each GPU.
        memory: Bytes for the lanes of all workers; None: a fraction of the free memory.
        made_by: What the numbers depend on besides a run's hash.
        makers: What made runs that need not be trained again.
        devices: The GPUs, if they are several, as `CUDA_VISIBLE_DEVICES` names them; each then has
            a worker, or a rank.
        native: The version of the native kernels if they compute the lanes; None if others do.
        decoders: Processes beside each worker that decode images.
        ranks: The number of processes that train each run together, one run after another.
        remark: One line if the engine is not the one asked for.
    """

    device: str
    method: Method
    workers: int
    memory: int | None
    made_by: str
    native: str | None = None
    decoders: int = 0
    ranks: int = 1
    remark: str | None = None
    devices: tuple[str, ...] = ()
    makers: Makers = field(default_factory=Makers)

    @property
    def engine(self) -> Engine:
        """``loop`` or ``stacked``."""
        return self.method.engine

    @property
    def kernels(self) -> str | None:
        """What computes the lanes; None for `loop`."""
        lanes = self.method.kernels or ("native" if self.native else "torch")
        return lanes if self.engine == "stacked" else None

    def vector_of(self, run: Run, data: BatchSource) -> int:
        """The number of lanes of a run's study that cost as much as one alone.

        Native kernels compute a whole vector of lanes, however many of its places are used. To be
        asked before workers start; what follows from it travels with the chunks.

        Args:
            run: Any run of the study and batch size.
            data: Images in their final shape; one is enough.

        Returns:
            The number of lanes of a vector; 1 if others than native kernels compute the lanes.
        """
        return 1 if self.native is None else _lanes_of_a_vector(run, data)


def place(
    column: Column, compute: ComputeConfig, *, keep: bool = True, here: bool = True
) -> Placement:
    """Decide where and how a column is trained; see :func:`~placement.rules.choose`.

    ``engine: auto`` follows what is known of this machine's speed (:mod:`~placement.known`), or
    else the rules of :mod:`~placement.rules`; ``micro_batch: auto`` the memory that is free
    (:mod:`~placement.memory`). The choices for a column are remembered and not changed later.

    Args:
        column: The column.
        compute: The settings.
        keep: Whether its choices are remembered.
        here: Whether this machine is to train it, so that its memory counts.

    Raises:
        UserError: The device does not exist, the model cannot be built for these images, batches
            have to be divided that it needs as a whole, or they cannot be divided among the ranks.
    """
    device, ranks = resolve_device(compute.device), compute.ranks
    if ranks > 1 and device == "cuda" and here:
        refuse_too_few_gpus(ranks)
    choice = _choose(column, _by_loop_if_divided(column, compute), device, keep)
    method, study = choice.method, column.runs[0].settings
    if here or compute.micro_batch != "auto" or ranks > 1:
        method = _divided(column, compute, device, method, keep)
    made_by = made_by_on(
        method.engine, device, study, method.kernels, method.micro_batch,
        streamed=column.streamed, ranks=ranks,
    )  # fmt: skip
    devices, others = _devices(column, device, ranks)
    earlier = earlier_makers(made_by, method.engine, study)
    return Placement(
        device=device,
        method=method,
        workers=_workers(column, compute, device) if ranks == 1 else 1,
        memory=memory_of(compute),
        made_by=made_by,
        makers=makers_of(
            study, compute, method.engine, batch_size=column.batch_size, exact=(made_by, *earlier)
        ),
        native=native_version(method.engine, device, study, method.kernels),
        decoders=_decoders(column, compute, device) if column.streamed else 0,
        ranks=ranks,
        remark="; ".join(filter(None, (choice.remark, others))) or None,
        devices=devices,
    )


def _by_loop_if_divided(column: Column, compute: ComputeConfig) -> ComputeConfig:
    """The settings by which an engine is chosen: that of batches in parts is `loop`."""
    divided = isinstance(compute.micro_batch_at(column.batch_size), int)
    return compute.model_copy(update={"engine": "loop"}) if divided else compute


def _divided(
    column: Column, compute: ComputeConfig, device: str, method: Method, keep: bool
) -> Method:
    """A method by which a step fits into memory: the same, or `loop` with batches in parts."""
    if method.engine != "loop" and (compute.engine != "auto" or device == "cpu"):
        return method  # of lanes there are as many as fit
    size = micro_batch_of(column, workload_of(column, compute), compute, keep=keep)
    return method if size is None else Method("loop", micro_batch=size)


def _choose(column: Column, compute: ComputeConfig, device: str, keep: bool) -> Choice:
    if column.streamed:
        remark = "the stacked engine needs all images in memory; the loop engine decodes them"
        return Choice(Method("loop"), remark if compute.engine == "stacked" else None)
    if device == "cpu":
        import torch

        torch.set_num_threads(1)  # no OpenMP pool may exist before workers are forked
    frozen = column.runs[0].settings.freeze  # the speeds of whole models say nothing of it
    if compute.engine != "auto" or len(column.runs) == 1 or frozen:
        return _by_rule(column, compute.engine, device)
    name, workload = name_of(column, device), workload_of(column, compute)
    method = decided(name, workload, lambda: can_stack(column, device))
    if method is None:
        choice = _by_rule(column, "auto", device)
    else:
        choice = _by_rule(column, method.engine, device, tried=True)
        if choice.method.engine == "stacked":
            kernels = method.kernels or choice.method.kernels
            choice = replace(choice, method=Method("stacked", method.lanes, kernels))
    on_cpu = choice.method.engine == "stacked" and device == "cpu"
    if on_cpu and not _fits(column, workload, compute):
        choice = Choice(Method("loop"))
    if keep:
        learn(choices={name: choice.method})
    return choice


def workload_of(column: Column, compute: ComputeConfig) -> Workload:
    """The column's workload: all that decides how fast it trains.

    Of several GPUs it is that of one, with its share of the runs.

    Raises:
        UserError: The device does not exist.
    """
    run, meta, device = column.runs[0], column.dataset.meta, resolve_device(compute.device)
    return Workload(
        model=run.settings.model,
        norm=run.settings.norm,
        bn_batch_size=run.settings.bn_batch_size,
        augment=run.settings.augment,
        precision=run.settings.precision,
        channels=meta.channels,
        height=meta.height,
        width=meta.width,
        classes=len(meta.classes),
        batch_size=run.batch_size,
        lanes=_lanes(column, device, compute.ranks),
        device=device,
        workers=1 if device == "cuda" else _workers(column, compute, device),
        optimizer=run.settings.optimizer,
    )


def _fits(column: Column, workload: Workload, compute: ComputeConfig) -> bool:
    """Whether every worker has memory for a whole vector of lanes, as native kernels need."""
    import torch

    from smallbatch.engines.lanes import lane_bytes
    from smallbatch.engines.resident import load_resident

    data = load_resident(noise(workload, 1), augment=False, device=torch.device("cpu"))
    run = column.runs[0]
    needed = workload.workers * _lanes_of_a_vector(run, data) * lane_bytes(run, data)
    return needed <= (memory_of(compute) or int(MEMORY_SHARE * free_memory()))


def _lanes_of_a_vector(run: Run, data: BatchSource) -> int:
    from smallbatch.engines.lanes.native.algorithms import lanes_of_a_vector
    from smallbatch.engines.loop import initial_model

    model = initial_model(run, data, weights=False)
    return lanes_of_a_vector(model, run.batch_size, data.image)


def can_stack(column: Column, device: str) -> bool:
    """Whether the stacked engine can train a column's model."""
    return _by_rule(column, "stacked", device, tried=True).method.engine == "stacked"


def _workers(column: Column, compute: ComputeConfig, device: str) -> int:
    """The number of processes: one for each GPU, else as many as asked for or one per core."""
    if compute.ranks > 1:
        return compute.ranks
    if device == "cuda":
        return max(1, len(_devices(column, device)[0]))
    workers = machine.cores() if compute.workers == "auto" else compute.workers
    return min(workers, len(column.runs))


def _decoders(column: Column, compute: ComputeConfig, device: str) -> int:
    """The number of processes that decode images for one worker."""
    if compute.decoders != "auto":
        return compute.decoders
    if device == "cpu":
        return 0
    workers = _workers(column, compute, device)
    return max(1, (machine.cores() - workers) // workers)


def _devices(column: Column, device: str, ranks: int = 1) -> tuple[tuple[str, ...], str | None]:
    """The GPUs that train a column, none if it is one, and a line about any that do not.

    All are of the first one's model, as numbers round differently on others.
    """
    found = machine.gpus() if device == "cuda" else {}
    models = list(found.values())
    alike = [word for word, model in found.items() if model == models[0]]
    remark = None
    if left := len(found) - len(alike):
        kinds = ", ".join(sorted(set(models) - {models[0]}))
        remark = f"{count(left, 'GPU')} of another model left out ({kinds}); {models[0]} trains it"
    devices = tuple(alike[: len(column.runs) if ranks == 1 else ranks])
    return devices if len(devices) > 1 else (), remark


def _lanes(column: Column, device: str, ranks: int = 1) -> int:
    """The number of runs, on several GPUs of each one's share."""
    return -(-len(column.runs) // max(1, len(_devices(column, device, ranks)[0])))


def _by_rule(column: Column, asked: EngineSetting, device: str, *, tried: bool = False) -> Choice:
    """The choice of :func:`~placement.rules.choose`; with ``tried``, Triton is known to work."""
    run, meta = column.runs[0], column.dataset.meta

    def try_vmap() -> bool:
        settings = run.settings
        return vmap_works(
            settings.model, settings.norm, len(meta.classes),
            (meta.channels, meta.height, meta.width),
            run.batch_size, settings.bn_batch_size,
        )  # fmt: skip

    def try_triton() -> bool:
        import torch

        from smallbatch.engines.lanes.kernels import triton_works

        return tried or triton_works(torch.device(device), run.settings.precision)

    return choose(
        asked,
        run.settings,
        batch_size=run.batch_size,
        pixels=meta.height * meta.width,
        lanes=_lanes(column, device),
        device=device,
        vmap_works=try_vmap,
        triton_works=try_triton,
    )


def resolve_device(choice: str) -> str:
    """The device for a setting; ``auto`` is ``cuda`` if torch sees a GPU, else ``cpu``.

    Raises:
        UserError: ``cuda`` was asked for, and torch sees no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("device: found 'cuda', allowed here: cpu (torch sees no CUDA device)")
    return "cuda" if available and choice in ("auto", "cuda") else "cpu"
