from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import loop
from smallbatch.engines import resident as on_device
from smallbatch.engines.flat import FlatSGD
from smallbatch.engines.resident import Resident, load_resident
from smallbatch.errors import UserError
from smallbatch.protocol.run import Run
from tests.engines import twin
from tests.noise import make_dataset

CPU = torch.device("cpu")


def study(**changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {"model": "resnet8", "epochs": 3, "weight_decay": 0.0}
    return StudyConfig(**(settings | changes))


def resident(data: Dataset, *, augment: bool = False, dtype: Any = torch.float64) -> Resident:
    return load_resident(data, augment=augment, device=CPU, dtype=dtype)


def normalised(data: Dataset) -> twin.Array:
    mean = np.array(data.meta.mean)[:, None, None]
    std = np.array(data.meta.std)[:, None, None]
    return (data.train_images / 255 - mean) / std


class _Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def _pair(kind: str) -> tuple[nn.Module, Any]:
    """The same initial weights as a torch module and as its NumPy twin."""
    torch.manual_seed(1)
    if kind == "linear":
        module: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
        make: Any = twin.Linear
    else:
        module, make = _Conv(), twin.ConvNet
    return module, make(*(p.detach().double().numpy().copy() for p in module.parameters()))


# 23 examples × 3 epochs = 69 positions: 17 updates of 4 (batches straddle both epoch ends, one
# position is left over), 9 of 7, 3 of 23. Warm-up covers 20 % of the updates: 3.4 → a ramp of 3.4.
CASES = [
    pytest.param({"m": 4, "warmup": 0.0, "drops": (9, 13), "augment": False}, id="straddle"),
    pytest.param({"m": 4, "warmup": 0.0, "drops": (9, 13), "augment": True}, id="augment"),
    pytest.param({"m": 7, "warmup": 0.0, "drops": (5, 7), "augment": False}, id="m7"),
    pytest.param({"m": 23, "warmup": 0.0, "drops": (2, 3), "augment": False}, id="full-batch"),
    pytest.param({"m": 3, "warmup": 4 / 23, "drops": (12, 18), "augment": True}, id="warm-up"),
]


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("case", CASES)
def test_loop_equals_the_numpy_twin(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch, kind: str, case: dict[str, Any]
) -> None:
    module, net = _pair(kind)
    monkeypatch.setattr(loop, "build_model", lambda *_, **__: module)
    settings = study(weight_decay=0.05, warmup=case["warmup"], augment=case["augment"])
    run = Run(settings, noise.meta.fingerprint, case["m"], 2.0**-6, seed=3)
    result = loop.train(run, resident(noise, augment=case["augment"]), dtype=torch.float64)

    updates = 69 // case["m"]
    losses = twin.train(
        net, normalised(noise), noise.train_labels, seed=3, epochs=3, m=case["m"],
        base_lr=2.0**-6, weight_decay=0.05, warmup_updates=round(case["warmup"] * updates),
        drops=case["drops"], augment=case["augment"],
    )  # fmt: skip
    assert result.outcome == "finished"
    assert [row["updates"] for row in result.rows] == [e * 23 // case["m"] for e in (1, 2, 3)]
    for weights, expected in zip(result.weights.values(), net.parameters(), strict=True):
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-10, atol=1e-12)
    ends = [0] + [row["updates"] for row in result.rows]
    epoch_means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(ends)]
    np.testing.assert_allclose([row["train_loss"] for row in result.rows], epoch_means, rtol=1e-9)


@pytest.mark.parametrize("norm", ["none", "batch", "ghost", "group"])
def test_repeats_are_bit_identical_and_seeds_differ(noise: Dataset, norm: str) -> None:
    settings = study(norm=norm, bn_batch_size=2 if norm == "ghost" else None, augment=True)
    data = resident(noise, augment=True, dtype=torch.float32)
    run = Run(settings, noise.meta.fingerprint, 4, 2.0**-8, seed=0)
    first, second = loop.train(run, data), loop.train(run, data)
    other = loop.train(dataclasses.replace(run, seed=1), data)
    assert repr(first.rows) == repr(second.rows)  # repr: NaN of the absent split equals itself
    assert first.final == second.final
    for name, value in first.weights.items():
        assert torch.equal(value, second.weights[name])
    assert any(not torch.equal(value, other.weights[name]) for name, value in first.weights.items())


