"""The report of studies whose learning rates are η, beside one whose learning rates are η̃."""

from __future__ import annotations

import json
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
    Study("heavy", batch_sizes=(2, 8, 32), settings={**MOMENTUM, "figure": "3"}),
    Root("adamw", batch_sizes=(2, 8, 32, 128), settings=ADAMW),
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adamw")
    models = write_models(folder / "models", STUDIES)
    evaluate(models, folder / "reports/evaluation")
    build_report(folder / "reports/evaluation", models, folder / "reports")
    return folder / "reports"


def test_it_is_made(reports: Path) -> None:
    assert (reports / "report.html").exists()
