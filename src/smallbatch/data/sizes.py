"""The sizes of images before they are prepared, and the size that follows from them."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from smallbatch.data.files import below
from smallbatch.data.image_folder import SUFFIXES
from smallbatch.data.split import Encoded
from smallbatch.errors import UserError

LARGEST = 64
"""Pixels of a side that images are resized to, where they are larger."""
LOOKED_AT = 200
"""How many images, evenly over the source, are looked at."""

Sizes = list[tuple[int, int]]


def sizes_below(folder: Path) -> Sizes:
    """The different sizes of images below a folder, in pixels (width, height), sorted.

    Raises:
        UserError: One that is looked at is no image.
        OSError: A folder cannot be read.
    """
    files = [Path(entry.path) for entry in below(folder)
             if not entry.is_dir() and Path(entry.name).suffix.lower() in SUFFIXES]  # fmt: skip
    chosen = files[:: max(1, len(files) // LOOKED_AT)]
    return sizes_of(Encoded(str(file), file) for file in chosen)


def sizes_of(images: Iterable[Encoded]) -> Sizes:
    """The different sizes of images, in pixels (width, height), sorted; none is decoded.

    Raises:
        UserError: One is no image.
    """
    found = set[tuple[int, int]]()
    for each in images:
        content = io.BytesIO(each.content) if isinstance(each.content, bytes) else each.content
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(content) as image:
                found.add(image.size)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error) if isinstance(content, Path) else type(error).__name__
            raise UserError(f"{each.where}: not an image that can be read ({reason})") from None
    return sorted(found)


def are_alike(sizes: Sizes) -> bool:
    """Whether all images are of one size that needs no resizing."""
    return len(sizes) == 1 and max(sizes[0]) <= LARGEST


def side(sizes: Sizes) -> int | None:
    """Pixels of a side for `image_size`; None where small images of one shape stay as they are."""
    if are_alike(sizes):
        width, height = sizes[0]
        return width if width == height else None
    return max(8, min(LARGEST, min(map(min, sizes))))
