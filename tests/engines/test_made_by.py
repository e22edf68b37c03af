"""Which sources determine numbers: found from imports, and the same for DVC's stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from smallbatch.config.params import StudyConfig
from smallbatch.engines import made_by
from smallbatch.engines.made_by import ENTRY, PACKAGE, code_digest, made_by_on, sources

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
SETTINGS = "src/smallbatch/config"  # part of a run's hash, which DVC does not know
# What a dependent study's η̃ comes from: the best cell of another study's column.
BEST = ("analysis/frames.py", "analysis/cells.py", "analysis/generalisation.py")
READERS = ("columns", "reading", "schema")
# Neither what they say nor how they write is in any number or table.
PLUMBING = (
    *("errors.py", "durable.py", "machine.py", "private.py"),
    *("data/__init__.py", "data/scratch.py", "data/split.py"),
)


@pytest.mark.parametrize(
    ("stage", "entries", "more"),
    [
        ("train", ENTRY["stacked"], {SETTINGS}),
        (
            "train_dependent",
            (*ENTRY["stacked"], *BEST),
            {SETTINGS, *(f"src/smallbatch/records/{name}.py" for name in READERS)},
        ),
        ("measure", ("engines/update_variance.py",), {SETTINGS}),
    ],
)
def test_a_stage_depends_on_the_sources_of_its_numbers(
    stage: str, entries: tuple[str, ...], more: set[str]
) -> None:
    check(stage, {f"src/smallbatch/{path}" for path in sources(*entries)}, more)


@pytest.mark.parametrize(
    ("stage", "entry"),
    [
        ("prepare", "data/prepare.py"),
        ("evaluate", "analysis/evaluation.py"),
        ("report", "report/page.py"),
    ],
)
def test_a_stage_depends_on_all_that_its_command_imports(
    monkeypatch: pytest.MonkeyPatch, stage: str, entry: str
) -> None:
    monkeypatch.setattr(made_by, "NO_NUMBERS", PLUMBING)
    sources.cache_clear()
    needed = {f"src/smallbatch/{path}" for path in sources(entry) if str(path) not in PLUMBING}
    sources.cache_clear()
    check(stage, needed, set())


def check(stage: str, needed: set[str], more: set[str]) -> None:
    """Each of them, and on no file or folder that holds none of them."""
    deps = {dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")}
    # A room's own file is there for its name alone.
    needed = {path for path in needed if (ROOT / path).read_text().count("\n") > 1} | more
    for path in needed:
        assert deps & {path, *map(str, Path(path).parents)}, path
    for dep in deps:
        assert any(Path(path).is_relative_to(dep) for path in needed), dep


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
    monkeypatch.setattr(made_by, "PACKAGE", copy)
    found: list[tuple[str, ...]] = []
    for _ in range(2):
        sources.cache_clear()
        code_digest.cache_clear()
        found.append(tuple(code_digest(name) for name in ("loop", "stacked")))
        path = copy / changed
        path.write_text(path.read_text() + "\n")
    monkeypatch.undo()
    sources.cache_clear()
    code_digest.cache_clear()
    before, after = found
    assert before == tuple(code_digest(name) for name in ("loop", "stacked"))
    assert after[1] != before[1]
    assert (after[0] != before[0]) == (changed == "engines/loop.py")


def test_relative_imports_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of one's own may have them."""
    monkeypatch.setattr(made_by, "PACKAGE", tmp_path / "smallbatch")
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
    sources.cache_clear()
    found = sources("engines/own/__init__.py")
    sources.cache_clear()
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
