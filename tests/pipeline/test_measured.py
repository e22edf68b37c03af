"""Of which studies the variance of updates is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import parse_params
from smallbatch.pipeline import experiments
from smallbatch.pipeline.experiments import measured_studies

STUDY: dict[str, Any] = {"model": "resnet8", "norm": "none", "epochs": 1, "weight_decay": 0.0}


def test_a_study_with_another_optimiser_is_left_out_and_the_next_of_its_model_taken() -> None:
    studies = {
        "adamw": {**STUDY, "optimizer": "adamw", "lrs": [0.001]},
        "momentum": {**STUDY, "optimizer": "momentum"},
        "plain": STUDY,
        "also-plain": STUDY,
        "other-model": {**STUDY, "model": "resnet20", "optimizer": "nesterov"},
    }
    grid = {"studies": [*studies], "batch_sizes": [2], "base_lrs": [0.1], "seeds": 1}
    params = parse_params(
        {"dataset": {"name": "digits", "source": "digits"}, "grid": grid, "studies": studies}, "p"
    )
    assert list(measured_studies(params)) == ["plain"]


def test_without_such_a_study_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"studies": ["a"], "batch_sizes": [2], "base_lrs": [0.1], "seeds": 1}
    raw = {"dataset": {"name": "digits", "source": "digits"}, "grid": grid}
    params = parse_params({**raw, "studies": {"a": {**STUDY, "norm": "batch"}}}, "p")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "prepared", lambda _: None)
    assert len(experiments.measure_updates(params).read_text().splitlines()) == 1
    assert capsys.readouterr().err == (
        "digits: nothing is measured: no study by plain SGD without batch norm\n"
    )
