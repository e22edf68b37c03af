"""Damaged and hostile files: read as what they say or refused in one line; never anything else."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from smallbatch import durable
from smallbatch.cli.main import main
from smallbatch.config.params import load_params
from smallbatch.data.image_folder import open_image_folder
from smallbatch.data.parquet import open_parquet
from smallbatch.engines import loop
from smallbatch.errors import UserError
from smallbatch.records import columns as results
from smallbatch.records import files
from smallbatch.records.checkpoints import Checkpoints
from smallbatch.records.schema import Clock
from tests.data.conftest import encode, noise
from tests.tracking.conftest import Columns, initialised_database

ROOT = Path(__file__).parents[1]
__all__ = ["initialised_database"]  # a fixture
CASES = 1000

cases = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# One damage: where (as a fraction of the file), how many bytes go, and what comes in their place.
damages = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=3
)


def damaged(content: bytes, damage: list[tuple[float, int, bytes]]) -> bytes:
    for where, length, replacement in damage:
        start = int(where * len(content))
        content = content[:start] + replacement + content[start + length :]
    return content


def refused(action: Callable[[], Any]) -> Any:
    """What an action returns; None where it refuses in one line, as the CLI shows it."""
    try:
        return action()
    except UserError as error:
        message = str(error)
        assert message
        assert len(message) < 2000
        message.encode()  # a terminal can show it
        return None


SNIPPETS = st.sampled_from(
    [
        b"*a",
        b"&a ",
        b"{",
        b"[",
        b"]",
        b"- ",
        b": ",
        b"\n  ",
        b"!!python/object:os.system x",
        b"\t",
        b"!!set {a}",
        b"!!binary aGk=",
        b"0x" + b"f" * 5000,
        b"9" * 5000,
        b"2^99999",
        b"2**-9999",
        b".nan",
        b"-.inf",
        b"1e400",
        b"null",
        b"true",
        b"2020-01-01",
        b"../../x",
        b"/etc",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"'",
        b'"',
        b"#",
        b"<<: ",
        b"%YAML 9.9\n",
        b"---\n",
        b"? ",
    ]
)


@cases
@given(
    where=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), SNIPPETS), max_size=2),
    noise=st.none() | damages,
)
def test_params(tmp_path_factory: pytest.TempPathFactory, where: Any, noise: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    text = b"\n".join(
        line for line in (ROOT / "params.yaml").read_bytes().splitlines() if line[:1] != b"#"
    )
    path.write_bytes(damaged(damaged(text, where), noise or []))
    params = refused(lambda: load_params(path))
    if params is None:
        return
    raw: Any = YAML(typ="safe").load(path.read_text())
    assert set(raw) <= set(type(params).model_fields)
    for name in params.studies:
        assert name.replace("-", "").replace("_", "").isalnum()
    for section in ("dataset", "grid", *(("compute",) if "compute" in raw else ())):
        for key, value in raw[section].items():
            if isinstance(value, str | int | float) and key != "base_lrs":
                assert getattr(getattr(params, section), key) == value
    for name, study in raw["studies"].items():
        for key, value in study.items():
            if isinstance(value, str | int | float):
                assert getattr(params.studies[name], key) == value


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(97 + i)}: &{chr(97 + i)} [{','.join(['*' + chr(96 + i)] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize("key", ["dataset", "grid", "studies", "compute", "dataset: {name"])
def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path, key: str) -> None:
    """9^12 items once they are written out."""
    path = tmp_path / "params.yaml"
    end = "}" if "{" in key else ""
    path.write_text(f"{BOMB}{key}: *l{end}\n")
    started = time.monotonic()
    done = CliRunner().invoke(main, ["prepare", "--params", str(path)])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    images = [encode(noise(i, 4, 4, 3)) for i in range(6)]
    table = pa.table({"img": images, "label": [0, 1] * 3})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-0.parquet", write_page_checksum=True)
    return folder


@cases
@given(damage=damages)
def test_parquet(parquet: Path, damage: Any) -> None:
    intact = (parquet / "test-0.parquet").read_bytes()
    path = parquet / "train-0.parquet"
    path.write_bytes(damaged(intact, damage))

    def read() -> tuple[list[int], bytes]:
        train = open_parquet(parquet, "img", "label", None).train
        return train.labels.tolist(), train.read(np.arange(len(train.labels))).tobytes()

    found = refused(read)
    if found is not None and path.read_bytes() != intact:
        path.write_bytes(intact)
        assert found == read()  # the damage was in what nobody reads


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png"])
def test_paths_in_parquet_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encode(noise(0, 4, 4, 3)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": name}] * 2, type=image)
    for split in ("train", "test"):
        pq.write_table(pa.table({"img": rows, "label": [0, 1]}), folder / f"{split}-0.parquet")
    with pytest.raises(UserError, match="leads outside"):
        open_parquet(folder, "img", "label", None).train.read(np.arange(2))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(encode(noise(label, 5, 5, 3)))
    return folder


@cases
@given(
    damage=damages,
    name=st.text(min_size=1, max_size=12).filter(lambda it: it not in (".", "..")),
    suffix=st.sampled_from(["", ".png", ".jpg", ".webp", ".PNG", ".txt"]),
)
def test_image_folders(images: Path, damage: Any, name: str, suffix: str) -> None:
    intact = (images / "test/ant/0.png").read_bytes()
    folder = images / "train/ant"
    shutil.rmtree(folder)
    folder.mkdir()
    try:
        (folder / f"{name}{suffix}").write_bytes(damaged(intact, damage))
    except (OSError, ValueError):  # no name of a file
        (folder / "0.png").write_bytes(damaged(intact, damage))

    def read() -> bytes:
        train = open_image_folder(images, None).train
        return train.read(np.arange(len(train.labels))).tobytes()

    found = refused(read)
    if found is not None:
        assert found[:75] == noise(0, 5, 5, 3).transpose(2, 0, 1).tobytes()


STATE = {"theta": torch.arange(40.0), "statistic": torch.tensor([1, 2])}
CONTENT = {"runs": ["a"], "update": 3, "started": "now", "seconds": 1.5, "content": {"rows": []}}
RESULT = loop.RunResult("finished", None, [{"updates": 3}], {}, 40, STATE)
CLOCK = Clock(started="2026-01-02", ended="2026-01-03", seconds=1.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Made once: each is waited for until the disk has it."""
    path = tmp_path_factory.mktemp("intact") / "checkpoint"
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    durable.seal(path, STATE, CONTENT, f"{folder.parent.name}/{folder.name}")
    return path.read_bytes()


