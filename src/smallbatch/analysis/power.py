"""What a comparison could have decided, and how many seeds would decide a given difference.

Both are of its own noise, so that they say something of the experiment and nothing of the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scipy.special import nctdtr, stdtrit

from smallbatch.analysis.inference import ALPHA, dependence

if TYPE_CHECKING:
    from smallbatch.analysis.comparisons import Comparison

POWER = 0.8
"""How often `seeds_needed` seeds decide a true difference."""

MOST_SEEDS = 100
"""Of more seeds nothing is said."""


def smallest_decided(found: Comparison, n: int, parts: int = 1) -> float:
    """The effect, to either side of 0, from which on n seeds of this noise decide half the time.

    Args:
        found: The comparison.
        n: Its number of seeds.
        parts: The number of parts of the claim, any one of which contradicts it.

    Returns:
        The effect, in the comparison's unit; NaN if the comparison has no noise of this kind.
    """
    one = float(found.spread)
    if n < 2 or math.isnan(one):
        return math.nan
    error = one * math.sqrt(dependence(n, found.chosen) / n)
    quantile = float(stdtrit(n - 1 + found.prior, 1 - ALPHA / parts))
    return quantile * error + float(found.loss)


def seeds_needed(
    found: Comparison, n: int, effect: float, parts: int = 1, k: float = 1
) -> int | None:
    """How many seeds support a statement that is true by ``effect`` in four of five cases.

    From the non-central t distribution. Where several comparisons must all succeed, each may fail
    in its share of the fifth. What a cross-fitted choice loses falls with the root of the number of
    seeds. Noise and loss are known from n seeds only, so this is a rough number.

    Args:
        found: A comparison of the same noise.
        n: Its number of seeds.
        effect: The true effect, in its unit, as far as the comparison can have it.
        parts: The number of parts of the claim.
        k: The bound that supports is one at the level / k.

    Returns:
        The number of seeds; None if it is above `MOST_SEEDS`, or if the comparison has no noise.
    """
    one = float(found.spread)
    if math.isnan(one):
        return None
    power = 1 - (1 - POWER) / (parts * found.rivals)
    for count in range(3, MOST_SEEDS + 1):
        freedom = count - 1 + found.prior
        ahead = min(effect, found.most) + found.margin - float(found.loss) * math.sqrt(n / count)
        if one == 0:
            if ahead > 0:
                return count
            continue
        centre = ahead * math.sqrt(count) / one
        needed = stdtrit(freedom, 1 - ALPHA / k) * math.sqrt(dependence(count, found.chosen))
        if 1 - nctdtr(freedom, centre, needed) >= power:
            return count
    return None
