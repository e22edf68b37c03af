"""The profiles that go beyond the paper, at scale smoke: from the images to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from smallbatch.config import profiles
from tests.smoke import REAL, reproduced, runs_of, smoke, stand_in

pytestmark = pytest.mark.slow


def test_momentum_stands_beside_plain_sgd(tmp_path: Path) -> None:
    images = REAL / "cifar10"
    if not images.is_dir():
        images = stand_in(tmp_path / "data", 10, "label")
    params = smoke("momentum-cifar10", {"path": str(images)})
    project = reproduced(params, tmp_path / "project")
    runs = runs_of(project)
    assert set(runs.study) == set(params["grid"]["studies"])
    plain = set(runs[~runs.study.str.endswith("-momentum")].study)
    assert {f"{name}-momentum" for name in plain} == set(runs.study) - plain
    assert set(runs[runs.study == "resnet8-momentum"].base_lr) == {2.0**-11, 2.0**-9}
    assert set(runs.outcome) <= {"finished", "diverged"}
    # The studies without momentum are runs of the profile of the paper, to be found by their hash.
    paper = smoke("paper-cifar10", {"path": str(images)})
    for name in plain:
        own, others = params["studies"][name], paper["studies"][name]
        assert own == others


def test_a_model_is_fine_tuned_from_a_file(tmp_path: Path) -> None:
    params: dict[str, Any] = YAML(typ="safe").load(profiles.read("finetune", "smoke"))
    root = tmp_path / "project"
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for kind in ("a", "b", "c"):
            folder = root / f"data/images/{split}/{kind}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    weights = root / params["studies"]["all-weights"]["pretrained"]
    weights.parent.mkdir()
    before = timm.create_model("resnet18", num_classes=7).state_dict()
    save_file(before, weights)
    project = reproduced(params, root)
    runs = runs_of(project)
    assert set(runs.study) == {"all-weights", "head-only"}
    assert set(runs.outcome) == {"finished"}
    head = 512 * 3 + 3
    parameters = runs.groupby("study").parameters.first()
    assert parameters["head-only"] == head
    assert parameters["all-weights"] == head + sum(
        value.numel() for name, value in before.items()
        if not name.startswith("fc.") and "running" not in name and "num_batches" not in name
    )  # fmt: skip
    answers = json.loads((project.root / "reports/answers.json").read_text())["answers"]
    assert {answer["study"] for answer in answers} == {"all-weights", "head-only"}


def test_budgets_are_compared(tmp_path: Path) -> None:
    images = REAL / "cifar10"
    if not images.is_dir():
        images = stand_in(tmp_path / "data", 10, "label")
    params = smoke("budgets", {"path": str(images)})
    project = reproduced(params, tmp_path / "project")
    assert set(runs_of(project).study) == set(params["grid"]["studies"])
    table = pd.read_csv(project.root / "reports/tables/budgets.csv")
    assert set(table["family"]) == {"resnet8"}
    assert set(table["budget"]) == {"epochs", "updates", "seconds"}
