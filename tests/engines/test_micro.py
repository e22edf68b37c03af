"""A step in parts is the undivided step: weights, running statistics, sums, divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import loop
from smallbatch.engines.resident import Resident, load_resident
from smallbatch.errors import UserError
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.run import Run
from tests.noise import make_dataset
from tests.own_model import write_net

OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"optimizer": "momentum"},
    "adamw": {"optimizer": "adamw"},
}
# m, BN batch, micro-batch. Parts are equal; or the last is smaller, is one sub-batch, is a rest of
# one, or holds a sub-batch and a rest.
CASES = [
    (12, None, 4),
    (12, None, 5),
    (12, 4, 4),
    (12, 4, 8),
    (11, 4, 4),
    (11, 4, 8),
    (15, 4, 8),
]


def study(norm: str, **changes: Any) -> StudyConfig:
    settings = {"model": "resnet8", "norm": norm, "epochs": 3, "weight_decay": 1e-3, "warmup": 0.2}
    return StudyConfig.model_validate(settings | changes)


def resident(data: Dataset, dtype: torch.dtype = torch.float64) -> Resident:
    return load_resident(data, augment=False, device=torch.device("cpu"), dtype=dtype)


def assert_near(one: RunResult, other: RunResult, rtol: float, atol: float) -> None:
    assert one.outcome == other.outcome
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        torch.testing.assert_close(value, other.weights[name], rtol=rtol, atol=atol, msg=name)
    for row, its in zip(one.rows, other.rows, strict=True):
        assert row == pytest.approx(its, rel=max(rtol, 1e-9), nan_ok=True)


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize(("m", "bn", "size"), CASES)
def test_a_step_in_parts_is_the_undivided_step(
    noise: Dataset, optimizer: str, m: int, bn: int | None, size: int
) -> None:
    rate = 2.0**-9 if optimizer == "adamw" else 2.0**-6
    data = resident(noise)
    for norm in ("none", "group") if bn is None else ("ghost",):
        run = Run(study(norm, bn_batch_size=bn, **OPTIMISERS[optimizer]), "f", m, rate, seed=3)
        whole = loop.train(run, data, dtype=torch.float64)
        parts = loop.train(run, data, dtype=torch.float64, micro_batch=size)
        assert whole.rows[-1]["updates"] == 69 // m
        assert norm != "ghost" or any("running_var" in name for name in whole.weights)
        assert_near(whole, parts, rtol=1e-10, atol=1e-12)
        # They are no copies of one another: sums were taken in another order.
        assert any(not torch.equal(it, parts.weights[name]) for name, it in whole.weights.items())


@pytest.mark.parametrize("norm", ["none", "ghost"])
def test_in_float32_it_is_within_rounding(noise: Dataset, norm: str) -> None:
    bn = 2 if norm == "ghost" else None
    run = Run(study(norm, bn_batch_size=bn), "f", 12, 2.0**-8, seed=0)
    data = resident(noise, torch.float32)
    whole, parts = loop.train(run, data), loop.train(run, data, micro_batch=8)
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, parts.weights[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_part_of_at_least_the_batch_is_the_batch_to_the_bit(noise: Dataset) -> None:
    run = Run(study("ghost", bn_batch_size=4), "f", 12, 2.0**-6, seed=0)
    data = resident(noise, torch.float32)
    whole = loop.train(run, data)
    for size in (12, 100):
        same = loop.train(run, data, micro_batch=size)
        assert repr(same.rows) == repr(whole.rows)
        for name, value in whole.weights.items():
            assert torch.equal(value, same.weights[name])


def test_divergence_is_seen_at_the_same_update(noise: Dataset) -> None:
    data = resident(noise, torch.float32)
    for rate in (2.0**3, 2.0**6, 2.0**100):
        run = Run(study("none", warmup=0.0, epochs=5), "f", 12, rate, seed=0)
        whole, parts = loop.train(run, data), loop.train(run, data, micro_batch=5)
        assert (parts.outcome, parts.diverged_at) == (whole.outcome, whole.diverged_at)
        assert whole.outcome == "diverged"


def test_fewer_activations_are_in_memory_at_a_time(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    evaluated: list[int] = []

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(72, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (seen if self.training else evaluated).append(len(x))
            return self.fc(x.flatten(1))

    monkeypatch.setattr(loop, "build_model", lambda *_, **__: Counts())
    run = Run(study("none", epochs=1), "f", 12, 2.0**-6, seed=0)
    loop.train(run, resident(noise, torch.float32), micro_batch=5)
    assert seen == [5, 5, 2]
    assert max(evaluated) == 5


@pytest.mark.parametrize("model", ["InPlace", "Tied"])
def test_models_that_work_in_place_or_share_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(write_net(tmp_path))
    run = Run(study("none", model=f"nets.odd:{model}"), "f", 12, 2.0**-6, seed=3)
    data = resident(make_dataset(size=8))
    whole = loop.train(run, data, dtype=torch.float64)
    parts = loop.train(run, data, dtype=torch.float64, micro_batch=5)
    assert_near(whole, parts, rtol=1e-10, atol=1e-12)


def test_batch_norm_that_is_frozen_has_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = resident(make_dataset(size=8))
    other = Run(study("batch"), "f", 12, 2.0**-6, seed=1)
    save_file(loop.initial_model(other, data).state_dict(), "w.safetensors")
    settings = study("batch", pretrained="w.safetensors", freeze="head only")
    run = Run(settings, "f", 12, 2.0**-6, seed=3)
    whole = loop.train(run, data, dtype=torch.float64)
    parts = loop.train(run, data, dtype=torch.float64, micro_batch=5)
    assert_near(whole, parts, rtol=1e-10, atol=1e-12)


def test_each_part_draws_its_own_dropout(noise: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documented: with random layers the training is another one, which repeats to the bit."""
    drawn: list[torch.Tensor] = []

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(72, 3), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.drop(torch.ones_like(x).flatten(1)) * x.flatten(1)
            if self.training:
                drawn.append((x == 0).clone())
            return self.fc(x)

    monkeypatch.setattr(loop, "build_model", lambda *_, **__: Drops())
    run = Run(study("none", epochs=1), "f", 12, 2.0**-6, seed=0)
    data = resident(noise, torch.float32)
    loop.train(run, data, micro_batch=6)
    assert len(drawn) == 2
    assert not torch.equal(drawn[0], drawn[1])
    loop.train(run, data, micro_batch=6)
    assert torch.equal(torch.cat(drawn[:2]), torch.cat(drawn[2:]))


