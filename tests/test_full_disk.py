"""A disk that is full or read-only: a clear error, earlier results intact, and then it goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smallbatch.cli.main import main
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.errors import UserError
from smallbatch.protocol.column import plan_column
from tests.columns import place_and_train
from tests.noise import make_dataset

LRS = (2.0**-9, 2.0**-7)


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Path]:
    """A disk of 4 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, spare: int = 0) -> Path:
    """Take all space but some bytes."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - spare))
    return filler


def train(data: Dataset, root: Path, seeds: int) -> Path:
    settings = StudyConfig(model="resnet8", norm="none", epochs=2, weight_decay=1e-4)
    column = plan_column("s", settings, data, batch_size=4, base_lrs=LRS, seeds=range(seeds))
    out = root / "models" / "m4"
    compute = ComputeConfig(device="cpu", engine="loop", workers=2, checkpoint_seconds=0.01)
    place_and_train(column, out, compute=compute, work=root / "work")
    return out


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in paths if path.name not in ("filler", "timing.json", "system.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_training_on_a_full_disk_fails_clearly_and_goes_on_later(
    tmp_path: Path, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset()
    out = train(data, disk, seeds=1)
    before = files(disk / "models")
    filler = fill(disk, spare=100_000)  # less than the weights of one run
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        train(data, disk, seeds=2)
    assert files(disk / "models") == before
    assert not list(disk.rglob("*.part"))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    filler.unlink()
    train(data, disk, seeds=2)
    again = train(data, tmp_path / "twin", seeds=2)
    assert files(out) == files(again)


def test_space_for_the_runs_but_not_for_their_column(tmp_path: Path, disk: Path) -> None:
    data = make_dataset()
    shutil.copytree(train(data, tmp_path / "twin", seeds=1), disk / "models" / "m4")
    shutil.copytree(tmp_path / "twin" / "work", disk / "work")
    before = files(disk / "models")
    filler = fill(disk, spare=200_000)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(data, disk, seeds=1)
    assert str(disk / "models") in str(caught.value.filename)
    assert files(disk / "models") == before
    assert not list(disk.rglob("*.part"))
    filler.unlink()
    train(data, disk, seeds=1)
    assert files(disk / "models") == before


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.output.splitlines() if " run × " not in line]  # progress
    for part in parts:
        assert part in line


def test_every_stage_says_that_the_disk_is_full_or_read_only_and_leaves_its_outputs_whole(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    Path("params.yaml").write_text(
        "dataset: {name: digits, source: digits, subset: 100, test_subset: 50}\n"
        "grid: {studies: [s], batch_sizes: [4], base_lrs: [1], seeds: 1}\n"
        "studies: {s: {model: resnet8, epochs: 1, weight_decay: 0}}\n"
    )
    assert call("prepare").exit_code == 0
    train(make_dataset(), disk, seeds=1)
    assert call("evaluate").exit_code == 0
    before = files(disk)

    filler = fill(disk)
    one_line(call("prepare"), "data/prepared/digits", "No space left on device")
    one_line(call("evaluate"), "reports/evaluation", "No space left on device")
    one_line(call("report"), "reports/", "No space left on device")
    left = {name for name in files(disk) if name not in before}
    assert {name: data for name, data in files(disk).items() if name in before} == before
    assert not left, left  # nothing half-written, under whatever name
    filler.unlink()

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for words in (["prepare"], ["evaluate"], ["report"], ["train", "s", "4"]):
        one_line(call(*words), "Read-only file system")
    assert files(disk) == before
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert call("evaluate").exit_code == 0
