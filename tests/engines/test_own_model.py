"""Own models, and frozen ones, under both engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smallbatch.config.params import parse_compute
from smallbatch.config.study import StudyConfig
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.kinds import serves
from smallbatch.engines.lanes.torch.lanes import TorchLanes
from smallbatch.engines.resident import load_resident
from smallbatch.errors import UserError
from smallbatch.placement.placement import place
from smallbatch.protocol.column import plan_column
from smallbatch.protocol.run import Run
from tests.engines.lanes.test_trainer import assert_equal, assert_near
from tests.noise import make_dataset
from tests.own_model import write_net

CASES = [
    ("nets.mine:Net", "batch", None),
    ("nets.mine:half_drawn", "batch", None),
    ("nets.mine:Net", "ghost", "head only"),
    ("nets.mine:half_drawn", "batch", "head only"),
    ("resnet8", "batch", "head only"),
    ("test_resnet", "batch", "head only"),
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_net(tmp_path))


def study(model: str, norm: str, freeze: str | None) -> StudyConfig:
    raw: dict[str, Any] = {"model": model, "norm": norm, "epochs": 2, "weight_decay": 1e-3}
    if norm == "ghost":
        raw["bn_batch_size"] = 2
    if freeze:
        raw |= {"freeze": freeze, "pretrained": "w.safetensors"}
    return StudyConfig.model_validate(raw)


@pytest.mark.parametrize(("model", "norm", "freeze"), CASES)
def test_lanes_equal_the_loop(model: str, norm: str, freeze: str | None) -> None:
    float64 = torch.float64
    size = 32 if model == "test_resnet" else 8
    data = load_resident(make_dataset(n=12, test=6, size=size), augment=False,
                         device=torch.device("cpu"), dtype=float64)  # fmt: skip
    plain = Run(study(model, norm, None), "f", 4, 0.01, 7)
    weights = loop.initial_model(plain, data).state_dict()
    save_file(weights, "w.safetensors")
    settings = study(model, norm, freeze)
    runs = [Run(settings, "f", 4, lr, seed) for lr in (2.0**-8, 2.0**-6) for seed in (0, 1)]
    for run, lane in zip(runs, stacked.train_lanes(runs, data, dtype=float64), strict=True):
        alone = loop.train(run, data, dtype=float64)
        assert_near(lane, alone, rtol=1e-8, atol=1e-9)
        if freeze:
            fixed = {key for key in alone.weights if not key.startswith("fc.")}
            for key in fixed:
                assert torch.equal(alone.weights[key], weights[key].to(alone.weights[key])), key
                assert torch.equal(lane.weights[key], alone.weights[key]), key
            assert alone.parameters == sum(weights[f"fc.{it}"].numel() for it in ("weight", "bias"))
            assert alone.final["population_test_accuracy"] is None


def test_frozen_weights_are_shared_between_lanes() -> None:
    data = load_resident(make_dataset(n=12, size=8), augment=False, device=torch.device("cpu"))
    plain = Run(study("resnet8", "batch", None), "f", 4, 0.01, 7)
    save_file(loop.initial_model(plain, data).state_dict(), "w.safetensors")
    runs = [Run(study("resnet8", "batch", "head only"), "f", 4, 0.01, seed) for seed in (0, 1)]
    lanes = TorchLanes(runs, data, torch.float32).net.lanes
    assert lanes.theta.shape == (2, 64 * 3 + 3)
    assert all("running" in name or "num_batches" in name for name in lanes.statistics)


@pytest.mark.parametrize("model", ["nets.mine:Net", "resnet8"])
def test_where_they_are_placed(model: str) -> None:
    data = make_dataset(n=12, size=8)
    freeze = "head only" if model == "resnet8" else None
    resident = load_resident(data, augment=False, device=torch.device("cpu"))
    plain = Run(study(model, "batch", None), "f", 4, 0.01, 7)
    save_file(loop.initial_model(plain, resident).state_dict(), "w.safetensors")
    settings = study(model, "batch", freeze)
    assert serves(settings, "cpu") == serves(settings, "cuda") == "vmap"
    column = plan_column("s", settings, data, batch_size=4, base_lrs=[0.01], seeds=[0, 1])
    for asked, engine in (("auto", "loop"), ("stacked", "stacked")):
        compute = parse_compute({"device": "cpu", "engine": asked}, "test")
        placement = place(column, compute, keep=False)
        assert placement.engine == engine
        told = "lanes by torch.vmap, it has no stacked layers"
        assert (placement.remark or "").endswith(told) == (engine == "stacked")


@pytest.mark.parametrize("edited", ["nets/layers.py", "w.safetensors"])
@pytest.mark.parametrize("train", [
    lambda run, data: loop.train(run, data), lambda run, data: stacked.train_lanes([run], data),
])  # fmt: skip
def test_a_run_is_not_trained_from_files_edited_since(edited: str, train: Any) -> None:
    data = make_dataset(n=12, size=8)
    resident = load_resident(data, augment=False, device=torch.device("cpu"))
    plain = Run(study("nets.mine:Net", "batch", None), "f", 4, 0.01, 7)
    weights = loop.initial_model(plain, resident).state_dict()
    save_file(weights, "w.safetensors")
    settings = study("nets.mine:Net", "batch", "head only")
    column = plan_column("s", settings, data, batch_size=4, base_lrs=[0.01], seeds=[0])
    loop.initial_model(column.runs[0], resident)
    if edited == "w.safetensors":
        save_file({name: it + 1 for name, it in weights.items()}, edited)
    else:
        Path(edited).write_text(Path(edited).read_text().replace("ReLU", "GELU"))
    with pytest.raises(UserError, match="its source or its weights changed since this training"):
        train(column.runs[0], resident)


@pytest.mark.parametrize("model", ["Base", "Tied", "InPlace", "Hooked", "Drawing"])
def test_what_a_model_does_beside_its_logits_changes_no_result(model: str) -> None:
    """The first and the second training in a process, and what is kept of each, are the same."""
    data = load_resident(
        make_dataset(n=12, size=8), augment=False, device=torch.device("cpu"), dtype=torch.float64
    )
    before = data.test.images.clone(), data.train.images.clone()
    run = Run(study(f"nets.odd:{model}", "none", None), "f", 4, 2.0**-8, 0)
    first, second = (loop.train(run, data, dtype=torch.float64) for _ in range(2))
    assert_equal(first, second)
    assert torch.equal(data.test.images, before[0])
    assert torch.equal(data.train.images, before[1])
    trained = loop.initial_model(run, data).to(torch.float64)
    trained.load_state_dict(first.weights)
    if model != "Drawing":
        scores = loop.evaluate(trained, data.test)
        assert scores == (first.rows[-1]["test_loss"], first.rows[-1]["test_accuracy"])
    if model in ("Base", "Tied", "InPlace"):
        (lane,) = stacked.train_lanes([run], data, dtype=torch.float64)
        assert_near(lane, first, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "freeze", "line"),
    [
        ("TiedHead", None, "its head middle shares 'fc.weight' with the rest"),
        ("UnusedHead", "head only", "do not depend on last, taken for its head"),
    ],
)
def test_a_head_that_is_none_is_refused(model: str, freeze: str | None, line: str) -> None:
    data = load_resident(make_dataset(n=12, size=8), augment=False, device=torch.device("cpu"))
    plain = Run(study(f"nets.odd:{model}", "none", None), "f", 4, 0.01, 7)
    save_file({k: v.clone() for k, v in loop.initial_model(plain, data).state_dict().items()},
              "w.safetensors")  # fmt: skip
    settings = plain.settings.model_copy(update={"pretrained": "w.safetensors", "freeze": freeze})
    with pytest.raises(UserError, match=line):
        loop.initial_model(dataclasses.replace(plain, settings=settings), data)
