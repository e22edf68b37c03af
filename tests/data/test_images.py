import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smallbatch.data import images as data_images
from smallbatch.data.images import Encoded, decode, decode_all, resize_all
from smallbatch.errors import UserError


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def random_image(seed: int, *shape: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


SAMPLES = {
    "PNG": encode(random_image(0, 9, 7, 3), "PNG"),
    "JPEG": encode(random_image(1, 9, 7, 3), "JPEG"),
    "WEBP": encode(random_image(2, 9, 7, 3), "WEBP", lossless=True),
    "GREY": encode(random_image(3, 9, 7), "PNG"),
}


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_pixels_come_back_as_they_were(
    image_format: str, options: dict[str, bool]
) -> None:
    image = random_image(5, 6, 4, 3)
    pixels = decode(Encoded("x", encode(image, image_format, **options)))
    assert pixels.shape == (3, 6, 4)
    np.testing.assert_array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


def test_grey_and_bilevel_have_one_channel() -> None:
    grey = random_image(6, 5, 5)
    np.testing.assert_array_equal(decode(Encoded("x", encode(grey, "PNG")))[0], np.asarray(grey))
    with_alpha = encode(grey.convert("LA"), "PNG")
    np.testing.assert_array_equal(decode(Encoded("x", with_alpha))[0], np.asarray(grey))
    bilevel = decode(Encoded("x", encode(grey.convert("1"), "PNG")))
    assert bilevel.shape == (1, 5, 5)
    assert set(np.unique(bilevel)) <= {0, 255}


def test_palette_with_transparency_becomes_colour_without_a_warning() -> None:
    image = random_image(7, 8, 8, 3).quantize(8)
    content = encode(image, "PNG", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(
        decode(Encoded("x", content)), np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    )


def test_exif_orientation_is_applied() -> None:
    image = random_image(8, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    pixels = decode(Encoded("x", encode(image, "PNG", exif=exif)))
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(image), -1).transpose(2, 0, 1))


def test_halving_averages_over_the_pixels_it_drops() -> None:
    """An antialiased filter keeps the mean of a checkerboard; point sampling would not."""
    checkerboard = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode(Encoded("x", encode(Image.fromarray(checkerboard), "PNG")), image_size=8)
    assert pixels.shape == (1, 8, 8)
    assert np.abs(pixels[0, 1:-1, 1:-1].astype(int) - 128).max() <= 1


def test_resized_arrays_equal_resized_files() -> None:
    for shape in ((1, 9, 7), (3, 9, 7)):
        array = np.random.default_rng(9).integers(0, 256, shape, dtype=np.uint8)
        image = Image.fromarray(array[0] if shape[0] == 1 else array.transpose(1, 2, 0))
        expected = decode(Encoded("x", encode(image, "PNG")), image_size=5)
        np.testing.assert_array_equal(resize_all(array[np.newaxis], 5)[0], expected)


def test_order_is_kept_over_many_chunks() -> None:
    images = [np.full((2, 2), index % 256, dtype=np.uint8) for index in range(1000)]
    encoded = (
        Encoded(str(i), encode(Image.fromarray(image), "PNG")) for i, image in enumerate(images)
    )
    np.testing.assert_array_equal(decode_all(encoded, 1000)[:, 0], np.stack(images))


@pytest.mark.parametrize("order", [("GREY", "PNG", "GREY"), ("PNG", "GREY", "GREY")])
def test_one_colour_image_makes_all_colour(order: tuple[str, ...]) -> None:
    images = decode_all([Encoded(name, SAMPLES[name]) for name in order], 3)
    assert images.shape == (3, 3, 9, 7)
    for name, pixels in zip(order, images, strict=True):
        alone = decode(Encoded(name, SAMPLES[name]))
        np.testing.assert_array_equal(pixels, np.broadcast_to(alone, (3, 9, 7)))


def test_all_grey_stays_one_channel() -> None:
    assert decode_all([Encoded("a", SAMPLES["GREY"])] * 3, 3).shape == (3, 1, 9, 7)


def test_different_sizes_need_image_size() -> None:
    encoded = [
        Encoded("a.png", SAMPLES["PNG"]),
        Encoded("b.png", encode(random_image(1, 3, 4), "PNG")),
    ]
    with pytest.raises(UserError, match=r"b\.png: found 3x4 .* a\.png has 9x7.*image_size"):
        decode_all(encoded, 2)
    assert decode_all(encoded, 2, image_size=4).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_truncated_image_names_the_file(name: str) -> None:
    with pytest.raises(UserError, match=r"^some/file: "):
        decode(Encoded("some/file", SAMPLES[name][: len(SAMPLES[name]) * 2 // 3]))


@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a" + bytes(40)])
def test_not_an_image(content: bytes) -> None:
    with pytest.raises(UserError, match="some/file: not a readable image; allowed: PNG"):
        decode(Encoded("some/file", content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(UserError, match="some/file: damaged image"):
            decode(Encoded("some/file", path))


def written(
    colour_type: int, depth: int, size: tuple[int, int], rows: bytes, *more: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:  # fmt: skip
    """A PNG file, as its standard says, with right checksums; ``more`` goes before the pixels."""
    width, height = (side.to_bytes(4, "big") for side in size)
    header = width + height + bytes([depth, colour_type, 0, 0, interlaced])
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused_rather_than_clipped(
    colour_type: int, channels: int
) -> None:
    for depth, row in ((8, b"\0" + b"ab" * channels), (16, b"\0" + b"abcd" * channels)):
        deep = Encoded("deep.png", written(colour_type, depth, (2, 2), row * 2))
        if depth == 8:
            assert decode(deep).shape[1:] == (2, 2)
        else:
            with pytest.raises(UserError, match=r"^deep\.png: found more than 8 bits a channel"):
                decode(deep)


@pytest.mark.parametrize("palette", [b"", b"\xff\0\0", b"\xff\0\0\0\xff\0"])
def test_colours_that_a_palette_lacks_are_not_taken_for_black(palette: bytes) -> None:
    """The pixels name colours 1 and 2."""
    rows = b"\0\1\2\0\2\1"
    right = written(3, 8, (2, 2), rows, (b"PLTE", palette + bytes(9 - len(palette))))
    assert decode(Encoded("x", right)).shape == (3, 2, 2)
    lacking = written(3, 8, (2, 2), rows, *([(b"PLTE", palette)] if palette else []))
    line = (
        f"some/file: damaged image .its pixels name colour 2, its palette has {len(palette) // 3}"
    )
    with pytest.raises(UserError, match=line):
        decode(Encoded("some/file", lacking))


@pytest.mark.parametrize("missing", [6, 12])
def test_a_file_with_fewer_rows_than_it_says_is_damaged(missing: int) -> None:
    rows = (b"\0" + b"\xc8" * 5) * 3
    assert decode(Encoded("x", written(0, 8, (5, 3), rows))).min() == 200
    with pytest.raises(
        UserError, match=r"some/file: damaged image \(it has fewer pixels than its header"
    ):
        decode(Encoded("some/file", written(0, 8, (5, 3), rows[:-missing])))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 3), (9, 9)])
def test_interlaced_and_black_files_are_read_if_they_are_whole(size: tuple[int, int]) -> None:
    width, height = size
    black = written(0, 8, size, bytes((width + 1) * height))
    assert not decode(Encoded("x", black)).any()
    for depth in (1, 2, 4, 8):  # the picture's rows by the seven passes of the standard
        passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2),
                  (0, 2, 1, 2), (1, 2, 0, 1))  # fmt: skip
        content = row = b""
        for top, down, left, across in passes:
            columns = len(range(left, width, across))
            if columns:
                row = b"\0" + b"\xff" * ((columns * depth + 7) // 8)
                content += row * len(range(top, height, down))
        pixels = decode(Encoded("x", written(0, depth, size, content, interlaced=True)))
        assert pixels.shape == (1, height, width)
        assert pixels.min() == 255
        with pytest.raises(UserError, match=r"damaged image .(it has fewer pixels|.*truncated)"):
            decode(Encoded("x", written(0, depth, size, content[: -len(row)], interlaced=True)))


def test_of_an_animation_the_first_frame_is_taken_black_or_not() -> None:
    for first in (random_image(5, 6, 4, 3), Image.new("RGB", (4, 6))):
        content = encode(first, "PNG", save_all=True, append_images=[random_image(6, 6, 4, 3)])
        assert b"fdAT" in content
        pixels = decode(Encoded("x", content))
        np.testing.assert_array_equal(pixels, np.asarray(first).transpose(2, 0, 1))


def test_decompression_bomb_is_refused() -> None:
    """A header that claims 60,000×60,000 pixels must not allocate them."""
    content = bytearray(SAMPLES["PNG"])
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(UserError, match=r"bomb\.png: "):
        decode(Encoded("bomb.png", bytes(content)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(SAMPLES)), data=st.data())
def test_corrupted_bytes_decode_or_raise_user_error(name: str, data: st.DataObject) -> None:
    content = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        pixels = decode(Encoded("some/file", bytes(content[:cut])), image_size=4)
    except UserError as error:
        message = str(error)
    else:
        message = "some/file: decoded"
        assert pixels.shape in ((1, 4, 4), (3, 4, 4))
    assert message.startswith("some/file: ")
    assert "\n" not in message


TURNED = Image.Exif()
TURNED[0x0112] = 6  # lies on its left side
BROKEN_EXIF = b"Exif\0\0" + b"\0\x08\0\x02\x01\x12\0\x03" * 4
UNREADABLE = {
    "PNG with a colour profile of 2 MB": ("PNG", {"icc_profile": b"\0" * 2_000_000}),
    "PNG with broken EXIF": ("PNG", {"exif": BROKEN_EXIF}),
    "JPEG with broken EXIF": ("JPEG", {"exif": BROKEN_EXIF, "quality": 95}),
    "WebP with broken EXIF": ("WEBP", {"exif": BROKEN_EXIF, "lossless": True}),
    "PNG with a colour profile that is none": ("PNG", {"icc_profile": b"x"}),
}


@pytest.mark.parametrize("case", sorted(UNREADABLE))
def test_metadata_that_cannot_be_read_is_no_damage(case: str) -> None:
    image_format, options = UNREADABLE[case]
    image = random_image(4, 9, 7, 3)
    plain = {key: value for key, value in options.items() if key not in ("exif", "icc_profile")}
    expected = decode(Encoded("x", encode(image, image_format, **plain)))
    with_metadata = encode(image, image_format, **options)
    np.testing.assert_array_equal(decode(Encoded("x", with_metadata)), expected)


def test_text_that_would_unpack_to_gigabytes_is_not_unpacked() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "0" * 3_000_000, zip=True)
    image = random_image(5, 4, 4, 3)
    expected = np.asarray(image).transpose(2, 0, 1)
    content = encode(image, "PNG", pnginfo=info)
    np.testing.assert_array_equal(decode(Encoded("x", content)), expected)


def test_an_orientation_beside_an_unreadable_profile_is_applied() -> None:
    image = random_image(6, 9, 7, 3)
    content = encode(image, "PNG", icc_profile=b"\0" * 2_000_000, exif=TURNED)
    expected = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(Encoded("x", content)), expected)


def test_pixels_behind_unreadable_metadata_are_still_checked() -> None:
    content = bytearray(encode(random_image(7, 9, 7, 3), "PNG", icc_profile=b"\0" * 2_000_000))
    content[content.index(b"IDAT") + 20] ^= 1
    with pytest.raises(UserError, match=r"some/file: damaged image \(chunk IDAT is damaged\)"):
        decode(Encoded("some/file", bytes(content)))


def test_a_large_picture_is_named_with_its_size_and_the_option() -> None:
    """192 megapixels; pixels are not needed to see it."""
    content = bytearray(SAMPLES["PNG"])
    content[16:24] = (16_000).to_bytes(4, "big") + (12_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError) as caught:
        decode_all([Encoded("large.png", bytes(content))], 1)
    assert str(caught.value) == (
        "large.png: found 16000x12000 pixels, 192 megapixels; allowed: up to 179, "
        "or set dataset.max_megapixels"
    )


def test_the_option_raises_the_limit_and_pillows_own_does_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large = Encoded("large.png", encode(Image.new("L", (2000, 1000)), "PNG"))
    with pytest.raises(UserError, match="2 megapixels; allowed: up to 1, "):
        decode(large, 4, max_megapixels=1)
    assert decode(large, 4, max_megapixels=2).shape == (1, 4, 4)
    assert decode_all([large], 1, 4).shape == (1, 1, 4, 4)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(UserError, match=r"some/file: .*found a FIFO, allowed: a regular file"):
        decode(Encoded("some/file", tmp_path / "fifo.png"))


@pytest.mark.parametrize("name", sorted(SAMPLES))
@pytest.mark.parametrize("has_hole", [True, False])
def test_a_file_larger_than_any_picture_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, has_hole: bool
) -> None:
    """A file of some hundred bytes on disk may be as large as one likes."""
    path = tmp_path / "x"
    path.write_bytes(SAMPLES[name])
    monkeypatch.setattr(data_images, "free_memory", lambda: 3 * 2**26 + 2)
    with path.open("r+b") as file:
        file.truncate(300 * 2**20 if has_hole else 2**26 + 1)
    line = (
        r"^x: found 300 MiB; allowed: up to 263, more than 1 megapixels take, or set dataset\.max"
        if has_hole
        else r"^x: not enough memory to decode it, of 64 MiB$"
    )
    for content in (path, path.read_bytes()):
        with pytest.raises(UserError, match=line):
            decode(Encoded("x", content), max_megapixels=1)


