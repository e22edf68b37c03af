"""A stage whose settings or inputs change while it runs fails; what it does not use may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from smallbatch import modules
from smallbatch.cli.main import main
from tests.analysis import synthetic
from tests.project import Project, stages_run

PARAMS = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid: {studies: [plain, bn], dependent: [{name: after, after: bn}], batch_sizes: [8],
       base_lrs: [2^-8], seeds: 1}
advise: {studies: []}
studies:
  plain: {model: resnet8, norm: none, epochs: 6, weight_decay: 0.0001}
  bn: {model: resnet8, norm: batch, epochs: 6, weight_decay: 0.0001, base_lrs: [2^-7], seeds: 3}
  after: {model: resnet8, norm: ghost, bn_batch_size: 4, epochs: 6, weight_decay: 0.0001,
          base_lr: best of bn}
  other: {model: resnet8, norm: none, epochs: 6, weight_decay: 0.0001}
"""
META = "data/prepared/digits/meta.json"
MEMORY = "reports/measurements/memory"
SOURCE = "models/digits/bn/m8/runs.json"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    monkeypatch.setattr(modules, "PACKAGE", tmp_path / "package")
    for name in ("package/used/a.py", "package/one.py", "package/unused.py", META, SOURCE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("as it was")
    Path(".smallbatch/code").mkdir(parents=True)
    digest = hashlib.sha256(b"as it was").hexdigest()
    Path(".smallbatch/code/train").write_text(f"{digest}  one.py\n{digest}  used/a.py\n")
    for name in ("models", "elsewhere"):
        synthetic.write_models(tmp_path / name, (synthetic.Study("tiny", batch_sizes=(2,)),))
    for name in ("reports/evaluation/runs.parquet", "reports/measurements/digits.csv",
                 f"{MEMORY}/digits.csv"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("as it was")
    return tmp_path


def edited(old: str, new: str) -> Callable[[], None]:
    """Changes the params file."""
    assert old in PARAMS
    return lambda: (Path("params.yaml").write_text(PARAMS.replace(old, new)), None)[1]


def overwritten(name: str) -> Callable[[], None]:
    """Changes a file."""
    return lambda: (Path(name).write_text("changed"), None)[1]


def run(monkeypatch: pytest.MonkeyPatch, command: str, meanwhile: Callable[[], None]) -> Result:
    """A stage of which only its frame is real: its work is what happens meanwhile."""

    class Done:
        counts, name, classes, channels, height, width = ({"train": 60}, "digits", "01", 1, 8, 8)
        parent, short_side = Path("reports"), None

        def lines(self) -> list[str]:
            return ["done"]

        def __iter__(self) -> Iterator[str]:
            return iter(self.lines())

    def work(*_: Any, **__: Any) -> Any:
        meanwhile()
        return Done()

    monkeypatch.setattr("smallbatch.report.answer.answer_lines", lambda _: [])
    for name in (
        "smallbatch.data.prepare.prepare",
        "smallbatch.pipeline.experiments.train_study_column",
        "smallbatch.pipeline.measurements.measure",
        "smallbatch.analysis.evaluation.evaluate",
        "smallbatch.report.page.build_report",
    ):
        monkeypatch.setattr(name, work)
    monkeypatch.setenv("DVC_STAGE", f"{command.split()[0]}@plain-8")
    return CliRunner().invoke(main, command.split())


EPOCHS = (
    "plain: {model: resnet8, norm: none, epochs: 6",
    "plain: {model: resnet8, norm: none, epochs: 2",
)
COLUMN = "models/synthetic/tiny/m2"


@pytest.mark.parametrize(
    ("command", "meanwhile", "named"),
    [
        ("prepare", edited("subset: 60,", "subset: 50,"), "params.yaml: dataset"),
        ("train plain 8", edited(*EPOCHS), "params.yaml: studies.plain"),
        ("train plain 8", edited("[2^-8]", "[2^-9]"), "params.yaml: grid.base_lrs"),
        ("train plain 8", edited("seeds: 1", "seeds: 2"), "params.yaml: grid.seeds"),
        ("train bn 8", edited("seeds: 3", "seeds: 4"), "params.yaml: studies.bn: changed"),
        ("train plain 8", overwritten(META), META),
        ("train plain 8", overwritten("package/used/a.py"), "smallbatch/used/a.py"),
        ("train plain 8", overwritten("package/one.py"), "smallbatch/one.py"),
        ("train after 8", overwritten(SOURCE), SOURCE),
        ("measure", edited(*EPOCHS), "params.yaml: studies.plain"),
        ("measure", edited("seeds: 1", "seeds: 2"), "params.yaml: grid.seeds"),
        ("measure", edited("sizes: [8]", "sizes: [8, 16]"), "params.yaml: grid.batch_sizes"),
        (
            "measure",
            edited("advise: {", "compute: {device: cpu}\nadvise: {"),
            "params.yaml: compute.device",
        ),
        ("measure", overwritten(META), META),
        ("evaluate", overwritten(f"{COLUMN}/history.parquet"), f"{COLUMN}/history.parquet"),
        ("evaluate", overwritten(f"{COLUMN}/timing.json"), f"{COLUMN}/timing.json"),
        ("evaluate", lambda: Path(f"{COLUMN}/runs.json").unlink(), f"{COLUMN}/runs.json"),
        ("evaluate", edited("sizes: [8]", "sizes: [8, 16]"), "params.yaml: grid.batch_sizes"),
        ("evaluate", edited("studies: [plain, bn]", "studies: [bn]"), "params.yaml: grid.studies"),
        (
            "evaluate",
            edited("dependent: [{name: after, after: bn}]", "dependent: []"),
            "params.yaml: grid.dependent",
        ),
        ("evaluate", edited("name: digits", "name: other"), "params.yaml: dataset.name"),
        ("report", overwritten("reports/evaluation/set_aside.json"), "reports/evaluation/set_"),
        ("report", overwritten("reports/evaluation/runs.parquet"), "reports/evaluation/runs."),
        ("report", overwritten("reports/measurements/digits.csv"), "reports/measurements/digits"),
        ("report", overwritten("reports/measurements/new.csv"), "reports/measurements/new.csv"),
        ("report", overwritten(f"{MEMORY}/digits.csv"), f"{MEMORY}/digits.csv"),
        ("report", overwritten(f"{MEMORY}/new.csv"), f"{MEMORY}/new.csv"),
        ("report", overwritten(f"{COLUMN}/timing.json"), f"{COLUMN}/timing.json"),
        ("report", overwritten(f"{COLUMN}/history.parquet"), f"{COLUMN}/history.parquet"),
    ],
)
def test_a_stage_fails_if_what_it_depends_on_changed_meanwhile(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    meanwhile: Callable[[], None],
    named: str,
) -> None:
    result = run(monkeypatch, command, meanwhile)
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {named}")
    assert "changed while this command ran" in line


@pytest.mark.parametrize(
    ("command", "meanwhile"),
    [
        ("prepare", edited(*EPOCHS)),
        ("train plain 8", edited("studies:", "# a comment\nstudies:")),
        ("train plain 8", edited("2^-8", "0.00390625")),
        ("train plain 8", edited("bn: {model: resnet8, norm: batch, epochs: 6",
                                 "bn: {model: resnet8, norm: batch, epochs: 9")),
        ("train bn 8", edited("[2^-8]", "[2^-9]")),  # it has η̃ of its own
        ("train bn 8", edited("seeds: 1", "seeds: 2")),  # and seeds
        ("train plain 8", edited("seeds: 3", "seeds: 4")),
        ("measure", edited("seeds: 3", "seeds: 4")),
        ("train plain 8", overwritten("package/unused.py")),
        ("measure", overwritten("package/one.py")),
        ("measure", edited("[2^-8]", "[2^-9]")),
        ("measure", edited("other: {model: resnet8, norm: none, epochs: 6",
                           "other: {model: resnet8, norm: none, epochs: 9")),
        ("evaluate", edited(*EPOCHS)),
        ("evaluate --all", overwritten("params.yaml")),
        ("evaluate --models models/../elsewhere", overwritten("params.yaml")),
        ("evaluate", overwritten(f"{COLUMN}/other.json")),
        ("report", overwritten(f"{COLUMN}/other.json")),
    ],
)  # fmt: skip
def test_a_stage_goes_on_if_what_changed_meanwhile_is_not_of_its_inputs(
    project: Path, monkeypatch: pytest.MonkeyPatch, command: str, meanwhile: Callable[[], None]
) -> None:
    result = run(monkeypatch, command, meanwhile)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_params_edited_while_dvc_trains_are_trained_by_the_next_repro(tmp_path: Path) -> None:
    text = (
        "dataset: {name: digits, source: digits, subset: 60, test_subset: 40}\n"
        "grid: {studies: [plain], dependent: [], batch_sizes: [8], base_lrs: [2^-8], seeds: 1}\n"
        "advise: {studies: []}\n"
        "studies:\n"
        "  plain: {model: resnet8, norm: none, epochs: 20, weight_decay: 0.0001}\n"
    )
    project = Project(tmp_path / "project", text, tracked=False)
    params = project.root / "params.yaml"
    with project.start("dvc", "repro", "train@plain-8") as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "1 run ×" in line:  # it has begun to train
                params.write_text(text.replace("epochs: 20", "epochs: 2"))
    assert process.returncode == 255, output
    assert "Error: params.yaml: studies.plain: changed while this command ran" in output
    assert stages_run(project.call("dvc", "repro", "train@plain-8")) == ["train@plain-8"]
    record = json.loads((project.root / "models/digits/plain/m8/runs.json").read_text())
    assert record["settings"]["epochs"] == 2
