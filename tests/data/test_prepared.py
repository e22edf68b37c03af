import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallbatch.config.params import DatasetConfig
from smallbatch.data import prepared, scratch
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import Dataset, Meta, fingerprint, load_prepared, write_prepared
from smallbatch.data.scratch import locked
from smallbatch.errors import UserError
from tests.users import as_nobody, common_folder, needs_two_users


def make(validation: bool = False, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    counts = {"train": 4, "validation": 2 if validation else 0, "test": 3}
    arrays: dict[str, Any] = {}
    for split, count in counts.items():
        if count:
            shape = (count, 1, 2, 3)
            arrays[f"{split}_images"] = generator.integers(0, 256, shape, dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count, dtype=np.int64) % 2
    classes = ("ä", "b")
    pixels = arrays["train_images"] / 255
    statistics = ((float(pixels.mean()),), (float(pixels.std()),))
    meta = Meta(
        "toy", "digits", classes, 1, 2, 3, *statistics, counts, fingerprint(classes, arrays)
    )
    return Dataset(meta=meta, **arrays)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("validation", [False, True])
def test_what_is_written_is_read(tmp_path: Path, validation: bool) -> None:
    dataset = make(validation)
    write_prepared(dataset, tmp_path / "prepared/toy")
    read = load_prepared(tmp_path / "prepared/toy")
    assert read.meta == dataset.meta
    assert read.arrays().keys() == dataset.arrays().keys()
    for name, array in dataset.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)
        assert read.arrays()[name].dtype == array.dtype
        assert read.arrays()[name].flags.writeable
    assert (read.validation_images is None) == (not validation)


def test_files_are_the_documented_ones(tmp_path: Path) -> None:
    write_prepared(make(validation=True), tmp_path / "toy")
    assert sorted(content(tmp_path / "toy")) == [
        "meta.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
        "validation_images.npy",
        "validation_labels.npy",
    ]
    meta = json.loads((tmp_path / "toy/meta.json").read_text())
    later = {"short_side", "crop_ratio", "interpolation"}
    named = {field.name for field in dataclasses.fields(Meta)} - later
    assert list(meta) == sorted(named)  # a key that came later is there only where it is set
    assert meta["classes"] == ["ä", "b"]


