"""The page on own models, followed in a new project: its files written, its commands run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.docs.pages import DOCS
from tests.project import Project, stages_run

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    # What MLflow has of such a model: tests/pipeline/test_own_model.py.
    project = Project(tmp_path / "project", "", tracked=False)
    (project.root / "params.yaml").unlink()
    outputs: list[str] = []
    for language, title, text in BLOCK.findall((DOCS / "own-model.md").read_text()):
        if title:
            path = project.root / title
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif language == "sh":
            for line in text.splitlines():
                if "resnet18" in line:  # takes long, and is of another kind
                    continue
                words = [it for word in line.split() for it in expanded(project.root, word)]
                # What comes after the training is as for any other model.
                outputs.append(project.call(*words, *(["train"] if words[0] == "dvc" else [])))
        elif language == "python":
            words = ("python", "-c", text)
            assert int(project.call(*words)) == 269_722
    assert sum("test accuracy" in it for it in outputs) >= 2
    assert stages_run(outputs[-1]) == ["prepare", "train@tuned-8"]
    column = load_file(project.root / "models/digits/tuned/m8/weights.safetensors")
    (body,) = first_weights(load_file(project.root / "tiny.safetensors"))
    both = first_weights(column)
    assert len(both) == 2
    assert all((value == body).all() for value in both)


def expanded(root: Path, word: str) -> list[str]:
    """What a shell makes of a word with an asterisk."""
    return [str(path) for path in root.glob(word)] if "*" in word else [word]


def first_weights(kept: dict[str, Any]) -> list[Any]:
    return [value for name, value in kept.items() if name.endswith("/body.0.weight")]
