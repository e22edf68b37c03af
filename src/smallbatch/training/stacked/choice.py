"""What computes the parts of a step; for convolutions the fastest of several, by trying them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smallbatch.training.stacked.convs import Convs, Grouped, Shortcut, Unrolled
from smallbatch.training.stacked.inputs import Shared
from smallbatch.training.stacked.step import Tail, TorchTail

if TYPE_CHECKING:
    from smallbatch.config import Precision

# ‖result − reference‖ / ‖reference‖ above which an algorithm counts as broken, by the activations'
# precision and the dots': rounding stays far below.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
CALLS = 5  # in one timing
SLOW = 0.02  # seconds of a call that needs no second look

_choices: dict[Precision, Fastest] = {}
_fusing: dict[str, bool] = {}


def candidates(precision: Precision) -> dict[str, Convs]:
    """The algorithms of a GPU by name, the reference first."""
    from smallbatch.training.stacked.triton_convs import Dot, Triton

    # Three TF32 products have float32's error within a small factor: they count as float32.
    dots: dict[Precision, tuple[Dot, ...]] = {
        "float32": ("ieee", "tf32x3"),
        "tf32": ("tf32",),
        "bf16": ("ieee",),
    }
    kernels = {f"triton-{dot}": Triton(dot) for dot in dots[precision]}
    return {"grouped": Grouped(), "unrolled": Unrolled(), **kernels}


def default_convs(device: torch.device, precision: Precision) -> Convs:
    """The algorithm for a device: torch's on a CPU, else the fastest; what it finds is kept."""
    if device.type != "cuda":
        return Grouped()
    if precision not in _choices:
        _choices[precision] = Fastest(candidates(precision), TOLERANCE[precision])
    return _choices[precision]


def default_fusing(device: torch.device) -> bool:
    """Whether all but the convolutions is done by Triton's kernels: on a GPU where these work."""
    if device.type != "cuda":
        return False
    if device.type not in _fusing:
        _fusing[device.type] = _trial(device)
    return _fusing[device.type]


def _trial(device: torch.device) -> bool:
    """Whether Triton's kernels compile and give the right numbers; a warning if not."""
    try:
        from smallbatch.training.stacked import triton_inputs, triton_norms, triton_tail

        parts = (triton_inputs, triton_norms, triton_tail)
        right = all(part.agrees(device) for part in parts)
        reason = "wrong numbers"
    except Exception as error:  # noqa: BLE001 - a compiler's own errors
        right, reason = False, str(error).strip()[:200]
    if not right:
        warnings.warn(f"stacked lanes do without Triton's kernels: {reason}", stacklevel=3)
    return right


def default_tail(device: torch.device, dtype: torch.dtype) -> Callable[[int, torch.device], Tail]:
    """What comes after the network in a step: by Triton where that works, in float32."""
    if dtype != torch.float32 or not default_fusing(device):
        return lambda *_: TorchTail()
    from smallbatch.training.stacked.triton_tail import TritonTail

    return TritonTail


class Fastest:
    """Each operation by the fastest algorithm for its shape, found when it first comes up.

    An algorithm that fails, or disagrees with the first, is left out with a warning.

    Args:
        algorithms: by name, the reference first.
        tolerance: relative, for the comparison with the reference.
        clock: seconds of a call; by default measured.
    """

    def __init__(
        self,
        algorithms: Mapping[str, Convs],
        tolerance: float,
        clock: Callable[[Callable[[], object]], float] | None = None,
    ) -> None:
        self.algorithms, self.tolerance = dict(algorithms), tolerance
        self.clock = clock or _seconds
        self.chosen: dict[tuple[Any, ...], str] = {}
        self.seconds: dict[tuple[Any, ...], dict[str, float]] = {}

    def _run(self, key: tuple[Any, ...], call: Callable[[Convs], Any]) -> Any:
        if key not in self.chosen:
            self._measure(key, call)
        return call(self.algorithms[self.chosen[key]])

    def _measure(self, key: tuple[Any, ...], call: Callable[[Convs], Any]) -> None:
        times: dict[str, float] = {}
        reference: Tensor | None = None
        for name, algorithm in self.algorithms.items():
            try:
                result = call(algorithm).clone()
                if reference is None:
                    reference = result
                elif not self._agrees(result, reference):
                    warnings.warn(f"{name} left out of {key}: wrong numbers", stacklevel=2)
                    continue
                times[name] = self.clock(lambda algorithm=algorithm: call(algorithm))
            except Exception as error:  # noqa: BLE001 - out of memory, a compiler's own errors
                line = str(error).strip().splitlines()[:1]
                warnings.warn(f"{name} left out of {key}: {line}", stacklevel=2)
        if not times:
            raise RuntimeError(f"no algorithm convolves {key}")
        self.seconds[key] = times
        self.chosen[key] = min(times, key=lambda name: times[name])

    def _agrees(self, result: Tensor, reference: Tensor) -> bool:
        # Of lanes that are finite: others, diverged, may be NaN here and infinite there.
        good = reference.isfinite() & result.isfinite()
        a, b = (torch.where(good, t, 0.0).double() for t in (result, reference))
        error = torch.linalg.vector_norm(a - b)
        return bool(error <= self.tolerance * torch.linalg.vector_norm(b) + 1e-30)

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        """See `Convs`."""
        key = ("forward", *_key(x, weight), stride, shortcut is not None)
        return self._run(key, lambda c: c.forward(x, weight, bias, stride, shortcut, relu))

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        """See `Convs`."""
        key = ("input", *_key(x, weight), stride, shortcut is not None)
        return self._run(key, lambda c: c.input_gradient(g, weight, x, stride, shortcut))

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        """See `Convs`."""

        def call(algorithm: Convs) -> Tensor:
            algorithm.weight_gradient(g, x, out, stride)
            return out

        self._run(("weight", *_key(x, out), stride), call)

    def forward_shared(
        self, shared: Shared, weight: Tensor, bias: Tensor | None, stride: int, relu: bool
    ) -> Tensor:
        """See `Convs`."""
        x = shared.images
        key = ("first forward", *_key(x[0], weight), stride)
        return self._run(key, lambda c: c.forward_shared(shared, weight, bias, stride, relu))

    def weight_gradient_shared(self, g: Tensor, shared: Shared, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        x = shared.images

        def call(algorithm: Convs) -> Tensor:
            algorithm.weight_gradient_shared(g, shared, out, stride)
            return out

        self._run(("first weight", *_key(x[0], out), stride), call)


def _key(x: Tensor, weight: Tensor) -> tuple[Any, ...]:
    """A shape, with examples and lanes by their powers of two.

    Lanes leave a column and evaluations have batches of other sizes; what is fastest hardly
    changes with that, and timing it again would cost seconds.
    """
    sizes = len(x).bit_length(), len(weight).bit_length()
    return str(x.dtype), *sizes, *x.shape[2:], *weight.shape[1:]


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of one call: of a captured one on a GPU, where launches cost nothing."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    if first > SLOW:
        return first
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    best = float("inf")
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / CALLS)
    return best
