"""What it takes to prepare many images that are kept encoded, to read them and to train on them.

    PYTHONPATH=src python -m benchmarks.scale.encoded                 # 200,000 into results/scale
    PYTHONPATH=src python -m benchmarks.scale.encoded --images 20000 --width 500 --out /tmp/scale

The images are JPEGs, variants of eight pictures, all different. Those of 300 pixels in width keep
their bytes; those of 500 are too large and encoded anew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smallbatch import machine
from smallbatch.config.dataset import DatasetConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.encoded import load_encoded
from smallbatch.data.prepare import prepare
from smallbatch.protocol.run import Run

_CLASSES = 100
_PICTURES = 8
_READS = 20_000
_M = 16  # of the training, at 224 pixels
_BITS = 24  # of a number; the steps of so many low frequencies


def main() -> int:
    """Measure, and write `encoded-<width>.json`."""
    parser = argparse.ArgumentParser(description="Preparing and reading many encoded images.")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=300, help="of an image, in pixels")
    parser.add_argument("--folder", type=Path, help="where they are made, and removed")
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    parser.add_argument("--updates", type=int, default=60, help="of the training")
    parser.add_argument("--child", choices=("prepare", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, updates = options.folder, options.updates
        found = prepared(folder) if options.child == "prepare" else trained(folder, updates)
        print(json.dumps(found))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="encoded-", dir=options.folder))
    try:
        written = draw(folder / "images", options.images, options.width)
        found = described(options.images, options.width, written)
        for child in ("prepare", "train"):
            command = [sys.executable, "-m", "benchmarks.scale.encoded", "--child", child]
            command += ["--folder", folder, "--updates", str(options.updates)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found |= json.loads(done.stdout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    (options.out / f"encoded-{options.width}.json").write_text(f"{text}\n")
    print(text)
    return 0


def draw(folder: Path, images: int, width: int) -> int:
    """Write images, one in fifty of each class for the test split; returns their bytes."""
    pictures = [picture(seed, width) for seed in range(_PICTURES)]
    classes = max(2, min(_CLASSES, images // 100))
    for split in ("train", "test"):
        for label in range(classes):
            (folder / split / f"n{label:08}").mkdir(parents=True)
    written = 0
    for number in range(images):
        split = "test" if number // classes % 50 == 0 else "train"
        content = varied(pictures[number % _PICTURES], number)
        path = folder / split / f"n{number % classes:08}" / f"{number:08}.JPEG"
        path.write_bytes(content)
        written += len(content)
    return written


def picture(seed: int, width: int) -> bytes:
    """A JPEG with an aspect ratio of 4 to 3, as blurred as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, width * 3 // 4), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def varied(jpeg: bytes, number: int) -> bytes:
    """Another picture for each number: bits of it are added to steps of the quantization."""
    changed = bytearray(jpeg)
    table = jpeg.index(b"\xff\xdb") + 5  # behind marker, length and the table's number
    for bit in range(_BITS):
        changed[table + 1 + bit] += number >> bit & 1
    return bytes(changed)


def prepared(folder: Path) -> dict[str, Any]:
    """Prepare and read them, in a process that does nothing else."""
    config = DatasetConfig(name="many", source="image_folder", path=str(folder / "images"),
                           image_size=224, storage="encoded", validation_fraction=0.02)  # fmt: skip
    before, began = peak(), time.monotonic()
    meta = prepare(config, folder, say=lambda line: print(line, file=sys.stderr))
    seconds, high = time.monotonic() - began, peak()
    times = os.times()
    directory = folder / "prepared/many"
    began = time.monotonic()
    data = load_encoded(directory)
    loaded = time.monotonic() - began
    rows = np.random.default_rng(0).integers(0, len(data.train), _READS).tolist()
    began = time.monotonic()
    for row in rows:
        data.train.read(row)
    reading = time.monotonic() - began
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    return {
        "counts": meta.counts,
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(meta.counts.values()) / seconds, 1),
        "cpu_seconds": round(times.user + times.system, 1),
        "peak_mebibytes": high >> 10,
        "mebibytes_before": before >> 10,
        "shards": sum(name.endswith(".parquet") for name in sizes),
        "bytes_of_shards": sum(size for name, size in sizes.items() if name.endswith(".parquet")),
        "bytes_of_index": sizes["index.npy"],
        "seconds_to_load": round(loaded, 3),
        "microseconds_per_read": round(1e6 * reading / _READS, 1),
    }


def trained(folder: Path, updates: int) -> dict[str, Any]:
    """The first updates of a training on them, in a process that does nothing else."""
    import torch

    from smallbatch.engines.loop import initial_model
    from smallbatch.engines.micro import GradientSum
    from smallbatch.engines.streamed import Streamed

    torch.set_num_threads(1)
    data = load_encoded(folder / "prepared/many")
    source = Streamed(data, augment=True, device=torch.device("cpu"))
    settings = StudyConfig(model="resnet10t", norm="batch", epochs=1, weight_decay=0, augment=True)
    run = Run(settings, data.meta.fingerprint, _M, 2.0**-8, 0)
    model = initial_model(run, source)
    gradient, began = GradientSum(model, "float32"), time.monotonic()
    high: list[int] = []
    for images, labels in islice(source.batches(0, 1, _M), updates):
        gradient.add(images, labels)
        high.append(peak())
    return {
        "training_images_per_second": round(_M * updates / (time.monotonic() - began), 1),
        "training_peak_mebibytes": high[-1] >> 10,
        "training_mebibytes_after_ten_updates": high[min(9, updates - 1)] >> 10,
    }


def described(images: int, width: int, written: int) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": machine.cpu_model(),
        "cores": machine.cores(),
        "load_average": round(os.getloadavg()[0], 1),
        "images": images,
        "width": width,
        "bytes_of_images": written,
    }


def peak() -> int:
    """The most memory that this process had so far, in KiB; of no other before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
