"""The loop engine's optimisers are those of torch.optim."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from smallbatch.config.study import StudyConfig
from smallbatch.engines import loop
from smallbatch.engines.resident import Resident, load_resident
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import stretches
from tests.noise import make_dataset

CPU = torch.device("cpu")
UPDATES = 200
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "momentum"},
    "less momentum": {"optimizer": "momentum", "momentum": 0.5},
    "nesterov": {"optimizer": "nesterov", "momentum": 0.8},
    "adamw": {"optimizer": "adamw"},
    "other betas": {"optimizer": "adamw", "betas": [0.8, 0.95], "eps": 1e-4},
    "half-life": {"optimizer": "adamw", "beta2_examples": 500.0},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "step": {"warmup": 0.1, "milestones": [0.4, 0.8], "lr_decay": 0.2},
    "cosine": {"schedule": "cosine", "warmup": 0.1},
    "constant": {"schedule": "constant", "warmup": 0.1},
}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def run_of(m: int, decay: float, **settings: Any) -> Run:
    study: dict[str, Any] = {"model": "resnet8", "weight_decay": decay, **settings}
    lr = 0.01 if settings["optimizer"] == "adamw" else 0.05 / m
    return Run(StudyConfig(epochs=UPDATES * m // 40, **study), "abc", m, lr, seed=3)


def torchs_learning_rates(optimizer: torch.optim.Optimizer, run: Run) -> list[float]:
    """The η of every update as torch's own schedulers give it."""
    study, schedulers = run.settings, torch.optim.lr_scheduler
    ramp = round(study.warmup * UPDATES)
    later: Any = {
        "step": lambda: schedulers.MultiStepLR(
            optimizer, [round(f * UPDATES) - ramp for f in study.milestones], study.lr_decay
        ),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, UPDATES - ramp),
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0, 0),
    }[study.schedule]()
    warmup = schedulers.LinearLR(optimizer, 1 / 32, total_iters=ramp)
    scheduler = schedulers.SequentialLR(optimizer, [warmup, later], [ramp])
    rates: list[float] = []
    for _ in range(UPDATES):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def optimizer_of(parameters: Any, run: Run) -> torch.optim.Optimizer:
    study, m = run.settings, run.batch_size
    if study.optimizer == "adamw":
        beta1, beta2 = study.betas or (0.0, 0.0)
        if study.beta2_examples:
            beta2 = 0.5 ** (m / study.beta2_examples)
        return torch.optim.AdamW(
            parameters, run.lr, (beta1, beta2), study.eps or 0.0, study.weight_decay, foreach=False
        )
    return torch.optim.SGD(
        parameters,
        run.base_lr,
        study.momentum or 0.0,
        weight_decay=m * study.weight_decay,
        nesterov=study.optimizer == "nesterov",
        foreach=False,
    )


def by_torch(run: Run, data: Resident, model: nn.Module, rates: list[float]) -> Tensor:
    """The weights after torch.optim's updates, parameter by parameter."""
    optimizer = optimizer_of(model.parameters(), run)
    scale = run.batch_size if run.settings.optimizer != "adamw" else 1
    m, done = run.batch_size, 0
    for stretch in stretches(run.seed, len(data.train), run.settings.epochs, m, 0):
        table = data.place(stretch)
        for first in range(0, len(stretch) // m * m, m):
            images, labels = data.batch(table[:, first : first + m])
            optimizer.zero_grad()
            cross_entropy(model(images), labels, reduction="sum").backward()
            if run.settings.optimizer == "adamw":
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad /= m
            optimizer.param_groups[0]["lr"] = rates[done] / scale
            optimizer.step()
            done += 1
    assert done == UPDATES
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(
    run: Run, data: Resident, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, list[float]]:
    """The loop engine's weights, and the η of every update."""
    rates: list[float] = []
    plain = loop.scheduled_lr

    def seen(update: int, *arguments: Any) -> float:
        lr = plain(update, *arguments)
        if update == len(rates):
            rates.append(lr)
        return lr

    monkeypatch.setattr(loop, "scheduled_lr", seen)
    result = loop.train(run, data, dtype=data.train.images.dtype)
    assert result.outcome == "finished"
    names = [name for name, _ in Small().named_parameters()]
    return torch.cat([result.weights[name].flatten() for name in names]), rates


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:  # as in training
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("m", "optimiser", "schedule", "decay"),
    [
        *((8, optimiser, schedule, 0.01) for optimiser in OPTIMISERS for schedule in SCHEDULES),
        *((8, "sgd", schedule, 0.0) for schedule in SCHEDULES),
        *((m, optimiser, "step", 0.01) for m in (1, 40) for optimiser in OPTIMISERS),
    ],
)
def test_it_is_torchs_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, m: int, optimiser: str, schedule: str, decay: float
) -> None:
    data = load_resident(make_dataset(40, 9), augment=False, device=CPU, dtype=torch.float32)
    run = run_of(m, decay, **OPTIMISERS[optimiser], **SCHEDULES[schedule])
    torch.manual_seed(1)
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    monkeypatch.setattr(loop, "build_model", lambda *_, **__: module)
    found, rates = trained(run, data, monkeypatch)
    of_torch = torchs_learning_rates(optimizer_of([nn.Parameter(torch.zeros(1))], run), run)
    scale = 1.0 if run.settings.optimizer == "adamw" else m
    # Torch's schedulers multiply the rate of the update before, which rounds each time.
    assert rates == pytest.approx([scale * lr for lr in of_torch], rel=1e-12)
    again = Small()
    again.load_state_dict(before)
    expected = by_torch(run, data, again, rates)
    if optimiser == "sgd" and decay:
        # θ·(1 − η·λ) − η̃·G is rounded elsewhere than θ − η̃·(G + m·λ·θ).
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("optimiser", [name for name in OPTIMISERS if name != "sgd"])
def test_rates_beyond_single_precision_diverge(optimiser: str) -> None:
    data = load_resident(make_dataset(40, 9), augment=False, device=CPU, dtype=torch.float32)
    settings = {"model": "resnet8", "epochs": 1, "weight_decay": 1e30, **OPTIMISERS[optimiser]}
    run = Run(StudyConfig.model_validate(settings), "abc", 4, 2.0**120, seed=0)
    assert loop.train(run, data).outcome == "diverged"


def test_all_begin_with_the_same_weights_and_images() -> None:
    data = load_resident(make_dataset(40, 9), augment=True, device=CPU, dtype=torch.float32)
    settings = {"model": "resnet8", "epochs": 1, "weight_decay": 0.1, "augment": True}
    first = {
        # The loss before the only update, of all 40 images: as the seed alone decides it.
        loop.train(
            Run(StudyConfig.model_validate({**settings, **own}), "abc", 40, 2.0**-9, seed=5), data
        ).rows[0]["train_loss"]
        for own in OPTIMISERS.values()
    }
    assert len(first) == 1
