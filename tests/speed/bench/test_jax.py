"""JAX's peers: what they train, how they are asked, and their place in the table.

Without JAX, which is no dependency, those are skipped that train.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from benchmarks.gpu.peers_oracle import in_float32, train
from benchmarks.gpu.peers_task import CHECKED_BASE_LRS, compare
from benchmarks.gpu.peers_task import load as load_toy
from click.testing import CliRunner

from smallbatch.cli.main import main
from smallbatch.models import build_model
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed.bench import command, plain, session
from smallbatch.speed.bench.images import load
from smallbatch.speed.bench.peers.jax_script import updates_per_call
from smallbatch.speed.bench.peers.task import Result, Task, drawn, make_task, most_parts, parts
from smallbatch.speed.bench.plain import Plain
from smallbatch.speed.bench.record import as_json, as_markdown
from smallbatch.speed.bench.session import JAX, SCANS, Bench, Series, Session
from smallbatch.speed.rate import Rate

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"gpu": None, "cores": 2, "cpu": "some", "torch": "2"}
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="jax is not installed: no dependency"
)

# Torch stays out of JAX's process: here too.
CHILD = """
import sys
import numpy as np
from smallbatch.speed.bench.peers.program import Program, set_up
from smallbatch.speed.bench.peers.task import Task
set_up("cpu")
peer, given, found = sys.argv[1:]
with np.load(given) as arrays:
    arrays = dict(arrays)
