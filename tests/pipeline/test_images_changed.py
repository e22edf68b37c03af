"""Images that have changed are prepared anew, whatever settings they were once prepared with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.project import Project

PARAMS = """
dataset: {name: own, source: image_folder, path: img, subset: 8}
grid: {studies: [a], dependent: [], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}
advise: {studies: []}
studies:
  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}
"""


def draw(root: Path, seed: int) -> None:
    """Two classes of six images in both splits."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = root / "img" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(6):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.mark.slow
def test_dvc_does_not_bring_back_images_of_an_earlier_time(tmp_path: Path) -> None:
    project = Project(tmp_path, PARAMS)

    def prepared(subset: int, *options: str) -> str:
        (tmp_path / "params.yaml").write_text(PARAMS.replace("subset: 8", f"subset: {subset}"))
        project.call("dvc", "repro", *options, "prepare")
        return json.loads((tmp_path / "data/prepared/own/meta.json").read_text())["fingerprint"]

    draw(tmp_path, seed=1)
    first = prepared(8)
    prepared(6)
    draw(tmp_path, seed=2)
    prepared(6, "-f")
    assert prepared(8) != first
