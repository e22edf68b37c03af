"""A plan's counts against arithmetic by hand, its speeds from a given calibration."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import Params, parse_params
from smallbatch.pipeline.experiments import plan_columns
from smallbatch.placement import known as store
from smallbatch.placement import placement
from smallbatch.placement.known import Known, known
from smallbatch.placement.workload import Method, Workload
from smallbatch.protocol.run import PROTOCOL
from smallbatch.speed import calibration, plan_rates
from smallbatch.speed import plan as plans
from smallbatch.speed.plan import Plan, plan
from smallbatch.speed.plan_rates import interpolate, startup
from smallbatch.speed.plan_table import clock, lines, scaled
from smallbatch.speed.rate import Rate
from tests.analysis import synthetic
from tests.columns import place_and_train

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = {
    "dataset": {"name": "d", "source": "digits", "subset": 200, "validation_fraction": 0.1,
                "test_subset": 50},
    "grid": {"studies": ["bn"], "batch_sizes": [8, 128], "base_lrs": ["2^-8", "2^-6"],
             "seeds": 2},
    "studies": {"bn": {"model": "resnet8", "norm": "batch", "epochs": 3, "weight_decay": 0.0}},
    "compute": {"device": "cpu", "workers": 2},
}  # fmt: skip


GHOST: dict[str, Any] = {"model": "resnet8", "norm": "ghost", "bn_batch_sizes": [2, 8],
                         "base_lr": "best of bn", "epochs": 3, "weight_decay": 0.0}  # fmt: skip


def params(**compute: Any) -> Params:
    return parse_params({**RAW, "compute": {**RAW["compute"], **compute}}, "params.yaml")


def dependent() -> Params:
    raw = {**RAW, "grid": {**RAW["grid"], "dependent": [{"name": "ghost", "after": "bn"}]}}
    return parse_params({**raw, "studies": {**RAW["studies"], "ghost": GHOST}}, "params.yaml")


class Shares:
    """Of the cores that a measurement gets: to be set."""

    found = 1.0

    def so_far(self) -> float:
        return self.found


@pytest.fixture(autouse=True)
def speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine of known speed: loop 100, stacked 400 images/s; starts in 5 s."""
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_learnt", Known(startup=5.0))
    monkeypatch.setattr(store, "_rough", {})
    measured: list[str] = []

    def measure(workload: Workload, method: Method, **_: Any) -> Rate:
        measured.append(f"{workload.batch_size} {method.key}")
        return Rate(100.0 if method.engine == "loop" else 400.0, 1.0, 1, Shares.found)

    monkeypatch.setattr(Shares, "found", 1.0)
    monkeypatch.setattr(calibration, "measure", measure)
    return measured


def make(tmp_path: Path, **compute: Any) -> Plan:
    return make_of(params(**compute), tmp_path)


def make_of(what: Params, tmp_path: Path, *, is_kept: Any = lambda *_: True) -> Plan:
    folders = {name: tmp_path / name for name in ("prepared", "models", "work")}
    return plan(what, **folders, base_lrs=lambda *_: what.grid.base_lrs, is_kept=is_kept)


def test_dependent_studies_count_before_their_source_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One η̃, two seeds: at m = 8 and at 128 with two BN batches each, 4 runs."""
    monkeypatch.chdir(tmp_path)
    made = plan_columns(dependent())
    found = [(one.study, one.batch_size, one.runs, one.updates) for one in made.columns]
    assert found == [
        ("bn", 8, 4, 4 * 67),
        ("bn", 128, 4, 4 * 4),
        ("ghost", 8, 4, 4 * 67),
        ("ghost", 128, 4, 4 * 4),
    ]
    assert all(one.seconds > 0 for one in made.columns)


def test_studies_with_seeds_of_their_own_count_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bn: two η̃ of 5 seeds; ghost: one η̃ of the grid's two seeds, of two BN batches each."""
    monkeypatch.chdir(tmp_path)
    raw = {**RAW, "grid": {**RAW["grid"], "dependent": [{"name": "ghost", "after": "bn"}]}}
    bn = {**RAW["studies"]["bn"], "seeds": 5}
    for ghost, own in ((GHOST, 2), ({**GHOST, "seeds": 7}, 7)):
        what = parse_params({**raw, "studies": {"bn": bn, "ghost": ghost}}, "params.yaml")
        found = [(one.study, one.batch_size, one.runs) for one in plan_columns(what).columns]
        assert found == [
            ("bn", 8, 2 * 5), ("bn", 128, 2 * 5), ("ghost", 8, 2 * own), ("ghost", 128, 2 * own),
        ]  # fmt: skip


