"""Every claim on made-up runs that make each of its verdicts come out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smallbatch.analysis import claims
from smallbatch.analysis.claims import CLAIMS, Finding, claims_record, judge, judge_all
from smallbatch.analysis.evidence import Evidence
from smallbatch.analysis.ghost import bn_cells
from smallbatch.analysis.seeds import seed_array
from smallbatch.errors import UserError
from tests.analysis.accuracies import PLAIN_SGD

MS = (2, 4, 8, 16, 32, 64, 128)
LRS = tuple(2.0**k for k in (-10, -8, -6))
# By how much a statement holds for each of the seeds.
HOLDS, FAILS, WAVERS = (0.1, 0.095, 0.105), (-0.1, -0.095, -0.105), (0.1, -0.1, 0.02)
HELD = "strictly supported"

Accuracy = Callable[[int, float, int], float | None]  # of m, η̃ or BN batch, seed
Rows = list[dict[str, Any]]


NORMS = {"1": "none", "2": "none", "3": "none", "text": "none", "6": "batch_conv",
         "13a": "ghost", "13b": "ghost", "14": "ghost"}  # fmt: skip
MODELS = {"1": "alexnet", "5": "alexnet", "6": "alexnet", "2": "resnet8", "3": "resnet20",
          "12": "resnet50", "14": "resnet50"}  # fmt: skip
PLAIN = ("1", "2", "3", "text", "5", "6", "7")
"""Figures without augmentation."""


def runs_of(
    figure: str, accuracy: Accuracy, *, ms: tuple[int, ...] = MS, lrs: tuple[float, ...] = LRS,
    bn: bool = False, seeds: int = 3, chance_of: int = 10, study: str | None = None,
) -> Rows:  # fmt: skip
    """Runs of one study; with ``bn`` the second axis is the BN batch size. None: diverged."""
    rows: Rows = []
    for m in ms:
        for column in lrs:
            for seed in range(seeds):
                if bn and column > m:
                    continue
                value = accuracy(m, column, seed)
                rows.append({
                    "dataset": "made-up", "study": study or f"study-{figure}",
                    "batch_size": m, "base_lr": 2.0**-8 if bn else column, "seed": seed,
                    "run": f"{figure}-{m}-{column}-{seed}",
                    "outcome": "diverged" if value is None else "finished",
                    "reported_accuracy": math.nan if value is None else value,
                    "classes": chance_of, "n_train": 1000, "height": 16, "width": 24,
                    "scale": "small", "fingerprint": "made-up", "protocol": 1, "updates": 100,
                    "figure": figure, "budget": "epochs", "weight_decay": 0.0,
                    "epochs": 20 if figure == "18" else 10,
                    "model": MODELS.get(figure, "resnet32"), "augment": figure not in PLAIN,
                    "norm": NORMS.get(figure, "batch"),
                    "warmup": 0.1 if figure in ("10", "11") else 0.0,
                    "bn_batch_size": column if bn else None,
                    "bn_batch_sizes": "[2]" if bn else None,
                    "parameters": 2000 if figure == "3" else 1000,
                    "lr": m * (2.0**-8 if bn else column), **PLAIN_SGD,
                })  # fmt: skip
    return rows


def at_best_lr(accuracy: Callable[[int, int], float]) -> Accuracy:
    """Accuracy at the middle η̃; 0.2 lower at both others."""
    return lambda m, lr, seed: accuracy(m, seed) - (0.0 if lr == LRS[1] else 0.2)


def raised(d: tuple[float, ...], where: Callable[[int], bool]) -> Accuracy:
    """0.6, and by d more at some m; seeds differ by far more than d, all alike."""
    return at_best_lr(lambda m, seed: 0.55 + 0.1 * seed + (d[seed] if where(m) else 0.0))


def level(value: float = 0.0) -> Accuracy:
    return at_best_lr(lambda m, seed: 0.55 + 0.1 * seed + value)


def best(figure: str, low: int, high: int) -> Callable[[tuple[float, ...]], Rows]:
    return lambda d: runs_of(figure, raised(d, lambda m: low <= m <= high))


def over(better: str, worse: str, where: Callable[[int], bool]) -> Callable[..., Rows]:
    return lambda d: [*runs_of(better, raised(d, where)), *runs_of(worse, level())]


def fraction_of_way(reach: float) -> float:
    return 0.1 + 0.5 * reach


def good_out_to_128(d: tuple[float, ...]) -> Rows:
    return runs_of("10", at_best_lr(
        lambda m, seed: fraction_of_way(0.9 + d[seed] / 2 if m >= 16 else 1.0)
    ))  # fmt: skip


def learns_to_8(d: tuple[float, ...]) -> Rows:
    return runs_of("text", at_best_lr(
        lambda m, seed: fraction_of_way(1.0 if m <= 8 else 0.25 - d[seed])
    ), lrs=(2.0**-12, *LRS))  # fmt: skip


def optimum_unusable(figure: str, limit: int) -> Callable[..., Rows]:
    return lambda d: runs_of(figure, at_best_lr(
        lambda m, seed: fraction_of_way(1.0 if m <= limit else 0.5 - d[seed])
    ))  # fmt: skip


FIVE = tuple(2.0**k for k in (-11, -10, -9, -8, -7))


def best_over_a_range(d: tuple[float, ...]) -> Rows:
    """m = 16 and 32 are ahead by d at two neighbouring η̃; the others are as good at one."""

    def accuracy(m: int, lr: float, seed: int) -> float:
        good = FIVE[1:3] if m in (16, 32) else FIVE[1:2]
        return 0.6 + 0.05 * seed + (d[seed] if m in (16, 32) else 0.0) - 0.3 * (lr not in good)

    return runs_of("12", accuracy, lrs=FIVE)


def sensitive(d: tuple[float, ...]) -> Rows:
    """A step beside its best η̃ m = 64 loses d more than 2 points more than m = 16 and 32 do."""

    def accuracy(m: int, lr: float, seed: int) -> float:
        lost = 0.15 + (0.02 + d[seed] if m == 64 else 0.0)
        steps = min(abs(FIVE.index(lr) - 2), 1)
        return 0.6 + 0.05 * seed - 1.5 * lost * steps

    return runs_of("12", accuracy, lrs=FIVE)


def degrade(d: tuple[float, ...]) -> Rows:
    return runs_of("12", at_best_lr(
        lambda m, seed: fraction_of_way(1.0 if m <= 64 else 0.9 - d[seed] / 2)
    ))  # fmt: skip


def small_m_converge(d: tuple[float, ...]) -> Rows:
    """At the middle η̃ larger m reach the top, and small ones half of it and d more."""

    def accuracy(m: int, lr: float, seed: int) -> float:
        return fraction_of_way((0.5 + d[seed] if m <= 8 else 1.0) if lr == LRS[1] else 0.1)

    return runs_of("12", accuracy)


def ranges(d: tuple[float, ...]) -> Rows:
    """Reliable η̃ around the middle of nine: 5, 3, 1 at m = 2, 8, 32, or the other way round."""
    lrs = tuple(2.0**k for k in range(-12, -3))

    def accuracy(m: int, lr: float, seed: int) -> float:
        half = {2: 2, 8: 1, 32: 0}[m if d[seed] > 0 else 64 // m]
        return 0.6 if abs(math.log2(lr) + 8) <= half else 0.15

    return runs_of("2", accuracy, ms=(2, 8, 32), lrs=lrs)


def bn_best(
    figure: str, low: int = 4, high: int = 8, ms: tuple[int, ...] = (16, 64)
) -> Callable[..., Rows]:
    return lambda d: runs_of(
        figure, lambda m, b, seed: 0.6 + (d[seed] if low <= b <= high else 0),
        ms=ms, lrs=tuple(2**k for k in range(1, 8) if low <= 2 * 2**k and 2**k <= 2 * high),
        bn=True,
    )  # fmt: skip


def bn_independent(figure: str) -> Callable[..., Rows]:
    def accuracy(m: int, b: float, seed: int, d: tuple[float, ...]) -> float:
        return {4: 0.65, 32: 0.65 - d[seed] if m == 64 else 0.5}.get(int(b), 0.4)

    return lambda d: runs_of(
        figure, lambda m, b, seed: accuracy(m, b, seed, d),
        ms=(32, 64), lrs=(2, 4, 8, 16, 32), bn=True,
    )  # fmt: skip


def sgd_smaller(figure: str) -> Callable[..., Rows]:
    return lambda d: runs_of(
        figure, lambda m, _b, seed: 0.6 + (d[seed] if m == 8 else 0),
        ms=(8, 32), lrs=(2, 4), bn=True,
    )  # fmt: skip


def longer(gain: Callable[[int, float], float]) -> Callable[..., Rows]:
    return lambda d: [
        *runs_of("17", level()),
        *runs_of("18", at_best_lr(lambda m, seed: 0.55 + 0.1 * seed + gain(m, d[seed]))),
    ]


MAKERS: dict[str, Callable[[tuple[float, ...]], Rows]] = {
    "best-batch-size-fig-1": best("1", 1, 8),
    "best-batch-size-fig-2": best("2", 2, 4),
    "best-batch-size-fig-3": best("3", 2, 4),
    "small-m-eases-depth": over("3", "2", lambda m: m <= 8),
    "best-batch-size-fig-5": best("5", 8, 64),
    "bn-better-than-none-fig-5": over("5", "1", lambda m: 8 <= m <= 64),
    "best-batch-size-fig-6": best("6", 4, 32),
    "bn-after-convs-same-level-fig-6": lambda d: [
        *runs_of("5", level()),
        *runs_of("6", at_best_lr(lambda _, seed: 0.55 + 0.1 * seed + 0.02 - d[seed] / 10)),
    ],
    "best-batch-size-fig-7": best("7", 4, 8),
    "best-batch-size-fig-8": best("8", 4, 8),
    "best-batch-size-fig-9": best("9", 4, 8),
    "best-batch-size-fig-10": best("10", 4, 8),
    "warm-up-good-to-128": good_out_to_128,
    "best-batch-size-fig-11": best("11", 4, 16),
    "warm-up-helps-fig-10": over("10", "8", lambda m: m >= 16),
    "warm-up-helps-fig-11": over("11", "9", lambda m: m >= 16),
    "no-norm-improves-to-2": best("1", 2, 2),
    "best-always-below-32": best("7", 1, 31),
    "resnet32-no-norm-learns-to-8": learns_to_8,
    "optimum-base-lr-unusable-fig-7": optimum_unusable("7", 16),
    "optimum-base-lr-unusable-fig-8": optimum_unusable("8", 16),
    "optimum-base-lr-unusable-fig-9": optimum_unusable("9", 8),
    "best-batch-size-fig-12": best("12", 16, 64),
    "best-over-a-range-of-base-lrs-fig-12": best_over_a_range,
    "m-64-sensitive-to-base-lr-fig-12": sensitive,
    "large-m-degrade-at-the-best-base-lr-fig-12": degrade,
    "small-m-converge-over-the-full-range-fig-12": small_m_converge,
    "range-shrinks": ranges,
    "bn-batch-4-or-8-best-fig-13a": bn_best("13a"),
    "bn-batch-independent-fig-13a": bn_independent("13a"),
    "smaller-sgd-batch-better-fig-13a": sgd_smaller("13a"),
    "bn-batch-4-or-8-best-fig-13b": bn_best("13b"),
    "bn-batch-independent-fig-13b": bn_independent("13b"),
    "smaller-sgd-batch-better-fig-13b": sgd_smaller("13b"),
    "bn-batch-16-to-64-best-fig-14": bn_best("14", 16, 64, (128, 256)),
    "smaller-sgd-batch-better-fig-14": sgd_smaller("14"),
    "curves-alike-4-to-64": lambda d: runs_of(
        "7", at_best_lr(lambda m, seed: 0.6 + (0.03 - d[seed] / 10 if m == 32 else 0))
    ),
    "curves-worse-beyond-64": best("7", 4, 64),
    "longer-training-helps": longer(lambda _m, d: d),
    "longer-training-helps-large-m-most": longer(lambda m, d: d if m >= 64 else 0.0),
    "longer-training-does-not-close-the-gap": longer(lambda m, d: d if m <= 16 else 0.0),
    "update-variance-linear": lambda _: runs_of("2", level()),
    "memory-grows": lambda _: [
        row for figure in "123" for row in runs_of(figure, level(), ms=(2, 4, 8))
    ],
}  # fmt: skip


def histories(runs: pd.DataFrame) -> pd.DataFrame:
    """Two epochs of the reported accuracy for every run."""
    keys = ["dataset", "study", "run", "batch_size", "base_lr", "seed", "outcome"]
    frames = [
        runs[keys].assign(epoch=epoch, test_accuracy=runs["reported_accuracy"]) for epoch in (1, 2)
    ]
    return pd.concat(frames, ignore_index=True)


def memory(d: tuple[float, ...], device: str = "cuda") -> pd.DataFrame:
    """From m = 2 to 8 the memory of the three studies grows by d octaves; of stacked it falls."""
    return pd.DataFrame([
        {
            "dataset": "made-up", "fingerprint": "made-up", "study": f"study-{study}",
            "model": MODELS[str(study)], "norm": "none", "batch_size": m, "engine": engine,
            "device": device, "bytes": 1e9 * 2 ** (grown if m == 8 else 0),
        }
        for study in (1, 2, 3) for m in (2, 8)
        for engine, grown in (("loop", d[study - 1]), ("stacked", -5.0))
    ])  # fmt: skip


def variances(d: tuple[float, ...]) -> pd.DataFrame:
    """Variances m^slope, the slope of each seed 0.1 - d/10 away from 1."""
    return pd.DataFrame([
        {"dataset": "made-up", "study": "study-2", "seed": seed, "batch_size": m,
         "base_lr": 0.1, "seen": seen, "variance": 3.0 * m ** (slope if seen else 1.0)}
        for seed, slope in enumerate(1.1 - value / 10 for value in d)
        for m in (2, 8, 32) for seen in (0, 64)
    ])  # fmt: skip


def finding_of(name: str, rows: Rows, d: tuple[float, ...] = HOLDS) -> Finding:
    runs = pd.DataFrame(rows)
    evidence = Evidence("made-up", runs, histories(runs), variances(d), memory(d))
    (claim,) = [claim for claim in CLAIMS if claim.name == name]
    (finding,) = judge(claim, [evidence])
    return finding


@pytest.mark.parametrize(
    "name",
    [
        "optimum-base-lr-unusable-fig-8",
        "best-over-a-range-of-base-lrs-fig-12",
        "m-64-sensitive-to-base-lr-fig-12",
        "large-m-degrade-at-the-best-base-lr-fig-12",
        "small-m-converge-over-the-full-range-fig-12",
        "range-shrinks",
    ],
)
def test_a_base_lr_that_was_not_run_did_not_fail(name: str) -> None:
    rows = MAKERS[name](HOLDS)
    largest = max(row["batch_size"] for row in rows)
    best = max((row for row in rows if not math.isnan(row["reported_accuracy"])),
               key=lambda row: row["reported_accuracy"])["base_lr"]  # fmt: skip
    kept = [row for row in rows if (row["batch_size"], row["base_lr"]) != (largest, best)]
    assert len(kept) < len(rows)
    finding = finding_of(name, kept)
    assert finding.verdict == "undecided"
    assert f"not every η̃ was run at m = {largest}" in finding.reason


@pytest.mark.parametrize("d", [HOLDS, FAILS])
@pytest.mark.parametrize("left_out", [16, 32])
def test_a_comparison_with_two_batch_sizes_is_open_without_one(
    d: tuple[float, ...], left_out: int
) -> None:
    name = "m-64-sensitive-to-base-lr-fig-12"
    rows = MAKERS[name](d)
    assert finding_of(name, rows, d).verdict != "undecided"
    finding = finding_of(name, [row for row in rows if row["batch_size"] != left_out], d)
    assert finding.verdict == "undecided"
    assert f"m = {left_out} not run" in finding.reason


def test_a_claim_is_judged_on_the_axis_that_it_is_about() -> None:
    """η̃ are not taken for BN batch sizes, nor these for η̃, whatever a study's label says."""
    for name in MAKERS:
        (claim,) = [claim for claim in CLAIMS if claim.name == name]
        rows = [dict(row) for row in MAKERS[name](HOLDS)]
        on_bn = bool(set(claim.studies) & {"13a", "13b", "14"})
        for row in rows:
            if row["figure"] in ("13a", "13b", "14"):
                row |= {
                    "bn_batch_size": None,
                    "bn_batch_sizes": None,
                    "base_lr": row["bn_batch_size"],
                }
            elif not on_bn:
                row |= {"bn_batch_size": 2, "bn_batch_sizes": "[2]"}
        if not claim.measurement:  # which is not of accuracies
            finding = finding_of(name, rows)
            assert finding.verdict == "undecided", name
            assert "axis is " in finding.reason, name


