"""The commands of docs/dvc.md, one after the other, in a project of their own by real `dvc`."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from smallbatch.config.params import parse_params
from tests.project import ROOT, Project
from tests.report.browser import CHROMIUM, browser, opened

PARAMS = """
dataset: {name: digits, source: digits, subset: 200}
grid: {studies: [resnet8], dependent: [], batch_sizes: [8], base_lrs: [2^-8, 2^-6], seeds: 1}
advise: {studies: []}
studies:
  resnet8: {model: resnet8, norm: batch, epochs: 1, weight_decay: 0.0001}
compute: {engine: loop, workers: 1}
"""
STORAGE = "/mnt/storage/smallbatch"
LEFT_OUT = "In the background"  # it trains no less than the others do, and ends when it likes
METRICS = ("accuracy", "batch_size", "base_lr", "stable_octaves", "diverged_share")

pytestmark = pytest.mark.slow


def nothing_changed(status: str) -> bool:
    """Whether `dvc status` names no stage but `code`, which looks at every call."""
    lines = [line.strip() for line in status.splitlines() if line.strip()]
    return lines == ["code:", "always changed"]


def commands() -> list[str]:
    """Every line of the page's blocks of commands, but for one section."""
    sections = re.split(r"^## ", (ROOT / "docs/dvc.md").read_text(), flags=re.MULTILINE)
    kept = "".join(text for text in sections if not text.startswith(LEFT_OUT))
    blocks = re.findall(r"^```sh\n(.*?)^```", kept, re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for line in "".join(blocks).splitlines()]
    return [line for line in lines if line]


@dataclass
class Followed:
    """A project in which the page was followed.

    Attributes:
        outputs: What each of its commands printed.
        pages: The plots page that each command of `dvc plots` left.
    """

    project: Project
    outputs: dict[str, str]
    pages: dict[str, Path]

    def read(self, *words: str) -> Any:
        """What a command of DVC says, as JSON."""
        text = self.project.call("dvc", *words, "--json")
        # Warnings come before it.
        return json.loads(re.sub(r"\A(?:[^\[{].*\n)*", "", text))

    def csv(self, *words: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.project.call("dvc", *words, "--csv"))))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("dvc")
    project = Project(folder / "project", PARAMS, tracked=False)
    for key in ("name", "email"):
        project.call("git", "config", f"user.{key}", "tester")
    project.repro()  # nothing is committed yet, as after `smallbatch init`
    project.tracked = True  # what is asked of MLflow is about experiments
    found = Followed(project, {}, {})
    for line in commands():
        here = line.replace(STORAGE, str(folder / "storage")).replace("git push", "git status")
        found.outputs[line] = project.call("bash", "-c", here)
        if line.startswith("dvc plots"):
            # Beside the one of before, as the page looks for Vega from where it is.
            page = project.root / "dvc_plots" / f"{len(found.pages)}.html"
            (project.root / "dvc_plots/index.html").rename(page)
            found.pages[line] = page
    return found


def test_the_numbers_are_few_and_in_one_level(followed: Followed) -> None:
    ((file, content),) = followed.read("metrics", "show")[""]["data"].items()
    assert file == "reports/evaluation/metrics.json"
    assert list(content["data"]) == [f"resnet8.{name}" for name in METRICS]


def test_two_experiments_are_compared_number_by_number(followed: Followed) -> None:
    (said,) = followed.read("metrics", "diff", "--all", "HEAD~1", "shorter").values()
    assert set(said) == {f"resnet8.{name}" for name in METRICS}
    for name in ("accuracy", "batch_size", "base_lr", "diverged_share"):
        assert all(
            isinstance(said[f"resnet8.{name}"][side], int | float) for side in ("old", "new")
        )
    # Of the workspace: what the runs themselves say.
    runs = pd.read_parquet(followed.project.root / "reports/evaluation/runs.parquet")
    best = runs["reported_accuracy"].max()  # of one seed
    (shown,) = followed.read("metrics", "show")[""]["data"].values()
    assert shown["data"]["resnet8.accuracy"] == pytest.approx(best, rel=1e-5)
    assert shown["data"]["resnet8.diverged_share"] == (runs["outcome"] == "diverged").mean()


def test_the_settings_that_differ_are_named(followed: Followed) -> None:
    line = "dvc params diff HEAD shorter"
    assert re.search(r"studies\.resnet8\.epochs +1 +5$", followed.outputs[line], re.MULTILINE)
    said = followed.outputs["dvc exp diff HEAD shorter --no-path"]
    assert "studies.resnet8.epochs" in said
    assert "resnet8.accuracy" in said


