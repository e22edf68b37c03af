"""One writer a column: on this host by the kernel's lock, beyond it by signs of life."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallbatch.errors import Stopped, TakenOver
from smallbatch.records import lock as locks
from smallbatch.records.lock import one_writer
from tests.users import as_nobody, common_folder, needs_two_users

PROGRAM = """
import os, sys, time
from pathlib import Path
from smallbatch.records.lock import one_writer
with one_writer(Path("work"), Path("models/m4")):
    print("in", flush=True)
    if "fork" in sys.argv and os.fork() == 0:  # a worker
        print("worker", os.getpid(), flush=True)
        time.sleep(60)
    time.sleep(float(sys.argv[1]))
print("out", flush=True)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(locks.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_writer_waits_for_the_first_and_says_for_whom(tmp_path: Path) -> None:
    with start(tmp_path, "1.5") as first:
        assert line(first) == "in"
        begun = time.monotonic()
        with start(tmp_path, "0") as second:
            out, said = second.communicate(timeout=30)
        assert time.monotonic() - begun > 1
        assert out == "in\nout\n"
        assert f"models/m4: waiting for process {first.pid} on {os.uname().nodename}" in said


def test_a_killed_writer_leaves_no_lock_but_its_workers_hold_it(tmp_path: Path) -> None:
    with start(tmp_path, "60", "fork") as first:
        assert line(first) == "in"
        worker = int(line(first).removeprefix("worker "))
        first.kill()
        with start(tmp_path, "0") as second:
            time.sleep(1.0)
            assert second.poll() is None  # the orphan may still write
            os.kill(worker, signal.SIGKILL)
            assert second.communicate(timeout=30)[0] == "in\nout\n"


def held_elsewhere(work: Path, seconds_ago: float) -> Path:
    """A lock file as another host leaves it where kernel locks do not reach."""
    work.mkdir(exist_ok=True)
    path = work / f"{locks.column_key(work, Path('models/m4'))}.lock"
    holder = {"token": "theirs", "pid": 4711, "host": "elsewhere", "boot": "another"}
    path.write_text(json.dumps(holder))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


def test_a_lock_of_a_living_process_elsewhere_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    path = held_elsewhere(tmp_path, 5)
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            raise Stopped("enough", 75)

    with pytest.raises(Stopped), one_writer(tmp_path, Path("models/m4"), check):
        pass
    assert "models/m4: waiting for process 4711 on elsewhere" in capsys.readouterr().err
    assert json.loads(path.read_text())["token"] == "theirs"
    path.write_text("")  # it has ended

    with one_writer(tmp_path, Path("models/m4")):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert json.loads(path.read_text()) == {"attempt": 1}


def test_a_silent_lock_from_elsewhere_is_taken_over_and_its_owner_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)
    path = held_elsewhere(tmp_path, locks.STALE_S + 1)
    with one_writer(tmp_path, Path("models/m4")) as lock:
        said = capsys.readouterr().err
        assert "taken over from process 4711 on elsewhere, silent for 121 s" in said
        assert lock.silence() < 5
        os.utime(path, (0, 0))
        lock._beaten -= locks.BEAT_S
        lock.beat()
        assert lock.silence() < 5
        held_elsewhere(tmp_path, 0)
        lock._beaten -= locks.BEAT_S
        with pytest.raises(TakenOver, match="process 4711 on elsewhere has taken over"):
            lock.beat()
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"4711", b"[]", b'{"token": 1}', b"null", b"[" * 100_000,
     b'["token", "pid", "host", "boot"]', b"x" * 5000],
)  # fmt: skip
def test_whatever_a_lock_file_holds_it_can_be_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{locks.column_key(tmp_path, Path('models/m4'))}.lock").write_bytes(content)
    with one_writer(tmp_path, Path("models/m4")):
        pass


def link(path: Path) -> None:
    path.with_name("victim").write_text("kept")
    path.symlink_to(path.with_name("victim"))


def hard_link(path: Path) -> None:
    path.with_name("victim").write_text("kept")
    path.hardlink_to(path.with_name("victim"))


