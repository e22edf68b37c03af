"""Image files and bytes to uint8 pixels, on all cores."""

import io
import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from smallbatch.config.dataset import MEGAPIXELS
from smallbatch.data import jpeg, png
from smallbatch.data.split import Encoded, Images
from smallbatch.durable import check_regular
from smallbatch.errors import UserError, first_line
from smallbatch.machine import cores, free_memory

FORMATS = ("PNG", "JPEG", "WEBP")
_GREY_MODES = ("1", "L", "LA", "La")
_CHUNK = 64
_LARGE = 2**26  # bytes of a file that is read while no other such is
_COPIES = 3  # of a whole file, while Pillow reads it
_LARGE_ONE = Lock()
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_T = TypeVar("_T")


def decode(
    encoded: Encoded, image_size: int | None = None, max_megapixels: int = MEGAPIXELS
) -> Images:
    """Decodes one PNG, JPEG or WebP image.

    The EXIF orientation is applied, transparency is dropped, and of an animation the first
    frame is taken. Other metadata is not used; what of it cannot be read does no harm.

    Args:
        encoded: The image.
        image_size: Side of the square that the image is resized to (its aspect ratio is not
            kept) with an antialiased bilinear filter; None leaves its size alone.
        max_megapixels: A larger image is refused before it takes memory.

    Returns:
        Pixels (C, H, W), C = 1 if the file is grayscale, else 3. WebP has no grayscale.

    Raises:
        UserError: The image can't be read, is too large, or has more than 8 bits a channel.
    """
    with pillow_as_told():
        return opened(encoded, partial(_pixels, image_size=image_size), max_megapixels)


def decode_all(
    encoded: Iterable[Encoded],
    count: int,
    image_size: int | None = None,
    max_megapixels: int = MEGAPIXELS,
) -> Images:
    """Decodes ``count`` images in order, with one thread per core (decoders release the GIL).

    Args:
        encoded: The images; an iterable is read as needed, so that few are in memory at a time.
        count: The number of images, at least 1.
        image_size: As for ``decode``.
        max_megapixels: As for ``decode``.

    Returns:
        Pixels (count, C, H, W), C = 1 if every image is grayscale, else 3.

    Raises:
        UserError: An image can't be read, sizes differ and ``image_size`` is None, or there is
            not enough memory for all.
    """
    with pillow_as_told():
        use = partial(_pixels, image_size=image_size)
        decoded = in_threads(lambda one: (one.where, opened(one, use, max_megapixels)), encoded)
        return _gathered(decoded, count)


def _gathered(decoded: Iterable[tuple[str, Images]], count: int) -> Images:
    images: Images | None = None
    first = ""
    for index, (where, pixels) in enumerate(decoded):
        if images is None:
            images, first = allocate((count, *pixels.shape)), where
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
    out = allocate((*images.shape[:2], image_size, image_size))
    for index, pixels in enumerate(images):
        channels_last = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        out[index] = _pixels(Image.fromarray(np.ascontiguousarray(channels_last)), image_size)
    return out


def allocate(shape: tuple[int, ...]) -> Images:
    """Memory for images (N, C, H, W).

    Raises:
        UserError: There is not as much.
    """
    needed = math.prod(shape)
    try:
        if needed > free_memory():  # which the system would grant at first, and then stop us
            raise MemoryError
        return np.empty(shape, dtype=np.uint8)
    except MemoryError:
        count, channels, height, width = shape
        raise UserError(
            f"dataset: {count} images of {channels}x{height}x{width} need {needed / 2**30:.2f} GiB "
            "of memory, more than there is; allowed: a smaller image_size, subset or test_subset"
        ) from None


def with_channels(images: Images, channels: int) -> Images:
    """Repeats the one channel of grayscale images (N, 1, H, W) until there are ``channels``."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)


def size_text(images: Images) -> str:
    """Height by width of pixels (…, H, W), for errors."""
    return f"{images.shape[-2]}x{images.shape[-1]}"


@contextmanager
def pillow_as_told() -> Generator[None, None, None]:
    """Without Pillow's own limit and warnings; for the whole process, as threads share both."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def opened(encoded: Encoded, use: Callable[[ImageFile.ImageFile], _T], max_megapixels: int) -> _T:
    """What is made of an image that was decoded and checked, as it lies in the file.

    Args:
        encoded: The image.
        use: Makes it; the image is closed afterwards.
        max_megapixels: As for ``decode``.

    Raises:
        UserError: As ``decode``.
    """
    where, content = encoded.where, encoded.content
    try:
        if isinstance(content, Path):
            check_regular(content)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with _LARGE_ONE if size > _LARGE else nullcontext():
            _check_size(where, size, max_megapixels)
            return _read_again(where, content, use, max_megapixels)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{where}: not enough memory to decode it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: not a readable image; allowed: PNG, JPEG, WebP") from error
    # Decoders raise a dozen types of exception for damaged input, even SyntaxError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: damaged image ({reason})") from error


