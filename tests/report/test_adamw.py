"""The report of studies whose learning rates are η, beside others whose learning rates are η̃."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from smallbatch.analysis.evaluation import evaluate
from smallbatch.report.page import build_report
from tests.analysis.synthetic import Study, write_models

if TYPE_CHECKING:
    from pathlib import Path

ADAMW = {"optimizer": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "beta2_examples": 4000.0,
         "schedule": "cosine"}  # fmt: skip
MOMENTUM = {"optimizer": "momentum", "momentum": 0.9}


@dataclass(frozen=True)
class Root(Study):
    """A study under AdamW whose highest stable η goes with √m."""

    def limit(self, batch_size: int) -> float:
        """The largest stable η."""
        return 2.0**-9 * batch_size**0.5


STUDIES = (
    Study("plain", batch_sizes=(2, 8, 32), settings={"figure": "2"}),
    Study(
        "heavy", batch_sizes=(2, 8, 32), settings={**MOMENTUM, "model": "resnet20", "figure": "3"}
    ),
    Root("adamw", batch_sizes=(2, 8, 32, 128), settings=ADAMW),
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `smallbatch evaluate` and `smallbatch report` make of the three studies."""
    folder = tmp_path_factory.mktemp("adamw")
    models = write_models(folder / "models", STUDIES)
    evaluate(models, folder / "reports/evaluation")
    build_report(folder / "reports/evaluation", models, folder / "reports")
    return folder / "reports"


def section(reports: Path, study: str) -> str:
    """What the page has of one study alone: its card and its section in full."""
    page = (reports / "report.html").read_text()
    pattern = rf'<(article|section)[^>]*data-study="synthetic {study}".*?</\1>'
    parts = [found.group() for found in re.finditer(pattern, page, re.DOTALL)]
    assert len(parts) == 2
    return "".join(parts)


def table(reports: Path, name: str, study: str) -> list[dict[str, str]]:
    with (reports / "tables" / f"{name}.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["study"] == study]


def test_nothing_of_a_study_under_adamw_speaks_of_base_learning_rates(reports: Path) -> None:
    said = section(reports, "adamw")
    assert "η̃" not in said
    assert "base learning rate" not in said.lower()
    assert "AdamW, β₁ = 0.9, β₂ such that 4000 examples halve" in said
    assert "decoupled weight decay 0.0001, cosine schedule" in said
    assert "η̃" in section(reports, "plain")


def test_the_learning_rate_of_an_answer_is_that_of_the_grid(reports: Path) -> None:
    cards: list[dict[str, Any]] = json.loads((reports / "answers.json").read_text())["answers"]
    titles = {card["study"]: (card["title"], card["batch_size"], card["base_lr"]) for card in cards}
    title, m, lr = titles["adamw"]
    assert title.endswith(f"learning rate {lr:.3g} (η = 2⁻⁸)")
    assert lr == 2.0**-8
    title, m, base_lr = titles["heavy"]
    assert title.startswith(f"Batch size {m}, learning rate {m * base_lr:.3g} (η̃ = 2")


def test_tables_have_eta_where_the_grid_has_it(reports: Path) -> None:
    for row in table(reports, "cells", "adamw"):
        assert row["optimizer"] == "adamw"
        assert row["lr"] == row["base_lr"]
    for row in table(reports, "stable_range", "adamw"):
        assert row["upper_lr"] == row["upper"]
    for row in table(reports, "stable_range", "heavy"):
        assert float(row["upper_lr"]) == int(row["batch_size"]) * float(row["upper"])
    assert not table(reports, "limit_fit", "adamw")


def test_the_rule_nearest_to_the_best_eta_is_measured(reports: Path) -> None:
    # √m times 2^-9 is 2^-8.5, 2^-7.5, 2^-6.5, 2^-5.5: on the grid 2^-9, -8, -7, -6, a slope of ½.
    said = section(reports, "adamw")
    assert "goes as m to the power 0.50" in said
    assert "the nearest is η ∝ √m (0.50)" in said
    # x = -3, -1, 1, 3 octaves of m: half a step each way is ½·Σ|x|/Σx² = ½·8/20 of a slope.
    assert "steps of 1 octave leave 0.30 … 0.70 open;" in said
    assert "to the power" not in section(reports, "plain") + section(reports, "heavy")


def test_figures_do_not_mix_the_two(reports: Path) -> None:
    names = {path.name for path in (reports / "figures").glob("*.svg")}
    assert {"synthetic.adamw.stable-range.svg", "synthetic.stable-range-eta.svg"} <= names
    svg = (reports / "figures/synthetic.adamw.stable-range.svg").read_text()
    assert "learning rate η" in svg
    assert "η̃" not in svg
    assert "square-root rule, η ∝ √m" in svg
    assert "linear rule, η ∝ m" in svg
    of_both = (reports / "figures/synthetic.stable-range-base-lr.svg").read_text()
    assert ">adamw<" not in of_both
    assert ">adamw<" in (reports / "figures/synthetic.stable-range-eta.svg").read_text()


def test_a_momentum_study_says_what_one_example_moves(reports: Path) -> None:
    said = section(reports, "heavy")
    assert "SGD with momentum (μ = 0.9), one example moves η̃/(1 − μ) = 10·η̃ in all" in said


def test_claims_say_nothing_of_another_optimiser(reports: Path) -> None:
    claims = json.loads((reports / "claims.json").read_text())["claims"]
    found = {claim["claim"]: claim["findings"][0] for claim in claims}
    assert found["best-batch-size-fig-3"]["verdict"] == "undecided"
    assert (
        "not the paper's setting, its optimizer is momentum"
        in (found["best-batch-size-fig-3"]["reason"])
    )
    assert "not the paper's setting" not in found["best-batch-size-fig-2"]["reason"]
