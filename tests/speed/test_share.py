"""Which share of the cores a measurement got: by scripted counters, and by real programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from smallbatch import machine
from smallbatch.speed import share
from smallbatch.speed.share import CoreShare, taken


@pytest.mark.parametrize(
    ("most", "own", "others", "idle", "expected"),
    [
        (2, 20.0, 0.0, 0.0, 1.0),
        (2, 15.0, 5.0, 0.0, 0.75),
        (2, 10.0, 4.0, 6.0, 1.0),  # idle cores had room for what others did
        (2, 10.0, 7.0, 3.0, 10 / 14),
        (1, 10.0, 10.0, 0.0, 1.0),  # it can use no more than the core it had
        (1, 5.0, 15.0, 0.0, 0.5),
        (1, 9.0, 10.0, 1.0, 1.0),  # others were on the other core
        (1, 5.0, 10.0, 5.0, 1.0),
        (2, 0.0, 0.0, 20.0, 1.0),  # it waited for something else
    ],
)
def test_a_share_is_of_what_could_be_used(
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    own: float,
    others: float,
    idle: float,
    expected: float,
) -> None:
    """Ten seconds on two cores."""
    counters = iter([(100.0, 1.0, 2.0, 3.0), (110.0, 1.0 + own, 2.0 + others, 3.0 + idle)])
    monkeypatch.setattr(share, "_used", lambda _: next(counters))
    assert CoreShare(most).so_far() == pytest.approx(expected)


def test_idle_cores_make_no_room_at_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core is idle for 3 s, as libraries are imported; then others take it for one."""
    counters = iter([(0.0, 0.0, 0.0, 0.0), (3.0, 3.0, 0.0, 3.0), (4.0, 4.0, 1.0, 3.0)])
    now = iter([3.0, 3.4])
    monkeypatch.setattr(share, "_used", lambda _: next(counters))
    monkeypatch.setattr(share.time, "perf_counter", lambda: next(now))
    cores = CoreShare(2)
    cores.look()
    cores.look()  # too soon to tell
    assert cores.so_far() == pytest.approx(4 / 5)


def test_only_the_cores_of_this_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core 0 is another's; of core 1, 6 s are idle or waiting and 4 busy, none of them twice."""
    core = SimpleNamespace  # psutil's are tuples with names

    class Core(tuple[float, ...]):
        idle, iowait, guest, guest_nice = 5.0, 1.0, 1.0, 0.0

    busy = Core((3.0, 0.0, 1.0, 5.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    monkeypatch.setattr(share.psutil, "cpu_times", lambda percpu: [Core((1e9,)), busy])
    own = core(user=0.5, system=0.25, children_user=0.125, children_system=0.125)
    me = core(children=lambda recursive: [], cpu_times=lambda: own)
    monkeypatch.setattr(share.psutil, "Process", lambda: me)
    assert share._used([])[1:] == (1.0, 3.0, 6.0)


ORPHANS = """
import subprocess, sys
code = "import time; end = time.time() + 10\\nwhile time.time() < end: pass"
for _ in range(int(sys.argv[1])):
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
"""


def busy(seconds: float, processes: int) -> list[subprocess.Popen[bytes]]:
    """Of processor time each, which on a busy machine takes longer."""
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    return [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(processes)]


def wait(processes: Sequence[Any]) -> None:
    for process in processes:
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(machine.cores() < len(os.sched_getaffinity(0)), reason="others have cores, too")
def test_beside_busy_programs_of_others_a_share_is_small() -> None:
    """Three loops a core that are not this process's: it gets less than half of one."""
    loops = str(3 * len(os.sched_getaffinity(0)))
    # The program that starts them ends, so that they are nobody's children.
    subprocess.run([sys.executable, "-c", ORPHANS, loops], check=True)
    time.sleep(1)
    cores_used = CoreShare()
    wait(busy(0.5, 1))
    assert cores_used.so_far() < 0.75


@pytest.mark.slow
def test_own_programs_are_counted_while_they_run_and_when_they_have_ended() -> None:
    begun = share._used([])[1]
    wait(busy(0.5, 1))
    ended = share._used([])[1]
    assert ended - begun > 0.4
    (running,) = busy(60.0, 1)
    process = psutil.Process(running.pid)
    while process.cpu_times().user < 0.5:
        time.sleep(0.02)
    assert share._used([])[1] - ended > 0.4
    assert share._used([process])[1] - ended < 0.4  # it does something else
    running.kill()
    running.wait()


def test_words() -> None:
    assert taken(0.7) == "other programs took 30 % of the cores"