@pytest.mark.parametrize("plant", [link, hard_link, os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_of_its_own_is_refused_and_left_as_it_is(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / f"{locks.column_key(tmp_path, Path('models/m4'))}.lock"
    plant(path)
    with (
        pytest.raises(OSError, match=r"no regular file|another name"),
        one_writer(tmp_path, Path("models/m4")),
    ):
        pass
    if plant in (link, hard_link):
        assert (tmp_path / "victim").read_text() == "kept"


@needs_two_users
def test_another_user_who_may_read_a_project_cannot_hold_its_locks() -> None:
    with common_folder() as folder:
        folder.chmod(0o755)
        with one_writer(folder / "work", Path("models/m4")) as lock:
            pass
        as_nobody(f"ls {lock.path}; ! flock -n {lock.path} true", folder)
        lock.path.chmod(0o644)
        as_nobody(f"flock -n {lock.path} true", folder)  # by its mode alone


def test_a_lock_from_the_future_is_waited_for_as_long_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its holder died before the clock was corrected."""
    now = [1000.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    held_elsewhere(tmp_path, -1e6)
    with one_writer(tmp_path, Path("models/m4")):
        assert locks.STALE_S <= now[0] - 1000 < locks.STALE_S + 5
    assert "taken over from process 4711 on elsewhere, silent for 120 s" in capsys.readouterr().err


def test_a_lock_from_the_future_of_which_signs_come_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    path = held_elsewhere(tmp_path, -1e6)

    def sleep(seconds: float) -> None:
        now[0] += seconds
        os.utime(path, (now[0] + 1e10, now[0] + 1e10))

    def check() -> None:
        if now[0] > 1000 + 3 * locks.STALE_S:
            raise Stopped("enough", 75)

    monkeypatch.setattr(locks.time, "sleep", sleep)
    with pytest.raises(Stopped), one_writer(tmp_path, Path("models/m4"), check):
        pass


def test_of_two_that_sign_a_lock_at_once_exactly_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    both, node = threading.Barrier(2, timeout=10), os.uname().nodename

    def between() -> str:
        both.wait()
        return node

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    monkeypatch.setattr(locks.platform, "node", between)  # called as a signature is made
    monkeypatch.setattr(locks, "SETTLE_S", 0.2)
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    said: list[str] = []

    def attempt() -> None:
        try:
            with one_writer(tmp_path, Path("models/m4")) as lock:
                both.wait()  # until the other has given up
                lock.beat(now=True)
                said.append("in")
        except TakenOver as error:
            both.wait()
            said.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text == "in" for text in said) == [False, True], said
    assert any("has taken over; leaving it to them" in text for text in said)


def test_a_lock_that_is_gone_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    with one_writer(tmp_path, Path("models/m4")) as lock:
        lock.path.write_text("")
        lock._beaten -= locks.BEAT_S
        with pytest.raises(TakenOver, match="is gone; leaving the column"):
            lock.beat()


RACE = """
import sys, time
from pathlib import Path
from smallbatch.records import lock
def flock(*_): raise OSError(95, "Operation not supported")
lock.fcntl.flock = flock
time.sleep(float(sys.argv[1]) - time.time())
with lock.one_writer(Path("work"), Path("models/m4")):
    began = time.time()
    time.sleep(1)
    print(began, time.time())
"""


def test_a_lock_that_cannot_be_read_for_a_while_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_path: Path, _flags: int) -> int:
        raise OSError(116, "Stale file handle")

    now = [1000.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    with one_writer(tmp_path, Path("m4")) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(locks.private, "open_shared", failing)
            now[0] += locks.STALE_S - 1
            lock.beat()
            with pytest.raises(TakenOver, match="cannot be read"):
                lock.beat(now=True)  # before results go into their place one must be sure
            now[0] += 20
            with pytest.raises(TakenOver, match="cannot be read"):
                lock.beat()
        lock.beat(now=True)


def test_of_two_that_find_a_lock_free_at_once_one_waits_or_gives_up(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(time.time() + 2)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(locks.__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [racer.communicate(timeout=60) for racer in racers]
    times = sorted(tuple(map(float, out.split())) for out, _ in answers if out)
    assert times
    for (_, end), (begin, _) in itertools.pairwise(times):
        assert end <= begin
    for out, said in answers:
        assert out or "has taken over; leaving it to them" in said, said


def test_without_kernel_locks_the_signs_of_life_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    monkeypatch.setattr(locks, "POLL_S", 0.01)

    def check() -> None:
        raise Stopped("waits", 75)

    with (
        one_writer(tmp_path, Path("models/m4")),
        pytest.raises(Stopped),
        one_writer(tmp_path, Path("models/m4"), check),
    ):
        pass
    with one_writer(tmp_path, Path("models/m4"), check):
        pass


def test_a_column_has_one_lock_wherever_its_project_is_mounted(tmp_path: Path) -> None:
    """As in a container and on its host."""
    keys = {
        locks.column_key(root / ".smallbatch/work", root / "models/digits/a/m4")
        for root in (tmp_path / "here", Path("/mnt/there"))
    }
    assert len(keys) == 1
    other = tmp_path / "here/models/digits/a/m8"
    assert locks.column_key(tmp_path / "here/.smallbatch/work", other) not in keys
