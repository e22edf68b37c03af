"""Which kernels compute lanes, and what happens where Triton's do not work."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from smallbatch.training.stacked import choice
from smallbatch.training.stacked.triton import inputs, norms, tail
from tests.training.triton.tensors import DEVICE

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
    monkeypatch.setattr(choice, "triton_works", lambda device: asked.append(device) or works)
    assert choice.default_kernels(GPU, torch.float32) == ("triton" if works else "grouped")
    assert asked == ["cuda"]
    assert choice.default_kernels(CPU, torch.float32) == "grouped"
    for device in (CPU, GPU):
        assert choice.default_kernels(device, torch.float64) == "unrolled"
    assert asked == ["cuda"]


def test_the_trial_passes_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.triton_works(DEVICE.type)
    monkeypatch.setattr(tail, "agrees", lambda _device: pytest.fail("tried again"))
    assert choice.triton_works(DEVICE.type)


@pytest.mark.parametrize("part", [inputs, norms, tail])
def test_kernels_that_do_not_compile_are_done_without(
    monkeypatch: pytest.MonkeyPatch, part: object
) -> None:
    def fail(_device: torch.device) -> bool:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(part, "agrees", fail)
    with pytest.warns(UserWarning, match="without Triton's kernels: no compiler"):
        assert not choice.triton_works(DEVICE.type)


def test_kernels_that_are_wrong_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "agrees", lambda _device: False)
    with pytest.warns(UserWarning, match="without Triton's kernels: wrong numbers"):
        assert not choice.triton_works(DEVICE.type)