@pytest.mark.parametrize(
    ("key", "said"),
    [("fingerprint", "measured on other images"), ("model", "measured with another model"),
     ("norm", "measured with another norm")],
)  # fmt: skip
def test_a_measurement_of_other_images_or_models_decides_nothing(key: str, said: str) -> None:
    facts = {"fingerprint": "made-up", "model": "resnet8", "norm": "none"}
    runs = pd.DataFrame(MAKERS["update-variance-linear"](HOLDS)).assign(**facts)
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    for changed, verdict in ((facts, HELD), (facts | {key: "other"}, "undecided")):
        table = variances(HOLDS).assign(**changed)
        (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), table)])
        assert finding.verdict == verdict
        assert (said in finding.reason) == (verdict == "undecided")
    if key == "fingerprint":  # also of a study that has no runs
        table = table.assign(study="gone")
        (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), table)])
        assert finding.verdict == "undecided"


def test_every_claim_is_tested_and_has_a_name_of_its_own() -> None:
    assert sorted(MAKERS) == sorted(claim.name for claim in CLAIMS)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("d", "verdict"), [(HOLDS, HELD), (FAILS, "contradicted"), (WAVERS, "undecided")]
)
def test_each_verdict_comes_out(name: str, d: tuple[float, ...], verdict: str) -> None:
    finding = finding_of(name, MAKERS[name](d), d)
    assert finding.verdict == verdict, finding
    assert finding.n == 3
    assert finding.effect is not None
    assert finding.low is not None
    assert finding.high is not None
    assert finding.low <= finding.effect <= finding.high
    if verdict != "undecided":
        assert (finding.effect > 0) == (verdict == HELD)
    epochs = "10 to 20" if name.startswith("longer-training") else "10"
    assert finding.scale == f"small: 1000 images of 16×24, {epochs} epochs"


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_not_run_says_so(name: str) -> None:
    finding = finding_of(name, runs_of("16", level()))
    assert finding.verdict == "not run"
    assert finding.reason.startswith("no data set has ")
    assert finding.dataset is None


