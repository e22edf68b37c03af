"""A project that was moved or copied logs into its own folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from tests.tracking.conftest import Columns

SOURCE = Path(__file__).parents[2] / "src"
PLACES = """
    select artifact_location from experiments where name != 'Default'
    union all select artifact_uri from runs union all select artifact_location from logged_models
    union all select storage_location from model_versions
"""
# A sync that finds all as it was; the places; a sync with a column more; the best model, when the
# folder of before is gone.
STEPS = """
import json, os, sqlite3, sys
from smallbatch.cli.main import main
main(["sync"], standalone_mode=False)
print(json.dumps(sqlite3.connect("mlflow.db").execute(sys.argv[1]).fetchall()))
os.rename("later", "models/digits/study/m16")
main(["sync"], standalone_mode=False)
if os.path.exists(sys.argv[2]):
    os.rename(sys.argv[2], sys.argv[2] + "-away")
import mlflow, numpy
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/digits-study@best")
print(model.predict(numpy.zeros((2, 1, 8, 8), numpy.uint8)).shape)
"""


def in_folder(folder: Path, *words: str) -> str:
    """Run Python there, in a process of its own: MLflow keeps databases open by their names."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(folder: Path, batch_size: int, seed: int) -> Path:
    """A column of a project, whose model can be loaded."""
    from smallbatch.models import build_model

    network = build_model(
        "resnet8", "none", num_classes=10, in_chans=1, image_size=8, seed=seed, batch_size=8
    )
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    columns = Columns(folder / "models")
    return columns.write(batch_size, base_lrs=(0.5,), seeds=1, epochs=2, weights=weights)


def make(folder: Path, database: Path) -> None:
    """A project with a column in its database."""
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    write(folder, 8, seed=3)
    in_folder(folder, "-m", "smallbatch", "sync")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "mlflow.db-" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True])
def test_it_logs_into_its_own_folder_and_its_model_loads(
    tmp_path: Path, initialised_database: Path, copied: bool
) -> None:
    before, after = tmp_path / "before", tmp_path / "after é"
    make(before, initialised_database)
    original = contents(before)
    if copied:
        shutil.copytree(before, after)
    else:
        before.rename(after)
    write(after, 16, seed=4).rename(after / "later")
    said = in_folder(after, "-c", STEPS, PLACES, str(before))
    again, told, more, shape = said.splitlines()
    assert "0 MLflow runs created, 0 completed, 2 unchanged" in again
    places = {place for (place,) in json.loads(told)}
    assert len(places) == 4  # the experiment, two runs, and the model, which has a version
    assert {place for place in places if not place.startswith(after.as_uri())} == set()
    assert "2 MLflow runs created" in more
    assert shape == "(2, 10)"
    assert len([*after.glob("mlartifacts/digits/study/models/*/artifacts/MLmodel")]) == 2
    if copied:
        assert contents(tmp_path / "before-away") == original
    assert not before.exists()


@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/mlartifacts/other/study",  # of another experiment
        "file:///etc/elsewhere/digits/study",
        "s3://bucket/mlartifacts/digits/study",
    ],
)
def test_a_place_of_another_layout_stays_refused(columns: Any, tables: Any, place: str) -> None:
    import sqlite3
    from contextlib import closing

    directory = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=2)
    sync(directory)
    with closing(sqlite3.connect(tables.database)) as connection, connection:
        connection.execute(
            "update experiments set artifact_location = ? where name = 'digits/study'", (place,)
        )
    with pytest.raises(UserError, match="has the artifacts of experiment digits/study at"):
        sync(directory)
    assert (place,) in tables.query("select artifact_location from experiments")


def test_only_this_folder_is_ever_named(columns: Any, tables: Any, workplace: Path) -> None:
    import sqlite3
    from contextlib import closing

    directory = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=2)
    sync(directory)
    with closing(sqlite3.connect(tables.database)) as connection, connection:
        connection.execute(
            "update experiments set artifact_location = "
            "'file:///etc/mlartifacts/digits/study' where name = 'digits/study'"
        )
        connection.execute(
            "update runs set artifact_uri = "
            "'file:///etc/mlartifacts/digits/study/../../../x' where name = 'm=8'"
        )
    assert sync(directory).unchanged == 2
    own = (workplace / "mlartifacts/digits/study").as_uri()
    assert tables.query(
        "select artifact_location from experiments where name = 'digits/study'"
    ) == [(own,)]
    [(left,)] = tables.query("select artifact_uri from runs where name = 'm=8'")
    assert left == "file:///etc/mlartifacts/digits/study/../../../x"
