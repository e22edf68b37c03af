"""Which artifacts a server opens, and where nobody may put them over HTTP."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow.entities import Dataset, DatasetInput, TraceInfo, TraceLocation, TraceState
from mlflow.entities.span import create_mlflow_span
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlTraceTag
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from sqlalchemy import event

from smallbatch.tracking import locations

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

LOCATION = "mlflow.artifactLocation"
ELSEWHERE = "http://evil.example/traces/tr-1/artifacts"


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("mlflow-artifacts:/1/x", True),
        ("runs:/1/x", True),
        ("models:/m/1", True),
        ("{root}/1", True),
        ("file://{root}/1", True),
        ("{root}", True),
        ("mlflow-artifacts://evil.example/1", False),
        ("file:///etc", False),
        ("/etc", False),
        ("etc", False),
        ("{root}/../other", False),
        ("file://{root}/%2e%2e/other", False),
        ("{root}/link/x", False),
        ("{root}-other", False),
        ("file://evil.example{root}/1", False),
        ("s3://x/y", False),
        ("http://[::1", False),
        ("nosuch:/x", False),
    ],
)
def test_only_the_servers_folder_is_opened(uri: str, inside: bool, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    opened: list[str] = []
    uri = uri.format(root=root)
    open_checked = locations._confined(lambda uri, **_: opened.append(uri), root)  # type: ignore[arg-type,return-value,func-returns-value]
    if inside:
        open_checked(uri, tracking_uri="x")
        assert opened == [uri]
    else:
        with pytest.raises(Exception, match="outside of the server's folder"):
            open_checked(uri, tracking_uri="x")
        assert not opened


@pytest.fixture
def store(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[SqlAlchemyStore, None, None]:
    """The store of a team's server, on SQLite."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, at MLflow
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
    for owner, name in ((Tracking, "create_experiment"), (Registry, "create_model_version")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be undone
    locations.refuse_locations()
    try:
        yield Tracking(f"sqlite:///{workplace}/mlflow.db", "mlflow-artifacts:/")
    finally:
        for moment in ("before_insert", "before_update"):
            event.remove(SqlTraceTag, moment, locations._check_trace_tag)
            event.remove(SqlDataset, moment, locations._check_dataset)


def start(store: SqlAlchemyStore, experiment: str, trace: str, **tags: str) -> TraceInfo:
    where = TraceLocation.from_experiment_id(experiment)
    return store.start_trace(TraceInfo(trace, where, 1, TraceState.OK, tags=tags))


def log_span(store: SqlAlchemyStore, experiment: str, trace: str, tags: dict[str, str]) -> None:
    """As OTLP at /v1/traces does."""
    attributes = {f"mlflow.traceTag.{key}": json.dumps(value) for key, value in tags.items()}
    attributes["mlflow.traceRequestId"] = json.dumps(trace)
    context = SpanContext(trace_id=5, span_id=7, is_remote=False)
    span = ReadableSpan("s", context, attributes=attributes, start_time=1, end_time=2)
    store.log_spans(experiment, [create_mlflow_span(span, trace)])


def test_nobody_says_where_a_trace_lies(store: SqlAlchemyStore) -> None:
    """Clients ask there with their login."""
    own = store.create_experiment("own")
    start(store, own, "tr-1", a="b")
    start(store, own, "tr-1", a="c")
    log_span(store, own, "tr-2", {"a": "b"})
    store.set_trace_tag("tr-1", "d", "e")
    old = store.deprecated_start_trace_v2(own, 1, {}, {"a": "b"}).request_id
    store.deprecated_end_trace_v2(old, 2, "OK", {}, {"d": "e"})  # type: ignore[arg-type]
    evil = {LOCATION: ELSEWHERE}
    archived = {"mlflow.trace.archiveLocation": ELSEWHERE}
    attempts: list[Callable[[], object]] = [
        lambda: start(store, own, "tr-1", **evil),
        lambda: start(store, own, "tr-3", **evil),
        lambda: start(store, own, "tr-3", **archived),
        lambda: log_span(store, own, "tr-2", evil),
        lambda: log_span(store, own, "tr-3", evil),
        lambda: store.deprecated_start_trace_v2(own, 1, {}, evil),
        lambda: store.deprecated_end_trace_v2(old, 1, "OK", {}, evil),  # type: ignore[arg-type]
    ]
    for place in (
        ELSEWHERE,
        "mlflow-artifacts:/",
        "mlflow-artifacts://evil.example/traces/tr-1/artifacts",
        "mlflow-artifacts:/../1/traces/tr-1/artifacts",
        "file:///etc/traces/tr-1/artifacts",
    ):
        attempts.append(lambda place=place: store.set_trace_tag("tr-1", LOCATION, place))
    for index, attempt in enumerate(attempts):
        with pytest.raises(MlflowException, match=r"^mlflow\.\S+ocation: this server") as refused:
            attempt()
        assert refused.value.get_http_status_code() == 400, index
    for trace in ("tr-1", "tr-2", old):
        place = f"mlflow-artifacts:/{own}/traces/{trace}/artifacts"
        assert store.get_trace_info(trace).tags[LOCATION] == place
    assert store.get_trace_info("tr-1").tags["d"] == "e"


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ({"uri": "mlflow-artifacts:/1/x"}, True),
        ({"uri": "s3://x/y"}, True),
        ({"uri": "data/mnist"}, True),
        ({"url": "https://example.org/x.csv"}, True),  # asked for without a login
        ({"tags": {}}, True),
        ({"uri": "mlflow-artifacts://evil.example/x"}, False),
        ({"uri": "HTTPS://evil.example/x"}, False),
        ({"uri": "http://[::1"}, False),
    ],
)
def test_no_dataset_sends_a_login_elsewhere(
    source: dict[str, object], allowed: bool, store: SqlAlchemyStore
) -> None:
    run = store.create_run(store.create_experiment("own"), "me", 1, [], "run").info.run_id
    inputs = [DatasetInput(Dataset("n", "d", "local", json.dumps(source)))]
    if allowed:
        store.log_inputs(run, inputs)
        kept = store.get_run(run).inputs
        assert kept is not None
        assert len(kept.dataset_inputs) == 1
    else:
        with pytest.raises(MlflowException, match=r"^source: the uri of a dataset") as refused:
            store.log_inputs(run, inputs)
        assert refused.value.get_http_status_code() == 400
