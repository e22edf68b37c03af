"""The commands in bin/, run as processes, with a stand-in for Python that records its calls."""

import fcntl
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.users import as_nobody, common_folder, needs_two_users

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALL_FILES = ["pyproject.toml", "requirements.lock", "requirements-build.lock"]

# Everything the commands may use besides Python: bash and coreutils.
COREUTILS = [
    "cat",
    "chmod",
    "cp",
    "dirname",
    "env",
    "mkdir",
    "nproc",
    "realpath",
    "rm",
    "sha256sum",
    "stat",
    "touch",
]

# Answers the probe with FINDING, makes an "environment" that holds itself and a pytest, and fails
# where FAIL says: as pip at all, or in an install.
FAKE_PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    *find_spec*) [[ -n "$FINDING" ]] && echo "$FINDING" ;;
    "-m venv "*)
        target="${@: -1}"
        mkdir -p "$target/bin"
        cp "$0" "$target/bin/python"
        printf '#!/usr/bin/env bash\\necho "pytest in $PWD: $*"\\n' >"$target/bin/pytest"
        chmod +x "$target/bin/pytest"
        ;;
    *"pip"*" --version" | "-m ensurepip") [[ "$FAIL" != pip ]] ;;
    *"pip install"*)
        [[ "$*" == *" --quiet --quiet "* ]] || echo "WARNING: a newer pip is available" >&2
        [[ "$FAIL" != install ]] || { echo "ERROR: hashes differ" >&2; exit 1; }
        ;;
    --version) echo "Python 3.9.2" ;;
