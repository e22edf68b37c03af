"""What is spent and decided outlives the process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from smallbatch.execution.watch import Watch
from smallbatch.pipeline.advise import ledger as module
from smallbatch.pipeline.advise.ledger import Deadline, Ledger, OutOfBudget
from smallbatch.pipeline.advise.request import parse_budget
from smallbatch.report.advice import read_advice
from tests.project import ROOT


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "folder" / "ledger.json"


def ledger(path: Path, budget: str = "10m") -> Ledger:
    """As at the start of a process."""
    found = Ledger(path, parse_budget(budget))
    found._zero = time.monotonic()
    return found


def test_a_decision_is_taken_once(path: Path) -> None:
    assert ledger(path).decide("size", lambda: [1, 2]) == [1, 2]
    assert ledger(path).decide("size", lambda: pytest.fail("decided again")) == [1, 2]
    assert ledger(path).decide("other", lambda: None) is None


def test_time_counts_over_attempts(path: Path) -> None:
    first = ledger(path)
    first._zero -= 100
    first.save()
    second = ledger(path)
    assert 100 <= second.seconds < 105
    assert second.left == pytest.approx(600 - 30 - second.seconds, abs=0.1)  # a twentieth is spare


@pytest.mark.parametrize(("budget", "spare"), [("1m", 6), ("10m", 30), ("10h", 60)])
def test_a_twentieth_is_kept_for_the_answer_within_limits(
    path: Path, budget: str, spare: float
) -> None:
    assert ledger(path, budget).spare == spare


def test_images_are_what_is_left_of_a_budget_of_images(path: Path) -> None:
    found = ledger(path, "images=1000")
    found._zero -= 1e6  # however long it takes
    found.images += 400
    assert found.left == 600
    assert found.by_images
    assert not Deadline(Watch(), found).stopping()


@pytest.mark.parametrize("place", [0, 40, 100, -1, None])
def test_a_damaged_file_is_as_none(path: Path, place: int | None) -> None:
    first = ledger(path)
    first._zero -= 100
    first.decide("size", lambda: 2)
    content = bytearray(path.read_bytes())
    if place is None:
        content = content[: len(content) // 2]
    else:
        content[place] ^= 1
    path.write_bytes(content)
    found = ledger(path)
    assert found.seconds < 5
    assert found.decide("size", lambda: 3) == 3


def test_the_file_of_another_request_is_as_none(path: Path) -> None:
    ledger(path).decide("size", lambda: 2)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    assert ledger(other).decide("size", lambda: 3) == 3


def columns() -> list[Path]:
    for folder in (Path("m4"), Path("m16")):
        folder.mkdir()
        (folder / "runs.json").write_text(f"of {folder}")
    return [Path("m4"), Path("m16")]


def test_an_answer_is_kept_with_what_mlflow_lacks_until_it_has_it(path: Path) -> None:
    answer = read_advice(ROOT / "results/advise/digits/advice.json")
    assert ledger(path).unlogged == {}
    ledger(path).end(answer, columns())
    assert ledger(path).answer == answer
    assert ledger(path).unlogged == {Path("m4"): True, Path("m16"): True}
    Path("m4/runs.json").write_text("of another request")
    shutil.rmtree("m16")
    assert ledger(path).unlogged == {Path("m4"): False, Path("m16"): False}
    ledger(path).logged()
    assert ledger(path).unlogged == {}
    assert ledger(path).answer == answer


def test_the_deadline_stops_a_training_and_says_that_the_budget_is_spent(path: Path) -> None:
    found = ledger(path, "10m")
    deadline = Deadline(Watch(), found)
    assert not deadline.stopping()
    deadline.check()
    assert 560 < deadline.left <= 570
    found._zero -= 571
    assert deadline.stopping()
    with pytest.raises(OutOfBudget):
        deadline.check()


def test_a_long_training_leaves_its_time_in_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ledger(path)
    deadline = Deadline(Watch(), found)
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 60)
    assert not deadline.stopping()
    monkeypatch.undo()
    assert ledger(path).seconds >= 59