@cases
@given(damage=damages, sealed_again=st.booleans())
def test_checkpoints(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: bytes, damage: Any, sealed_again: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / "000000000003.checkpoint"
    intact = checkpoint
    content = damaged(intact, damage)
    if sealed_again:  # by someone who knows how
        body = damaged(intact[32:], damage)
        content = hashlib.sha256(body).digest() + body
    path.write_bytes(content)
    saved = Checkpoints(folder, 60, lambda: False).saved
    if saved is not None and not sealed_again:
        assert content == intact
        assert torch.equal(saved.tensors["theta"], STATE["theta"])
    assert saved is None or saved.runs
    assert (saved is None) == (not path.exists())
    files.save_record(folder, RESULT, CLOCK, "code")
    whole = (folder / "record").read_bytes()
    (folder / "record").write_bytes(damaged(whole, damage))
    kept = files.load_record(folder, "code")
    assert (kept is not None) == (damaged(whole, damage) == whole)


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trap = pickle.dumps(Trap())
    legacy = io.BytesIO()
    torch.save({"theta": Trap()}, legacy)
    for data in (trap, legacy.getvalue()):
        for content in (data, hashlib.sha256(data).digest() + data):
            (tmp_path / "1.checkpoint").write_bytes(content)
            assert Checkpoints(tmp_path, 60, lambda: False).saved is None
    array = np.array([Trap()], dtype=object)
    np.save(tmp_path / "train_images.npy", array, allow_pickle=True)
    from smallbatch.data.prepared import _load_array

    with pytest.raises(UserError, match="damaged"):
        _load_array(tmp_path / "train_images.npy", np.dtype(np.uint8), (1,))
    assert not (tmp_path / "sprung").exists()


def test_archives_cannot_write_outside_their_folder(tmp_path: Path) -> None:
    """Only an archive with the published checksum is unpacked: any other is left alone."""
    from smallbatch.data.cifar import open_cifar

    folder = tmp_path / "raw"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/none")
        with pytest.raises(UserError, match="cannot download"):
            open_cifar("cifar10", folder, None)
    assert not list(tmp_path.rglob("escaped"))
    assert not list(tmp_path.parent.glob("escaped"))


@pytest.fixture(scope="module")
def column(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = Columns(tmp_path_factory.mktemp("column") / "models")
    return columns.write(8, diverged=(2.0**-3,))


HOSTILE = st.sampled_from(
    [
        b"null",
        b"1e999",
        b"NaN",
        b"-1",
        b'"../../x"',
        b'""',
        b"[]",
        b"{}",
        b"[" * 5000,
        b"true",
        b'"\\ud800"',
        b"9" * 5000,
        b'"\\u0000"',
        b"1.5",
        b'"finished"',
        b'"diverged"',
    ]
)


@cases
@given(
    noise=st.none() | damages,
    key=st.sampled_from(["study", "outcome", "seed", "base_lr", "updates", "runs", "name", "run"]),
    value=HOSTILE,
    swap=st.booleans(),
)
def test_runs_json(
    tmp_path_factory: pytest.TempPathFactory,
    column: Path,
    noise: Any,
    key: str,
    value: bytes,
    swap: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "record"
    folder.mkdir(exist_ok=True)
    content = (column / "runs.json").read_bytes()
    if swap:
        before, mark, after = content.partition(f'"{key}":'.encode())
        end = after.find(b",")
        content = before + mark + value + after[end:]
    (folder / "runs.json").write_bytes(damaged(content, noise or []))
    record = refused(lambda: results.read_record(folder))
    if record is None:
        return
    raw = json.loads((folder / "runs.json").read_bytes())
    assert "/" not in record.study
    assert "/" not in record.dataset.name
    assert (record.study, record.batch_size) == (raw["study"], raw["batch_size"])
    for ours, theirs in zip(record.runs, raw["runs"], strict=True):
        stated = ours.model_dump(exclude_unset=True)
        assert stated == {key: theirs[key] for key in stated}


def told(folder: Path, *words: str) -> None:
    """A command works or refuses in one line."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(main, words)
    finally:
        os.chdir(before)
    assert done.exit_code in (0, 2), (done.output, done.exception)
    assert "Traceback" not in done.output
    if done.exit_code == 2:
        assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(("command", "examples"), [("evaluate", 60), ("sync", 60), ("report", 5)])
def test_damaged_results_through_the_command_line(
    tmp_path: Path,
    column: Path,
    initialised_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    examples: int,
) -> None:
    files = ["runs.json", "history.parquet", "timing.json", "weights.safetensors"]
    intact, numbers = tmp_path / "intact", itertools.count()
    shutil.copytree(column, intact / "models/digits/study/m8")
    told(intact, "evaluate")

    @settings(cases, max_examples=examples)
    @given(damage=damages, name=st.sampled_from(files), value=st.none() | HOSTILE)
    def try_out(damage: Any, name: str, value: bytes | None) -> None:
        folder = tmp_path / str(next(numbers))
        shutil.copytree(intact, folder)
        shutil.copy(initialised_database, folder / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        path = folder / "models/digits/study/m8" / name
        content = path.read_bytes()
        if value is not None and name.endswith(".json"):  # one value of the file instead
            starts = [found.end() for found in re.finditer(rb": ", content)]
            start = starts[int(damage[0][0] * (len(starts) - 1))]
            end = re.compile(rb"[,}\]]").search(content, start)
            path.write_bytes(content[:start] + value + content[end.start() if end else start :])
        else:
            path.write_bytes(damaged(content, damage))
        told(folder, command)
        shutil.rmtree(folder)

    try_out()


def test_damaged_params_through_the_command_line(tmp_path: Path) -> None:
    text = (
        b"dataset: {name: digits, source: digits, subset: 60, test_subset: 40}\n"
        b"grid: {studies: [a], batch_sizes: [4], base_lrs: [2^-6], seeds: 1}\n"
        b"studies:\n  a: {model: resnet8, norm: none, epochs: 1, weight_decay: 0}\n"
    )

    @settings(cases, max_examples=40)
    @given(damage=damages)
    def try_out(damage: Any) -> None:
        (tmp_path / "params.yaml").write_bytes(damaged(text, damage))
        told(tmp_path, "prepare")

    try_out()


def test_runs_json_and_history_must_agree(column: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m8"
    record = json.loads((column / "runs.json").read_text())
    for change in (
        lambda runs: runs[0].update(base_lr=0.25),
        lambda runs: runs[0].update(seed=7),
        lambda runs: runs[0].update(outcome="diverged"),
        lambda runs: runs.append(runs[0]),
        lambda runs: runs.pop(),
    ):
        shutil.copytree(column, folder, dirs_exist_ok=True)
        changed = json.loads(json.dumps(record))
        change(changed["runs"])
        (folder / "runs.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"does not hold the same runs as runs\.json"):
            results.read_column(folder)
