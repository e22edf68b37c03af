"""`dvc repro` with a cluster, by real `dvc` and worker processes; the scheduler is a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, cast

import pytest

from tests.pipeline.cluster.here import shim
from tests.project import Project

PARAMS = """
dataset: {{name: digits, source: digits, subset: 200}}
grid:
  studies: [resnet8, wide]
  dependent: [{{name: ghost, after: resnet8}}]
  batch_sizes: [8]
  base_lrs: [2^-8, 2^-6]
  seeds: 1
advise: {{studies: []}}
studies:
  resnet8: {{model: resnet8, norm: none, epochs: {epochs}, weight_decay: 0.0001}}
  wide: {{model: resnet8, norm: none, epochs: 1, weight_decay: 0.0}}
  ghost:
    {{model: resnet8, norm: ghost, epochs: 1, weight_decay: 0.0, base_lr: best of resnet8,
      bn_batch_sizes: [4, 8]}}
compute: {{engine: loop, workers: 1, cluster: {cluster}, checkpoint_seconds: 0.2}}
"""
KEY = "digits-resnet8-m8"

pytestmark = pytest.mark.slow


class Clustered:
    """A project whose `smallbatch` has the stand-in for a cluster."""

    def __init__(self, folder: Path, epochs: int = 1, *, tracked: bool = False) -> None:
        self.project = Project(folder / "project", PARAMS.format(epochs=epochs, cluster="slurm"))
        self.root = self.project.root
        self.environment = shim(folder / "bin", tracked=tracked)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def call(self, *words: str, status: int = 0) -> str:
        with self.start(*words) as process:
            output = process.communicate(timeout=240)[0]
        assert process.returncode == status, output
        return output

    def states(self) -> dict[str, dict[str, Any]]:
        paths = self.root.glob(".smallbatch/cluster/*/state.json")
        return {path.parent.name: json.loads(path.read_text()) for path in paths}

    def signal(self, number: int, key: str = KEY) -> None:
        """Send it to every process of the column's worker: one that is stopped cannot end early."""
        job = json.loads((self.root / f".smallbatch/cluster/{key}/job.json").read_text())
        os.killpg(job["pid"], number)

    def tasks(self) -> dict[str, dict[str, Any]]:
        paths = self.root.glob(".smallbatch/cluster/*/task-*.json")
        return {path.parent.name: json.loads(path.read_text()) for path in paths}


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_target_trains_alone_and_a_repro_fans_out_with_the_files_of_a_local_one(
    tmp_path: Path,
) -> None:
    clustered = Clustered(tmp_path, tracked=True)
    clustered.call("dvc", "repro", "train@wide-8")
    assert sorted(clustered.states()) == ["digits-wide-m8"]

    clustered.call("dvc", "repro", "evaluate")
    states = clustered.states()
    assert sorted(states) == ["digits-ghost-m8", KEY, "digits-wide-m8"]
    assert {(it["status"], it["attempt"]) for it in states.values()} == {("done", 1)}
    # The first stage that trains anything submits all of them, the dependent ones after theirs.
    tasks = clustered.tasks()
    former = datetime.fromisoformat(tasks.pop("digits-wide-m8")["submitted"])
    moments = [datetime.fromisoformat(it["submitted"]) for it in tasks.values()]
    assert max(moments) - min(moments) <= timedelta(seconds=1)
    assert min(moments) > former
    after = {key: it["after"] for key, it in tasks.items()}
    assert after == {KEY: None, "digits-ghost-m8": KEY}
    # Each run once, though nodes' news and result files were both logged.
    assert len(clustered.project.runs_in_mlflow()) == len(set(clustered.project.runs_in_mlflow()))
    assert len(clustered.project.runs_in_mlflow()) == 6

    ours = clustered.project.outputs()
    assert len(ours) == 9
    shutil.rmtree(clustered.root / "models")
    shutil.rmtree(clustered.root / ".smallbatch/work")
    clustered.environment |= shim(tmp_path / "untracked", tracked=False)
    for study in ("resnet8", "ghost"):
        clustered.call("smallbatch", "train", study, "8", "--cluster", "none")
    again = clustered.project.outputs()
    assert again == {name: ours[name] for name in ours if "wide" not in name}


