from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from smallbatch.analysis.answer import answer
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.metrics import study_metrics
from tests.analysis import synthetic

NAMES = ("accuracy", "batch_size", "base_lr", "stable_octaves", "diverged_share")


def results(folder: Path, *studies: synthetic.Study, dataset: str = "synthetic") -> pd.DataFrame:
    synthetic.write_models(folder, studies, dataset)
    return load_results(folder).runs


def test_they_are_of_the_answer_and_of_all_runs(tmp_path: Path) -> None:
    runs = results(tmp_path, *synthetic.STUDIES)
    metrics = study_metrics(runs)
    names = [study.name for study in synthetic.STUDIES]
    assert list(metrics) == [f"{study}.{name}" for study in sorted(names) for name in NAMES]
    for study in synthetic.STUDIES:
        own = runs[runs["study"] == study.name]
        found = answer(own)
        assert found.cell is not None
        assert found.reliable is not None
        assert metrics[f"{study.name}.batch_size"] == found.cell["batch_size"]
        assert metrics[f"{study.name}.base_lr"] == found.cell["base_lr"]
        assert metrics[f"{study.name}.accuracy"] == pytest.approx(found.cell["accuracy"], rel=1e-5)
        assert metrics[f"{study.name}.stable_octaves"] == found.reliable["octaves"]
        diverged = sum(outcome == "diverged" for outcome in own["outcome"])
        assert metrics[f"{study.name}.diverged_share"] == pytest.approx(diverged / len(own), 1e-5)


def test_they_have_a_study_of_no_finished_run(tmp_path: Path) -> None:
    hopeless = synthetic.Study("hopeless", log_base_lr_0=-30.0, batch_sizes=(2, 4))
    metrics = study_metrics(results(tmp_path, hopeless))
    assert metrics.pop("hopeless.diverged_share") == 1
    assert set(metrics.values()) == {None}


def test_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    low, high = (
        synthetic.Study("same", batch_sizes=(2, 8), peak=peak, epochs=8) for peak in (0.6, 0.8)
    )
    results(tmp_path, low, dataset="low")
    runs = results(tmp_path, high, dataset="high")
    both = study_metrics(runs)
    assert {name.rpartition(".")[0] for name in both} == {"low.same", "high.same"}
    for dataset in ("low", "high"):
        one = study_metrics(runs, dataset)
        assert one == {f"same.{name}": both[f"{dataset}.same.{name}"] for name in NAMES}
    assert study_metrics(runs, "other") == {}
