"""Which images keep their bytes, and what becomes of the others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallbatch.data import images
from smallbatch.data.encode import Stored, encode
from smallbatch.data.encoded import digest_of
from smallbatch.data.images import decode
from smallbatch.data.split import Encoded
from smallbatch.errors import UserError

LIMIT = 32


def smooth(width: int, height: int) -> Image.Image:
    """A picture in RGB that JPEG and a resize change little: a ramp in each channel."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def written(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(content: bytes | Path, limit: int = LIMIT) -> Stored:
    return encode(Encoded("picture", content), limit, 10)


def opened(content: bytes) -> Any:
    return Image.open(io.BytesIO(content))


def rotated(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KEPT = {
    "RGB": written(smooth(48, 32)),
    "grey": written(smooth(40, 20).convert("L")),
    "tiny": written(smooth(1, 1)),
    "progressive": written(smooth(48, 32), progressive=True),
    "upright": written(smooth(48, 32), exif=rotated(1)),
    "with a comment": written(smooth(48, 32), comment=b"hello"),
    "high": written(smooth(32, 400)),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_small_upright_jpeg_keeps_its_bytes(name: str, tmp_path: Path) -> None:
    content = KEPT[name]
    assert stored(content).content == content
    (tmp_path / "a.JPEG").write_bytes(content)
    assert stored(tmp_path / "a.JPEG").content == content


@pytest.mark.parametrize("name", ["RGB", "grey"])
def test_a_file_that_is_too_large_to_be_read_beside_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_LARGE", 100)
    (tmp_path / "a.JPEG").write_bytes(KEPT[name])
    assert stored(tmp_path / "a.JPEG").content == KEPT[name]


ENCODED = {
    "too large": (written(smooth(66, 64), quality=100), (33, 32)),
    "wide": (written(smooth(120, 40), quality=100), (96, 32)),
    "CMYK": (written(smooth(48, 32).convert("CMYK"), quality=100), (48, 32)),
    "rotated": (written(smooth(48, 30), quality=100, exif=rotated(6)), (30, 48)),
    "rotated and too large": (written(smooth(96, 64), quality=100, exif=rotated(8)), (32, 48)),
    "mirrored": (written(smooth(48, 32), quality=100, exif=rotated(2)), (48, 32)),
    "PNG": (written(smooth(48, 32), "PNG"), (48, 32)),
    "WebP": (written(smooth(48, 32), "WEBP", lossless=True), (48, 32)),
    "grey PNG": (written(smooth(48, 32).convert("L"), "PNG"), (48, 32)),
    "transparent": (written(smooth(48, 32).convert("RGBA"), "PNG"), (48, 32)),
    "palette": (written(smooth(48, 32).quantize(64), "PNG"), (48, 32)),
    "black and white": (written(smooth(48, 32).convert("1"), "PNG"), (48, 32)),
    "tiny PNG": (written(smooth(1, 1), "PNG"), (1, 1)),
    "several pictures": (
        written(smooth(48, 32), "MPO", save_all=True, append_images=[smooth(48, 32)], quality=100),
        (48, 32),
    ),
}


@pytest.mark.parametrize("name", ENCODED)
def test_what_cannot_stay_becomes_an_upright_jpeg(name: str) -> None:
    content, size = ENCODED[name]
    found = stored(content)
    image = opened(found.content)
    assert (image.format, image.size) == ("JPEG", size)
    grey = name in ("grey PNG", "black and white")
    assert image.mode == ("L" if grey else "RGB")
    assert not image.getexif()
    # The same picture as `prepare` makes pixels of, but for two lossy steps of a smooth one.
    pixels = decode(Encoded("a", content))
    assert pixels.shape[0] == (1 if grey else 3)
    picture = Image.fromarray(pixels[0] if grey else np.moveaxis(pixels, 0, -1))
    expected = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), dtype=float)
    if name not in ("palette", "black and white"):  # which are not smooth
        assert np.abs(np.asarray(image, dtype=float) - expected).mean() < 3


def test_metadata_of_what_is_encoded_anew_are_left_out() -> None:
    content = written(smooth(96, 96), comment=b"secret", icc_profile=b"profile" * 9)
    found = stored(content).content
    assert b"secret" not in found
    assert b"profile" not in found


@pytest.mark.parametrize("name", ["RGB", "grey"])
def test_sums_are_those_of_the_pixels_that_are_stored(name: str) -> None:
    for content in (KEPT[name], written(opened(KEPT[name]).resize((70, 50)), "PNG")):
        found = stored(content)
        pixels = np.asarray(opened(found.content).convert("RGB"), dtype=np.int64).reshape(-1, 3)
        assert found.pixels == len(pixels)
        assert found.sums.tolist() == pixels.sum(axis=0).tolist()
        assert found.squares.tolist() == (pixels**2).sum(axis=0).tolist()
        assert found.digest == digest_of(found.content)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((70_000, 10), 32, (65_500, 9)),
        ((10, 70_000), 32, (9, 65_500)),
        ((70_000, 35), 32, (64_000, 32)),
        ((140_000, 70), 33, (65_500, 33)),
        ((200_000, 1), 32, (65_500, 1)),
        ((65_500, 3), 32, (65_500, 3)),
    ],
)
def test_a_picture_longer_than_a_jpeg_is_made_smaller(
    size: tuple[int, int], limit: int, expected: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    found = stored(written(Image.new("RGB", size, (10, 200, 30)), "PNG"), limit)
    assert opened(found.content).size == expected
    assert decode(Encoded("stored", found.content)).mean(axis=(1, 2)) == pytest.approx(
        [10, 200, 30], abs=2
    )
    assert capfd.readouterr() == ("", "")


DAMAGED = {
    "truncated": (KEPT["RGB"][:-40], "damaged image"),
    "truncated and filled up": (KEPT["RGB"][:-40] + bytes(40), "damaged image .*end marker"),
    "empty": (b"", "not a readable image"),
    "text": (b"GIF89a" + bytes(50), "not a readable image"),
    "16 bits": (
        written(Image.fromarray(np.zeros((4, 4), dtype=np.uint16)), "PNG"),
        "more than 8 bits a channel",
    ),
    "large": (written(Image.new("L", (4000, 3000))), "12 megapixels; allowed: up to 10"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    (tmp_path / "a.JPEG").write_bytes(content)
    with pytest.raises(UserError, match=rf"^picture: .*{message}"):
        stored(tmp_path / "a.JPEG")
    with pytest.raises(UserError, match=rf"^picture: .*{message}"):
        stored(content)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^picture: damaged image"):
        stored(tmp_path / "absent.jpg")
