"""What an accuracy says beyond its test set, which is a sample of all images of its kind.

All seeds of a study are tested on the same images, so none of this gets surer with more seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.analysis.comparisons import MARGIN

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95

BY_CHANCE = 0.01
"""How probable it may be that one of a study's cells is as good as the best while all guess."""

CELL = ["batch_size", "bn_batch_size", "base_lr"]
"""What the cells of one study differ in."""


def images_tested(runs: pd.DataFrame) -> int | None:
    """The size of the test set; of several the smallest, None where it is not recorded."""
    sizes = runs["n_test"].dropna()
    return int(sizes.min()) if len(sizes) and sizes.min() > 0 else None


def interval(accuracy: float, n_test: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the accuracy on all images of the test set's kind.

    Args:
        accuracy: That on the test set, 0..1. A median may lie between two numbers of images; the
            nearest one counts.
        n_test: The number of test images.
    """
    from scipy.stats import binomtest  # a second to import

    right = round(accuracy * n_test)
    bounds = binomtest(right, n_test).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def leaves_open(accuracy: float, n_test: int) -> bool:
    """Whether the test set is too small for the accuracy to be known to one percentage point."""
    low, high = interval(accuracy, n_test)
    return (high - low) / 2 > MARGIN


def beyond_chance(accuracy: float, runs: pd.DataFrame) -> bool:
    """Whether an accuracy shows that something was learned, if it is a study's highest.

    A one-sided binomial test against an accuracy of 1/classes, at a level of 1 % divided by the
    number of the study's cells, as the highest of many is high by chance (docs/decisions.md,
    Numbers). Where the number of test images is not recorded, any accuracy above 1/classes will do.

    Args:
        accuracy: The highest of the study's cells, 0..1; NaN is not beyond chance.
        runs: All runs of the study.
    """
    guessing = chance(runs)
    if not accuracy > guessing:
        return False
    n_test = images_tested(runs)
    return n_test is None or not is_guess(accuracy, n_test, guessing, n_cells(runs))


def least_beyond_chance(runs: pd.DataFrame) -> float | None:
    """The lowest accuracy of a study's best cell that is `beyond_chance`, 0..1.

    Above 1: not even all right would be. None where the number of test images is not recorded.
    """
    from scipy.stats import binom

    n_test = images_tested(runs)
    if n_test is None:
        return None
    most_by_luck = binom.isf(BY_CHANCE / n_cells(runs), n_test, chance(runs))
    return (int(most_by_luck) + 1) / n_test


def is_guess(accuracy: float, n_test: int, guessing: float, cells: int = 1) -> bool:
    """Whether guesses reach an accuracy by luck, at the level `BY_CHANCE`.

    Args:
        accuracy: On the test set, 0..1; the highest of several cells.
        n_test: The number of test images.
        guessing: The probability that a guess of one image is right.
        cells: The number of cells.
    """
    from scipy.stats import binomtest

    found = binomtest(round(accuracy * n_test), n_test, guessing, alternative="greater")
    return float(found.pvalue) > BY_CHANCE / cells


def learned(best: pd.DataFrame, runs: pd.DataFrame) -> bool:
    """Whether any of one study's best cells is beyond chance, see `beyond_chance`.

    Args:
        best: The study's best cell at each m, with ``accuracy``; it may be empty.
        runs: All runs of the study.
    """
    return beyond_chance(float(best["accuracy"].max()), runs) if len(best) else False


def chance(runs: pd.DataFrame) -> float:
    """The accuracy of guessing, one over the number of classes.

    Records do not know how many images each class has. Where they differ, always naming the largest
    class is right more often than this: what is not beyond chance is then not beyond that either.
    """
    return 1.0 / float(runs["classes"].min())


def n_cells(runs: pd.DataFrame) -> int:
    """The number of cells of one study, those of diverged runs included."""
    return runs.groupby(CELL, dropna=False).ngroups
