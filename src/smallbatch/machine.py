"""The machine: what this process may use of it, and what a result is measured on."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import platform
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from smallbatch import DISTRIBUTION

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""The variable that says which GPUs a process sees: by numbers, or by names of theirs."""

_ROOT = Path("/")
_MOST_COMPARED = 2**28  # bytes of tracked files
# The files of a control group, of versions 1 and 2: a limit's quota and period; a limit, what is
# used of it, and in `memory.stat` the part of that which is freed as soon as it is needed.
_CPU = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}

_SLURM_CORES = "SLURM_CPUS_ON_NODE"


def cores(root: Path = _ROOT) -> int:
    """Cores this process may use: no more than its affinity, container and Slurm job allow.

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
    with suppress(ValueError):  # a site need not bind jobs to the cores that it gives them
        found = min(found, max(1, int(os.environ.get(_SLURM_CORES, found))))
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
    """Environment of a training on ``device``, as `timing.json` records it.

    The commit is that of the project, which holds settings and results. Of the code it is only
    where the project is this package's own repository; an installed one has its version.
    """
    commit, dirty = git_state()
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "gpu": gpu_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": dirty,
        **{name: _version(name) for name in ("torch", "torchvision", "timm")},
        "smallbatch": _version(DISTRIBUTION),
    }


def git_state(directory: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the working directory and whether tracked files differ from it.

    A repository's own settings may name programs, and whoever shares the repository may write them
    at any time. So git is asked only for what it looks up, which runs none and fetches nothing, and
    the files are compared here, byte for byte. Of a changed file that git would convert before it
    compares, and of more bytes than are read, it is not known whether they differ.
    """
    try:
        commit = _git(directory, "rev-parse", "HEAD").stdout.decode().strip()
        top = _git(directory, "rev-parse", "--show-toplevel").stdout.removesuffix(b"\n")
        return commit, _differ(Path(os.fsdecode(top)))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(
    directory: Path | None, *words: str, allowed: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *words),
        cwd=directory, capture_output=True, timeout=10,
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none"},
    )  # fmt: skip
    if done.returncode not in allowed:
        done.check_returncode()
    return done


def _differ(top: Path) -> bool | None:
    """Whether the index differs from the commit, or a file from the index."""
    lookup = ("--cached", "--quiet", "--ignore-submodules", "--no-ext-diff", "--no-textconv")
    if _git(top, "diff-index", *lookup, "HEAD", allowed=(0, 1)).returncode:
        return True
    plain = ":(attr:!filter !ident !working-tree-encoding)"
    unconverted = set(_git(top, "ls-files", "-z", plain).stdout.split(b"\0"))
    known, left = True, _MOST_COMPARED
    for entry in _git(top, "ls-files", "-s", "-t", "-z").stdout.split(b"\0")[:-1]:
        facts, _, name = entry.partition(b"\t")
        tag, mode, blob, _ = facts.decode().split()
        if mode == "160000" or tag == "S":  # a submodule; of a sparse checkout
            continue
        content = _content(top / os.fsdecode(name), left)
        left -= len(content or b"")
        if left < 0:
            return None
        if content is None or not _is_blob(content, blob):
            if name in unconverted:
                return True
            known = False
    return False if known else None


def _content(path: Path, most: int) -> bytes | None:
    """Of a file, at most one byte more than ``most``; where a link leads; else None."""
    try:
        if path.is_symlink():
            return os.fsencode(path.readlink())
        # What another puts there, such as a FIFO, is neither waited for nor followed.
        safe = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, safe), "rb") as file:
            found = os.fstat(file.fileno())
            return file.read(min(found.st_size, most + 1)) if stat.S_ISREG(found.st_mode) else None
    except OSError:
        return None


def _is_blob(content: bytes, blob: str) -> bool:
    """Whether git knows a content by this name, with ends of lines as they are or as it keeps."""
    digest = hashlib.sha1 if len(blob) == 40 else hashlib.sha256
    return any(
        digest(b"blob %d\0" % len(form) + form).hexdigest() == blob
        for form in (content, content.replace(b"\r\n", b"\n"))
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_kind() -> str:
    """What tells processors of one name apart: family, model, and its largest vectors, if known."""
    halves = (line.partition(":") for line in _cpuinfo())
    told = {name.strip(): value.strip() for name, _, value in halves}
    names = {"cpu family": "family", "model": "model", "CPU part": "part"}
    found = [f"{word} {told[name]}" for name, word in names.items() if name in told]
    flags = f"{told.get('flags', '')} {told.get('Features', '')}".split()
    vectors = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}
    found += [name for flag, name in vectors.items() if flag in flags][:1]
    return ", ".join(found)


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


def gpus() -> dict[str, str]:
    """The model of each GPU that torch sees, by the word that `CUDA_VISIBLE_DEVICES` has for it.

    Such a word is a number or like "GPU-8932f937". They are in torch's order.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    words = os.environ.get(VISIBLE_GPUS, ",".join(map(str, range(found)))).split(",")
    return {word.strip(): torch.cuda.get_device_name(i) for i, word in enumerate(words[:found])}


def gpu_indices(words: Sequence[str]) -> list[int]:
    """Torch's numbers, in this process, of GPUs that `gpus` names; without any, of the first."""
    return [i for i, word in enumerate(gpus()) if word in words] if words else [0]
