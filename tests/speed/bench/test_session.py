"""A session's order and arithmetic, and the command in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from smallbatch import machine
from smallbatch.cli.main import main
from smallbatch.engines.lanes import native
from smallbatch.engines.update_memory import loop_bytes
from smallbatch.errors import UserError
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed.bench import command, session, textbook
from smallbatch.speed.bench.images import Pictures, load
from smallbatch.speed.bench.plain import Plain
from smallbatch.speed.bench.record import as_json, as_markdown
from smallbatch.speed.bench.session import Bench, Series, Session
from smallbatch.speed.rate import Rate
from smallbatch.speed.share import LEAST

ROOT = Path(__file__).parents[3]

# A machine without trackers: whatever imports them fails.
WITHOUT = """
import sys
for name in ("mlflow", "dvc", "pandas", "sklearn.model_selection"):
    sys.modules[name] = None
from smallbatch.cli.main import main
main()
"""


class Undisturbed:
    def look(self) -> None: ...

    def so_far(self) -> float:
        return 1.0


def small_bench(**changes: Any) -> Bench:
    settings: dict[str, Any] = {
        "pictures": [load("noise", path=None, size=8)], "models": ["resnet8"], "norm": "batch",
        "bn_batch_size": None, "augment": False, "batch_sizes": [2, 8], "lanes": 20,
        "engines": ["textbook", "loop", "stacked"], "repeats": 2, "seconds": 1.0, "device": "cpu",
        "workers": 2,
    }  # fmt: skip
    return Bench(**(settings | changes))


def test_every_repeat_measures_every_case_once_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def script(*_: str, **_how: object) -> dict[str, float]:
        calls.append("limits")
        return {"sgemm_flops_per_second": 1e9, "copy_bytes_per_second": 1e9}

    def plain(_: Plain, words: Sequence[object]) -> dict[str, float]:
        named = dict(zip(words[::2], words[1::2], strict=True))
        workers = cast("int", named["--num-workers"])
        calls.append(f"textbook {named['--batch-size']} {workers}")
        return {"images_per_second": 5.0 + workers / 2, "seconds": 2.0, "share": 1.0}

    def measure(workload: Workload, method: Method, **how: Any) -> Rate:
        if workload.batch_size == 8 and method.engine == "loop":
            raise RuntimeError("training failed:\nout of memory")
        calls.append(f"{method.key} {workload.batch_size} {how.get('updates')}")
        return Rate(200.0 if method.lanes else 100.0, 1.0, 4)

    monkeypatch.setattr(native, "takes", lambda *_: False)  # lanes by torch have several ways
    monkeypatch.setattr(session, "_script", script)
    monkeypatch.setattr(session, "CoreShare", Undisturbed)
    monkeypatch.setattr(Plain, "measure", plain)
    monkeypatch.setattr(session, "measure", measure)
    kept: list[dict[str, Any]] = []
    bench = small_bench()
    done = session.run(
        bench, tmp_path, lambda _: None, lambda so_far: kept.append(as_json(bench, so_far, [], {}))
    )
    assert [record["settings"]["repeats_done"] for record in kept] == [1, 2]
    chunks = "stacked in chunks of 8"
    assert calls[:5] == ["textbook 2 0", "textbook 2 2", "loop 2 None", "stacked 2 None",
                         f"{chunks} 2 None"]  # fmt: skip
    # An epoch is a third of a second: 25 images a second and run at m = 2 are 4 updates, 50 are 8.
    turn = ["limits", "textbook 2 2", "loop 2 4", f"{chunks} 2 8", "textbook 8 2", f"{chunks} 8 2"]
    assert calls[-12:] == turn * 2
    failed = [one for one in done.series if one.failure]
    assert [(one.engine, one.workload.batch_size, one.failure) for one in failed] == [
        ("loop", 8, "out of memory")
    ]
    assert done.series[0].rate == 6.0


def test_a_record_states_medians_of_the_repeats_and_their_ratios() -> None:
    bench = small_bench(batch_sizes=[8], engines=["textbook", "loop"])
    pictures = bench.pictures[0]
    rates = {"textbook": (100.0, 300.0, 110.0), "loop": (900.0, 330.0, 20.0)}
    series = [
        Series(pictures, bench.workload(pictures, 8, "resnet8"), engine) for engine in bench.engines
    ]
    for one in series:
        one.repeats += [{"images_per_second": it, "share": 1.0} for it in rates[one.engine]]
    limits = {"sgemm_flops_per_second": [2e9, 9e9, 1e9]}
    record = as_json(bench, Session(series, limits), ["bench"], {})
    assert record["limits"]["sgemm_flops_per_second"]["median"] == 2e9
    (workload,) = record["cases"]
    textbook, loop = (workload["engines"][engine] for engine in bench.engines)
    assert (textbook["median"], loop["median"]) == (110.0, 330.0)
    assert loop["over_textbook"] == 3.0
    assert loop["fraction_of_sgemm"] == pytest.approx(330 * workload["flops_per_image"] / 2e9)


def test_a_disturbed_figure_does_not_count_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are there in the whole second repeat, and with `loop` always."""
    begun, learnt = list[str](), list[Any]()

    def measure(_: Workload, method: Method, **how: Any) -> Rate:
        if how.get("updates") is not None and method.engine == "stacked":
            begun.append(method.key)
        share = 0.5 if method.engine == "loop" or len(begun) == 2 else 0.95
        return Rate(100.0 * (len(begun) + 1), 1.0, 4, share)

    found = {"sgemm_flops_per_second": 1e9, "copy_bytes_per_second": 1e9}
    limits = iter([0.9, 0.99, 1.0])
    monkeypatch.setattr(
        session, "CoreShare", lambda: SimpleNamespace(look=None, so_far=lambda: next(limits))
    )
    monkeypatch.setattr(session, "_script", lambda *_, **_how: found)
    monkeypatch.setattr(session, "measure", measure)
    monkeypatch.setattr(command, "learn", lambda rates: learnt.append(rates))
    bench = small_bench(batch_sizes=[2], engines=["loop", "stacked"], repeats=3)
    said = list[str]()
    done = session.run(bench, tmp_path, said.append, lambda _: None)
    assert said.count("other programs took 50 % of the cores: this figure does not count") == 4
    loop, stacked = done.series
    assert (loop.rate, loop.disturbed) == (None, 3)
    assert (stacked.rate, stacked.disturbed) == (300.0, 1)  # of 200, 300 (left out) and 400
    assert done.limits["sgemm_flops_per_second"] == [1e9, 1e9]
    environment = {"gpu": None, "cores": 2, "cpu": "some", "torch": "2"}
    record = as_json(bench, done, [], environment)
    assert record["settings"]["repeats_done"] == 3
    assert [it["share"] for it in record["cases"][0]["engines"]["stacked"]["repeats"]] == [
        0.95, 0.5, 0.95,
    ]  # fmt: skip
    text = as_markdown(record)
    assert text.splitlines()[2].split(" | ")[2:5] == ["(200)", "300", "disturbed"]
    assert "more than 5% of the cores during 4 of 6 measurements, which do not count: " in text
    command._learn(done)
    (rates,) = learnt
    assert [*rates.values()] == [{"stacked": 300.0}]

    done.limits.clear()
    record = as_json(bench, done, [], environment)
    assert record["cases"][0]["engines"]["stacked"]["fraction_of_sgemm"] is None
    assert "its limits were not measured undisturbed" in as_markdown(record)


