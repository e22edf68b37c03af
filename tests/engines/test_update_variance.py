from __future__ import annotations

import numpy as np
import pytest
import torch

from smallbatch.config.params import StudyConfig
from smallbatch.engines import update_variance as measured
from smallbatch.engines.resident import load_resident
from smallbatch.engines.update_variance import measure_study, update_variance
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
    found = update_variance(Run(STUDY, "data", 4, 0.5, 1), data)
    assert found == pytest.approx(expected, rel=1e-4)


def test_it_grows_in_proportion_to_the_batch_size() -> None:
    rows = measure_study("s", STUDY, make_dataset(n=256, test=4), base_lr=2**-8, seeds=[0])
    assert [row["batch_size"] for row in rows] == [2, 8, 32]
    variances = np.array([row["variance"] for row in rows])
    slope = np.polyfit(np.log2([2, 8, 32]), np.log2(variances), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)


def test_images_need_not_be_squares() -> None:
    study = StudyConfig(model="alexnet", norm="none", epochs=1, weight_decay=1e-4)
    [row] = measure_study("s", study, make_dataset(n=16, test=4, size=(5, 17)), seeds=[0])
    assert row["batch_size"] == 2
    assert row["variance"] > 0