@pytest.mark.parametrize(
    "name", [name for name in MAKERS if name not in ("memory-grows", "update-variance-linear")]
)
def test_two_seeds_decide_nothing(name: str) -> None:
    rows = [row for row in MAKERS[name](HOLDS) if row["seed"] < 2]
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    assert "n = 2, at least 3 needed" in finding.reason


@pytest.mark.parametrize(
    ("model", "verdict", "said"),
    [
        ("resnet50", HELD, ""),
        ("resnet10t", HELD, "study-12: its model is resnet10t, the paper's resnet50"),
        ("resnet18", "undecided", "study-12: its model is resnet18, Fig. 12 has resnet50"),
    ],
)
def test_a_smaller_model_in_anothers_place_is_named(model: str, verdict: str, said: str) -> None:
    rows = [row | {"model": model} for row in MAKERS["best-batch-size-fig-12"](HOLDS)]
    finding = finding_of("best-batch-size-fig-12", rows)
    assert (finding.verdict, finding.reason) == (verdict, said)


def test_a_smaller_model_is_named_where_nothing_could_be_judged_as_well() -> None:
    rows = runs_of("12", lambda *_: 0.12)
    finding = finding_of("best-batch-size-fig-12", [row | {"model": "resnet10t"} for row in rows])
    assert finding.verdict == "undecided"
    assert "is hardly better than chance" in finding.reason
    assert finding.reason.endswith("study-12: its model is resnet10t, the paper's resnet50")


def test_an_eta_beyond_which_no_larger_m_works_need_not_be_usable() -> None:
    """At the highest η̃ m ≤ 8 and all others stay at chance, or some others do not."""
    name = "small-m-converge-over-the-full-range-fig-12"

    def rows(works: int) -> Rows:
        return runs_of(
            "12",
            lambda m, lr, seed: 0.6 + 0.01 * seed if lr != LRS[2] or m == works else 0.1,
        )

    assert finding_of(name, rows(0)).verdict == HELD
    finding = finding_of(name, rows(64))
    assert finding.verdict == "contradicted"
    assert {part["name"] for part in finding.parts} == {f"study-12 at m = {m}" for m in (2, 4, 8)}


def test_a_study_that_learnt_nothing_decides_nothing() -> None:
    finding = finding_of("best-batch-size-fig-2", runs_of("2", lambda *_: 0.12))
    assert finding.verdict == "undecided"
    assert "is hardly better than chance" in finding.reason


@pytest.mark.parametrize("lost", [2, 3])
def test_a_study_most_of_whose_runs_diverged_decides_nothing(lost: int) -> None:
    rows = runs_of("2", lambda _m, _lr, seed: None if seed < lost else 0.9)
    finding = finding_of("best-batch-size-fig-2", rows)
    assert (finding.verdict, finding.reason) == (
        "undecided",
        "study-2: in no cell do all seeds finish",
    )


