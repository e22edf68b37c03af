"""The memory that one update of one run needs, counted at its batch size.

Nothing is extrapolated from another m. What a process holds besides, such as the interpreter, the
images of the data set and an evaluation, is left out: it does not depend on m.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from smallbatch.engines.flat import flat_weights
from smallbatch.engines.kinds import serves
from smallbatch.engines.lanes.native.lanes import NativeLanes
from smallbatch.engines.lanes.native.network import NativeNetwork
from smallbatch.engines.lanes.torch.lanes import TorchLanes
from smallbatch.engines.loop import arithmetic, initial_model
from smallbatch.engines.micro import GradientSum
from smallbatch.engines.resident import Resident, Split
from smallbatch.errors import Stopped, Stopping, UserError, first_line
from smallbatch.machine import free_memory
from smallbatch.models.own import generators_kept
from smallbatch.models.population import together_in_parts
from smallbatch.protocol.column import plan_column
from smallbatch.protocol.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from smallbatch.config.study import StudyConfig
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.kinds import Engine

SHARE = 0.5
"""Of the free memory, that a count may take which has to compute a batch."""

_ANY_BASE_LR = 2.0**-12
_CPU, _META, _CUDA = (torch.device(name) for name in ("cpu", "meta", "cuda"))
# Of what `NativeLanes` holds, all that no update needs: images, a plain model of the structure and
# its state, and the buffers of evaluations.
_NOT_OF_UPDATES = {"data", "model", "_template", "_evaluation"}

Storages = dict[int, torch.UntypedStorage]


def measure_column(
    name: str,
    study: StudyConfig,
    dataset: Dataset | EncodedDataset,
    *,
    batch_size: int,
    engine: Engine,
    device: str,
) -> dict[str, Any] | None:
    """Count the bytes of one update of one run of a study at one m, by one engine.

    Args:
        name: The name of the study.
        study: Its settings. Of several BN batch sizes that with the most bytes counts.
        dataset: The prepared data. Under ``input: timm`` images have the model's own size, as in
            training.
        batch_size: m.
        engine: ``loop`` or ``stacked``.
        device: ``cpu`` or ``cuda``.

    Returns:
        A row: ``dataset``, its ``fingerprint``, ``study``, its ``model`` and ``norm``,
        ``batch_size``, ``engine``, ``device`` and ``bytes``. None where the memory of ``stacked``
        cannot be told (`stacked_bytes`).

    Raises:
        UserError: The model cannot be built for these images, or not be counted.
    """
    column = plan_column(
        name, study, dataset, batch_size=batch_size, base_lrs=[_ANY_BASE_LR], seeds=[0]
    )
    meta = column.dataset.meta
    image, classes = (meta.channels, meta.height, meta.width), len(meta.classes)
    count: Callable[..., int | None] = loop_bytes if engine == "loop" else stacked_bytes
    found = [count(run.settings, batch_size, image, classes, device=device) for run in column.runs]
    if None in found:
        return None
    return {
        "dataset": meta.name,
        "fingerprint": meta.fingerprint,
        "study": name,
        "model": study.model,
        "norm": column.runs[0].settings.norm,
        "batch_size": batch_size,
        "engine": engine,
        "device": device,
        "bytes": max(filter(None, found)),
    }


def loop_bytes(
    settings: StudyConfig, m: int, image: tuple[int, int, int], classes: int, *, device: str = "cpu"
) -> int:
    """Bytes that one update of one run takes by `loop`, its batch computed as a whole.

    On a CPU these are weights, buffers, gradient, the optimiser's moments, the batch of images and
    labels, and all that the forward pass leaves for the backward pass: each memory once. What a
    layer needs only while it computes is left out. The forward pass is carried out on tensors
    without memory (torch's meta device); where a model cannot (or autocast chooses the types, in
    bf16), on real ones. On a GPU it is the peak of torch's allocator over an update, less what was
    allocated before it; there the scratch of layers counts, but no workspace that a library keeps.

    Args:
        settings: Of the run, as ``study.at(m)`` gives them.
        m: The batch size.
        image: Channels, height and width.
        classes: The number of classes.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: The model cannot be built for these images, or fails with them, or a batch that
            would have to be computed does not fit into memory.
    """
    run = _run(settings, m)
    if device == "cuda":
        return _allocated(lambda: _update_by_loop(run, image, classes, _CUDA))
    with generators_kept():
        return _counted(run, image, classes)


def stacked_bytes(
    settings: StudyConfig, m: int, image: tuple[int, int, int], classes: int, *, device: str = "cpu"
) -> int | None:
    """Bytes that one update of one run takes by `stacked`, trained alone, in a single lane.

    On a CPU they are the arrays that its kernels' buffers really are: activations, their gradients,
    weights, moments and tables. A vector's places are all there for a lone run as well. Where its
    batch is cut into parts, as at large m, they hold these; where it is not, all but one are empty
    but have their memory, which up to that many runs would share. On a GPU it is the peak of
    torch's allocator over an uncaptured update, as in `loop_bytes`, with the copy of m images that
    kernels gather from.

    Returns:
        The bytes; None where the engine does not take these settings, or computes them on a CPU by
        torch, whose tensors come and go within an update, or no compiler is there, or the system
        refuses so much memory.

    Raises:
        UserError: The model cannot be built for these images.
    """
    run, way = _run(settings, m), serves(settings, device)
    if device == "cuda":
        if way is None:
            return None
        try:
            return _allocated(lambda: _update_by_lane(run, image, classes, _CUDA))
        except UserError:
            return None  # vmap does not take every model
    if way != "native":
        return None
    try:
        lanes = NativeLanes([run], _blank(image, classes, 1), torch.float32)
    except MemoryError:
        return None
    parts = [part for name, part in vars(lanes).items() if name not in _NOT_OF_UPDATES]
    return sum(array.nbytes for array in arrays_of(parts).values())


def saved_for_backward(model: nn.Module, images: Tensor, labels: Tensor) -> Storages:
    """The memory that a forward pass and its summed loss leave for the backward pass.

    Args:
        model: In training mode.
        images: (m, C, H, W), on the model's device.
        labels: (m,).

    Returns:
        Each memory once, by an identifier, without that of parameters and buffers.
    """
    own = _storages([*model.parameters(), *model.buffers()])
    found: Storages = {}

    def pack(tensor: Tensor) -> Tensor:
        found.update({key: it for key, it in _storages([tensor]).items() if key not in own})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
        half = logits.dtype == torch.bfloat16  # whose loss is computed in float32
        loss = cross_entropy(logits.float() if half else logits, labels, reduction="sum")
    del loss
    return found


def arrays_of(thing: object) -> dict[int, NDArray[Any]]:
    """The arrays that own the memory of what a list, mapping or native network holds, by id."""
    if isinstance(thing, np.ndarray):
        owner = thing
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return {id(owner): owner}
    parts: Iterable[object] = ()
    if isinstance(thing, NativeNetwork):
        parts = vars(thing).values()
    elif isinstance(thing, dict):
        parts = thing.values()
    elif isinstance(thing, list | tuple):
        parts = thing
    return {key: array for part in parts for key, array in arrays_of(part).items()}


def _run(settings: StudyConfig, m: int) -> Run:
    """Any run; neither its learning rate nor its seed changes what it needs."""
    return Run(settings, "", m, base_lr=_ANY_BASE_LR, seed=0)


def _blank(
    image: tuple[int, int, int], classes: int, n: int, device: torch.device = _CPU
) -> Resident:
    """A data set of n black training images of class 0, and one to test with."""
    train, test = (
        Split(
            torch.zeros(count, *image, device=device),
            torch.zeros(count, dtype=torch.long, device=device),
        )
        for count in (n, 1)
    )
    return Resident(train, test, None, None, classes)


def _counted(run: Run, image: tuple[int, int, int], classes: int) -> int:
    model = initial_model(run, _blank(image, classes, 1), weights=False)
    unit = together_in_parts(model)
    if run.settings.precision != "bf16":
        try:
            return _count(model.to(_META), run, image, run.batch_size)
        except (Stopped, Stopping):
            raise
        except (Exception, SystemExit):  # noqa: BLE001 - a model's own; it is tried as it trains
            model = initial_model(run, _blank(image, classes, 1), weights=False)
    try:
        few = min(run.batch_size, 2 * max(1, unit))
        once, twice = (_count(model, run, image, n) for n in (few, 2 * few))
        needed = once + (twice - once) * (run.batch_size / few - 1)
        if needed > SHARE * free_memory():
            raise UserError(
                f"a batch of {run.batch_size} needs about {needed / 2**30:.2f} GiB of memory"
            )
        return _count(model, run, image, run.batch_size)
    except (UserError, Stopped, Stopping):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{run.settings.model} fails: {first_line(error)}") from error


def _count(model: nn.Module, run: Run, image: tuple[int, int, int], m: int) -> int:
    """Bytes of an update with m examples, of a model in training mode on its device."""
    weights = flat_weights(model, run.settings, run.batch_size)
    device = weights.theta.device
    layout = torch.channels_last  # as batches have it on a CPU
    images = torch.zeros(m, *image, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(m, dtype=torch.long, device=device)
    held = [*model.parameters(), *model.buffers(), images, labels]
    needed = _storages([*held, weights.theta, weights.gradient, *weights.moments])
    with arithmetic(run.settings.precision, _CPU):
        needed |= saved_for_backward(model, images, labels)
    return sum(storage.nbytes() for storage in needed.values())


def _storages(tensors: Iterable[Tensor]) -> Storages:
    # Torch keeps one Python object for a storage, also on the meta device, where all addresses
    # are 0. That they are returned keeps them, and so their ids, from being used again.
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {id(storage): storage for storage in storages}


def _allocated(update: Callable[[], None]) -> int:
    """The peak of the GPU's allocator over what a function does, in bytes, less what was there.

    The function is called twice: libraries keep the workspaces that they take at its first call.

    Raises:
        UserError: It fails, as where the GPU has not enough memory.
    """
    try:
        update()
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        update()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    except (UserError, Stopped, Stopping):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"on the GPU it fails: {first_line(error)}") from error
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _update_by_loop(
    run: Run, image: tuple[int, int, int], classes: int, device: torch.device
) -> None:
    """The first update of a run; all that it takes is free again afterwards."""
    model = initial_model(run, _blank(image, classes, 1), weights=False).to(device)
    weights = flat_weights(model, run.settings, run.batch_size)
    batch = _blank(image, classes, run.batch_size, device).train
    with arithmetic(run.settings.precision, device):
        GradientSum(model, run.settings.precision).add(batch.images, batch.labels)
        weights.update(run.lr, 0)


def _update_by_lane(
    run: Run, image: tuple[int, int, int], classes: int, device: torch.device
) -> None:
    """The first update of a run in a lane of its own, by torch or Triton."""
    with torch.no_grad(), arithmetic(run.settings.precision, device):
        data = _blank(image, classes, run.batch_size, device)
        lanes = TorchLanes([run], data, torch.float32)
        lanes.tables.load(0)
        lanes.step()
