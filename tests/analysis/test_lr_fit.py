from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from smallbatch.analysis.lr_fit import fit_best

SIZES = [2, 4, 8, 16, 32, 64, 128]


def test_known_parameters_are_recovered_whatever_the_order() -> None:
    fit = fit_best(SIZES[::-1], [2**-5 / (1 + m / 24) for m in SIZES[::-1]])
    assert fit is not None
    assert fit.base_lr_0 == pytest.approx(2**-5, rel=2e-3)
    assert fit.m_star == pytest.approx(24, rel=2e-3)
    assert fit.rms_octaves < 1e-3


def test_it_is_the_least_squares_fit_of_rates_on_a_grid() -> None:
    """A twin by SciPy, over both parameters at once."""
    base_lrs = [2.0**k for k in (-4, -5, -4, -5, -6, -6, -8)]

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.log2(base_lrs) - theta[0] + np.log2(1 + np.array(SIZES) / 2 ** theta[1])

    twin = least_squares(residuals, [-4.0, 4.0])
    fit = fit_best(SIZES, base_lrs)
    assert fit is not None
    assert np.log2(fit.base_lr_0) == pytest.approx(twin.x[0], abs=2e-3)
    assert np.log2(fit.m_star) == pytest.approx(twin.x[1], abs=2e-3)
    assert fit.rms_octaves == pytest.approx(np.sqrt(np.mean(twin.fun**2)), abs=1e-4)


def test_two_batch_sizes_are_too_few() -> None:
    assert fit_best([2, 32], [2**-4, 2**-5]) is None
    assert fit_best([], []) is None


@pytest.mark.parametrize("base_lrs", [[1 / m for m in SIZES], [0.25] * len(SIZES)])
def test_without_a_bend_among_the_batch_sizes_there_is_no_fit(base_lrs: list[float]) -> None:
    assert fit_best(SIZES, base_lrs) is None
