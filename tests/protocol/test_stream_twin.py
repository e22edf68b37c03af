"""The product's stream against one written from docs/random-numbers.md, and both against literals.

The twin itself is held to published answers of its generators, which neither side made.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from smallbatch.protocol.stream import DIGEST, batches, epoch_examples
from tests.engines import twin
from tests.models.twin_weights import tempered, twister_words
from tests.protocol import twin_stream
from tests.protocol.twin_stream import below, epoch_of, permutation, philox_block, seed_words

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/random-numbers.md"
TWINS = ["engines/twin.py", "models/twin_weights.py", "protocol/twin_stream.py"]

# `philox4x64 10` of Random123, tests/kat_vectors (github.com/DEShawResearch/random123): counter,
# key, block. The last two inputs are the binary digits of pi.
PHILOX = [
    (
        [0, 0, 0, 0],
        [0, 0],
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        [2**64 - 1] * 4,
        [2**64 - 1] * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]

# O'Neill's C++ seed_seq_fe128 (gist.github.com/imneme/540829265469e673d045), as NumPy keeps them in
# numpy/random/tests/test_seed_sequence.py: words of the seed, words given.
SEEDS = [
    (
        [3735928559, 195939070, 229505742, 305419896],
        [3914649087, 576849849, 3593928901, 2229911004],
    ),
    (
        [3668361503, 4165561550, 1661411377, 3634257570],
        [2240804226, 3691353228, 1365957195, 2654016646],
    ),
    (
        [164546577, 4166754639, 1765190214, 1303880213],
        [3562296087, 3191708229, 1147942216, 3726991905],
    ),
    (
        [2766103236, 2883057919, 4029656435, 862374500],
        [296367413, 4262059219, 13109864, 3283683422],
    ),
]

# Seed, epoch, N, and the first eight of each part.
GOLDEN = [
    pytest.param(
        (0, 0, 8),
        [4, 1, 3, 6, 0, 5, 2, 7],
        [0, 6, 0, 3, 4, 0, 6, 7],
        [4, 7, 8, 1, 3, 4, 1, 5],
        [1, 1, 0, 1, 0, 1, 0, 1],
        id="first",
    ),
    pytest.param(
        (1, 2, 23),
        [9, 13, 16, 21, 10, 20, 22, 6],
        [5, 3, 2, 8, 7, 7, 5, 1],
        [7, 5, 8, 1, 6, 8, 8, 4],
        [1, 1, 0, 1, 1, 0, 1, 1],
        id="odd",
    ),
    pytest.param(
        (4, 299, 50_000),
        [14465, 41655, 19285, 46068, 4131, 43521, 37933, 6385],
        [2, 2, 6, 0, 7, 2, 4, 4],
        [5, 5, 3, 5, 7, 0, 4, 2],
        [1, 0, 0, 1, 1, 0, 0, 0],
        id="cifar",
    ),
    pytest.param(
        (9_999, 1, 4_099),
        [663, 824, 651, 3190, 3878, 2305, 609, 2939],
        [7, 7, 8, 0, 5, 7, 6, 0],
        [5, 4, 0, 6, 2, 7, 6, 4],
        [0, 1, 0, 0, 0, 1, 1, 0],
        id="last-seed",
    ),
    pytest.param(
        (2**32 + 7, 0, 100),
        [79, 85, 74, 1, 3, 15, 17, 87],
        [7, 5, 5, 3, 8, 7, 1, 4],
        [3, 3, 0, 6, 7, 2, 4, 4],
        [1, 0, 0, 1, 0, 1, 1, 1],
        id="seed-of-two-words",
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), PHILOX)
def test_the_twins_philox_gives_the_published_answers(
    counter: list[int], key: list[int], block: tuple[int, ...]
) -> None:
    assert philox_block(counter, key) == block


@pytest.mark.parametrize(("entropy", "given"), SEEDS)
def test_the_twins_seeding_gives_the_published_answers(
    entropy: list[int], given: list[int]
) -> None:
    assert seed_words(entropy, 4) == given


def _numpys_mt19937() -> Iterator[int]:
    """The words under `Generator(MT19937(1234567890))`, which begins with the state's last word."""
    state = [2**31, *seed_words([1234567890], 624)[1:]]
    return chain([tempered(state[-1])], twister_words(state))


