"""A project with a model of its own under real `dvc`: what is edited is trained again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smallbatch.config.params import load_params
from smallbatch.pipeline import experiments
from tests.own_model import write_net
from tests.project import Project, stages_run

PARAMS = """
dataset: {name: digits, source: digits, subset: 100, test_subset: 40}
grid: {studies: [tuned], dependent: [], batch_sizes: [8], base_lrs: [2^-8, 2^-6], seeds: 1}
advise: {studies: []}
studies:
  tuned:
    {model: "nets.mine:Net", norm: batch, epochs: 1, weight_decay: 0.0001,
     pretrained: w.safetensors, freeze: head only}
compute: {engine: loop, workers: 1}
"""
STAGE = "train@tuned-8"

pytestmark = pytest.mark.slow


def trained(project: Project) -> tuple[list[str], set[str]]:
    """The training stages that run now, and the hashes of the column's runs."""
    stages = sorted(stages_run(project.call("dvc", "repro", "train")))
    record = json.loads((project.root / "models/digits/tuned/m8/runs.json").read_text())
    return [stage for stage in stages if stage != "prepare"], {it["run"] for it in record["runs"]}


def to_train(project: Project) -> set[str]:
    """The hashes of the column's runs as they are now, which DVC is about to train."""
    listing = project.root / ".smallbatch/code/train"
    before = listing.read_text()
    project.call("smallbatch", "code")
    assert listing.read_text() != before  # it is what the stage depends on
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        params = load_params(Path("params.yaml"))
        return {run.hash for run in experiments.plan_study_column(params, "tuned", 8).runs}


def test_what_is_edited_is_trained_again_and_the_model_loads_elsewhere(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", PARAMS, tracked=False)
    net = write_net(project.root) / "nets"
    weights = project.root / "w.safetensors"
    start = ("run", "--model", "nets.mine:Net", "--norm", "batch", "-m", "8", "--lr", "0.1")
    project.call("smallbatch", *start, "--epochs", "1")
    [found] = project.root.glob(".smallbatch/runs/digits/nets.mine-net-batch/*/weights.safetensors")
    named = {name.partition("/")[2]: value for name, value in load_file(found).items()}
    save_file(named, weights)

    stages, first = trained(project)
    assert stages == [STAGE]
    tuned = project.root / "models/digits/tuned/m8/weights.safetensors"
    for name, value in load_file(tuned).items():
        same = np.array_equal(value, named[name.partition("/")[2]])
        assert same != ("/fc." in name), name

    (net / "unused.py").write_text("x = 1\n")
    (project.root / "notes.md").write_text("notes\n")
    assert trained(project) == ([], first)

    seen, planned = set[str](), first
    for edited in (net / "mine.py", net / "layers.py", weights):
        if edited == weights:
            save_file(named | {"body.0.bias": named["body.0.bias"] + 1}, weights)
        else:
            edited.write_text(edited.read_text() + "\n# edited\n")
        seen |= planned
        planned = to_train(project)
        assert not seen & planned
    project.tracked = True
    stages, after = trained(project)
    assert stages == [STAGE]
    assert after == planned

    models = [file.parent for file in project.root.glob("mlartifacts/**/MLmodel")]
    assert models
    (tmp_path / "elsewhere").mkdir()
    for file in net.iterdir():
        if file.is_file():
            file.unlink()
    program = (
        "import sys, mlflow, numpy as np\n"
        "for it in sys.argv[1:]:\n"
        "    p = mlflow.pyfunc.load_model(it).predict(np.zeros((3, 1, 8, 8), np.uint8))\n"
        "    assert p.shape == (3, 10) and np.allclose(p.sum(1), 1)\n"
    )
    words = [sys.executable, "-c", program, *map(str, models)]
    subprocess.run(words, cwd=tmp_path / "elsewhere", check=True)
