"""Faults that were found by trying to break the advice."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallbatch.analysis.race import Candidate
from smallbatch.config import model_files
from smallbatch.config.params import ComputeConfig, parse_dataset, parse_study
from smallbatch.execution.watch import Watch
from smallbatch.models import pretrained
from smallbatch.pipeline.advise import advise as module
from smallbatch.pipeline.advise.ledger import Ledger, OutOfBudget
from smallbatch.pipeline.advise.request import Request, parse_budget
from smallbatch.pipeline.advise.session import run
from smallbatch.pipeline.advise.size import Size
from smallbatch.pipeline.advise.trials import Trainer
from smallbatch.records.columns import read_column
from smallbatch.report.advice import read_advice
from tests.pipeline.advise.test_advise import call, photographs
from tests.pipeline.advise.test_conclude import A, B, advice, rung, session, trial, trials


def test_a_cell_that_diverges_with_fresh_seeds_is_not_recommended_over_one_that_does_not() -> None:
    one = {3: trial(0.8, 0.81), 4: trial(0.8, 0.81), 5: trial(None), 6: trial(None), 7: trial(None)}
    other = {seed: trial(0.79, 0.80) for seed in range(3, 8)}
    told = advice(session(final={A: one, B: other})).recommended
    assert told is not None
    assert (told.batch_size, told.base_lr) == (B.batch_size, B.base_lr)


def test_a_divergence_in_the_final_is_in_the_stable_range() -> None:
    one = {seed: trial(0.8, 0.81) for seed in range(3, 7)} | {7: trial(None)}
    other = {seed: trial(0.79, 0.80) for seed in range(3, 8)}
    found = advice(session(final={A: one, B: other}))
    (own,) = (it for it in found.ranges if it.batch_size == A.batch_size)
    assert dict(own.survived)[A.base_lr] < own.seeds


def test_where_the_last_rung_breaks_the_best_that_did_not_is_still_recommended() -> None:
    whole = session().rungs
    last = rung(10, 1.0, {A: trials(0.80, None, 0.79), B: trials(0.79, 0.81, None)})
    told = advice(session(rungs=[whole[0], last]))
    assert told.recommended is not None
    assert Candidate(told.recommended.batch_size, told.recommended.base_lr) not in (A, B)


def test_what_was_only_behind_is_not_said_to_have_diverged() -> None:
    whole = session().rungs
    last = rung(10, 1.0, {A: trials(0.80, None, 0.79), B: trials(0.79, 0.81, None)})
    told = advice(session(rungs=[whole[0], last]))
    assert not any("Every candidate diverged" in it for it in told.warnings)


def test_a_study_of_one_epoch_has_a_size() -> None:
    size = Size(1000, 200, 1)
    assert size.rungs == (1,)
    assert size.bracket_epochs(4) == 1


def test_weights_that_the_command_itself_fetched_do_not_make_another_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    monkeypatch.setattr(model_files, "weights_file", lambda *_: file)
    study = parse_study(
        {"model": "resnet18", "pretrained": "timm", "epochs": 2, "weight_decay": 0.0}, "test"
    )
    dataset = parse_dataset({"name": "digits", "source": "digits"}, "test")
    request = Request(dataset, study, parse_budget("20m"))
    fetched: list[str] = []
    monkeypatch.setattr(pretrained, "fetch", fetched.append)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.Ledger, "answer", property(lambda _: pytest.fail("of the key")))
    with pytest.raises(pytest.fail.Exception):
        module.advise(request, print, lambda *_: "", print)
    assert fetched == ["resnet18"]  # before the key is made


def test_columns_of_a_step_that_the_budget_ended_reach_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(rungs=[], brackets={})
    asked: list[Path] = []
    data: Any = SimpleNamespace(meta=SimpleNamespace(name="digits"))
    mirror: Any = SimpleNamespace(finish_later=asked.append)
    ledger = Ledger(tmp_path / "ledger", found.request.budget)
    trainer = Trainer("advise", found.request.study, data, found.speeds, ledger, ComputeConfig(),
                      Watch(), mirror)  # fmt: skip
    trainer._unlogged.add(("bracket", 4))  # of a first pass; the second one is cut

    def out_of_budget(*_: object, **__: object) -> None:
        raise OutOfBudget

    monkeypatch.setattr(trainer, "train", out_of_budget)
    run(found, trainer, ledger, print)
    assert not found.in_time
    assert asked == trainer.logged == [trainer.folder("bracket", 4)]


@pytest.mark.slow
def test_called_again_it_gives_the_same_answer_and_completes_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path, {"dark": 30, "light": 30})
    words = ("--data", "photos", "--norm", "none", "--batch-sizes", "4", "--epochs", "2",
             "--budget", "5m")  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = call(tmp_path, *words)
    assert done.returncode == 0
    columns = [it.parent for it in tmp_path.glob(".smallbatch/advise/photos/*/m*/runs.json")]
    lacks = done.stderr.split("does not show all of ")[1]
    assert all(str(column.relative_to(tmp_path)) in lacks for column in columns)
    before = read_advice(tmp_path / "reports/advice.json")

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = call(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_advice(tmp_path / "reports/advice.json") == before
    runs = sum(len(read_column(column).record.runs) for column in columns)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = database.execute("select count(*) from runs where status <> 'RUNNING'").fetchone()
    assert found[0] == runs + len(columns)

    (path,) = (tmp_path / ".smallbatch/advise").glob("*.ledger")
    ledger = Ledger(path, parse_budget("5m"))
    del ledger._content["answer"]  # as if it had been killed just before its end,
    ledger._zero -= 284.0 - ledger.seconds  # after as much time as it may have taken
    ledger.save()
    assert call(tmp_path, *words).returncode == 0
    after = read_advice(tmp_path / "reports/advice.json")
    assert after.recommended == before.recommended
    assert after.final == before.final


@pytest.mark.slow
@pytest.mark.usefixtures("untracked")
def test_called_again_with_other_images_it_answers_for_these(tmp_path: Path) -> None:
    photos = photographs(tmp_path, {"dark": 30, "light": 30})
    words = ("--data", "photos", "--norm", "none", "--batch-sizes", "4", "--epochs", "2",
             "--budget", "images=20000")  # fmt: skip
    assert call(tmp_path, *words).returncode == 0
    for image in photos.glob("*/2?.jpg"):
        image.unlink()
    done = call(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    found = read_advice(tmp_path / "reports/advice.json")
    assert found.n_train + found.n_validation + found.n_test == 40
