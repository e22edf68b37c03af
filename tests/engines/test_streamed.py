"""Streamed batches: the right images, cropped as stated, whatever m and whoever decodes them."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smallbatch.config.study import StudyConfig
from smallbatch.data.encoded import EncodedDataset, EncodedSplit
from smallbatch.data.prepared import Dataset, Meta
from smallbatch.engines import decoding, loop
from smallbatch.engines.resident import load_resident
from smallbatch.engines.streamed import Streamed
from smallbatch.errors import UserError, WorkerLost
from smallbatch.protocol.column import plan_column
from smallbatch.protocol.crops import centre_crop, random_crop
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import epoch_examples
from tests.noise import make_dataset

SIDE = 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Photographs:
    """Stands for an encoded split: images in memory."""

    encoded: tuple[bytes, ...]
    labels: np.ndarray
    folder: Path = Path("photographs")

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, row: int) -> bytes:
        return self.encoded[row]


def gradient(index: int, height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, blue tells the image; uint8 (H, W, 3)."""
    pixels = np.empty((height, width, 3))
    pixels[..., 0] = 40 + 150 * np.arange(width) / width
    pixels[..., 1] = 40 + 150 * np.arange(height)[:, None] / height
    pixels[..., 2] = 40 + 8 * (index % 20)
    return pixels.round().astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def dataset(count: int, height: int = 40, width: int = 56, side: int = SIDE) -> EncodedDataset:
    def split(first: int, n: int) -> EncodedSplit:
        images = [jpeg(gradient(i, height, width)) for i in range(first, first + n)]
        labels = np.arange(n, dtype=np.int64) % 4
        return cast("EncodedSplit", Photographs(tuple(images), labels))

    meta = Meta(
        name="photographs", source="image_folder", classes=("a", "b", "c", "d"), channels=3,
        height=side, width=side, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
        counts={"train": count, "validation": 3, "test": 5}, fingerprint="f" * 64, short_side=40,
    )  # fmt: skip
    return EncodedDataset(meta, split(0, count), split(100, 5), split(200, 3))


def stream(data: Streamed, m: int, epochs: int = 2, start: int = 0) -> tuple[Tensor, Tensor]:
    batches = list(data.batches(3, epochs, m, start))
    assert {len(labels) for _, labels in batches} == {m}
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    return images, labels


def streamed(data: EncodedDataset, *, augment: bool = True, processes: int = 0) -> Streamed:
    return Streamed(data, augment=augment, device=CPU, processes=processes)


def pixels_of(data: EncodedDataset, images: Tensor) -> np.ndarray:
    """Undo the normalisation: (n, 3, H, W) in 0 … 255."""
    mean, std = (np.array(each)[:, None, None] for each in (data.meta.mean, data.meta.std))
    return (images.numpy() * std + mean) * 255


@pytest.mark.parametrize("processes", [0, 2])
def test_the_stream_is_the_same_whatever_m_and_whoever_decodes(processes: int) -> None:
    data = dataset(90)
    images, labels = stream(streamed(data), 3)
    others = streamed(data, processes=processes)
    for m in (2, 5, 90, 180):
        found, its_labels = stream(others, m)
        assert torch.equal(found, images[: len(found)])
        assert torch.equal(its_labels, labels[: len(found)])
        assert len(found) == 180 // m * m


@pytest.mark.parametrize(("m", "start"), [(3, 1), (7, 13), (64, 1), (90, 1)])
def test_it_goes_on_in_the_middle_of_an_epoch(m: int, start: int) -> None:
    data = streamed(dataset(90))
    images, labels = stream(data, m)
    rest, its_labels = stream(data, m, start=start)
    assert torch.equal(rest, images[start * m :])
    assert torch.equal(its_labels, labels[start * m :])


def test_images_are_cropped_mirrored_and_normalised_as_stated() -> None:
    data, height, width = dataset(30), 40, 56
    images, labels = stream(streamed(data), 10)
    found = pixels_of(data, images)
    for epoch in (0, 1):
        examples = epoch_examples(3, epoch, 30)
        for i, (row, flip) in enumerate(zip(examples.index, examples.flip, strict=True)):
            top, left, h, w = random_crop(3, epoch, int(row), height, width)
            # A linear function stays one; pixels are at their middles. The edges are flatter.
            inner = (np.arange(SIDE) + 0.5) / SIDE
            across = 40 + 150 * (left + inner * w - 0.5) / width
            down = 40 + 150 * (top + inner * h - 0.5) / height
            red, green, blue = found[30 * epoch + i]
            assert abs(red - (across[::-1] if flip else across))[:, 1:-1].max() < 3
            assert abs(green - down[:, None])[1:-1].max() < 3
            assert abs(blue - (40 + 8 * (row % 20))).max() < 3
            assert labels[30 * epoch + i] == row % 4


