"""The machine: what this process may use of it, and what a result is measured on."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path("/")
# The files of a control group, of versions 1 and 2: a limit's quota and period; a limit, what is
# used of it, and in `memory.stat` the part of that which is freed as soon as it is needed.
_CPU = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def cores(root: Path = _ROOT) -> int:
    """Cores this process may use: no more than its affinity and its container allow.

    Args:
        root: below it, `proc` and `sys` tell the limits of containers.
    """
    found = len(os.sched_getaffinity(0))
    for group, version in _control_groups(root, "cpu"):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            words = " ".join((group / name).read_text() for name in _CPU[version])
            quota, period = map(int, words.split())
            if quota > 0 and period > 0:
                found = min(found, math.ceil(quota / period))
    return found


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that are free, or could be at once: the machine's, or the container's.

    Args:
        root: below it, `proc` and `sys` tell the limits of containers.
    """
    import psutil

    found = psutil.virtual_memory().available
    for group, version in _control_groups(root, "memory"):
        limit, used, spare = _MEMORY[version]
        with suppress(OSError, ValueError):
            free = int((group / limit).read_text()) - int((group / used).read_text())
            found = min(found, max(0, free + _spare(group / "memory.stat", spare)))
    return found


def _spare(stat: Path, name: str) -> int:
    """A value of `memory.stat`; 0 where it cannot be told, so that a limit counts all the same."""
    with suppress(OSError, ValueError, IndexError):
        for line in stat.read_text().splitlines():
            if line.split()[:1] == [name]:
                return int(line.split()[1])
    return 0


def _control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the groups that this process is in, its own and those around, and their version.

    A container may show a group by a path from outside of it: not every folder need exist.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not number or not colon:
            continue
        if controllers and controller not in controllers.split(","):
            continue
        # A machine that has both versions has the second below the first.
        for folder in [controller] if controllers else ["", "unified"]:
            mount = root / "sys/fs/cgroup" / folder
            own = mount / path.lstrip("/")
            for group in (own, *own.parents):
                if group.is_relative_to(mount):
                    yield group, 1 if controllers else 2


def cache_folder() -> Path:
    """Where what is made for this machine is kept: `$SMALLBATCH_CACHE`, else the user's cache.

    Raises:
        OSError: It lies in the home folder of a user who has none, as in some containers.
    """
    from platformdirs import user_cache_path

    own = os.environ.get("SMALLBATCH_CACHE")
    try:
        return Path(own).expanduser() if own else user_cache_path("smallbatch")
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "no such home folder", own or "~") from None


def describe(device: str) -> dict[str, Any]:
    """Environment of a training on ``device``, as `timing.json` records it."""
    commit, dirty = git_state()
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "gpu": gpu_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": dirty,
        **{name: _version(name) for name in ("torch", "torchvision", "timm", "smallbatch")},
    }


def git_state(directory: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the working directory and whether tracked files differ from it.

    A repository's own settings may name programs, and whoever shares the repository may write them.
    None of them is run, nor is anything fetched; where files are compared by one, it is not known
    whether they differ.
    """

    def git(*words: str, check: bool = True) -> str:
        return subprocess.run(
            ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *words),
            cwd=directory, capture_output=True, text=True, check=check, timeout=10,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none"},
        ).stdout.strip()  # fmt: skip

    try:
        commit = git("rev-parse", "HEAD")
        own = ("--includes", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$")
        if any(git("config", it, *own, check=False) for it in ("--local", "--worktree")):
            return commit, None
        status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
        return commit, bool(git(*status))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processor() -> str:
    """Model and instruction sets of the CPU, on which the rounding of its kernels depends."""
    if not (lines := _cpuinfo()):
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    found = "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def _cpuinfo() -> list[str]:
    """Lines of what Linux says of the processors; none elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def gpu_name() -> str | None:
    """Name of the GPU that torch would use, None where it sees none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
