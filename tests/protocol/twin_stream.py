"""A second implementation of the stream of examples, from docs/random-numbers.md.

All in Python's integers. It uses neither the product nor NumPy's random numbers, so that an error
of either shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

Word = int  # of 32 bits, or of 64 where said
BITS32, BITS64 = 2**32 - 1, 2**64 - 1


def words_of(number: int) -> list[Word]:
    """The 32-bit digits of a number, lowest first; zero has one."""
    words = [number & BITS32]
    while number := number >> 32:
        words.append(number & BITS32)
    return words


class Hash:
    """One of the two hashes of a seed, which differ in constants; its key moves with every word."""

    def __init__(self, key: Word, factor: Word) -> None:
        self.key, self.factor = key, factor

    def __call__(self, word: Word) -> Word:
        word ^= self.key
        self.key = self.key * self.factor & BITS32
        word = word * self.key & BITS32
        return word ^ word >> 16


def mixed(x: Word, y: Word) -> Word:
    word = (0xCA01F9DD * x - 0x4973F715 * y) & BITS32
    return word ^ word >> 16


def seed_words(entropy: Sequence[Word], count: int) -> list[Word]:
    """Spread the words of a seed over ``count`` words of 32 bits."""
    taken = Hash(0x43B0D7E5, 0x931E8875)
    padded = [*entropy, 0, 0, 0, 0]
    pool = [taken(word) for word in padded[:4]]
    for source in range(4):
        for target in range(4):
            if target != source:
                pool[target] = mixed(pool[target], taken(pool[source]))
    for word in entropy[4:]:
        for target in range(4):
            pool[target] = mixed(pool[target], taken(word))
    given = Hash(0x8B51F9DD, 0x58F38DED)
    return [given(pool[i % 4]) for i in range(count)]


def philox_block(counter: Sequence[Word], key: Sequence[Word]) -> tuple[Word, ...]:
    """Philox 4×64 with 10 rounds: four words of 64 bits from a counter of four, a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1 = second >> 64 ^ c1 ^ k0, second & BITS64
        c2, c3 = first >> 64 ^ c3 ^ k1, first & BITS64
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & BITS64, k1 + 0xBB67AE8584CAA73B & BITS64
    return c0, c1, c2, c3


def philox_key(seed: int, epoch: int, purpose: int) -> tuple[Word, Word]:
    # The seed fills at least four words, so that it cannot be taken for what follows it.
    own = words_of(seed)
    own += [0] * (4 - len(own))
    a, b, c, d = seed_words([*own, *words_of(epoch), *words_of(purpose)], 4)
    return b << 32 | a, d << 32 | c


def philox_words(key: tuple[Word, Word]) -> Iterator[Word]:
    """Words of 64 bits without end."""
    counter = 0
    while True:
        counter += 1  # the block of counter zero is never used
        yield from philox_block([counter >> 64 * i & BITS64 for i in range(4)], key)


def halves(words: Iterator[Word]) -> Iterator[Word]:
    """Two words of 32 bits from each of 64, the lower half first."""
    for word in words:
        yield word & BITS32
        yield word >> 32


def permutation(n: int, words: Iterator[Word]) -> list[int]:
    """Fisher and Yates's shuffle of 0 … n − 1, from the end, by words of 32 bits."""
    order = list(range(n))
    for last in range(n - 1, 0, -1):
        mask = 2 ** last.bit_length() - 1
        chosen = next(words) & mask
        while chosen > last:
            chosen = next(words) & mask
        order[last], order[chosen] = order[chosen], order[last]
    return order


def below(bound: int, words: Iterator[Word]) -> int:
    """Lemire's unbiased number from 0 to ``bound`` − 1, by words of 32 bits."""
    product = next(words) * bound
    while product & BITS32 < 2**32 % bound:
        product = next(words) * bound
    return product >> 32


@dataclass
class Epoch:
    index: list[int]
    top: list[int]
    left: list[int]
    flip: list[bool]


def epoch_of(seed: int, epoch: int, n: int) -> Epoch:
    """An epoch of the stream."""
    order, crops, flips = (philox_words(philox_key(seed, epoch, purpose)) for purpose in range(3))
    corners = halves(crops)
    return Epoch(
        index=permutation(n, halves(order)),
        top=[below(9, corners) for _ in range(n)],
        left=[below(9, corners) for _ in range(n)],
        flip=[word < 2**63 for word in islice(flips, n)],
    )


def photograph_crop(
    seed: int, epoch: int, row: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """Row, column, height and width of an encoded image's crop."""
    key = philox_key(seed, epoch, 3)
    words = [word for block in range(1, 11) for word in philox_block([block, row, 0, 0], key)]
    numbers = iter([(word >> 11) / 2**53 for word in words])
    for _ in range(10):
        u0, u1, u2, u3 = islice(numbers, 4)
        area = height * width * (0.08 + 0.92 * u0)
        ratio = math.exp(math.log(3 / 4) + u1 * (math.log(4 / 3) - math.log(3 / 4)))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            corner = int(u2 * (height - tall + 1)), int(u3 * (width - wide + 1))
            return *corner, tall, wide
    wide, tall = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
