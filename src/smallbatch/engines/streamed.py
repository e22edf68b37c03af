"""Images that do not fit into memory: decoded, cropped and flipped as they are needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from smallbatch.engines.batches import WHOLE
from smallbatch.errors import UserError, WorkerLost
from smallbatch.processes import die_with
from smallbatch.protocol.crops import CENTRE, Crop, centre_crop, random_crop
from smallbatch.protocol.stream import stretches

if TYPE_CHECKING:
    from smallbatch.data.encoded import EncodedDataset, EncodedSplit
    from smallbatch.data.prepared import Meta

PIECE = 64  # images that one process decodes at a time, whatever m is


@dataclass(frozen=True)
class _Wanted:
    """An image that is to be decoded: its row; how it is cropped and mirrored by chance, if so."""

    row: int
    seed: int = 0
    epoch: int | None = None
    mirrored: bool = False

    def crop(self, height: int, width: int, ratio: float) -> Crop:
        if self.epoch is None:
            return centre_crop(height, width, ratio)
        return random_crop(self.seed, self.epoch, self.row, height, width)


Piece = tuple[Tensor, Tensor]  # uint8 (n, 3, side, side), int64 (n,)


@dataclass(frozen=True)
class _Images(Dataset["Piece | UserError"]):
    """What a process that decodes needs; an error is handed over, as raising it would bury it."""

    split: EncodedSplit
    meta: Meta

    def __getitems__(self, wanted: list[_Wanted]) -> Piece | UserError:
        side, layout = self.meta.height, torch.channels_last
        images = torch.empty(len(wanted), 3, side, side, dtype=torch.uint8, memory_format=layout)
        try:
            for i, each in enumerate(wanted):
                images[i] = self._decode(each)
        except UserError as error:
            return error
        return images, torch.from_numpy(self.split.labels[[each.row for each in wanted]])

    def _decode(self, wanted: _Wanted) -> Tensor:
        content = self.split.read(wanted.row)
        try:
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            image = cast("Tensor", decode_jpeg(encoded, ImageReadMode.RGB))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"image {wanted.row} of {self.split.folder}: {reason}") from None
        _, height, width = image.shape
        crop = wanted.crop(height, width, self.meta.crop_ratio or CENTRE)
        rows, columns = slice(crop.top, crop.bottom), slice(crop.left, crop.right)
        part = image[None, :, rows, columns]
        # In this layout the filter works on all channels at once.
        part = part.contiguous(memory_format=torch.channels_last)
        side, filter_ = self.meta.height, self.meta.interpolation or "bilinear"
        square = resize(part, [side, side], InterpolationMode(filter_), antialias=True)[0]
        return square.flip(2) if wanted.mirrored else square


class _Decoding:
    """How images are decoded, and what becomes of them on the device."""

    def __init__(
        self, meta: Meta, device: torch.device, dtype: torch.dtype, processes: int
    ) -> None:
        self.meta, self.device, self.dtype, self.processes = meta, device, dtype, processes
        mean = torch.tensor(meta.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(meta.std, dtype=torch.float64)[:, None, None]
        std = torch.where(std > 0, std, 1.0)  # a constant channel would else be divided by 0
        self._scale = (1 / (255 * std)).to(device, dtype)
        self._shift = (mean / std).to(device, dtype)

    def batches(
        self, images: EncodedSplit, wanted: Iterable[_Wanted], size: int
    ) -> Generator[Piece, None, None]:
        """Normalised images (≤ size, C, H, W) and labels, in the order in which they are wanted."""
        with closing(self._pieces(images, wanted)) as pieces:
            for pixels, labels in _regrouped(pieces, size):
                normal = pixels.to(self.dtype).mul_(self._scale).sub_(self._shift)
                yield _laid_out(normal), labels

    def _pieces(
        self, images: EncodedSplit, wanted: Iterable[_Wanted]
    ) -> Generator[Piece, None, None]:
        # A copy from pinned memory does not wait; it is short beside the update that follows.
        pinned, parent = self.device.type == "cuda", os.getpid()
        loader: Iterable[Piece | UserError] = DataLoader(
            _Images(images, self.meta),
            batch_sampler=_pieces_of(wanted),  # pyright: ignore[reportArgumentType] - of any kind
            collate_fn=_as_it_is,
            num_workers=self.processes,
            pin_memory=pinned,
            worker_init_fn=partial(_begin, parent),
        )
        try:
            for piece in loader:
                if isinstance(piece, UserError):
                    raise piece
                pixels, labels = (part.to(self.device, non_blocking=pinned) for part in piece)
                yield pixels, labels
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerLost(f"a process that decodes images was lost: {error}") from None


@dataclass(frozen=True)
class StreamedSplit:
    """One split, of which the middle of each image is decoded when it is asked for."""

    images: EncodedSplit
    decoding: _Decoding

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def batches(self, size: int) -> Iterator[Piece]:
        """See :class:`~engines.batches.Evaluated`."""
        return self.decoding.batches(self.images, map(_Wanted, range(len(self))), size)


class Streamed:
    """Encoded splits, of which batches are decoded; see :class:`~engines.batches.BatchSource`.

    Args:
        dataset: The prepared data.
        augment: Whether training images are cropped and mirrored by chance; else it is the middle.
        device: Where batches are put.
        dtype: Of their pixels.
        processes: How many decode beside this one; with 0 this one does.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        *,
        augment: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        processes: int = 0,
    ) -> None:
        meta = dataset.meta
        self.classes, self.image = len(meta.classes), (meta.channels, meta.height, meta.width)
        self.device, self._augment = device, augment
        self._decoding = _Decoding(meta, device, dtype, processes)
        self.train = StreamedSplit(dataset.train, self._decoding)
        self.test = StreamedSplit(dataset.test, self._decoding)
        held_out = dataset.validation
        self.validation = StreamedSplit(held_out, self._decoding) if held_out else None

    def batches(
        self, seed: int, epochs: int, batch_size: int, start: int = 0, part: slice = WHOLE
    ) -> Generator[Piece, None, None]:
        """See :class:`~engines.batches.BatchSource`."""
        n, places = len(self.train), range(batch_size)[part]

        def wanted() -> Iterator[_Wanted]:
            positions = count(start * batch_size)  # in the stream, where epochs are joined
            for stretch in stretches(seed, n, epochs, batch_size, start):
                rows, flips = stretch.index.tolist(), stretch.flip.tolist()
                for row, mirrored, position in zip(rows, flips, positions, strict=False):
                    if position % batch_size not in places:
                        continue
                    by_chance = _Wanted(row, seed, position // n, bool(mirrored))
                    yield by_chance if self._augment else _Wanted(row)

        yield from self._decoding.batches(self.train.images, wanted(), len(places))

    def every(self, stride: int) -> Tensor:
        """See :class:`~engines.batches.BatchSource`."""
        rows = range(0, len(self.train), stride)
        ((pixels, _),) = self._decoding.batches(self.train.images, map(_Wanted, rows), len(rows))
        return pixels


def _regrouped(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    held, total = list[Piece](), 0
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


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    images, labels = (torch.cat(part) for part in zip(*pieces, strict=True))
    return images, labels


def _laid_out(images: Tensor) -> Tensor:
    """As other images are: on a CPU channels last, as they were decoded."""
    return images if images.is_cpu else images.contiguous()


def _pieces_of(wanted: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    piece: list[_Wanted] = []
    for each in wanted:
        piece.append(each)
        if len(piece) == PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


def _as_it_is(piece: Any) -> Any:
    return piece


def _begin(parent: int, _worker: int) -> None:
    """Prepare a process that decodes: the one that trains decides what Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