def test_a_loser_on_the_edge_of_the_grid_may_win_outside() -> None:
    """At m = 8 accuracy still rises at the highest η̃ tried: m = 2 is not known to be better."""

    def accuracy(m: int, lr: float, _seed: int) -> float:
        return (
            0.5 + 0.02 * LRS.index(lr) if m == 8 else 0.3 + (0.4 if (m, lr) == (2, LRS[1]) else 0)
        )

    finding = finding_of("best-batch-size-fig-2", runs_of("2", accuracy))
    assert finding.verdict == "undecided"
    assert "the best η̃ of study-2 at m = 8 is on the edge of the grid" in finding.reason


def test_batch_sizes_of_the_claim_that_were_not_run_are_named() -> None:
    rows = runs_of("7", raised(HOLDS, lambda m: m == 8), ms=(2, 8, 16, 32))
    finding = finding_of("best-batch-size-fig-7", rows)
    assert (finding.verdict, finding.reason) == (HELD, "study-7 at m = 4 not run")


@pytest.mark.parametrize(
    ("name", "d", "ms", "missing"),
    [
        ("best-batch-size-fig-7", FAILS, (2, 8, 16, 32), "study-7 at m = 4 not run"),
        ("best-batch-size-fig-7", HOLDS, (2, 4, 8, 32), "study-7 at m = 16 not run"),
        ("best-batch-size-fig-7", HOLDS, (4, 8, 16), "study-7 at m = 2 not run"),
        ("best-batch-size-fig-2", HOLDS, (2, 4, 16), "study-2 at m = 8 not run"),
        ("best-always-below-32", FAILS, (2, 4, 8, 32), "study-7 at m = 16 not run"),
        ("best-always-below-32", HOLDS, (2, 4, 8, 16, 64), "study-7 at m = 32 not run"),
        ("no-norm-improves-to-2", HOLDS, (2, 8), "study-1 at m = 4 not run"),
        ("resnet32-no-norm-learns-to-8", HOLDS, (2, 8, 32), "study-text at m = 4, 16 not run"),
        ("optimum-base-lr-unusable-fig-7", HOLDS, (2, 4, 8, 16, 64), "study-7 at m = 32 not run"),
        ("bn-better-than-none-fig-5", HOLDS, (8,), "both at m = 16, 32, 64 not run"),
        ("warm-up-good-to-128", HOLDS, (2, 16), "study-10 at m = 32, 64, 128 not run"),
        ("curves-alike-4-to-64", HOLDS, (4, 8), "m = 16, 32, 64 not run"),
        (
            "best-over-a-range-of-base-lrs-fig-12",
            HOLDS,
            (2, 16, 32, 64),
            "study-12 at m = 8 not run",
        ),
        ("best-over-a-range-of-base-lrs-fig-12", FAILS, (8, 16, 64), "study-12 at m = 32 not run"),
        (
            "large-m-degrade-at-the-best-base-lr-fig-12",
            HOLDS,
            (2, 4, 8, 16, 32, 128),
            "study-12 at m = 64 not run",
        ),
        (
            "small-m-converge-over-the-full-range-fig-12",
            HOLDS,
            (2, 8, 16),
            "study-12 at m = 4 not run",
        ),
    ],
)
def test_a_batch_size_that_could_turn_a_verdict_must_have_been_run(
    name: str, d: tuple[float, ...], ms: tuple[int, ...], missing: str
) -> None:
    rows = MAKERS[name](d)
    assert finding_of(name, rows).verdict != "undecided"
    finding = finding_of(name, [row for row in rows if row["batch_size"] in ms])
    assert (finding.verdict, finding.reason) == ("undecided", missing)


@pytest.mark.parametrize(
    ("d", "missing", "verdict"),
    [
        (FAILS, 4, "undecided"),
        (FAILS, 2, "contradicted"),
        (HOLDS, 16, "undecided"),
        (HOLDS, 4, HELD),
    ],
)
def test_so_must_a_bn_batch(d: tuple[float, ...], missing: int, verdict: str) -> None:
    name = "bn-batch-4-or-8-best-fig-13a"
    rows = [row for row in MAKERS[name](d) if row["bn_batch_size"] != missing]
    finding = finding_of(name, rows)
    assert finding.verdict == verdict
    if verdict == "undecided":
        assert f"SGD batch 16 with a BN batch of {missing} not run" in finding.reason


@pytest.mark.parametrize(
    ("name", "d", "figure", "m"),
    [
        ("small-m-eases-depth", HOLDS, "2", 4),
        ("small-m-eases-depth", HOLDS, "3", 16),
        ("small-m-eases-depth", FAILS, "3", 4),
        ("small-m-eases-depth", FAILS, "2", 16),
        ("bn-better-than-none-fig-5", HOLDS, "1", 8),
        ("bn-better-than-none-fig-5", FAILS, "5", 8),
        ("warm-up-helps-fig-10", HOLDS, "8", 64),
        ("warm-up-helps-fig-10", FAILS, "10", 64),
        ("longer-training-helps", HOLDS, "17", 2),
        ("longer-training-helps", FAILS, "18", 2),
        ("longer-training-helps-large-m-most", HOLDS, "17", 64),
        ("longer-training-helps-large-m-most", FAILS, "17", 4),
        ("longer-training-does-not-close-the-gap", HOLDS, "18", 128),
        ("longer-training-does-not-close-the-gap", FAILS, "18", 4),
        ("optimum-base-lr-unusable-fig-7", HOLDS, "7", 2),
        ("optimum-base-lr-unusable-fig-7", FAILS, "7", 2),
        ("bn-after-convs-same-level-fig-6", HOLDS, "5", 2),
        ("bn-after-convs-same-level-fig-6", HOLDS, "6", 2),
        ("bn-after-convs-same-level-fig-6", FAILS, "5", 2),
        ("best-batch-size-fig-7", HOLDS, "7", 2),
        ("best-batch-size-fig-7", FAILS, "7", 4),
        ("warm-up-good-to-128", HOLDS, "10", 2),
        ("warm-up-good-to-128", FAILS, "10", 16),
    ],
)
def test_nothing_is_decided_against_a_study_whose_best_base_lr_is_on_the_edge(
    name: str, d: tuple[float, ...], figure: str, m: int
) -> None:
    """At that m the highest η̃ tried is just as good as the middle one plus a hair."""
    rows = MAKERS[name](d)
    if name == "warm-up-good-to-128":
        rows = [row for row in rows if row["batch_size"] <= 16]  # of equals none is the worst
    if name == "bn-better-than-none-fig-5" and d == FAILS:
        rows = [row for row in rows if row["batch_size"] == m]  # another m contradicts as well
    for row in rows:
        # With that η̃ the optimum is usable at all m, so that without the edge it would be judged.
        everywhere = name.startswith("optimum") and d == FAILS
        here = (figure, row["batch_size"] if everywhere else m)
        if (row["figure"], row["batch_size"]) == here and row["base_lr"] == LRS[2]:
            row["reported_accuracy"] += 0.25 if everywhere else 0.2 + 1e-6
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    assert f"study-{figure} at m = {m} is on the edge of the grid" in finding.reason


