"""Kernels are loaded as they were compiled, by this user, and found once; compilers end.

The compiler of these tests is a script, which compiles a function that returns 42.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from smallbatch import private
from smallbatch.engines.lanes.native import compile as kernels
from smallbatch.engines.lanes.native import compiler, width
from tests.users import NOBODY, as_nobody, common_folder, needs_two_users


@pytest.fixture(autouse=True)
def found_anew(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setattr(width, "vector_width", lambda: 8)
    forget()
    yield
    forget()


def forget() -> None:
    """As a new process begins."""
    for remembered in (kernels._found, compiler.identity, private.say_once):
        remembered.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Compiler:
    """A compiler that notes its calls; ``before`` is what it does before it compiles."""

    def __init__(self, folder: Path, before: str = "") -> None:
        self.calls = folder / "calls"
        source, script = folder / "answer.c", folder / "cxx"
        source.write_text("int answer(void) { return 42; }")
        script.write_text(
            "#!/bin/bash\n"
            '[ "$1" = --version ] && { echo 1; exit; }\n'
            f'echo call >> "{self.calls}"\n{before}\n'
            f'exec cc -shared -fPIC -o "${{@: -1}}" "{source}"\n'
        )
        script.chmod(0o755)
        self.path = script

    @property
    def count(self) -> int:
        return self.calls.read_text().count("call") if self.calls.exists() else 0


@pytest.fixture
def cxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(tmp_path)
    monkeypatch.setenv("CXX", str(made.path))
    return made


def answer() -> int:
    forget()
    return kernels.library("float").answer()


def half(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # a new file, as the old one is loaded
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def without_its_digest(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def of_another_user(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


DAMAGES = [half, empty, without_its_digest, open_to_all, link]


@pytest.mark.parametrize("damage", [*DAMAGES, pytest.param(of_another_user, marks=needs_two_users)])
def test_a_library_that_is_not_as_it_was_compiled_is_compiled_anew(
    cache: Path,
    cxx: Compiler,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    assert (answer(), answer(), cxx.count) == (42, 42, 1)
    assert capsys.readouterr().err == ""
    (path,) = cache.glob("*.so")
    damage(path)
    assert (answer(), cxx.count) == (42, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")
    assert line.endswith("; compiling it anew")
    assert (answer(), cxx.count) == (42, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_whatever_the_umask_a_library_is_trusted_next_time(
    cache: Path, cxx: Compiler, umask: int
) -> None:
    before = os.umask(umask)
    try:
        assert (answer(), answer(), cxx.count) == (42, 42, 1)
    finally:
        os.umask(before)


def no_folder(path: Path) -> None:
    path.write_text("kept")


def full_of_folders(path: Path) -> None:
    forget()
    (path / f"kernels-{kernels._key('float', False, 8)}.so").mkdir(parents=True)


def without_a_home(_path: Path) -> None:
    os.environ["SMALLBATCH_CACHE"] = "~nosuchuser/cache"


def another_users(path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        no_folder,
        full_of_folders,
        without_a_home,
        pytest.param(another_users, marks=needs_two_users),
    ],
)
def test_without_a_cache_folder_kernels_are_compiled_for_the_process_alone(
    cache: Path,
    cxx: Compiler,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
) -> None:
    spoil(cache)
    capsys.readouterr()
    assert answer() == 42
    lines = capsys.readouterr().err.splitlines()
    assert any("kernels are compiled at every start" in line for line in lines)
    assert len(lines) == (2 if spoil is full_of_folders else 1)
    assert not list(cache.glob("*/*"))


@needs_two_users
def test_a_library_that_another_user_planted_is_not_loaded(
    tmp_path: Path, cxx: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its constructor would run as this user."""
    name = f"kernels-{kernels._key('float', False, 8)}"
    with common_folder() as folder:
        source = "__attribute__((constructor)) void run(void) { creat(MARK, 0666); }"
        as_nobody(
            f"mkdir cache && cd cache && echo '#include <fcntl.h>\n{source}' > x.c && "
            f"cc -shared -fPIC -DMARK='\"{folder}/ran\"' x.c -o {name}.so && "
            f"sha256sum < {name}.so | head -c 64 > {name}.sha256 && "
            f": > {name}.lock && chmod -R 777 .",
            folder,
        )
        load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
        subprocess.run([sys.executable, "-c", load, folder / f"cache/{name}.so"], check=True)
        (folder / "ran").unlink()  # so it would run
        monkeypatch.setenv("SMALLBATCH_CACHE", str(folder / "cache"))
        line, last = Process(tmp_path).said()
        assert last == "42"
        assert "belongs to another user: without a cache folder" in line
        assert not (folder / "ran").exists()
        (folder / "cache").chmod(0o777)
        os.chown(folder / "cache", 0, 0)  # a folder of our own, in which they could write
        line, last = Process(tmp_path).said()
        assert last == "42"
        assert f"{name}.so: the file belongs to another user; compiling it anew" in line
        assert not (folder / "ran").exists()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_library_that_is_exchanged_once_it_was_looked_at_is_not_loaded(
    tmp_path: Path,
    cache: Path,
    cxx: Compiler,
    monkeypatch: pytest.MonkeyPatch,
    compiled: bool,
) -> None:
    if compiled:
        assert Process(tmp_path).said() == ["42"]
    planted = tmp_path / "planted.so"
    source = "int answer(void) { return 7; }"
    build = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(planted)]
    subprocess.run(build, input=source, text=True, check=True)
    load = ctypes.CDLL

    def exchange(name: str) -> ctypes.CDLL:
        (path,) = cache.glob("*.so")
        shutil.copy(planted, tmp_path / "copy.so")
        (tmp_path / "copy.so").replace(path)
        return load(name)

    monkeypatch.setattr(kernels.ctypes, "CDLL", exchange)
    assert Process(tmp_path).said() == ["42"]
    assert cxx.count == 1


