"""Encoded images decoded, cropped and flipped: here, or in processes that do nothing else."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from smallbatch.errors import UserError, WorkerLost
from smallbatch.processes import live_and_die_with
from smallbatch.protocol.crops import CENTRE, Crop, centre_crop, random_crop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    from smallbatch.data.encoded import EncodedDataset, EncodedSplit
    from smallbatch.data.prepared import Meta

PIECE = 64  # images that one process decodes at a time, whatever m is
_AHEAD = 2  # pieces for each process that are decoded or waiting

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (n, side, side, 3), (n,)


@dataclass(frozen=True)
class Wanted:
    """An image that is to be decoded: its row; how it is cropped and mirrored by chance, if so."""

    row: int
    seed: int = 0
    epoch: int | None = None
    mirrored: bool = False

    def crop(self, height: int, width: int, ratio: float) -> Crop:
        """The part of the image that is taken."""
        if self.epoch is None:
            return centre_crop(height, width, ratio)
        return random_crop(self.seed, self.epoch, self.row, height, width)


class Decoders:
    """Processes that decode the images of a data set; none, where this one does it.

    They are forked when they are first needed, before a backward pass has started threads. What
    they decode comes back through pipes: shared memory is small in many containers, and a process
    that found none would be waited for. Each has a pipe of its own, which ends with it even if it
    is killed in the middle of an answer, and they share no lock that a killed one could keep.

    Args:
        dataset: The data set.
        processes: Their number.
    """

    def __init__(self, dataset: EncodedDataset, processes: int) -> None:
        self._dataset, self._processes = dataset, processes
        self._started: list[ForkProcess] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None  # each waits for one process

    def pieces(self, split: str, wanted: Iterable[Wanted]) -> Generator[Arrays, None, None]:
        """Images and labels in the order in which they are wanted, up to PIECE at a time.

        Args:
            split: ``train``, ``validation`` or ``test``.
            wanted: Which images, and how.

        Raises:
            UserError: An image cannot be read or decoded.
            WorkerLost: A process was killed.
        """
        rest = iter(wanted)
        parts = iter(lambda: list(islice(rest, PIECE)), [])
        if not self._processes:
            for part in parts:
                yield decode(self._dataset, split, part)
            return
        under_way: deque[Future[Arrays]] = deque()
        try:
            for part in parts:
                under_way.append(self._begun().submit(_ask, self._idle, split, part))
                if len(under_way) > _AHEAD * self._processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def _begun(self) -> ThreadPoolExecutor:
        if self._threads is None:
            # Nothing of the processes is kept, so they are killed: when nobody needs them, and at
            # the end of this process, before it would wait for them. That has to be before the
            # queues of a training worker close, which has priority 10. A fork forgets what was
            # asked for before it, so that it is asked for here.
            Finalize(self, _end, (self._started,), exitpriority=100)
            context = multiprocessing.get_context("fork")
            for _ in range(self._processes):
                ours, its = context.Pipe()
                process = context.Process(target=_serve, args=(self._dataset, its, os.getpid()))
                process.start()
                its.close()  # only the process holds it, so that the pipe ends with the process
                self._started.append(process)
                self._idle.put(ours)
            self._threads = ThreadPoolExecutor(self._processes)
        return self._threads


def _end(started: list[ForkProcess]) -> None:
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _ask(idle: SimpleQueue[Connection], split: str, wanted: list[Wanted]) -> Arrays:
    """Have a process decode images; see :meth:`Decoders.pieces`."""
    pipe = idle.get()
    try:
        pipe.send((split, wanted))
        answer: Arrays | Exception = pipe.recv()
    except (EOFError, OSError):
        raise WorkerLost(
            "a process that decodes images was killed; if memory ran out, set compute.decoders "
            "lower; the same command then goes on"
        ) from None
    finally:
        idle.put(pipe)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(dataset: EncodedDataset, pipe: Connection, parent: int) -> None:
    """Decode what is asked for; the process that trains decides what a signal does."""
    live_and_die_with(parent)
    torch.set_num_threads(1)  # the parent's pool of threads does not live on in a fork
    while True:
        split, wanted = pipe.recv()
        try:
            answer: Arrays | Exception = decode(dataset, split, wanted)
        except Exception as error:  # noqa: BLE001 - it is raised where the images are wanted
            known = isinstance(error, UserError | MemoryError)
            answer = error if known else RuntimeError(traceback.format_exc())
        pipe.send(answer)


def decode(dataset: EncodedDataset, split: str, wanted: list[Wanted]) -> Arrays:
    """Decode, crop, resize and mirror images.

    Raises:
        UserError: One cannot be read or decoded.
    """
    images, side = cast("EncodedSplit", getattr(dataset, split)), dataset.meta.height
    pixels = torch.empty(len(wanted), side, side, 3, dtype=torch.uint8)
    for place, each in zip(pixels, wanted, strict=True):
        place.copy_(_square(images, dataset.meta, each).permute(1, 2, 0))
    return pixels.numpy(), images.labels[[each.row for each in wanted]]


def _square(images: EncodedSplit, meta: Meta, wanted: Wanted) -> Tensor:
    """What the model sees of an image, uint8 (3, side, side)."""
    content = images.read(wanted.row)
    try:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        image = cast("Tensor", decode_jpeg(encoded, ImageReadMode.RGB))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"image {wanted.row} of {images.folder}: {reason}") from None
    _, height, width = image.shape
    crop = wanted.crop(height, width, meta.crop_ratio or CENTRE)
    rows, columns = slice(crop.top, crop.bottom), slice(crop.left, crop.right)
    # In this layout the filter works on all channels at once.
    part = image[None, :, rows, columns].contiguous(memory_format=torch.channels_last)
    mode = InterpolationMode(meta.interpolation or "bilinear")
    square = resize(part, [meta.height, meta.width], mode, antialias=True)[0]
    return square.flip(2) if wanted.mirrored else square


def as_tensors(arrays: Arrays, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, uint8 (n, 3, side, side), and labels, int64 (n,), on a device; does not wait."""
    pixels, labels = map(torch.from_numpy, arrays)
    pixels = pixels.permute(0, 3, 1, 2)  # channels last in memory, as it was decoded
    if device.type == "cpu":
        return pixels, labels
    # From pinned memory a copy does not wait for what the device has to do before.
    return (
        pixels.pin_memory().to(device, non_blocking=True),
        labels.pin_memory().to(device, non_blocking=True),
    )


def regrouped(
    pieces: Iterable[tuple[Tensor, Tensor]], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same images and labels in groups of ``size``; the last may be smaller."""
    held, total = list[tuple[Tensor, Tensor]](), 0
    for piece in pieces:
        held.append(piece)
        total += len(piece[1])
        if total < size:
            continue
        images, labels = _joined(held)
        for first in range(0, total - size + 1, size):
            yield images[first : first + size], labels[first : first + size]
        total %= size
        held = [(images[-total:], labels[-total:])] if total else []
    if held:
        yield _joined(held)


def _joined(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(pieces) == 1:
        return pieces[0]
    images, labels = (torch.cat(part) for part in zip(*pieces, strict=True))
    return images, labels
