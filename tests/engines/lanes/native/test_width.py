"""How many places a vector has: measured once, kept, and believed only if this user wrote it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from smallbatch import private
from smallbatch.engines.lanes.native import compile as kernels
from smallbatch.engines.lanes.native import compiler, width
from smallbatch.engines.lanes.native.compiler import CompilerFailed


@pytest.fixture(autouse=True)
def found_anew() -> Generator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    """As a new process begins."""
    for remembered in (width.vector_width, compiler.identity, private.say_once):
        remembered.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Lets the vectors of each width have these speeds; returns the folders of each measurement."""

    def are(*speeds: float) -> list[Path]:
        asked: list[Path] = []

        def measure(folder: Path) -> dict[int, float]:
            asked.append(folder)
            return dict(zip(width.WIDTHS, speeds, strict=True)) if speeds else {}

        monkeypatch.setattr(width, "_measured", measure)
        return asked

    return are


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ((16.0, 34.0, 48.0), 16),  # two units of 512 bits
        ((16.0, 34.0, 36.0), 8),  # instructions of 512 bits on units of 256
        ((16.0, 34.0, 25.0), 8),  # units of 256 bits
        ((16.0, 14.0, 9.0), 4),  # units of 128 bits
        ((16.0, 16.0, 16.0), 8),
    ],
)
def test_the_fastest_is_chosen_if_it_is_much_faster_than_the_usual_one(
    cache: Path, measured: Callable[..., list[Path]], speeds: tuple[float, ...], chosen: int
) -> None:
    measured(*speeds)
    assert width.vector_width() == chosen
    [kept] = cache.glob("width-*.json")
    assert json.loads(kept.read_text())["width"] == chosen


def test_what_was_chosen_is_kept(cache: Path, measured: Callable[..., list[Path]]) -> None:
    """Also where another one would be faster now: what was begun goes on as it was."""
    measured(16, 34, 48)
    assert width.vector_width() == 16
    forget()
    asked = measured(16, 34, 25)
    assert width.vector_width() == 16
    assert not asked
    [kept] = cache.glob("width-*.json")
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"width": 5}', '{"width": "16"}'])
def test_nonsense_is_measured_anew(
    cache: Path, measured: Callable[..., list[Path]], content: str
) -> None:
    measured(16, 34, 48)
    width.vector_width()
    [kept] = cache.glob("width-*.json")
    kept.write_text(content)
    forget()
    asked = measured(16, 34, 48)
    assert width.vector_width() == 16
    assert asked == [cache]
    assert json.loads(kept.read_text())["width"] == 16


def test_a_link_is_not_followed(
    cache: Path, measured: Callable[..., list[Path]], tmp_path: Path
) -> None:
    measured(16, 34, 48)
    width.vector_width()
    [kept] = cache.glob("width-*.json")
    planted = tmp_path / "planted.json"
    planted.write_text('{"width": 4}')
    kept.unlink()
    kept.symlink_to(planted)
    forget()
    measured(16, 34, 48)
    assert width.vector_width() == 16
    assert planted.read_text() == '{"width": 4}'


def test_where_nothing_could_be_measured_nothing_is_kept(
    cache: Path, measured: Callable[..., list[Path]]
) -> None:
    measured()
    assert width.vector_width() == 8
    assert not list(cache.glob("width-*.json"))


def test_without_a_cache_folder_it_is_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., list[Path]]
) -> None:
    """As what cannot be kept may be another one at the next start."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "file"))
    asked = measured(16, 34, 48)
    assert width.vector_width() == 8
    assert not asked


def test_what_cannot_be_written_is_the_usual_one(
    cache: Path, measured: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    measured(16, 34, 48)
    monkeypatch.setattr(width.durable, "write", full)
    assert width.vector_width() == 8


def test_in_a_folder_that_is_read_only_it_is_the_usual_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(width.tempfile, "TemporaryDirectory", read_only)
    assert width.vector_width() == 8
    assert not list(cache.glob("width-*.json"))


def test_what_another_process_found_meanwhile_counts(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lock is to be had, as on some shared disks."""

    def measure(folder: Path) -> dict[int, float]:
        (folder / f"width-{width._key()}.json").write_text('{"width": 4}')
        return {4: 1.0, 8: 1.0, 16: 2.0}

    monkeypatch.setattr(width, "_measured", measure)
    assert width.vector_width() == 4


def test_the_measurement_itself(tmp_path: Path) -> None:
    """By this machine's compiler."""
    rates = width._measured(tmp_path)
    assert set(rates) == set(width.WIDTHS)
    assert all(rate > 0 for rate in rates.values())
    assert not list(tmp_path.iterdir())


def failing(folder: Path, *widths: int) -> Path:
    """A compiler that fails for vectors of these places, and notes its calls."""
    script = folder / "cxx"
    cases = "|".join(f"*-DV={it}\\ *" for it in widths)
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho call >> "{folder}/calls"\n'
        f'case "$*" in {cases}) echo error: no >&2; exit 1;; esac\nexec c++ "$@"\n'
    )
    script.chmod(0o755)
    return script


def test_a_width_that_does_not_compile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(failing(tmp_path, 4, 16)))
    assert set(width._measured(tmp_path)) == {8}


def test_a_compiler_that_fails_is_told_and_not_asked_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not fail for a part of a column."""
    monkeypatch.setenv("CXX", str(failing(tmp_path, 4, 8, 16)))
    with pytest.raises(CompilerFailed, match="error: no"):
        width.vector_width()
    kernels._found.cache_clear()
    try:
        assert "error: no" in str(kernels.failure())
        calls = (tmp_path / "calls").read_text()
        failing(tmp_path)
        assert "error: no" in str(kernels.failure())
        assert not kernels.available()
        assert (tmp_path / "calls").read_text() == calls
    finally:
        kernels._found.cache_clear()


def test_processes_that_start_together_agree(cache: Path) -> None:
    script = """
import random, sys, time
from pathlib import Path
from smallbatch.engines.lanes.native import width

def measure(folder):
    time.sleep(0.3)
    Path(folder, "measured").open("a").write("x")
    return {4: 1, 8: 1, 16: random.choice([1, 2])}

width._measured = measure
print(width.vector_width())
"""
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    assert (cache / "measured").read_text() == "x"