def test_each_type_of_numbers_has_its_own_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though both are loaded by a descriptor, whose number may come again."""
    made = Compiler(tmp_path)
    text = made.path.read_text()
    made.path.write_text(text.replace("-fPIC", '-fPIC $([[ "$*" = *double* ]] && echo -DDOUBLE)'))
    (tmp_path / "answer.c").write_text(
        "#ifdef DOUBLE\nint answer(void) { return 8; }\n#else\n"
        "int answer(void) { return 4; }\n#endif\n"
    )
    monkeypatch.setenv("CXX", str(made.path))
    for _ in range(2):
        forget()
        assert [kernels.library(real).answer() for real in ("float", "double")] == [4, 8]
    assert len(list(cache.glob("*.so"))) == 2


class Process:
    """Another process that asks for the kernels: forked, as a new one would import torch first."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / f"out-{time.monotonic_ns()}"
        self._process = multiprocessing.get_context("fork").Process(target=self._ask)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def _ask(self) -> None:
        with self._out.open("w", buffering=1) as sys.stderr:
            forget()
            print(kernels.failure() or kernels.library("float").answer(), file=sys.stderr)

    def said(self) -> list[str]:
        self._process.join(60)
        return self._out.read_text().splitlines()


@pytest.mark.usefixtures("cache")
def test_of_two_first_compilations_one_waits_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compiler(tmp_path, before="sleep 1")
    monkeypatch.setenv("CXX", str(made.path))
    asking = [Process(tmp_path) for _ in range(2)]
    assert [process.said() for process in asking] == [["42"]] * 2
    assert made.count == 1


@pytest.mark.usefixtures("cache")
def test_what_a_compiler_did_once_counts_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else workers of one column could compute by other kernels than those it was placed on."""
    made = Compiler(tmp_path, before=f'[ $(wc -l < "{tmp_path}/calls") -le 1 ] && kill -9 $$')
    monkeypatch.setenv("CXX", str(made.path))
    for _ in range(3):
        assert not kernels.available()
        assert kernels.failure() == f"{made.path} fails: killed by signal 9"
        with pytest.raises(OSError, match="killed by signal 9"):
            kernels.library("float")
    assert made.count == 1
    assert answer() == 42  # the next process


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("echo 'x.cpp:1: error: no such thing' >&2; exit 1", "x.cpp:1: error: no such thing"),
        ("exit 3", "exit status 3"),
        ("exit 0", "ended without a file"),
        ('echo > "${@: -1}"; exit 0', "file too short|invalid ELF header"),
    ],
)
def test_a_compiler_that_fails_is_named_with_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, why: str
) -> None:
    monkeypatch.setenv("CXX", str(Compiler(tmp_path, before).path))
    with pytest.raises(OSError, match=why) as failed:
        kernels.library("float")
    assert len(str(failed.value).splitlines()) == 1


HANGS = 'sleep 1000 & echo $! > "{folder}/pid"; wait'


@pytest.mark.usefixtures("cache")
def test_a_compiler_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(Compiler(tmp_path, HANGS.format(folder=tmp_path)).path))
    monkeypatch.setattr(kernels, "LIMIT_S", 0.5)
    assert "had not ended after 0.5 s" in str(kernels.failure())
    wait_for_the_end_of(int((tmp_path / "pid").read_text()))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_compiler_ends_with_the_process_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("CXX", str(Compiler(tmp_path, HANGS.format(folder=tmp_path)).path))
    asked = Process(tmp_path)
    deadline = time.monotonic() + 30
    while not (pid := _read(tmp_path / "pid")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(pid), 0)
    os.kill(asked.pid, number)
    asked.said()
    wait_for_the_end_of(int(pid))


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")
