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
    assert second.startswith(
        "digits/fails: its memory is not counted by loop at m = 2, 8: model: nets.own:Fails("
    )
    table = pd.read_csv(memory).query("engine == 'loop'")
    assert memory == Path("reports/measurements/memory/digits.csv")
    image = (dataset.meta.channels, dataset.meta.height, dataset.meta.width)
    assert table[["study", "norm", "batch_size", "bytes"]].to_numpy().tolist() == [
        [name, at.norm, m, loop_bytes(at, m, image, len(dataset.meta.classes))]
        for name in ("a", "b")
        for m in (2, 8)
        for (at,) in [params.studies[name].at(m)]
    ]
    assert table["norm"].tolist() == ["batch", "batch", "batch", "ghost"]
    assert set(table["fingerprint"]) == {dataset.meta.fingerprint}
    assert read_memory(variances.parent)["bytes"].tolist() == pd.read_csv(memory)["bytes"].tolist()


def test_what_cannot_be_counted_at_one_m_is_missing_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that reads values is counted on real tensors, which need half of the free memory."""
    monkeypatch.chdir(tmp_path)
    Path("looks.py").write_text(
        "from torch import nn\n\n"
        "class Looks(nn.Module):\n"
        "    def __init__(self, num_classes, in_chans):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(72, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.flatten(1)) * (2 if float(x.sum()) > 1 else 1)\n"
    )
    study = {**STUDY, "model": "looks:Looks"}
    grid = {"studies": ["a"], "batch_sizes": [2, 8, 23], "base_lrs": [0.1], "seeds": 1}
    raw = {"dataset": {"name": "digits", "source": "digits"}, "grid": grid, "studies": {"a": study}}
    params = parse_params({**raw, "compute": {"device": "cpu"}}, "p")
    monkeypatch.setattr("smallbatch.engines.update_memory.free_memory", lambda: 20_000)
    table = pd.read_csv(measurements.measure_memory(params, make_dataset()))
    assert table[["engine", "batch_size"]].to_numpy().tolist() == [["loop", 2], ["loop", 8]]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "digits/a: its memory is not counted by loop at m = 23: a batch of 23 needs about "
    )


def test_a_data_set_whose_name_ends_in_memory_has_tables_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measurements, "prepared", lambda _: make_dataset())
    study = {**STUDY, "optimizer": "momentum"}
    grid = {"studies": ["a"], "batch_sizes": [2], "base_lrs": [0.1], "seeds": 1}
    written: list[Path] = []
    for name in ("a", "a-memory", "memory"):
        raw = {"dataset": {"name": name, "source": "digits"}, "grid": grid, "studies": {"a": study}}
        written += measurements.measure(parse_params({**raw, "compute": {"device": "cpu"}}, "p"))
    assert len(set(written)) == 6
    assert all(path.is_file() for path in written)