@pytest.mark.parametrize(
    ("name", "d", "m"),
    [
        ("best-over-a-range-of-base-lrs-fig-12", HOLDS, 2),
        ("best-over-a-range-of-base-lrs-fig-12", FAILS, 16),
        ("m-64-sensitive-to-base-lr-fig-12", HOLDS, 16),
        ("m-64-sensitive-to-base-lr-fig-12", FAILS, 64),
    ],
)
def test_nor_where_a_range_or_a_drop_may_be_elsewhere(
    name: str, d: tuple[float, ...], m: int
) -> None:
    """At that m the highest η̃ of five is as good as the best, and a hair better."""
    rows = MAKERS[name](d)
    own = [row for row in rows if row["batch_size"] == m]
    top = {
        seed: max(row["reported_accuracy"] for row in own if row["seed"] == seed)
        for seed in range(3)
    }
    for row in own:
        if row["base_lr"] == FIVE[-1]:
            row["reported_accuracy"] = top[row["seed"]] + 1e-6
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    assert f"study-12 at m = {m} is on the edge of the grid" in finding.reason


@pytest.mark.parametrize(
    ("best_lr", "lowest", "reach_at_8", "verdict", "reason"),
    [
        (2.0**-8, -12, 0.4, "contradicted", ""),
        (2.0**-12, -12, 0.4, "undecided", "study-text at m = 8 is on the edge of the grid"),
        (2.0**-8, -12, 0.8, HELD, ""),
        (2.0**-8, -10, 0.8, "undecided", "no η̃ below 0.000976562 was tried"),
    ],
)
def test_what_learns_is_decided_on_the_papers_grid(
    best_lr: float, lowest: int, reach_at_8: float, verdict: str, reason: str
) -> None:
    def accuracy(m: int, lr: float, _seed: int) -> float:
        reach = {2: 1.0, 4: 1.0, 8: reach_at_8}.get(m, 0.0)
        return fraction_of_way(reach if lr == (best_lr if m == 8 else 2.0**-8) else reach / 2)

    lrs = tuple(2.0**k for k in range(lowest, -5, 2))
    finding = finding_of("resnet32-no-norm-learns-to-8", runs_of("text", accuracy, lrs=lrs))
    assert finding.verdict == verdict
    assert reason in finding.reason


def test_what_was_not_run_does_not_count_as_what_fails() -> None:
    """Above m = 8 only η̃ far too high were run, and failed."""

    def accuracy(m: int, lr: float, _seed: int) -> float:
        return fraction_of_way(1.0 if (m <= 8) == (lr < 1) else 0.0)

    rows = runs_of("text", accuracy, lrs=(2.0**-12, *LRS, 4.0, 8.0))
    rows = [row for row in rows if (row["batch_size"] > 8) == (row["base_lr"] >= 1)]
    finding = finding_of("resnet32-no-norm-learns-to-8", rows)
    assert finding.verdict == "undecided"
    assert "study-text: not every η̃ was run at m = 2, 4, 8, 16, 32" in finding.reason


def test_a_batch_size_at_which_all_diverge_counts_as_chance() -> None:
    def accuracy(m: int, lr: float, seed: int) -> float | None:
        return None if m > 8 else 0.5 - (lr != LRS[1]) * 0.1

    finding = finding_of("best-batch-size-fig-1", runs_of("1", accuracy))
    assert finding.effect == pytest.approx(0.4)
    assert finding.verdict == "undecided"  # a lower η̃ might have finished
    assert "study-1 at m = 16 is on the edge of the grid" in finding.reason


def test_one_contradicting_study_contradicts_a_claim_on_all() -> None:
    rows = [*best("1", 2, 2)(HOLDS), *best("2", 2, 2)(FAILS)]
    finding = finding_of("no-norm-improves-to-2", rows)
    assert finding.verdict == "contradicted"
    assert [part["verdict"] for part in finding.parts] == [HELD, "contradicted"]


@pytest.mark.parametrize("key", ["fingerprint", "protocol"])
@pytest.mark.parametrize(
    ("name", "of_other", "said"),
    [
        ("bn-better-than-none-fig-5", ("study", "study-1"), "study-5 and study-1"),
        ("longer-training-helps", ("study", "study-18"), "study-18 and study-17"),
        ("best-batch-size-fig-7", ("batch_size", 2), "study-7"),
        ("curves-alike-4-to-64", ("batch_size", 2), "study-7"),
        ("range-shrinks", ("batch_size", 32), "study-2"),
        ("smaller-sgd-batch-better-fig-13a", ("batch_size", 8), "study-13a"),
    ],
)
def test_runs_on_different_images_are_not_compared(
    name: str, of_other: tuple[str, Any], said: str, key: str
) -> None:
    rows = MAKERS[name](HOLDS)
    for row in rows:
        if row[of_other[0]] == of_other[1]:
            row[key] = 2 if key == "protocol" else "other"
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    assert finding.reason == f"{said}: trained with different {key}"


@pytest.mark.parametrize("key", ["epochs", "weight_decay", "figure"])
@pytest.mark.parametrize(
    "name",
    ["best-batch-size-fig-7", "curves-alike-4-to-64", "bn-better-than-none-fig-5", "memory-grows"],
)
def test_columns_of_different_settings_decide_nothing(name: str, key: str) -> None:
    rows = MAKERS[name](HOLDS)
    for row in rows:
        if row["batch_size"] == 8 and row["study"] != "study-5":
            row[key] = {"epochs": 20, "weight_decay": 0.1, "figure": "8"}[key]
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    study = "study-7" if name.endswith(("7", "64")) else "study-1"
    assert finding.reason == f"{study}: trained with different {key}"


def test_a_study_labelled_with_two_figures_is_judged_for_neither() -> None:
    rows = MAKERS["best-batch-size-fig-7"](HOLDS)
    for row in rows:
        row["figure"] = "8" if row["batch_size"] > 8 else "7"
    for figure in "78":
        finding = finding_of(f"best-batch-size-fig-{figure}", rows)
        assert finding.verdict == "undecided"
        assert finding.reason == "study-7: trained with different figure"


def test_of_two_studies_labelled_with_one_figure_none_is_judged() -> None:
    rows = MAKERS["best-batch-size-fig-7"](HOLDS)
    rows += [row | {"study": "again", "run": f"again {row['run']}"} for row in rows]
    finding = finding_of("best-batch-size-fig-7", rows)
    assert finding.verdict == "undecided"
    assert finding.reason.startswith("again and study-7 are labelled figure 7, which is one study")


@pytest.mark.parametrize(
    ("name", "study", "changed", "said"),
    [
        ("warm-up-helps-fig-10", "study-10", {"epochs": 60}, "differ in epochs, warmup"),
        ("warm-up-helps-fig-10", "study-10", {"warmup": 0.0}, "warm-up is 0, Fig. 10 has one"),
        ("warm-up-helps-fig-10", "study-8", {"warmup": 0.2}, "warm-up is 0.2, Fig. 8 has none"),
        ("longer-training-helps", "study-18", {"epochs": 10}, "differ in no setting"),
        ("longer-training-helps", "study-18", {"epochs": 5}, "does not have more epochs"),
        ("longer-training-helps", "study-18", {"norm": "group"}, "norm is group, Fig. 18 has ba"),
        ("small-m-eases-depth", "study-2", {"parameters": 3000}, "does not have more parameters"),
        ("small-m-eases-depth", "study-3", {"weight_decay": 0.5}, "differ in model, weight_decay"),
        ("small-m-eases-depth", "study-3", {"model": "vit"}, "model is vit, Fig. 3 has resnet20"),
        (
            "resnet32-no-norm-learns-to-8",
            "study-text",
            {"model": "resnet8"},
            "Fig. text has resnet32",
        ),
        (
            "best-batch-size-fig-8",
            "study-8",
            {"augment": False},
            "augment is False, Fig. 8 has True",
        ),
        ("bn-better-than-none-fig-5", "study-1", {"norm": "batch"}, "norm is batch, Fig. 1 has no"),
        ("bn-after-convs-same-level-fig-6", "study-6", {"epochs": 9}, "differ in epochs, norm"),
        ("no-norm-improves-to-2", "study-1", {"norm": "batch"}, "norm is batch, Fig. 1 has none"),
        ("curves-alike-4-to-64", "study-7", {"norm": "none"}, "norm is none, Fig. 7 has batch"),
    ],
)
def test_what_is_compared_differs_in_what_the_claim_is_about_alone(
    name: str, study: str, changed: dict[str, Any], said: str
) -> None:
    rows = MAKERS[name](HOLDS)
    assert finding_of(name, rows).verdict == HELD
    for row in rows:
        if row["study"] == study:
            row |= changed
    finding = finding_of(name, rows)
    assert finding.verdict == "undecided"
    assert said in finding.reason


