"""Of which studies the variance and the memory of updates are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.measurements import read_memory
from smallbatch.config.params import parse_params
from smallbatch.engines.update_memory import loop_bytes
from smallbatch.pipeline import measurements
from smallbatch.pipeline.measurements import measured_studies
from tests.noise import make_dataset

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


def test_without_such_a_study_a_line_says_so_and_memory_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = {
        "a": {**STUDY, "norm": "batch"},
        "fails": {**STUDY, "norm": "batch", "model": "nets.own:Fails"},
        "b": {**STUDY, "norm": "ghost", "bn_batch_size": "up to 4", "base_lr": "best of a"},
    }
    grid = {"studies": ["a", "fails"], "dependent": [{"name": "b", "after": "a"}],
            "batch_sizes": [2, 8], "base_lrs": [0.1], "seeds": 1}  # fmt: skip
    raw = {"dataset": {"name": "digits", "source": "digits"}, "grid": grid}
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/own.py").write_text(
        "from torch import nn\n\n"
        "class Fails(nn.Module):\n"
        "    def __init__(self, num_classes, in_chans):\n"
        "        raise RuntimeError('no such net')\n"
    )
    params = parse_params({**raw, "studies": studies, "compute": {"device": "cpu"}}, "p")
    dataset = make_dataset()
    monkeypatch.setattr(measurements, "prepared", lambda _: dataset)
    variances, memory = measurements.measure(params)
    assert len(variances.read_text().splitlines()) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "digits: no variance of updates is measured: no study by plain SGD without batch norm"
    )
    assert second.startswith("digits/fails: its memory is not counted: model: nets.own:Fails(")
    table = pd.read_csv(memory).query("engine == 'loop'")
    assert memory == Path("reports/measurements/digits-memory.csv")
    image = (dataset.meta.channels, dataset.meta.height, dataset.meta.width)
    assert table[["study", "norm", "batch_size", "bytes"]].to_numpy().tolist() == [
        [name, at.norm, m, loop_bytes(at, m, image, len(dataset.meta.classes))]
        for name in ("a", "b")
        for m in (2, 8)
        for (at,) in [params.studies[name].at(m)]
    ]
    assert table["norm"].tolist() == ["batch", "batch", "batch", "ghost"]
    assert set(table["fingerprint"]) == {dataset.meta.fingerprint}
    assert read_memory(memory.parent)["bytes"].tolist() == pd.read_csv(memory)["bytes"].tolist()
