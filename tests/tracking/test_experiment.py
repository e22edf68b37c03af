"""An experiment's kind, description and view; `test_ui_browser.py` has what MLflow makes of it."""

from __future__ import annotations

import json
from typing import Any

from smallbatch.tracking import sync
from smallbatch.tracking.store import open_store

TAGS = "select key, value from experiment_tags"


def test_an_experiment_says_what_it_is(columns: Any, tables: Any) -> None:
    sync(columns.write(8))
    tags = dict(tables.query(TAGS))
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    note = tags["mlflow.note.content"]
    assert "resnet8 on digits, without batch norm; 6 epochs, weight decay 0.0001" in note
    assert "the paper's figure 2" in note
    state = json.loads(json.loads(tags["mlflow.sharedViewState.smallbatch"])["state"])
    names = {key for (key,) in tables.query("select distinct key from metrics")}
    for kind, table in (("params", "params"), ("tags", "tags")):
        known = {key for (key,) in tables.query(f"select distinct key from {table}")}
        chosen = [it.split("`")[1] for it in state["selectedColumns"] if it.startswith(kind)]
        assert set(chosen) <= known
    chosen = [it.split("`")[1] for it in state["selectedColumns"] if it.startswith("metrics")]
    assert set(chosen) <= names


def test_what_somebody_wrote_or_chose_stays(columns: Any, tables: Any) -> None:
    directory = columns.write(8)
    sync(directory)
    client = open_store().client
    experiment = client.get_experiment_by_name("digits/study")
    assert experiment is not None
    mine = {"mlflow.note.content": "mine", "mlflow.experimentKind": "genai_development"}
    view = json.loads(experiment.tags["mlflow.sharedViewState.smallbatch"])
    mine["mlflow.sharedViewState.smallbatch"] = json.dumps({**view, "state": "{}"})
    for key, value in mine.items():
        client.set_experiment_tag(experiment.experiment_id, key, value)
    columns.write(16)
    sync(columns.root)
    assert dict(tables.query(TAGS)).items() >= mine.items()


def test_our_own_description_follows_the_settings(columns: Any, tables: Any) -> None:
    sync(columns.write(8, figure="2"))
    sync(columns.write(8, figure="7"))
    assert "the paper's figure 7" in dict(tables.query(TAGS))["mlflow.note.content"]


def test_a_new_database_has_no_experiment_of_nobodys(columns: Any) -> None:
    for _ in range(2):
        sync(columns.write(8), "sqlite:///other.db")
        client = open_store("sqlite:///other.db").client
        assert [it.name for it in client.search_experiments()] == ["digits/study"]


def test_a_table_of_runs_has_few_metrics(columns: Any, tables: Any) -> None:
    columns.write(8, diverged=(2.0**-3,))
    sync(columns.root)
    names = {key for (key,) in tables.query("select distinct key from metrics")}
    assert names == {
        "batch_size", "log2_base_lr", "diverged", "reported_accuracy", "final_train_accuracy",
        "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr",
        "runs_diverged", "best_accuracy", "best_base_lr", "images_per_second",
    }  # fmt: skip
