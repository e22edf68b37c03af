"""A process that was paused while another took its column over writes nothing more, anywhere."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from smallbatch import durable
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.errors import UserError
from smallbatch.execution.column import train_column
from smallbatch.placement.placement import place
from smallbatch.protocol.column import plan_column
from smallbatch.records import lock as locks
from tests.noise import make_dataset

pytestmark = pytest.mark.slow

RESULTS = ("history.parquet", "weights.safetensors", "runs.json")

# Where a process is paused, by the function that it is about to call, or has just called.
POINTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "a plan": (Path, "replace", lambda _path, to: to.name == "plan"),
    "a checkpoint": (Path, "replace", lambda _path, to: to.suffix == ".checkpoint"),
    "a chunk's folder": (Path, "mkdir", lambda path, **_: len(path.name) == 16),
    "a record": (Path, "replace", lambda _path, to: to.name == "record"),
    "a record begun": (durable, "_create", lambda path, _mode: path.name.endswith(".record")),
    "a chunk cleared": (durable, "set_aside", lambda path: len(path.name) == 16),
    "the timing": (Path, "replace", lambda _path, to: to.suffix == ".timing"),
    "the stage": (Path, "mkdir", lambda path, **_: path.suffix == ".part"),
    "a result file": (Path, "replace", lambda _path, to: to.name == "weights.safetensors"),
    "earlier results": (Path, "replace", lambda path, _to: path.name == "m4"),
    "results": (Path, "replace", lambda path, _to: path.name == "new"),
}
STARTED: list[Training] = []
AFTER = ("a record begun", "a chunk cleared")


class Training:
    """A training in a process of its own, on a host of its own as far as locks tell."""

    def __init__(self, root: Path, name: str, seeds: int = 2) -> None:
        self.root, self.log, self.seeds = root, root.parent / f"{name}.log", seeds
        self.mark = root.parent / f"{name}.reached"
        self.stop: tuple[str, signal.Signals] | None = None

    def start(self, stop: str | None = None, by: signal.Signals = signal.SIGSTOP) -> Training:
        self.stop = (stop, by) if stop else None
        self.process = multiprocessing.get_context("fork").Process(target=self._run)
        self.process.start()
        STARTED.append(self)
        return self

    def reaches_its_point(self) -> None:
        assert self.process.pid is not None
        how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        found = os.waitid(os.P_PID, self.process.pid, how)
        assert found is not None
        assert found.si_status in (signal.SIGSTOP, signal.SIGKILL), self.log.read_text()

    def goes_on(self) -> None:
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def ends(self) -> tuple[int | None, list[str]]:
        self.process.join(60)
        return self.process.exitcode, self.log.read_text().splitlines()

    def _run(self) -> None:
        os.setsid()
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.chdir(self.root)
        locks.fcntl.flock = _unsupported
        # It gives no sign of life, and learns of nothing by looking at the lock now and then.
        locks.BEAT_S, locks.STALE_S, locks.SETTLE_S, locks.POLL_S = 1e9, 0.5, 0.02, 0.02
        if self.stop:
            self._hook(*self.stop)
        column = plan_column(
            "study", StudyConfig(model="resnet8", norm="none", epochs=2, weight_decay=1e-4),
            make_dataset(), batch_size=4, base_lrs=(2.0**-7, 2.0**6), seeds=range(self.seeds),
        )  # fmt: skip
        try:
            train_column(
                column, Path("models/m4"), work=Path("work"), checkpoint_seconds=0,
                placement=place(column, ComputeConfig(device="cpu", workers=2, engine="loop")),
                on_attempt=lambda number: print(f"attempt {number}", file=sys.stderr),
            )  # fmt: skip
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)

    def _hook(self, point: str, by: signal.Signals) -> None:
        place, name, here = POINTS[point]
        real = getattr(place, name)

        def hooked(*arguments: Any, **more: Any) -> Any:
            found = here(*arguments, **more)
            result = real(*arguments, **more) if found and point in AFTER else None
            if found and not self.mark.exists():
                self.mark.touch()
                os.killpg(0, by)
            return result if found and point in AFTER else real(*arguments, **more)

        setattr(place, name, hooked)


def _unsupported(*_: Any) -> None:
    raise OSError(95, "Operation not supported")


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """What a write, a new name or a rename at or below a folder would change."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_ino, status.st_mtime_ns, status.st_size, content)
    return found