def test_the_twins_draws_give_the_answers_that_numpy_publishes() -> None:
    """`test_permutation` and `test_integers` of numpy/random/tests/test_generator_mt19937.py."""
    assert permutation(10, _numpys_mt19937()) == [3, 0, 8, 7, 9, 4, 2, 5, 1, 6]
    words = _numpys_mt19937()
    drawn = [below(198, words) - 99 for _ in range(6)]
    assert drawn == [-80, -56, 41, 37, -83, -16]


def test_a_number_below_nine_is_drawn_again_where_it_would_be_biased() -> None:
    """2³² words do not divide into nine: of the 477,218,589 for zero, the first is left out."""
    # 9·w ends in 0, 2 and 4 for these; the first two are below 2³² mod 9 = 4.
    unfair = [0, 2 * pow(9, -1, 2**32) % 2**32]
    fair = 4 * pow(9, -1, 2**32) % 2**32
    assert below(9, iter([*unfair, fair])) == 9 * fair >> 32
    assert below(9, iter([2**32 - 1])) == 8


@pytest.mark.parametrize(("where", "index", "top", "left", "flip"), GOLDEN)
def test_product_and_twin_give_these_literals(
    where: tuple[int, int, int], index: list[int], top: list[int], left: list[int], flip: list[int]
) -> None:
    product, other = epoch_examples(*where), epoch_of(*where)
    assert product.index[:8].tolist() == other.index[:8] == index
    assert product.top[:8].tolist() == other.top[:8] == top
    assert product.left[:8].tolist() == other.left[:8] == left
    assert product.flip[:8].tolist() == other.flip[:8] == [bool(f) for f in flip]


@pytest.mark.parametrize(
    "where", [(0, 0, 1), (3, 7, 2), (5, 0, 257), (7, 65_536, 1_000), (9_999, 299, 20_000)]
)
def test_whole_epochs_are_the_twins(where: tuple[int, int, int]) -> None:
    product, other = epoch_examples(*where), epoch_of(*where)
    assert product.index.tolist() == other.index
    assert product.top.tolist() == other.top
    assert product.left.tolist() == other.left
    assert product.flip.tolist() == other.flip


@pytest.mark.parametrize(("m", "start"), [(1, 0), (4, 0), (10, 3), (23, 1), (30, 0)])
def test_batches_are_the_twins_positions_in_turn(m: int, start: int) -> None:
    positions = twin.stream(2, 23, 3)
    cut = list(batches(2, 23, 3, m, start))
    assert len(cut) == 69 // m - start
    for update, batch in enumerate(cut, start):
        parts = [part.tolist() for part in (batch.index, batch.top, batch.left, batch.flip)]
        assert list(zip(*parts, strict=True)) == positions[update * m : (update + 1) * m]


def test_the_digest_in_a_runs_hash_is_that_of_the_twins_stream() -> None:
    epoch = epoch_of(0, 1, 4_099)
    parts = [epoch.index, epoch.top, epoch.left, epoch.flip]
    words = b"".join(np.array(part, dtype="<i8").tobytes() for part in parts)
    assert hashlib.sha256(words).hexdigest()[:16] == DIGEST


def test_the_example_of_the_page_is_the_twins() -> None:
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in PAGE.read_text().splitlines() if " | " in line
    )
    key = twin_stream.philox_key(0, 0, 0)
    epoch = epoch_of(0, 0, 8)
    assert rows["key of the order"] == ", ".join(f"0x{word:016x}" for word in key)
    [word] = islice(twin_stream.philox_words(key), 1)
    assert rows["its first long word"] == f"0x{word:016x}"
    for name, part in (("order", epoch.index), ("top", epoch.top), ("left", epoch.left)):
        assert rows[name] == str(part).strip("[]"), name
    assert rows["flip"] == str([int(f) for f in epoch.flip]).strip("[]")


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_takes_nothing_from_the_product_nor_random_numbers_from_a_library(name: str) -> None:
    tree = ast.parse((TESTS / name).read_text())
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
        # `np.random`, by whatever way it would be reached.
        assert not (isinstance(node, ast.Attribute) and node.attr == "random")
        assert not (isinstance(node, ast.Name) and node.id in ("__import__", "eval", "exec"))
    plain = {"__future__", "collections.abc", "dataclasses", "itertools", "math", "typing"}
    assert modules <= plain | {"numpy", "numpy.typing", "tests.protocol.twin_stream"}
