"""The convolutions' algorithms by name, and the trial of those in Triton."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smallbatch.training.stacked import choice, triton_convs
from smallbatch.training.stacked.choice import candidates, convs_by_name, default_convs
from smallbatch.training.stacked.convs import Grouped
from smallbatch.training.stacked.triton_convs import Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_trials", {})


def kind(convs: Any) -> str:
    return "grouped" if isinstance(convs, Grouped) else f"triton-{convs.dot}"


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("float32", ["grouped", "triton-ieee", "triton-tf32x3"]),
        ("tf32", ["grouped", "triton-tf32"]),
        ("bf16", ["grouped", "triton-ieee"]),
    ],
)
def test_a_name_is_one_of_the_algorithms_of_a_precision(precision: Any, names: list[str]) -> None:
    found = candidates(precision)
    assert list(found) == names
    assert [kind(convs) for convs in found.values()] == names
    assert kind(convs_by_name("grouped", precision)) == "grouped"
    assert kind(convs_by_name("triton", precision)) in names[1:]


@pytest.mark.parametrize("dot", ["ieee", "tf32x3"])
def test_one_constant_says_how_triton_multiplies_float32(
    monkeypatch: pytest.MonkeyPatch, dot: str
) -> None:
    monkeypatch.setattr(triton_convs, "FLOAT32_DOT", dot)
    assert kind(convs_by_name("triton", "float32")) == f"triton-{dot}"
    assert kind(convs_by_name("triton", "tf32")) == "triton-tf32"


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_trial_passes(precision: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if precision == "bf16" and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bf16 as integers")
    assert choice.triton_works(DEVICE, precision)
    assert capsys.readouterr().err == ""


def broken(*_: Any, **__: Any) -> Tensor:
    raise ValueError("does not compile\nwith details")


def wrong(self: Triton, x: Tensor, *more: Any) -> Tensor:
    return Grouped().forward(x, *more) * 1.001


def infinite(self: Triton, x: Tensor, *more: Any) -> Tensor:
    return Grouped().forward(x, *more) * torch.nan


@pytest.mark.parametrize(
    ("bad", "why"),
    [(broken, "does not compile"), (wrong, "wrong numbers"), (infinite, "wrong numbers")],
)
def test_what_fails_or_is_wrong_is_left_out_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: Any, why: str
) -> None:
    monkeypatch.setattr(Triton, "forward", bad)
    for _ in range(2):
        assert not choice.triton_works(DEVICE, "float32")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"convolutions by Triton in float32 are left out: {why}"


@pytest.mark.parametrize(("works", "name"), [(True, "triton-tf32"), (False, "grouped")])
def test_a_gpus_default_is_triton_where_that_works(
    monkeypatch: pytest.MonkeyPatch, works: bool, name: str
) -> None:
    monkeypatch.setattr(choice, "triton_works", lambda *_: works)
    assert kind(default_convs(torch.device("cuda"), "tf32")) == name
    assert kind(default_convs(torch.device("cpu"), "tf32")) == "grouped"
