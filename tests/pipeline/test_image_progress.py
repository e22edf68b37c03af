"""What is said while images are prepared."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from smallbatch.pipeline import image_progress
from smallbatch.pipeline.image_progress import ImageProgress


def test_piped_output_is_a_line_now_and_then_with_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(image_progress.time, "monotonic", lambda: now[0])
    with ImageProgress("own", terminal=False) as progress:
        for done in range(501, 801):  # eight a second, after 500 that were ready
            progress.told(done, 800)
            now[0] += 0.125
    assert capsys.readouterr().err.splitlines() == [
        "own: 800 images, kept encoded, 500 of them ready before",
        "own: 741/800 images, 8 a second, about 7 s left",
        "own: 300 images in 37 s",
    ]


def test_nothing_is_said_of_what_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ImageProgress("own", terminal=False):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_live_line() -> None:
    code = (
        "import time; from smallbatch.pipeline.image_progress import ImageProgress\n"
        "with ImageProgress('own') as progress:\n"
        "    for done in range(1, 7): progress.told(done, 7); time.sleep(0.25)\n"
        "    progress.told(7, 7)\n"
    )
    leader, follower = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], stderr=follower, stdout=follower)
    os.close(follower)
    text = b""
    while True:
        try:
            text += os.read(leader, 4096)
        except OSError:  # the terminal is closed
            break
    os.close(leader)
    assert done.wait(timeout=60) == 0
    assert b"6/7" in text
    assert b"own: 7 images in 2 s" in text
