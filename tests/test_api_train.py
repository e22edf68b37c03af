"""`smallbatch.train`: what `smallbatch run` does, from a program that goes on afterwards."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

import smallbatch
from tests.database import add_database
from tests.project import UNTRACKED

SRC = Path(__file__).parents[1] / "src"
TINY = "dataset: {name: tiny, source: digits, subset: 60, test_subset: 40}\n" + textwrap.dedent("""\
    grid: {studies: [a], batch_sizes: [8], base_lrs: [2^-6], seeds: 1}
    studies: {a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}}
    """)

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text(TINY)
    return tmp_path


def test_a_run_from_a_thread_of_a_program(
    folder: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    add_database(folder)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[smallbatch.TrainedRun] = []
    settings: Any = {"dataset": "tiny", "norm": "batch", "batch_size": 8, "epochs": 2}

    def call() -> None:
        found.append(smallbatch.train(lr=0.125, **settings))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    (run,) = found
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (run.outcome, run.lr, run.base_lr, run.diverged_at) == ("finished", 0.125, 2**-6, None)
    history = pd.read_parquet(run.folder / "history.parquet")
    assert list(run.history["train_loss"]) == list(history["train_loss"])
    assert run.test_accuracy == history["test_accuracy"].iloc[-1]
    assert run.folder.is_relative_to(folder)
    with sqlite3.connect(folder / "mlflow.db") as database:
        tagged = database.execute(
            "SELECT run_uuid FROM tags WHERE key = 'smallbatch.run' AND value = ?", (run.run,)
        )
        assert tagged.fetchall() == [(run.mlflow_run_id,)]
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err

    request.getfixturevalue("untracked")  # it is in MLflow already
    again = smallbatch.train(base_lr="2^-6", progress=False, **settings)
    assert again == run
    assert capfd.readouterr() == ("", "")
    (row,) = smallbatch.load_runs().itertuples()
    assert (row.run, row.final_test_accuracy) == (run.run, run.test_accuracy)


@pytest.mark.usefixtures("untracked")
def test_what_goes_wrong_is_an_exception(folder: Path) -> None:
    with pytest.raises(smallbatch.UserError, match=r"norm: found 'bath', allowed: none"):
        smallbatch.train(batch_size=8, lr=0.1, norm="bath", progress=False)
    with pytest.raises(smallbatch.UserError, match="found neither, allowed: one of the two"):
        smallbatch.train(batch_size=8)
    for odd in ("re\0s", "\ud800"):  # no program takes such a word
        with pytest.raises(smallbatch.UserError, match=r"--model: found .*, no text"):
            smallbatch.train(batch_size=8, lr=0.1, model=odd)
    with pytest.raises(smallbatch.Stopped, match="before the time limit of 5 s"):
        smallbatch.train(
            batch_size=2, lr=0.01, epochs=10**6, dataset="tiny", time_limit=5, progress=False
        )


def test_an_interruption_ends_the_training_and_the_program_goes_on(folder: Path) -> None:
    """As a notebook's kernel is interrupted: the signal comes to the program alone."""
    program = """
        import signal
        import smallbatch
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        try:
            smallbatch.train(batch_size=2, lr=0.01, epochs=10**6, dataset="tiny")
        except KeyboardInterrupt:
            print("goes on")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": f"{SRC}{os.pathsep}{UNTRACKED}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert any("epoch 1/" in line for line in process.stderr)
        (child,) = psutil.Process(process.pid).children()
        below = [child, *child.children(recursive=True)]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "goes on\n")
    _, alive = psutil.wait_procs(below, timeout=15)
    assert alive == []
