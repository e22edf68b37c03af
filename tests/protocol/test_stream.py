from __future__ import annotations

import numpy as np
import pytest

from smallbatch.protocol.stream import PAD, batches, epoch_examples


def test_every_epoch_is_a_fresh_permutation_that_only_seed_and_epoch_decide() -> None:
    first = epoch_examples(7, 0, 50)
    assert sorted(first.index.tolist()) == list(range(50))
    np.testing.assert_array_equal(first.index, epoch_examples(7, 0, 50).index)
    assert first.index.tolist() != epoch_examples(7, 1, 50).index.tolist()
    assert first.index.tolist() != epoch_examples(8, 0, 50).index.tolist()


@pytest.mark.parametrize("m", [1, 4, 7, 10, 23])
def test_every_batch_size_sees_the_same_stream(m: int) -> None:
    n, epochs = 10, 5
    joined = np.concatenate([epoch_examples(3, e, n).index for e in range(epochs)])
    corners = np.concatenate([epoch_examples(3, e, n).top for e in range(epochs)])
    cut = list(batches(3, n, epochs, m))
    assert len(cut) == epochs * n // m
    assert {len(batch) for batch in cut} == {m}
    used = len(cut) * m
    np.testing.assert_array_equal(np.concatenate([b.index for b in cut]), joined[:used])
    np.testing.assert_array_equal(np.concatenate([b.top for b in cut]), corners[:used])


def test_crops_cover_all_corners_and_half_of_the_images_are_flipped() -> None:
    examples = epoch_examples(0, 0, 20_000)
    for corner in (examples.top, examples.left):
        counts = np.bincount(corner, minlength=2 * PAD + 1)
        assert len(counts) == 9
        # 20,000 / 9 = 2,222 each, standard deviation 44: five of them.
        assert abs(counts - 20_000 / 9).max() < 222
    assert abs(examples.flip.mean() - 0.5) < 5 * 0.5 / 20_000**0.5
