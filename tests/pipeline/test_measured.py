"""Of which studies the variance of updates is measured."""

from __future__ import annotations

from typing import Any

from smallbatch.config.params import parse_params
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
