"""What `smallbatch advise` might have found, made up."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from smallbatch.analysis.advice import (
    Advice,
    Diagnostics,
    Fate,
    Final,
    Fit,
    Raced,
    Range,
    Recommended,
    Stage,
)
from smallbatch.analysis.sampling import interval
from smallbatch.config.study import StudyConfig
from smallbatch.report.advice import code_to_paste

SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
EPOCHS, N_TRAIN, N_TEST = 30, 8000, 2000
STUDY = StudyConfig(
    model="resnet8", norm="group", epochs=EPOCHS, weight_decay=5e-4, optimizer="momentum",
    schedule="cosine",
)  # fmt: skip
ADAMW = StudyConfig(
    model="resnet8", epochs=EPOCHS, weight_decay=0.05, optimizer="adamw", schedule="cosine",
    warmup=0.05, beta2_examples=50_000,
)  # fmt: skip


def raced(m: int, base_lr: float, top: float, fate: Fate = "finished", **more: Any) -> Raced:
    """A cell whose accuracy rises to `top`; ``seconds`` falls with m."""
    shares = {"finished": (0.1, 0.3, 1.0), "diverged": (0.1,)}.get(fate, (0.1, 0.3))
    epochs = round(shares[-1] * EPOCHS)
    curve = tuple(top - 0.5 * math.exp(-4 * (i + 1) / EPOCHS - 0.2) for i in range(epochs))
    stages = [Stage(share, curve[round(share * EPOCHS) - 1], 0.004) for share in shares]
    if fate == "diverged":
        stages[-1] = Stage(shares[-1], None, None)
    cell = Raced(m, base_lr, m * base_lr, tuple(stages), fate, False, 20 + 900 / m, curve)
    return replace(cell, **more)


def ranged(m: int, edge: int, best: int, breaks: int | None = 1) -> Range:
    """A batch size that is stable up to 2**edge, and breaks at the next rate or nowhere."""
    survived = [(2.0**k, 3) for k in range(edge - 4, edge + 1)]
    if breaks is not None:
        survived += [(2.0 ** (edge + 1), 1), (2.0 ** (edge + 2), 0)]
    return Range(
        m, survived[0][0], 2.0**edge, 2.0 ** (edge + 1) if breaks else None, 2.0**best,
        float(edge - best), tuple(survived), 3, 60, 180.0 * m**0.8, 3 * 2**20 * m,
    )  # fmt: skip


def recommended(m: int, base_lr: float, lr: float, study: StudyConfig) -> Recommended:
    low, high = interval(0.912, N_TEST)
    code = code_to_paste(study, m, lr, N_TRAIN)
    return Recommended(m, base_lr, lr, code, 0.912, low, high, N_TEST, True, "final")


def made_up(**changed: Any) -> Advice:
    """An advice that has everything; the best two cannot be told apart."""
    tops = dict(zip(SIZES, (0.85, 0.88, 0.9, 0.92, 0.918, 0.905, 0.88, 0.82), strict=True))
    edges = dict(zip(SIZES, (-5, -5, -5, -6, -6, -7, -8, -9), strict=True))
    cells = [
        raced(16, 2.0**-8, 0.92, tied=True),
        raced(32, 2.0**-9, 0.918, tied=True),
        raced(8, 2.0**-8, 0.9, tied=True),
        raced(16, 2.0**-7, 0.9, "finished"),
        *(raced(m, 2.0 ** (edges[m] - 2), tops[m], "behind") for m in (4, 64, 128)),
        raced(2, 2.0**-7, 0.85, "not trained on"),
        raced(256, 2.0**-10, 0.82, "diverged"),
    ]
    advice = Advice(
        dataset="leaves", n_train=N_TRAIN, n_validation=1000, n_test=N_TEST, n_available=12_000,
        classes=12, model="resnet8", norm="group", optimizer="momentum", schedule="cosine",
        epochs=EPOCHS, target="accuracy", budget="20m", seconds=1123.4, images=3_400_000,
        device="cpu", processor="Example 8-core",
        recommended=recommended(16, 2.0**-8, 2.0**-4, STUDY),
        final=Final(
            (32, 2.0**-9), (1001, 1002, 1003), (0.914, 0.911, 0.911), (0.911, 0.912, 0.905),
            0.00267, -0.0064, 0.0117, False,
        ),
        raced=tuple(cells),
        ranges=tuple(
            ranged(m, edges[m], edges[m] - 2, 1 if m > 2 else None) for m in SIZES
        ),
        tied_batch_sizes=(8, 16, 32),
        warnings=(
            "Only 8,000 of 12,000 images were used, so that the race fits into the budget.",
            "At m = 2 nothing broke: the edge of the stable range is not known there.",
        ),
        larger_budget=("A fourth rung could tell m = 16 from m = 32.", "All images could be used."),
        untested=("Other models, norms and schedules.", "Batch sizes above 256."),
        diagnostics=Diagnostics(812.3, 28.4, 32.0, Fit(0.0061, 21.3, 0.41)),
    )  # fmt: skip
    return replace(advice, **changed)


def with_adamw(**changed: Any) -> Advice:
    """The same under AdamW, where η̃ is η."""
    advice = made_up()
    cells = tuple(replace(cell, lr=cell.base_lr) for cell in advice.raced)
    rates = {
        "recommended": recommended(16, 2.0**-8, 2.0**-8, ADAMW), "raced": cells,
        "optimizer": "adamw",
    }  # fmt: skip
    return replace(advice, **{**rates, **changed})


def with_nothing() -> Advice:
    """Nothing could be trained."""
    lost = Range(16, 2.0**-10, None, 2.0**-10, None, None, ((2.0**-10, 0),), 3, 60, 900.0, None)
    return made_up(
        recommended=None, final=None, raced=(), ranges=(lost,), tied_batch_sizes=(),
        warnings=("Every training diverged, even at the lowest η̃ tried, 2⁻¹⁰.",),
        diagnostics=Diagnostics(), larger_budget=(), untested=(),
    )  # fmt: skip


def with_one_batch_size() -> Advice:
    """One batch size and one cell, without a final."""
    advice = made_up()
    assert advice.recommended is not None
    return replace(
        advice,
        recommended=replace(advice.recommended, on="race"), final=None, raced=advice.raced[:1],
        ranges=tuple(it for it in advice.ranges if it.batch_size == 16), tied_batch_sizes=(16,),
    )  # fmt: skip
