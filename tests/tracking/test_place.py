"""A project is told from its copies, and from others at the same path on other machines."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from smallbatch.tracking.place import place_of

COLUMN = "models/digits/a/m4"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_every_column_has_one_place_wherever_it_is_asked_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(Path(COLUMN))
    assert len(place) == 16
    assert place_of(project / COLUMN) == place != place_of(Path("models/digits/a/m8"))
    monkeypatch.chdir("/")
    monkeypatch.setattr(platform, "node", lambda: "another-name")
    assert place_of(project / COLUMN) == place
    assert {path.name for path in (project / ".smallbatch").iterdir()} == {"place"}


def test_two_projects_at_one_path_of_machines_of_one_name_differ(
    project: Path, tmp_path: Path
) -> None:
    place = place_of(Path(COLUMN))
    project.rename(tmp_path / "first")
    project.mkdir()
    assert place_of(project / COLUMN) != place
    assert place_of(tmp_path / "first" / COLUMN) == place  # a project may move


def test_a_copy_is_another_project(project: Path, tmp_path: Path) -> None:
    place = place_of(Path(COLUMN))
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    own = place_of(copy / COLUMN)
    assert own != place
    assert place_of(copy / COLUMN) == own
    assert place_of(project / COLUMN) == place


def test_an_experiment_of_dvc_is_a_project_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(Path(COLUMN))
    temporary = project / ".dvc/tmp/exps/tmp1"
    temporary.mkdir(parents=True)
    monkeypatch.chdir(temporary)
    assert place_of(Path(COLUMN)) != place


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 200])
def test_a_damaged_number_is_made_anew(project: Path, content: bytes) -> None:
    place_of(Path(COLUMN))
    (project / ".smallbatch/place").write_bytes(content)
    assert place_of(Path(COLUMN)) == place_of(Path(COLUMN))


def test_without_a_number_path_and_machine_have_to_do(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".smallbatch").write_text("no folder")
    place = place_of(Path(COLUMN))
    assert place_of(project / COLUMN) == place
    monkeypatch.setattr(platform, "node", lambda: "another-name")
    assert place_of(Path(COLUMN)) != place
