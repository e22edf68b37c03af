"""The size of a training, against a search of all sizes."""

from __future__ import annotations

import pytest

from smallbatch.pipeline.advise.size import FRESH, SEEDS, Size, choose_size, least_size


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(2, (1, 2)), (3, (1, 3)), (5, (1, 2, 5)), (10, (1, 3, 10)), (30, (3, 9, 30))],
)
def test_rungs_are_near_a_tenth_and_three_tenths(epochs: int, rungs: tuple[int, ...]) -> None:
    assert Size(1000, 200, epochs).rungs == rungs


@pytest.mark.parametrize(
    ("batch_size", "epochs"),
    # 750 training images; 200 updates are 27 images, 8 epochs, ...; the second rung has 3 epochs.
    [(2, 1), (4, 2), (8, 3), (16, 3), (64, 5)],
)
def test_a_bracket_has_200_updates_or_as_many_as_are_affordable(
    batch_size: int, epochs: int
) -> None:
    size = Size(1000, 200, 10)
    assert size.n_train == 750
    assert size.bracket_epochs(batch_size) == epochs
    assert epochs * 750 // batch_size >= 50


def test_work_counts_evaluations_as_a_third() -> None:
    size = Size(400, 60, 10)  # 300 training, 100 validation
    assert size.work(2) == pytest.approx(2 * (300 + 160 / 3) + 460 / 3)


def test_the_whole_cost_is_that_of_its_parts() -> None:
    size = Size(400, 60, 10)  # rungs 1, 3, 10
    parts = [
        18 * size.work(size.bracket_epochs(4)) + 18 * size.work(size.bracket_epochs(8)),
        2 * SEEDS * 4 * size.work(1),
        2 * (2 * SEEDS * size.work(3)),  # one candidate each, and two more
        3 / 2 * (2 * SEEDS * size.work(10)),  # three candidates
        2 * FRESH * size.work(10),
    ]
    assert size.whole_cost((4, 8), lambda _m, runs, work: runs * work) == pytest.approx(sum(parts))


@pytest.mark.parametrize("budget", [10, 1_000, 30_000, 400_000, 10**7, 10**9])
@pytest.mark.parametrize("epochs", [None, 4, 20])
def test_the_size_is_the_largest_that_fits(budget: float, epochs: int | None) -> None:
    available, tests, least = 500, 300, 40

    def fits(size: Size) -> bool:
        return size.whole_cost((4, 16), lambda _m, runs, work: runs * work) <= budget

    found = choose_size(available, tests, least, epochs, fits)
    tried = (epochs,) if epochs else (10, 5, 3)
    sizes = {
        e: [
            n for n in range(least, available + 1) if fits(Size(n, min(tests, max(200, n // 3)), e))
        ]
        for e in tried
    }
    if not any(sizes.values()):
        assert found is None
        return
    assert found is not None
    wanted = next(e for e in tried if sizes[e])
    assert found.images == max(sizes[wanted])
    if epochs or found.images < available:
        assert found.epochs == wanted
        return
    more = [e for e in range(10, 201) if fits(Size(available, found.test_images, e))]
    assert found.epochs == min(max(more), 54)  # 20,000 images of 375 training images


def test_the_least_size_has_three_epochs() -> None:
    assert least_size(500, 300, 40, None) == Size(40, 200, 3)
    assert least_size(30, 300, 40, 7) == Size(30, 200, 7)