esac
"""


class Clone:
    """A copy of what an install needs, below a path with spaces, and the calls Python got there."""

    def __init__(self, parent: Path) -> None:
        self.root = parent / "a clone"
        self.venv = self.root / ".venv"
        self.log = parent / "calls"
        self.path = parent / "path"
        shutil.copytree(REPOSITORY / "bin", self.root / "bin")
        for name in INSTALL_FILES:
            shutil.copy(REPOSITORY / name, self.root / name)
        self.path.mkdir()
        for tool in ["bash", *COREUTILS]:
            (self.path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))

    def add_python(self, name: str = "python3") -> None:
        """Puts the stand-in on the commands' PATH."""
        program = self.path / name
        program.write_text(FAKE_PYTHON)
        program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """The environment variables of a call."""
        return {"PATH": str(self.path), "CALLS": str(self.log), "FINDING": "pip", "FAIL": ""}

    def call(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs bin/test with the arguments, from another directory."""
        self.log.write_text("")
        return subprocess.run(
            [self.root / "bin" / "test", *arguments],
            cwd=self.path,
            env=self.environment() | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def pip_calls(self) -> list[str]:
        """The installs of the last call."""
        return [line for line in self.log.read_text().splitlines() if "pip install" in line]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_first_call_installs_and_the_second_does_not(clone: Clone) -> None:
    clone.add_python()
    first = clone.call("-k", "one two")
    assert (first.returncode, first.stdout) == (0, f"pytest in {clone.root}: -k one two\n")
    build, locked, package = clone.pip_calls()
    for install, lock in [(build, "requirements-build.lock"), (locked, "requirements.lock")]:
        assert "--require-hashes" in install
        assert install.endswith(f"/{lock}")
    assert package.endswith(f"--no-deps --no-build-isolation -e {clone.root}")

    second = clone.call()
    assert (second.returncode, second.stderr, clone.pip_calls()) == (0, "", [])


def test_a_changed_lock_is_installed_in_place(clone: Clone) -> None:
    clone.add_python()
    clone.call()
    (clone.venv / "kept").touch()
    with (clone.root / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert clone.call().returncode == 0
    assert len(clone.pip_calls()) == 3
    assert (clone.venv / "kept").exists()


def test_an_interrupted_install_is_made_anew(clone: Clone) -> None:
    clone.add_python()
    failed = clone.call(FAIL="install")
    assert failed.returncode != 0
    assert "ERROR: hashes differ" in failed.stderr
    assert "did not finish" in failed.stderr
    (clone.venv / "half-written").touch()

    repaired = clone.call("tests")
    assert (repaired.returncode, repaired.stdout) == (0, f"pytest in {clone.root}: tests\n")
    assert not (clone.venv / "half-written").exists()


def test_without_arguments_tests_run_side_by_side(clone: Clone) -> None:
    clone.add_python()
    processes = min(4, len(os.sched_getaffinity(0)) + 1)
    assert clone.call().stdout.startswith(f"pytest in {clone.root}: --numprocesses {processes} ")


def test_a_moved_clone_is_installed_anew(clone: Clone) -> None:
    clone.add_python()
    clone.call()
    clone.root = clone.root.rename(clone.root.parent / "moved")
    moved = clone.call("tests")
    assert moved.stdout == f"pytest in {clone.root}: tests\n"
    assert len(clone.pip_calls()) == 3


def test_an_environment_of_somebody_else_is_never_deleted(clone: Clone) -> None:
    clone.add_python()
    (clone.venv / "bin").mkdir(parents=True)
    for name in ["python", "pytest"]:
        shutil.copy(clone.path / "python3", clone.venv / "bin" / name)
    assert clone.call(FAIL="install").returncode != 0
    (clone.venv / "theirs").touch()

    assert clone.call().returncode == 0
    assert (clone.venv / "theirs").exists()
    assert all("--force-reinstall" in install for install in clone.pip_calls()[:2])


def test_the_environment_can_live_elsewhere(clone: Clone, tmp_path: Path) -> None:
    clone.add_python()
    assert clone.call(SMALLBATCH_VENV=str(tmp_path / "else where")).returncode == 0
    assert (tmp_path / "else where" / "bin" / "python").exists()
    assert not clone.venv.exists()


def test_two_calls_at_once_install_once(clone: Clone) -> None:
    clone.add_python()
    (clone.path / "flock").symlink_to(shutil.which("flock") or pytest.skip("no flock"))
    lock = os.open(clone.root / ".venv.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    both = [
        subprocess.Popen(
            [clone.root / "bin" / "test"], env=clone.environment(), stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stderr is not None
        assert process.stderr.readline() == b"smallbatch: waiting for another install\n"
    os.close(lock)
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert len(clone.pip_calls()) == 3


@pytest.mark.parametrize(("folder", "mode"), [(0o755, 0o600), (0o775, 0o660)])
def test_who_may_only_read_a_clone_cannot_hold_its_locks(
    clone: Clone, folder: int, mode: int
) -> None:
    clone.add_python()
    clone.root.chmod(folder)
    site = clone.root / ".dvc/tmp/site"
    site.mkdir(parents=True)
    (site / "pickle").touch()
    site.parent.chmod(0o777)  # as DVC makes it, so that anybody may have written there
    assert clone.call().returncode == 0
    assert (clone.root / ".venv.lock").stat().st_mode & 0o777 == mode
    assert site.parent.stat().st_mode & 0o777 == mode | mode >> 2 & 0o110
    assert not site.exists()


@needs_two_users
@pytest.mark.parametrize("name", ["venv", "venv.lock"])
def test_what_another_user_planted_is_not_run(clone: Clone, name: str) -> None:
    clone.add_python()
    with common_folder() as folder:
        as_nobody(
            "mkdir -p venv/bin; echo 'echo ran > ran' > venv/bin/python; chmod +x venv/bin/python"
            if name == "venv" else "touch venv.lock; chmod 666 venv.lock",
            folder,
        )  # fmt: skip
        done = clone.call(SMALLBATCH_VENV=str(folder / "venv"))
        assert done.returncode == 2
        assert f"{folder / name}: made by another user" in done.stderr
        assert clone.pip_calls() == []


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(clone: Clone) -> None:
    clone.add_python()
    os.mkfifo(clone.root / ".venv.lock")
    done = clone.call()
    assert done.returncode == 2
    assert ".venv.lock: no regular file; remove it" in done.stderr


@pytest.mark.parametrize(
    ("python", "variables", "message"),
    [
        (None, {}, "found no Python 3.11 to 3.14 with venv on PATH (python3 is "),
        ("python3", {"FINDING": ""}, "(python3 is Python 3.9.2); install one or name it"),
        ("python3.12", {"SMALLBATCH_PYTHON": "python7"}, "SMALLBATCH_PYTHON: 'python7' is no"),
        ("python3.12", {"FINDING": "no pip", "FAIL": "pip"}, "has neither ensurepip nor pip"),
    ],
)
def test_without_a_usable_python_one_line_says_so(
    clone: Clone, python: str | None, variables: dict[str, str], message: str
) -> None:
    if python:
        clone.add_python(python)
    result = clone.call(**variables)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("smallbatch: ")
    assert message in result.stderr.splitlines()[-1]
    assert clone.pip_calls() == []


def test_without_a_git_repository_the_pipeline_says_what_to_do(clone: Clone) -> None:
    clone.add_python()
    (clone.path / "dvc").write_text("#!/usr/bin/env bash\necho dvc runs\n")
    (clone.path / "dvc").chmod(0o755)
    (clone.root / ".dvc").mkdir()

    def repro() -> subprocess.CompletedProcess[str]:
        command = [clone.root / "bin/repro"]
        return subprocess.run(
            command,
            env=clone.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = repro()
    # Nothing but the first line and the last: what pip warns of is not shown.
    installing, installed, refused = done.stderr.splitlines()
    assert installing.startswith("smallbatch: installing into ")
    assert installed == "smallbatch: installed"
    assert refused.startswith("smallbatch: ")
    assert done.returncode == 2
    assert "in no git repository, which DVC needs; run git init" in done.stderr.splitlines()[-1]
    (clone.root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    assert "dvc runs" in repro().stdout
    (clone.root / ".dvc/config.local").unlink()
    (clone.root / ".git").mkdir()
    assert repro().stdout == "dvc runs\n"  # there is no report


def test_the_pipeline_ends_with_where_report_and_runs_are(clone: Clone) -> None:
    clone.add_python()
    (clone.path / "dvc").write_text('#!/usr/bin/env bash\necho "dvc runs"; exit "${STATUS:-0}"\n')
    (clone.path / "dvc").chmod(0o755)
    for name in (".git", "reports", ".dvc"):
        (clone.root / name).mkdir()
    (clone.root / "reports/report.html").touch()

    def repro(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [clone.root / "bin/repro"],
            env=clone.environment() | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert repro().stdout.splitlines()[-3:] == [
        "",
        f"Report: {clone.root}/reports/report.html",
        "Runs:   source bin/env.sh && smallbatch ui",
    ]
    failed = repro(STATUS="76")
    assert (failed.returncode, failed.stdout) == (76, "dvc runs\n")


def test_an_interpreter_with_pip_is_preferred(clone: Clone) -> None:
    clone.add_python("python3.12")
    bare = clone.path / "python3"
    bare.write_text("#!/usr/bin/env bash\necho no pip\n")
    bare.chmod(0o755)
    assert clone.call().returncode == 0
    assert len(clone.pip_calls()) == 3


def locked_versions() -> dict[str, set[str]]:
    """The versions in the lock by package: one, or several for different Python versions."""
    versions: dict[str, set[str]] = {}
    text = (REPOSITORY / "requirements.lock").read_text()
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


def test_the_lock_meets_pyproject() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    locked = locked_versions()
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not locked: run bin/lock"
        assert all(requirement.specifier.contains(version) for version in versions), line


def test_torch_and_torchvision_are_locked_as_the_stated_pair() -> None:
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]
    pair = dict(line.split("==") for line in tool["uv"]["constraint-dependencies"])
    locked = locked_versions()
    assert {name: locked[name] for name in ("torch", "torchvision")} == {
        name: {version} for name, version in pair.items()
    }


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_locks_hold_hashes_and_name_no_package_host(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"https?:|//|--index|--find-links|@ ", text)
    requirements = text.replace("\\\n", " ").splitlines()
    assert all("--hash=sha256:" in line for line in requirements if not line.startswith("#"))
