"""`smallbatch init`, as a user calls it; what it lays out, `dvc` itself reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from ruamel.yaml import YAML

from smallbatch.cli.main import main
from smallbatch.config import profiles
from smallbatch.config.params import load_params

ROOT = Path(__file__).parents[2]
BARE = ("prepare", "plan", "train a 4", "measure", "evaluate", "report", "answer", "claims", "sync",
        "claims --models models")  # fmt: skip


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but git's."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def dvc(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", BARE)
def test_in_a_bare_folder_a_line_says_how_to_begin(folder: Path, command: str) -> None:
    done = call(*command.split())
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert "`smallbatch init` lays one out" in line
    assert list(folder.iterdir()) == []


def test_a_profile_in_a_bare_folder_says_what_comes_before_dvc(folder: Path) -> None:
    """In one sentence, whose commands then work as it says."""
    said = call("profile", "use", "quick").output
    project = "`smallbatch init --profile quick` makes this folder a project, then `dvc repro`"
    assert said == f"params.yaml is now the profile quick; {project} runs it\n"
    assert call("init", "--profile", "quick").exit_code == 0
    said = call("profile", "use", "quick").output
    assert said == "params.yaml is now the profile quick; `dvc repro` runs it\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-imagenet", "finetune"])
def test_a_profile_of_the_users_images_says_where_they_go(folder: Path, name: str) -> None:
    images = str(profiles.own_images(name))
    lines = call("init", "--profile", name, "--scale", "smoke").stdout.splitlines()
    assert lines[-4].strip() == (
        f"put your images into {images}, or set dataset.path in params.yaml"
    )
    assert lines[-3].strip().startswith("smallbatch prepare && smallbatch plan")
    said = call("profile", "use", name, "--scale", "smoke").output
    put = f"put your images into {images} or set dataset.path"
    assert said.endswith(f"at scale smoke; {put}, then `dvc repro` runs it\n")
    Path(images).mkdir(parents=True)
    assert "put your images" not in call("profile", "use", name, "--scale", "smoke").output
    assert profiles.own_images("quick") is None


def test_in_a_project_it_is_not_said(folder: Path) -> None:
    (folder / "dvc.yaml").touch()
    assert "init" not in call("answer").output


def test_a_project_has_the_repositorys_pipeline_and_settings(folder: Path) -> None:
    done = call("init", "new")
    assert done.exit_code == 0, done.output
    found = content(folder / "new")
    assert found.pop("params.yaml") == (ROOT / "params.yaml").read_bytes()
    assert found.pop(".gitignore")
    plots = {str(path.relative_to(ROOT)) for path in (ROOT / ".dvc/plots").iterdir()}
    assert found.keys() == {"dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", *plots}
    assert found == {name: (ROOT / name).read_bytes() for name in found}
    assert (folder / "new/.git").is_dir()
    *_, first, second, third = done.output.splitlines()
    assert first.split("  # ")[0].strip() == "cd new && smallbatch plan"
    assert (second.split()[0], third.split()[0]) == ("dvc", "smallbatch")


def test_the_repository_has_one_pipeline_for_dvc() -> None:
    """Most commands of DVC read every dvc.yaml that there is below."""
    found = [path for path in (ROOT / "src").rglob("*") if path.suffix == ".dvc"]
    assert found + list((ROOT / "src").rglob("dvc.yaml")) == []
    assert (ROOT / "src/smallbatch/projects/layout/pipeline.yaml").resolve() == ROOT / "dvc.yaml"


def test_dvc_reads_it_in_a_subfolder_of_a_git_repository_too(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    assert call("init", "a/b", "--profile", "cifar10-cpu").exit_code == 0
    assert not list(folder.glob("a/**/.git"))
    stages = dvc(folder / "a/b", "stage", "list", "--name-only").split()
    params = load_params(folder / "a/b/params.yaml")
    trained = {f"train@{study}-{m}" for study, m in params.columns}
    assert set(stages) == {"code", "prepare", "measure", "evaluate", "report", *trained}
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=folder, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "a/b/dvc.yaml" in status.stdout
    log = subprocess.run(["git", "log"], cwd=folder, capture_output=True, check=False)
    assert log.returncode != 0  # nothing is committed


def test_a_folder_that_git_ignores_is_refused_as_dvc_would(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    (folder / ".gitignore").write_text("/data/\n")
    done = call("init", "data/new")
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert line.startswith("Error: data/new: a .gitignore of the git repository around it")
    assert content(folder / "data") == {}


def test_a_second_call_changes_nothing_and_completes_what_is_missing(folder: Path) -> None:
    assert call("init").exit_code == 0
    before = content(folder)
    again = call("init")
    assert (again.exit_code, content(folder)) == (0, before)
    assert "was laid out so already" in again.output
    (folder / ".dvc/plots/by_study.json").unlink()
    assert "by_study.json" in call("init").output
    assert content(folder) == before


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", ".gitignore", ".dvcignore"])
def test_no_file_is_overwritten(folder: Path, name: str) -> None:
    (folder / name).write_text("mine")
    done = call("init")
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert f"found {name} with other content" in line
    assert content(folder) == {name: b"mine"}
    assert [path.name for path in folder.iterdir()] == [name]


def test_the_files_of_a_dvc_that_is_there_stay(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    for name in (".dvc/config", ".dvcignore"):
        (folder / name).write_text("# mine\n")
    assert call("init").exit_code == 0
    assert (folder / ".dvc/config").read_text() == (folder / ".dvcignore").read_text() == "# mine\n"
    assert (folder / ".dvc/plots/by_study.json").exists()


def test_neither_the_repository_nor_a_project_is_laid_out_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("init").exit_code == 0
    with Path("params.yaml").open("a") as params:
        params.write("# an edit\n")
    assert "found params.yaml" in call("init").output
    monkeypatch.chdir(ROOT)
    before = {name: Path(name).read_bytes() for name in ("params.yaml", "dvc.yaml", ".gitignore")}
    done = call("init")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert before == {name: Path(name).read_bytes() for name in before}


def test_a_profile_at_a_scale(folder: Path) -> None:
    done = call("init", "--profile", "paper-cifar10", "--scale", "smoke")
    assert done.exit_code == 0
    assert Path("params.yaml").read_text() == profiles.read("paper-cifar10", "smoke")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile", "quik"], "did you mean 'quick'?"),
        (["--scale", "small"], "allowed with quick: smoke"),
        (["--data", "images", "--profile", "quick"], "found both"),
        (["--data", "images"], "--model: missing"),
        (["--model", "resnet8"], "allowed with --data"),
        (["--norm", "batch", "--epochs", "3"], "--norm, --epochs: allowed with --data"),
        (["--data", "none", "--model", "resnet8"], "dataset.path: found none"),
        (["--data", "images", "--model", "resnet88"], "unknown model 'resnet88'"),
        (["--data", "images", "--model", "resnet8", "--norm", "ghost"], "bn_batch_size"),
        (["--data", "images", "--model", "resnet8", "--batch-sizes", "4,x"], "such as 4,16,64"),
        (["--data", "images", "--model", "resnet8", "--batch-sizes", "4,99"], "at most the 18"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(folder: Path, words: list[str], said: str) -> None:
    make_images(folder / "images", (9, 7))
    done = call("init", "new", *words)
    assert done.exit_code == 2
    assert said in done.output.splitlines()[-1]
    assert not Path("new").exists()


def make_images(folder: Path, *sizes: tuple[int, int]) -> None:
    """20 training and 4 test images of two classes; their sizes by turns."""
    for split, each in (("train", 10), ("test", 2)):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for index in range(each):
                image = Image.new("RGB", sizes[index % len(sizes)])
                image.save(folder / split / name / f"{index}.png")


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([(24, 24)], 24),
        ([(24, 40)], None),  # wider than high, as they are
        ([(24, 40), (40, 24)], 24),
        ([(200, 100), (90, 80)], 64),
        ([(200, 200)], 64),
        ([(5, 6), (6, 5)], 8),
    ],
)
def test_the_size_follows_from_the_images(
    folder: Path, sizes: list[tuple[int, int]], chosen: int | None
) -> None:
    make_images(folder / "My images", *sizes)
    done = call("init", "new", "--data", "My images", "--model", "resnet8")
    assert done.exit_code == 0, done.output
    raw: dict[str, Any] = YAML(typ="safe").load(Path("new/params.yaml"))
    assert raw["dataset"].get("image_size") == chosen
    params = load_params("new/params.yaml")
    assert params.dataset.name == "my-images"
    assert params.dataset.path == str(folder / "My images")
    assert params.dataset.validation_fraction == 0.1
    assert params.grid.batch_sizes == (4, 16)  # there are 18 images to train on
    assert (params.grid.seeds, len(params.grid.base_lrs)) == (3, 5)


def test_what_it_lays_out_for_images_is_prepared_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(folder / "new/images", (12, 10))
    words = ["--model", "resnet18", "--norm", "group", "--batch-sizes", "2,8", "--epochs", "3"]
    done = call("init", "new", "--data", "new/images", *words)
    assert done.exit_code == 0, done.output
    assert "cd new && smallbatch prepare && smallbatch plan" in done.output
    monkeypatch.chdir("new")
    params = load_params("params.yaml")
    assert params.dataset.path == "images"  # goes with the project
    assert params.studies["resnet18"].norm == "group"
    assert params.studies["resnet18"].epochs == 3
    assert params.grid.batch_sizes == (2, 8)
    prepared = call("prepare")
    assert prepared.exit_code == 0, prepared.output
    assert "18 train, 2 validation, 4 test images 3×10×12" in prepared.output


def test_images_without_splits_have_a_part_held_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(folder / "laid out", (12, 10))
    (folder / "laid out/train").rename(folder / "photos")  # ten images in each of two classes
    done = call("init", "new", "--data", "photos", "--model", "resnet8")
    assert done.exit_code == 0, done.output
    params = load_params("new/params.yaml")
    assert params.dataset.test_fraction == 0.25
    assert params.grid.batch_sizes == (4,)
    monkeypatch.chdir("new")
    prepared = call("prepare")
    assert prepared.exit_code == 0, prepared.output
    assert "13 train, 2 validation, 5 test images" in prepared.output