def test_levels_of_studies_without_a_common_batch_size_are_not_compared() -> None:
    rows = [row for row in MAKERS["bn-after-convs-same-level-fig-6"](HOLDS)
            if (row["batch_size"] > 8) == (row["figure"] == "5")]  # fmt: skip
    finding = finding_of("bn-after-convs-same-level-fig-6", rows)
    assert finding.verdict == "undecided"
    assert finding.reason == "the studies have no batch size in common"


def test_a_bn_batch_is_not_the_best_where_none_finishes() -> None:
    rows = MAKERS["bn-batch-independent-fig-13a"](HOLDS)
    for row in rows:
        if row["batch_size"] == 32:
            row |= {"outcome": "diverged", "reported_accuracy": math.nan}
    finding = finding_of("bn-batch-independent-fig-13a", rows)
    assert finding.verdict == "undecided"
    assert finding.reason == "study-13a: at m = 32 no BN batch lets all seeds finish"


def test_memory_is_that_of_the_columns_that_were_run() -> None:
    """What was measured at 2048 was not trained."""
    runs = pd.DataFrame(MAKERS["memory-grows"](HOLDS))
    table = memory(HOLDS)
    more = table[table["batch_size"] == 8].assign(batch_size=2048, bytes=2.0**50)
    evidence = Evidence("made-up", runs, histories(runs), memory=pd.concat([more, table]))
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [evidence])
    assert (finding.verdict, finding.n) == (HELD, 3)
    assert finding.effect == pytest.approx(0.1)
    assert finding.reason == (
        "grows by 0.1 octaves over 2 of m: what does not grow is weights, gradient and moments"
    )
    (part,) = finding.parts
    assert part["name"] == "networks: grows by 0.1 octaves over 2 of m"
    few = table[table["study"] != "study-2"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), memory=few)])
    assert (finding.verdict, finding.reason) == ("undecided", "n = 2, at least 3 needed")
    lone = runs[(runs["study"] != "study-2") | (runs["batch_size"] == 2)]
    for measured in (table, table[(table["study"] != "study-2") | (table["batch_size"] == 2)]):
        (finding,) = judge(claim, [Evidence("made-up", lone, histories(lone), memory=measured)])
        assert (finding.verdict, finding.reason) == ("undecided", "n = 2, at least 3 needed")
    lone = runs[runs["batch_size"] == 2]
    (finding,) = judge(claim, [Evidence("made-up", lone, histories(lone), memory=table)])
    assert finding.verdict == "undecided"
    assert finding.reason.endswith("two batch sizes that were run; run smallbatch measure")


@pytest.mark.parametrize(
    ("measured", "missing"), [((2,), "8"), ((4, 8), "2"), ((4,), "2 and 8"), ((2048,), "2 and 8")]
)
def test_memory_that_was_not_measured_over_the_whole_range_decides_nothing(
    measured: tuple[int, ...], missing: str
) -> None:
    """As after the grid has grown, where nothing makes `measure` run again."""
    runs = pd.DataFrame(MAKERS["memory-grows"](HOLDS))
    table = memory(HOLDS)
    base = table[(table["study"] == "study-2") & (table["batch_size"] == 2)]
    few = [base.assign(batch_size=m) for m in measured]
    table = pd.concat([table[table["study"] != "study-2"], *few])
    evidence = Evidence("made-up", runs, histories(runs), memory=table)
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [evidence])
    assert (finding.verdict, finding.reason) == (
        "undecided",
        f"study-2: its memory was not measured at m = {missing}; run smallbatch measure",
    )


def test_a_norm_that_depends_on_m_is_compared_where_it_was_measured() -> None:
    """Under `bn_batch_size: up to 4` the norm is batch at m = 2 and 4, and ghost at 8."""
    rows = MAKERS["memory-grows"](HOLDS)
    for row in rows:
        if row["study"] == "study-2":
            large = row["batch_size"] == 8
            row |= {"norm": "ghost", "bn_batch_size": 4} if large else {"norm": "batch"}
    runs, table = pd.DataFrame(rows), memory(HOLDS)
    own = table["study"] == "study-2"
    table.loc[own, "norm"] = np.where(table.loc[own, "batch_size"] == 8, "ghost", "batch")
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), memory=table)])
    assert (finding.verdict, finding.n) == (HELD, 3)
    few = table[~own | (table["batch_size"] == 2)]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), memory=few)])
    assert finding.reason == (
        "study-2: its memory was not measured at m = 8; run smallbatch measure"
    )
    # What was measured at an m that was not run has a norm of its own.
    lone = runs[(runs["study"] != "study-2") | (runs["batch_size"] < 8)]
    more = table[own & (table["batch_size"] == 2)].assign(batch_size=4)
    evidence = Evidence("made-up", lone, histories(lone), memory=pd.concat([table, more]))
    (finding,) = judge(claim, [evidence])
    assert finding.n == 3


def test_memory_that_hardly_grows_in_octaves_of_m_is_said() -> None:
    """Four studies over two ranges of m: the fewest and the most octaves are said of both."""
    grown = {"1": (32, 3.0), "2": (8, 1.5), "3": (8, 1.0), "text": (32, 2.0)}
    rows = [row for figure, (most, _) in grown.items()
            for row in runs_of(figure, level(), ms=(2, most))]  # fmt: skip
    base = memory(HOLDS).query("engine == 'loop'").iloc[0]
    table = pd.DataFrame([
        {**base, "study": f"study-{figure}", "model": MODELS.get(figure, "resnet32"),
         "batch_size": m, "bytes": 1e6 * (1.0 if m == 2 else 2**octaves)}
        for figure, (largest, octaves) in grown.items() for m in (2, largest)
    ])  # fmt: skip
    runs = pd.DataFrame(rows)
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), memory=table)])
    assert (finding.verdict, finding.n) == (HELD, 4)
    assert finding.effect == pytest.approx((3 + 1.5 + 1 + 2) / 4)
    assert finding.reason.startswith("grows by 1 to 3 octaves over 2 to 4 of m: ")


