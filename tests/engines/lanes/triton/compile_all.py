"""A program: the steps of the paper's models, whose kernels are compiled for a Hopper GPU, not run.

The wrappers choose blocks and constants as for a real step; what they would launch is written down
instead, with the types and the divisibility by 16 that Triton would see. Of launches with the same
blocks and types the one with the most channels is compiled, and of those as few as together have
every pair of a kernel's values (of a constant, a type, an option) that occurs. Prints a kernel's
name and the shared memory that it takes in bytes, a line each.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from smallbatch.config.study import StudyConfig
from smallbatch.engines.lanes.step import Metrics
from smallbatch.engines.lanes.torch.lanes import make_step
from smallbatch.engines.lanes.triton import convs, heads, inputs, norms, pool, tail
from smallbatch.engines.lanes.weights import LaneWeights
from smallbatch.engines.resident import load_resident
from smallbatch.protocol.optimiser import MOMENTS, Constants
from smallbatch.protocol.run import Run
from tests.noise import make_dataset

MODELS: list[tuple[str, Any]] = [
    ("resnet8", "none"), ("resnet8", "batch"), ("resnet32", "batch"),
    ("alexnet", "none"), ("alexnet", "batch"), ("alexnet", "ghost"),
]  # fmt: skip
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float64: "*fp64",
         torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64"}  # fmt: skip
# Constants that are an activation's shape or say what comes before a store. The others decide how
# a kernel uses the GPU.
MINOR = {"H", "W", "C", "O", "PIXELS", "CX", "XH", "XW", "XS", "BIAS", "RELU", "SHORTCUT"}
launches: dict[tuple[str, ...], Launch] = {}


class Launch:
    """A kernel with its arguments' types, its constants and options."""

    def __init__(self, kernel: Any, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        self.kernel = kernel
        self.options = {n: v for n, v in more.items() if n not in kernel.arg_names}
        values = dict(zip(kernel.arg_names, args, strict=False))
        self.constants = {n: v for n, v in more.items() if n in kernel.arg_names}
        self.signature: dict[str, str] = {}
        self.attributes: dict[tuple[int], list[Any]] = {}
        for i, parameter in enumerate(kernel.params):
            name = parameter.name
            if name in self.constants:
                self.signature[name] = "constexpr"
                continue
            value = values[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and value == 1 and not parameter.do_not_specialize:
                self.constants[name], self.signature[name] = 1, "constexpr"
                continue
            kind = "i32" if whole else "fp32"
            self.signature[name] = TYPES[value.dtype] if isinstance(value, Tensor) else kind
            number = value.data_ptr() if isinstance(value, Tensor) else value
            if isinstance(number, int) and number % 16 == 0 and not parameter.do_not_specialize:
                self.attributes[(i,)] = [["tt.divisibility", 16]]

    def key(self) -> tuple[str, ...]:
        constants = sorted((n, str(v)) for n, v in self.constants.items() if n not in MINOR)
        types = [t for t in self.signature.values() if t != "constexpr"]
        return self.kernel.__name__, *(str(part) for part in (constants, types, self.options))

    def pairs(self) -> set[tuple[tuple[str, str], ...]]:
        """Every two of its values."""
        kinds = (self.constants, self.signature, self.options)
        values = {(n, str(v)) for kind in kinds for n, v in kind.items() if n not in MINOR}
        return set(itertools.combinations(sorted(values), 2))

    def size(self) -> tuple[int, int]:
        """Channels, and those of a shortcut."""
        of = self.constants
        return of.get("C", 1) * of.get("O", 1), of.get("CX", of.get("SHORTCUT", 0))

    def build(self) -> int:
        """Shared memory in bytes."""
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=self.options)
        if not done.asm["cubin"]:
            raise RuntimeError(f"{self.kernel.__name__}: nothing came out")
        return done.metadata.shared


class Recorder:
    """Stands for a kernel."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def note(*args: Any, **more: Any) -> None:
            launch = Launch(self.kernel, args, more)
            known = launches.get(launch.key())
            if known is None or known.size() < launch.size():
                launches[launch.key()] = launch

        return note


def record() -> None:
    """Go through a step of every model."""
    for module in (convs, heads, inputs, norms, pool, tail):
        for name, kernel in list(vars(module).items()):
            if name.startswith("_") and name[1:].isupper():
                setattr(module, name, Recorder(kernel))
    data = make_dataset(n=128, size=32, channels=3, test=2)
    resident = load_resident(data, augment=True, device=torch.device("cpu"))
    for (model, norm), m, precision in itertools.product(MODELS, (2, 128), ("float32", "bf16")):
        if norm == "ghost" and m == 2:
            continue
        settings: dict[str, Any] = {"bn_batch_size": 48} if norm == "ghost" else {}
        study = StudyConfig(model=model, norm=norm, epochs=1, weight_decay=0.0, augment=True,
                            precision=precision, **settings)  # fmt: skip
        runs = [Run(study, "f", m, base_lr, 0) for base_lr in (0.1, 0.2)]
        with torch.no_grad():
            step, _ = make_step(runs, resident, torch.float32, "triton")
            step.tables.load(0)
            step()
    zeros = [torch.zeros(2, dtype=torch.int64) for _ in range(3)]
    metrics = Metrics(torch.zeros(2, dtype=torch.float64), *zeros)
    for optimizer in MOMENTS:
        kind = Constants(optimizer, 8, 0.9, 0.999, 1e-8)
        lanes = LaneWeights(torch.zeros(2, 4096), {"w": torch.Size([4096])}, {}, {}, optimiser=kind)
        rates = torch.zeros(1, 3, 2)
        tail.TritonTail(2, lanes.theta.device).settle(
            lanes, rates, metrics, torch.zeros(1, dtype=torch.int64)
        )


def chosen() -> Iterator[Launch]:
    """The launches to compile: always next what has most pairs that none before had."""
    for kernel in {launch.kernel for launch in launches.values()}:
        pairs = {it: it.pairs() for it in launches.values() if it.kernel is kernel}
        left = set[Any]().union(*pairs.values())
        while left:
            best = max(pairs, key=lambda it: (len(pairs[it] & left), it.size()))
            left -= pairs[best]
            yield best


def main() -> None:
    record()
    each = list(chosen())
    # Each of two processes compiles every other kernel.
    second = os.fork() == 0
    for launch in each[second::2]:
        # One write, which the other process cannot cut in two.
        os.write(1, f"{launch.kernel.__name__} {launch.build()}\n".encode())
    if second:
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)


if __name__ == "__main__":
    main()
