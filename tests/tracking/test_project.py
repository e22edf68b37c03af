from __future__ import annotations

from pathlib import Path

import pytest

from smallbatch.tracking.project import project_folder
from smallbatch.tracking.uri import TrackingUri


@pytest.mark.parametrize(
    ("folder", "project"),
    [
        ("/home/me/project", "/home/me/project"),
        ("/home/me/project/.dvc/tmp/exps/tmpab12", "/home/me/project"),
        ("/home/me/project/.dvc/tmp/exps/standalone/tmpab12", "/home/me/project"),
        ("/home/me/project/.dvc/tmp/exps/standalone/tmpab12/sub", "/home/me/project"),
        ("/home/me/.dvc/tmp/other", "/home/me/.dvc/tmp/other"),
        ("/home/me/exps/tmp", "/home/me/exps/tmp"),
        ("/", "/"),
    ],
)
def test_the_copy_of_an_experiment_belongs_to_the_project(folder: str, project: str) -> None:
    assert project_folder(Path(folder)) == Path(project)


def test_an_experiment_of_dvc_logs_to_the_database_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmpab12"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        monkeypatch.chdir(folder)
        assert TrackingUri.parse().database == tmp_path / "mlflow.db"
        assert TrackingUri.parse("sqlite:////elsewhere/mlflow.db").database == Path(
            "/elsewhere/mlflow.db"
        )
