"""The kinds of claims whose false verdicts are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.verdicts import rates, worlds
from benchmarks.verdicts.worlds import World

KINDS: dict[str, Callable[[], Iterator[World]]] = {
    "the best m is among some (Figs. 1-3, 5-11, 18)": worlds.best_in,
    "so, and some m learn nothing": worlds.dead,
    "so in three studies (Fig. 15)": partial(worlds.best_in, 3),
    "so in nine studies (Fig. 15)": partial(worlds.best_in, 9),
    "better on average (Figs. 10, 11, 13, 17/18)": worlds.mean_above,
    "better at every m (Fig. 5)": partial(worlds.mean_above, every=True),
    "gains more at some m (Figs. 3, 17/18)": worlds.gains_more,
    "the same level (Fig. 6)": worlds.same_level,
    "a fraction of the way (Fig. 10, the text's)": worlds.of_the_way,
    "less than a fraction (the text's)": partial(worlds.of_the_way, short=True),
    "the optimum η̃ fails beyond (Figs. 7-9)": worlds.optimum,
    "the best η̃ is not quite good beyond (Fig. 12)": partial(worlds.optimum, 0.9),
    "best at neighbouring η̃ (Fig. 12)": rates.best_over_a_range,
    "more sensitive to η̃ (Fig. 12)": rates.more_sensitive,
    "works wherever others do (Fig. 12)": rates.works_wherever,
    "the range shrinks (Fig. 16)": worlds.shrinks,
    "a BN batch of 4 or 8 is best (Fig. 13)": worlds.bn_best,
    "a BN batch of 16 to 64 is best (Fig. 14)": partial(worlds.bn_best, 3),
    "the best BN batch is the same (Fig. 13)": worlds.bn_near,
    "curves alike (Fig. 4)": worlds.curves_alike,
    "so, and other curves stay low": worlds.curves_low,
    "curves worse (Fig. 4)": worlds.curves_worse,
    "memory, variance of updates (text)": worlds.measured,
}
"""Kinds of claims, with the figures of those judged so → worlds."""
