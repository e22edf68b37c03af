"""The report on studies that differ in their epochs alone, from result files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from smallbatch.analysis.evaluation import evaluate
from smallbatch.report.budgets import amount_text
from smallbatch.report.page import build_report
from tests.analysis import synthetic

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (2, 8, 32)
FIRST = synthetic.Study("net-12", best_m=8, batch_sizes=SIZES, epochs=12)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("budgets")
    studies = [replace(FIRST, name=f"net-{epochs}", epochs=epochs) for epochs in (6, 12, 48)]
    models = synthetic.write_models(root / "models", tuple(studies))
    evaluate(models, root / "reports/evaluation")
    build_report(root / "reports/evaluation", models, root / "reports")
    return root / "reports"


def test_the_table_tells_what_each_batch_size_reaches(reports: Path) -> None:
    table = pd.read_csv(reports / "tables/budgets.csv")
    assert set(table["family"]) == {"net"}
    epochs = table[table["budget"] == "epochs"]
    assert epochs["amount"].unique().tolist() == [6, 12, 48]
    best = epochs[epochs["standing"] == "best"]
    assert best["batch_size"].tolist() == [8, 8, 8]
    # 1,024 images: six epochs at m = 2 are 3,072 updates, as are 24 at m = 8.
    updates = table[(table["budget"] == "updates") & (table["amount"] == 3072)]
    assert updates["batch_size"].tolist() == [2, 8]
    assert updates["epochs"].tolist() == [6, 24]


def test_the_page_has_a_figure_and_a_table_of_it(reports: Path) -> None:
    page = (reports / "report.html").read_text(encoding="utf-8")
    assert 'data-figure="synthetic.net.budgets"' in page
    assert "Which m is best under each budget" in page
    assert "net, by the studies net-6, net-12 and net-48: accuracy against m for" in page
    words = re.sub("<[^>]+>", " ", page)
    # 12,288 updates are 24 epochs at m = 2, and 96 at m = 8.
    assert re.search(r"equal updates +3,072 updates +3 +8 ", " ".join(words.split()))
    picture = (reports / "figures/synthetic.net.budgets.svg").read_text(encoding="utf-8")
    assert "equal epochs" in picture
    assert "48 epochs" in picture
    assert "3,072 updates" in picture


def test_amounts_have_their_units() -> None:
    assert amount_text("epochs", 1) == "1 epoch"
    assert amount_text("updates", 5120) == "5,120 updates"
    assert amount_text("seconds", 0.0412) == "0.0412 s"
    assert amount_text("seconds", 1.04) == "1.04 s"
    assert amount_text("seconds", 99.6) == "99.6 s"
    assert amount_text("seconds", 110) == "110.0 s"
    assert amount_text("seconds", 150) == "2.5 min"
