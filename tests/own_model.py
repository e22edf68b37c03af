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
LAYERS = """
from torch import nn


def block(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
"""


def write_net(folder: Path) -> Path:
    """Write the package `nets` with the model `nets.mine:Net`; returns the folder."""
    (folder / "nets").mkdir(parents=True)
    (folder / "nets/mine.py").write_text(textwrap.dedent(NET))
    (folder / "nets/layers.py").write_text(textwrap.dedent(LAYERS))
    return folder
