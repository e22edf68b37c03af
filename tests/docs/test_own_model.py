"""The page on own models, followed in a new project: its files written, its commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.docs.pages import DOCS
from tests.project import Project, stages_run

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", "")
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
                words = line.split()
                # What comes after the training is as for any other model.
                outputs.append(project.call(*words, *(["train"] if words[0] == "dvc" else [])))
        elif language == "python":
            words = ("python", "-c", text)
            assert int(project.call(*words)) == 269_722
    assert sum("test accuracy" in it for it in outputs) >= 2
    assert stages_run(outputs[-1]) == ["prepare", "train@tuned-8"]
    body = load_file(project.root / "tiny.safetensors")["body.0.weight"]
    column = load_file(project.root / "models/digits/tuned/m8/weights.safetensors")
    for name, value in column.items():
        if name.endswith("/body.0.weight"):
            assert (value == body).all()