def test_without_a_plain_speed_its_ratios_failed() -> None:
    bench = small_bench(batch_sizes=[8], engines=["textbook", "loop"])
    workload, pictures = bench.workload(bench.pictures[0], 8, "resnet8"), bench.pictures[0]
    textbook, loop = (Series(pictures, workload, engine) for engine in bench.engines)
    textbook.failure = "out of memory"
    loop.repeats.append({"images_per_second": 5.0, "share": 1.0})
    environment = {"gpu": None, "cores": 2, "cpu": "some", "torch": "2"}
    text = as_markdown(as_json(bench, Session([textbook, loop], {}), [], environment))
    assert text.splitlines()[2].split(" | ")[2:5] == ["failed", "5", "failed"]


@pytest.mark.slow
def test_the_plain_script_answers_one_request_after_another(tmp_path: Path) -> None:
    """In one process; after a request that ends it, in another."""
    images = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)
    pictures = Pictures("three", images, np.array([0, 1, 2]), 3)
    words = ["--data", session._save(pictures, 8, tmp_path), "--seconds", 0, "--warm-up", 1]
    with Plain() as plain:
        first = plain.measure([*words, "--batch-size", 4])
        process = plain._process
        assert first["images"] == 4
        assert first["images_per_second"] == first["images"] / first["seconds"]
        assert 0 < first["share"] <= 1
        assert plain.measure([*words, "--batch-size", 2, "--warm-up", 2])["images"] == 2
        assert plain._process is process
        with pytest.raises(RuntimeError, match=r"^textbook\.py failed: [\s\S]*no-such\.npz"):
            plain.measure(["--data", "no-such.npz", "--batch-size", 2])
        assert plain.measure([*words, "--batch-size", 2])["images"] == 2
        assert plain._process
        plain._process.kill()  # as for want of memory, between two requests
        plain._process.wait()
        assert plain.measure([*words, "--batch-size", 2])["images"] == 2
        threading.Timer(3, plain._process.kill).start()  # within one
        with pytest.raises(RuntimeError, match=r"^textbook\.py failed: killed by signal 9$"):
            plain.measure([*words, "--batch-size", 2, "--seconds", 300, "--num-workers", 2])
        assert plain.measure([*words, "--batch-size", 2, "--num-workers", 2])["images"] == 2
        process = plain._process
        assert process
    assert process.returncode is not None


