"""Numbers that go wrong are results, recorded with their update, in both engines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.resident import load_resident
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import updates_after
from tests.noise import make_dataset

ENGINES = pytest.mark.parametrize("engine", ["loop", "stacked"])


def train(
    engine: str, data: Dataset, lr: float, *, m: int = 4, epochs: int = 2, **settings: Any
) -> RunResult:
    base: dict[str, Any] = {"model": "resnet8", "epochs": epochs, "weight_decay": 0.0}
    run = Run(StudyConfig(**(base | settings)), data.meta.fingerprint, m, lr, 0)
    resident = load_resident(data, augment=False, device=torch.device("cpu"))
    if engine == "loop":
        return loop.train(run, resident)
    return stacked.train_lanes([run], resident)[0]


@ENGINES
@pytest.mark.parametrize("lr", [2.0**6, 2.0**40, 2.0**100, 1e300])
def test_overflow_ends_the_run_at_its_update(noise: Dataset, engine: str, lr: float) -> None:
    """A weight or a loss overflows to inf or NaN; 1e300 is inf already as a float32."""
    result = train(engine, noise, lr)
    assert result.outcome == "diverged"
    assert result.diverged_at == result.rows[-1]["updates"]
    assert result.diverged_at is not None
    assert 1 <= result.diverged_at <= updates_after(2, 23, 4)
    assert result.weights == {}
    assert math.isnan(result.rows[-1]["test_accuracy"])


def test_the_engines_agree_on_the_update(noise: Dataset) -> None:
    for lr in (2.0**6, 2.0**40, 2.0**100):
        assert train("loop", noise, lr).diverged_at == train("stacked", noise, lr).diverged_at


@ENGINES
def test_a_loss_that_grows_without_ever_being_infinite_is_finished_and_says_so(
    noise: Dataset, engine: str
) -> None:
    result = train(engine, noise, 2.0**-1, norm="group")
    first, last = result.rows[0]["train_loss"], result.rows[-1]["train_loss"]
    assert result.outcome == "finished"
    assert math.isfinite(last)
    assert max(first, last) > math.log(3)  # worse than knowing nothing


@ENGINES
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_constant_labels_are_learnt(engine: str, norm: str) -> None:
    data = make_dataset()
    data = replace(data, train_labels=np.zeros_like(data.train_labels))
    result = train(engine, data, 2.0**-7, epochs=4, norm=norm)
    assert result.outcome == "finished"
    assert result.rows[-1]["train_accuracy"] == 1.0


@ENGINES
def test_a_batch_of_one_image_twice_has_variance_zero_and_is_defined(engine: str) -> None:
    """BN at m = 2 over equal images: (x − mean) = 0, so every logit is that of the biases."""
    data = make_dataset(n=8)
    data = replace(
        data,
        train_images=np.repeat(data.train_images[:1], 8, 0),
        train_labels=np.zeros_like(data.train_labels),
    )
    result = train(engine, data, 2.0**-7, m=2, norm="batch")
    assert result.outcome == "finished"
    for value in result.weights.values():
        assert torch.isfinite(value).all()
    assert result.rows[-1]["train_accuracy"] == 1.0


@ENGINES
@pytest.mark.parametrize(("m", "updates"), [(4, [5, 11]), (7, [3, 6]), (23, [1, 2]), (22, [1, 2])])
def test_the_last_batch_is_as_large_as_all_others(
    noise: Dataset, engine: str, m: int, updates: list[int]
) -> None:
    """23 examples: batches straddle the epochs, none is smaller, a rest is left out."""
    result = train(engine, noise, 2.0**-9, m=m, norm="batch")
    assert [row["updates"] for row in result.rows] == updates
    seen = [row["train_accuracy"] * m for row in result.rows]
    counted = np.array(seen) * np.diff([0, *updates])
    np.testing.assert_allclose(counted, counted.round(), atol=1e-6)


@ENGINES
def test_activations_that_overflow_in_evaluation_alone_show_in_the_test_loss(
    noise: Dataset, engine: str
) -> None:
    """BN hides exploding weights from the training loss; evaluation does not, and is recorded."""
    result = train(engine, noise, 2.0**8, norm="batch", epochs=1)
    assert result.outcome == "finished"
    assert all(value.isfinite().all() for value in result.weights.values())
    assert math.isfinite(result.rows[-1]["train_loss"])
    assert math.isnan(result.rows[-1]["test_loss"])


@ENGINES
def test_a_variance_that_overflows_does_not_end_a_run(noise: Dataset, engine: str) -> None:
    """1/√inf is 0: the layer gives its bias, and the training goes on."""
    result = train(engine, noise, 2.0**9, norm="batch", epochs=1)
    assert result.outcome == "finished"
    broken = [name for name, value in result.weights.items() if not value.isfinite().all()]
    assert broken
    assert all(name.endswith("running_var") for name in broken)
    assert math.isnan(result.rows[-1]["test_loss"])


@pytest.mark.parametrize(
    ("m", "lr", "settings"),
    [
        (16, 2.0**6, {"norm": "batch"}),
        (64, 2.0**4, {"norm": "batch"}),
        (16, 2.0**6, {"norm": "ghost", "bn_batch_size": 8}),
    ],
)
def test_a_mean_whose_square_overflows_is_no_divergence(
    m: int, lr: float, settings: dict[str, Any]
) -> None:
    """Means above 1.8e19, of values that differ by less: their variance is a float32."""
    data = make_dataset(n=4 * m, test=8)
    found, expected = (train(engine, data, lr, m=m, **settings) for engine in ("stacked", "loop"))
    assert expected.outcome == "finished"
    assert found.outcome == "finished"
