"""The images of a run outside the pipeline: its own copy, and that it follows the source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smallbatch.errors import UserError
from smallbatch.pipeline import single

DIGITS = """dataset: {name: digits, source: digits, subset: 200, test_subset: 50}
grid: {studies: [s], batch_sizes: [4], base_lrs: [0.1], seeds: 1}
studies: {s: {model: alexnet, epochs: 1, weight_decay: 0}}
"""
Run = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Plans a run in an empty folder, without training it: its data set, and what was said."""
    monkeypatch.chdir(tmp_path)

    def call(dataset: str = "own") -> tuple[Any, list[str]]:
        said: list[str] = []
        planned: list[Any] = []

        def plan_only(plan: Callable[[], Any], *_: object, **__: object) -> Path:
            planned.append(plan())
            record = {"outcome": "diverged", "diverged_at": 1, "updates": 2}
            Path("runs.json").write_text(json.dumps({"runs": [record]}))
            return Path()

        monkeypatch.setattr(single, "train_and_track", plan_only)
        single.single_run(
            Path("params.yaml"), dataset, {"model": "alexnet", "epochs": 1, "weight_decay": 0.0},
            batch_size=4, base_lr=0.01, seed=0, device="cpu", say=said.append,
        )  # fmt: skip
        return planned[0].dataset, said

    return call


def params(source: str) -> None:
    Path("params.yaml").write_text(
        DIGITS.replace("digits, source: digits", f"own, source: {source}, path: img")
        .replace(", subset: 200, test_subset: 50", "")
    )  # fmt: skip


def add_images(*classes: str) -> None:
    for number, (split, name) in enumerate(
        (split, name) for split in ("train", "test") for name in classes
    ):
        folder = Path("img", split, name)
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (6, 24, 40, 3), dtype=np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{index}.png")


def test_images_that_changed_are_prepared_again(run: Run) -> None:
    params("image_folder")
    add_images("ant", "bee")
    first, said = run()
    assert (len(first.meta.classes), first.meta.height, first.meta.width) == (2, 24, 40)
    assert said == []
    again, said = run()
    assert (again.meta.fingerprint, said) == (first.meta.fingerprint, [])
    add_images("cat")
    changed, said = run()
    assert changed.meta.classes == ("ant", "bee", "cat")
    assert [line.startswith("img: changed since ") for line in said] == [True]
    assert run()[1] == []


def test_shards_that_changed_are_read_again(run: Run) -> None:
    params("parquet")
    add_images("ant", "bee")
    png = Path("img/train/ant/0.png").read_bytes()
    shutil.rmtree("img")
    for split in ("train", "test"):
        Path("img").mkdir(exist_ok=True)
        pq.write_table(pa.table({"img": [png] * 4, "label": [0, 1] * 2}), f"img/{split}.parquet")
    assert run()[0].meta.counts["train"] == 4
    pq.write_table(pa.table({"img": [png] * 6, "label": [0, 1] * 3}), "img/train.parquet")
    assert run()[0].meta.counts["train"] == 6


def test_images_that_are_gone_are_used_as_they_were(run: Run) -> None:
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    shutil.rmtree("img")
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert ["img: not there; the run uses the images as they were prepared" in s for s in said] == [
        True
    ]
    shutil.rmtree(".smallbatch")
    with pytest.raises(UserError, match=r"dataset\.path: found img, which is not a folder"):
        run()


def test_a_listing_that_was_not_written_costs_only_time(run: Run) -> None:
    """As when the process was killed between the images and their listing."""
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    [note] = Path(".smallbatch/data").glob("*/listing")
    note.unlink()
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert len(said) == 1
    assert run()[1] == []


def test_it_says_where_a_built_in_data_set_is_that_of_the_params(run: Run) -> None:
    data, said = run("digits")
    assert (data.meta.counts["train"], said) == (1437, [])
    Path("params.yaml").write_text(DIGITS)
    data, said = run("digits")
    assert data.meta.counts["train"] == 200
    assert said == [
        "--dataset digits: that of params.yaml, {source: digits, subset: 200, test_subset: 50}"
    ]
