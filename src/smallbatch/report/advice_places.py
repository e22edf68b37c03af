"""Where the names of curves stand in a picture, so that they hide neither each other nor curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BESIDE = 8  # pixels from the end of a curve to its name
_LINE, _LETTER = 13, 6.8  # pixels of a name's height, and of a letter's width
_SIDE = 1.0  # what standing left of the end costs, in samples of a curve that are hidden
_FAR = 0.2  # likewise each pixel above or below it
_HIDDEN = 1000.0  # likewise another name
_SAMPLES = 8  # of each piece of a curve
_STEPS = sorted(range(-200, 201, 4), key=abs)  # pixels up or down, the nearest first


@dataclass(frozen=True)
class Frame:
    """The axes of a picture.

    Attributes:
        width, height: Pixels.
        beyond: Pixels right of the frame that names may reach into.
        x, y: Their first and last values; y grows upwards.
        log: Whether x is on a log axis.
    """

    width: int
    height: int
    beyond: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the top left of the frame."""
        first, last, value = (math.log(it) if self.log else it for it in (*self.x, x))
        low, high = self.y
        return (
            self.width * (value - first) / (last - first),
            self.height * (high - y) / (high - low),
        )


@dataclass(frozen=True)
class Name:
    """A name's place: the height of its middle as a value of y, and its side of the curve's end."""

    y: float
    left: bool


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    middle: float

    def hides(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and abs(y - self.middle) < _LINE / 2 + 1

    def meets(self, other: _Box) -> bool:
        apart = abs(self.middle - other.middle)
        return self.left < other.right and other.left < self.right and apart < _LINE


def place_names(
    frame: Frame, curves: Sequence[Sequence[tuple[float, float]]], names: Sequence[str]
) -> list[Name]:
    """A place beside the end of each curve, the first curve's first.

    Args:
        frame: The axes.
        curves: Each curve's points, x and y.
        names: Theirs.
    """
    samples = [sample for curve in curves for sample in _sampled(frame, curve)]
    taken: list[_Box] = []
    found: list[Name] = []
    for curve, name in zip(curves, names, strict=True):
        x, y = frame.at(*curve[-1])
        length = _LETTER * len(name)
        best, least, at = None, math.inf, Name(curve[-1][1], left=False)
        for step, left in product(_STEPS, (False, True)):
            start = x - BESIDE - length if left else x + BESIDE
            box = _Box(start, start + length, y + step)
            cost = _FAR * abs(step) + _SIDE * left
            if not _inside(frame, box) or cost >= least:
                continue
            cost += sum(box.hides(*sample) for sample in samples)
            cost += _HIDDEN * sum(box.meets(other) for other in taken)
            if cost < least:
                low, high = frame.y
                height = high - box.middle * (high - low) / frame.height
                best, least, at = box, cost, Name(height, left)
        taken += [best] if best else []
        found.append(at)
    return found


def _inside(frame: Frame, box: _Box) -> bool:
    within = box.left >= 0 and box.right <= frame.width + frame.beyond
    return within and _LINE / 2 <= box.middle <= frame.height - _LINE / 2


def _sampled(frame: Frame, curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a curve, as pixels; its end counts like ten, as a mark stands there."""
    points = [frame.at(*point) for point in curve]
    between = [
        (x + (to_x - x) * k / _SAMPLES, y + (to_y - y) * k / _SAMPLES)
        for (x, y), (to_x, to_y) in pairwise(points)
        for k in range(_SAMPLES)
    ]
    return between + [points[-1]] * 10
