"""Which sources determine numbers: found from imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallbatch import modules
from smallbatch.config.study import StudyConfig
from smallbatch.engines import made_by
from smallbatch.engines.made_by import ENTRY, code_digest, made_by_on, sources
from smallbatch.modules import PACKAGE


def forget() -> None:
    """What was found in another copy of the package."""
    for found in (sources, code_digest, made_by._digest, modules.sources, modules._imports):
        found.cache_clear()


def test_the_sources_of_an_engine_are_its_imports() -> None:
    loop, stacked = ({str(path) for path in sources(*ENTRY[name])} for name in ("loop", "stacked"))
    assert {"engines/loop.py", "engines/tally.py", "protocol/stream.py", "models/norms.py"} <= loop
    assert not any(path.startswith("engines/lanes") for path in loop)
    assert loop < stacked
    # Imported inside a function, by way of another module, and not by Python at all.
    for path in ("triton/heads.py", "torch/vmap.py", "native/winograd.h", "native/kernels.cpp"):
        assert f"engines/lanes/{path}" in stacked
    assert "models/flops.py" in stacked  # decides into how many parts a batch is cut
    assert not any(path.startswith(("config", "records", "placement")) for path in stacked)


@pytest.mark.parametrize(
    "changed", ["engines/loop.py", "models/flops.py", "engines/lanes/native/norms.h"]
)
def test_a_changed_source_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    import shutil

    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(modules, "PACKAGE", copy)
    found: list[tuple[str, ...]] = []
    for _ in range(2):
        forget()
        found.append(tuple(code_digest(name) for name in ("loop", "stacked")))
        path = copy / changed
        path.write_text(path.read_text() + "\n")
    monkeypatch.undo()
    forget()
    before, after = found
    assert before == tuple(code_digest(name) for name in ("loop", "stacked"))
    assert after[1] != before[1]
    assert (after[0] != before[0]) == (changed == "engines/loop.py")


def test_relative_imports_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of one's own may have them."""
    monkeypatch.setattr(modules, "PACKAGE", tmp_path / "smallbatch")
    for name, text in {
        "engines/own/__init__.py": "from .helper import x",
        "engines/own/helper.py": "from . import other\nfrom ...protocol import run",
        "engines/own/other.py": "",
        "engines/__init__.py": "",
        "protocol/__init__.py": "",
        "protocol/run.py": "",
    }.items():
        path = tmp_path / "smallbatch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    forget()
    found = sources("engines/own/__init__.py")
    forget()
    names = {str(path) for path in found}
    assert {"engines/own/helper.py", "engines/own/other.py", "protocol/run.py"} <= names


def test_variables_that_choose_a_model_are_part_of_what_made_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=0)
    before = made_by_on("loop", "cpu", study)
    monkeypatch.setenv("TIMM_USE_NAFLEXVIT", "true")
    *rest, by = before.split()
    assert made_by_on("loop", "cpu", study).split() == [*rest, "TIMM_USE_NAFLEXVIT=true", by]
    monkeypatch.delenv("TIMM_USE_NAFLEXVIT")
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert made_by_on("loop", "cpu", study) == before
