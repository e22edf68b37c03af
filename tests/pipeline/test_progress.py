from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch.config.study import StudyConfig
from smallbatch.pipeline import progress, run_progress
from smallbatch.pipeline.progress import Progress
from smallbatch.pipeline.run_progress import RunProgress
from smallbatch.protocol.run import Run

RUNS = [
    Run(StudyConfig(model="resnet8", epochs=4, weight_decay=0.0), "f", 8, 2.0**-k, 0)
    for k in range(5)
]


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_piped_output_is_a_line_now_and_then_with_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = _Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with Progress("digits/plain m=8", len(RUNS), 4, 1000, terminal=False) as shown:
        shown.run_done(RUNS[0], "finished")  # kept from an earlier attempt: took no time
        for epoch in (1, 2, 3, 4):
            clock.now += 10
            shown.run_epoch(RUNS[1], {"epoch": epoch, "train_loss": 2 / epoch})
        shown.run_done(RUNS[1], "finished")
        clock.now += 10
        shown.run_epoch(RUNS[2], {"epoch": 1, "train_loss": float("nan")})
        shown.run_done(RUNS[2], "diverged")
        clock.now += 30
        shown.run_epoch(RUNS[3], {"epoch": 1, "train_loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "digits/plain m=8: 5 runs × 4 epochs × 1000 images",
        # 3 epochs in 30 s; 13 of 20 are left.
        "digits/plain m=8: 1/5 runs, loss 0.667, about 2:10 min left",
        # 6 epochs in 80 s; 7 are left, as the diverged run needs no more.
        "digits/plain m=8: 3/5 runs (1 diverged), loss 0.500, about 1:33 min left",
        "digits/plain m=8: 3/5 runs (1 diverged) in 1:20 min",
    ]


def of_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epochs: int, seconds: float
) -> list[str]:
    """The lines of a run of so many epochs, each of which takes so many seconds."""
    clock = _Clock()
    monkeypatch.setattr(run_progress.time, "monotonic", clock)
    with RunProgress("digits/plain m=8", epochs, 1000, terminal=False) as shown:
        for epoch in range(1, epochs + 1):
            clock.now += seconds
            row = {"epoch": epoch, "train_loss": 2 / epoch, "test_accuracy": epoch / epochs}
            shown.run_epoch(RUNS[0], row)
        shown.run_done(RUNS[0], "finished")
    return capsys.readouterr().err.splitlines()


def test_a_run_of_few_epochs_has_a_line_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert of_run(monkeypatch, capsys, 2, 0.5) == [
        "digits/plain m=8: 2 epochs × 1000 images",
        "digits/plain m=8: epoch 1/2, training loss 2.000, test accuracy 50.0 %",
        "digits/plain m=8: epoch 2/2, training loss 1.000, test accuracy 100.0 %",
        "digits/plain m=8: 2 of 2 epochs in 1 s",
    ]


def test_a_run_of_many_epochs_has_a_line_now_and_then_and_its_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = of_run(monkeypatch, capsys, 21, 1)
    shown = [int(found.group(1)) for line in lines if (found := re.search(r"epoch (\d+)/21", line))]
    assert shown == [1, 6, 11, 16, 21]


def test_a_run_that_diverges_or_is_kept_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress("digits/plain m=8", 9, 1000, terminal=False) as shown:
        nan = float("nan")
        shown.run_epoch(RUNS[0], {"epoch": 1, "train_loss": nan, "test_accuracy": nan})
        shown.run_done(RUNS[0], "diverged")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "digits/plain m=8: epoch 1/9, training loss nan",
        "digits/plain m=8: 1 of 9 epochs in 0 s",
    ]
    with RunProgress("digits/plain m=8", 9, 1000, terminal=False) as shown:
        shown.run_done(RUNS[0], "finished")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "digits/plain m=8: found the kept result of this run; nothing was trained"
    ]


def test_what_others_trained_says_by_whom(capsys: pytest.CaptureFixture[str]) -> None:
    by = "trained by ray on node7 in 12 s"
    for shown in (
        RunProgress("digits/plain m=8", 9, 1000, terminal=False, trained=by),
        Progress("digits/plain m=8", 1, 9, 1000, terminal=False, trained=by),
    ):
        with shown:
            shown.run_done(RUNS[0], "finished")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1::2] == [f"digits/plain m=8: {by}", f"digits/plain m=8: 1/1 run, {by}"]


def test_a_terminal_gets_a_live_line_of_a_column() -> None:
    plain = on_a_terminal(
        "from smallbatch.pipeline.progress import Progress\n"
        "with Progress('digits/plain m=8', 5, 4, 1000) as shown:\n"
        "    shown.run_epoch(RUNS[0], {'epoch': 2, 'train_loss': 0.25})\n"
        "    shown.run_done(RUNS[0], 'finished')\n"
    )
    assert "1/5 runs" in plain
    assert "loss 0.250" in plain
    assert re.search(r"digits/plain m=8: 1/5 runs in \d s$", plain.rstrip())


def test_a_terminal_gets_a_live_line_of_a_run() -> None:
    plain = on_a_terminal(
        "from smallbatch.pipeline.run_progress import RunProgress\n"
        "with RunProgress('digits/resnet8-batch_conv m=128', 4, 1000) as shown:\n"
        "    row = {'epoch': 2, 'train_loss': 0.25, 'test_accuracy': 0.5}\n"
        "    shown.run_epoch(RUNS[0], row)\n"
    )
    # In one line, with the time left.
    assert "epoch 2/4, training loss 0.250, test accuracy 50.0 % -:--:--" in plain
    assert re.search(r"digits/resnet8-batch_conv m=128: 2 of 4 epochs in \d s$", plain.rstrip())


def on_a_terminal(program: str) -> str:
    """What a program shows on a terminal of 80 columns."""
    program = f"from tests.pipeline.test_progress import RUNS\n{program}"
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "TERM": "xterm",
                   "COLUMNS": "80"}  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=child, cwd=Path(), env=environment
    ) as process:
        os.close(child)
        text = ""
        try:
            while part := os.read(parent, 4096):
                text += part.decode(errors="replace")
        except OSError:  # how Linux ends a terminal whose other side has closed
            pass
        assert process.wait() == 0
    os.close(parent)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
