"""The paper's profiles at scale smoke: every study of theirs, from the images to the report."""

from __future__ import annotations

import pytest

from tests.project import Project
from tests.smoke import REAL, call, reproduced, runs_of, smoke, stand_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """Both profiles."""
    root = tmp_path_factory.mktemp("paper")
    cifar10 = REAL / "cifar10"
    if not cifar10.is_dir():
        cifar10 = stand_in(root / "cifar10-data", 10, "label")
    cifar100 = stand_in(root / "cifar100-data", 100, "fine_label")
    many = smoke("paper-cifar10", {"path": str(cifar10)})
    few = smoke("paper-cifar100", {"path": str(cifar100), "label_column": "fine_label"})
    return {"10": reproduced(many, root / "10"), "100": reproduced(few, root / "100")}


def test_every_study_of_every_cifar_figure_is_run(projects: dict[str, Project]) -> None:
    runs = runs_of(projects["10"])
    figures = {"1", "2", "3", "text", "5", "6", "7", "8", "10", "13a", "17", "18"}
    assert set(runs.figure.dropna()) == figures
    assert set(runs_of(projects["100"]).figure) == {"9", "11", "13b"}
    assert set(runs.scale) == {"smoke"}
    assert set(runs.dataset) == {"cifar10-smoke"}


def test_the_dependent_study_takes_the_best_base_lr_of_the_same_batch_size(
    projects: dict[str, Project],
) -> None:
    for project in projects.values():
        runs = runs_of(project)
        ghost = runs[runs.bn_batch_sizes.notna()]
        source = runs[runs.study == "resnet32-bn-aug"]
        assert set(ghost.base_lr_from) == {"resnet32-bn-aug"}
        for m, column in ghost.groupby("batch_size"):
            # One seed: the best cell is the run of highest reported accuracy; ties: the smaller η̃.
            own = source[source.batch_size == m].sort_values("base_lr")
            best = own[own.reported_accuracy == own.reported_accuracy.max()].base_lr.iloc[0]
            assert set(column.base_lr) == {best}


def test_sgd_batch_and_bn_batch_are_axes_of_their_own(projects: dict[str, Project]) -> None:
    runs = runs_of(projects["100"])
    ghost = runs[runs.bn_batch_sizes.notna()]
    cells = sorted(zip(ghost.batch_size, ghost.bn_batch_size, strict=True))
    assert cells == [(4, 2), (4, 4), (16, 2), (16, 4)]
    assert ghost.run.is_unique
    # Where the BN batch is the SGD batch, ghost batch norm is batch norm: another name for a run
    # of the source study, and the same numbers.
    (same,) = ghost[(ghost.batch_size == 4) & (ghost.bn_batch_size == 4)].to_dict("records")
    plain = runs[(runs.study == "resnet32-bn-aug") & (runs.batch_size == 4)]
    (twin,) = plain[plain.base_lr == same["base_lr"]].to_dict("records")
    assert same["final_train_loss"] == pytest.approx(twin["final_train_loss"], rel=1e-4)


def test_every_run_is_tracked_once(
    projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(projects["100"].root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    call("sync")
    tracked = [name for _, name in projects["100"].runs_in_mlflow()]
    assert sorted(tracked) == sorted(set(runs_of(projects["100"]).run))


def test_dvc_has_a_stage_for_every_column(projects: dict[str, Project]) -> None:
    """`dvc repro` itself, with both kinds of stages that train: test_pipeline.py."""
    for project in projects.values():
        runs = runs_of(project)
        ghost = runs.bn_batch_sizes.notna()
        plain = set(runs[~ghost].study + "-" + runs[~ghost].batch_size.astype(str))
        dependent = {f"study0-{m}" for m in runs[ghost].batch_size}
        listed = project.call("dvc", "stage", "list", "--name-only").split()
        assert {it for it in listed if it.startswith("train")} == {
            *(f"train@{name}" for name in plain),
            *(f"train_dependent@{name}" for name in dependent),
        }


def test_the_report_shows_every_study(projects: dict[str, Project]) -> None:
    for project in projects.values():
        page = (project.root / "reports/report.html").read_text()
        for study in runs_of(project).study.unique():
            assert f'.{study}">' in page
