from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallbatch.analysis.evaluation import evaluate
from smallbatch.report.page import build_report
from tests.analysis import synthetic
from tests.database import shared


@pytest.fixture(scope="session")
def reports() -> Path:
    """A report of the two made-up studies, one without any finished run, and a single run."""
    return shared("report", _make_report) / "reports"


def _make_report(root: Path) -> None:
    hopeless = synthetic.Study("hopeless", log_base_lr_0=-30.0, batch_sizes=(2, 4))
    single = synthetic.Study(
        "single", batch_sizes=(4,), base_lrs=(0.01,), seeds=1,
        settings={"figure": "text", "base_lr_from": "hopeless"},
    )  # fmt: skip
    synthetic.write_models(root / "models", (*synthetic.STUDIES, hopeless, single))
    (root / "models/synthetic/single/m8").mkdir()
    # A run of one column has been trained on another machine.
    timing = root / "models/synthetic/hopeless/m4/timing.json"
    content = json.loads(timing.read_text())
    cpu = content["environment"].pop("cpu")
    for i, run in enumerate(content["runs"].values()):
        run["environment"] = {"cpu": "Another CPU" if i == 0 else cpu}
    timing.write_text(json.dumps(content))
    evaluate(root / "models", root / "reports/evaluation")
    build_report(root / "reports/evaluation", root / "models", root / "reports")
