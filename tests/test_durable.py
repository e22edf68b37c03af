"""Files that are written by several at once, and what a killed writer leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from smallbatch import durable

SIZE = 1_000_000


def test_writers_of_one_file_at_once_all_succeed_and_the_file_is_one_of_theirs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.csv"
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def write(letter: bytes) -> None:
        start.wait()
        try:
            for _ in range(20):
                durable.write(path, letter * SIZE)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        found = path.read_bytes() if path.exists() else b"a" * SIZE
        assert found in (b"a" * SIZE, b"b" * SIZE, b"c" * SIZE)
    assert failures == []
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def killed_while_writing(path: Path) -> None:
    code = (
        "import os, pathlib, smallbatch.durable as durable\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        f"durable.write(pathlib.Path({str(path)!r}), b'half')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "runs.[1].json"  # no pattern
    killed_while_writing(path)
    (left,) = tmp_path.iterdir()
    other = tmp_path / "runs.[1].json.mine.part"
    other.touch()
    durable.write(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert not left.exists()
    assert other.exists()  # not ours


def test_what_another_process_writes_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    with durable._temporary(path) as file:
        durable.write(path, b"second")
        assert Path(file.name).exists()
        file.write(b"first")
        file.flush()
        Path(file.name).replace(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_without_locks_files_are_written_and_what_may_be_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    path = tmp_path / "runs.json"
    killed_while_writing(path)
    monkeypatch.setattr("fcntl.flock", none)
    durable.write(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.write(tmp_path / "runs.json", b"half")
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="not a regular file") as caught:
            durable.read(path)
        assert caught.value.filename == str(path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert durable.read(tmp_path / "link") == b"x"