def test_what_ends_a_repro_leaves_the_cluster_and_the_next_one_takes_its_work(
    tmp_path: Path,
) -> None:
    clustered = Clustered(tmp_path, epochs=150)
    repro = clustered.start("dvc", "repro", "train@resnet8-8")
    until(lambda: clustered.states().get(KEY, {}).get("share", 0) > 0)
    clustered.signal(signal.SIGSTOP)
    os.killpg(repro.pid, signal.SIGINT)  # as Ctrl-C sends it: to DVC, its shell and the stage
    assert "the cluster goes on with 1 column" in repro.communicate(timeout=240)[0]
    assert clustered.call("smallbatch", "status").startswith(f"{KEY}  running")

    with clustered.start("dvc", "repro", "train@resnet8-8") as again:
        output = iter(cast("IO[str]", again.stdout))
        assert any("slurm: 1 running" in line for line in output)
        again.kill()  # DVC alone
        assert "the cluster goes on with 1 column" in "".join(output)

    clustered.signal(signal.SIGCONT)
    clustered.call("dvc", "repro", "train@resnet8-8")
    state = clustered.states()[KEY]
    assert (state["status"], state["number"], state["attempt"]) == ("done", 1, 1)


def test_cancelled_and_lost_columns_go_on_from_what_they_had(tmp_path: Path) -> None:
    clustered = Clustered(tmp_path, epochs=150)
    clustered.call("smallbatch", "prepare")
    words = ("smallbatch", "submit", "resnet8", "--batch-size", "8", "--cluster", "slurm")
    assert "1 column under way" in clustered.call(*words, "--detach")
    key = KEY
    until(lambda: clustered.states()[key]["share"])
    clustered.signal(signal.SIGSTOP)
    assert "1 column under way" in clustered.call(*words, "--detach")  # and none is doubled
    assert clustered.states()[key]["number"] == 1
    assert "1 column cancelled" in clustered.call("smallbatch", "cancel")
    assert "nothing is under way" in clustered.call("smallbatch", "cancel")
    assert clustered.states()[key]["status"] == "cancelled"

    waiting = clustered.start(*words)
    job = clustered.root / f".smallbatch/cluster/{key}/job.json"
    until(lambda: clustered.states()[key]["status"] == "running" and job.exists())
    until(lambda: clustered.states()[key]["share"])
    os.kill(json.loads(job.read_text())["pid"], signal.SIGKILL)
    output = waiting.communicate(timeout=120)[0]
    assert waiting.returncode == 0, output
    assert "lost (no process): submitted again" in output
    log = (clustered.root / f".smallbatch/cluster/{key}/log").read_text()
    assert log.count("goes on from its checkpoint") >= 1
    assert clustered.states()[key]["number"] == 3
    history = clustered.root / "models/digits/resnet8/m8/history.parquet"
    assert history.is_file()


def test_a_column_that_fails_ends_its_stage_with_the_node_s_line(tmp_path: Path) -> None:
    clustered = Clustered(tmp_path)
    clustered.call("dvc", "repro", "prepare")
    params = clustered.root / "params.yaml"
    params.write_text(params.read_text().replace("{engine: loop", "{device: cuda, engine: loop"))
    output = clustered.call("smallbatch", "train", "resnet8", "8", status=2)
    last = output.strip().splitlines()[-1]
    assert "digits-resnet8-m8: failed on the cluster: " in last
    assert "device: found 'cuda', allowed here: cpu" in last
    assert last.endswith("its log is .smallbatch/cluster/digits-resnet8-m8/log")
