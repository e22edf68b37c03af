"""What a result was measured on: hardware, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


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
    """Commit of the working directory and whether tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", *words), cwd=directory, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processor() -> str:
    """Model and instruction sets of the CPU, on which the rounding of its kernels depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    found = "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def gpu_name() -> str | None:
    """Name of the GPU that torch would use, None where it sees none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def free_memory() -> int:
    """Bytes of memory that are free, or could be at once."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
