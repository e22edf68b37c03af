"""What this process may use: the machine's, unless its container has less; where caches lie."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smallbatch import machine
from smallbatch.machine import cache_folder, cores, free_memory

MIB = 2**20
NO_LIMIT = 2**63 - 4096  # as version 1 says it


def container(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder whose process is in `groups`, with files below `sys/fs/cgroup`."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def version2(folder: str, limit: str) -> dict[str, str]:
    return {
        f"{folder}memory.max": limit,
        f"{folder}memory.current": str(12 * MIB),
        f"{folder}memory.stat": f"anon 1\ninactive_file {4 * MIB}",
    }


def version1(folder: str, limit: int) -> dict[str, str]:
    return {
        f"memory/{folder}memory.limit_in_bytes": str(limit),
        f"memory/{folder}memory.usage_in_bytes": str(12 * MIB),
        f"memory/{folder}memory.stat": f"inactive_file 7\ntotal_inactive_file {4 * MIB}",
    }


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", version2("", str(16 * MIB))),
        ("0::/a/b", version2("a/", str(16 * MIB)) | version2("a/b/", "max")),
        ("0::/a/b", version2("a/", str(99 * MIB)) | version2("a/b/", str(16 * MIB))),
        ("0::/seen/from/outside", version2("", str(16 * MIB))),
        ("5:cpu,cpuacct:/\n4:memory:/a\n0::/", version1("a/", 16 * MIB) | version1("", NO_LIMIT)),
        ("1:name=systemd:/a\n0::/a", version2("unified/a/", str(16 * MIB))),
    ],
)
def test_memory_is_what_the_container_leaves(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    """16 MiB less the 12 that are used, of which 4 are freed when needed."""
    assert free_memory(container(tmp_path, groups, files)) == 8 * MIB


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", version2("", "max")),
        ("4:memory:/", version1("", NO_LIMIT)),
        ("0::/", {"memory.max": "nonsense"}),
    ],
)
def test_without_a_limit_memory_is_the_machines(
    tmp_path: Path, groups: str, files: dict[str, str]
) -> None:
    for root in (container(tmp_path / "root", groups, files), tmp_path / "nothing"):
        assert 2**24 < free_memory(root) < 2**50


def test_a_container_past_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert free_memory(container(tmp_path, "0::/", version2("", str(MIB)))) == 0


@pytest.mark.parametrize(
    ("groups", "files", "allowed"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/a", {"cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/a", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        (
            "3:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    files: dict[str, str],
    allowed: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores(container(tmp_path, groups, files)) == allowed


@pytest.mark.parametrize("odd", [b"", b"nonsense", b"0", b"0:", b"0::/caf\xe9", b"\n\n0::/\n"])
@pytest.mark.parametrize("quota", ["100 0", "100", "", "a b", "-1 100000"])
def test_odd_files_of_control_groups_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes, quota: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    container(tmp_path, "", {"cpu.max": quota})
    (tmp_path / "proc/self/cgroup").write_bytes(odd)
    assert cores(tmp_path) == 8
    assert free_memory(tmp_path) > 2**24


@pytest.mark.parametrize("stat", [None, "", "\n\n", "inactive_file", "inactive_file x", "x 1"])
def test_a_limit_counts_where_what_could_be_freed_is_not_told(
    tmp_path: Path, stat: str | None
) -> None:
    files = version2("", str(16 * MIB))
    if stat is None:
        del files["memory.stat"]
    else:
        files["memory.stat"] = stat
    assert free_memory(container(tmp_path, "0::/", files)) == 4 * MIB


def test_the_cache_lies_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SMALLBATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "smallbatch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/smallbatch"


@pytest.mark.parametrize("own", ["", "~nosuchuser/cache"])
def test_without_a_home_folder_there_is_no_cache(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SMALLBATCH_CACHE", own)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(FileNotFoundError, match="no such home folder"):
        cache_folder()


def repository(folder: Path, **files: str) -> Callable[..., None]:
    """A repository with one commit; returns what runs git in it."""

    def git(*words: str) -> None:
        subprocess.run(("git", *words), cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("config", "user.name", "a")
    git("config", "user.email", "a@b")
    for name, text in files.items():
        (folder / name).write_text(text)
    git("add", ".")
    git("commit", "-qm", "x")
    return git


def program_in(folder: Path) -> Path:
    """A program that leaves a file where it was run."""
    program = folder / ".git/program"
    program.write_text(f"#!/bin/sh\necho ran >> {folder}/ran\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    "setting",
    [
        "core.fsmonitor",
        "diff.external",
        "diff.f.command",
        "diff.f.textconv",
        "filter.f.clean",
        "filter.f.process",
        "filter by two files",
        "hook",
    ],
)
def test_no_program_that_a_repository_names_is_run(tmp_path: Path, setting: str) -> None:
    """Whoever shares a repository may write its settings."""
    git = repository(tmp_path, file="x")
    assert machine.git_state(tmp_path)[1] is False
    (tmp_path / "file").write_text("y")
    assert machine.git_state(tmp_path)[1] is True
    program, settings = program_in(tmp_path), tmp_path / ".git"
    filtered = setting.startswith("filter")
    (settings / "info").mkdir(exist_ok=True)
    (settings / "info/attributes").write_text("* filter=f\n" if filtered else "* diff=f\n")
    if setting == "hook":
        (settings / "hooks/post-index-change").symlink_to(program)
    elif " " in setting:  # seen only by who reads both
        git("config", "extensions.worktreeConfig", "true")
        git("config", "includeIf.hasconfig:remote.*.url:https://x/y.path", "more")
        (settings / "config.worktree").write_text('[remote "o"]\nurl = https://x/y\n')
        (settings / "more").write_text(f'[filter "f"]\nclean = {program}\n')
    else:
        git("config", setting, str(program))
    commit, dirty = machine.git_state(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert commit is not None
    assert dirty is (None if filtered else True)


def test_no_program_is_run_that_is_named_while_git_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here just before each look at the files."""
    repository(tmp_path, file="x")
    (tmp_path / "file").write_text("y")
    info, program = tmp_path / ".git/info", program_in(tmp_path)
    info.mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir()
    between = tmp_path / "bin/git"
    git = shutil.which("git")
    between.write_text(f"""#!/bin/sh
        case "$*" in *status*|*diff*|*ls-*)
            echo '* filter=f' > '{info}/attributes'
            {git} config filter.f.clean '{program}'
        esac
        exec {git} "$@"
    """)
    between.chmod(0o755)
    monkeypatch.setenv("PATH", f"{between.parent}:{os.environ['PATH']}")
    commit, dirty = machine.git_state(tmp_path)
    assert (info / "attributes").exists()
    assert not (tmp_path / "ran").exists()
    assert commit is not None
    assert dirty is None


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        ("", False),
        ("touch file", False),
        ("echo other > file", True),
        ("rm file", True),
        ("rm file; mkdir file", True),
        ("rm file; mkfifo file", True),
        ("rm -r folder", True),
        ("rm -r folder; touch folder", True),
        ("printf 'a\\r\\nb\\r\\n' > file", False),
        ("ln -sf elsewhere link", True),
        ("echo new > new", False),
        ("echo new > new; git add new", True),
        ("git rm -q --cached file", True),
        ("echo other > file; git add file; git checkout HEAD -- file", False),
        ("git update-index --skip-worktree file; rm file", False),
        ("git update-index --assume-unchanged file; echo other > file", True),
        ("truncate -s 1T file", None),
    ],
)
@pytest.mark.parametrize("kind", ["sha1", "sha256"])
def test_files_are_compared_with_the_commit(
    tmp_path: Path, change: str, dirty: bool | None, kind: str
) -> None:
    def run(script: str) -> None:
        subprocess.run(("/bin/sh", "-euc", script), cwd=tmp_path, check=True, capture_output=True)

    run(f"git init -q --object-format={kind}; printf 'a\\nb\\n' > file; ln -s file link")
    run("mkdir folder; cd folder; printf 'x y' > 'ä \nb'")
    run("git add .; git -c user.name=a -c user.email=a@b commit -qm x")
    run(change)
    for folder in (tmp_path, tmp_path / "folder"):
        if folder.is_dir():
            assert machine.git_state(folder)[1] is dirty


def test_no_missing_object_is_fetched(tmp_path: Path) -> None:
    """Which would run the program that the repository names for it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ("git", *words), cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("x")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")
    tree = git("rev-parse", "HEAD^{tree}")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    program.chmod(0o755)
    git("config", "core.repositoryFormatVersion", "1")
    git("config", "extensions.partialClone", "origin")
    git("config", "remote.origin.url", "ssh://x/y")
    git("config", "remote.origin.promisor", "true")
    git("config", "core.sshCommand", str(program))
    (tmp_path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    assert machine.git_state(tmp_path) == (None, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["cpu family : 26", "model\t: 2", "model name : AMD EPYC", "flags : fpu avx2 avx512f"],
         "family 26, model 2, AVX-512"),
        (["cpu family : 6", "model : 60", "flags : sse avx2"], "family 6, model 60, AVX2"),
        (["Features : fp asimd", "CPU part : 0xd40"], "part 0xd40, NEON"),
        ([], ""),
    ],
)  # fmt: skip
def test_a_processors_kind_is_told_by_family_model_and_vectors(
    lines: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: lines)
    assert machine.cpu_kind() == kind