def in_memory(encoded: Encoded) -> Encoded:
    """The image with its bytes, so that a file is read once; of a very large one, still the file.

    Raises:
        UserError: It cannot be read.
    """
    if isinstance(encoded.content, bytes):
        return encoded
    try:
        check_regular(encoded.content)
        if encoded.content.stat().st_size > _LARGE:
            return encoded
        return Encoded(encoded.where, encoded.content.read_bytes())
    except OSError as error:
        raise UserError(f"{encoded.where}: damaged image ({first_line(error)})") from error


def _check_size(where: str, size: int, max_megapixels: int) -> None:
    """Refuses what would fill the memory, such as a file that is one large hole on disk."""
    most = 2**28 + 8 * 10**6 * max_megapixels  # for metadata, and for pixels that are not packed
    if size > most:
        raise UserError(
            f"{where}: found {size / 2**20:.0f} MiB; allowed: up to {most // 2**20}, more than "
            f"{max_megapixels} megapixels take, or set dataset.max_megapixels"
        )
    if size > _LARGE and _COPIES * size > free_memory():
        raise UserError(f"{where}: not enough memory to decode it, of {size / 2**20:.0f} MiB")


def _read_again(
    where: str,
    content: bytes | Path,
    use: Callable[[ImageFile.ImageFile], _T],
    max_megapixels: int,
) -> _T:
    """Reads an image; a PNG that cannot be read, once more without its metadata."""
    try:
        return _read(where, content, use, max_megapixels)
    except (UserError, MemoryError):
        raise
    except Exception:
        data = whole(content)
        if not data.startswith(png.SIGNATURE):
            raise
        return _read(where, png.without_metadata(data), use, max_megapixels)


def _read(
    where: str,
    content: bytes | Path,
    use: Callable[[ImageFile.ImageFile], _T],
    max_megapixels: int,
) -> _T:
    header: png.Header | None = None
    with _open(content) as image:
        if math.prod(image.size) > max_megapixels * 10**6:
            raise UserError(
                f"{where}: found {image.width}x{image.height} pixels, "
                f"{math.prod(image.size) / 1e6:.0f} megapixels; allowed: up to {max_megapixels}, "
                "or set dataset.max_megapixels"
            )
        if image.format == "PNG" and image.fp is not None:
            header = png.read_header(image.fp)
            if header.depth > 8:
                raise UserError(
                    f"{where}: found more than 8 bits a channel ({header.depth}); "
                    "allowed: 8 bits a channel, grayscale or colour"
                )
            image.verify()  # checks the checksums, which decoding does not; closes the image
    with _open(content) as image:
        if header is not None and png.load(image, header):
            png.check_rows(whole(content), header)
        if image.format in ("JPEG", "MPO"):
            jpeg.check(whole(content))
        image.load()  # some metadata lies behind the pixels
        return use(image)


def whole(content: bytes | Path) -> bytes:
    """The bytes of an image or of its file."""
    return content if isinstance(content, bytes) else content.read_bytes()


def _open(content: bytes | Path) -> ImageFile.ImageFile:
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return Image.open(file, formats=FORMATS)


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; as it lies, and itself, if that says nothing."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a parser of damaged input, like the decoders
        return image
    return image if turn is None else image.transpose(turn)


def plain(image: Image.Image) -> Image.Image:
    """The image as L or RGB: without palette, transparency and other colour spaces."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns about transparency if converted to RGB at once
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _pixels(image: Image.Image, image_size: int | None) -> Images:
    image = plain(upright(image))
    if image_size is not None and image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def in_threads(
    one: Callable[[Encoded], _T], encoded: Iterable[Encoded], chunk: int = _CHUNK
) -> Generator[_T]:
    """Yields what ``one`` makes of each image, in order; few are in memory at a time."""
    Image.init()  # registers the decoders here, in one thread, not on first use in several
    workers = min(cores(), 16)
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[list[_T]]] = deque()
    iterator = iter(encoded)
    try:
        while some := list(islice(iterator, chunk)):
            pending.append(pool.submit(lambda some: [one(each) for each in some], some))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
