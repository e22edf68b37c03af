from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import curvature
from smallbatch.engines.curvature import measure_curvature
from smallbatch.engines.loop import initial_model
from smallbatch.engines.made_by import ENTRY, sources
from smallbatch.engines.resident import load_resident
from smallbatch.errors import Stopped
from smallbatch.protocol.run import Run
from tests.noise import make_dataset
from tests.own_model import write_net

CURVED = """
import torch
from torch import nn


class Counting(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return super().forward(x.flatten(1)) * self.seen


class Single(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1).float())


def smooth(num_classes, in_chans):
    return nn.Sequential(nn.Flatten(), nn.Linear(36 * in_chans, 5), nn.Tanh(),
                         nn.Linear(5, num_classes))


def dropping(num_classes, in_chans):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 6), nn.Flatten(), nn.Tanh(), nn.Dropout(0.5),
                         nn.Linear(8, num_classes))


def counting(num_classes, in_chans):
    return Counting(36 * in_chans, num_classes)


def single(num_classes, in_chans):
    return Single(36 * in_chans, num_classes)
"""
SOFTMAX = "nets.mine:sized"  # softmax regression
LONG = 600.0  # seconds, so that no clock ends a measurement


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(curvature, "EXAMPLES", 64)
    monkeypatch.chdir(write_net(tmp_path))
    (tmp_path / "nets/curved.py").write_text(CURVED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_of(model: str = SOFTMAX, m: int = 4, **settings: Any) -> Run:
    study = {"model": model, "epochs": 1, "weight_decay": 1e-4, **settings}
    return Run(StudyConfig.model_validate(study), "f", m, 0.01, 3)


def built(run: Run, dataset: Dataset, scale: float = 1.0) -> tuple[nn.Module, Tensor, Tensor]:
    """The run's model with its weights scaled, the images and the labels, in float64."""
    data = load_resident(dataset, augment=False, device=torch.device("cpu"), dtype=torch.float64)
    model = initial_model(run, data).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model, data.train.images, data.train.labels


def hessian_along_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """g·Hg/|g|² with the whole Hessian, by torch.func."""
    shapes = {name: it.detach() for name, it in model.named_parameters()}

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([it.numel() for it in shapes.values()])
        named = {
            name: part.view_as(it) for (name, it), part in zip(shapes.items(), parts, strict=True)
        }
        return cross_entropy(functional_call(model, named, (images,)), labels)

    theta = torch.cat([it.reshape(-1) for it in shapes.values()])
    g = grad(loss)(theta)
    return float(g @ jacrev(grad(loss))(theta) @ g / (g @ g))


def twice_differentiated(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """g·Hg/|g|² by differentiating twice, for models that torch.func cannot take."""
    trained = [it for it in model.parameters() if it.requires_grad]
    first = torch.autograd.grad(
        cross_entropy(model(images.clone()), labels), trained, create_graph=True
    )
    g = torch.cat([it.reshape(-1) for it in first])
    second = torch.autograd.grad(g @ g.detach(), trained)
    return float(torch.cat([it.reshape(-1) for it in second]) @ g.detach() / (g @ g).detach())


def measure(run: Run, dataset: Dataset, model: nn.Module) -> tuple[float | None, float | None]:
    return measure_curvature(run, dataset, model.state_dict(), seconds=LONG)


def test_the_noise_scale_is_that_of_the_gradients_of_all_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The covariance of one example's gradient and the mean gradient, exactly, by torch.func."""
    monkeypatch.setattr(curvature, "EXAMPLES", 8_000)
    dataset, run = make_dataset(n=48, test=2), run_of(m=8)
    model, images, labels = built(run, dataset, scale=4)

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    parameters = {name: it.detach() for name, it in model.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    gradients = torch.cat([it.flatten(1) for it in found.values()], dim=1)
    trace, mean = gradients.var(dim=0, correction=0).sum(), gradients.mean(0)
    noise, _ = measure(run, dataset, model)
    # 1,000 batches leave 2 %; without the factor (n − 1)/(n − m) it would be 15 % too low.
    assert noise == pytest.approx(float(trace / (mean @ mean)), rel=0.05)


def test_a_gradient_that_cannot_be_told_from_noise_has_no_noise_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equal images, and a bias that fits the classes' frequencies: the mean gradient is 0."""
    monkeypatch.setattr(curvature, "EXAMPLES", 0)
    noise = make_dataset(n=24, test=2)
    labels = np.arange(24) % 3
    dataset = dataclasses.replace(
        noise, train_images=noise.train_images[[0] * 24], train_labels=labels
    )
    weights = {
        name: torch.zeros_like(it) for name, it in built(run_of(), dataset)[0].named_parameters()
    }
    runs = [dataclasses.replace(run_of(), seed=seed) for seed in range(8)]
    found = [measure_curvature(run, dataset, weights, seconds=LONG)[0] for run in runs]
    assert None in found
    assert all(it is None or it > 16 * 4 for it in found)  # no less than the examples seen


@pytest.mark.parametrize("model", [SOFTMAX, "nets.curved:smooth"])
def test_the_sharpness_of_the_whole_training_set_is_that_of_its_hessian(model: str) -> None:
    """With m = n every batch is the training set, whose mean gradient has no noise."""
    dataset, run = make_dataset(n=12, test=2), run_of(model, m=12)
    twin, images, labels = built(run, dataset, scale=2)
    noise, sharpness = measure(run, dataset, twin)
    assert noise is None
    assert sharpness == pytest.approx(hessian_along_gradient(twin, images, labels), rel=1e-5)


def test_the_sharpness_is_a_mean_over_all_batches_of_m(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the ratios over the 21 pairs of 7 examples; the pairs' own Hessians count."""
    monkeypatch.setattr(curvature, "SHARP_BATCHES", 600)
    dataset, run = make_dataset(n=7, test=2), run_of(m=2)
    model, images, labels = built(run, dataset, scale=2)
    pairs = [list(pair) for pair in combinations(range(7), 2)]
    exact = [hessian_along_gradient(model, images[pair], labels[pair]) for pair in pairs]
    _, sharpness = measure(run, dataset, model)
    error = np.std(exact) / np.sqrt(600)
    assert error < 0.05 * np.mean(exact)
    assert sharpness == pytest.approx(np.mean(exact), abs=3 * error)
    assert hessian_along_gradient(model, images, labels) < 0.7 * np.mean(exact)


def test_batch_norm_normalises_by_the_batch_and_running_statistics_do_not_matter() -> None:
    dataset, run = make_dataset(n=12, test=2), run_of("nets.mine:Net", m=12, norm="batch")
    model, images, labels = built(run, dataset)
    found = measure(run, dataset, model)
    assert found[1] == pytest.approx(twice_differentiated(model, images, labels), rel=1e-5)
    for name, value in model.named_buffers():
        if "running" in name:
            value.add_(100)
    assert measure(run, dataset, model) == found


def test_dropout_is_the_same_on_both_sides_of_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All examples are alike, so that their order does not matter and the mask is known."""
    monkeypatch.setattr(curvature, "SHARP_BATCHES", 1)
    noise = make_dataset(n=8, test=2)
    dataset = dataclasses.replace(
        noise, train_images=noise.train_images[[0] * 8], train_labels=noise.train_labels[[0] * 8]
    )
    run = run_of("nets.curved:dropping", m=8)
    model, images, labels = built(run, dataset, scale=2)
    _, sharpness = measure(run, dataset, model)
    torch.manual_seed(0)  # that of the first batch
    assert sharpness == pytest.approx(twice_differentiated(model, images, labels), rel=1e-5)
    assert sharpness != pytest.approx(
        hessian_along_gradient(model.eval(), images, labels), rel=0.01
    )


def test_frozen_parameters_take_no_part() -> None:
    dataset = make_dataset(n=12, test=2)
    plain = run_of("resnet8", m=12, norm="batch")
    save_file(built(plain, dataset)[0].float().state_dict(), "w.safetensors")
    frozen = run_of("resnet8", m=12, norm="batch", pretrained="w.safetensors", freeze="head only")
    model, images, labels = built(frozen, dataset)
    whole, _, _ = built(plain, dataset)
    Path("w.safetensors").unlink()  # the run's own weights are enough
    _, sharpness = measure(frozen, dataset, model)
    assert sharpness == pytest.approx(twice_differentiated(model, images, labels), rel=1e-6)
    assert sharpness != pytest.approx(measure(plain, dataset, whole)[1], rel=0.1)


@pytest.mark.parametrize("name", ["nets.curved:counting", "nets.odd:InPlace"])
def test_what_a_pass_changes_is_undone_before_the_next(name: str) -> None:
    """A count in a buffer, and the images themselves."""
    dataset, run = make_dataset(n=12, test=2), run_of(name, m=12)
    model, images, labels = built(run, dataset)
    _, sharpness = measure(run, dataset, model)
    assert sharpness == pytest.approx(twice_differentiated(model, images, labels), rel=1e-5)


@pytest.mark.parametrize("model", ["resnet8", "nets.odd:Drawing", "nets.odd:InPlace"])
def test_it_repeats_and_changes_nothing(model: str) -> None:
    dataset, run = make_dataset(n=24, test=2), run_of(model, augment=True)
    weights = built(run, dataset)[0].float().state_dict()
    kept = {name: value.clone() for name, value in weights.items()}
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    states = [torch.rand(1).item(), random.random(), np.random.rand()]  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    found = measure_curvature(run, dataset, weights, seconds=LONG)
    assert [torch.rand(1).item(), random.random(), np.random.rand()] == states  # noqa: NPY002
    assert measure_curvature(run, dataset, weights, seconds=LONG) == found
    assert found[1] is not None
    assert all(torch.equal(weights[name], value) for name, value in kept.items())


def test_what_cannot_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, run = make_dataset(n=24, test=2), run_of()
    weights = built(run, dataset)[0].float().state_dict()
    assert None not in measure_curvature(run, dataset, weights, seconds=LONG)
    nothing = (None, None)
    assert measure_curvature(run, dataset, weights, seconds=0) == nothing
    assert measure_curvature(run, dataset, {}, seconds=LONG) == nothing
    for bad in (np.nan, np.inf):
        broken = {name: torch.full_like(value, bad) for name, value in weights.items()}
        assert measure_curvature(run, dataset, broken, seconds=LONG) == nothing
    larger = dataclasses.replace(run, batch_size=25)
    assert measure_curvature(larger, dataset, weights, seconds=LONG) == nothing
    fails = run_of("nets.curved:single")  # in float64
    assert measure(fails, dataset, built(fails, dataset)[0]) == nothing
    monkeypatch.setattr(curvature, "free_memory", lambda: 1000)
    assert measure_curvature(run, dataset, weights, seconds=LONG) == nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("time limit", 76)])
def test_a_stop_is_passed_on(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(curvature, "load_resident", stop)
    with pytest.raises(type(error)):
        measure_curvature(run_of(), make_dataset(), {}, seconds=LONG)


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a gradient's examples move on, one second each."""
    now = [0.0]

    def tick(self: curvature._Gradients, theta: Tensor, images: Tensor, *_: Any, **__: Any) -> Any:
        now[0] += len(images)
        return torch.ones_like(theta) * theta.sum()

    monkeypatch.setattr(curvature._Gradients, "at", tick)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    dataset, run = make_dataset(n=24, test=2), run_of()
    weights = built(run, dataset)[0].float().state_dict()
    for seconds, batches in ((15, 0), (16, 1), (27, 1), (28, 2)):  # a gradient of 4 comes before
        now[0] = 0.0
        _, sharpness = measure_curvature(run, dataset, weights, seconds=seconds)
        assert now[0] == 4 + 12 * batches
        assert (sharpness is not None) == (batches > 0)


def test_no_run_depends_on_it() -> None:
    paths = {str(path) for entry in ENTRY.values() for path in sources(*entry)}
    assert "engines/loop.py" in paths
    assert "engines/curvature.py" not in paths
