"""How an experiment looks in MLflow's pages: its kind, description, table of runs, and link.

MLflow keeps a view of the table of runs as a tag of the experiment, and opens it by a link that
names it. Without one it shows few columns, and the runs folded away below their column's own run.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from smallbatch.text import count
from smallbatch.tracking import entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities import Experiment

    from smallbatch.tracking.records import ColumnInfo
    from smallbatch.tracking.store import Store

VIEW = "smallbatch"
"""The key of the view, as links name it."""
_KIND = "mlflow.experimentKind"
_NOTE = "mlflow.note.content"
_VIEW = f"mlflow.sharedViewState.{VIEW}"
_OUR_NOTE = "smallbatch.note"
_MADE = 1_790_000_000_000
"""When this version of the view was made, in milliseconds since 1970: another one replaces it."""

COLUMNS = {
    "metrics.`batch_size`": 88,
    "params.`base_lr`": 95,
    "metrics.`log2_base_lr`": 105,
    "params.`seed`": 58,
    "tags.`outcome`": 80,
    "metrics.`reported_accuracy`": 135,
    "attributes.`Duration`": 70,
}
"""The table's columns after the run's name, with their widths in pixels."""
RUNS_ALONE = f"tags.`{entries.RUN}` != ''"
"""A filter that leaves the columns' own runs out, and with it MLflow shows a flat table."""


def runs_page(experiment: Experiment) -> str:
    """The part of a link after the server's address: the table of an experiment's runs."""
    # Who has been in MLflow's pages for language models would be led back there without the type.
    page = f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    return f"{page}&viewStateShareKey={VIEW}" if _VIEW in experiment.tags else page


def describe_experiment(store: Store, experiment_id: str, column: ColumnInfo) -> None:
    """Set an experiment's kind, view and description; what somebody changed stays as it is."""
    experiment = store.client.get_experiment(experiment_id)
    present: dict[str, str] = experiment.tags
    tags = _looks(present)
    if _NOTE not in present or present.get(_OUR_NOTE) == _digest(present[_NOTE]):
        note = description(column)
        tags |= {_NOTE: note, _OUR_NOTE: _digest(note)}
    _set(store, experiment, tags)


def prepare_view(store: Store, experiment: Experiment) -> Experiment:
    """Set the kind and the view of an experiment that an older version logged."""
    if not (tags := _looks(experiment.tags)):
        return experiment
    _set(store, experiment, tags)
    return store.client.get_experiment(experiment.experiment_id)


def _set(store: Store, experiment: Experiment, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            store.client.set_experiment_tag(experiment.experiment_id, key, value)


def _looks(present: dict[str, str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    if _KIND not in present:
        tags[_KIND] = "custom_model_development"
    if _made(present.get(_VIEW, "")) != _MADE:
        tags[_VIEW] = json.dumps(
            {
                "name": "Runs by accuracy",
                "createdAt": _MADE,
                "updatedAt": _MADE,
                "state": json.dumps(_view()),
            }
        )
    return tags


_BASE = (
    "A grid of batch sizes m (`batch_size`) and base learning rates η̃ (`base_lr`), with "
    "several seeds. η̃ is the learning rate of one example: η = m·η̃ (the parameter `lr`; the "
    "metric is η of the last epoch, lowered by the schedule)."
)
_ETA = (
    "A grid of batch sizes m (`batch_size`) and learning rates η, with several seeds. AdamW's "
    "update does not scale with the gradient: `base_lr` is η itself, as the parameter `lr`, and "
    "`log2_base_lr` is log₂ η. (The metric `lr` is η of the last epoch, lowered by the schedule.)"
)


def _optimiser(settings: Mapping[str, Any]) -> list[str]:
    """The optimiser and the schedule, where they are not the paper's."""
    facts: list[str] = []
    if (name := settings.get("optimizer", "sgd")) != "sgd":
        momentum = settings.get("momentum")
        facts.append(f"optimizer {name}" + ("" if momentum is None else f", μ = {momentum:g}"))
    if (schedule := settings.get("schedule", "step")) != "step":
        facts.append(f"schedule {schedule}")
    return facts


def description(column: ColumnInfo) -> str:
    """What a study is, in Markdown."""
    settings = column.settings
    norm = {"none": "without batch norm"}.get(settings["norm"], f"norm: {settings['norm']}")
    adamw = settings.get("optimizer") == "adamw"
    rate = "η" if adamw else "η̃"
    facts = [
        *_optimiser(settings),
        count(settings["epochs"], "epoch"),
        f"weight decay {settings.get('weight_decay', 0):g}",
        "with augmentation" if settings.get("augment") else "without augmentation",
    ]
    if settings.get("budget") not in (None, "epochs"):
        facts.append(f"budget: {settings['budget']}")
    if settings.get("base_lr_from"):
        facts.append(f"each m at the best {rate} of {settings['base_lr_from']}")
    if settings.get("figure"):
        facts.append(f"the paper's figure {settings['figure']}")
    return (
        f"**{column.study}**: {settings['model']} on {column.dataset}, {norm}; "
        f"{', '.join(facts)}.\n\n"
        f"{_ETA if adamw else _BASE}\n\n"
        f"One run per m, {rate} and seed; a run `m=…` stands for all at one m. Diverged runs are "
        "results: `outcome` says which."
    )


def _view() -> dict[str, Any]:
    return {
        "searchFilter": RUNS_ALONE,
        "orderByKey": "metrics.`reported_accuracy`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
    }


def _made(view: str) -> object:
    try:
        return json.loads(view)["createdAt"]
    except (ValueError, KeyError, TypeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
