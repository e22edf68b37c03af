"""What is fuzzed: each command with the files that it reads, and what it must make of them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from benchmarks.fuzz import damage
from benchmarks.fuzz.damage import Edit
from benchmarks.fuzz.runner import Target, call
from smallbatch.config.profiles import FOLDER

ROOT = Path(__file__).parents[2]
PARAMS = """\
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid:
  studies: [a]
  dependent: []
  batch_sizes: [4]
  base_lrs: [2^-6, 0.5]
  seeds: 1
studies:
  a:
    model: resnet8
    norm: none
    epochs: 1
    weight_decay: 0
    figure: "2"
  b: {model: resnet8, norm: ghost, bn_batch_size: 2, epochs: 2, weight_decay: 0.0001}
compute: {device: cpu, engine: loop, workers: 1}
"""
COLUMN = Path("models/digits/a/m4")
CHUNK, CHECKPOINT, RECORD = "column/chunk", "000000000003.checkpoint", "run/record"
WORK, LOCK = "work", "left.lock"


def _own(source: str, path: str) -> str:
    return PARAMS.replace(
        "name: digits, source: digits, subset: 60, test_subset: 40",
        f"name: own, source: {source}, path: {path}",
    )


# Intact files


def params(folder: Path) -> None:
    """A params file of a tiny study."""
    (folder / "params.yaml").write_text(PARAMS)


def profiles(folder: Path) -> None:
    """The profiles, and the default params."""
    shutil.copytree(FOLDER, folder / "profiles")
    shutil.copy(ROOT / "params.yaml", folder)


def prepared(folder: Path) -> None:
    """A prepared data set."""
    params(folder)
    _must("prepare")


def trained(folder: Path) -> None:
    """A column of two runs, of which one diverges if it can, and their evaluation."""
    from smallbatch.config.params import ComputeConfig, load_params
    from smallbatch.data.prepared import load_prepared
    from smallbatch.execution.column import train_column
    from smallbatch.placement.placement import place
    from smallbatch.protocol.column import plan_column

    prepared(folder)
    data = load_prepared(Path("data/prepared/digits"))
    study = load_params().studies["a"]
    column = plan_column("a", study, data, batch_size=4, base_lrs=(2.0**-6, 2.0**20), seeds=(0,))
    compute = ComputeConfig(device="cpu", engine="loop", workers=1)
    placement = place(column, compute)
    train_column(column, folder / COLUMN, placement=placement, checkpoint_seconds=60)
    for name in (".smallbatch", "data"):
        shutil.rmtree(folder / name, ignore_errors=True)


def evaluated(folder: Path) -> None:
    """The same column, and its tables."""
    trained(folder)
    _must("evaluate")


def tracked(folder: Path) -> None:
    """The same, and an empty database of MLflow: making its tables takes a second."""
    trained(folder)
    from smallbatch.tracking.store import open_store

    open_store(f"sqlite:///{folder}/original.db")
    shutil.copy(folder / "original.db", folder / "mlflow.db")
    for left in folder.glob("original.db*"):
        left.unlink()


def claims(folder: Path) -> None:
    """Some verdicts."""
    found = json.loads((ROOT / "results/paper-cifar10-small/claims.json").read_text())
    found["claims"] = found["claims"][:3]
    (folder / "claims.json").write_text(json.dumps(found, indent=1))


def images(folder: Path) -> None:
    """A folder of images."""
    (folder / "params.yaml").write_text(_own("image_folder", "img"))
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (folder / "img" / split / name).mkdir(parents=True)
            for i in range(4):
                path = folder / f"img/{split}/{name}/{i}.png"
                path.write_bytes(_png(label + 2 * i))


def parquet(folder: Path) -> None:
    """The same images in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "params.yaml").write_text(_own("parquet", "img"))
    (folder / "img").mkdir()
    pictures = [_png(i) for i in range(8)]
    table = pa.table({"img": pictures, "label": [0, 1] * 4})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"img/{split}-0.parquet", write_page_checksum=True)


