"""`smallbatch run` with a cluster, by real processes; the scheduler is a stand-in."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.pipeline.cluster.here import shim
from tests.pipeline.cluster.test_repro import Clustered, until

RUN = ("smallbatch", "run", "-m", "8", "--lr", "2^-5", "--epochs", "4", "--seed", "4294967295")
CLOCKED = ("timing.json", "system.json")

pytestmark = pytest.mark.slow


def results(root: Path) -> dict[str, bytes]:
    """What does not depend on the clock."""
    found = sorted((root / ".smallbatch/runs").rglob("*.*"))
    return {str(it): it.read_bytes() for it in found if it.is_file() and it.name not in CLOCKED}


def test_ctrl_c_leaves_a_run_which_the_same_command_joins_with_the_files_of_one_here(
    tmp_path: Path,
) -> None:
    clustered = Clustered(tmp_path)
    waiting = clustered.start(*RUN)  # by compute.cluster
    # Before it has imported torch, so that it does not end first.
    until(lambda: any(it["status"] == "running" for it in clustered.states().values()))
    (key,) = clustered.states()
    clustered.signal(signal.SIGSTOP, key)
    os.killpg(waiting.pid, signal.SIGINT)
    assert "the cluster goes on with 1 column" in waiting.communicate(timeout=240)[0]
    assert waiting.returncode == 75
    assert clustered.call("smallbatch", "status").startswith(f"{key}  running")

    clustered.signal(signal.SIGCONT, key)
    clustered.environment |= shim(tmp_path / "tracked", tracked=True)
    said = clustered.call(*RUN)
    assert "digits/resnet8-none m=8: trained by slurm on " in said
    assert "nothing was trained" not in said
    state = clustered.states()[key]
    assert (state["status"], state["number"], state["attempt"]) == ("done", 1, 1)
    name = key.rpartition("-")[2]
    assert [run for _, run in clustered.project.runs_in_mlflow()] == [name]

    ours = results(clustered.root)
    folder = clustered.root / f".smallbatch/runs/digits/resnet8-none/{name}"
    assert {Path(it).parent for it in ours} == {folder}
    assert len(ours) == 3
    for kept in ("runs", "work", "cluster"):
        shutil.rmtree(clustered.root / ".smallbatch" / kept)
    clustered.environment |= shim(tmp_path / "untracked", tracked=False)
    clustered.call(*RUN, "--cluster", "none")
    assert results(clustered.root) == ours
    assert not clustered.states()


def test_a_run_that_fails_ends_with_the_node_s_line(tmp_path: Path) -> None:
    clustered = Clustered(tmp_path)
    params = clustered.root / "params.yaml"
    params.write_text(params.read_text().replace("cluster: slurm", "cluster: none"))
    run = ("smallbatch", "run", "-m", "8", "--lr", "0.1", "--epochs", "1", "--device", "cuda")
    output = clustered.call(*run, "--cluster", "slurm", status=2)
    (key,) = clustered.states()
    last = output.strip().splitlines()[-1]
    assert f"{key}: failed on the cluster: " in last
    assert "device: found 'cuda', allowed here: cpu" in last
    assert last.endswith(f"its log is .smallbatch/cluster/{key}/log")