def test_without_augmentation_and_in_evaluation_it_is_the_middle() -> None:
    data = dataset(30)
    _, left, _, w = centre_crop(40, 56)
    inner = (np.arange(SIDE) + 0.5) / SIDE
    across = 40 + 150 * (left + inner * w - 0.5) / 56
    source = streamed(data, augment=False)
    validation = source.validation
    assert validation is not None
    for split, first, n in ((source.test, 100, 5), (validation, 200, 3), (source.train, 0, 30)):
        batches = list(split.batches(4))
        assert [len(labels) for _, labels in batches] == [4] * (n // 4) + [n % 4] * bool(n % 4)
        found = pixels_of(data, torch.cat([images for images, _ in batches]))
        assert abs(found[:, 0] - across)[:, :, 1:-1].max() < 3
        assert np.allclose(found[:, 2, 0, 0], [40 + 8 * (i % 20) for i in range(first, first + n)],
                           atol=3)  # fmt: skip
    middles = torch.cat([images for images, _ in source.train.batches(64)])
    images, _ = stream(source, 30, epochs=1)
    assert torch.equal(images, middles[torch.from_numpy(epoch_examples(3, 0, 30).index)])
    assert torch.equal(source.every(7), middles[::7])


def test_a_run_is_the_one_on_the_same_images_in_memory() -> None:
    """Where nothing is resized, the middles can be cut by Pillow and held as arrays."""
    data = dataset(24, height=24, width=32, side=21)  # 21 is 0.875 of 24

    def cut(split: EncodedSplit | None) -> np.ndarray:
        images = [np.asarray(Image.open(io.BytesIO(each))) for each in cast("Any", split).encoded]
        top, left, h, w = centre_crop(24, 32)
        return np.stack(images)[:, top : top + h, left : left + w].transpose(0, 3, 1, 2).copy()

    held = Dataset(
        data.meta, cut(data.train), data.train.labels, cut(data.test), data.test.labels,
        cut(data.validation), cast("Any", data.validation).labels,
    )  # fmt: skip
    settings = StudyConfig(model="resnet8", norm="batch", epochs=2, weight_decay=1e-4)
    run = Run(settings, data.meta.fingerprint, 4, 2.0**-6, 5)
    results = [
        loop.train(run, source)
        for source in (
            streamed(data, augment=False),
            load_resident(held, augment=False, device=CPU),
        )
    ]
    one, other = results
    assert one.rows == other.rows
    assert one.final == other.final
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)


@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_that_cannot_be_decoded_is_told_in_a_line(processes: int) -> None:
    data = dataset(10)
    damaged = list(cast("Any", data.train).encoded)
    damaged[6] = damaged[6][:300]
    split = replace(cast("Any", data.train), encoded=tuple(damaged))
    source = streamed(replace(data, train=split), processes=processes)
    with pytest.raises(UserError, match=r"^image 6 of photographs: [^\n]+$"):
        stream(source, 5)


def children() -> set[str]:
    """The processes that this one has started; earlier tests may have left some."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def killed_in_the_middle_of_an_answer(
    _dataset: EncodedDataset, pipe: Connection, _parent: int
) -> None:
    """What the process that trains sees of a decoder that was killed while it wrote."""
    pipe.recv()
    os.write(pipe.fileno(), struct.pack("!i", 1_000_000) + bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)


KILLED = "a process that decodes images was killed"


@pytest.mark.parametrize("processes", [1, 3])
def test_a_decoder_that_is_killed_ends_the_training_in_a_line(processes: int) -> None:
    source, before = streamed(dataset(3000), processes=processes), children()
    batches = source.batches(0, 1, 2)
    next(batches)
    os.kill(int(max(children() - before, key=int)), signal.SIGKILL)
    with pytest.raises(WorkerLost, match=KILLED):
        for _ in batches:
            pass
    with pytest.raises(WorkerLost, match=KILLED):  # nor is it waited for when asked again
        stream(source, 2)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_decoder_that_is_killed_while_it_answers_is_not_waited_for(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_serve", killed_in_the_middle_of_an_answer)
    with pytest.raises(WorkerLost, match=KILLED):
        stream(streamed(dataset(3000), processes=processes), 2)


def test_a_process_whose_decoder_was_killed_ends() -> None:
    """Decoders ignore SIGTERM: who waits for the others at its end has to kill them."""
    script = """
import os, signal
from tests.engines.test_streamed import children, dataset, streamed
batches = streamed(dataset(3000), processes=3).batches(0, 1, 2)
next(batches)
os.kill(int(min(children(), key=int)), signal.SIGKILL)
list(batches)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert KILLED in ended.stderr.splitlines()[-1]


def test_a_worker_ends_its_decoders_though_another_process_made_their_source() -> None:
    source = streamed(dataset(300), processes=2)

    def work() -> None:
        batches = source.batches(0, 1, 2)
        next(batches)
        batches.close()

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0


def test_decoders_end_when_nobody_wants_their_images() -> None:
    batches, before = streamed(dataset(3000), processes=2).batches(0, 1, 2), children()
    next(batches)
    assert len(children() - before) == 2
    batches.close()
    deadline = time.monotonic() + 10
    while children() - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_images_are_as_timm_states_them_for_a_model() -> None:
    settings = StudyConfig(
        model="resnet10t", norm="batch", epochs=1, weight_decay=0, input="timm", augment=True
    )
    column = plan_column(
        "its_own", settings, dataset(8), batch_size=2, base_lrs=[2.0**-8], seeds=[0]
    )
    meta = column.dataset.meta
    assert (meta.height, meta.width, meta.crop_ratio) == (176, 176, 0.875)
    source = streamed(cast("EncodedDataset", column.dataset))
    assert source.image == (3, 176, 176)
    images, _ = next(source.test.batches(5))
    assert images.shape == (5, 3, 176, 176)
    blue = images[:, 2, 88, 88] * 0.225 + 0.406
    assert torch.allclose(blue * 255, torch.tensor([40.0 + 8 * i for i in range(5)]), atol=3)
    plain = settings.model_copy(update={"input": None})
    assert column.runs[0].hash != replace(column.runs[0], settings=plain).hash


def test_images_in_memory_cannot_be_as_timm_states_them() -> None:
    settings = StudyConfig(model="resnet10t", norm="batch", epochs=1, weight_decay=0, input="timm")
    with pytest.raises(UserError, match=r"studies\.x\.input: .* dataset\.storage: encoded"):
        plan_column("x", settings, make_dataset(), batch_size=2, base_lrs=[0.1], seeds=[0])
