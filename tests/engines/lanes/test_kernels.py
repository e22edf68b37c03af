"""Which kernels compute lanes, and what happens where Triton's do not work."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch

from smallbatch.engines.lanes import kernels as choice
from smallbatch.engines.lanes.triton import convs, inputs, norms, tail
from tests.engines.lanes.triton.tensors import DEVICE

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def not_tried() -> Generator[None, None, None]:
    """What was tried before or is tried here is forgotten."""
    choice.triton_works.cache_clear()
    yield
    choice.triton_works.cache_clear()


@pytest.mark.parametrize("works", [True, False])
def test_the_default_is_tritons_kernels_on_a_gpu_where_they_work(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        choice, "triton_works", lambda device, _: asked.append(device.type) or works
    )
    name = "triton" if works else "grouped"
    assert choice.default_kernels(GPU, torch.float32, "float32") == name
    assert asked == ["cuda"]
    assert choice.default_kernels(CPU, torch.float32, "float32") == "grouped"
    for device in (CPU, GPU):
        assert choice.default_kernels(device, torch.float64, "float32") == "unrolled"
    assert asked == ["cuda"]


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_trial_passes_and_is_made_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: Any
) -> None:
    if precision == "bf16" and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bf16 as integers")
    assert choice.triton_works(DEVICE, precision)
    monkeypatch.setattr(tail, "agrees", lambda _device: pytest.fail("tried again"))
    assert choice.triton_works(DEVICE, precision)
    assert capsys.readouterr().err == ""


def _fail(*_: object) -> bool:
    raise RuntimeError("no compiler\nwith details")


@pytest.mark.parametrize(
    ("part", "name"),
    [(convs, "agrees"), (inputs, "agrees"), (norms, "agrees"), (tail, "agrees")],
)
@pytest.mark.parametrize("why", ["no compiler", "wrong numbers"])
def test_kernels_that_fail_or_are_wrong_are_done_without_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: object, name: str,
    why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(part, name, _fail if why == "no compiler" else lambda *_: False)
    for _ in range(2):
        assert not choice.triton_works(DEVICE, "float32")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"Triton's kernels are left out in float32: {why}"


@pytest.mark.parametrize("kernel", ["forward", "input_gradient"])
def test_a_convolution_that_is_a_little_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    right = getattr(convs, kernel)
    for factor in (1.001, torch.nan):
        monkeypatch.setattr(convs, kernel, lambda *a, f=factor: right(*a) * f)
        assert not convs.agrees(DEVICE, "float32")