def test_studies_of_one_network_are_one_observation_of_its_memory() -> None:
    """Four studies of three networks: of the two alike that with the wider range of m counts."""
    grown = {"1": (8, 3.0), "2": (8, 1.5), "3": (8, 1.0), "text": (32, 5.0)}
    rows = [row for figure, (most, _) in grown.items()
            for row in runs_of(figure, level(), ms=(2, most))]  # fmt: skip
    for row in rows:
        row["model"] = "alexnet" if row["study"] in ("study-1", "study-text") else row["model"]
    base = memory(HOLDS).query("engine == 'loop'").iloc[0]
    models = {"1": "alexnet", "2": MODELS["2"], "3": MODELS["3"], "text": "alexnet"}
    table = pd.DataFrame([
        {**base, "study": f"study-{figure}", "model": models[figure],
         "batch_size": m, "bytes": 1e6 * (1.0 if m == 2 else 2**octaves)}
        for figure, (largest, octaves) in grown.items() for m in (2, largest)
    ])  # fmt: skip
    runs = pd.DataFrame(rows)
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), memory=table)])
    assert finding.n == 3
    assert finding.effect == pytest.approx((5 + 1.5 + 1) / 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": "other"}, "study-2: measured on other images; run smallbatch measure"),
        ({"model": "other"}, "study-2: measured with another model; run smallbatch measure"),
        ({"norm": "batch"}, "study-2: measured with another norm; run smallbatch measure"),
        ({"device": "cpu"}, "study-2: measured on several devices; run smallbatch measure"),
    ],
)
def test_memory_of_something_else_decides_nothing(changed: dict[str, str], said: str) -> None:
    runs = pd.DataFrame(MAKERS["memory-grows"](HOLDS))
    table = memory(HOLDS)
    other = (table["study"] == "study-2") & (table["batch_size"] == 8)
    table.loc[other, list(changed)] = list(changed.values())
    evidence = Evidence("made-up", runs, histories(runs), memory=table)
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [evidence])
    assert (finding.verdict, finding.reason) == ("undecided", said)


def test_memory_that_was_not_counted_says_so() -> None:
    runs = pd.DataFrame(MAKERS["memory-grows"](HOLDS))
    (claim,) = [claim for claim in CLAIMS if claim.name == "memory-grows"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs))])
    assert finding.verdict == "not run"
    assert finding.reason == "nothing was measured: run smallbatch measure"


def test_memory_of_different_images_is_not_compared() -> None:
    rows = MAKERS["memory-grows"](HOLDS)
    for row in rows:
        if row["study"] == "study-2" and row["batch_size"] == 8:
            row |= {"fingerprint": "other", "height": 32}
    finding = finding_of("memory-grows", rows)
    assert finding.verdict == "undecided"
    assert finding.reason == "study-2: trained with different fingerprint"


def curves_of(last: dict[int, int], diverged: int | None = None) -> Evidence:
    """Runs of Fig. 7 with as many updates at every m: ``last`` epochs of accuracy 0.6."""
    runs = pd.DataFrame(runs_of("7", lambda m, _lr, _seed: None if m == diverged else 0.6,
                                ms=tuple(last)))  # fmt: skip
    runs = runs.assign(budget="updates of 8", epochs=runs["batch_size"] // 4)
    keys = ["dataset", "study", "run", "batch_size", "base_lr", "seed", "outcome"]
    history = pd.DataFrame([
        {**row, "epoch": epoch, "test_accuracy": 0.6}
        for row in runs[keys].to_dict("records")
        for epoch in range(1, last[row["batch_size"]] + 1)
    ])  # fmt: skip
    return Evidence("made-up", runs, history)


@pytest.mark.parametrize("name", ["curves-alike-4-to-64", "curves-worse-beyond-64"])
def test_curves_of_different_lengths_are_not_compared(name: str) -> None:
    (claim,) = [claim for claim in CLAIMS if claim.name == name]
    (finding,) = judge(claim, [curves_of({8: 2, 16: 4, 128: 32})])
    assert finding.verdict == "undecided"
    assert finding.reason == "study-7: its finished runs have different numbers of epochs"


def test_a_diverged_curve_is_at_chance_after_its_last_epoch() -> None:
    _, values = curves_of({8: 4, 16: 1}, diverged=16).curves("7", LRS[1])
    assert values[:, 0].tolist() == [[0.6, 0.6, 0.6, 0.6], [0.6, 0.1, 0.1, 0.1]]


def test_several_base_lrs_are_not_taken_for_seeds_of_a_bn_batch() -> None:
    rows = MAKERS["smaller-sgd-batch-better-fig-13a"](HOLDS)
    worse = [{**row, "base_lr": 2.0**-4, "run": f"{row['run']}-", "reported_accuracy": 0.3}
             for row in rows]  # fmt: skip
    cells, alone = (bn_cells(pd.DataFrame(each)) for each in ([*worse, *rows], rows))
    pd.testing.assert_frame_equal(cells, alone)
    finding = finding_of("smaller-sgd-batch-better-fig-13a", [*rows, *worse])
    assert (finding.verdict, finding.reason) == (
        "undecided",
        "study-13a: several η̃ at one batch size",
    )
    with pytest.raises(UserError, match="holds two runs at m=8, bn_batch_size 2 and seed 0"):
        seed_array(pd.DataFrame([*rows, *worse]), "bn_batch_size")


def test_a_variance_that_was_not_measured_says_so() -> None:
    runs = pd.DataFrame(runs_of("2", level()))
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs))])
    assert finding.verdict == "not run"


def test_every_data_set_is_judged_on_its_own() -> None:
    own = pd.DataFrame(MAKERS["best-batch-size-fig-2"](HOLDS))
    other = own.assign(dataset="other", run="x" + own["run"], scale=None)
    runs = pd.concat([own, other], ignore_index=True)
    record = claims_record(judge_all(runs, histories(runs), pd.DataFrame(), pd.DataFrame()))
    json.dumps(record, allow_nan=False)
    (claim,) = [each for each in record["claims"] if each["claim"] == "best-batch-size-fig-2"]
    assert [finding["dataset"] for finding in claim["findings"]] == ["made-up", "other"]
    assert {finding["verdict"] for finding in claim["findings"]} == {HELD}


def test_only_seeds_of_every_cell_are_compared() -> None:
    rows = [
        row for row in runs_of("2", level()) if not (row["seed"] == 1 and row["batch_size"] == 4)
    ]
    array = seed_array(pd.DataFrame(rows))
    assert array.seeds.tolist() == [0, 2]
    assert array.values.shape == (len(MS), len(LRS), 2)
    assert not np.isnan(array.values).any()


def test_two_studies_are_compared_by_the_seeds_that_both_have() -> None:
    """Study 3 has two more, by which it would be far worse."""
    name, d = "small-m-eases-depth", (*HOLDS, -0.4, -0.4)
    more = runs_of("3", raised(d, lambda m: m <= 8), seeds=5)
    finding = finding_of(name, [*more, *runs_of("2", level())])
    alike = finding_of(name, MAKERS[name](HOLDS))
    assert (finding.verdict, finding.n) == (HELD, 3)
    assert (finding.effect, finding.low, finding.high) == (alike.effect, alike.low, alike.high)
    enough = finding_of(name, [*more, *runs_of("2", level(), seeds=5)])
    assert (enough.verdict == HELD, enough.n) == (False, 5)


def test_criteria_are_written_out() -> None:
    for claim in CLAIMS:
        assert len(claim.criterion) > 40
        assert claim.statement
    assert claims.MIN_SEEDS == 3