def test_dvc_is_asked_for_the_stage_of_each_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = frozenset({"train@bn-8", "train_dependent@study0-128"})
    monkeypatch.setattr("smallbatch.pipeline.code.kept_stages", lambda: kept)
    monkeypatch.setattr("smallbatch.speed.plan.plan", lambda *_, is_kept, **__: is_kept)
    is_kept: Any = plan_columns(dependent())
    grid = [(study, m) for study in ("bn", "ghost") for m in (8, 128)]
    assert [it for it in grid if is_kept(*it)] == [("bn", 8), ("ghost", 128)]


def test_columns_of_other_lanes_tell_the_speed_where_none_was_measured(
    tmp_path: Path, speeds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BN batches of 2, 8 and 16 the column at m = 16 has more lanes than that at 8."""
    monkeypatch.setattr(calibration, "cost", lambda *_: 100.0)  # too much for all but the first
    raw = {**GHOST, "bn_batch_sizes": [2, 8, 16], "base_lr": None, "base_lrs": ["2^-8"]}
    what = parse_params(
        {**RAW, "grid": {**RAW["grid"], "studies": ["ghost"], "batch_sizes": [8, 16]},
         "studies": {"ghost": {k: v for k, v in raw.items() if v is not None}}}, "params.yaml"
    )  # fmt: skip
    small, large = make_of(what, tmp_path).columns
    assert (small.runs, large.runs) == (2 * 4, 3 * 4)
    assert {text.split()[0] for text in speeds} == {"8"}
    assert (small.measured, large.measured) == (True, False)
    assert large.images_per_second == pytest.approx(small.images_per_second)


def test_counts_and_time_of_a_column(tmp_path: Path) -> None:
    """180 of 200 images train: 3·180/8 = 67 updates (of 67.5), 3·180/128 = 4 of each run."""
    made = make(tmp_path)
    small, large = made.columns
    assert not made.prepared
    assert (small.runs, small.kept, small.updates, small.images) == (4, 0, 4 * 67, 4 * 67 * 8)
    assert (large.updates, large.images) == (4 * 4, 4 * 4 * 128)
    # A run evaluates 50 + 20 images each epoch and at its end, where it also evaluates the
    # training images, and takes population statistics from them and tests with those.
    evaluated = 4 * (3 * 70 + (180 + 70) + (180 + 50))
    macs = (1 * 16 + 2 * 16 * 16) * 9 * 64 + (16 * 32 + 32 * 32) * 9 * 16
    macs += (32 * 64 + 64 * 64) * 9 * 4 + 64 * 10
    assert small.flops == 2 * macs * (3 * small.images + evaluated)
    assert small.engine == "stacked"
    assert small.images_per_second == 400.0
    assert small.seconds == pytest.approx(5 + small.images / 400 + evaluated / 1200)
    total = made.total()
    assert total["seconds"] == pytest.approx(small.seconds + large.seconds)
    assert total["runs"] == 8
    assert total["memory_bytes"] == max(small.memory_bytes, large.memory_bytes) > 0


def test_an_engine_that_is_pinned_is_the_one_that_is_measured(
    tmp_path: Path, speeds: list[str]
) -> None:
    made = make(tmp_path, engine="loop")
    assert {column.engine for column in made.columns} == {"loop"}
    assert made.columns[0].images_per_second == 100.0
    assert speeds == ["8 loop", "128 loop"]
    make(tmp_path, engine="loop")
    assert len(speeds) == 2  # known by now


def test_finished_runs_are_not_counted_again(tmp_path: Path, monkeypatch: Any) -> None:
    """A column trained in part is planned in part, and one trained whole costs nothing."""
    from smallbatch.data.prepare import prepare
    from smallbatch.data.prepared import load_prepared
    from smallbatch.protocol.column import plan_column

    some = params()
    prepare(some.dataset, tmp_path)
    data = load_prepared(tmp_path / "prepared/d")

    def train(base_lrs: tuple[float, ...]) -> None:
        column = plan_column(
            "bn", some.studies["bn"], data, batch_size=128, base_lrs=base_lrs, seeds=[0, 1]
        )
        out = tmp_path / "models/d/bn/m128"
        place_and_train(column, out, compute=some.compute, work=tmp_path / "work")

    train((2.0**-8,))
    made = make(tmp_path)
    assert made.prepared
    assert [column.kept for column in made.columns] == [0, 2]
    assert made.columns[1].updates == 2 * 4
    with monkeypatch.context() as patch:  # as on another node
        patch.setattr("smallbatch.machine.processor", lambda: "fedcba9876543210")
        assert [column.kept for column in make(tmp_path).columns] == [0, 2]
        assert [column.kept for column in make(tmp_path, same_hardware=True).columns] == [0, 0]
    train((2.0**-8, 2.0**-6))
    whole = make(tmp_path).columns[1]
    assert (whole.kept, whole.updates, whole.flops, whole.seconds) == (4, 0, 0, 0.0)
    assert whole.recorded
    assert whole.images_per_second is None
    (tmp_path / "work").rename(tmp_path / "elsewhere")  # as when DVC's cache restored the column
    twin = {"bn": RAW["studies"]["bn"], "twin": RAW["studies"]["bn"]}
    raw = {**RAW, "grid": {**RAW["grid"], "studies": [*twin]}, "studies": twin}
    both = make_of(parse_params(raw, "params.yaml"), tmp_path).columns
    # Of that column there are no runs that the twin could take over.
    assert [(it.kept, it.shared) for it in both] == [(0, 0), (4, 0), (0, 4), (0, 0)]
    unrecorded = make(tmp_path)
    assert (unrecorded.columns[1].kept, unrecorded.columns[1].recorded) == (4, False)
    assert lines(unrecorded)[2].split()[:4] == ["bn", "m=128", "4", "*4"]
    assert "not known what libraries and hardware made them" in lines(unrecorded)[-1]
    # Of other code, or of none that DVC knows: they are trained again.
    again = make_of(some, tmp_path, is_kept=lambda study, m: (study, m) != ("bn", 128))
    assert (again.columns[1].kept, again.columns[1].updates) == (0, 4 * 4)


def test_a_measurement_is_announced_once(
    tmp_path: Path, speeds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        r"measuring this machine's speed, once: bn at m = 8, 128 \(about (\d+) s\)", line
    )
    assert found
    assert 1 <= int(found.group(1)) <= 2 * 5  # two batch sizes
    assert {text.split()[0] for text in speeds} == {"8", "128"}
    make(tmp_path)
    assert capsys.readouterr().err == ""


def test_where_all_is_trained_a_line_says_so(tmp_path: Path) -> None:
    from dataclasses import replace

    made = make(tmp_path)
    kept = [replace(column, kept=column.runs) for column in made.columns]
    assert lines(replace(made, columns=tuple(kept))) == [
        "nothing left to do: all 8 runs are trained"
    ]
    one = replace(kept[0], runs=1, kept=1)
    assert lines(replace(made, columns=(one,))) == ["nothing left to do: the only run is trained"]
    # The table says of which it is not known what code made them.
    unknown = lines(
        replace(made, prepared=True, columns=(kept[0], replace(kept[1], recorded=False)))
    )
    assert unknown[2].split()[:4] == ["bn", "m=128", "4", "*4"]
    assert unknown[-2] == "Nothing left to do: all runs are trained."
    assert "nothing left to do" not in "\n".join(lines(made)).lower()


def test_columns_that_a_raised_protocol_trains_again_are_named(tmp_path: Path) -> None:
    """Also where the data are not prepared, so that nothing else is known of the runs."""
    study = synthetic.Study("bn", batch_sizes=(8, 32), base_lrs=(2.0**-8,), seeds=1, protocol=1)
    synthetic.write_models(tmp_path / "models", (study,), dataset="d")
    small, large = make(tmp_path).columns
    assert (small.older_protocol, large.older_protocol) == (1, None)
    assert lines(make(tmp_path))[-1].startswith(
        f"Trained again, under protocol {PROTOCOL} instead of an older one: bn m=8. Until"
    )


def test_rates_between_and_beyond_what_was_measured() -> None:
    rates = {2: 100.0, 8: 400.0, 128: 1600.0}
    assert interpolate(rates, 8) == pytest.approx(400)
    assert interpolate(rates, 4) == pytest.approx(200)
    assert interpolate(rates, 32) == pytest.approx(800)
    assert interpolate(rates, 512) == pytest.approx(1600)
    assert interpolate(rates, 1) == pytest.approx(50)


def test_beside_other_programs_a_plan_is_made_but_its_speeds_are_measured_again(
    tmp_path: Path, speeds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shares, "found", 0.5)
    rough = make(tmp_path)
    first = [*speeds]
    # At m = 128 the rule chooses `loop`, as nothing that was learnt says otherwise.
    assert [column.images_per_second for column in rough.columns] == [400, 100]
    assert all(column.rough for column in rough.columns)
    text = lines(rough)
    assert [line.split()[-3] for line in text[1:3]] == ["!400", "!100"]
    assert "! was measured while other programs took a part of the cores" in text[-2]
    make(tmp_path)
    assert speeds == first  # one process measures once
    for keep in (False, True):
        monkeypatch.setattr(store, "_learnt", Known(startup=5.0))  # as in another process
        monkeypatch.setattr(store, "_rough", {})
        monkeypatch.setattr(Shares, "found", 1.0)
        del speeds[:]
        sure = make(tmp_path)
        assert [column.images_per_second for column in sure.columns] == [400, 400]
        assert "!" not in "".join(lines(sure))
        assert speeds == ([] if keep else first)


def test_runs_of_two_studies_are_counted_once(tmp_path: Path) -> None:
    """Under another name."""
    raw = {
        **RAW,
        "grid": {**RAW["grid"], "studies": ["bn", "twin"]},
        "studies": {"bn": RAW["studies"]["bn"], "twin": RAW["studies"]["bn"]},
    }
    alone, made = make(tmp_path), make_of(parse_params(raw, "params.yaml"), tmp_path)
    runs = [column.runs for column in alone.columns]
    assert [column.shared for column in made.columns] == [0, 0, *runs]
    assert made.total()["shared"] == sum(runs)
    for name in ("updates", "images", "flops", "seconds"):
        assert made.total()[name] == alone.total()[name] > 0
    heads, *rows = lines(made)
    assert heads.split()[:4] == ["column", "runs", "kept", "shared"]
    assert rows[2].split()[:5] == ["twin", "m=8", str(runs[0]), "0", str(runs[0])]
    assert "Shared runs are trained once" in rows[-2]
    assert "shared" not in lines(alone)[0]


def test_the_table_names_what_it_does_not_know(tmp_path: Path) -> None:
    text = lines(make(tmp_path))
    assert [line.split()[0] for line in text[:4]] == ["column", "bn", "bn", "total"]
    assert "kept runs are unknown" in text[-1]
    assert len({len(line) for line in text[:2]}) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.345e13, "23.4 TB")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert scaled(value, "B") == text


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (90, "1.5 min"), (5400, "1.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_start_of_processes_is_measured_without_code_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("smallbatch/__init__.py", "smallbatch/execution/workers.py", "pandas.py", "mlflow.py")
    for owner in ("installed", "planted"):
        for name in names:
            path = tmp_path / owner / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"open(r'{tmp_path / owner}.ran', 'w')")
    monkeypatch.chdir(tmp_path / "planted")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.setattr(store, "_learnt", Known())
    monkeypatch.setattr(plan_rates, "CoreShare", Shares)
    monkeypatch.setattr(Shares, "found", 0.94)
    assert startup() > 0
    assert startup() == known().startup  # measured once in a process
    monkeypatch.setattr(store, "_learnt", Known())
    assert known().startup is None  # but not for others: other programs took a part of the cores
    monkeypatch.setattr(Shares, "found", 0.95)
    seconds = startup()
    monkeypatch.setattr(store, "_learnt", Known())
    assert known().startup == seconds
    assert (tmp_path / "installed.ran").exists()
    assert not (tmp_path / "planted.ran").exists()


@pytest.mark.slow
def test_the_command_measures_this_machine(tmp_path: Path) -> None:
    """In a process of its own, before `prepare`."""
    (tmp_path / "params.yaml").write_text(json.dumps(RAW))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-P", "-m", "smallbatch", "plan"]
    done = subprocess.run(
        [*words, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("measuring this machine's speed, once: bn at m = ") == 1
    assert done.stderr.count("measuring how long a training takes to start, once") == 1
    made = json.loads(done.stdout)
    assert [column["updates"] for column in made["columns"]] == [4 * 67, 4 * 4]
    assert all(column["measured"] for column in made["columns"])
    assert made["total"]["seconds"] == pytest.approx(
        sum(column["seconds"] for column in made["columns"])
    )
    assert not (tmp_path / "data").exists()
    raw = {**RAW, "dataset": {"name": "own", "source": "image_folder", "path": "images"}}
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    refused = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "run `smallbatch prepare`; the shape of its images is known from there" in line


def test_several_gpus_share_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs in the rate of three GPUs, which is that of one three times; and another start."""
    for module in (placement, plans, plan_rates, calibration):
        monkeypatch.setattr(module, "resolve_device", lambda _: "cuda")
    monkeypatch.setattr(placement.machine, "gpus", lambda: {"0": "H200"})
    one = make(tmp_path, engine="loop").columns[0]
    monkeypatch.setattr(placement.machine, "gpus", lambda: dict.fromkeys("012", "H200"))
    three = make(tmp_path, engine="loop").columns[0]
    assert (one.images_per_second, three.images_per_second) == (100, 300)
    assert three.seconds - 10 == pytest.approx((one.seconds - 5) / 3)
