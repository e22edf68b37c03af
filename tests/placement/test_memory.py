"""In what parts a batch fits: by memory that is counted, or as the settings say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from smallbatch import machine
from smallbatch.config.params import ComputeConfig, parse_compute
from smallbatch.config.study import StudyConfig
from smallbatch.engines.made_by import Maker
from smallbatch.engines.update_memory import saved_for_backward
from smallbatch.errors import UserError
from smallbatch.models.build import build_model
from smallbatch.placement import known as store
from smallbatch.placement import memory
from smallbatch.placement.known import Known
from smallbatch.placement.memory import SHARE, micro_batch_of, step_of
from smallbatch.placement.placement import Placement, place, workload_of
from smallbatch.protocol.column import Column, plan_column
from smallbatch.speed import calibration
from smallbatch.speed.calibration import find_out
from tests.columns import place_and_train
from tests.noise import make_dataset
from tests.own_model import write_net

TWO_LAYERS = """
from torch import nn

def make(num_classes, in_chans):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 50), nn.ReLU(), nn.Linear(50, num_classes), nn.Dropout(0.0)
    )

class Fails(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.fc = nn.Linear(72, num_classes)

    def forward(self, x):
        if len(x) == 4:
            raise RuntimeError("four is too many")
        return self.fc(x.flatten(1))
"""
IMAGES = 4 * 72 * (23 + 11)  # bytes of the noise in float32


@pytest.fixture(autouse=True)
def unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of this machine, whose steps are never too small to be divided."""
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_learnt", Known())
    monkeypatch.setattr(memory, "LEAST", 0)
    monkeypatch.chdir(write_net(tmp_path))
    Path("two.py").write_text(TWO_LAYERS)


def column_of(
    norm: str = "none", m: int = 16, *, model: str = "resnet8", rates: int = 1, **settings: Any
) -> Column:
    raw = {"model": model, "norm": norm, "epochs": 3, "weight_decay": 1e-4, **settings}
    return plan_column(
        "s", StudyConfig.model_validate(raw), make_dataset(), batch_size=m,
        base_lrs=[2.0**-8 * (i + 1) for i in range(rates)], seeds=[0],
    )  # fmt: skip


def compute(**settings: Any) -> ComputeConfig:
    return ComputeConfig.model_validate(
        {"device": "cpu", "workers": 1, "engine": "loop", **settings}
    )


def bytes_of(column: Column, examples: float) -> float:
    step = step_of(column, workload_of(column, compute()))
    assert step.example is not None
    return step.weights + examples * step.example


def free_for(
    monkeypatch: pytest.MonkeyPatch, column: Column, examples: float, workers: int = 1
) -> None:
    """Exactly so much memory is free that a step of so many examples may take it."""
    free = IMAGES + workers * (int(bytes_of(column, examples) / SHARE) + 2)
    monkeypatch.setattr(memory, "free_memory", lambda: free)


def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if on another machine."""
    monkeypatch.setattr(store, "_learnt", Known())
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def placed(column: Column, **settings: Any) -> Placement:
    return place(column, compute(**settings))


def test_memory_is_that_of_what_the_layers_keep() -> None:
    column = column_of(model="two:make", optimizer="momentum", momentum=0.9)
    step = step_of(column, workload_of(column, compute()))
    # An image, the hidden layer after its ReLU, the logits' softmax, and the label.
    image, hidden, softmax, label = 4 * 72, 4 * 50, 4 * 3, 8
    assert step.example == image + hidden + softmax + label + 4 * image
    # Weights, gradient, a moment, and what an update needs beside them.
    assert step.weights == 4 * (72 * 50 + 50 + 50 * 3 + 3) * 4
    assert not step.whole


def test_memory_of_an_own_models_ghost_batch_norm_is_counted() -> None:
    """Which keeps other tensors for one sub-batch than for several."""
    column = column_of("batch", model="nets.odd:Ghosts")
    assert step_of(column, workload_of(column, compute())).example


@pytest.mark.parametrize("bn", [2, 3, 8])
def test_memory_of_ghost_batch_norm_is_that_of_its_sub_batches(bn: int) -> None:
    """What a batch of 6 sub-batches keeps beyond one of 3, with the largest of it again."""
    column = column_of("ghost", bn_batch_size=bn)
    step = step_of(column, workload_of(column, compute()))
    assert step.example is not None
    model = build_model(
        "resnet8", "ghost", num_classes=3, in_chans=2, image_size=(6, 6), seed=0, batch_size=48,
        bn_batch_size=bn,
    ).train()  # fmt: skip
    few, more = (
        [
            it.nbytes()
            for it in saved_for_backward(
                model, torch.randn(n * bn, 2, 6, 6), torch.zeros(n * bn, dtype=torch.long)
            ).values()
        ]
        for n in (3, 6)
    )
    each = [(two - one) / (3 * bn) for one, two in zip(few, more, strict=True)]
    kept = sum(each) + memory.LARGEST * max(each)
    # A sub-batch keeps its means and deviations; the fewer it has of images, the more are those.
    assert kept <= step.example <= 1.06 * kept


@pytest.mark.parametrize(
    ("examples", "micro"), [(16, None), (15.9, 8), (8, 8), (7.9, 4), (3.9, 2), (1, 1), (0.1, 1)]
)
def test_a_batch_is_halved_until_it_fits(
    monkeypatch: pytest.MonkeyPatch, examples: float, micro: int | None
) -> None:
    column = column_of()
    free_for(monkeypatch, column, examples)
    found = placed(column)
    assert found.method.micro_batch == micro
    assert Maker.parse(found.made_by).micro_batch == micro


def test_workers_share_the_memory_and_a_budget_is_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    column = column_of(rates=2)
    free_for(monkeypatch, column, 9, workers=2)
    assert placed(column).method.micro_batch is None
    assert placed(column, workers=2).method.micro_batch == 8
    forget(monkeypatch, tmp_path)
    budget = 2 * (bytes_of(column, 4.5) + 1) / 2**30
    assert placed(column, workers=2, memory=budget).method.micro_batch == 4
    assert placed(column, memory=budget).method.micro_batch is None


def test_the_fullest_gpu_decides_beside_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    column = column_of(augment=True)
    images = IMAGES + 4 * 72 * 23  # training images are padded in a copy of their own
    room = int(bytes_of(column, 8) / SHARE) + 2
    free = {0: 2**40, 1: images + room}
    monkeypatch.setattr(machine, "gpus", lambda: {"0": "H", "1": "H"})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free[i], 2**41))
    on_gpus = replace(workload_of(column, compute()), device="cuda")
    assert micro_batch_of(column, on_gpus, compute()) == 8
    free[1] -= 10
    assert micro_batch_of(column, on_gpus, compute()) == 4
    free[1] = 2**40
    assert micro_batch_of(column, on_gpus, compute()) is None


def test_ghost_parts_hold_whole_sub_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for m, bn, examples, micro in ((16, 4, 10, 8), (16, 4, 7, 4), (16, 4, 2, 4), (14, 3, 13, 9),
                                   (14, 3, 8.9, 6)):  # fmt: skip
        forget(monkeypatch, tmp_path)
        column = column_of("ghost", m, bn_batch_size=bn)
        free_for(monkeypatch, column, examples)
        assert placed(column).method.micro_batch == micro, (m, bn, examples)


def test_a_column_with_several_bn_batches_has_parts_of_all() -> None:
    column = column_of("ghost", 16, bn_batch_sizes=(2, 4))
    assert placed(column, micro_batch=8).method.micro_batch == 8
    with pytest.raises(UserError, match="with a BN batch size of 4, allowed: a multiple of 4"):
        placed(column, micro_batch=6)
    with pytest.raises(UserError, match="a BN batch size of 16 is all of it, so that none is"):
        placed(column_of("ghost", 16, bn_batch_sizes=(2, 16)), micro_batch=8)


def test_parts_hold_whole_sub_batches_of_an_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    column = column_of("batch", 12, model="nets.odd:Ghosts")
    with pytest.raises(UserError, match="with a BN batch size of 4, allowed: a multiple of 4"):
        placed(column, micro_batch=6)
    free_for(monkeypatch, column, 7)
    assert placed(column).method.micro_batch == 4


def test_what_fits_is_placed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A given micro-batch of m or more divides nothing, and neither do steps that are small."""
    column = column_of("batch")
    plain = placed(column)
    assert plain.method.key == "loop"
    assert "micro" not in plain.made_by
    assert placed(column, micro_batch=16).made_by == plain.made_by
    monkeypatch.setattr(memory, "LEAST", 2**26)
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    assert placed(column).made_by == plain.made_by


@pytest.mark.parametrize(
    ("norm", "settings"),
    [
        ("batch", {}),
        ("batch", {"model": "nets.mine:Net"}),
        ("ghost", {"bn_batch_size": 16}),
    ],
)
def test_batches_that_are_normalised_as_a_whole_are_refused(
    monkeypatch: pytest.MonkeyPatch, norm: str, settings: dict[str, Any]
) -> None:
    column = column_of(norm, **settings)
    why = "norm batch takes statistics from all of a batch at once"
    way = "norm ghost with a bn_batch_size"
    if norm == "ghost":
        why, way = "a BN batch size of 16 is all of it", "a smaller bn_batch_size"
    with pytest.raises(UserError) as told:
        placed(column, micro_batch=4)
    assert str(told.value) == (
        f"compute.micro_batch: found 4 at batch size 16; {why}, so that none is divided; allowed: "
        f"{way}, or auto"
    )
    free = IMAGES + int(bytes_of(column, 15))
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    with pytest.raises(UserError) as told:
        placed(column)
    line = str(told.value)
    assert line.startswith("compute.micro_batch: found auto; a batch of 16 needs 0.00 GiB of mem")
    assert line.endswith(f"; {why}, so that none is divided; allowed: {way}, or a smaller batch "
                         "size")  # fmt: skip
    assert "\n" not in line
    # Who only asks whose runs are taken over, or trains elsewhere, is not refused.
    assert place(column, compute(), here=False).method.key == "loop"


def test_batch_norm_that_may_fit_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    column = column_of("batch")
    step = step_of(column, workload_of(column, compute()))
    monkeypatch.setattr(memory, "free_memory", lambda: IMAGES + step.bytes(16))
    assert placed(column).method.key == "loop"
    # A limit for lanes does not refuse a whole batch either.
    assert placed(column, memory=1e-9).method.key == "loop"


def test_lanes_take_whole_batches() -> None:
    with pytest.raises(UserError, match="micro_batch: found 4 with engine stacked") as told:
        parse_compute({"engine": "stacked", "micro_batch": 4}, "params.yaml")
    assert "allowed: auto, or engine loop" in str(told.value)
    for wrong in (0, -1, 2.5, "8", True, None):
        with pytest.raises(UserError, match="a whole number from 1 to"):
            parse_compute({"micro_batch": wrong}, "params.yaml")
    column = column_of(m=4, rates=8)
    assert placed(column, engine="auto").engine == "stacked"
    by_loop = placed(column, engine="auto", micro_batch=2)
    assert by_loop.method.key == "loop in micro-batches of 2"
    assert placed(column, engine="auto").engine == "stacked"  # the first choice stays


def test_a_model_whose_memory_cannot_be_counted_is_not_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    column = column_of(model="two:Fails")
    assert step_of(column, workload_of(column, compute())).example is None
    assert placed(column).method.key == "loop"


def test_the_choice_for_a_column_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    column, other = column_of(), column_of(m=12)
    free_for(monkeypatch, column, 8)
    looked = place(column, compute(), keep=False)
    assert looked.method.micro_batch == 8
    free_for(monkeypatch, column, 4)
    assert placed(column).method.micro_batch == 4
    free_for(monkeypatch, column, 100)
    monkeypatch.setattr(store, "_learnt", Known())  # as in a new process
    assert placed(column).method.micro_batch == 4
    assert placed(other).method.micro_batch is None
    free_for(monkeypatch, column, 1)
    assert placed(other).method.micro_batch is None


def test_what_needs_parts_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(calibration, "decide", refuse)
    column = column_of(rates=8)
    free_for(monkeypatch, column, 4)
    find_out(column, compute(engine="auto"))
    assert micro_batch_of(column, workload_of(column, compute()), compute()) == 4
    free_for(monkeypatch, column, 100)
    with pytest.raises(AssertionError, match="measured"):
        find_out(column, compute(engine="auto"))


def test_with_little_memory_a_column_is_trained_in_parts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    column = column_of("ghost", rates=2, bn_batch_size=4)

    def train(name: str, **settings: Any) -> tuple[dict[str, Any], pd.DataFrame]:
        out = tmp_path / name
        place_and_train(column, out, compute=compute(**settings), work=tmp_path / "work")
        return json.loads((out / "timing.json").read_text()), pd.read_parquet(
            out / "history.parquet"
        )

    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    plain, history = train("plain", micro_batch=16)
    assert "micro_batch" not in json.dumps(plain)

    free_for(monkeypatch, column, 9)
    timing, kept = train("kept")  # whatever computed them, finished runs are taken over
    assert "micro_batch" not in json.dumps(timing)
    pd.testing.assert_frame_equal(kept, history)

    timing, parts = train("parts", micro_batch=8)  # what a setting names has to have made them
    assert timing["column"]["micro_batch"] == 8
    pd.testing.assert_frame_equal(parts, history, check_exact=False, rtol=1e-3)
    assert set(parts["run"]) == set(history["run"])
    timing, _ = train("whole", micro_batch=16)
    assert "micro_batch" not in json.dumps(timing)

    monkeypatch.setattr(store, "_learnt", Known())
    other = tmp_path / "other"
    place_and_train(column, other, compute=compute(), work=other.with_name("other-work"))
    assert json.loads((other / "timing.json").read_text())["column"]["micro_batch"] == 8
