"""A Slurm of one node and three partitions, in a folder of its own, for tests.

Run as a program it keeps the daemons: it ends them, and all that they started, when its standard
input ends, which it does however the tests end.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CORES = 5
"""Of the node, as Slurm believes."""
MOST = 4
"""MaxArraySize: no array has an index of this or above."""

# `low` gives way to `high`: its jobs get their signal and are put back into the queue. `calm` does
# not.
CONF = """\
ClusterName=site
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
MaxArraySize={most}
KillWait=3
MessageTimeout=3
MinJobAge=300
TaskProlog={folder}/prolog
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs={cores}
PartitionName=low Nodes=node Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=calm Nodes=node MaxTime=INFINITE PriorityTier=1 PreemptMode=OFF
PartitionName=high Nodes=node MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


def missing() -> list[str]:
    """What is needed and not here."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class Site:
    """A running Slurm; its commands find it by the variable SLURM_CONF."""

    def __init__(self, folder: Path, keeper: IO[bytes], answers: IO[bytes]) -> None:
        self.conf = folder / "slurm.conf"
        self._keeper, self._answers = keeper, answers

    def call(self, *words: str) -> str:
        """What a command of Slurm's says."""
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def stop(self, daemon: str) -> None:
        """End a daemon."""
        self._ask(f"stop {daemon}")

    def start(self, daemon: str) -> None:
        """Start a daemon again."""
        self._ask(f"start {daemon}")

    def wait_until_up(self) -> None:
        """Until the node takes jobs."""
        end = time.monotonic() + 30
        command = ("sinfo", "--noheader", "--partition=low", "--format=%T")
        while True:
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if said.stdout.strip() in ("idle", "mixed", "allocated"):
                return
            if time.monotonic() > end:
                logs = [path.read_text()[-1500:] for path in self.conf.parent.glob("*.log")]
                raise TimeoutError("\n".join([said.stdout, said.stderr, *logs]))
            time.sleep(0.1)

    def _ask(self, request: str) -> None:
        self._keeper.write(f"{request}\n".encode())
        self._keeper.flush()
        assert self._answers.readline() == b"ok\n"


@contextmanager
def slurm_site() -> Generator[Site]:
    """Start munged, slurmctld and slurmd; end them, and every job, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    ports = _free_ports()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    prolog = folder / "prolog"  # how a site gives jobs variables of its own
    prolog.write_text("#!/bin/sh\necho export NODES_OWN=here\n")
    prolog.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    conf = CONF.format(
        folder=folder, host=platform.node(), user=psutil.Process().username(),
        controller=ports[0], node=ports[1], most=MOST, cores=CORES,
    )  # fmt: skip
    (folder / "slurm.conf").write_text(conf)
    former = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ.update(SLURM_CONF=str(folder / "slurm.conf"), PATH=PATH)
    try:
        with subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as keeper:
            assert keeper.stdin
            assert keeper.stdout
            site = Site(folder, keeper.stdin, keeper.stdout)
            for daemon in DAEMONS:
                site.start(daemon)
            site.wait_until_up()
            yield site
            keeper.stdin.close()
            keeper.wait(30)
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


DAEMONS = {
    "munged": (
        "--foreground", "--force", "--socket={0}/munge.socket", "--key-file={0}/munge.key",
        "--pid-file={0}/munged.pid", "--seed-file={0}/munged.seed", "--num-threads=2",
    ),
    "slurmctld": ("-D", "-f", "{0}/slurm.conf"),
    "slurmd": ("-D", "-f", "{0}/slurm.conf", "-N", "node"),
}  # fmt: skip


def _keep(folder: Path) -> None:
    """Start and stop daemons as asked for on stdin, until it ends."""
    pr_set_child_subreaper = 36  # what slurmd leaves behind becomes a child of this process
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for line in sys.stdin:
            request, daemon = line.split()
            if request == "start":
                command = [daemon, *(word.format(folder) for word in DAEMONS[daemon])]
                with (folder / f"{daemon}.log").open("ab") as log:
                    running[daemon] = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                while daemon == "munged" and not (folder / "munge.socket").exists():
                    time.sleep(0.02)
            else:
                running[daemon].terminate()  # slurmctld writes what it knows
                running[daemon].wait()
            sys.stdout.write("ok\n")
            sys.stdout.flush()
    finally:
        while left := psutil.Process().children(recursive=True):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
