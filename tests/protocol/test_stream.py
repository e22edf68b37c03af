from __future__ import annotations

import hashlib

import numpy as np
import pytest

from smallbatch.config.study import StudyConfig
from smallbatch.protocol import run as runs
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import DIGEST, PAD, batches, epoch_examples, stream_digest

INDEX, TOP = [4, 1, 3, 6, 0, 5, 2, 7], [0, 6, 0, 3, 4, 0, 6, 7]
LEFT, FLIP = [4, 7, 8, 1, 3, 4, 1, 5], [True, True, False, True, False, True, False, True]


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


def test_the_stream_is_the_one_of_this_protocol() -> None:
    """A NumPy that fails here makes another stream from the same seeds; hashes then differ too."""
    examples = epoch_examples(0, 0, 8)
    assert examples.index.tolist() == INDEX
    assert examples.top.tolist() == TOP
    assert examples.left.tolist() == LEFT
    assert examples.flip.tolist() == FLIP
    assert stream_digest() == DIGEST
    whole = epoch_examples(0, 1, 4099)
    parts = (whole.index, whole.top, whole.left, whole.flip.astype("<i8"))
    assert hashlib.sha256(b"".join(p.tobytes() for p in parts)).hexdigest().startswith(DIGEST)


def test_another_stream_makes_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=0.0)
    run = Run(study, "f", 4, 0.1, 0)
    before = run.hash
    monkeypatch.setattr(runs, "stream_digest", lambda: "another")
    other = run.hash
    assert other != before
    monkeypatch.setattr(runs, "stream_digest", lambda: "a third")
    assert run.hash not in (before, other)
