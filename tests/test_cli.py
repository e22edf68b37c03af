"""The command line as a user meets it; single runs and timings in real sub-processes."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from smallbatch.cli.main import main
from smallbatch.config import profiles
from tests.analysis.synthetic import STUDIES, Study, write_models
from tests.database import empty_database
from tests.project import UNTRACKED

ROOT = Path(__file__).parents[1]
FEW = tuple(replace(study, batch_sizes=(8, 32)) for study in STUDIES)
TINY = (Study("tiny", batch_sizes=(2,), base_lrs=(2**-6,), seeds=1),)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the default params, and beside them a copy of the profiles."""
    shutil.copytree(profiles.FOLDER, tmp_path / "profiles")
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def process(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_answers_in_under_a_third_of_a_second() -> None:
    """In processor time, which is what it waits for: other processes may hold up the clock."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times: list[float] = []
    for _ in range(5):
        start = spent()
        done = process("--help", cwd=ROOT)
        times.append(spent() - start)
        assert done.returncode == 0
        assert "dvc repro" in done.stdout
    assert min(times) < 0.3


@pytest.mark.parametrize(
    "command",
    ["init", "code", "prepare", "plan", "train", "run", "evaluate", "report",
     "sync", "ui", "answer", "claims",
     "measure", "bench", "profile",
     "profile list", "profile show", "profile use"],
)  # fmt: skip
def test_every_command_shows_examples(command: str) -> None:
    done = call(*command.split(), "--help")
    assert done.exit_code == 0
    assert "Examples:" in done.output
    assert f"  smallbatch {command}" in done.output


def test_the_list_of_profiles_says_what_each_scale_costs(folder: Path) -> None:
    (folder / "profiles/mine.yaml").write_text(
        "# A study of mine\n"
        "#\n"
        "# Cost:   full   1,200 runs of 9 epochs of 500 images; a night on four cores\n"
        "#                2.2e6 updates\n"
        "#         tiny   12 runs of one epoch\n"
        "grid: {}\n"
    )
    done = call("profile", "list")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    at = lines.index("mine             A study of mine")
    assert [" ".join(line.split()) for line in lines[at + 1 : at + 3]] == [
        "full 1,200 runs of 9 epochs of 500 images; a night on four cores",
        "tiny 12 runs of one epoch",
    ]
    # Every scale of the paper's profiles, and of the others, whose heads list none, a line alone.
    for name, scales in {
        "paper-cifar10": 3,
        "paper-cifar100": 3,
        "paper-imagenet": 3,
        "quick": 0,
    }.items():
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} "))
        below = list(itertools.takewhile(lambda line: line.startswith("  "), lines[at + 1 :]))
        assert [line.split()[0] for line in below] == ["full", "small", "smoke"][:scales]
        assert not below or re.search(r"; (about|at most) \S+ hours on two .*cores$", below[1])


def test_a_study_that_the_grid_does_not_run_is_not_trained(folder: Path) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("[resnet8, resnet8-bn]", "[resnet8-bn]"))
    done = call("train", "resnet8", "8")
    assert done.exit_code == 2
    assert "study: found 'resnet8', allowed: resnet8-bn, as grid.studies says" in done.output


def test_a_batch_size_that_the_grid_does_not_have_is_not_trained(folder: Path) -> None:
    done = call("train", "resnet8", "5")
    assert done.exit_code == 2
    assert done.output == (
        "Error: batch_size: found 5, allowed: 2, 8, 32, 128, 512, as grid.batch_sizes says; add it "
        "there, or `smallbatch run` trains it outside the grid\n"
    )
    assert not (folder / "models").exists()
    assert not (folder / ".smallbatch").exists()


@pytest.mark.parametrize("command", ["prepare", "plan"])
def test_a_key_that_dvc_needs_is_named_where_dvc_reads_the_params(
    folder: Path, command: str
) -> None:
    shutil.copy(ROOT / "dvc.yaml", folder)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("  dependent: []\n", ""))
    done = call(command)
    assert done.exit_code == 2
    assert done.output == (
        "Error: params.yaml: grid.dependent: missing, which DVC needs; allowed: a list of studies, "
        "[] if there are none\n"
    )
    assert not Path("data").exists()
    params.rename("other.yaml")  # which DVC does not read
    assert call("prepare", "--params", "other.yaml").exit_code == 0


def test_bad_params_end_with_status_2_and_one_line(folder: Path) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("weight_decay", "wieght_decay", 1))
    done = process("prepare", cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "unknown key 'studies.resnet8.wieght_decay'" in line
    assert "did you mean 'weight_decay'?" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "resnet9", "8"], "study: found 'resnet9', allowed: resnet8, resnet8-bn"),
        (["train", "resnet8", "8"], "data/prepared/digits"),
        (["train", "resnet8", "5"], "batch_size: found 5, allowed: 2, 8, 32, 128, 512, as grid."),
        (["prepare", "--params", "none.yaml"], "none.yaml: no such file"),
        (["profile", "show", "quik"], "did you mean 'quick'?"),
        (["evaluate"], "models: "),
        (["run", "-m", "4", "--base-lr", "2^-6", "--dataset", "digit"], "--dataset: found 'digit'"),
        (["run", "-m", "4", "--base-lr", "2^-6", "--model", "resnet9"], "unknown model 'resnet9'"),
        (["run", "-m", "4", "--base-lr", "2^-6", "--norm", "bn"], "norm: found 'bn'"),
        (["run", "-m", "4", "--base-lr", "2^-6", "--warmup", "1"], "warmup: found 1.0"),
        (["run", "-m", "4", "--base-lr", "0"], "found '0'"),
        (["run", "-m", "4", "--base-lr", "1e308"], "found '1e308', expected 2^-126 to 2^127"),
        (["run", "-m", "4", "--base-lr", "2^1023"], "found '2^1023', expected 2^-126 to 2^127"),
        (["run", "-m", "4", "--base-lr", "2^127"], "learning rate η = m·η̃ of at most 2^127"),
        (["run", "-m", "4", "--lr", "5e-324"], "found '5e-324', expected 2^-126 to 2^127"),
        (["run", "-m", "4", "--lr", "2^-126"], "--lr: found 1.17549e-38 at batch size 4"),
        (["run", "-m", "4", "--base-lr", "1", "--seed", str(2**64)], "--seed"),
        (["run", "-m", "4", "--base-lr", "1", "--seed", "-1"], "--seed"),
        (["run", "-m", "9" * 400, "--base-lr", "1"], "--batch-size"),
        (["run", "-m", "4", "--base-lr", "1", "--epochs", "9" * 4400], "--epochs"),
        (["run", "-m", "4", "--base-lr", "1", "--weight-decay", "nan"], "weight_decay: found nan"),
        (["train", "resnet8", "9" * 20], "BATCH_SIZE"),
        *(
            (
                ["run", "-m", "4", "--base-lr", "1", "--time-limit", it],
                f"found '{it[:80]}', allowed",
            )
            for it in ("1e300h", "inf", "nan", "9" * 400 + "h", "10001h", "-1", "")
        ),
        (["bench", "--seconds", "nan"], "--seconds"),
        (["bench", "--seconds", "inf"], "--seconds"),
        (["run", "-m", "4"], "--base-lr"),
        (["run", "-m", "4", "--base-lr", "1", "--lr", "1"], "--base-lr"),
        (["sync", "nowhere"], "nowhere"),
        (["sync"], "nothing to sync"),
        (["run", "-m", "4", "--base-lr", "1", "--params", "no.yaml"], "no.yaml: no such file"),
    ],
)
def test_bad_input_is_named(folder: Path, words: list[str], said: str) -> None:
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the keys"),
        ("a: !!bool x", "line 1: not valid YAML"),
        ("\xff", "no UTF-8"),
        ("{text}scales: {{s: {{}}}}", "scales.s.epochs: found None"),
        ("{text}scales: {{s: {{epochs: 1.0, dataset: 3}}}}", "scales.s: dataset: found 3"),
    ],
)
def test_a_damaged_profile_is_named_and_stops_no_other(folder: Path, text: str, said: str) -> None:
    text = text.format(text=(folder / "profiles/quick.yaml").read_text().partition("\nscales")[0])
    (folder / "profiles/odd.yaml").write_text(text, encoding="latin-1" if len(text) < 9 else None)
    done = call("profile", "use", "odd", "--scale", "s", "--force")
    assert done.exit_code == 2
    assert "profiles/odd.yaml: " in done.output
    assert said in done.output
    if text != "\xff":
        assert call("profile", "list").exit_code == 0
        assert call("profile", "use", "quick").exit_code == 0


def test_profiles_are_listed_shown_and_installed(folder: Path) -> None:
    listed = call("profile", "list").output
    for name in ("quick", "cifar10-cpu"):
        assert name in listed
    shown = call("profile", "show", "cifar10-cpu").output
    assert shown == (folder / "profiles/cifar10-cpu.yaml").read_text()
    assert call("profile", "use", "cifar10-cpu").exit_code == 0
    assert (folder / "params.yaml").read_text() == shown


def test_params_with_edits_are_not_lost(folder: Path) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    refused = call("profile", "use", "cifar10-cpu")
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert params.read_text().endswith("# mine\n")
    assert call("profile", "use", "cifar10-cpu", "--force").exit_code == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
def test_a_single_run_trains_logs_and_syncs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` in a process of its own, with η instead of η̃; read back through MLflow's client."""
    uri = f"sqlite:///{folder}/tracking.db"
    shutil.copy(empty_database(), folder / "tracking.db")
    words = ["run", "--batch-size", "32", "--lr", "0.5", "--epochs", "1", "--norm", "batch"]
    done = process(*words, cwd=folder, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    assert "lr 0.5 = 32 × base_lr 2^-6" in done.stdout
    (record,) = (folder / ".smallbatch/runs").rglob("runs.json")
    run = json.loads(record.read_text())["runs"][0]
    assert f"test accuracy {run['final']['test_accuracy']:.4f}" in done.stdout
    assert "epoch 1/1, training loss " in done.stderr  # piped: plain lines
    assert "nothing was trained" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not (folder / "models").exists()

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits/resnet8-batch"]
    runs = client.search_runs([experiment.experiment_id])
    (child,) = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert child.info.status == "FINISHED"
    assert child.data.tags["smallbatch.run"] == run["run"]
    assert child.data.metrics["test_accuracy"] == pytest.approx(run["final"]["test_accuracy"])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    again = call("sync")
    assert "0 MLflow runs created, 0 completed" in again.stdout

    untracked = {"PYTHONPATH": f"{ROOT}/src{os.pathsep}{UNTRACKED}"}
    kept = process(*words, cwd=folder, **untracked)
    assert kept.stdout == done.stdout
    assert "found the kept result of this run; nothing was trained" in kept.stderr
    assert "training loss" not in kept.stderr
    other = process(*words, "--weight-decay", "0", cwd=folder, **untracked)
    assert other.returncode == 0, other.stderr
    assert len(list((folder / ".smallbatch/runs").rglob("runs.json"))) == 2


def test_a_profile_is_installed_at_a_scale(folder: Path) -> None:
    """Epochs shrink by one factor, data and grid are replaced, and the data set gets a new name."""
    from smallbatch.config.params import load_params

    full = load_params("profiles/paper-cifar10.yaml")
    assert call("profile", "use", "paper-cifar10", "--scale", "small").exit_code == 0
    small = load_params("params.yaml")
    assert (full.dataset.name, small.dataset.name) == ("cifar10", "cifar10-small")
    assert (full.dataset.scale, small.dataset.scale) == ("full", "small")
    assert full.running == small.running
    assert {full.studies[name].epochs for name in full.running} == {32, 41, 82, 164}
    assert {small.studies[name].epochs for name in small.running} == {5, 10, 16, 20}
    assert small.grid.seeds == full.grid.seeds == 3
    assert "Command: smallbatch profile use paper-cifar10" in Path("params.yaml").read_text()
    # A profile's own text, at whatever scale, is replaced without --force.
    assert call("profile", "use", "paper-cifar10").exit_code == 0
    assert Path("params.yaml").read_text() == Path("profiles/paper-cifar10.yaml").read_text()


def test_an_unknown_scale_is_one_line(folder: Path) -> None:
    wrong = call("profile", "use", "paper-cifar10", "--scale", "smal")
    assert wrong.exit_code == 2
    assert "scale: found 'smal', allowed with paper-cifar10: small, smoke" in wrong.output
    assert "did you mean 'small'?" in wrong.output
    none = call("profile", "use", "cifar10-cpu", "--scale", "small")
    assert "allowed with cifar10-cpu: none" in none.output


def test_claims_judge_result_files_without_a_report(folder: Path) -> None:
    write_models(Path("models"), FEW)
    printed = call("claims", "--models", "models", "--json")
    assert printed.exit_code == 0, printed.output
    judged = json.loads(printed.stdout)
    assert call("evaluate").exit_code == call("report").exit_code == 0
    assert judged == json.loads(Path("reports/claims.json").read_text())
    verdicts = {it["claim"]: it["findings"][0]["verdict"] for it in judged["claims"]}
    assert verdicts["best-batch-size-fig-1"] == "not run"
    assert verdicts["best-batch-size-fig-8"] != "not run"
    assert call("claims", "--models", "models").stdout == call("claims").stdout
    assert json.loads(call("claims", "--json").stdout) == judged
    both = call("claims", "reports/claims.json", "--models", "models")
    assert both.exit_code == 2
    assert "FILE and --models: found both, allowed: one of them" in both.output
    assert call("claims", "--models", "nothing").exit_code == 2


def test_a_report_ends_with_the_answers_and_its_path(folder: Path) -> None:
    write_models(Path("models"), FEW)
    assert call("evaluate").exit_code == 0
    missing = call("answer")
    assert missing.exit_code == 2
    assert "reports/answers.json: no such file; `smallbatch report` writes it" in missing.output
    done = call("report")
    assert done.stdout == "reports/report.html\n"
    lines = done.stderr.splitlines()
    assert [line.partition(". ")[0] for line in lines] == [
        "synthetic/resnet8: Batch size 8, learning rate 0.125 (η̃ = 2⁻⁶)",
        "synthetic/resnet8-bn: Batch size 8, learning rate 0.5 (η̃ = 2⁻⁴)",
    ]
    assert call("answer").stdout.splitlines() == lines
    content = json.loads(call("answer", "--json").stdout)
    assert content == json.loads(Path("reports/answers.json").read_text())
    assert [(it["batch_size"], it["base_lr"]) for it in content["answers"]] == [
        (8, 2**-6), (8, 2**-4)
    ]  # fmt: skip


def test_the_data_set_at_hand_comes_first(folder: Path) -> None:
    write_models(Path("models"), TINY)
    write_models(Path("models"), TINY, dataset="zebra")
    assert call("evaluate", "--all").exit_code == 0

    def names() -> list[str]:
        assert call("report").exit_code == 0
        content = json.loads(Path("reports/answers.json").read_text())
        return list(dict.fromkeys(it["dataset"] for it in content["answers"]))

    assert names() == ["synthetic", "zebra"]
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("name: digits", "name: zebra"))
    assert names() == ["zebra", "synthetic"]


def test_a_report_without_its_server_says_that_links_are_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(Path("models"), TINY)
    assert call("evaluate").exit_code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:S3cretPw@127.0.0.1:1")
    done = call("report")
    assert done.exit_code == 0
    assert "warning: the report has no links to MLflow: MLFLOW_TRACKING_URI" in done.stderr
    assert "S3cretPw" not in done.output + Path("reports/report.html").read_text()


def test_claims_are_printed_as_markdown(folder: Path) -> None:
    missing = call("claims")
    assert missing.exit_code == 2
    assert "reports/claims.json: no such file; `smallbatch report` writes it" in missing.output
    finding = {
        "dataset": "cifar10-small", "scale": "small: 1000 images", "verdict": "supported",
        "effect": 0.0512, "low": 0.031, "high": 0.0774, "n": 3, "reason": "m = 4 not run",
        "parts": [],
    }  # fmt: skip
    claim = {
        "claim": "best", "figure": "2", "statement": "Best m = 2 and 4", "criterion": "…",
        "unit": "accuracy", "findings": [finding],
    }  # fmt: skip
    Path("claims.json").write_text(json.dumps({"claims": [claim]}))
    lines = call("claims", "claims.json").stdout.splitlines()
    assert lines[2] == (
        "| Best m = 2 and 4 | 2 | supported | +5.12 [+3.1, +7.74] points | 3 | "
        "cifar10-small, small: 1000 images | m = 4 not run |"
    )
    Path("claims.json").write_text("[]")
    assert "claims.json: damaged" in call("claims", "claims.json").output


@pytest.mark.usefixtures("folder")
def test_a_user_without_a_home_folder_has_one_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with an arbitrary user: libraries look for it as they are imported."""

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setenv("HOME", "")  # so that it is put back
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert call("profile", "list").exit_code == 0
    assert os.environ["HOME"] == "/"


def test_studies_that_are_one_in_yaml_are_each_scaled_once(folder: Path) -> None:
    from smallbatch.config.params import load_params

    (folder / "profiles/mine.yaml").write_text("""
dataset: {name: digits, source: digits}
grid: {studies: [a, b, c], dependent: [], batch_sizes: [8], base_lrs: [2^-8], seeds: 1}
advise: {studies: []}
studies:
  a: &base {model: resnet8, norm: none, epochs: 40, weight_decay: 0.0001}
  b:
    <<: *base
    norm: group
  c: *base
scales: {small: {epochs: 0.5, studies: {c: {norm: batch}}}}
""")
    done = call("profile", "use", "mine", "--scale", "small", "--force")
    assert done.exit_code == 0, done.output
    studies = load_params("params.yaml").studies
    assert {name: study.epochs for name, study in studies.items()} == {"a": 20, "b": 20, "c": 20}
    assert [studies[name].norm for name in "abc"] == ["none", "group", "batch"]


def test_a_scales_number_of_seeds_is_that_of_every_study_unless_it_sets_its_own(
    folder: Path,
) -> None:
    from smallbatch.config.params import load_params

    (folder / "profiles/mine.yaml").write_text("""
dataset: {name: digits, source: digits}
grid: {studies: [a, b, c, d], dependent: [], batch_sizes: [8], base_lrs: [2^-8], seeds: 3}
advise: {studies: []}
studies:
  a: &base {model: resnet8, norm: none, epochs: 40, weight_decay: 0.0001, seeds: 19}  # the most
  b:
    <<: *base
    norm: group
  c: *base
  d: {model: resnet8, norm: batch, epochs: 40, weight_decay: 0.0001}
scales:
  small: {epochs: 0.5, grid: {seeds: 1}, studies: {c: {seeds: 2}}}
  other: {epochs: 0.5, grid: {batch_sizes: [4]}}
  odd: {epochs: 0.5, grid: seeds}
""")
    seeds = {}
    for scale in ("small", "other"):
        done = call("profile", "use", "mine", "--scale", scale, "--force")
        assert done.exit_code == 0, done.output
        params = load_params("params.yaml")
        seeds[scale] = [params.seeds(name)[-1] + 1 for name in "abcd"]
    assert seeds == {"small": [1, 1, 2, 1], "other": [19, 19, 19, 3]}
    done = call("profile", "use", "mine", "--scale", "odd", "--force")
    assert (done.exit_code, "scales.odd" in done.output) == (2, True)


def test_names_of_others_do_not_steer_a_terminal(folder: Path) -> None:
    for split in ("train", "val", "x\x1b]0;owned\x07\x1b[2Jy"):
        for index, name in enumerate(("ant", "bee")):
            place = folder / "img" / split / name
            place.mkdir(parents=True)
            pixels = np.full((4, 4), 8 * len(split) + index, np.uint8)
            Image.fromarray(pixels).save(place / "0.png")
    (folder / "params.yaml").write_text("""
dataset: {name: own, source: image_folder, path: img}
grid: {studies: [s], dependent: [], batch_sizes: [2], base_lrs: [2^-8], seeds: 1}
advise: {studies: []}
studies: {s: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}}
""")
    done = call("prepare")
    assert done.exit_code == 0, done.output
    assert "x\\x1b]0;owned\\x07\\x1b[2Jy not used" in done.output
    assert "\x1b" not in done.output