def test_pictures_repeat_from_the_first() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    dataset = Pictures("three", images, np.array([0, 1, 0]), 2).dataset(5)
    assert dataset.train_images.ravel().tolist() == [0, 1, 2, 0, 1]
    assert dataset.test_images.ravel().tolist() == [2, 0]
    assert dataset.meta.counts == {"train": 5, "validation": 0, "test": 2}


def test_the_textbook_has_whole_batches_however_few_the_images(tmp_path: Path) -> None:
    images = np.arange(6, dtype=np.uint8).reshape(3, 2, 1, 1)
    arrays = np.load(session._save(Pictures("three", images, np.array([0, 1, 2]), 3), 7, tmp_path))
    assert arrays["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert arrays["images"].shape == (7, 1, 1, 2)
    assert arrays["images"][3].ravel().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "mnist"], "--dataset: found 'mnist', allowed: digits, cifar10, noise"),
        (["--norm", "bn"], "norm: unknown norm 'bn'"),
        (["-m", "1"], "batch_size: found 1 with norm 'batch'"),
        (["--out", "nowhere/b.json"], "nowhere/b.json: there is no folder nowhere"),
        (["--dataset", "cifar10", "--path", "nowhere"], "nowhere"),
        (["--engine", "warp"], "warp"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_bad_options_are_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "run", None)
    done = CliRunner().invoke(main, ["bench", "--quick", *words])
    assert done.exit_code == 2, done.output
    assert said in done.output


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    """In a process without mlflow, dvc and pandas; every figure follows from what was measured."""
    words = ["bench", "--dataset", "noise", "--image-size", "8", "-m", "4", "--lanes", "4",
             "--repeats", "1", "--seconds", "0.2", "--device", "cpu",
             "--out", "bench.json", "--table", "bench.md"]  # fmt: skip
    (tmp_path / "c").mkdir()
    for kernels in Path(os.environ["SMALLBATCH_CACHE"]).glob("kernels-*.s*"):
        shutil.copy(kernels, tmp_path / "c")  # to compile them anew takes long
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT, *words],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "SMALLBATCH_CACHE": str(tmp_path / "c"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bench.json").read_text())
    table = (tmp_path / "bench.md").read_text()
    assert done.stdout.strip() == table.strip()
    assert {"cpu", "cores", "python", "torch", "timm"} <= record["environment"].keys()
    assert record["command"][1:] == words

    limits = record["limits"]  # without any if other programs disturbed, here or below
    for limit in limits.values():
        assert limit["repeats"] == [limit["median"]]
    (workload,) = record["cases"]
    # Convolutions: 3·16·9·64 + 2·16·16·9·64 at 8×8, then 32 channels at 4×4 and 64 at 2×2; FC.
    macs = (3 * 16 + 2 * 16 * 16) * 9 * 64 + (16 * 32 + 32 * 32) * 9 * 16
    macs += (32 * 64 + 64 * 64) * 9 * 4 + 64 * 10
    assert workload["flops_per_image"] == 3 * 2 * macs
    engines = workload["engines"]
    assert list(engines) == ["textbook", "loop", "stacked"]
    counted = workload["update_bytes"]
    assert counted["loop"] > 4 * 2 * 75_000  # weights and gradient alone
    assert counted["stacked"] is None or counted["stacked"] > counted["loop"]
    for name, engine in engines.items():
        (repeat,) = engine["repeats"]
        assert repeat["images_per_second"] > 0
        if repeat["share"] < LEAST:
            assert (engine["median"], engine["disturbed"]) == (None, 1)
            assert f"({repeat['images_per_second']:,.0f})" in table
            continue
        assert engine["median"] == repeat["images_per_second"]
        assert f"{engine['median']:,.0f}" in table, name
        if limits:
            limit = limits["sgemm_flops_per_second"]["median"]
            share = engine["median"] * workload["flops_per_image"] / limit
            assert engine["fraction_of_sgemm"] == pytest.approx(share)
        if engines["textbook"]["median"]:
            over = engine["median"] / engines["textbook"]["median"]
            assert engine["over_textbook"] == pytest.approx(over)
    vector = record["environment"]["vector"]
    assert f"({machine.cpu_kind()}), vectors of {vector} places" in table
    for repeat in engines["textbook"]["repeats"]:
        assert repeat["images_per_second"] == repeat["images"] / repeat["seconds"]
        assert repeat["images"] % 4 == 0
    assert engines["stacked"]["repeats"][0]["live"] == 4

    kept = {name: engines[name]["median"] for name in ("loop", "stacked")}
    kept = {name: rate for name, rate in kept.items() if rate is not None}
    files = [*(tmp_path / "c").glob("calibration-*.json")]
    rates = [rates for file in files for rates in json.loads(file.read_text())["rates"].values()]
    assert rates == ([kept] if kept else [])


def test_each_optimiser_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"sgd": 300.0, "momentum": 200.0, "adamw": 100.0}

    def plain(_: Plain, words: Sequence[object]) -> dict[str, float]:
        named = dict(zip(words[::2], words[1::2], strict=True))
        speed = rates[str(named["--optimizer"])] / 10
        return {"images_per_second": speed, "seconds": 1.0, "share": 1.0}

    def measure(workload: Workload, _method: Method, **_how: Any) -> Rate:
        return Rate(rates[workload.settings().optimizer], 1.0, 4)

    limits = {"sgemm_flops_per_second": 1e9, "copy_bytes_per_second": 1e9}
    monkeypatch.setattr(session, "_script", lambda *_, **_how: limits)
    monkeypatch.setattr(session, "CoreShare", Undisturbed)
    monkeypatch.setattr(Plain, "measure", plain)
    monkeypatch.setattr(session, "measure", measure)
    bench = small_bench(batch_sizes=[2], engines=["textbook", "loop"], optimizers=list(rates))
    done = session.run(bench, tmp_path, lambda _: None, lambda _: None)
    environment = {"gpu": None, "cores": 2, "cpu": "some", "torch": "2"}
    rows = as_markdown(as_json(bench, done, [], environment)).splitlines()[2:5]
    assert [[row.split(" | ")[i] for i in (2, 3, 4)] for row in rows] == [
        ["sgd", "30", "300"], ["momentum", "20", "200"], ["adamw", "10", "100"],
    ]  # fmt: skip


