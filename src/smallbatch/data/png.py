"""What Pillow does not check of a PNG file: that it holds all pixels, in a way that keeps them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # and their orientation
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = (  # of an interlaced image: first column and row, and the steps between them
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_PIECE = 2**20  # bytes
_BLANK = 77  # any but black and white, which are common


@dataclass(frozen=True)
class Header:
    """What the chunk IHDR says; ``depth`` is in bits a channel."""

    width: int
    height: int
    depth: int
    channels: int
    interlaced: bool

    @property
    def unpacked(self) -> int:
        """The bytes of all rows once they are decompressed, each with its filter's number."""
        passes = _PASSES if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for left, top, across, down in passes:
            columns = -(-(self.width - left) // across)
            rows = -(-(self.height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * self.channels * self.depth + 7) // 8)
        return total


def read_header(file: IO[bytes]) -> Header:
    """Reads the header of an open PNG file, whose position changes.

    Raises:
        ValueError: It does not come first, or has a colour type that does not exist.
    """
    file.seek(len(SIGNATURE) + 4)
    start = file.read(17)
    if start[:4] != b"IHDR" or len(start) < 17 or start[13] not in _CHANNELS:
        raise ValueError("it does not begin with a PNG header")
    width, height = int.from_bytes(start[4:8]), int.from_bytes(start[8:12])
    return Header(width, height, start[12], _CHANNELS[start[13]], start[16] != 0)


def load(image: Image.Image, header: Header) -> bool:
    """Loads an opened image, and checks that its palette has every colour that its pixels name.

    Returns:
        Whether rows may be missing, which Pillow leaves as they were before without an error.

    Raises:
        ValueError: A colour is missing, which Pillow would make black.
    """
    colours = len(image.palette.palette) // 3 if image.palette else 0
    blank = Image.new(image.mode, image.size, _BLANK)
    last = (image.width - 1, image.height - 1)
    before = blank.getpixel(last)
    image.im = blank.im
    image.load()
    if image.mode == "P":
        named = np.asarray(image).max()
        if named >= colours:
            raise ValueError(f"its pixels name colour {named}, its palette has {colours}")
    return header.interlaced or image.getpixel(last) == before


def check_rows(png: bytes, header: Header) -> None:
    """Checks that a file has all rows that its header says.

    Raises:
        ValueError: It has fewer.
        zlib.error: They cannot be decompressed.
    """
    rest = b"".join(png[start + 8 : end - 4] for kind, start, end in chunks(png) if kind == b"IDAT")
    missing, stream = header.unpacked, zlib.decompressobj()
    while missing > 0:
        piece = stream.decompress(rest, min(_PIECE, missing))
        rest = stream.unconsumed_tail
        missing -= len(piece)
        if not piece:
            raise ValueError("it has fewer pixels than its header says")


def without_metadata(png: bytes) -> bytes:
    """A PNG file without the chunks that pixels do not need.

    Raises:
        ValueError: A chunk is cut short, or its checksum is wrong.
    """
    kept = [png[start:end] for kind, start, end in chunks(png) if kind in _PIXELS]
    return b"".join((SIGNATURE, *kept))


def chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields each chunk's kind and the bytes from which and up to which it goes.

    Raises:
        ValueError: A chunk is cut short, or its checksum is wrong.
    """
    start, kind = len(SIGNATURE), b""
    while start < len(png) and kind != b"IEND":
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind, body = png[start + 4 : start + 8], png[start + 4 : end - 4]
        if end > len(png) or zlib.crc32(body) != int.from_bytes(png[end - 4 : end]):
            raise ValueError(f"chunk {kind.decode(errors='replace')} is damaged")
        yield kind, start, end
        start = end
