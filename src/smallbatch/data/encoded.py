"""Stub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallbatch.data.prepared import Meta


@dataclass(frozen=True)
class EncodedSplit:
    folder: Path
    shards: tuple[str, ...]
    labels: NDArray[np.int64]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    digest: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True)
class EncodedDataset:
    meta: Meta
    train: EncodedSplit
    test: EncodedSplit
    validation: EncodedSplit | None