def test_replacing_is_complete_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_prepared(make(validation=True), tmp_path / "toy")
    (tmp_path / "toy/meta.json.a1b2c3.part").write_text("x")
    write_prepared(make(seed=1), tmp_path / "toy")
    assert "meta.json.a1b2c3.part" not in content(tmp_path / "toy")
    assert "validation_images.npy" not in content(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_two_that_write_one_data_set_replace_it_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make(seed=1), make(seed=2)
    write_prepared(old, tmp_path / "toy")
    written, go_on, write = threading.Event(), threading.Event(), prepared._write_files

    def write_and_wait(dataset: Dataset, directory: Path, settings: str | None) -> None:
        write(dataset, directory, settings)
        written.set()
        go_on.wait(10)

    monkeypatch.setattr(prepared, "_write_files", write_and_wait)
    second = threading.Thread(target=write_prepared, args=(new, tmp_path / "toy"))
    second.start()
    assert written.wait(10)
    with locked(tmp_path):  # as the first, while it renames
        go_on.set()
        second.join(0.2)
        assert second.is_alive()
        assert load_prepared(tmp_path / "toy").meta == old.meta
    second.join(10)
    assert load_prepared(tmp_path / "toy").meta == new.meta
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_lock_that_is_held_is_waited_for_with_a_line_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scratch, "WAIT_S", 0.3)
    monkeypatch.setattr(scratch, "_QUIET_S", 0.1)
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=r"cannot write it \(locked for over"),
    ):
        write_prepared(make(), tmp_path / "toy")
    assert capsys.readouterr().err == f"{tmp_path}/.lock: waiting for another process\n"
    (tmp_path / ".lock").touch()  # as a killed process leaves it
    write_prepared(make(), tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_those_who_want_a_lock_at_once_have_it_one_after_the_other(tmp_path: Path) -> None:
    inside, most = list[int](), list[int]()

    def take() -> None:
        for _ in range(10):
            with locked(tmp_path):
                inside.append(1)
                time.sleep(0.002)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 30
    assert not list(tmp_path.iterdir())


@needs_two_users
def test_another_user_who_may_read_a_project_does_not_hold_it_up() -> None:
    with common_folder() as folder:
        folder.chmod(0o755)
        write_prepared(make(seed=1), folder / "toy")
        marks = folder / "marks"
        marks.mkdir()
        marks.chmod(0o777)
        as_nobody(
            f"(flock 9; : > locked; exec sleep 6) 9< {folder} > /dev/null 2>&1 &\n"
            "while ! [ -e locked ]; do sleep 0.05; done",
            marks,
        )
        began = time.monotonic()
        write_prepared(make(seed=2), folder / "toy")
        with locked(folder):
            as_nobody(f"ls {folder}/.lock; ! flock -n {folder}/.lock true", marks)
        assert time.monotonic() - began < 5


def test_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_prepared(make(), tmp_path / "toy")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "toy")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["save", "fsync", "rename"])
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, at: str, existing: bool
) -> None:
    directory = tmp_path / "data/prepared/toy"
    if existing:
        write_prepared(make(seed=1), directory)
    before = content(directory) if existing else {}

    def fail(*_: object) -> None:
        raise error

    original_rename = Path.rename

    def fail_to_place(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise error
        return original_rename(self, target)

    if at == "rename":
        monkeypatch.setattr(Path, "rename", fail_to_place)
    else:
        monkeypatch.setattr(np if at == "save" else os, at, fail)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        write_prepared(make(), directory)
    if existing:
        assert content(directory) == before
        assert [path.name for path in directory.parent.iterdir()] == ["toy"]
    else:
        assert list(tmp_path.iterdir()) == []


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("x")
    with pytest.raises(UserError, match=r"toy: cannot write it"):
        write_prepared(make(), tmp_path / "prepared/toy")


def test_fingerprint_covers_content_and_only_content() -> None:
    dataset = make()
    arrays = dataset.arrays()
    base = fingerprint(("a", "b"), arrays)
    assert base == fingerprint(("a", "b"), dict(reversed(arrays.items())))
    swapped = np.asfortranarray(arrays["train_images"])
    assert base == fingerprint(("a", "b"), arrays | {"train_images": swapped})
    for changed in (
        arrays | {"train_images": arrays["train_images"] ^ 1},
        arrays | {"train_labels": arrays["train_labels"][::-1]},
        arrays | {"train_images": arrays["train_images"].reshape(4, 1, 3, 2)},
        {name.replace("train", "other"): array for name, array in arrays.items()},
    ):
        assert fingerprint(("a", "b"), changed) != base
    assert fingerprint(("a", "c"), arrays) != base
    assert fingerprint(("ab", ""), arrays) != fingerprint(("a", "b"), arrays)


def test_absent_data_set_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: found no prepared data set.*smallbatch prepare"):
        load_prepared(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train_images.npy", None, r"train_images\.npy: missing"),
        ("test_labels.npy", np.zeros(4, np.int64), r"test_labels\.npy: found int64 \(4,\)"),
        ("test_labels.npy", np.zeros(3, np.int32), r"test_labels\.npy: found int32"),
        ("train_images.npy", np.zeros((4, 1, 2, 3), np.uint8), r"toy: .*fingerprint"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    write_prepared(make(), tmp_path / "toy")
    (tmp_path / "toy" / name).unlink()
    if value is not None:
        np.save(tmp_path / "toy" / name, value)
    with pytest.raises(UserError, match=message):
        load_prepared(tmp_path / "toy")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("counts", {"train": 4}, r"meta\.json: counts: found \['train'\]"),
        ("counts", {"train": "4", "validation": 0, "test": 3}, r"meta\.json: counts\.train"),
        ("channels", "1", r"meta\.json: channels"),
        ("mean", 0.5, r"meta\.json: mean"),
        ("fingerprint", "0" * 64, r"fingerprint"),
    ],
)
def test_wrong_description(tmp_path: Path, key: str, value: Any, message: str) -> None:
    write_prepared(make(), tmp_path / "toy")
    path = tmp_path / "toy/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message):
        load_prepared(tmp_path / "toy")


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_noticed(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "toy").exists():
        write_prepared(make(), tmp_path / "toy")
    names = ["meta.json", "train_images.npy", "test_labels.npy"]
    path = tmp_path / "toy" / data.draw(st.sampled_from(names))
    intact = path.read_bytes()
    damaged = bytearray(intact)
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    path.write_bytes(damaged[:cut] if data.draw(st.booleans()) else damaged)
    message = ""
    try:
        read = load_prepared(tmp_path / "toy")
    except UserError as error:
        message = str(error)
    else:
        for name, array in make().arrays().items():
            np.testing.assert_array_equal(read.arrays()[name], array)
    finally:
        path.write_bytes(intact)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"), [("mean", [0.05]), ("std", [5.0]), ("mean", []), ("std", [0.1, 0.1])]
)
def test_statistics_of_other_images_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    write_prepared(make(), tmp_path / "toy")
    path = tmp_path / "toy/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=r"toy: .*mean and std; prepare it again"):
        load_prepared(tmp_path / "toy")


def test_importing_the_reader_stays_light() -> None:
    """Workers read data sets: no Parquet, image, scikit-learn or torch import may ride along."""
    code = (
        "import sys, smallbatch.data.prepared; "
        "print(sorted({'pyarrow', 'PIL', 'sklearn', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("name", ["meta.json", "train_images.npy", "test_labels.npy"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str) -> None:
    prepare(DatasetConfig(name="toy", source="digits", subset=20), tmp_path)
    path = tmp_path / "prepared/toy" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name}: .*found a FIFO, allowed: a regular file"):
        load_prepared(path.parent)