def test_the_table_of_experiments_has_what_differs_alone(followed: Followed) -> None:
    (line,) = (line for line in followed.outputs if line.startswith("dvc exp show"))
    words = [word.strip("'") for word in line.split()[1:]]
    rows = {row["Experiment"]: row for row in followed.csv(*words, "--all-commits")}
    assert {"shorter", "fewer"} <= set(rows)
    assert rows["shorter"]["studies.resnet8.epochs"] == "5"
    assert all(0 <= float(rows[name]["resnet8.accuracy"]) <= 1 for name in ("shorter", "fewer"))
    assert not [
        name
        for name in rows["fewer"]
        if re.match(r"models|reports|data|\.smallbatch|compute", name)
    ]


def test_an_experiment_in_a_copy_comes_back(followed: Followed) -> None:
    """The page ends with it in the workspace."""
    params = YAML(typ="safe").load((followed.project.root / "params.yaml").read_text())
    assert parse_params(params, "params.yaml").grid.batch_sizes == (8, 32)
    assert nothing_changed(followed.project.call("dvc", "status"))
    runs = pd.read_parquet(followed.project.root / "reports/evaluation/runs.parquet")
    assert set(runs["batch_size"]) == {8, 32}


def test_its_runs_are_in_mlflow_though_its_folder_is_gone(followed: Followed) -> None:
    project = followed.project
    runs = pd.read_parquet(project.root / "reports/evaluation/runs.parquet")
    of_it = set(runs["run"][runs["batch_size"] == 32])
    assert len(of_it) == 2
    assert of_it <= {run for _, run in project.runs_in_mlflow()}
    assert not [*project.root.glob(".dvc/tmp/exps/**/mlflow.db")]
    # The models of m = 8 of the first experiment, and of m = 32 of the second.
    assert len([*project.root.glob("mlartifacts/digits/resnet8/models/*/artifacts/MLmodel")]) == 2


def test_powers_of_two_on_the_command_line(followed: Followed) -> None:
    overrides = {
        "grid.base_lrs=[2**-6, 2**-4]": (2**-6, 2**-4),
        'grid.base_lrs=["2^-5", "2^-3"]': (2**-5, 2**-3),
        "grid.base_lrs=[0.0078125]": (2**-7,),
    }
    for number, override in enumerate(overrides):
        followed.project.call("dvc", "exp", "run", "--queue", "-n", f"q{number}", "-S", override)
    table = json.dumps(followed.read("exp", "show"))
    followed.project.call("dvc", "queue", "remove", "--all")
    read: list[tuple[float, ...]] = []
    for base_lrs in re.findall(r'"base_lrs": (\[[^]]*\])', table):
        params = YAML(typ="safe").load(PARAMS)
        params["grid"]["base_lrs"] = json.loads(base_lrs)
        read.append(parse_params(params, "params.yaml").grid.base_lrs)
    assert set(overrides.values()) <= set(read)


def test_a_power_sign_without_quotes_is_refused_by_dvc(followed: Followed) -> None:
    """The page says whose words these are."""
    words = ("dvc", "exp", "run", "--queue", "-S", "grid.base_lrs=[2^-6]")
    with followed.project.start(*words) as process:
        output = process.communicate()[0]
    assert process.returncode != 0
    assert "hydra.cc" in output


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_plots_are_drawn_once_each_without_a_network(followed: Followed) -> None:
    assert len(followed.pages) == 1
    with browser() as started:
        for line, page in followed.pages.items():
            with opened(started, page, offline=True) as seen:
                seen.page.wait_for_function(
                    "[...document.querySelectorAll('body > div')].every((it) => "
                    "it.querySelector('canvas, svg.marks'))"
                )
                assert seen.page.locator("body > div").count() == 4, line
                assert seen.console == []
                assert all(address.startswith("file:") for address in seen.requests)
                assert not seen.page.locator("img").count()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_page_elsewhere_asks_the_network_for_vega(followed: Followed) -> None:
    page = followed.project.root / "elsewhere/page/index.html"
    page.parent.mkdir(parents=True)
    page.write_text(next(iter(followed.pages.values())).read_text())
    with browser() as started, opened(started, page, offline=True) as seen:
        asked = [address for address in seen.requests if not address.startswith("file:")]
    assert [re.search(r"/(vega[\w-]*)@", address)[1] for address in asked] == [  # type: ignore[index]
        "vega", "vega-lite", "vega-embed",
    ]  # fmt: skip


def test_a_colleague_pulls_results_and_trains_nothing(followed: Followed, tmp_path: Path) -> None:
    call = followed.project.call
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "--allow-empty", "-m", "State")
    call("dvc", "push", "--quiet")
    other = tmp_path / "other"
    call("git", "clone", "--quiet", ".", str(other))
    call("bash", "-c", f"cd {other} && dvc pull --quiet")
    assert nothing_changed(call("bash", "-c", f"cd {other} && PYTHONPATH=src dvc status"))
    for name in ("report.html", "evaluation/metrics.json", "vega.js"):
        mine = (followed.project.root / "reports" / name).read_bytes()
        assert (other / "reports" / name).read_bytes() == mine
