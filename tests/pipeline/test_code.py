"""The listings of the code that decides a stage's output, and the stages that depend on them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from smallbatch.modules import PACKAGE
from smallbatch.pipeline import code

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def test_each_stage_depends_on_its_listing_and_no_other() -> None:
    listings = {f".smallbatch/code/{stage}": stage for stage in STAGES if stage != "code"}
    assert set(STAGES["code"]["outs"]) == listings.keys()
    assert {str(code.FOLDER / stage) for stage in code.of_stages()} == listings.keys()
    for stage, settings in STAGES.items():
        deps = [dep for dep in settings.get("deps", []) if dep in listings]
        assert [listings[dep] for dep in deps] == ([] if stage == "code" else [stage])


@pytest.mark.parametrize(
    ("stage", "imported", "no_numbers"),
    [
        ("prepare", "smallbatch.data.prepare", ()),
        (
            "train",
            "smallbatch.engines.loop, smallbatch.engines.lanes, smallbatch.protocol.column",
            ("records", "data"),
        ),
        (
            "measure",
            "smallbatch.engines.update_variance, smallbatch.engines.update_memory",
            ("records", "data"),
        ),
        ("evaluate", "smallbatch.analysis.evaluation", ()),
        ("report", "smallbatch.report.page", ()),
    ],
)
def test_a_listing_has_what_python_imports(
    stage: str, imported: str, no_numbers: tuple[str, ...]
) -> None:
    """Python itself says what it has loaded; imports inside functions come on top."""
    program = (
        f"import sys, {imported}\n"
        "for name in sorted(sys.modules):\n"
        "    if name.startswith('smallbatch.'): print(sys.modules[name].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {Path(line).relative_to(PACKAGE) for line in done.stdout.splitlines()}
    plumbing = {"errors.py", "durable.py", "machine.py", "private.py", "modules.py",
                "data/__init__.py", "data/scratch.py", "data/split.py"}  # fmt: skip
    expected = {
        path for path in loaded if str(path) not in plumbing and path.parts[0] not in no_numbers
    }
    assert len(expected) > 5
    assert expected <= set(code.of_stages()[stage])


def test_what_decides_a_stage_is_in_its_listing_and_what_does_not_is_not() -> None:
    found = {stage: set(map(str, files)) for stage, files in code.of_stages().items()}
    trained = {"engines/loop.py", "engines/lanes/native/kernels.cpp", "models/norms.py",
               "protocol/column.py", "config/params.py"}  # fmt: skip
    assert trained < found["train"] < found["train_dependent"]
    assert {"analysis/generalisation.py", "records/columns.py"} <= found["train_dependent"]
    shown = {"report/page.js", "report/page.css", "report/page.html.j2", "analysis/claims.py"}
    assert shown < found["report"]
    assert {"data/png.py", "data/split.py", "config/dataset.py"} < found["prepare"]
    counted = {"engines/update_memory.py", "engines/lanes/native/network.py"}
    assert {"engines/update_variance.py", *counted} < found["measure"]
    assert "engines/update_memory.py" not in found["train"]
    for stage in ("prepare", "train", "train_dependent", "measure", "evaluate"):
        assert not any(file.startswith(("report", "cli", "tracking")) for file in found[stage])
    assert not any(file.startswith(("report", "engines", "models")) for file in found["evaluate"])
    assert "config/profiles.py" not in found["train"]


def test_a_listing_is_of_the_files_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for listing in code.write():
        done = subprocess.run(
            ["sha256sum", "--check", "--quiet", tmp_path / listing],
            cwd=PACKAGE, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LOCK = """schema: '2.0'
stages:
  code:
    cmd: smallbatch code
  train@bn-8:
    cmd: smallbatch train bn 8
    deps:
    - path: .smallbatch/code/train
      hash: md5
      md5: {train}
    - path: data/prepared/d
  train@bn-16:
    deps:
    - path: .smallbatch/code/train
      md5: 00000000000000000000000000000000
  train_dependent@study0-8:
    deps:
    - path: .smallbatch/code/train_dependent
      md5: {train_dependent}
  other:
    deps:
    - path: {train}
"""


def test_a_stage_is_kept_if_dvc_has_noted_the_present_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not code.kept_stages()
    sums = {
        path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in code.write()
    }
    Path("dvc.lock").write_text(LOCK.format(**sums))
    assert code.kept_stages() == {"train@bn-8", "train_dependent@study0-8"}
    of_stages = code.of_stages
    monkeypatch.setattr(code, "of_stages", lambda: {**of_stages(), "train": [Path("text.py")]})
    assert code.kept_stages() == {"train_dependent@study0-8"}
    for content in ("stages: 3", "{", "stages: {train: {deps: 3}}", ""):
        Path("dvc.lock").write_text(content)
        assert not code.kept_stages()