@pytest.fixture(autouse=True)
def _none_stays() -> Generator[None]:
    yield
    while STARTED:
        process = STARTED.pop().process
        if process.is_alive() and process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a narrower column was trained, so that there are earlier results."""
    root = tmp_path_factory.mktemp("before") / "project"
    root.mkdir()
    assert Training(root, "narrow", seeds=1).start().ends() == (0, ["attempt 1"])
    return root


@pytest.fixture(scope="module")
def undisturbed(before: Path) -> dict[str, bytes]:
    root = shutil.copytree(before, before.parent / "undisturbed")
    assert Training(root, "undisturbed").start().ends() == (0, ["attempt 2"])
    return results(root)


def results(root: Path) -> dict[str, bytes]:
    return {name: (root / "models/m4" / name).read_bytes() for name in RESULTS}


@pytest.mark.parametrize("point", POINTS)
def test_who_was_paused_and_taken_over_changes_nothing(
    before: Path, undisturbed: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    root = shutil.copytree(before, tmp_path / "project")
    paused = Training(root, "paused").start(stop=point)
    paused.reaches_its_point()
    # The second is paused, too, so that whatever changes is of the first.
    second = Training(root, "second").start(stop="the timing")
    second.reaches_its_point()
    then = everything(root)
    paused.goes_on()
    code, said = paused.ends()
    now = everything(root)
    if point == "the stage":  # which it makes, and removes as it finds that it was taken over
        now[str(root / "models")] = then[str(root / "models")]
    assert now == then
    assert code == 2
    assert said[0] == "attempt 2"
    assert said[-1] == "models/m4: attempt 3 has taken over; leaving it to them"
    second.goes_on()
    code, said = second.ends()
    assert code == 0, said
    assert "attempt 3" in said
    assert results(root) == undisturbed
    assert [it.name for it in (root / "models").iterdir()] == ["m4"]
    assert not [*(root / "work").glob("*.checkpoints*"), *root.rglob("*.part")]


def test_attempts_are_counted_and_checkpoints_of_before_there_were_any_serve(
    before: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    root = shutil.copytree(before, tmp_path / "project")
    Training(root, "killed").start("a checkpoint", by=signal.SIGKILL).reaches_its_point()
    (left,) = (root / "work").glob("*.checkpoints")
    key, mark, _ = left.name.split(".")
    assert mark.startswith("2-")
    (plan,) = left.glob("*/plan")
    old = f"{key}.checkpoints/{plan.parent.name}"
    _, content = durable.unseal(plan.read_bytes(), of=old)
    assert content["chunks"]
    again = Training(root, "again").start("a record", by=signal.SIGKILL)
    again.reaches_its_point()
    (left,) = (root / "work").glob("*.checkpoints")
    assert left.name.startswith(f"{key}.3-")
    assert any(left.glob("*/*/*.checkpoint"))
    # As a version left them that knew no attempts, on a host that restarted since.
    left.rename(left.with_name(f"{key}.checkpoints"))
    (root / f"work/{key}.lock").write_bytes(b"")
    code, said = Training(root, "last").start().ends()
    assert code == 0
    assert "attempt 1" in said
    assert any("from their checkpoints" in line or "from its checkpoint" in line for line in said)
    assert results(root) == undisturbed
    assert Training(root, "whole").start().ends() == (0, ["attempt 2"])
    assert results(root) == undisturbed