fields = ("images", "labels", "table", "base_lrs")
task = Task(str(arrays["norm"]), *(arrays[name] for name in fields))
starts = [
    {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{lane}/")}
    for lane in range(task.lanes)
]
program = Program(peer, task, starts, len(task.table) // 2)
program()
program()
result = program.result()
kept = {f"{lane}/{n}": v for lane, it in enumerate(result.states) for n, v in it.items()}
np.savez(found, loss=result.loss, right=result.right, **kept)
assert "torch" not in sys.modules
"""


def by_jax(peer: str, task: Task, starts: Sequence[dict[str, Any]], folder: Path) -> Result:
    """The end of a task's lanes, two calls of a compiled program later."""
    kept = {f"{lane}/{n}": v for lane, it in enumerate(starts) for n, v in it.items()}
    np.savez(
        folder / "task.npz", norm=np.array(task.norm), images=task.images, labels=task.labels,
        table=task.table, base_lrs=task.base_lrs, **kept,
    )  # fmt: skip
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    words = [peer, str(folder / "task.npz"), str(folder / "found.npz")]
    subprocess.run(
        [sys.executable, "-P", "-c", CHILD, *words],
        check=True, env=os.environ | {"PYTHONPATH": paths}, timeout=300,
    )  # fmt: skip
    arrays = dict(np.load(folder / "found.npz"))
    states = [
        {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{lane}/")}
        for lane in range(task.lanes)
    ]
    return Result(states, arrays["loss"], arrays["right"])


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("peer", [*SCANS, *JAX[1:]])
def test_a_peer_trains_as_a_plain_loop_in_float64(peer: str, norm: str, tmp_path: Path) -> None:
    """Weights, statistics and losses after 20 updates, at rates at which lanes learn.

    On the noise of `benchmarks.gpu`'s check, in which no activation is so close to 0 that float32
    clips it and float64 does not: on other noise plain float32 PyTorch deviates by 3e-2 as well.
    """
    rates = CHECKED_BASE_LRS[:1] if peer in SCANS else CHECKED_BASE_LRS * 2
    task = make_task(norm, 8, np.array(rates), *load_toy(None, toy=True), 20)
    starts, expected = train(task)
    found = by_jax(peer, task, [in_float32(start) for start in starts], tmp_path)
    result = compare(found, starts, expected)
    assert result["passed"], result
    assert 0 < result["deviation"] < 1e-3  # 2e-5 was found
    assert result["loss_deviation"] < 1e-3
    assert result["right_difference"] <= 1


@needs_jax
@pytest.mark.slow
def test_the_script_answers_for_every_peer(tmp_path: Path) -> None:
    """Of images with one channel, in one process; the parameters are the package's."""
    images = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8, 1)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(20) % 4)
    model = build_model(
        "resnet8", "batch", num_classes=4, in_chans=1, image_size=8, seed=0, batch_size=2
    )
    with Plain("jax") as script:
        for peer, lanes, programs in (
            ("jax-scan", 1, 1), ("jax-scan-patches", 2, 2), ("jax-vmap", 4, 1),
            ("jax-einsum", 4, 2),
        ):  # fmt: skip
            found = script.measure(
                ["--peer", peer, "--data", tmp_path / "some.npz", "--batch-size", 2,
                 "--lanes", lanes, "--programs", programs, "--seconds", 0.05],
            )  # fmt: skip
            assert found["images"] % (2 * lanes // programs * found["updates_per_call"]) == 0
            assert found["images_per_second"] == found["images"] / found["seconds"]
            assert found["parameters"] == sum(p.numel() for p in model.parameters())
            assert 0 < found["loss"] < 10
        process = script._process
        with pytest.raises(RuntimeError, match=r"^jax_script\.py failed: [\s\S]*allowed.*: 1"):
            script.measure(
                ["--peer", "jax-scan", "--data", tmp_path / "some.npz", "--batch-size", 2,
                 "--lanes", 2],
            )  # fmt: skip
        assert process is not None
        assert script._process is None


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_initial_weights_have_the_packages_names_and_shapes(norm: str) -> None:
    model = build_model(
        "resnet8", norm, num_classes=7, in_chans=1, image_size=8, seed=0, batch_size=4
    )
    expected = {n: v for n, v in model.state_dict().items() if v.is_floating_point()}
    found = drawn(norm, 1, 7, seed=3)
    assert {n: v.shape for n, v in found.items()} == {
        n: tuple(v.shape) for n, v in expected.items()
    }
    for name, value in found.items():
        assert value.dtype == np.float32
        other = expected[name].numpy()
        assert np.allclose(value.std(), other.std(), rtol=0.3, atol=1e-6), name
        assert np.allclose(value.mean(), other.mean(), atol=0.1), name


@pytest.mark.parametrize(
    ("lanes", "cores", "most"),
    [(26, 2, 2), (26, 1, 1), (26, 5, 4), (5, 3, 3), (2, 8, 2), (1, 8, 1)],
)
def test_parts_of_a_task_have_all_its_lanes_with_their_batches(
    lanes: int, cores: int, most: int
) -> None:
    images, labels = load_toy(None, toy=True)
    task = make_task("none", 4, np.arange(1.0, lanes + 1), images, labels, 3)
    assert most_parts(lanes, cores) == most
    found = [
        (rate, part.table[:, part.seed(lane)].tolist())
        for part in parts(task, most)
        for lane, rate in enumerate(part.base_lrs)
    ]
    expected = [(r, task.table[:, task.seed(i)].tolist()) for i, r in enumerate(task.base_lrs)]
    assert found == expected
    with pytest.raises(ValueError, match=r"programs: found 99"):
        parts(task, 99)


@pytest.mark.parametrize(
    ("pixels", "device", "updates"),
    [(128, "cpu", 100), (26 * 2 * 64, "cpu", 39), (2**20, "cpu", 1), (2**20, "cuda", 100)],
)
def test_updates_of_a_call_fit_the_work(pixels: int, device: str, updates: int) -> None:
    assert updates_per_call(pixels, device) == updates


def test_a_script_needs_no_library_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints otherwise is no answer, and an error is what it said last."""
    script = tmp_path / "some.py"
    script.write_text(
        "import json\n"
        "from smallbatch.speed.bench.serve import serve\n"
        "def answer(words, out):\n"
        "    print('noise')\n"
        "    line = json.dumps({'images': len(words), 'seconds': 1 / len(words)})\n"
        "    print(line, file=out, flush=True)\n"
        "serve(answer)\n"
    )
    monkeypatch.setitem(plain.SCRIPTS, "jax", script)
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    with Plain("jax") as asked:
        assert asked.measure(["a", Path("b")])["images_per_second"] == 4
        assert asked.measure(["a"])["images"] == 1
        with pytest.raises(RuntimeError, match=r"^some\.py failed: [\s\S]*ZeroDivisionError"):
            asked.measure([])
    done = subprocess.run(
        [sys.executable, "-P", str(script), "a"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "noise"
    assert json.loads(done.stdout.splitlines()[1])["images"] == 1


def test_without_jax_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    monkeypatch.setattr(session, "run", None)
    done = CliRunner().invoke(main, ["bench", "--quick", "--engine", "jax"])
    assert done.exit_code == 2
    said = 'jax is not installed; allowed after `pip install "smallbatch-study[jax]"`'
    assert done.output.splitlines() == [f"Error: --engine jax: {said}"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "resnet20"], "--model: found resnet20, allowed with --engine jax: resnet8"),
        (["--norm", "group"], "--norm: found group, allowed with --engine jax: batch, none"),
        (["--optimizer", "sgd", "--optimizer", "adamw"], "--optimizer: found adamw, allowed"),
        (["--augment"], "--augment: found on, allowed with --engine jax: off"),
    ],
)
def test_what_jax_does_not_train_is_told(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: "there")
    monkeypatch.setattr(command, "run", None)
    done = CliRunner().invoke(main, ["bench", "--quick", "--engine", "jax", *words])
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_jax_stands_for_its_three_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = list[str]()

    def run(bench: Bench, *_: Any) -> Session:
        engines.extend(bench.engines)
        return Session([], {})

    monkeypatch.setattr(command, "find_spec", lambda _: "there")
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command.record, "as_json", lambda *_: {})
    monkeypatch.setattr(command.record, "as_markdown", lambda _: "the table")
    done = CliRunner().invoke(main, ["bench", "--quick", "--engine", "stacked", "--engine", "jax"])
    assert done.output.strip() == "the table"
    assert engines == [*JAX, "stacked"]


def small_bench() -> Bench:
    return Bench(
        pictures=[load("noise", path=None, size=8)], models=["resnet8"], norm="batch",
        bn_batch_size=None, augment=False, batch_sizes=[2], lanes=4,
        engines=["textbook", *JAX, "stacked"], repeats=2, seconds=1.0, device="cpu", workers=2,
    )  # fmt: skip


def test_jax_is_asked_in_its_own_process_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"jax-scan": 30.0, "jax-scan-patches": 40.0, "jax-vmap": 20.0, "jax-einsum": 50.0}
    asked = list[tuple[str, str, Any, int]]()

    def measure_plain(script: Plain, words: Sequence[object]) -> dict[str, Any]:
        named = dict(zip(words[::2], words[1::2], strict=True))
        peer = str(named.get("--peer", "textbook"))
        lanes, programs = named.get("--lanes"), cast("int", named.get("--programs", 1))
        asked.append((script._script.name, peer, lanes, programs))
        speed = rates.get(peer, 10.0) / (1 if programs == 2 or peer == "textbook" else 2)
        found: dict[str, Any] = {"images_per_second": speed, "share": 1.0}
        return found if peer == "textbook" else found | {"updates_per_call": 39, "jax": "0.9"}

    def measure(_: Workload, _method: Method, **_how: Any) -> Rate:
        return Rate(200.0, 1.0, 4)

    class Undisturbed:
        def look(self) -> None: ...

        def so_far(self) -> float:
            return 1.0

    limits = {"sgemm_flops_per_second": 1e9, "copy_bytes_per_second": 1e9}
    monkeypatch.setattr(session, "_script", lambda *_, **_how: limits)
    monkeypatch.setattr(session, "CoreShare", Undisturbed)
    monkeypatch.setattr(Plain, "measure", measure_plain)
    monkeypatch.setattr(session, "measure", measure)
    learnt = list[Any]()
    monkeypatch.setattr(command, "learn", lambda rates: learnt.extend(rates.values()))
    bench = small_bench()
    done = session.run(bench, tmp_path, lambda _: None, lambda _: None)
    assert set(asked) == {
        ("textbook.py", "textbook", None, 1),
        *(("jax_script.py", peer, n, n) for peer in SCANS for n in (1, 2)),
        *(("jax_script.py", peer, 4, n) for peer in JAX[1:] for n in (1, 2)),
    }
    command._learn(done)
    assert learnt
    assert all("stacked" in key for rates in learnt for key in rates)

    record = as_json(bench, done, [], ENVIRONMENT)
    engines = record["cases"][0]["engines"]
    settled = {
        "peer": "jax-scan-patches", "programs": 2, "updates_per_call": 39, "jax": "0.9",
    }  # fmt: skip
    assert (engines["jax-scan"]["settled"], engines["jax-scan"]["median"]) == (settled, 40.0)
    assert "jax" not in engines["jax-scan"]["repeats"][0]
    assert engines["stacked"]["over_best_jax"] == 4.0
    assert engines["jax-vmap"]["fraction_of_sgemm"] > 0
    head, _, row, _, about = as_markdown(record).splitlines()
    columns = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert columns["jax-einsum, images/s"] == "50"
    assert columns["jax-einsum / textbook"] == "5.00"
    assert columns["stacked / best of jax"] == "4.00"
    assert "jax-scan, of sgemm" in columns
    assert "torch 2, jax 0.9, " in about


@pytest.mark.parametrize(("failed", "cell"), [(1, "2.00"), (3, "failed")])
def test_a_peer_that_failed_is_not_the_best(failed: int, cell: str) -> None:
    bench = small_bench()
    pictures = bench.pictures[0]
    series = [
        Series(pictures, bench.workload(pictures, 2, "resnet8"), e) for e in (*JAX, "stacked")
    ]
    for one in series:
        rate = 40.0 if one.engine == "stacked" else 20.0
        one.repeats.append({"images_per_second": rate, "share": 1.0})
    for one in series[:failed]:
        one.failure, one.repeats = "out of memory", []
    text = as_markdown(as_json(bench, Session(series, {}), [], ENVIRONMENT))
    head, _, row = text.splitlines()[:3]
    columns = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert columns["stacked / best of jax"] == cell