def test_each_model_and_batch_size_has_a_row_with_the_bytes_of_an_update() -> None:
    models, sizes = ["resnet8", "alexnet"], [2, 64]
    bench = small_bench(
        pictures=[load("noise", path=None, size=32)], models=models, batch_sizes=sizes,
        engines=["loop"],
    )  # fmt: skip
    pictures = bench.pictures[0]
    series = [
        Series(pictures, bench.workload(pictures, m, model), "loop")
        for model in models
        for m in sizes
    ]
    for one in series:
        one.repeats.append({"images_per_second": 5.0, "share": 1.0})
    environment = {"gpu": None, "cores": 2, "cpu": "some", "torch": "2"}
    record = as_json(bench, Session(series, {}), [], environment)
    assert record["settings"]["model"] == "resnet8, alexnet"
    found = [
        (case["model"], case["batch_size"], case["update_bytes"]["loop"])
        for case in record["cases"]
    ]
    settings = {model: bench.workload(pictures, 2, model).settings() for model in models}
    assert found == [
        (model, m, loop_bytes(settings[model], m, (3, 32, 32), 10))
        for model in models
        for m in sizes
    ]
    text = as_markdown(record)
    heads, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines()[:6])
    assert heads[:3] == ["images", "model", "m"]
    assert heads[-2:] == ["update by loop, MB", "update by stacked, MB"]
    assert [row[1:3] for row in rows] == [[model, str(m)] for model in models for m in sizes]
    assert [float(row[-2]) for row in rows] == [
        pytest.approx(count / 1e6, rel=0.006) for _, _, count in found
    ]
    assert "of loop of 2 runs at a time, one a worker, of stacked of all lanes together" in text


def test_a_model_that_is_named_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Bench] = []

    def run(bench: Bench, *_: object) -> Session:
        seen.append(bench)
        raise UserError("enough")

    monkeypatch.setattr(command, "run", run)
    words = ["bench", "--quick", "--model", "resnet8", "--model", "alexnet", "--model", "resnet8"]
    assert CliRunner().invoke(main, [*words, "--image-size", "32"]).exit_code == 2
    assert [list(bench.models) for bench in seen] == [["resnet8", "alexnet"]]
    done = CliRunner().invoke(main, [*words, "--norm", "batch_conv"])
    assert done.exit_code == 2
    assert "batch_conv" in done.output


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adamw"])
def test_the_plain_script_takes_each_optimiser(name: str) -> None:
    made = textbook.make_optimizer(nn.Linear(2, 2), argparse.Namespace(optimizer=name, lr=0.1))
    (group,) = made.param_groups
    if name == "adamw":
        assert isinstance(made, torch.optim.AdamW)
    else:
        assert (group["momentum"] > 0, group["nesterov"]) == (name != "sgd", name == "nesterov")
