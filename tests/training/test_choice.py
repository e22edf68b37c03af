"""The choice of a convolution algorithm by what each one takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from smallbatch.training.stacked.choice import Fastest
from smallbatch.training.stacked.convs import Grouped, Unrolled

X, WEIGHT = torch.rand(3, 8, 5, 5), torch.rand(2, 6, 4, 3, 3)


def clock(seconds: list[float]) -> Callable[[Callable[[], object]], float]:
    """A clock that says these, one after another."""
    answers: Iterator[float] = iter(seconds)

    def answer(call: Callable[[], object]) -> float:
        call()
        return next(answers)

    return answer


class _Broken(Grouped):
    def forward(self, *args: Any, **more: Any) -> Tensor:
        raise RuntimeError("does not compile\nwith details")


class _Wrong(Grouped):
    def forward(self, *args: Any, **more: Any) -> Tensor:
        return super().forward(*args, **more) * 1.01


def test_each_shape_gets_the_fastest_and_keeps_it() -> None:
    convs = Fastest({"a": Grouped(), "b": Unrolled()}, 1e-4, clock([2.0, 1.0, 1.0, 2.0]))
    for _ in range(2):
        convs.forward(X, WEIGHT, None, 1)
        convs.forward(X, WEIGHT, None, 2)
    assert list(convs.chosen.values()) == ["b", "a"]
    # One lane less of the same power of two, or an example: not timed again.
    convs.forward(X[:2], WEIGHT, None, 1)
    assert len(convs.chosen) == 2


def test_every_operation_is_passed_on() -> None:
    convs = Fastest({"a": Unrolled()}, 1e-4)
    y = convs.forward(X, WEIGHT, None, 2, None, True)
    assert torch.equal(y, Unrolled().forward(X, WEIGHT, None, 2, None, True))
    of_x = convs.input_gradient(y, WEIGHT, X, 2)
    assert torch.equal(of_x, Unrolled().input_gradient(y, WEIGHT, X, 2))
    mine, theirs = torch.empty_like(WEIGHT), torch.empty_like(WEIGHT)
    convs.weight_gradient(y, X, mine, 2)
    Unrolled().weight_gradient(y, X, theirs, 2)
    assert torch.equal(mine, theirs)
    assert {key[0] for key in convs.chosen} == {"forward", "input", "weight"}


@pytest.mark.parametrize(("bad", "says"), [(_Broken(), "does not compile"), (_Wrong(), "wrong")])
def test_what_fails_or_is_wrong_is_left_out_with_a_warning(bad: Any, says: str) -> None:
    convs = Fastest({"a": Grouped(), "bad": bad}, 1e-4, clock([2.0, 1.0]))
    with pytest.warns(UserWarning, match=says):
        y = convs.forward(X, WEIGHT, None, 1)
    assert torch.equal(y, Grouped().forward(X, WEIGHT, None, 1))


def test_a_diverged_lane_does_not_decide() -> None:
    x = X.clone()
    x[:, :4] = torch.nan
    convs = Fastest({"a": Grouped(), "b": Unrolled()}, 1e-4, clock([2.0, 1.0]))
    convs.forward(x, WEIGHT, None, 1)
    assert list(convs.chosen.values()) == ["b"]


def test_nothing_left_is_an_error() -> None:
    with (
        pytest.warns(UserWarning, match="does not compile"),
        pytest.raises(RuntimeError, match="no algorithm convolves"),
    ):
        Fastest({"bad": _Broken()}, 1e-4).forward(X, WEIGHT, None, 1)
