"""Files that are written by several at once, and what a killed writer leaves."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

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
    with durable._temporary(path, 0o666) as file:
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
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "pipe", "found a FIFO")):
        with pytest.raises(OSError, match=why) as caught:
            durable.read(path)
        assert caught.value.filename == str(path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert durable.read(tmp_path / "link") == b"x"


LEFT = "runs.json.0123456789abcdef.part"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.with_name("victim").write_text("kept")
    path.symlink_to("victim")


@pytest.mark.parametrize("plant", [pipe, link, Path.mkdir])
def test_what_is_no_file_at_the_place_of_a_left_over_is_neither_waited_for_nor_removed(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path / LEFT)
    writer = threading.Thread(target=durable.write, args=(tmp_path / "runs.json", b"whole"))
    writer.start()
    writer.join(5)
    try:
        assert not writer.is_alive()
    finally:
        if writer.is_alive():  # it waits for a writer of the pipe
            os.close(os.open(tmp_path / LEFT, os.O_WRONLY | os.O_NONBLOCK))
            writer.join()
    assert (tmp_path / "runs.json").read_bytes() == b"whole"
    assert os.path.lexists(tmp_path / LEFT)


def test_a_new_file_that_another_locks_at_once_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read it may lock it."""
    names, taken = iter(("a" * 16, "b" * 16)), list[int]()
    flock = fcntl.flock

    def after_another(file: IO[bytes], how: int) -> None:
        if not taken:
            taken.append(os.open(file.name, os.O_RDONLY))
            flock(taken[0], fcntl.LOCK_EX)
        assert how & fcntl.LOCK_NB  # or it would wait here
        flock(file, how)

    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    monkeypatch.setattr("fcntl.flock", after_another)
    durable.write(tmp_path / "runs.json", b"whole")
    os.close(taken[0])
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
    assert (tmp_path / "runs.json").read_bytes() == b"whole"


@pytest.mark.parametrize("other", ["notes.txt", ".env", "table.csv/"])
def test_a_folder_that_holds_other_files_is_not_replaced(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "results"
    durable.check_replaceable(folder, ["table.csv"])
    folder.mkdir()
    for name in ("runs.json", ".DS_Store", "table.csv.a1b2.part"):
        (folder / name).touch()
    durable.check_replaceable(folder, ["table.csv", "runs.json"])
    path = folder / other
    path.mkdir() if other.endswith("/") else path.touch()
    with pytest.raises(OSError, match=f"'{path.name}' is none of the files to be replaced"):
        durable.check_replaceable(folder, ["table.csv", "runs.json"])
    link = tmp_path / "link"
    link.symlink_to(folder)
    durable.check_replaceable(link, [])


def test_files_of_a_folder_that_goes_meanwhile_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("goes", "stays"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".file").touch()
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == tmp_path / "goes":  # its name was seen in the folder above
            (tmp_path / "goes/.file").unlink()
            (tmp_path / "goes").rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert durable.files_below(tmp_path) == [tmp_path / "stays/.file"]
    assert durable.files_below(tmp_path / "goes") == []
