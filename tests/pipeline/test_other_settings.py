"""Data that were prepared with other settings of `dataset` are not used for the present ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from smallbatch.cli.main import main

PARAMS = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid: {studies: [a], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}
studies:
  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}
"""


@pytest.mark.parametrize("command", ["train a 4", "measure"])
def test_data_prepared_with_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    assert CliRunner().invoke(main, ["prepare"]).exit_code == 0
    Path("params.yaml").write_text(PARAMS.replace("subset: 60", "subset: 60, seed: 1"))
    done = CliRunner().invoke(main, command.split())
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.output == (
        "Error: data/prepared/digits: prepared with other settings than the present dataset.*; "
        "run `smallbatch prepare`\n"
    )
