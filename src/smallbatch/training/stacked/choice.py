"""What computes the parts of a step on a device, and whether that works there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smallbatch.errors import first_line
from smallbatch.training.loop import arithmetic
from smallbatch.training.stacked.convs import Convs, Grouped, Shortcut
from smallbatch.training.stacked.step import Tail, TorchTail

if TYPE_CHECKING:
    from smallbatch.config import Precision
    from smallbatch.training.engines import ConvsName
    from smallbatch.training.stacked.triton_convs import Dot

# ‖result − reference‖ / ‖reference‖ above which an algorithm counts as broken, by the activations'
# precision and the dots': rounding stays far below.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
SHAPES = [(16, 16, 1), (16, 32, 2)]  # channels in and out, stride: of the trial of convolutions

_trials: dict[tuple[str, Precision], bool] = {}
_fusing: dict[str, bool] = {}


def convs_by_name(name: ConvsName, precision: Precision) -> Convs:
    """The algorithm of a name, as a study's precision has it."""
    if name == "grouped":
        return Grouped()
    from smallbatch.training.stacked.triton_convs import FLOAT32_DOT, Triton

    dots: dict[Precision, Dot] = {"float32": FLOAT32_DOT, "tf32": "tf32", "bf16": "ieee"}
    return Triton(dots[precision])


def candidates(precision: Precision) -> dict[str, Convs]:
    """All algorithms of a GPU that count as a precision, the reference first."""
    from smallbatch.training.stacked.triton_convs import Triton

    # Three TF32 products have float32's error within a small factor: they count as float32.
    dots: dict[Precision, tuple[Dot, ...]] = {
        "float32": ("ieee", "tf32x3"),
        "tf32": ("tf32",),
        "bf16": ("ieee",),
    }
    return {"grouped": Grouped(), **{f"triton-{dot}": Triton(dot) for dot in dots[precision]}}


def default_convs(device: torch.device, precision: Precision) -> Convs:
    """The algorithm of a device: on a GPU by Triton's kernels where these work, else torch's."""
    by_triton = device.type == "cuda" and triton_works(device, precision)
    return convs_by_name("triton" if by_triton else "grouped", precision)


def triton_works(device: torch.device, precision: Precision) -> bool:
    """Whether the convolutions in Triton compile and give torch's numbers; one line if not."""
    key = device.type, precision
    if key not in _trials:
        try:
            reason = "" if _convs_agree(device, precision) else "wrong numbers"
        except Exception as error:  # noqa: BLE001 - a compiler's own errors
            reason = first_line(error)
        if reason:
            line = f"convolutions by Triton in {precision} are left out: {reason}"
            print(line, file=sys.stderr, flush=True)
        _trials[key] = not reason
    return _trials[key]


def _convs_agree(device: torch.device, precision: Precision) -> bool:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.no_grad(), arithmetic(precision, device):
        found = [
            _passes(convs_by_name(name, precision), device, dtype) for name in ("triton", "grouped")
        ]
    return all(
        bool((a - b).norm() <= TOLERANCE[precision] * b.norm())  # not with NaN
        for a, b in zip(*found, strict=True)
    )


def _passes(convs: Convs, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Results of every pass for two lanes, in float64 on the CPU."""
    random, results = torch.Generator().manual_seed(0), list[Tensor]()

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    for c, out, stride in SHAPES:
        x, weight = noise(3, 2 * c, 6, 6).relu(), noise(2, out, c, 3, 3)
        shortcut, g = Shortcut(x, stride), noise(3, 2 * out, 6 // stride, 6 // stride)
        of_weight = torch.empty(weight.shape, device=device)
        convs.weight_gradient(g, x, of_weight, stride)
        y = convs.forward(x, weight, noise(2, out), stride, shortcut, True)
        results += [y, of_weight, convs.input_gradient(g, weight, x, stride, g)]
    return [result.double().cpu() for result in results]


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
