"""What the page says of how the best η of a study under AdamW changes with the batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.analysis.scaling import LEAST, RULES
from smallbatch.report.labels import listed, power_of_two
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.analysis.scaling import Scaling

_NAMES = {"constant": "a constant η", "square root": "η ∝ √m", "linear": "η ∝ m"}


def scaling_sentence(found: Scaling | None) -> str:
    """Which rule of thumb the measured best η of one study are nearest to, and how sure that is."""
    if found is None:
        return (
            f"How the best η changes with m is not measured: fewer than {LEAST} batch sizes have "
            "theirs inside the grid."
        )
    first, last = found.batch_sizes[0], found.batch_sizes[-1]
    others = [rule for rule in found.open if rule != found.nearest]
    left = (
        f", which {listed([_NAMES[rule] for rule in others])} would fit as well" if others else ""
    )
    if not found.open:
        left = ", in which no rule lies"
    return (
        f"Measured, the best η goes as m to the power {_number(found.exponent)} (slope of log₂ of "
        f"the best η against log₂ m, over {len(found.batch_sizes)} batch sizes from {first} to "
        f"{last}). Of constant, √m and linear the nearest is {_NAMES[found.nearest]} "
        f"({_number(RULES[found.nearest])}). The grid's steps of {_octaves(found.step)} leave "
        f"{_number(found.low)} … {_number(found.high)} open{left}; the noise of the seeds comes on "
        f"top. The rules in the figure go through η = {power_of_two(found.reference_lr)}, the best "
        f"at m = {first}."
    )


def _octaves(step: float) -> str:
    return count(round(step), "octave") if step == round(step) else f"{step:.2g} octaves"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
