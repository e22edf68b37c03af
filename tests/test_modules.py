"""Which files of a project decide what one of its modules does."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallbatch.config.model_files import code_digest, model_files
from smallbatch.errors import UserError
from smallbatch.modules import of_project
from tests.own_model import write_net

FILES = {
    "nets/mine.py": "import os, torch\nfrom . import layers\nfrom shared.blocks import deep\n"
    "if TYPE_CHECKING:\n    import typed\ndef late():\n    import lazily\n",
    "nets/layers.py": "import nets.mine\n",
    "nets/unused.py": "",
    "shared/__init__.py": "from shared import names\n",
    "shared/names.py": "",
    "shared/blocks/__init__.py": "from ..more import *\n",
    "shared/blocks/deep.py": "",
    "shared/more.py": "",
    "lazily.py": "",
    "typed.py": "",
    "torch/inner.txt": "",
    ".venv/lib/site-packages/json2.py": "",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_that_is_imported_below_the_folder(project: Path) -> None:
    found = of_project("nets.mine", project)
    assert sorted(str(file.relative_to(project)) for file in found.values()) == [
        "lazily.py", "nets/layers.py", "nets/mine.py", "shared/__init__.py",
        "shared/blocks/__init__.py", "shared/blocks/deep.py", "shared/more.py", "shared/names.py",
    ]  # fmt: skip
    assert found["shared.blocks"] == project / "shared/blocks/__init__.py"


def test_what_is_installed_is_none_of_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project / ".venv/lib/site-packages"))
    assert of_project("json2", project) == of_project("torch", project) == {}
    assert of_project("sys", project) == of_project("no_such_module", project) == {}
    assert code_digest("torch", project) != code_digest("timm", project)


def test_a_source_layout_is_found_where_it_is_installed_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_net(project / "src/inner")
    (project / "src/inner/nets").rename(project / "src/other_nets")
    monkeypatch.syspath_prepend(str(project / "src"))
    assert of_project("other_nets.layers", project) == {
        "other_nets.layers": project / "src/other_nets/layers.py"
    }


def test_a_digest_is_of_the_sources_wherever_they_are(project: Path, tmp_path: Path) -> None:
    before = code_digest("nets.mine", project)
    (project / "nets/unused.py").write_text("edited = 1")
    assert code_digest("nets.mine", project) == before
    other = tmp_path / "copy"
    for name in FILES:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(FILES[name])
    assert code_digest("nets.mine", other) == before
    (other / "shared/more.py").write_text("edited = 1")
    assert code_digest("nets.mine", other) != before


def test_the_files_of_studies(project: Path) -> None:
    (project / "w.pt").write_bytes(b"1")
    studies = [{"model": "resnet8"}, {"model": "lazily:Net"},
               {"model": "resnet8", "pretrained": "w.pt"},
               {"model": "resnet18", "pretrained": "timm"}]  # fmt: skip
    assert model_files(studies) == [Path("lazily.py"), Path("w.pt")]


def test_a_source_that_is_no_python_is_one_line(project: Path) -> None:
    (project / "lazily.py").write_text("def\n")
    with pytest.raises(UserError, match=r"^lazily\.py: line 1: no Python: "):
        of_project("nets.mine", project)


def test_the_other_branch_of_type_checking_counts(project: Path) -> None:
    (project / "lazily.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
    )
    for name in ("a", "b"):
        (project / f"{name}.py").touch()
    assert list(of_project("lazily", project)) == ["b", "lazily"]


def test_a_link_to_elsewhere_counts_by_its_content(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = write_net(tmp_path_factory.mktemp("elsewhere"))
    (project / "linked").symlink_to(elsewhere / "nets")
    (project / "single.py").symlink_to(elsewhere / "nets/layers.py")
    before = code_digest("linked.layers", project), code_digest("single", project)
    (elsewhere / "nets/layers.py").write_text("edited = 1")
    after = code_digest("linked.layers", project), code_digest("single", project)
    assert all(one != other for one, other in zip(before, after, strict=True))
