"""A column whose runs several ranks train: started as on a CPU and as on GPUs, told, refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from smallbatch import machine
from smallbatch.config.params import ComputeConfig, parse_compute
from smallbatch.config.study import StudyConfig
from smallbatch.engines.made_by import Maker, made_by_on
from smallbatch.errors import UserError, WorkerLost
from smallbatch.execution import workers
from smallbatch.execution.column import train_column
from smallbatch.execution.watch import GRACE_S
from smallbatch.placement.makers import makers_of
from smallbatch.placement.placement import Placement, place, workload_of
from smallbatch.protocol.column import Column, plan_column
from tests.noise import make_dataset

RESULTS = ("history.parquet", "weights.safetensors", "runs.json")


def plan(norm: str = "ghost", bn: int | None = 2, m: int = 8, epochs: int = 3) -> Column:
    values = {"model": "resnet8", "norm": norm, "bn_batch_size": bn, "weight_decay": 1e-4}
    settings = StudyConfig.model_validate(values | {"epochs": epochs})
    return plan_column(
        "study", settings, make_dataset(), batch_size=m, base_lrs=(2.0**-9, 2.0**6), seeds=[0]
    )


def placed(column: Column, ranks: int = 2, **compute: Any) -> Placement:
    return place(column, ComputeConfig(device="cpu", ranks=ranks, **compute), keep=False)


def train(column: Column, root: Path, placement: Placement) -> list[bytes]:
    train_column(column, root / "m", placement=placement, checkpoint_seconds=0.05,
                 work=root / "work")  # fmt: skip
    return [(root / "m" / name).read_bytes() for name in RESULTS]


def column_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "m/timing.json").read_text())["column"]


@pytest.mark.slow
def test_ranks_make_the_column_of_one_process_but_for_rounding(tmp_path: Path) -> None:
    column = plan()
    forked = train(column, tmp_path / "forked", placed(column))
    as_on_gpus = replace(placed(column), devices=("0", "1"))
    assert train(column, tmp_path / "spawned", as_on_gpus) == forked
    alone = train(column, tmp_path / "alone", placed(column, 1, engine="loop"))
    assert alone != forked
    one, two = (pd.read_parquet(tmp_path / it / "m/history.parquet") for it in ("alone", "forked"))

    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
    assert column_of(tmp_path / "forked")["ranks"] == 2
    assert "ranks" not in column_of(tmp_path / "alone")

    # Who asks for ranks gets what they made; who asks for none keeps what is finished.
    (tmp_path / "forked/m").rename(tmp_path / "forked/old")
    assert train(column, tmp_path / "forked", placed(column, 1)) == forked
    (tmp_path / "alone/m").rename(tmp_path / "alone/old")
    assert train(column, tmp_path / "alone", placed(column)) == forked


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [UserError("no such image"), ValueError("odd")])
def test_what_a_rank_says_is_told_and_ends_the_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, error: Exception
) -> None:
    as_it_is = workers.train

    def fails(*arguments: Any, ranks: Any, **options: Any) -> Any:
        if ranks.rank == rank:
            raise error
        return as_it_is(*arguments, ranks=ranks, **options)

    monkeypatch.setattr(workers, "train", fails)
    began = time.monotonic()
    with pytest.raises((UserError, RuntimeError), match=str(error)) as told:
        train(plan(epochs=100), tmp_path, placed(plan()))
    assert isinstance(told.value, UserError) == isinstance(error, UserError)
    assert time.monotonic() - began < GRACE_S


def test_ranks_that_do_not_meet_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with what it tells")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(WorkerLost, match=r"rank . of 2 lost the others: Gloo connectFullMesh"):
        train(plan(), tmp_path, placed(plan()))


def test_ranks_are_of_loop_and_part_of_what_made_a_run() -> None:
    assert parse_compute({"ranks": 2}, "x").engine == "loop"
    assert parse_compute({"ranks": 1}, "x").engine == "auto"
    with pytest.raises(UserError, match=r"ranks: found 2 with engine stacked, .* allowed: 1, or"):
        parse_compute({"ranks": 2, "engine": "stacked"}, "x")
    with pytest.raises(UserError, match="ranks: found 0, allowed"):
        parse_compute({"ranks": 0}, "x")

    study = plan().runs[0].settings
    alone, two = (made_by_on("loop", "cpu", study, ranks=n) for n in (1, 2))
    assert two.replace(" ranks=2", "") == alone
    assert Maker.parse(two) == replace(Maker.parse(alone), ranks=2)
    for asked, taken in ((1, {alone, two}), (2, {two}), (3, set[str]())):
        makers = makers_of(study, ComputeConfig(ranks=asked), "loop", batch_size=7)
        assert {text for text in (alone, two) if text in makers} == taken
    assert makers.place(two)["ranks"] == 2
    assert "ranks" not in makers.place(alone)


def test_batches_that_cannot_be_divided_are_refused_before_anything_trains() -> None:
    for column, ranks, allowed in (
        (plan("batch", None, m=7), 2, "batch size 7 with a BN batch of 7, allowed: 1, 7"),
        (plan("none", None, m=7), 8, "batch size 7, allowed: 1 to 7"),
        (plan("ghost", 2, m=8), 5, "batch size 8 with a BN batch of 2, allowed: 1 to 4, 8"),
    ):
        with pytest.raises(UserError) as refused:
            placed(column, ranks)
        assert str(refused.value) == f"compute.ranks: found {ranks} at {allowed}"
    assert placed(plan("batch", None, m=8)).ranks == 2


def test_a_micro_batch_is_a_part_of_a_ranks_share() -> None:
    column = plan("ghost", 2, m=12)  # shares of six
    assert placed(column, micro_batch=4).method.micro_batch == 4
    assert placed(column, micro_batch=6).method.micro_batch is None
    with pytest.raises(UserError, match=r"found 3 .* with a BN batch size of 2, allowed: a mul"):
        placed(column, micro_batch=3)
    with pytest.raises(UserError, match="a BN batch size of 12 is all of a rank's 6 examples"):
        placed(plan("ghost", 12, m=12), micro_batch=4)
    workload = workload_of(column, ComputeConfig(device="cpu", ranks=2))
    assert workload.workers == 2
    assert placed(column).workers == 1


def test_each_rank_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ["NVIDIA H200"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "gpus", lambda: {str(i): it for i, it in enumerate(gpus)})
    monkeypatch.setattr(machine, "gpu_name", lambda: gpus[0])
    monkeypatch.setattr(
        "smallbatch.placement.placement.micro_batch_of", lambda *_args, **_options: None
    )
    column = plan()  # two runs, trained one after another

    def on_gpus(ranks: int) -> Placement:
        return place(column, ComputeConfig(device="cuda", ranks=ranks), keep=False)

    placement = on_gpus(3)
    assert (placement.devices, placement.ranks, placement.workers) == (("0", "1", "2"), 3, 1)
    gpus[1] = "NVIDIA T4"
    assert on_gpus(2).devices == ("0", "2")
    with pytest.raises(UserError) as refused:
        on_gpus(3)
    assert str(refused.value) == (
        "compute.ranks: found 3 with 2 GPUs of one model, allowed here: at most 2"
    )
