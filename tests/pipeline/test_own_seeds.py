"""A study with a number of seeds of its own: only its columns change, and only by new runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from smallbatch.config.params import Params, load_params, parse_params
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError
from smallbatch.pipeline.experiments import column_folder, plan_study_column, prepared
from smallbatch.pipeline.measurements import measure_updates
from smallbatch.protocol.run import run_hash
from smallbatch.records.columns import find_columns, read_record
from tests.columns import place_and_train
from tests.execution.test_two_makers import Log
from tests.project import ROOT, Project, stages_run

PARAMS = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid: {studies: [a, b], dependent: [{name: c, after: a}], batch_sizes: [4],
       base_lrs: [2^-8, 2^-6], seeds: 1}
advise: {studies: []}
studies:
  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}
  b: {model: resnet8, norm: group, epochs: 1, weight_decay: 0}
  c: {model: resnet8, norm: batch, epochs: 1, weight_decay: 0, base_lr: best of a}
compute: {device: cpu, engine: loop, workers: 1}
"""
WORK = Path(".smallbatch/work")
COMMITTED = sorted((ROOT / "results").glob("*/models"))


def with_seeds(**seeds: int) -> str:
    """The params file, with seeds of some studies' own."""
    text = PARAMS
    for study, number in seeds.items():
        assert f"  {study}: {{" in text
        text = text.replace(f"  {study}: {{", f"  {study}: {{seeds: {number}, ")
    return text


def parsed(**seeds: int) -> Params:
    return parse_params(YAML(typ="safe").load(with_seeds(**seeds)), "params.yaml")


def records(root: Path = WORK) -> dict[str, bytes]:
    """The records of finished runs, by their hashes."""
    return {path.parent.name: path.read_bytes() for path in root.glob("*/record")}


def train(params: Params, study: str) -> Log:
    """Train a column as `smallbatch train` does, without MLflow."""
    column, log = plan_study_column(params, study, 4), Log()
    out = column_folder(params, study, 4)
    place_and_train(column, out, compute=params.compute, work=WORK, observers=[log])
    return log


def written(column: Path) -> tuple[dict[str, Any], dict[str, tuple[int, float]]]:
    """The settings in a column's file, and the seed and η̃ of each of its runs."""
    content = json.loads((column / "runs.json").read_bytes())
    return content["settings"], {it["run"]: (it["seed"], it["base_lr"]) for it in content["runs"]}


def seeds_of(models: Path) -> dict[str, set[int]]:
    """The seeds of every study's column."""
    return {name: {seed for seed, _ in written(models / name / "m4")[1].values()} for name in "abc"}


def test_with_more_seeds_the_first_runs_are_kept_and_only_the_new_ones_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few, many = parsed(), parsed(a=2, c=3)
    prepare(few.dataset)
    train(few, "a")
    before, out = records(), column_folder(few, "a", 4)
    settings, runs = written(out)
    assert set(before) == set(runs)
    assert sorted(runs.values()) == [(0, 2.0**-8), (0, 2.0**-6)]

    with pytest.raises(UserError, match="train a 4 first"):  # it has not its seeds yet
        plan_study_column(many, "c", 4)
    log = train(many, "a")
    after = written(out)
    new = {run for run, (seed, _) in after[1].items() if seed == 1}
    assert after[0] == settings
    assert "seeds" not in settings
    assert sorted(after[1].values()) == [(s, 2.0**k) for s in (0, 1) for k in (-8, -6)]
    assert runs.items() <= after[1].items()
    assert log.epochs == dict.fromkeys(new, 1)
    assert {run: record for run, record in records().items() if run in before} == before
    assert records().keys() - before.keys() == new

    # Of a dependent study's seeds more are run than of the study that its η̃ comes from.
    final = {it["run"]: it for it in json.loads((out / "runs.json").read_bytes())["runs"]}
    medians = {
        rate: pd.Series(
            [it["final"]["test_accuracy"] for it in final.values() if it["base_lr"] == rate]
        ).median()
        for rate in (2.0**-8, 2.0**-6)
    }
    dependent = plan_study_column(many, "c", 4)
    assert [run.seed for run in dependent.runs] == [0, 1, 2]
    (rate,) = {run.base_lr for run in dependent.runs}
    assert medians[rate] == max(medians.values())


@pytest.mark.parametrize("models", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_runs_have_their_hashes_whatever_the_seeds_of_their_study(models: Path) -> None:
    params = load_params(models.parent / "params.yaml")
    columns, unfinished = find_columns(models)
    assert columns
    assert not unfinished
    for record in map(read_record, columns):
        study = params.studies[record.study]
        for own in (study, study.model_copy(update={"seeds": 24})):
            of = {
                at.bn_batch_size if study.bn_batch_sizes else None: at.model_dump(mode="json")
                for at in own.at(record.batch_size)
            }
            for run in record.runs:
                assert run.run == run_hash(
                    of[run.bn_batch_size if study.bn_batch_sizes else None],
                    protocol=record.protocol,
                    fingerprint=record.dataset.fingerprint,
                    batch_size=record.batch_size,
                    base_lr=run.base_lr,
                    seed=run.seed,
                    model_digest=record.model_digest,
                )


def test_committed_results_are_found() -> None:
    assert {path.parent.name for path in COMMITTED} >= {"imagenette-small", "paper-cifar10-small"}


def test_the_variance_of_updates_is_measured_with_the_studys_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params, measured = parsed(a=2), list[tuple[str, list[int]]]()
    prepare(params.dataset)

    def measure(name: str, _study: Any, _data: Any, *, seeds: Any) -> list[dict[str, Any]]:
        measured.append((name, list(seeds)))
        return []

    monkeypatch.setattr("smallbatch.engines.update_variance.measure_study", measure)
    measure_updates(params, prepared(params))
    assert measured == [("a", [0, 1])]


@pytest.mark.slow
def test_dvc_trains_the_columns_of_that_study_alone(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", PARAMS, tracked=False)
    columns = ["train@a-4", "train@b-4", "train_dependent@study0-4"]

    def trained(**seeds: int) -> list[str]:
        (project.root / "params.yaml").write_text(with_seeds(**seeds))
        stages = stages_run(project.call("dvc", "repro", *columns))
        return sorted(stage for stage in stages if stage.startswith("train"))

    assert trained() == columns
    work, models = project.root / WORK, project.root / "models/digits"
    before = records(work)
    of_b = {path.name: path.read_bytes() for path in (models / "b/m4").iterdir()}
    assert trained(c=3) == ["train_dependent@study0-4"]
    assert trained(a=2, c=3) == ["train@a-4", "train_dependent@study0-4"]  # by the best η̃ of a
    assert seeds_of(models) == {"a": {0, 1}, "b": {0}, "c": {0, 1, 2}}
    assert {run: record for run, record in records(work).items() if run in before} == before
    assert {path.name: path.read_bytes() for path in (models / "b/m4").iterdir()} == of_b
