"""Damaged and hostile files: read as what they say or refused in one line; never anything else."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.fuzz import targets
from benchmarks.fuzz.runner import Target, run_cases
from click.testing import CliRunner
from ruamel.yaml import YAML

from smallbatch.cli.main import main
from smallbatch.data.parquet import open_parquet
from smallbatch.errors import UserError
from smallbatch.records import columns as results
from smallbatch.records.checkpoints import Checkpoints
from tests.data.conftest import encode, noise
from tests.tracking.conftest import Columns

CASES = {
    "params, plan": 900, "params, prepare": 250, "params, train": 200, "train options": 250,
    "run options": 300, "bench options": 200, "profiles": 20, "profile options": 60,
    "prepared data, measure": 100, "image folders, prepare": 200, "Parquet, prepare": 200,
    "records, evaluate": 60, "claims": 500, "checkpoints and records": 400, "locks": 200,
    "ui and URIs": 20, "sync and URIs": 5, "caches, sync": 3, "records, sync": 6,
    "records and tables, report": 2,
}  # fmt: skip
"""Of each target; `python -m benchmarks.fuzz` has more."""


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(autouse=True, scope="module")
def warm(monkeypatch_module: pytest.MonkeyPatch) -> None:
    """Neither the first case nor one on busy cores may count as one that hangs."""
    monkeypatch_module.setattr("benchmarks.fuzz.runner.LIMIT_S", 60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets.warm_up()


@pytest.mark.filterwarnings("ignore")  # of libraries, of what is damaged
@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda it: it.name)
def test_whatever_is_damaged_is_read_as_what_it_says_or_refused_in_one_line(
    target: Target, tmp_path: Path
) -> None:
    tally = run_cases(target, range(CASES[target.name]), 0, tmp_path.resolve())
    assert not tally.failures
    assert tally.codes.total() == CASES[target.name]


def _fails(*_: object) -> None:
    raise KeyError("x")


def _shows(*_: object) -> None:
    print("one\ntwo", file=sys.stderr)
    raise UserError("three")


def _waits(*_: object) -> None:
    time.sleep(2)


def _is_deaf(path: Path) -> Any:
    raw = YAML(typ="safe").load(path.read_text())
    return raw | {"grid": raw["grid"] | {"seeds": 17}}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("parse_params", _fails, "exit"),
        ("parse_params", _shows, "exit"),
        ("parse_params", _waits, "hang"),
        ("yaml_file.read", _is_deaf, "silent"),
    ],
)
def test_the_fuzzer_finds_what_is_wrong(
    name: str, value: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = next(it for it in targets.TARGETS if it.name == "params, prepare")
    monkeypatch.setattr(f"smallbatch.config.params.{name}", value)
    monkeypatch.setattr("benchmarks.fuzz.runner.LIMIT_S", 0.2)
    scratch = tmp_path.resolve()
    (scratch / "intact").mkdir()
    (scratch / "intact/params.yaml").write_text(targets.PARAMS)
    tally = run_cases(dataclasses.replace(target, draw=lambda _: [("word",)]), [0], 0, scratch)
    assert [it["kind"] for it in tally.failures] == [kind]


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


def test_runs_json_and_history_must_agree(tmp_path: Path) -> None:
    column = Columns(tmp_path / "models").write(8, diverged=(2.0**-3,))
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
