"""Images that do not fit into memory: decoded, cropped and flipped as they are needed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smallbatch.engines.batches import WHOLE
from smallbatch.engines.decoding import Decoders, Wanted, as_tensors, regrouped
from smallbatch.protocol.stream import stretches

if TYPE_CHECKING:
    from smallbatch.data.encoded import EncodedDataset

Batch = tuple[Tensor, Tensor]  # (n, C, H, W), int64 (n,)


class _Source:
    """Decodes images, and normalises them on the device."""

    def __init__(
        self, dataset: EncodedDataset, device: torch.device, dtype: torch.dtype, processes: int
    ) -> None:
        self._decoders = Decoders(dataset, processes)
        self._device, self._dtype, meta = device, dtype, dataset.meta
        mean = torch.tensor(meta.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(meta.std, dtype=torch.float64)[:, None, None]
        std = torch.where(std > 0, std, 1.0)  # a constant channel would else be divided by 0
        self._scale = (1 / (255 * std)).to(device, dtype)
        self._shift = (mean / std).to(device, dtype)

    def batches(
        self, split: str, wanted: Iterable[Wanted], size: int
    ) -> Generator[Batch, None, None]:
        """Normalised images (≤ size, C, H, W) and labels, in the order in which they are wanted."""
        with closing(self._decoders.pieces(split, wanted)) as pieces:
            on_device = (as_tensors(piece, self._device) for piece in pieces)
            for pixels, labels in regrouped(on_device, size):
                normal = pixels.to(self._dtype).mul_(self._scale).sub_(self._shift)
                # As other images are: on a CPU channels last, as they were decoded.
                yield normal if normal.is_cpu else normal.contiguous(), labels


@dataclass(frozen=True)
class StreamedSplit:
    """One split, of which the middle of each image is decoded when it is asked for."""

    name: str
    images: int
    source: _Source

    def __len__(self) -> int:
        """The number of images."""
        return self.images

    def batches(self, size: int) -> Iterator[Batch]:
        """See :class:`~engines.batches.Evaluated`."""
        return self.source.batches(self.name, map(Wanted, range(self.images)), size)


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
        self._source = _Source(dataset, device, dtype, processes)
        self.train = StreamedSplit("train", len(dataset.train), self._source)
        self.test = StreamedSplit("test", len(dataset.test), self._source)
        held_out = dataset.validation
        self.validation = (
            StreamedSplit("validation", len(held_out), self._source) if held_out else None
        )

    def batches(
        self, seed: int, epochs: int, batch_size: int, start: int = 0, part: slice = WHOLE
    ) -> Generator[Batch, None, None]:
        """See :class:`~engines.batches.BatchSource`."""
        n, places = len(self.train), range(batch_size)[part]

        def wanted() -> Iterator[Wanted]:
            positions = count(start * batch_size)  # in the stream, where epochs are joined
            for stretch in stretches(seed, n, epochs, batch_size, start):
                rows, flips = stretch.index.tolist(), stretch.flip.tolist()
                for row, mirrored, position in zip(rows, flips, positions, strict=False):
                    if position % batch_size not in places:
                        continue
                    by_chance = Wanted(row, seed, position // n, bool(mirrored))
                    yield by_chance if self._augment else Wanted(row)

        yield from self._source.batches("train", wanted(), len(places))

    def every(self, stride: int) -> Tensor:
        """See :class:`~engines.batches.BatchSource`."""
        rows = range(0, len(self.train), stride)
        ((pixels, _),) = self._source.batches("train", map(Wanted, rows), len(rows))
        return pixels
