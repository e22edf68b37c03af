"""The size of a training, against a search of all sizes."""

from __future__ import annotations

import pytest

from smallbatch.pipeline.advise.size import FRESH, SEEDS, Size, Work, choose_size, least_size


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
    assert Size(1000, 200, 4).bracket_epochs(64) == 4  # as a whole training has


def test_work_is_what_is_trained_on_and_what_is_evaluated() -> None:
    size = Size(400, 60, 10)  # 300 training, 100 validation
    assert size.work(2) == (2 * 300, 2 * 160 + 460)


def images(size: Size, epochs: int) -> float:
    return epochs * size.n_train + (epochs * 160 + 460) / 3


def cost(_m: int, runs: int, work: Work) -> float:
    return runs * (work.trained + work.evaluated / 3)


def test_the_whole_cost_is_that_of_its_parts() -> None:
    size = Size(400, 60, 10)  # rungs 1, 3, 10
    parts = [
        18 * images(size, size.bracket_epochs(4)) + 18 * images(size, size.bracket_epochs(8)),
        2 * SEEDS * 4 * images(size, 1),
        2 * (2 * SEEDS * images(size, 3)),  # one candidate each, and two more
        3 / 2 * (2 * SEEDS * images(size, 10)),  # three candidates
        2 * FRESH * images(size, 10),
    ]
    assert size.whole_cost((4, 8), cost) == pytest.approx(sum(parts))


@pytest.mark.parametrize("budget", [10, 1_000, 30_000, 400_000, 10**6, 10**7, 10**9])
@pytest.mark.parametrize("epochs", [None, 4, 20])
@pytest.mark.parametrize("available", [500, 3000])
def test_the_size_is_the_largest_that_fits(
    budget: float, epochs: int | None, available: int
) -> None:
    tests, least = 300, 40

    def size_of(n: int, e: int) -> Size:
        return Size(n, min(tests, max(200, n // 3)), e)

    def fits(size: Size) -> bool:
        return size.whole_cost((4, 16), cost) <= budget

    found = choose_size(available, tests, least, epochs, fits)
    # The first number of epochs for which enough images fit, or else all that there are.
    enough = {epochs: 0} if epochs else {10: 2000, 5: 1000, 3: 0}
    most = {
        e: max((n for n in range(least, available + 1) if fits(size_of(n, e))), default=0)
        for e in enough
    }
    chosen = next((e for e in enough if most[e] and most[e] >= min(enough[e], available)), None)
    if chosen is None:
        assert found is None
        return
    assert found is not None
    assert found.images == most[chosen]
    if epochs or found.images < available:
        assert found.epochs == chosen
        return
    more = [e for e in range(chosen, 201) if fits(size_of(available, e))]
    # At most 20,000 images, of 375 or 2,250 training images, or 30 epochs.
    assert found.epochs == min(max(more), 54 if available == 500 else 30)


def test_the_least_size_has_three_epochs() -> None:
    assert least_size(500, 300, 40, None) == Size(40, 200, 3)
    assert least_size(30, 300, 40, 7) == Size(30, 200, 7)
