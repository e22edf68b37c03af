"""Which columns lack runs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import Params, parse_params
from smallbatch.data.prepare import prepare
from smallbatch.engines.kinds import Engine
from smallbatch.engines.made_by import code_digest
from smallbatch.pipeline.cluster.board import Board
from smallbatch.pipeline.cluster.outstanding import WORK, outstanding
from smallbatch.pipeline.cluster.ray.files import column_of
from smallbatch.pipeline.experiments import planned_runs
from smallbatch.protocol.outcome import RunResult
from smallbatch.records import files
from smallbatch.records.schema import Clock

RAW: dict[str, Any] = {
    "dataset": {"name": "digits", "source": "digits", "subset": 100},
    "grid": {
        "studies": ["a"], "dependent": [{"name": "b", "after": "a"}], "batch_sizes": [4, 16],
        "base_lrs": [0.5, 0.25], "seeds": 2,
    },
    "studies": {
        "a": {"model": "resnet8", "norm": "none", "epochs": 3, "weight_decay": 0.0},
        "b": {"model": "resnet8", "norm": "batch", "epochs": 1, "weight_decay": 0.0,
              "base_lr": "best of a"},
    },
    "compute": {"cluster": "slurm"},
}  # fmt: skip


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    params = parse_params(RAW, "params.yaml")
    prepare(params.dataset)
    return params


def keep(params: Params, made_by: str, m: int = 4, leave_out: int = 0) -> None:
    """Records of the runs of study a."""
    fingerprint = outstanding(params, "params.yaml", params.columns)[0].fingerprint
    runs = sorted(planned_runs(params, "a", m, (0.5, 0.25), fingerprint))
    for run in runs[leave_out:]:
        result = RunResult("finished", None, [], {}, 10, {})
        clock = Clock(started="2026-01-01T00:00:00+00:00", seconds=1.0)
        files.save_record(WORK / run, result, clock, made_by)


def test_all_columns_of_a_new_project_with_what_they_are_trained_by(params: Params) -> None:
    tasks = outstanding(params, "params.yaml", params.columns)
    found = [(it.key, it.stage, it.after, it.base_lrs, it.runs, it.updates) for it in tasks]
    assert found == [
        ("digits-a-m4", "train@a-4", None, (0.5, 0.25), 4, 75),
        ("digits-a-m16", "train@a-16", None, (0.5, 0.25), 4, 18),
        ("digits-b-m4", "train_dependent@study0-4", "digits-a-m4", None, 2, 25),
        ("digits-b-m16", "train_dependent@study0-16", "digits-a-m16", None, 2, 6),
    ]
    assert parse_params(dict(tasks[0].params), "x") == params
    assert len({it.wanted for it in tasks}) == 4


def test_tasks_have_the_seeds_of_their_study(params: Params) -> None:
    a = RAW["studies"]["a"]
    own = parse_params({**RAW, "studies": {**RAW["studies"], "a": {**a, "seeds": 3}}}, "x")
    before, tasks = (outstanding(it, "params.yaml", it.columns) for it in (params, own))
    found = [(it.key, it.runs, list(it.seeds)) for it in tasks]
    assert found == [
        ("digits-a-m4", 2 * 3, [0, 1, 2]),
        ("digits-a-m16", 2 * 3, [0, 1, 2]),
        ("digits-b-m4", 2, [0, 1]),
        ("digits-b-m16", 2, [0, 1]),
    ]
    # b goes by the best of a, which may now be another.
    assert not {it.wanted for it in tasks} & {it.wanted for it in before}
    board = Board()
    kept = board.task(board.put(tasks[0]).key)
    assert kept
    assert column_of(kept).runs == planned_runs(own, "a", 4, (0.5, 0.25), tasks[0].fingerprint)
    assert len(column_of(kept).runs) == 6


def test_only_those_that_were_asked_for(params: Params) -> None:
    tasks = outstanding(params, "params.yaml", {("a", 16)})
    assert [it.key for it in tasks] == ["digits-a-m16"]


def elsewhere(code: str, **others: str) -> str:
    """What a record has of a GPU that is not here, with the present libraries but for some."""
    names = ("torch", "timm", "numpy")
    versions = " ".join(f"{name} {others.get(name, metadata.version(name))}" for name in names)
    return f"{code} {versions} cuda Another GPU AVX2 torch"


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_columns_whose_runs_the_present_code_made_are_complete(
    params: Params, engine: Engine
) -> None:
    keep(params, elsewhere(code_digest(engine)))
    keys = [it.key for it in outstanding(params, "params.yaml", {("a", 4), ("a", 16)})]
    assert keys == ["digits-a-m16"]


def test_runs_that_other_code_made_or_that_are_missing_are_trained(params: Params) -> None:
    for made_by in (elsewhere("0123"), elsewhere(code_digest("loop"), torch="1.0.0")):
        keep(params, made_by)
        assert len(outstanding(params, "params.yaml", {("a", 4)})) == 1
    keep(params, elsewhere(code_digest("loop")), leave_out=1)
    assert len(outstanding(params, "params.yaml", {("a", 4)})) == 1
