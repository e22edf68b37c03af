"""What a source gives to ``prepare``: labels at once, images on request."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Images: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]
# The arrays of a data set by file name, such as train_images.
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Rows: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Encoded:
    """An image still encoded, as bytes or as a file, with the name that errors give it."""

    where: str
    content: bytes | Path


@dataclass(frozen=True)
class Split:
    """The training or the test images of a source, not yet read.

    Attributes:
        where: The name of this split in errors: a folder, or the source and the split's name.
        labels: The class index of every image, int64 (N,).
        read: Reads the images of ascending row numbers (n,) as uint8 (n, C, H, W), resized if the
            configuration asks for it. C is 1 only if all these images are grayscale, else 3.
            Raises a UserError that names the file of an unreadable image.
        encoded: Yields the encoded images of ascending row numbers, none decoded; None: the source
            has only pixels.
    """

    where: str
    labels: Labels
    read: Callable[[Rows], Images]
    encoded: Callable[[Rows], Iterator[Encoded]] | None = None


@dataclass(frozen=True)
class Source:
    """A classified image data set: its class names in label order and its two splits.

    ``note`` is a line for the user that says which splits of several these are.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    note: str | None = None