@pytest.mark.parametrize(
    ("model", "norm"), [("resnet8", "batch"), ("alexnet", "batch_conv"), ("nets.mine:Net", "batch")]
)
def test_batch_norm_over_the_whole_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, norm: str
) -> None:
    monkeypatch.chdir(write_net(tmp_path))
    size = 32 if model == "alexnet" else 8
    run = Run(study(norm, model=model), "f", 12, 2.0**-6, seed=0)
    data = resident(make_dataset(size=size), torch.float32)
    with pytest.raises(UserError, match=r"micro_batch: found 6, .* allowed: auto, or norm ghost"):
        loop.train(run, data, micro_batch=6)


def test_ghost_batch_norm_of_an_own_model_is_not_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sub-batches of 4, of which the settings know nothing."""
    monkeypatch.chdir(write_net(tmp_path))
    run = Run(study("batch", model="nets.odd:Ghosts"), "f", 12, 2.0**-6, seed=0)
    data = resident(make_dataset(size=8))
    double: dict[str, Any] = {"dtype": torch.float64}
    whole = loop.train(run, data, **double)
    assert_near(whole, loop.train(run, data, micro_batch=8, **double), 1e-9, 1e-11)
    with pytest.raises(UserError, match=r"micro_batch: found 6, but .* a multiple of 4$"):
        loop.train(run, data, micro_batch=6, **double)
