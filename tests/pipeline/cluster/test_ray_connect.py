"""The connection to a cluster, and the folder of one of this machine alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallbatch.pipeline.cluster.ray import connect, scheduler
from smallbatch.pipeline.cluster.ray.connect import sessions

PROGRAM = """
import sys, time
from pathlib import Path
from smallbatch.pipeline.cluster.ray.connect import sessions
with sessions(Path(sys.argv[1])) as place:
    (place / "r").mkdir()
    print(place, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_keeper_left_is_removed_by_the_next(tmp_path: Path) -> None:
    others = tmp_path / "smallbatch-0123"
    others.mkdir()
    link = tmp_path / "smallbatch-ray-link"
    link.symlink_to(others)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout
        left = Path(keeper.stdout.readline().strip())
        assert left.stat().st_mode & 0o777 == 0o700
        with sessions(tmp_path) as place:
            assert left.is_dir()
            assert place.is_dir()
        assert not place.exists()
        keeper.kill()
    assert left.is_dir()
    with sessions(tmp_path) as place:
        assert {*tmp_path.iterdir()} == {others, link, place}


@pytest.mark.parametrize(("address", "tries"), [("ray://h:10001", 3), ("h:6379", 1)])
def test_a_client_server_that_was_too_slow_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, address: str, tries: int
) -> None:
    monkeypatch.setattr(connect, "_PAUSE_S", 0.0)
    asked: list[str] = []

    def init(address: str, **_: Any) -> None:
        asked.append(address)
        raise ConnectionAbortedError("Initialization failure from server:\nno answer")

    with pytest.raises(ConnectionAbortedError):
        connect._init(SimpleNamespace(init=init), address)
    assert asked == [address] * tries
    connect._init(SimpleNamespace(init=lambda **_: None), address)


def test_the_keeper_has_nothing_of_mlflow_and_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI", "DVC_STAGE"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("RAY_ADDRESS", "kept")
    found = scheduler._without_secrets()
    assert found["RAY_ADDRESS"] == "kept"
    assert "secret" not in found.values()
