"""What an accuracy says beyond its test set."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from smallbatch.analysis.sampling import (
    beyond_chance,
    images_tested,
    interval,
    learned,
    leaves_open,
    n_cells,
)


def runs(cells: int = 1, seeds: int = 1, n_test: object = 100, classes: int = 10) -> pd.DataFrame:
    rows = [
        {"batch_size": 8, "bn_batch_size": None, "base_lr": 2.0**-k, "seed": seed,
         "n_test": n_test, "classes": classes}
        for k in range(cells) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("right", "n_test"), [(8, 10), (0, 20), (20, 20), (213, 256)])
def test_the_interval_is_wilsons(right: int, n_test: int) -> None:
    """Its bounds are the p whose own standard error is 1.96 times in the distance to the share."""
    share, z = right / n_test, 1.959964
    for bound in interval(share, n_test):
        distance = abs(share - bound)
        assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / n_test), abs=1e-6)


def test_a_test_set_leaves_open_what_is_not_known_to_a_point() -> None:
    assert leaves_open(0.5, 9_000)
    assert not leaves_open(0.5, 10_000)
    # The same images say more of an accuracy near 1.
    assert not leaves_open(0.9, 9_000)


def tail(right: int, n: int, p: float) -> float:
    """The probability of at least so many, summed term by term."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(right, n + 1))


@pytest.mark.parametrize(("cells", "classes"), [(1, 10), (20, 10), (1, 2), (20, 2)])
def test_the_more_cells_the_higher_the_best_must_be(cells: int, classes: int) -> None:
    found = runs(cells, seeds=3, classes=classes)
    enough = next(k for k in range(101) if tail(k, 100, 1 / classes) <= 0.01 / cells)
    assert beyond_chance(enough / 100, found)
    assert not beyond_chance((enough - 1) / 100, found)


def test_chance_is_one_over_the_classes() -> None:
    assert beyond_chance(0.45, runs(classes=10))
    assert not beyond_chance(0.45, runs(classes=2))


def test_without_a_number_of_images_any_accuracy_above_chance_will_do() -> None:
    unknown = runs(n_test=None)
    assert images_tested(unknown) is None
    assert beyond_chance(0.11, unknown)
    assert not beyond_chance(0.1, unknown)


def test_no_accuracy_is_not_beyond_chance() -> None:
    assert not beyond_chance(math.nan, runs())
    assert not learned(pd.DataFrame({"accuracy": []}), runs())
    assert learned(pd.DataFrame({"accuracy": [0.1, 0.6]}), runs())


def test_of_test_sets_of_several_sizes_the_smallest_counts() -> None:
    assert images_tested(pd.concat([runs(n_test=300), runs(n_test=200)])) == 200
    assert images_tested(runs(n_test=0)) is None


def test_cells_of_several_bn_batch_sizes_are_counted_apart() -> None:
    assert n_cells(pd.concat([runs(2, 3), runs(2).assign(bn_batch_size=4.0)])) == 4
