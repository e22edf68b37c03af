"""What an element of an array does with its worker, with stand-ins for Slurm's commands."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallbatch.pipeline.cluster import slurm

# Ends as it is told to, at once or at TERM; "young" has not yet said what TERM means to it.
WORKER = """\
import signal, sys, time
from pathlib import Path
what, number = Path(sys.argv[1]).read_text().split()
if what == "keeps":
    def keep(*_):
        time.sleep(0.2)
        sys.exit(int(number))
    signal.signal(signal.SIGTERM, keep)
Path("begun").touch()
if what == "ends":
    sys.exit(int(number))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("does", "terms", "state", "status", "requeued"),
    [
        ("ends 0", 0, "RUNNING", 0, False),
        ("ends 2", 0, "RUNNING", 2, False),
        ("ends 143", 0, "RUNNING", 143, False),  # by somebody else's signal
        ("keeps 75", 1, "RUNNING", 0, True),
        ("keeps 76", 3, "RUNNING", 0, True),
        ("keeps 75", 1, "COMPLETING", 75, False),
        ("keeps 75", 1, "", 75, False),  # the controller is away
        ("young 0", 1, "RUNNING", 0, True),
        ("young 0", 1, "COMPLETING", 143, False),
    ],
)
def test_a_job_goes_back_into_the_queue_if_its_worker_kept_its_progress(
    does: str,
    terms: int,
    state: str,
    status: int,
    requeued: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Path("board", "it's-m1", "task-1.json")
    (tmp_path / task).parent.mkdir(parents=True)
    (tmp_path / task).write_text(does)
    (tmp_path / "worker.py").write_text(WORKER)
    programs = {
        "squeue": f'echo "$0 $*" >>said; echo {state}',
        "scontrol": 'echo "$0 $*" >>said',
        "sleep": "exit 0",  # in which Slurm would end the job
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "WORKER", (sys.executable, "-S", "-E", "worker.py"))
    script = slurm._script([Path("another"), task])

    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
    }
    with subprocess.Popen(["bash", "-c", script], cwd="/", env=environment) as job:
        end = time.monotonic() + 20
        while not Path("begun").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        for _ in range(terms):
            job.send_signal(signal.SIGTERM)
            time.sleep(0.03)
        assert job.wait(20) == status
    said = Path("said").read_text() if Path("said").exists() else ""
    assert (f"{tmp_path}/bin/scontrol requeue 7_1" in said) == requeued
