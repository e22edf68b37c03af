"""Image files and bytes to uint8 pixels, on all cores."""

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from smallbatch.data.split import Images
from smallbatch.errors import UserError
from smallbatch.machine import cores

FORMATS = ("PNG", "JPEG", "WEBP")
_GREY_MODES = ("1", "L", "LA", "La")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_CHUNK = 64


@dataclass(frozen=True)
class Encoded:
    """An image still encoded, as bytes or as a file, with the name that errors give it."""

    where: str
    content: bytes | Path


def decode(encoded: Encoded, image_size: int | None = None) -> Images:
    """Decodes one PNG, JPEG or WebP image.

    The EXIF orientation is applied, transparency is dropped, and of an animation the first
    frame is taken.

    Args:
        encoded: The image.
        image_size: Side of the square that the image is resized to (its aspect ratio is not
            kept) with an antialiased bilinear filter; None leaves its size alone.

    Returns:
        Pixels (C, H, W), C = 1 if the file is grayscale, else 3. WebP has no grayscale.

    Raises:
        UserError: The image can't be read, or has more than 8 bits of grey.
    """
    try:
        with _open(encoded) as image:
            if image.format == "PNG":
                image.verify()  # checks the checksums, which decoding does not; closes the image
        with _open(encoded) as image:
            if image.mode in _DEEP_MODES:
                raise UserError(
                    f"{encoded.where}: found more than 8 bits a pixel (mode {image.mode}); "
                    "allowed: 8 bits a channel, grayscale or colour"
                )
            return _pixels(ImageOps.exif_transpose(image), image_size)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{encoded.where}: not a readable image; allowed: PNG, JPEG, WebP"
        ) from error
    # Decoders raise a dozen types of exception for damaged input, even SyntaxError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{encoded.where}: damaged image ({reason})") from error


def decode_all(encoded: Iterable[Encoded], count: int, image_size: int | None = None) -> Images:
    """Decodes ``count`` images in order, with one thread per core (decoders release the GIL).

    Args:
        encoded: The images; an iterable is read as needed, so that few are in memory at a time.
        count: The number of images, at least 1.
        image_size: As for ``decode``.

    Returns:
        Pixels (count, C, H, W), C = 1 if every image is grayscale, else 3.

    Raises:
        UserError: An image can't be read, or sizes differ and ``image_size`` is None.
    """
    images: Images | None = None
    first = ""
    for index, (where, pixels) in enumerate(_decoded(encoded, image_size)):
        if images is None:
            images, first = np.empty((count, *pixels.shape), dtype=np.uint8), where
        if pixels.shape[1:] != images.shape[2:]:
            raise UserError(
                f"{where}: found {size_text(pixels)} pixels where {first} has "
                f"{size_text(images)}; allowed: one size, or set dataset.image_size"
            )
        if pixels.shape[0] > images.shape[1]:
            images = with_channels(images, pixels.shape[0])
        images[index] = pixels  # one grey channel is copied to all three
    if images is None:
        raise ValueError("no images to decode")
    return images


def resize_all(images: Images, image_size: int | None) -> Images:
    """Resizes pixels (N, C, H, W) to squares, exactly as ``decode`` does; None: unchanged."""
    if image_size is None or images.shape[2:] == (image_size, image_size):
        return images
    out = np.empty((*images.shape[:2], image_size, image_size), dtype=np.uint8)
    for index, pixels in enumerate(images):
        channels_last = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        out[index] = _pixels(Image.fromarray(np.ascontiguousarray(channels_last)), image_size)
    return out


def with_channels(images: Images, channels: int) -> Images:
    """Repeats the one channel of grayscale images (N, 1, H, W) until there are ``channels``."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)


def size_text(images: Images) -> str:
    """Height by width of pixels (…, H, W), for errors."""
    return f"{images.shape[-2]}x{images.shape[-1]}"


def _open(encoded: Encoded) -> Image.Image:
    content = encoded.content
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return Image.open(file, formats=FORMATS)


def _pixels(image: Image.Image, image_size: int | None) -> Images:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns about transparency if converted to RGB at once
    image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decoded(encoded: Iterable[Encoded], image_size: int | None) -> Iterator[tuple[str, Images]]:
    Image.init()  # registers the decoders here, in one thread, not on first use in several
    workers = min(cores(), 16)
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[list[tuple[str, Images]]]] = deque()
    iterator = iter(encoded)
    try:
        while chunk := list(islice(iterator, _CHUNK)):
            pending.append(pool.submit(_decode_chunk, chunk, image_size))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(chunk: list[Encoded], image_size: int | None) -> list[tuple[str, Images]]:
    return [(encoded.where, decode(encoded, image_size)) for encoded in chunk]
