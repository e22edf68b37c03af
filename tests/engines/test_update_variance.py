from __future__ import annotations

import numpy as np
import pytest
import torch

from smallbatch.config.study import StudyConfig
from smallbatch.engines import update_variance as measured
from smallbatch.engines.resident import load_resident
from smallbatch.engines.update_variance import measure_study, update_variances
from smallbatch.models import build_model
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import epoch_examples
from tests.noise import make_dataset

STUDY = StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=1e-4)


def test_the_variance_is_that_of_plain_autograd_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin: the model built anew, one gradient per batch, variances by NumPy."""
    monkeypatch.setattr(measured, "BATCHES", 3)
    dataset = make_dataset(n=12, test=4)
    data = load_resident(dataset, augment=False, device=torch.device("cpu"))
    model = build_model(
        "resnet8", "none", num_classes=data.classes, in_chans=dataset.meta.channels,
        image_size=dataset.meta.height, seed=1, batch_size=4,
    )  # fmt: skip
    order = epoch_examples(1, 0, 12).index
    updates = []
    for batch in order.reshape(3, 4):
        loss = torch.nn.functional.cross_entropy(
            model(data.train.images[batch]), data.train.labels[batch], reduction="sum"
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        updates.append(0.5 * np.concatenate([g.numpy().ravel() for g in gradients]))
    expected = np.var(np.array(updates, dtype=np.float64), axis=0, ddof=1).sum()
    found = update_variances(Run(STUDY, "data", 4, 0.5, 1), data, (0,))[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_along_training_it_is_that_at_the_trained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin: plain updates of the model, then gradients of the batches that follow."""
    monkeypatch.setattr(measured, "BATCHES", 2)
    dataset = make_dataset(n=16, test=4)
    data = load_resident(dataset, augment=False, device=torch.device("cpu"))
    model = build_model(
        "resnet8", "none", num_classes=data.classes, in_chans=dataset.meta.channels,
        image_size=dataset.meta.height, seed=1, batch_size=4,
    )  # fmt: skip
    parameters = list(model.parameters())

    def gradients(batch: np.ndarray) -> list[torch.Tensor]:
        loss = torch.nn.functional.cross_entropy(
            model(data.train.images[batch]), data.train.labels[batch], reduction="sum"
        )
        return list(torch.autograd.grad(loss, parameters))

    order = epoch_examples(1, 0, 16).index.reshape(4, 4)
    for batch in order[:2]:
        for parameter, gradient in zip(parameters, gradients(batch), strict=True):
            parameter.data -= 0.01 * gradient
    updates = [
        0.01 * np.concatenate([g.numpy().ravel() for g in gradients(batch)]) for batch in order[2:]
    ]
    expected = np.var(np.array(updates, dtype=np.float64), axis=0, ddof=1).sum()
    found = update_variances(Run(STUDY, "data", 4, 0.01, 1), data, (0, 8))
    assert found[8] == pytest.approx(expected, rel=1e-3)
    assert found[0] != pytest.approx(found[8], rel=0.01)


def test_at_the_first_weights_it_grows_in_proportion_to_the_batch_size() -> None:
    """An identity of sampling, by which the measurement checks itself."""
    rows = measure_study("s", STUDY, make_dataset(n=256, test=4), base_lr=2**-8, seeds=[0])
    assert [(row["batch_size"], row["seen"]) for row in rows] == [
        (m, seen) for m in (2, 8, 32) for seen in (0, 512, 2048)
    ]
    variances = np.array([row["variance"] for row in rows if row["seen"] == 0])
    slope = np.polyfit(np.log2([2, 8, 32]), np.log2(variances), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)


def test_a_run_that_diverges_has_no_variance_from_then_on() -> None:
    data = load_resident(make_dataset(n=64, test=4), augment=False, device=torch.device("cpu"))
    found = update_variances(Run(STUDY, "data", 8, 1e9, 0), data, (0, 64))
    assert found[0] > 0
    assert np.isnan(found[64])


def test_images_need_not_be_squares() -> None:
    study = StudyConfig(model="alexnet", norm="none", epochs=1, weight_decay=1e-4)
    rows = measure_study("s", study, make_dataset(n=16, test=4, size=(5, 17)), seeds=[0])
    assert {row["batch_size"] for row in rows} == {2}
    assert all(row["variance"] > 0 for row in rows)
