import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.data.selection import balanced, by_content, stratified

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def water_filling(sizes: list[int], count: int) -> list[int]:
    """Deals ``count`` seats one at a time to the class with the fewest, as long as it has rows."""
    taken = [0] * len(sizes)
    for _ in range(count):
        open_classes = [k for k, size in enumerate(sizes) if taken[k] < size]
        taken[min(open_classes, key=lambda k: taken[k])] += 1
    return sorted(taken)


@given(labels=LABELS, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_balanced_is_as_equal_as_class_sizes_allow(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(labels)))
    array = np.array(labels)
    rows = balanced(array, count, seed=seed, stream=0)
    assert len(set(rows.tolist())) == count
    assert rows.tolist() == sorted(rows.tolist())
    sizes = np.bincount(array).tolist()
    found = np.bincount(array[rows], minlength=len(sizes)).tolist()
    assert sorted(found) == water_filling(sizes, count)


@given(labels=LABELS, seed=st.integers(0, 2**32 - 1))
def test_smaller_balanced_selections_are_nested(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    previous: set[int] = set()
    for count in range(1, len(labels) + 1):
        rows = set(balanced(array, count, seed=seed, stream=1).tolist())
        assert previous < rows
        previous = rows


def test_balanced_selections_depend_on_seed_and_stream() -> None:
    labels = np.repeat(np.arange(10), 100)
    first = balanced(labels, 50, seed=0, stream=0)
    assert first.tolist() == balanced(labels, 50, seed=0, stream=0).tolist()
    assert first.tolist() != balanced(labels, 50, seed=1, stream=0).tolist()
    assert first.tolist() != balanced(labels, 50, seed=0, stream=1).tolist()


def test_selection_is_uniform_within_a_class() -> None:
    labels = np.repeat(np.arange(2), 10)
    hits = np.zeros(20)
    for seed in range(2000):
        hits[balanced(labels, 10, seed=seed, stream=0)] += 1
    # Each row is drawn with probability 1/2: five standard deviations of a binomial.
    assert np.abs(hits - 1000).max() < 5 * np.sqrt(2000 / 4)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [([100, 100], 20, [10, 10]), ([90, 10], 10, [9, 1]), ([60, 30, 10], 50, [30, 15, 5])],
)
def test_stratified_keeps_shares(sizes: list[int], count: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = stratified(labels, count, seed=3, stream=2)
    assert np.bincount(labels[rows]).tolist() == expected


def test_selected_rows_are_pinned() -> None:
    """The rows of a seed must never change: prepared data sets are identified by content."""
    labels = np.repeat(np.arange(3), (9, 6, 3))
    assert balanced(labels, 6, seed=7, stream=0).tolist() == [3, 6, 11, 12, 15, 17]
    assert stratified(labels, 6, seed=7, stream=0).tolist() == [3, 4, 6, 11, 12, 15]


def digests_of(contents: list[int]) -> np.ndarray:
    words = np.random.default_rng(0).integers(0, 256, (max(contents) + 1, 16), dtype=np.uint8)
    return words[contents]


def test_by_content_each_class_has_its_share_whatever_the_order() -> None:
    labels = np.repeat([0, 1, 2], [400, 100, 10])
    digests = digests_of([*range(510)])
    chosen = by_content(labels, digests, 102, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [80, 20, 2]
    order = np.random.default_rng(1).permutation(510)
    np.testing.assert_array_equal(by_content(labels[order], digests[order], 102, seed=3),
                                  chosen[order])  # fmt: skip
    assert not np.array_equal(by_content(labels, digests, 102, seed=4), chosen)


def test_by_content_takes_those_of_the_lowest_hash() -> None:
    """As another implementation has it: SHA-256 of the seed in eight bytes and the digest."""
    labels = np.zeros(50, dtype=np.int64)
    digests = digests_of([*range(50)])
    hashes = [
        hashlib.sha256((7).to_bytes(8, "little") + digest.tobytes()).digest() for digest in digests
    ]
    lowest = sorted(range(50), key=hashes.__getitem__)[:12]
    assert sorted(lowest) == np.flatnonzero(by_content(labels, digests, 12, seed=7)).tolist()


def test_by_content_the_same_in_a_class_stays_together() -> None:
    contents = [row // 5 for row in range(100)]  # each five times
    for labels in (np.zeros(100, dtype=np.int64), np.arange(100) % 2):
        chosen = by_content(labels, digests_of(contents), 33, seed=0)
        assert 33 <= chosen.sum() <= 38
        for label in (0, 1):
            sides = [
                set(chosen[(np.array(contents) == it) & (labels == label)]) for it in range(20)
            ]
            assert all(len(each) <= 1 for each in sides)
    none = by_content(np.zeros(100, dtype=np.int64), digests_of(contents), 0, seed=0)
    assert not none.any()
