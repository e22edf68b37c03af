"""Writes shards of encoded images, each once: what a killed process has finished is kept."""

import io
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from smallbatch import durable
from smallbatch.data.encode import Stored
from smallbatch.data.encoded import DIGEST_BYTES
from smallbatch.data.split import Labels

_ROW_GROUP = 2**24  # bytes of images that are in memory until they are written
PART = np.dtype(
    [
        ("label", "<i8"),
        ("offset", "<i8"),
        ("length", "<i4"),
        ("digest", "u1", (DIGEST_BYTES,)),
        ("pixels", "<i8"),
        ("sums", "<i8", (3,)),
        ("squares", "<i8", (3,)),
    ]
)
"""What is noted of an image of a finished shard; see `encoded.INDEX` and `encode.Stored`."""
Part = npt.NDArray[np.void]


@dataclass(frozen=True)
class Shards:
    """The shards of a split, which are being written.

    Attributes:
        folder: Where they are written.
        notes: The folder of the notes; a shard is finished when there is one on it.
        split: The split's name, with which their names begin.
        classes: The names of the classes.
        size: Bytes of images with which a shard is full.
    """

    folder: Path
    notes: Path
    split: str
    classes: tuple[str, ...]
    size: int

    def name(self, number: int) -> str:
        """The name of a shard's file."""
        return f"{self.split}-{number:05}.parquet"

    def parts(self) -> Iterator[Part]:
        """Yields the notes on the finished shards, in order.

        Raises:
            OSError: One cannot be read.
        """
        for number in itertools.count():
            part = self._finished(number)
            if part is None:
                return
            yield part

    def write(
        self,
        labels: Labels,
        images: Callable[[int], Generator[Stored]],
        told: Callable[[int], object],
    ) -> None:
        """Writes the shards that are not finished.

        Args:
            labels: Of all images, int64 (N,).
            images: Yields the images from one on.
            told: Is told how many are written, after each.

        Raises:
            OSError: They cannot be written.
            UserError: An image cannot be read.
        """
        lengths = [len(part) for part in self.parts()]
        number, done = len(lengths), sum(lengths)
        with closing(images(done)) as coming:
            while done < len(labels):
                part = self._write_one(number, labels[done:], coming, lambda n, d=done: told(d + n))
                buffer = io.BytesIO()
                np.save(buffer, part)
                durable.write(self._note(number), buffer.getvalue())
                number, done = number + 1, done + len(part)

    def _note(self, number: int) -> Path:
        return self.notes / f"{self.split}-{number:05}.npy"

    def _finished(self, number: int) -> Part | None:
        try:
            part = np.load(io.BytesIO(durable.read(self._note(number))), allow_pickle=False)
            rows = pq.read_metadata(self.folder / self.name(number)).num_rows
        except (OSError, ValueError, EOFError):  # of a damaged file, too
            return None
        return part if part.dtype == PART and len(part) == rows else None

    def _write_one(
        self,
        number: int,
        labels: Labels,
        images: Iterator[Stored],
        told: Callable[[int], object],
    ) -> Part:
        path = self.folder / self.name(number)
        groups, rows = list[Part](), list[Stored]()
        done = size = held = 0
        with pa.OSFile(str(path), "wb") as sink, _writer(sink, self.classes) as writer:
            for image in images:
                rows.append(image)
                size += len(image.content)
                held += len(image.content)
                many = done + len(rows)
                full = size >= self.size or many == len(labels)
                if full or held >= _ROW_GROUP:
                    groups.append(_write_group(path, sink, writer, rows, labels[done:many]))
                    done, held, rows = many, 0, []
                told(many)
                if full:
                    break
        with path.open("rb") as file:
            os.fsync(file.fileno())
        durable.sync_folder(self.folder)
        return np.concatenate(groups)


def _writer(sink: pa.NativeFile, classes: tuple[str, ...]) -> pq.ParquetWriter:
    """A writer by which the bytes of an image lie in the file as they are."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [
            pa.field("image", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
        ],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    # Statistics would repeat images: the least and the greatest of each page.
    return pq.ParquetWriter(
        sink, schema, compression="none", use_dictionary=False, column_encoding="PLAIN",
        write_statistics=False, write_page_checksum=True,
    )  # fmt: skip


def _write_group(
    path: Path, sink: pa.NativeFile, writer: pq.ParquetWriter, rows: list[Stored], labels: Labels
) -> Part:
    """Writes a row group; returns what is noted of its images."""
    contents = [row.content for row in rows]
    columns = [pa.array(contents, pa.binary()), pa.array(labels)]
    start = sink.tell()
    writer.write_table(
        pa.Table.from_arrays(columns, schema=writer.schema), row_group_size=len(rows)
    )
    written = sink.tell() - start
    with path.open("rb") as file:
        region = os.pread(file.fileno(), written, start)
    part: Part = np.empty(len(rows), PART)
    part["label"] = labels
    part["offset"] = [start + offset for offset in offsets(region, contents)]
    part["length"] = [len(content) for content in contents]
    part["digest"] = [np.frombuffer(row.digest, np.uint8) for row in rows]
    for name in ("pixels", "sums", "squares"):
        part[name] = [getattr(row, name) for row in rows]
    return part


def offsets(region: bytes, contents: list[bytes]) -> list[int]:
    """Where the bytes of images lie in a row group that holds them, in order.

    In Parquet's encoding PLAIN each is its length in four bytes, little-endian, and then itself;
    headers of pages lie between some of them.

    Raises:
        ValueError: One does not.
    """
    found: list[int] = []
    at = 0
    for content in contents:
        length = len(content).to_bytes(4, "little")
        at = region.index(length, at)
        while not region.startswith(content, at + 4):
            at = region.index(length, at + 1)
        found.append(at + 4)
        at += 4 + len(content)
    return found
