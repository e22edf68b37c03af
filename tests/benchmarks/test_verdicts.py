"""Simulations of false verdicts: a short version with fixed draws, and that they would notice."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.code import ROOT
from benchmarks.verdicts import rates, table, worlds
from benchmarks.verdicts.__main__ import SEEDS, count, merged, worst
from benchmarks.verdicts.kinds import KINDS
from benchmarks.verdicts.noises import NOISES, WILD
from benchmarks.verdicts.worlds import CONTRADICTED, STRICTLY, SUPPORTED, World

from smallbatch.analysis import comparisons
from smallbatch.analysis.inference import hindsight

SUMMARY = ROOT / "results/verdicts/summary.json"
DRAWS = 600
# A rate of 5 % is seen as at most this in 999 of 1,000 tries, one of 7 % where m are wild.
MOST = {False: 47, True: 61}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", KINDS)
def test_few_verdicts_are_false_at_the_boundary(kind: str, noise: str) -> None:
    """The world that was worst in the whole campaign, with other draws."""
    summary = json.loads(SUMMARY.read_text())
    own = [it for it in summary["counts"] if (it["kind"], it["noise"]) == (kind, noise)]
    assert len(own) == 2 * len(SEEDS)
    named = {f"{world.name} ({world.false})": world for world in KINDS[kind]()}
    for each in own:
        found = count(named[each["world"]], noise, each["n"], DRAWS, "test")
        assert found <= MOST[noise == WILD], each


def test_the_committed_table_keeps_to_what_is_allowed() -> None:
    counts = json.loads(SUMMARY.read_text())["counts"]
    places = {(it["kind"], it["noise"], it["n"], it["direction"]) for it in counts}
    ways = ("contradicted", "supported")
    assert places == set(itertools.product(KINDS, NOISES, SEEDS, ways))
    assert min(it["draws"] for it in counts) >= 4000
    assert table.too_many(counts) == []
    assert (ROOT / "results/verdicts/README.md").read_text() == table.page(counts, 4000)


def test_a_choice_in_hindsight_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cross-fitting the winner's curse makes false verdicts; the simulation sees them."""
    kind = "better on average (Figs. 10, 11, 13, 17/18)"
    [world] = [
        it for it in KINDS[kind]()
        if it.name == "8 × 13, flat over η̃ for winner" and it.false == SUPPORTED
    ]  # fmt: skip
    assert count(world, "normal", 5, 300, "test") < 20
    monkeypatch.setattr(comparisons, "cross_fitted", hindsight)
    assert count(world, "normal", 5, 300, "test") > 100


def test_a_world_says_which_verdicts_are_false() -> None:
    def judge(values: np.ndarray) -> list[comparisons.Comparison]:
        effect = values[:, 0, 0, 0]
        return [comparisons.Comparison(effect, effect, effect, margin=1.0)]

    world = World("", np.zeros((1, 1)), judge, CONTRADICTED)
    values = np.array([-2.0, -0.5, 0.5])[:, None, None, None]
    for false, errs in (
        (CONTRADICTED, [True, True, False]),
        (SUPPORTED, [False, True, True]),
        (STRICTLY, [False, False, True]),
    ):
        assert dataclasses.replace(world, false=false).errs(values).tolist() == errs


def test_noises_are_of_the_size_they_say() -> None:
    rng = np.random.default_rng(0)
    for name, noise in NOISES.items():
        values = noise(rng, (4000, 4, 2, 3))
        assert abs(values.mean()) < 0.05
        sizes = values.std(axis=(0, 2, 3))
        expected = {"seed and m × seed effects": [np.sqrt(2)] * 4, WILD: [3, 1, 3, 1],
                    "σ from 0.5 to 1.5 over m": np.linspace(0.5, 1.5, 4)}  # fmt: skip
        np.testing.assert_allclose(sizes, expected.get(name, [1] * 4), rtol=0.15)


def test_truths_are_at_the_boundary() -> None:
    """Where the best is to be among some: level, or behind by the margin."""
    seen = set[str]()
    for world in worlds.best_in():
        inside, outside = world.judge.args[1:]  # type: ignore[attr-defined]
        gap = world.truth[inside].max() - world.truth[outside].max()
        assert gap == (-worlds.MARGIN if world.false == SUPPORTED else 0)
        seen.add(world.false)
    assert seen == {CONTRADICTED, STRICTLY, SUPPORTED}


def test_truths_about_single_base_lrs_are_at_the_boundary() -> None:
    """Each window, loss and column by plain loops over the truth."""
    for world in rates.best_over_a_range():
        ahead = world.truth[:2].max(axis=0) - world.truth[2:].max()
        most = max(ahead[first : first + 2].min() for first in range(len(ahead) - 1))
        expected = {CONTRADICTED: 0, STRICTLY: 0, SUPPORTED: -worlds.MARGIN}
        assert most <= expected[world.false] if world.false != CONTRADICTED else most == 0
    for world in rates.more_sensitive():
        (by,) = world.judge.args  # type: ignore[attr-defined]
        lost = [
            row.max() - max(row[first : first + 3].mean() for first in range(len(row) - 2))
            for row in world.truth
        ]
        assert lost[0] - np.mean(lost[1:]) == pytest.approx(by)
    for world in rates.works_wherever():
        (judged,) = world.judge.args  # type: ignore[attr-defined]
        holds = [
            max(row[at] - rates.HALF, rates.HALF - world.truth[judged:, at].max())
            for row in world.truth[:judged] for at in range(world.truth.shape[1])
        ]  # fmt: skip
        assert min(holds) == 0


def test_kinds_that_are_not_simulated_are_as_they_were(tmp_path: Path) -> None:
    first, second, *others = KINDS
    before = [{"kind": kind, "false": 1} for kind in KINDS]
    (tmp_path / "summary.json").write_text(json.dumps({"counts": before}))
    new = [{"kind": second, "false": 2}, {"kind": first, "false": 3}]
    found = [(it["kind"], it["false"]) for it in merged(new, tmp_path)]
    assert found == [(first, 3), (second, 2), *((kind, 1) for kind in others)]


def test_the_worst_world_is_counted_with_other_draws() -> None:
    kind = "memory, variance of updates (text)"
    found = worst((kind, "normal", 3, 20, 50))
    assert [it.direction for it in found] == ["contradicted", "supported"]
    assert all((it.worlds, it.draws) == (2, 50) and it.false <= 10 for it in found)


def test_the_upper_bound_is_clopper_pearsons() -> None:
    from scipy import stats

    bound = stats.binomtest(160, 4000).proportion_ci(0.9).high  # one side of 95 %
    assert table.upper(160, 4000) == pytest.approx(bound)
    assert table.upper(10, 10) == 1
