"""A model of the user's own, of two modules, for tests."""

from __future__ import annotations

import textwrap
from pathlib import Path

NET = """
import torch
from torch import nn

from nets.layers import block


class Net(nn.Module):
    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.body = block(in_chans, 6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def no_module(num_classes: int, in_chans: int) -> int:
    return num_classes


def fails(num_classes: int, in_chans: int) -> nn.Module:
    raise ValueError("bad\\nweather")


def sized(num_classes: int, in_chans: int, img_size: int | tuple[int, int]) -> nn.Module:
    h, w = (img_size, img_size) if isinstance(img_size, int) else img_size
    net = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * h * w, num_classes))
    net.seen = img_size
    return net


def half_drawn(num_classes: int, in_chans: int) -> nn.Module:
    net = Net(num_classes, in_chans)
    net.body[0].weight.requires_grad_(False)
    return net
"""

# Models that a careless trial, evaluation or copy would get wrong.
ODD = """
import random

import numpy as np
import torch
from torch import nn

from smallbatch.models.norms import GhostBatchNorm


class Base(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.body = nn.Conv2d(in_chans, 6, 3, padding=1)
        self.same = nn.Conv2d(6, 6, 1, bias=False)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(self.same(self.body(x)).relu().mean((2, 3)))


class Tied(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.again = nn.Conv2d(6, 6, 1, bias=False)
        self.again.weight = self.same.weight

    def forward(self, x):
        return self.fc(self.again(self.same(self.body(x))).relu().mean((2, 3)))


class InPlace(Base):
    def forward(self, x):
        return super().forward(x.mul_(2).add_(1))


class Hooked(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.register_buffer("seen", torch.zeros(()))
        features = self.features = {}
        self.body.register_forward_hook(lambda _m, _i, out: features.update(x=out))

        def count(_module, _inputs, _out):
            if self.training:
                self.seen += 1

        self.same.register_forward_hook(count)

    def forward(self, x):
        out = super().forward(x)
        return out + 0 * self.features.pop("x").mean() + self.seen


class Drawing(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        np.random.seed(0)
        random.seed(0)

    def forward(self, x):
        return super().forward(x + 0.1 * (np.random.rand() + random.random()))


class TiedHead(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.body = nn.Conv2d(in_chans, 6, 3, padding=1)
        self.middle = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 6)
        self.fc.weight = self.middle.weight
        self.classes = num_classes

    def forward(self, x):
        return self.fc(self.middle(self.body(x).mean((2, 3))))[:, : self.classes]


class UnusedHead(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.last = nn.Linear(6, 6)


class Ghosts(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.same = nn.Sequential(GhostBatchNorm(6, 4), self.same, GhostBatchNorm(6, 2))


class Mixed(Ghosts):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.same = nn.Sequential(*self.same[:2], nn.BatchNorm2d(6))


class Complex(Base):
    def __init__(self, num_classes, in_chans):
        super().__init__(num_classes, in_chans)
        self.register_buffer("turn", torch.ones((), dtype=torch.complex64))
"""
LAYERS = """
from torch import nn


def block(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
"""


def write_net(folder: Path) -> Path:
    """Write the package `nets` with the model `nets.mine:Net`; returns the folder."""
    (folder / "nets").mkdir(parents=True)
    (folder / "nets/mine.py").write_text(textwrap.dedent(NET))
    (folder / "nets/odd.py").write_text(textwrap.dedent(ODD))
    (folder / "nets/layers.py").write_text(textwrap.dedent(LAYERS))
    return folder
