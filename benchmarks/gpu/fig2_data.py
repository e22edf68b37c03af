"""The data set of a profile from Parquet shards, decoded by all cores of a large machine."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np

from smallbatch.config.params import DatasetConfig
from smallbatch.data.prepare import assemble
from smallbatch.data.prepared import Dataset
from smallbatch.data.sources import open_source
from smallbatch.data.split import Images, Rows, Source, Split
from smallbatch.machine import cores

PROCESSES = 32  # at most: a container may show more cores than it may use


def load_dataset(config: DatasetConfig) -> Dataset:
    """A data set as `smallbatch prepare` makes it, its images decoded in a process per core."""
    source = open_source(config, Path("data"))
    train, test = _in_processes(source.train), _in_processes(source.test)
    return assemble(config, Source(source.classes, train, test))


def _in_processes(split: Split) -> Split:
    def read(rows: Rows) -> Images:
        parts = np.array_split(rows, min(len(rows), cores(), PROCESSES))
        # Forked, they have the split, whose reader cannot be pickled.
        with multiprocessing.get_context("fork").Pool(len(parts), _Worker.take, (split,)) as pool:
            return np.concatenate(pool.map(_Worker.read, parts, chunksize=1))

    return Split(split.where, split.labels, read)


class _Worker:
    split: Split

    @classmethod
    def take(cls, split: Split) -> None:
        cls.split = split

    @classmethod
    def read(cls, rows: Rows) -> Images:
        return cls.split.read(rows)
