from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch.config.params import StudyConfig
from smallbatch.pipeline import progress
from smallbatch.pipeline.progress import Progress
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


def test_a_terminal_gets_a_live_line() -> None:
    program = (
        "from tests.pipeline.test_progress import RUNS\n"
        "from smallbatch.pipeline.progress import Progress\n"
        "with Progress('digits/plain m=8', 5, 4, 1000) as shown:\n"
        "    shown.run_epoch(RUNS[0], {'epoch': 2, 'train_loss': 0.25})\n"
        "    shown.run_done(RUNS[0], 'finished')\n"
    )
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "TERM": "xterm"}
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
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "1/5 runs" in plain
    assert "loss 0.250" in plain
    assert re.search(r"digits/plain m=8: 1/5 runs in \d s$", plain.rstrip())
