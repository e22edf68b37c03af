"""Locks of stores, beside other processes and other users."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from smallbatch.tracking.locks import exclusive, own_folder
from smallbatch.tracking.uri import TrackingUri

SOURCE = Path(__file__).parents[2] / "src"
NOBODY = 65534
HOLD = """
import sys
from smallbatch.tracking.locks import exclusive
from smallbatch.tracking.uri import TrackingUri
with exclusive(TrackingUri.parse(), "digits/study"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_not_waited_for_without_end(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("smallbatch.tracking.locks._QUIET_S", 0.1)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        same = TrackingUri.parse(f"sqlite:///{workplace}/mlflow.db?timeout=3")
        with (
            pytest.raises(UserError, match=r"another process has been writing to sqlite:.*0\.4 s"),
            exclusive(same, "digits/study", wait=0.4),
        ):
            pass
        with exclusive(same, "digits/other", wait=0):
            pass
        other.kill()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting for another process that writes to sqlite:")
    with exclusive(same, "digits/study", wait=0):
        pass


def test_errors_inside_are_not_taken_for_the_lock() -> None:
    with pytest.raises(TimeoutError, match="mine"), exclusive(TrackingUri.parse(), "x"):
        raise TimeoutError("mine")


PLANT = """
umask 0
folder=$1 victim=$2
shift 2
mkdir -p "$folder"
for name; do ln -s "$victim" "$folder/$name"; done
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
@pytest.mark.parametrize("where", ["temporary", "cache"])
def test_a_lock_that_another_user_planted_is_not_touched(
    where: str, columns: Any, tables: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    victim = workplace / "victim"
    victim.write_text("precious")
    uri = TrackingUri.parse()
    # The names that it would have, now and formerly.
    texts = [f"{store}\n{purpose}" for store in (uri.store, str(uri.database))
             for purpose in ("digits/study", "initialise")]  # fmt: skip
    names = [f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.lock" for text in texts]
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        Path(shared).chmod(0o777)
        planted = {"temporary": f"{shared}/smallbatch-0", "cache": f"{shared}/cache/tracking"}
        words = ["/bin/sh", "-ec", PLANT, "sh", planted[where], str(victim), *names]
        subprocess.run(words, user=NOBODY, cwd="/", check=True)
        if where == "temporary":
            monkeypatch.setattr(tempfile, "tempdir", shared)
        else:
            monkeypatch.setenv("SMALLBATCH_CACHE", f"{shared}/cache")
        assert sync(columns.root).runs_created == 2
    assert victim.read_text() == "precious"
    assert len(tables.query("select run_uuid from runs")) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_where_nothing_is_private_nothing_is_written(
    columns: Any, tables: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    for name in ("cache", ".smallbatch"):
        (workplace / name).mkdir()
        os.chown(workplace / name, NOBODY, -1)
    monkeypatch.setenv("SMALLBATCH_CACHE", str(workplace / "cache"))
    with pytest.raises(UserError, match=r"^SMALLBATCH_CACHE: .*belongs to another user") as caught:
        sync(columns.root)
    assert "\n" not in str(caught.value)
    assert not tables.query("select run_uuid from runs")


def test_without_a_cache_the_project_has_the_locks(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "cache").write_text("a file")
    monkeypatch.setenv("SMALLBATCH_CACHE", str(workplace / "cache"))
    assert own_folder() == workplace / ".smallbatch" / "tracking"
