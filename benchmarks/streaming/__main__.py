"""How many photographs a core decodes, crops and resizes in a second, at 224 pixels.

    PYTHONPATH=src python -m benchmarks.streaming --photographs FOLDER   # into results/scale

FOLDER holds photographs as Parquet, in columns ``image`` and ``label`` and splits ``train`` and
``validation``. They are measured as they are, and enlarged to 341×256, the size of a photograph of
ImageNet that is kept with a short side of 256.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import psutil
import torch
from PIL import Image

from smallbatch import machine
from smallbatch.config.params import parse_dataset
from smallbatch.data.encoded import EncodedDataset, EncodedSplit, load_encoded
from smallbatch.data.prepare import prepare
from smallbatch.engines.streamed import Streamed

SIDE, ENLARGED, QUALITY = 224, (341, 256), 95
BATCH = 64
FLOAT32_OF_AN_H100 = 67e12  # operations a second, from NVIDIA's data sheet of the SXM module
RESNET50 = 24.6e9  # operations of an image's forward and backward pass at 224 pixels


def main() -> int:
    """Measure, and write `streaming.json`."""
    parser = argparse.ArgumentParser(description="How many images a core decodes in a second.")
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        as_they_are = prepared(options.photographs, folder / "one", source="parquet")
        enlarge(as_they_are, folder / "photographs")
        enlarged = prepared(folder / "photographs", folder / "other", source="image_folder")
        for title, dataset in (("as published", as_they_are), ("enlarged", enlarged)):
            rate = images_per_core_second(dataset, options.seconds)
            kilobytes = float(dataset.train.length.mean()) / 1000
            rows.append({"photographs": title, "kilobytes": round(kilobytes, 1),
                         "images_per_core_second": round(rate)})  # fmt: skip
            print(rows[-1], flush=True)
    bound = FLOAT32_OF_AN_H100 / RESNET50
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": machine.cpu_model(),
        "cores": machine.cores(),
        "torch": torch.__version__,
        "side": SIDE,
        "rows": rows,
        "most_images_per_second_of_an_h100_in_float32": round(bound),
    }
    (options.out / "streaming.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


def prepared(path: Path, root: Path, *, source: str) -> EncodedDataset:
    """Photographs as the product keeps them."""
    raw: dict[str, object] = {"name": "photographs", "source": source, "path": str(path),
           "storage": "encoded", "image_size": SIDE, "short_side": 256}  # fmt: skip
    if source == "parquet":
        raw["image_column"] = "image"
    prepare(parse_dataset(raw, "benchmark"), root)
    return load_encoded(root / "prepared" / "photographs")


def enlarge(dataset: EncodedDataset, folder: Path) -> None:
    """Write the photographs enlarged, in a folder for each split and class."""

    def write(split: EncodedSplit, name: str) -> None:
        for row in range(len(split)):
            path = folder / name / f"class{split.labels[row]}" / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(io.BytesIO(split.read(row))) as image:
                large = image.convert("RGB").resize(ENLARGED, Image.Resampling.BICUBIC)
                large.save(path, "JPEG", quality=QUALITY)

    write(dataset.train, "train")
    write(dataset.test, "test")


def images_per_core_second(dataset: EncodedDataset, seconds: float) -> float:
    """Of random crops, for each second of processor time of the process that decodes them."""
    source = Streamed(dataset, augment=True, device=torch.device("cpu"), processes=1)
    batches = source.batches(0, 10_000, BATCH)
    for _ in islice(batches, 8):
        pass
    (decoder,) = psutil.Process().children()
    images, start, used = 0, time.perf_counter(), decoder.cpu_times()
    while time.perf_counter() - start < seconds:
        next(batches)
        images += BATCH
    now = decoder.cpu_times()
    batches.close()
    return images / (now.user + now.system - used.user - used.system)


if __name__ == "__main__":
    raise SystemExit(main())
