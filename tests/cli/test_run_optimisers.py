"""`smallbatch run` with other optimisers; what it trains, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from smallbatch.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path


RUN = ("run", "-m", "256", "--epochs", "1")


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
        # β₂ is given twice: the study's own rule says so.
        (["--optimizer", "adamw", "--lr", "2^-9", "--betas", "0.8", "0.99", "--beta2-examples",
          "4000", "--schedule", "cosine", "--json"], "beta"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*RUN, *words])
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("untracked")
def test_a_run_under_adamw_has_eta_and_its_settings_in_its_files(tmp_path: Path) -> None:
    words = (
        "--optimizer", "adamw", "--lr", "2^-9", "--betas", "0.8", "0.99", "--schedule", "cosine",
        "--json",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "smallbatch", *RUN, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lr"] == found["base_lr"] == 2.0**-9
    settings = json.loads((tmp_path / found["folder"] / "runs.json").read_text())["settings"]
    assert (settings["optimizer"], settings["schedule"]) == ("adamw", "cosine")
    assert settings["betas"] == [0.8, 0.99]
    assert not {"momentum", "lrs", "beta2_examples"} & set(settings)
