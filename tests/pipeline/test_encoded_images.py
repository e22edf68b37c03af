"""Images that are kept encoded, as the commands and DVC prepare them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from smallbatch.cli.main import main
from smallbatch.config.params import parse_dataset
from smallbatch.data.encoded import load_encoded
from smallbatch.pipeline.single import prepared_for_itself
from tests.data.conftest import encode, noise
from tests.project import Project

PARAMS = """
dataset: {name: own, source: image_folder, path: img, image_size: 32, storage: encoded}
grid: {studies: [a], dependent: [], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}
advise: {studies: []}
studies:
  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}
"""


def draw(root: Path) -> None:
    """Two classes of six images in both splits."""
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = root / "img" / split / name
            folder.mkdir(parents=True)
            for row in range(6):
                seed = sum(f"{split}{name}".encode()) + row * 10_000
                (folder / f"{row}.JPEG").write_bytes(encode(noise(seed, 36 + row, 40, 3), "JPEG"))


def test_prepare_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    done = CliRunner().invoke(main, ["prepare"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stdout == (
        "data/prepared/own: 12 train, 12 test images of a short side up to 37, for crops 3×32×32, "
        "2 classes\n"
    )
    assert done.stderr.splitlines()[0] == "own: 24 images, kept encoded"
    assert len(load_encoded(Path("data/prepared/own")).train) == 12
    done = CliRunner().invoke(main, ["measure"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stderr == "own: no variance of updates is measured: the images are kept encoded\n"
    (header,) = Path("reports/measurements/own.csv").read_text().splitlines()
    assert header.endswith(",variance")
    header, *rows = Path("reports/measurements/memory/own.csv").read_text().splitlines()
    assert header.endswith(",bytes")
    assert any(",a,resnet8,none,4,loop,cpu," in row for row in rows)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([("[4]", "[4, 16]")], "params.yaml: grid.batch_sizes: found 16, allowed: at most the 12"),
        ([("[4]", "[4, 12]"), ("encoded}", "encoded, validation_fraction: 0.5}")],
         "params.yaml: grid.batch_sizes: found 12, allowed: at most the 6"),
        ([("decay: 0", "decay: 0, input: timm")],
         "studies.a.input: found timm with model 'resnet8', allowed: with models of timm"),
        ([("resnet8, norm: none", "test_resnet, norm: batch, input: timm"), ("encoded", "auto")],
         "studies.a.input: found timm with images that are prepared as pixels"),
        ([("storage: encoded", "short_side: 40")], "dataset.short_side: found 40 with images that"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[tuple[str, str]], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    for file in tmp_path.glob("img/*/*/*"):
        file.write_bytes(b"none")
    text = PARAMS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)
    done = CliRunner().invoke(main, ["prepare"])
    assert done.exit_code == 2
    assert line in done.stderr.splitlines()[-1]
    assert not Path("data").exists()


def test_single_runs_prepare_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    raw = {"name": "own", "source": "image_folder", "path": "img", "image_size": 32,
           "storage": "encoded"}  # fmt: skip
    config = parse_dataset(raw, "params.yaml")
    folder = prepared_for_itself(config, print)
    before = (folder / "index.npy").stat()
    assert prepared_for_itself(config, print) == folder
    assert (folder / "index.npy").stat() == before
    file = tmp_path / "img/train/ant/0.JPEG"
    file.write_bytes(encode(noise(5, 9, 9, 3), "JPEG"))
    prepared_for_itself(config, print)
    assert load_encoded(folder).train.read(0) == file.read_bytes()


def test_single_runs_see_other_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is not among the images, with as many of each class as before."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    for name in ("ant", "bee"):
        for file in (tmp_path / "img/test" / name).iterdir():
            file.rename(tmp_path / "img/test" / f"{name}{file.name}")
        (tmp_path / "img/test" / name).rmdir()
    raw = {"name": "own", "source": "image_folder", "path": "img", "image_size": 32,
           "storage": "encoded", "test_labels": "../labels.txt"}  # fmt: skip
    config = parse_dataset(raw, "params.yaml")
    Path("labels.txt").write_text("ant\nbee\n" * 6)
    first = load_encoded(prepared_for_itself(config, print)).test.read(0)
    Path("labels.txt").write_text("bee\nant\n" * 6)
    assert load_encoded(prepared_for_itself(config, print)).test.read(0) != first


@pytest.mark.slow
def test_dvc_prepares_them(tmp_path: Path) -> None:
    project = Project(tmp_path, PARAMS)
    draw(tmp_path)
    said = project.call("dvc", "repro", "prepare")
    assert "data/prepared/own: 12 train" in said
    first = load_encoded(tmp_path / "data/prepared/own").meta.fingerprint
    assert "didn't change" in project.call("dvc", "repro", "prepare")
    said = project.call("dvc", "repro", "--force", "prepare")
    assert "own: settings and files unchanged, so what is prepared is kept" in said
    assert "data/prepared/own: 12 train" in said
    assert "up to date" in project.call("dvc", "status", "prepare")
    (tmp_path / "params.yaml").write_text(PARAMS.replace("encoded}", "encoded, short_side: 33}"))
    project.call("dvc", "repro", "prepare")
    second = load_encoded(tmp_path / "data/prepared/own").meta
    assert (second.fingerprint == first, second.short_side) == (False, 33)