def test_too_many_pixels_for_the_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_images, "free_memory", lambda: 2**30)
    encoded = [Encoded("a", SAMPLES["PNG"])]
    line = "400 images of 3x1024x1024 need 1.17 GiB of memory, more than there is; .*image_size"
    with pytest.raises(UserError, match=line):
        decode_all(encoded, 400, 1024)
    with pytest.raises(UserError, match=r"^dataset: 2000 images of 1x1024x1024 need 1\.95 GiB"):
        resize_all(np.zeros((2000, 1, 8, 8), dtype=np.uint8), 1024)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_a_jpeg_that_was_copied_in_part_is_damaged(options: dict[str, bool]) -> None:
    """What is left of it may be zeros, which libjpeg takes for pixels."""
    whole = encode(random_image(1, 64, 64, 3), "JPEG", **options)
    half = whole[: len(whole) // 2]
    for content in (half, half + bytes(len(whole) - len(half)), whole[:-2] + bytes(100)):
        with pytest.raises(UserError, match="x: damaged image"):
            decode(Encoded("x", content))
    expected = decode(Encoded("x", whole))
    np.testing.assert_array_equal(decode(Encoded("x", whole + b"trailer")), expected)


def test_the_end_of_a_thumbnail_is_not_that_of_its_jpeg() -> None:
    thumbnail = encode(random_image(1, 8, 8, 3), "JPEG")
    whole = encode(random_image(2, 64, 64, 3), "JPEG", exif=b"Exif\0\0" + thumbnail)
    assert decode(Encoded("x", whole)).shape == (3, 64, 64)
    with pytest.raises(UserError, match="x: damaged image"):
        decode(Encoded("x", whole[:3000] + bytes(len(whole) - 3000)))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    """Each of its scans, of a few bytes, would take a pass over the whole picture."""
    whole = encode(random_image(1, 64, 64, 3), "JPEG", progressive=True)
    assert decode(Encoded("x", whole)).shape == (3, 64, 64)
    last, end = whole.rindex(b"\xff\xda"), whole.rindex(b"\xff\xd9")
    endless = whole[:last] + 1000 * whole[last:end] + whole[end:]
    with pytest.raises(UserError, match=r"x: damaged image .it has more than 100 scans"):
        decode(Encoded("x", endless))
