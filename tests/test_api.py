"""`import smallbatch`, against what the commands write and what can be counted by hand."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import smallbatch
from smallbatch.cli.main import main
from tests.analysis import synthetic

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results/paper-cifar10-small"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two made-up studies, and the tables that `evaluate` makes of them."""
    monkeypatch.chdir(tmp_path)
    studies = (synthetic.Study("one", batch_sizes=(2, 8)), synthetic.Study("two", m_star=8.0))
    synthetic.write_models(tmp_path / "models", studies)
    done = CliRunner().invoke(main, ["evaluate"])
    assert done.exit_code == 0, done.output
    return tmp_path


def test_the_frames_are_those_of_the_tables(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = project / "reports/evaluation"
    for name in ("runs", "cells"):
        table = pd.read_csv(tables / f"{name}.csv")
        own = getattr(smallbatch, f"load_{name}")(project)
        assert list(own) == list(table)
        for key in table:
            values = own[key].replace({None: np.nan}).to_numpy(dtype=object)
            np.testing.assert_array_equal(pd.isna(values), table[key].isna())
            there = ~pd.isna(values)
            if table[key].dtype.kind == "f":
                np.testing.assert_allclose(values[there].astype(float), table[key][there])
            else:
                assert list(values[there]) == list(table[key][there]), key
    history = pd.read_parquet(tables / "history.parquet")
    pd.testing.assert_frame_equal(smallbatch.load_history(project), history)
    # Wherever it is called from, and whichever of its folders is named.
    monkeypatch.chdir("/")
    assert len(smallbatch.load_runs(project)) == len(smallbatch.load_runs(project / "models"))
    assert set(smallbatch.load_runs(project / "models/synthetic/two")["study"]) == {"two"}


def test_the_stable_range_is_what_the_definition_says(project: Path) -> None:
    runs = smallbatch.load_runs()
    for fraction in (0.5, 0.9):
        ranges = smallbatch.stable_range(project, fraction=fraction).set_index(
            ["study", "batch_size"]
        )
        assert len(ranges) == 2 + 6
        for study, own in runs.groupby("study"):
            ended = own.assign(
                accuracy=own["reported_accuracy"].where(own["outcome"] == "finished", -1)
            )
            cells = ended.groupby(["batch_size", "base_lr"])["accuracy"]
            least = 0.1 + fraction * (cells.median().max() - 0.1)
            reliable = cells.min()[cells.min() >= least - 1e-9].reset_index()
            for m, column in reliable.groupby("batch_size"):
                found = ranges.loc[(study, m)]
                assert (found["lower"], found["upper"]) == (
                    column["base_lr"].min(), column["base_lr"].max()
                )  # fmt: skip
    with pytest.raises(smallbatch.UserError, match="fraction: found 2"):
        smallbatch.stable_range(fraction=2)


@pytest.mark.parametrize("study", ["resnet8", "alexnet-bn"])
def test_the_best_is_the_answer_that_was_committed(study: str) -> None:
    cards = json.loads((COMMITTED / "answers.json").read_text())["answers"]
    (card,) = (card for card in cards if card["study"] == study)
    (best,) = smallbatch.best(COMMITTED / "models/cifar10-small" / study)
    assert (best.dataset, best.title, best.sure) == (card["dataset"], card["title"], card["sure"])
    assert (best.batch_size, best.base_lr) == (card["batch_size"], card["base_lr"])
    assert list(best.not_distinguishable) == card["not_distinguishable"]
    assert list(best.worse) == card["worse"]
    assert list(best.sentences) == card["lines"]
    assert best.lr == card["batch_size"] * card["base_lr"]
    assert str(best).startswith(f"cifar10-small/{study}: {card['title']}. ")


@pytest.mark.slow
def test_the_claims_are_the_verdicts_that_were_committed() -> None:
    claims = json.loads((COMMITTED / "claims.json").read_text())["claims"]
    expected = [
        (claim["claim"], finding["dataset"], finding["verdict"], finding["effect"], finding["n"])
        for claim in claims
        for finding in claim["findings"]
    ]
    found = smallbatch.claims(COMMITTED)
    keys = ["claim", "dataset", "verdict", "effect", "n"]
    told = found[keys].astype(object).where(found[keys].notna(), None)
    assert list(told.itertuples(index=False, name=None)) == expected


def test_columns_that_the_params_no_longer_name_are_left_out(project: Path) -> None:
    (project / "params.yaml").write_text(
        "dataset: {name: synthetic, source: digits}\n"
        "grid: {studies: [one], dependent: [], batch_sizes: [2], base_lrs: [2^-8], seeds: 3}\n"
        "studies:\n  one: {model: resnet8, norm: none, epochs: 12, weight_decay: 0.0001}\n"
    )
    assert CliRunner().invoke(main, ["evaluate"]).exit_code == 0
    table = pd.read_csv(project / "reports/evaluation/runs.csv")
    assert list(smallbatch.load_runs()["run"]) == list(table["run"])
    everything = smallbatch.load_runs(everything=True)
    assert set(everything["study"]) == {"one", "two"}
    assert len(smallbatch.best()) == 1


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    for read in (smallbatch.load_runs, smallbatch.best, smallbatch.claims):
        with pytest.raises(smallbatch.UserError, match=r"train first|no such directory") as caught:
            read(tmp_path / "none")
        assert "\n" not in str(caught.value)


def test_importing_is_cheap_and_offers_what_it_lists() -> None:
    program = (
        "import sys, smallbatch\n"
        "assert not {'pandas', 'numpy', 'torch', 'click'} & set(sys.modules)\n"
        "assert {'__version__', *smallbatch.__all__} <= set(dir(smallbatch))\n"
        "for name in smallbatch.__all__: getattr(smallbatch, name)\n"
        "assert not {'torch', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smallbatch.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_that_of_the_distribution_and_the_command() -> None:
    assert smallbatch.__version__ == version("smallbatch-study")
    words = [sys.executable, "-m", "smallbatch", "--version"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == smallbatch.__version__
    fast = "import sys, smallbatch; assert 'importlib.metadata' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-c", fast], cwd=ROOT / "src", check=True)


def test_what_a_type_checker_sees_is_what_is_offered() -> None:
    tree = ast.parse(Path(smallbatch.__file__).read_text())
    (shown,) = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                if node.module == "smallbatch.api")  # fmt: skip
    assert [name.name for name in shown.names] == smallbatch.__all__


def test_another_project_of_the_name_is_told_before_anything_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(*_: Any) -> str:
        return "both are installed"

    monkeypatch.setattr("smallbatch.namesake.clash", found)
    with pytest.raises(ImportError, match="both are installed"):
        smallbatch.load_runs  # noqa: B018
