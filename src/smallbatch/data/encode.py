"""Images as they are kept encoded: JPEG, upright, of a limited short side."""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from smallbatch.data.encoded import digest_of
from smallbatch.data.images import in_memory, opened, plain, upright, whole
from smallbatch.data.split import Encoded

QUALITY = 95
"""Of a JPEG that is written, on libjpeg's scale."""
LONGEST = 65_500
"""Pixels of a side that libjpeg writes and reads at most."""
_VALUES = np.arange(256)


@dataclass(frozen=True)
class Stored:
    """An image as it is kept.

    Attributes:
        content: A JPEG in RGB or grey.
        digest: Its digest, see `encoded.digest_of`.
        pixels: The number of its pixels.
        sums: The sum of its pixels' values per channel (3,), int64.
        squares: The sum of their squares (3,), int64.
    """

    content: bytes
    digest: bytes
    pixels: int
    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]


def encode(encoded: Encoded, short_side: int, max_megapixels: int) -> Stored:
    """Decodes an image, and encodes it anew where it cannot stay as it is.

    A JPEG of RGB or grey that lies upright and is small enough keeps its bytes. Any other image is
    decoded as `images.decode` does, and becomes a JPEG of its own size, or where that is too large
    of a smaller one with the same aspect ratio, by an antialiased bilinear filter. So does one
    whose longer side exceeds `LONGEST`.

    Args:
        encoded: The image.
        short_side: The most pixels of its shorter side.
        max_megapixels: A larger image is refused.

    Raises:
        UserError: As `images.decode`.
    """
    encoded = in_memory(encoded)
    return opened(encoded, partial(_stored, encoded.content, short_side), max_megapixels)


def _stored(content: bytes | Path, short_side: int, image: ImageFile.ImageFile) -> Stored:
    shortest = min(image.size)
    turned = upright(image)
    jpeg = image.format == "JPEG" and image.mode in ("L", "RGB")
    if jpeg and turned is image and shortest <= short_side:
        return _with_sums(whole(content), image)
    picture = plain(turned)
    width, height = picture.size
    if shortest > short_side:
        width, height = (round(side * short_side / shortest) for side in picture.size)
    if (longest := max(width, height)) > LONGEST:
        width, height = (max(1, round(side * LONGEST / longest)) for side in (width, height))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    picture.info.clear()  # comments and profiles of the file that it came from
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    with Image.open(buffer) as written:
        return _with_sums(buffer.getvalue(), written)


def _with_sums(content: bytes, image: Image.Image) -> Stored:
    counts = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256)
    counts = np.broadcast_to(counts, (3, 256))  # grey is the same in all channels
    pixels = image.width * image.height
    return Stored(content, digest_of(content), pixels, counts @ _VALUES, counts @ _VALUES**2)
