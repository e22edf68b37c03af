"""`smallbatch run` with other optimisers, as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smallbatch", "run", "-m", "256", "--epochs", "1", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "adamw", "--base-lr", "2^-9"], "adamw: give --lr"),
        (["--optimizer", "adamw"], "adamw: give --lr"),
        (["--lr", "0.1", "--momentum", "0.9"], "momentum: found with optimizer sgd"),
        (["--lr", "0.1", "--betas", "0.9", "0.99"], "betas: found with optimizer sgd"),
        (["--optimizer", "adamw", "--lr", "0.1", "--momentum", "0.9"],
         "momentum: found with optimizer adamw"),
        (["--optimizer", "adamw", "--lr", "0.1", "--betas", "0.9", "1"], "betas"),
        (["--lr", "0.1", "--schedule", "linear"], "'linear' is not one of"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_in_a_line(
    tmp_path: Path, words: list[str], said: str
) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_under_adamw_has_eta_and_its_settings_in_its_files(tmp_path: Path) -> None:
    done = run(
        tmp_path, "--optimizer", "adamw", "--lr", "2^-9", "--betas", "0.8", "0.99",
        "--beta2-examples", "4000", "--schedule", "cosine", "--json",
    )  # fmt: skip
    # β₂ is given twice: the study's own rule says so.
    assert done.returncode == 2
    done = run(
        tmp_path, "--optimizer", "adamw", "--lr", "2^-9", "--betas", "0.8", "0.99",
        "--schedule", "cosine", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lr"] == found["base_lr"] == 2.0**-9
    settings = json.loads((tmp_path / found["folder"] / "runs.json").read_text())["settings"]
    assert (settings["optimizer"], settings["schedule"]) == ("adamw", "cosine")
    assert settings["betas"] == [0.8, 0.99]
    assert not {"momentum", "lrs", "beta2_examples"} & set(settings)