def test_two_classes_can_decide() -> None:
    """Nothing is twice as good as a guess of one class in two."""
    rows = [row | {"classes": 2} for row in MAKERS["best-batch-size-fig-7"](HOLDS)]
    assert finding_of("best-batch-size-fig-7", rows).verdict == HELD
    low = [row | {"reported_accuracy": row["reported_accuracy"] / 100 + 0.5} for row in rows]
    finding = finding_of("best-batch-size-fig-7", low)
    assert finding.verdict == "undecided"
    assert "50.7 %, is hardly better than chance" in finding.reason


def test_a_cell_of_which_a_seed_diverged_is_no_best_cell() -> None:
    """At m = 8 one of five seeds diverges at an η̃ that is otherwise the best."""

    def accuracy(m: int, lr: float, seed: int) -> float | None:
        if (m, lr) == (8, LRS[1]):
            return None if seed == 0 else 0.9
        return (0.7 if m == 2 else 0.5) - (lr != LRS[1]) * 0.1 + 0.001 * seed

    finding = finding_of("best-batch-size-fig-2", runs_of("2", accuracy, seeds=5))
    assert finding.verdict == HELD
    assert finding.effect == pytest.approx(0.2)


def test_a_measurement_at_the_first_weights_decides_nothing() -> None:
    runs = pd.DataFrame(MAKERS["update-variance-linear"](HOLDS))
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    table = variances(HOLDS)
    for own in (table[table["seen"] == 0], table.assign(seen=None)):
        (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), own)])
        assert finding.verdict == "undecided"
        assert "study-2: measured at the first weights alone" in finding.reason


def test_what_is_not_strictly_so_may_be_so_within_a_point() -> None:
    """The best of m = 2, 4 is half a point below the others, at every seed."""
    finding = finding_of("best-batch-size-fig-2", best("2", 2, 4)((-0.005,) * 3))
    assert finding.verdict == "supported"
    assert finding.effect == pytest.approx(-0.005)
    finding = finding_of("best-batch-size-fig-2", best("2", 2, 4)((-0.015,) * 3))
    assert finding.verdict == "contradicted"


def test_any_part_contradicts_and_all_are_needed() -> None:
    strictly, supported, against, open_ = (
        "strictly supported", "supported", "contradicted", "undecided",
    )  # fmt: skip
    assert claims.combined([strictly, strictly]) == strictly
    assert claims.combined([strictly, supported]) == supported
    assert claims.combined([strictly, open_]) == open_
    assert claims.combined([strictly, open_, against]) == against


def test_a_finding_says_what_it_could_have_decided() -> None:
    """Noise of two points: three seeds decide little, and the number that would is named."""
    values = np.random.default_rng(5).normal(0.6, 0.02, (len(MS), len(LRS), 3))
    finding = finding_of("best-batch-size-fig-2", runs_of(
        "2", lambda m, lr, seed: values[MS.index(m), LRS.index(lr), seed]
        - (0.2 if lr != LRS[1] else 0.0)
    ))  # fmt: skip
    assert finding.verdict == "undecided"
    assert finding.decided_from == pytest.approx(0.046, abs=0.02)  # 2.8·√2·0.02/√3
    assert finding.seeds is not None
    assert 5 < finding.seeds < 30
    assert finding_of("range-shrinks", MAKERS["range-shrinks"](WAVERS)).seeds is None


def test_a_run_that_diverged_while_it_was_measured_leaves_the_other_studies() -> None:
    runs = pd.DataFrame(MAKERS["update-variance-linear"](HOLDS))
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    gone = variances(HOLDS).assign(study="study-3")
    gone.loc[gone["batch_size"] == 32, "variance"] = math.nan
    for d, verdict in ((HOLDS, "undecided"), (FAILS, "contradicted")):
        table = pd.concat([variances(d), gone])
        evidence = Evidence("made-up", runs, histories(runs), table)
        (finding,) = judge(claim, [evidence])
        assert finding.verdict == verdict
        assert "study-3: a run diverged while it was measured" in finding.reason


def test_batch_sizes_that_stay_at_chance_say_nothing_of_the_noise_of_others() -> None:
    values = np.random.default_rng(3).normal(0.6, 0.02, (4, 3))

    def accuracy(m: int, lr: float, seed: int) -> float:
        return values[MS.index(m), seed] if m <= 16 and lr == LRS[1] else 0.1

    whole, live = (
        seed_array(pd.DataFrame(runs_of("2", accuracy, ms=ms))).noise() for ms in (MS, MS[:4])
    )
    assert whole.variance == live.variance
    assert whole.freedom == live.freedom == 4


@pytest.mark.parametrize(
    ("where", "changed", "said"),
    [
        ({"batch_size": 32}, {"base_lr": 0.2}, "study-2: measured at several η̃"),
        ({}, {"norm": "batch", "study": "gone"}, "gone: measured with a norm"),
        ({"seed": 1}, {"variance": 0.0}, "study-2: a variance is 0"),
        ({"seed": 1, "batch_size": 8}, None, "study-2: not every m was measured at every point"),
    ],
)
def test_a_table_of_measurements_that_do_not_belong_together_decides_nothing(
    where: dict[str, int], changed: dict[str, Any] | None, said: str
) -> None:
    runs = pd.DataFrame(MAKERS["update-variance-linear"](HOLDS))
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    table = variances(HOLDS)
    here = np.logical_and.reduce([table[key] == value for key, value in where.items()] or [True])
    table = table[~here] if changed is None else table.assign(
        **{key: np.where(here, value, table.get(key, "none")) for key, value in changed.items()}
    )  # fmt: skip
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs), table)])
    assert finding.verdict == "undecided"
    assert said in finding.reason


def test_what_was_run_and_not_measured_says_so() -> None:
    runs = pd.DataFrame(runs_of("2", level()))
    (claim,) = [claim for claim in CLAIMS if claim.name == "update-variance-linear"]
    (finding,) = judge(claim, [Evidence("made-up", runs, histories(runs))])
    assert finding.reason == "nothing was measured: run smallbatch measure"


@pytest.mark.parametrize("diverges", [True, False])
@pytest.mark.parametrize("falls", [True, False])
def test_a_range_that_lies_wholly_outside_the_grid_is_not_known_to_be_empty(
    falls: bool, diverges: bool
) -> None:
    """Ranges as wide at every m, which move along the grid and at one end of m out of it."""
    lrs, ms = tuple(2.0**k for k in range(-14, -2, 2)), (2, 16, 128)

    def accuracy(m: int, lr: float, seed: int) -> float | None:
        place = ms.index(m) if falls else len(ms) - 1 - ms.index(m)
        far = max(0.0, abs(math.log2(lr) + 6 + 5 * place) - 1)
        return None if diverges and far > 2 else 0.6 - 0.1 * far + 0.001 * seed

    finding = finding_of("range-shrinks", runs_of("2", accuracy, ms=ms, lrs=lrs, seeds=8))
    assert finding.verdict == "undecided"
    assert "edge of the grid" in finding.reason


def test_curves_at_chance_say_nothing_of_the_noise_of_others() -> None:
    """Two classes: chance is half of what there is, and above half of the best."""
    values = np.random.default_rng(1).normal(0.85, 0.02, (2, 3))

    def accuracy(m: int, _lr: float, seed: int) -> float:
        return values[0 if m == 4 else 1, seed] if m in (4, 8) else 0.5

    few, many = (
        finding_of("curves-alike-4-to-64", runs_of("7", accuracy, ms=ms, chance_of=2))
        for ms in ((4, 8), (4, 8, 128, 256, 512, 1024))
    )
    assert (few.low, few.high) == (many.low, many.high)
