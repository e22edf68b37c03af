"""How long a training can be for the whole of the advice to fit into the budget."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEEDS = 3
"""Of every candidate in bracket and race."""
FRESH = 5
"""Seeds of each of the two in the final."""
PASSES = 6
"""About how many learning rates of a batch size a bracket trains to its end."""
CANDIDATES = 4
"""Learning rates of a batch size that the race begins with."""

VALIDATION = 0.25
"""The share of the images taken that becomes the validation split, by which is chosen.

A tenth, as for a whole study, would be a hundred images of a thousand: two accuracies near a half
then differ by 7 points, one standard error, by the choice of the images alone.
"""

_EPOCHS = {10: 2000, 5: 1000, 3: 0}
"""Epochs of a training for which not all images fit, and from how many images on.

Rungs need at least three. More epochs of fewer images than so many are no model of a training.
"""
_MANY = 20_000  # a training of few images may see so many,
_FEW, _MOST = 30, 200  # within these numbers of epochs
_UPDATES = 200  # of a bracket, if that takes no longer than the race's rung before the last,
_LEAST_UPDATES = 50  # but so many in any case: most divergences come before
_RUNGS = 0.1, 0.3


class Work(NamedTuple):
    """What one run does.

    Attributes:
        trained: Images trained on.
        evaluated: Images evaluated.
    """

    trained: int
    evaluated: int


@dataclass(frozen=True)
class Size:
    """The size of a training.

    Attributes:
        images: Images taken from the source for training and validation.
        test_images: Images of its test split.
        epochs: Of a whole training.
    """

    images: int
    test_images: int
    epochs: int

    @property
    def n_validation(self) -> int:
        """Images of the validation split."""
        return round(VALIDATION * self.images)

    @property
    def n_train(self) -> int:
        """Training images."""
        return self.images - self.n_validation

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs of a training at each rung, ascending; the last is the whole training.

        Each is a whole training of its own, whose schedule runs to its end.
        """
        short = {max(1, round(share * self.epochs)) for share in _RUNGS}
        return tuple(sorted({*short, self.epochs}))

    def bracket_epochs(self, batch_size: int) -> int:
        """The epochs of a training in the bracket: `_UPDATES` updates, if they are not too many.

        Never more than a whole training has.
        """
        most, least = (ceil(it * batch_size / self.n_train) for it in (_UPDATES, _LEAST_UPDATES))
        return min(most, max((least, *self.rungs[-2:-1])), self.epochs)

    def work(self, epochs: int) -> Work:
        """What one run does: it is evaluated after each epoch, and on all images at the end."""
        evaluated = self.n_validation + self.test_images
        return Work(epochs * self.n_train, epochs * evaluated + self.n_train + evaluated)

    def whole_cost(
        self, batch_sizes: Sequence[int], cost: Callable[[int, int, Work], float]
    ) -> float:
        """About what all steps cost together.

        Args:
            batch_sizes: m.
            cost: The cost of a column from its m, its number of runs, and the work of each run.
        """

        def columns(runs: int, epochs: int) -> float:
            return sum(cost(m, runs, self.work(epochs)) for m in batch_sizes)

        each = len(batch_sizes)
        first, last = self.rungs[0], self.rungs[-1]
        total = sum(cost(m, SEEDS * PASSES, self.work(self.bracket_epochs(m))) for m in batch_sizes)
        total += columns(SEEDS * CANDIDATES, first)
        for epochs in self.rungs[1:-1]:
            total += (1 + 2 / each) * columns(SEEDS, epochs)
        total += min(3, CANDIDATES * each) / each * columns(SEEDS, last)
        return total + 2 / each * columns(FRESH, last)


def choose_size(
    available: int,
    tests: int,
    least: int,
    epochs: int | None,
    fits: Callable[[Size], bool],
) -> Size | None:
    """The largest training for which the whole fits: all images first, then more epochs.

    Args:
        available: Images that the source has for training and validation.
        tests: Those of its test split.
        least: Images that are needed for training and validation.
        epochs: Of a training; None: as many as fit, 10 to 200; where that is too much, 5 or 3.
        fits: Whether the budget allows a size; what is below one that fits must fit.

    Returns:
        None if nothing fits.
    """

    def at(images: int, epochs: int) -> Size:
        return Size(images, min(tests, max(200, images // 3)), epochs)

    for tried, enough in {epochs: 0}.items() if epochs is not None else _EPOCHS.items():
        if fits(at(available, tried)):
            n = at(available, tried).n_train
            most = tried if epochs is not None else min(_MOST, max(_FEW, ceil(_MANY / n)))
            return at(available, _largest(tried, most, lambda e: fits(at(available, e))))
        if fits(at(least, tried)):
            images = _largest(least, available, lambda n, e=tried: fits(at(n, e)))
            if images >= enough:
                return at(images, tried)
    return None


def least_size(available: int, tests: int, least: int, epochs: int | None) -> Size:
    """The smallest training that is tried; what it costs is the smallest budget."""
    least = min(least, available)
    return Size(least, min(tests, max(200, least // 3)), epochs or min(_EPOCHS))


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from low, which fits, to high."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