def test_sum_form_equals_torch_sgd_on_the_mean_loss(noise: Dataset) -> None:
    """An independent optimiser: torch.optim.SGD with η = m·η̃ and its own weight decay (eq. 5)."""
    data = resident(noise)
    run = Run(study(weight_decay=1e-3, milestones=()), noise.meta.fingerprint, 5, 2.0**-7, seed=2)
    result = loop.train(run, data, dtype=torch.float64)

    model = loop.initial_model(run, data).double()  # pyright: ignore[reportPrivateUsage]
    optimiser = torch.optim.SGD(model.parameters(), lr=5 * 2.0**-7, weight_decay=1e-3)
    order = [position[0] for position in twin.stream(2, 23, 3)]
    for start in range(0, 65, 5):
        picked = torch.tensor(order[start : start + 5])
        optimiser.zero_grad()
        logits = model(data.train.images[picked])
        nn.functional.cross_entropy(logits, data.train.labels[picked]).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.weights[name], value, rtol=1e-9, atol=1e-11)


def test_divergence_is_an_outcome_with_its_update(noise: Dataset) -> None:
    run = Run(study(epochs=5), noise.meta.fingerprint, 4, 2.0**6, seed=0)
    result = loop.train(run, resident(noise, dtype=torch.float32))
    assert result.outcome == "diverged"
    assert result.diverged_at == result.rows[-1]["updates"] >= 1
    assert math.isnan(result.rows[-1]["test_accuracy"])
    assert result.weights == {}
    assert set(result.final.values()) == {None}


class _Constant(nn.Module):
    """Logits that do not depend on the weight: a finite loss whatever the weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), 3) + 0 * torch.nan_to_num(self.weight, 0.0, 0.0, 0.0)


def test_a_weight_that_is_not_finite_is_divergence_even_where_the_loss_is(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_model", lambda *_, **__: _Constant(math.inf))
    run = Run(study(), noise.meta.fingerprint, 4, 2.0**-6, seed=0)
    result = loop.train(run, resident(noise, dtype=torch.float32))
    assert (result.outcome, result.diverged_at) == ("diverged", 1)
    assert result.rows[-1]["train_loss"] == pytest.approx(math.log(3))


def test_finite_weights_whose_sum_overflows_are_finite() -> None:
    model = nn.Linear(4, 1, bias=False)
    sgd = FlatSGD(model, 0.0, 1)
    sgd.theta.fill_(3e38)
    assert not math.isfinite(sgd.theta.sum().item())
    assert sgd.finite()
    for broken in (math.nan, math.inf, -math.inf):
        sgd.theta[2] = broken
        assert not sgd.finite()


def test_population_accuracy_leaves_the_saved_statistics_alone(noise: Dataset) -> None:
    data = resident(noise, dtype=torch.float32)
    run = Run(study(norm="batch"), noise.meta.fingerprint, 4, 2.0**-8, seed=0)
    result = loop.train(run, data)
    model = loop.initial_model(run, data)  # pyright: ignore[reportPrivateUsage]
    model.load_state_dict(result.weights)
    loss, accuracy = loop.evaluate(model, data.test)
    assert result.final["test_loss"] == pytest.approx(loss)
    assert result.final["test_accuracy"] == accuracy == result.rows[-1]["test_accuracy"]
    assert result.final["population_test_loss"] != pytest.approx(loss)


def test_images_beyond_the_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    data = make_dataset(n=3, test=1)
    counts = {"train": 1000, "validation": 0, "test": 24}
    meta = dataclasses.replace(data.meta, channels=1, height=1024, width=1024, counts=counts)
    monkeypatch.setattr(on_device, "_laid_out", fail)
    line = r"noise: its images need 4\.00 GiB of memory on cpu, more than there is; allowed: a"
    with pytest.raises(UserError, match=line):
        load_resident(
            dataclasses.replace(data, meta=meta), augment=False, device=torch.device("cpu")
        )
