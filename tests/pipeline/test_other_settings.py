"""Data that were prepared with other settings of `dataset` are not used for the present ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from smallbatch.cli.main import main
from smallbatch.config.params import Params, parse_params
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError
from smallbatch.pipeline import experiments
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.schedule import updates_after
from smallbatch.records.files import write_column
from smallbatch.records.schema import METRICS, Timing

PARAMS = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid: {studies: [a], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}
studies:
  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}
"""


@pytest.mark.parametrize("command", ["train a 4", "measure"])
def test_data_prepared_with_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    assert CliRunner().invoke(main, ["prepare"]).exit_code == 0
    Path("params.yaml").write_text(PARAMS.replace("subset: 60", "subset: 60, seed: 1"))
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.output == (
        "Error: data/prepared/digits: prepared with other settings than the present dataset.*; "
        "run `smallbatch prepare`\n"
    )


DEPENDENT = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid: {studies: [a], dependent: [{name: b, after: a}], batch_sizes: [4], base_lrs: [2^-8, 2^-6],
       seeds: 2}
advise: {studies: []}
studies:
  a: {model: resnet8, norm: none, epochs: 3, weight_decay: 0}
  b: {model: resnet8, norm: none, epochs: 3, weight_decay: 0, base_lr: best of a}
"""


def prepared(text: str) -> Params:
    """Params whose data are prepared."""
    params = parse_params(YAML(typ="safe").load(text), "params.yaml")
    prepare(params.dataset)
    return params


def write_source(params: Params) -> None:
    """Result files of study a's column as `train` writes them; the lowest η̃ is the best."""
    from smallbatch.data.prepared import load_prepared

    dataset = load_prepared(experiments.PREPARED / "digits")
    column = plan_column("a", params.studies["a"], dataset, batch_size=4,
                         base_lrs=params.base_lrs("a"), seeds=range(params.grid.seeds))  # fmt: skip
    updates = column.updates(column.runs[0])
    write_column(
        experiments.column_folder(params, "a", 4),
        dataset=dataset.meta,
        study="a",
        updates=updates,
        results=[
            (run, RunResult("finished", None, [
                {"epoch": epoch, "updates": updates_after(epoch, dataset.meta.counts["train"], 4),
                 "lr": run.lr, **dict.fromkeys(METRICS, 0.5 - run.base_lr)}
                for epoch in range(1, run.settings.epochs + 1)
            ], {}, 7, {}))
            for run in column.runs
        ],
        timing=Timing(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("a: {model: resnet8, norm: none, epochs: 3", "a: {model: resnet8, norm: none, epochs: 2"),
        ("2^-8, 2^-6", "2^-8, 2^-7"),
        ("seeds: 2", "seeds: 1"),
        ("subset: 60", "subset: 64"),
    ],
    ids=["the same", "settings", "base_lrs", "seeds", "data"],
)
def test_a_base_lr_is_taken_only_from_the_column_that_would_now_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    planned: list[Column] = []

    def only_plan(plan: Callable[[], Column], *_: Any, **__: Any) -> None:
        planned.append(plan())

    monkeypatch.setattr(experiments, "train_and_track", only_plan)
    monkeypatch.chdir(tmp_path)
    write_source(prepared(DEPENDENT))
    if not old:
        experiments.train_study_column(prepared(DEPENDENT), "b", 4)
        assert {run.base_lr for run in planned[0].runs} == {2.0**-8}
        return
    params = prepared(DEPENDENT.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        experiments.train_study_column(params, "b", 4)
    assert str(error.value) == (
        "train a 4 first: the column in models/digits/a/m4, whose best learning rate b takes, was "
        "trained with other settings, grid or data than the present ones"
    )
    write_source(params)
    experiments.train_study_column(params, "b", 4)
    assert len(planned) == 1
