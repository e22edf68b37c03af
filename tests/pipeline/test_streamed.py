"""Training on images that are kept encoded, by real commands: killed, resumed, whoever decodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from smallbatch.execution.watch import GRACE_S
from tests.columns import checkpoints
from tests.project import Project

pytestmark = pytest.mark.slow

PARAMS = """
dataset:
  {{name: photos, source: image_folder, path: photos, image_size: 16, storage: encoded,
    validation_fraction: 0.1}}
grid: {{studies: [resnet], dependent: [], batch_sizes: [4], base_lrs: [2^-8], seeds: 1}}
advise: {{studies: []}}
studies:
  resnet:
    {{model: resnet8, norm: batch, epochs: {epochs}, weight_decay: 0.0001, augment: true}}
compute: {{checkpoint_seconds: 0.2, decoders: {decoders}}}
"""


def photographs(folder: Path) -> None:
    """Images of two classes and several sizes: stripes that lie or stand."""
    draw = np.random.default_rng(0)
    for split, n in (("train", 150), ("test", 20)):
        for name in ("lying", "standing"):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                height, width = draw.integers(20, 60, size=2)
                pixels = draw.integers(0, 120, size=(height, width, 3))
                stripes = (np.arange(height)[:, None] if name == "lying" else np.arange(width)) % 8
                pixels[np.broadcast_to(stripes < 4, (height, width))] += 100
                path = folder / split / name / f"{i}.JPEG"
                Image.fromarray(pixels.astype(np.uint8)).save(path, "JPEG", quality=90)


def make(root: Path, *, epochs: int, decoders: int = 0) -> Project:
    project = Project(root, PARAMS.format(epochs=epochs, decoders=decoders), tracked=False)
    photographs(root / "photos")
    project.call("smallbatch", "prepare")
    return project


def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    project = make(tmp_path / "killed", epochs=4, decoders=1)
    training = begun(project)
    children = psutil.Process(training.pid).children(recursive=True)
    training.kill()
    training.communicate()
    assert len(children) >= 2  # who trains and who decodes for it
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert updates(project)
    output = project.call("smallbatch", "train", "resnet", "4")
    assert "goes on from its checkpoint, at update" in output
    again = project.outputs()

    undisturbed = make(tmp_path / "undisturbed", epochs=4)
    undisturbed.call("smallbatch", "train", "resnet", "4")
    names = {str(Path(path).relative_to(project.root)): path for path in again}
    ours = undisturbed.outputs()
    assert {str(Path(path).relative_to(undisturbed.root)): ours[path] for path in ours} == {
        name: again[path] for name, path in names.items()
    }


def test_what_interrupts_it_is_told_in_a_line(tmp_path: Path) -> None:
    project = make(tmp_path, epochs=5000, decoders=2)
    for name in ("SIGINT", "SIGTERM"):  # to all of its processes
        training = begun(project)
        for process in [*psutil.Process(training.pid).children(recursive=True), training]:
            os.kill(process.pid, getattr(signal, name))
        asked = time.monotonic()
        said = training.communicate(timeout=120)[0]
        assert time.monotonic() - asked < GRACE_S  # after which it would be ended by force
        assert training.returncode == 75
        assert f"interrupted by {name}: finished runs and checkpoints are kept" in said
        assert "Traceback" not in said

    training = begun(project)
    [worker] = [it for it in psutil.Process(training.pid).children() if it.children()]
    worker.children()[0].kill()
    said = training.communicate(timeout=120)[0]
    assert training.returncode == 2
    assert "a process that decodes images was killed" in said.splitlines()[-1]
    assert "Traceback" not in said

    shard = project.root / "data/prepared/photos/train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with project.start("smallbatch", "train", "resnet", "4") as failing:
        said = failing.communicate(timeout=120)[0]
    assert failing.returncode == 2
    assert "train-00000.parquet, image" in said.splitlines()[-1]
    assert "damaged; remove this file and prepare the data set again" in said.splitlines()[-1]


def begun(project: Project) -> subprocess.Popen[str]:
    """A training that has written a checkpoint."""
    before = updates(project)
    training = project.start("smallbatch", "train", "resnet", "4")
    deadline = time.monotonic() + 240
    while not updates(project) - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return training


def updates(project: Project) -> set[str]:
    """The names of its checkpoints, which count updates; their folder is that of the attempt."""
    return {path.name for path in checkpoints(project.root)}
