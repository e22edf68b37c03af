"""A Ray cluster of real processes: nodes that can be killed, a head that can be started again."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from smallbatch import machine

TOKEN = "RAY_AUTH_TOKEN_PATH"
# Of the loopback: for 127.0.0.1 Ray takes the address that the machine has on its network.
_HOST = "127.0.0.2"
_WAIT_S = 240.0


class Cluster:
    """A head without cores for tasks, and nodes, each with a cache of its own.

    Attributes:
        address: Of the head.
        client: Of Ray's client.
        environment: What a driver needs.
    """

    def __init__(self) -> None:
        # Short, for names of sockets.
        self.folder = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self._port, self._client = _free_port(), _free_port()
        self.address, self.client = f"{_HOST}:{self._port}", f"ray://{_HOST}:{self._client}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            TOKEN: str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder),
        }
        self._started: list[psutil.Process] = []
        self._nodes = self._count = 0
        self.nodes: list[psutil.Process] = []
        self.start_head()

    def start_head(self) -> None:
        """Start it, or start it again at the same address."""
        self.head = self._start(
            _HOST, "--head", f"--port={self._port}", f"--ray-client-server-port={self._client}",
            "--include-dashboard=false", "--num-cpus=0",
        )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        """Wait until all that was started is there."""

        def ready() -> bool:
            log = (self.folder / "start.log").read_text(errors="replace")
            return log.count("Ray runtime started") == self._count

        wait_for(ready, "nodes")

    def add_node(self, cpus: int = 1, **environment: str) -> psutil.Process:
        """Start a node with a cache of its own."""
        self._nodes += 1
        self.wait()  # of two that start at once, one at times gives up
        cache = self.folder / f"cache{self._nodes}"
        cache.mkdir(mode=0o700)
        for kernels in machine.cache_folder().glob("kernels-*.s*"):  # compiled once
            shutil.copy(kernels, cache)
        environment["SMALLBATCH_CACHE"] = str(cache)
        return self._start(
            f"127.0.0.{3 + self._nodes % 250}", f"--address={self.address}", f"--num-cpus={cpus}",
            **environment,
        )  # fmt: skip

    def _start(self, host: str, *words: str, **environment: str) -> psutil.Process:
        log = (self.folder / "start.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
                 f"--node-ip-address={host}", "--object-store-memory=100000000", *words],
                env=os.environ | self.environment | environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        self._started.append(psutil.Process(process.pid))
        self._count += 1
        process.returncode = 0  # it is ended by `kill`, and nobody waits for it
        return self._started[-1]

    def kill(self, node: psutil.Process) -> None:
        """End a node, or the head, as a loss of power would."""
        for process in [node, *_below(node)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(psutil.NoSuchProcess):
            node.wait(10)
        self._started.remove(node)

    def close(self) -> None:
        """End all."""
        for node in [*self._started]:
            self.kill(node)
        # What a node left that gave up at its start; all name the folder.
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(str(self.folder) in word for word in process.cmdline()):
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def workers(node: psutil.Process) -> list[psutil.Process]:
    """The processes below a node that Ray's started to train a column, not those they forked."""
    found = dict[int, psutil.Process]()
    for process in _below(node):
        with suppress(psutil.NoSuchProcess):
            forked = process.ppid() in found
            if "smallbatch.pipeline.cluster.ray.mortal" in process.cmdline() and not forked:
                found[process.pid] = process
    return [*found.values()]


def _below(node: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return node.children(recursive=True)
    return []


def wait_for(found: Callable[[], object], what: str, seconds: float = _WAIT_S) -> None:
    """Wait until something is there."""
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as it:
        it.bind((_HOST, 0))
        return it.getsockname()[1]