def checkpoints(folder: Path) -> None:
    """A checkpoint, and a run's record."""
    import torch

    from smallbatch.engines import loop
    from smallbatch.records import files
    from smallbatch.records.checkpoints import Checkpoints, State
    from smallbatch.records.schema import Clock

    weights = {"theta": torch.arange(40.0), "statistic": torch.tensor([1, 2])}
    state = State(("a",), 3, weights, {"rows": []})
    trainer = mock.Mock(state=lambda: state)
    Checkpoints(folder / CHUNK, 0, lambda: False).between(trainer)
    result = loop.RunResult("finished", None, [{"updates": 3}], {}, 40, weights)
    clock = Clock(started="2026-01-02", ended="2026-01-03", seconds=1.5)
    files.save_record(folder / "run", result, clock, "code")


def locks(folder: Path) -> None:
    """The lock of a column, left by a process that ended without a word."""
    from smallbatch.records.lock import one_writer

    with one_writer(folder / WORK, COLUMN) as lock:
        signature = lock.path.read_bytes()
    lock.path.rename(folder / LOCK)
    (folder / LOCK).write_bytes(signature)


@functools.cache
def _png(seed: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(_noise(seed)).save(stream, "PNG")
    return stream.getvalue()


def _noise(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)


def _must(command: str) -> None:
    code, said = call([command])
    if code:
        raise RuntimeError(f"{command}: {said}")


# Draws


def in_file(*files: str) -> Callable[[Random], list[Edit]]:
    """Damages of one of the files: of its values, of its bytes, or of both."""

    def draw(random: Random) -> list[Edit]:
        file = random.choice(files)
        edits: list[Edit] = []
        if file == "params.yaml" and random.random() < 0.4:
            return damage.settings(random, file)
        if file.endswith((".yaml", ".json")) and random.random() < 0.8:
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                text = damage.value(random, file.endswith(".json"))
                edits.append(("value", file, random.random(), text))
        if not edits or random.random() < 0.2:
            edits += damage.bytes_of(random, file)
        return edits

    return draw


def in_words(
    options: Mapping[str, Sequence[str]], arguments: Sequence[Sequence[str]] = (), always: int = 0
) -> Callable[[Random], list[Edit]]:
    """Odd values of some options and arguments; the first ``always`` options are always there."""

    def draw(random: Random) -> list[Edit]:
        edits: list[Edit] = []
        for values in arguments:
            usual = random.random() < 0.6
            edits.append(("word", values[0] if usual else random.choice((*values, *_ODD))))
        for number, (option, values) in enumerate(options.items()):
            if number >= always and random.random() < 0.6:
                continue
            usual = number < always and random.random() < 0.7
            text = values[0] if usual else random.choice((*values, random.choice(_ODD)))
            edits.append(("word", option, text))
        if random.random() < 0.05:
            edits.append(("word", random.choice(("--what", "-x", "--", "extra", "\x00", "é"))))
        if random.random() < 0.2:
            edits.append(("variable", "SMALLBATCH_TIME_LIMIT", random.choice(damage.TIMES)))
        return edits

    return draw


_ODD = (*damage.NUMBERS, *damage.TEXTS)


def image_names(random: Random) -> list[Edit]:
    """Damages of an image and of names in its folder."""
    edits = damage.bytes_of(random, "img/train/ant/0.png") if random.random() < 0.8 else []
    if random.random() < 0.6:
        name = "".join(random.choices("ab.é\u0301🦆 -_'\n\\%:\udc80", k=random.randint(1, 9)))
        name += random.choice(("", ".png", ".jpg", ".webp", ".PNG", ".txt", ".gif", ".db"))
        edits.append(("name", "img/train/ant/0.png", name))
    if random.random() < 0.1:
        odd = random.choice(("Bee", "café", "cafe\u0301", ".hidden", "val", "x\ny", "-", " "))
        edits.append(("name", random.choice(("img/train/bee", "img/test/bee", "img/test")), odd))
    return edits


def seals(random: Random) -> list[Edit]:
    """Damages of what is sealed, some sealed again by someone who knows how."""
    file = random.choice((f"{CHUNK}/{CHECKPOINT}", RECORD))
    again: list[Edit] = [("seal", file)] if random.random() < 0.5 else []
    return [*damage.bytes_of(random, file), *again]


def in_lock(random: Random) -> list[Edit]:
    """Damages of what a lock file says, and of its bytes."""
    edits: list[Edit] = []
    if random.random() < 0.6:
        edits.append(("value", LOCK, random.random(), damage.value(random, json=True)))
    if not edits or random.random() < 0.5:
        edits += damage.bytes_of(random, LOCK)
    return edits


def caches(random: Random) -> list[Edit]:
    """Odd folders for the cache, none of them outside the case's but those that nobody can make."""
    return [("variable", "SMALLBATCH_CACHE", random.choice(damage.FOLDERS))]


def uris(random: Random) -> list[Edit]:
    """Odd tracking URIs."""
    uri = random.choice(damage.URIS)
    if random.random() < 0.5:
        place = random.randint(0, len(uri))
        uri = uri[:place] + random.choice("/?#@:&%=[] é\x7f") + uri[place:]
    return [("variable", "MLFLOW_TRACKING_URI", uri.replace("\0", ""))]


# Oracles


def says_its_params(folder: Path) -> str | None:
    """What was accepted is read as another reader of YAML reads it."""
    import warnings

    from ruamel.yaml import YAML

    from smallbatch.config.params import load_params

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw: Any = YAML(typ="safe").load((folder / "params.yaml").read_text(encoding="utf-8"))
    found = load_params(folder / "params.yaml").model_dump()
    if not set(raw) <= set(found):
        return f"keys {set(raw) - set(found)} are left out"
    pairs = [
        (f"{part}.{key}", found[part].get(key), it)
        for part in ("dataset", "grid", "compute")
        for key, it in (raw.get(part) or {}).items()
    ]
    pairs += [(f"{name}.{key}", found["studies"][name].get(key), it)
              for name, study in raw["studies"].items() for key, it in study.items()]  # fmt: skip
    for key, ours, theirs in pairs:
        plain = isinstance(theirs, str | int | float) and not key.endswith("base_lrs")
        if isinstance(ours, float) and type(theirs) is int:
            theirs = float(theirs)  # an integer that a float cannot hold is its nearest one
        if plain and (ours != theirs or isinstance(ours, bool) != isinstance(theirs, bool)):
            return f"{key} is {theirs!r} and read as {ours!r}"
    return None


def keeps_the_images(folder: Path) -> str | None:
    """A picture that is accepted has its pixels, and no other changes."""
    import numpy as np

    from smallbatch.data.prepared import load_prepared

    data = load_prepared(folder / "data/prepared/own")
    inside = {it.tobytes() for it in np.asarray(data.train_images)}
    ours = {_noise(i).transpose(2, 0, 1).tobytes() for i in range(8)}
    odd = len(inside - ours)
    return f"{odd} pictures have other pixels" if odd else None


def keeps_the_records(folder: Path) -> str | None:
    """A record that is accepted says what its file says."""
    from smallbatch.records.columns import read_record

    raw = json.loads((folder / COLUMN / "runs.json").read_bytes())
    record = read_record(folder / COLUMN)
    if (record.study, record.batch_size) != (raw["study"], raw["batch_size"]):
        return "study or batch size is not as in the file"
    for ours, theirs in zip(record.runs, raw["runs"], strict=True):
        stated = ours.model_dump(exclude_unset=True)
        if stated != {key: theirs[key] for key in stated}:
            return f"a run is {theirs} and read as {stated}"
    return None


def keeps_the_profile(folder: Path) -> str | None:
    """A params file that was made from a damaged profile can be used."""
    from smallbatch.config.params import load_params
    from smallbatch.errors import UserError

    try:
        load_params(folder / "params.yaml")
    except UserError as error:
        return str(error)
    return None


def keeps_checkpoints(folder: Path) -> str | None:
    """A damaged checkpoint or record is noticed; no command reads one alone."""
    from smallbatch.records import files
    from smallbatch.records.checkpoints import Checkpoints

    whole = {path: _is_whole(path) for path in (folder / CHUNK / CHECKPOINT, folder / RECORD)}
    saved = Checkpoints(folder / CHUNK, 60, lambda: False).saved
    kept = files.load_record(folder / "run", ["code"])
    for (path, intact), found in zip(whole.items(), (saved, kept), strict=True):
        if found is not None and not intact:
            return f"{path.name} is damaged and used"
    return None


def takes_the_lock(folder: Path) -> str | None:
    """Whatever a lock file says, the lock is taken or waited for, and then given back."""
    from smallbatch.records.checkpoints import column_key
    from smallbatch.records.lock import one_writer

    path = folder / WORK / f"{column_key(folder / WORK, folder / COLUMN)}.lock"
    (folder / LOCK).rename(path)

    def wait() -> None:
        raise _Waits

    try:
        with one_writer(folder / WORK, COLUMN, wait) as lock:
            if lock.token not in path.read_text():
                return "the lock is taken, and its file does not say by whom"
    except _Waits:
        return None
    return "the lock's file still names a holder" if "token" in path.read_text() else None


class _Waits(Exception):  # noqa: N818 - nothing went wrong
    pass


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    return hashlib.sha256(content[32:]).digest() == content[:32]


# Stubs


def _stubbed_training(plan: Callable[[], Any], *_: Any, **more: Any) -> Path:
    """Plans a column as a training does and, instead of the training, writes what it would do."""
    column = plan()
    run, limit = column.runs[0], more["time_limit"]
    if not (0 < run.base_lr < math.inf and 0 < run.lr < 2.0**128 and len(run.hash) == 16):
        raise ArithmeticError(f"a run with base_lr {run.base_lr}")
    if limit is not None and not 0 < limit <= 10_000 * 3600:
        raise ArithmeticError(f"a time limit of {limit}")
    column.updates(run)
    folder = Path("stub")
    folder.mkdir(exist_ok=True)
    asked = {"base_lr": run.base_lr, "seed": run.seed, "batch_size": run.batch_size}
    asked |= {"epochs": run.settings.epochs, "weight_decay": run.settings.weight_decay}
    entry = {"outcome": "diverged", "diverged_at": 1, "updates": 1}
    (folder / "runs.json").write_text(json.dumps({"runs": [entry], "asked": asked}))
    return folder


def _stubbed_variance(*_: Any, **__: Any) -> list[Any]:
    return []


def _stubbed_memory(*_: Any, **__: Any) -> None:
    return None


def _stubbed_plan(*_: Any, **__: Any) -> Any:
    from smallbatch.errors import UserError

    raise UserError("a plan would be made")


def _stubbed_bench(*_: Any, **settings: Any) -> str:
    if not 0 < settings["settings"]["seconds"] < math.inf:
        raise ArithmeticError("seconds")
    return ""


def _stubbed_exec(*_: Any) -> None:
    raise SystemExit(0)


_TRAINING = {
    "smallbatch.pipeline.single.train_and_track": _stubbed_training,
    "smallbatch.pipeline.experiments.train_and_track": _stubbed_training,
}
_PLAN = {"smallbatch.pipeline.experiments.plan_columns": _stubbed_plan}
_MEASURE = {
    "smallbatch.engines.update_variance.measure_study": _stubbed_variance,
    "smallbatch.engines.update_memory.measure_column": _stubbed_memory,
}
_BENCH = {"smallbatch.speed.bench.command.bench": _stubbed_bench}
_PROFILES = {"smallbatch.config.profiles.FOLDER": Path("profiles")}
_UI = {"os.execv": _stubbed_exec}

_SETTLE = {"smallbatch.records.lock.SETTLE_S": 0.0}

_RATES = ("2^-6", *damage.NUMBERS)
_COUNTS = ("4", *damage.NUMBERS)
_SWITCHES = ("auto", "cpu", "cuda")
_RUN = {
    "-m": _COUNTS, "--base-lr": _RATES, "--lr": _RATES, "--epochs": ("1", *damage.NUMBERS),
    "--seed": ("0", *damage.NUMBERS), "--weight-decay": ("0", *damage.NUMBERS),
    "--warmup": ("0.1", *damage.NUMBERS), "--time-limit": damage.TIMES, "--device": _SWITCHES,
    "--norm": ("none", "batch", "ghost", "group", "batch_conv"), "--bn-batch-size": _COUNTS,
    "--model": ("resnet8", "alexnet"), "--dataset": ("digits", "own"),
    "--params": ("params.yaml", "none.yaml", ".", "/dev/null"),
}  # fmt: skip
_BENCH_OPTIONS = {
    "-m": _COUNTS, "--lanes": _COUNTS, "--seconds": _COUNTS, "--repeats": _COUNTS,
    "--image-size": _COUNTS, "--bn-batch-size": _COUNTS, "--engine": ("loop", "stacked"),
    "--device": _SWITCHES, "--dataset": ("digits", "noise"), "--model": ("resnet8",),
}  # fmt: skip
_RECORDS = [str(COLUMN / it) for it in
            ("runs.json", "timing.json", "history.parquet", "weights.safetensors")]  # fmt: skip
_TABLES = [f"reports/evaluation/{it}.parquet" for it in ("runs", "cells", "history")]
_ARRAYS = [f"data/prepared/digits/{it}" for it in ("meta.json", "meta.json", "train_images.npy",
                                                   "test_labels.npy")]  # fmt: skip

TARGETS = (
    Target("params, plan", 30, ["plan"], params, in_file("params.yaml"), stubs=_PLAN),
    Target("params, prepare", 8, ["prepare"], params, in_file("params.yaml"), says_its_params),
    Target("params, train", 6, ["train", "a", "4"], prepared, in_file("params.yaml"),
           says_its_params, _TRAINING),
    Target("train options", 8, ["train"], prepared,
           in_words({"--time-limit": damage.TIMES, "--params": ("params.yaml", ".", "none")},
                    [("a", "b"), _COUNTS]), stubs=_TRAINING),
    Target("run options", 8, ["run"], prepared, in_words(_RUN, always=2), stubs=_TRAINING),
    Target("bench options", 6, ["bench"], params, in_words(_BENCH_OPTIONS), stubs=_BENCH),
    Target("profiles", 1, ["profile", "use", "quick", "--force"], profiles,
           in_file("profiles/quick.yaml", "profiles/paper-cifar10.yaml", "params.yaml"),
           keeps_the_profile, _PROFILES),
    Target("profile options", 3, ["profile"], profiles,
           in_words({"--scale": ("small", "smoke")}, [("show", "use", "list"),
                                                      ("quick", "paper-cifar10")]),
           stubs=_PROFILES),
    Target("prepared data, measure", 6, ["measure"], prepared,
           in_file(*_ARRAYS), stubs=_MEASURE),
    Target("image folders, prepare", 7, ["prepare"], images, image_names, keeps_the_images),
    Target("Parquet, prepare", 7, ["prepare"], parquet, in_file("img/train-0.parquet"),
           keeps_the_images),
    Target("records, evaluate", 3, ["evaluate"], trained,
           in_file(*_RECORDS[:1], *_RECORDS[:3]), keeps_the_records),
    Target("claims", 14, ["claims", "claims.json"], claims,
           in_file("claims.json")),
    Target("checkpoints and records", 6, ["profile", "list"], checkpoints,
           seals, keeps_checkpoints),
    Target("locks", 3, ["profile", "list"], locks, in_lock, takes_the_lock, _SETTLE),
    Target("ui and URIs", 0.6, ["ui", "--port", "50999"], params, uris, stubs=_UI),
    Target("sync and URIs", 0.2, ["sync"], trained, uris),
    Target("caches, sync", 0.1, ["sync"], tracked, caches),
    Target("records, sync", 0.1, ["sync"], tracked,
           in_file(*_RECORDS)),
    Target("records and tables, report", 0.05, ["report"], evaluated,
           in_file(*_RECORDS, *_TABLES)),
)  # fmt: skip
"""Cheap ones have the most cases."""


def warm_up() -> None:
    """Import once what the cases need, and list the models."""
    import importlib

    for name in ("torch", "pandas", "pyarrow.parquet", "PIL.Image", "timm", "sklearn.datasets",
                 "smallbatch.analysis.evaluation", "smallbatch.report.claims",
                 "smallbatch.pipeline.experiments", "smallbatch.execution.column",
                 "smallbatch.data.prepare", "smallbatch.speed.bench.command"):  # fmt: skip
        importlib.import_module(name)
