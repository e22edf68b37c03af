"""PyTorch code that trains with one batch size and learning rate as this program does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smallbatch.protocol.schedule import WARMUP_START, updates_after

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

_WIDTH = 80  # columns


def code_to_paste(study: StudyConfig, batch_size: int, lr: float, n_train: int) -> str:
    """The data loader, the optimiser and the schedule, for the reader's `train_set` and `model`.

    The optimisers are those of `protocol.optimiser`, which are PyTorch's; the schedule is
    `scheduled_lr`, a step for each update. Where n_train is no multiple of m, the updates take a
    few more passes over a loader that drops the rest of each.

    Args:
        study: The settings.
        batch_size: m.
        lr: η of the mean gradient.
        n_train: The number of training images.

    Returns:
        Lines of at most 80 columns if they can be broken, without a newline at the end.
    """
    updates = updates_after(study.epochs, n_train, batch_size)
    scheduler = _scheduler(study, updates)
    name, arguments = _optimiser(study, batch_size, lr)
    steps = "optimizer.step()" + (", scheduler.step()" if scheduler else "")
    lines = [
        f"from torch.optim import {name}" + (", lr_scheduler" if scheduler else ""),
        "from torch.utils.data import DataLoader",
        f"loader = DataLoader(train_set, batch_size={batch_size}, shuffle=True, drop_last=True)",
        *_call(f"optimizer = {name}", arguments),
        *scheduler,
        f"# each of {updates} updates: mean loss, {steps}",
    ]
    if any("cos(" in line for line in lines):
        lines.insert(0, "from math import cos, pi")
    return "\n".join(lines)


def _optimiser(study: StudyConfig, batch_size: int, lr: float) -> tuple[str, list[str]]:
    arguments = ["model.parameters()", f"lr={lr!r}"]
    decay = f"weight_decay={study.weight_decay!r}"  # named always: AdamW's default is not 0
    if study.optimizer == "adamw":
        beta1, beta2 = study.betas or (0.0, 0.0)
        by_examples = study.beta2_examples
        # Not the number alone: whoever changes m sees what β₂ goes with it (`betas_at`).
        second = (
            f"{beta2!r}" if by_examples is None else f"2 ** (-{batch_size} / {_short(by_examples)})"
        )
        arguments += [f"betas=({beta1!r}, {second})", f"eps={study.eps or 0.0!r}", decay]
        return "AdamW", arguments
    if study.optimizer != "sgd":
        arguments.append(f"momentum={study.momentum or 0.0!r}")
    if study.optimizer == "nesterov":
        arguments.append("nesterov=True")
    return "SGD", [*arguments, decay]


def _scheduler(study: StudyConfig, updates: int) -> list[str]:
    """The lines of the scheduler; none if η stays the same."""
    if study.warmup:
        return _warmed_up(study, updates)
    if study.schedule == "cosine":
        return _call(
            "scheduler = lr_scheduler.CosineAnnealingLR", ["optimizer", f"T_max={updates}"]
        )
    if study.schedule == "constant" or not study.milestones:
        return []
    first = [math.ceil(share * updates) for share in sorted(study.milestones)]
    arguments = ["optimizer", f"milestones={first}", f"gamma={study.lr_decay!r}"]
    return _call("scheduler = lr_scheduler.MultiStepLR", arguments)


def _warmed_up(study: StudyConfig, updates: int) -> list[str]:
    ramp, rest = _short(study.warmup * updates), _short(updates - study.warmup * updates)
    after = {
        "constant": "1",
        "cosine": f"(1 + cos(pi * (t - {ramp}) / {rest})) / 2",
        "step": f"{study.lr_decay!r} ** sum(t >= f * {updates} for f in {study.milestones})",
    }[study.schedule]
    return [
        "def factor(t):",
        f"    if t < {ramp}: return {WARMUP_START!r} + {1 - WARMUP_START!r} * t / {ramp}",
        f"    return {after}",
        "scheduler = lr_scheduler.LambdaLR(optimizer, factor)",
    ]


def _short(value: float) -> str:
    return repr(int(value)) if value.is_integer() else repr(value)


def _call(name: str, arguments: list[str]) -> list[str]:
    """A call, in as many lines as it needs."""
    lines, line = list[str](), f"{name}("
    for number, argument in enumerate(arguments):
        piece = argument + (")" if number == len(arguments) - 1 else ",")
        if len(line) + 1 + len(piece) > _WIDTH and not line.endswith("("):
            lines.append(line.rstrip())
            line = " " * (len(name) + 1)
        space = "" if line.endswith("(") or line.isspace() else " "
        line += space + piece
    return [*lines, line]
