from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from smallbatch.tracking.links import experiment_links
from tests.tracking.conftest import free_port


def test_an_embedded_database_has_no_links(monkeypatch: pytest.MonkeyPatch, columns: Any) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert experiment_links(["digits/study"]) == {}


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://u:S3cretPw@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as found:
        experiment_links(["digits/study"])
    assert "S3cretPw" not in str(found.value)


@pytest.mark.slow
def test_a_link_leads_to_the_runs_of_a_cell_and_tells_no_password(
    columns: Any, start_server: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    columns.write(8, diverged=(2.0**-3,))
    server = start_server("server")
    uri = server.uri.replace("://", "://u:S3cretPw@")
    sync(columns.root, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    links = experiment_links(["digits/study", "digits/other"])
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("digits/study")
    assert experiment is not None
    page = f"{server.uri}/#/experiments/{experiment.experiment_id}/runs"
    view = "?workflowType=machine_learning&viewStateShareKey=smallbatch"
    assert links == {"digits/study": page + view}
    assert "mlflow.sharedViewState.smallbatch" in experiment.tags
    with urllib.request.urlopen(links["digits/study"], timeout=10) as answer:
        assert b"MLflow" in answer.read()
    # As the page asks for a cell.
    asked = "params.study = 'study' and params.batch_size = '8' and params.base_lr = '0.125'"
    runs = client.search_runs([experiment.experiment_id], asked)
    assert len(runs) == len([run for run in runs if run.data.params["base_lr"] == "0.125"]) > 0
