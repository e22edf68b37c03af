"""How the best base learning rate falls with the batch size, as one formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.advice import Fit
from smallbatch.analysis.stability import fit_limit

if TYPE_CHECKING:
    from collections.abc import Sequence


def fit_best(batch_sizes: Sequence[int], base_lrs: Sequence[float]) -> Fit | None:
    """Fit log η̃ = log η̃₀ - log(1 + m/m*) to the best η̃ of each m, as `fit_upper_limit` does.

    Args:
        batch_sizes: m, each once, in any order.
        base_lrs: The best η̃ at each, positive. AdamW's η knows no such law.

    Returns:
        The fit; None with fewer than three batch sizes, and where m* is known only to lie below, or
        above, them: η̃ then falls as 1/m throughout, or does not fall.
    """
    if len(batch_sizes) < 3:
        return None
    fit = fit_limit(np.array(batch_sizes, dtype=float), np.log2(np.array(base_lrs, dtype=float)))
    return None if fit.m_star_bound else Fit(fit.base_lr_0, fit.m_star, fit.rms_octaves)
