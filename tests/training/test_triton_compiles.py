"""The kernels compile for a Hopper GPU, which needs none: only the last step, loading, does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import itertools
import os
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from smallbatch.training.stacked import triton_kernels as kernels, triton_norms as norms
from smallbatch.training.stacked import triton_inputs as inputs, triton_tail as tail

SECOND = os.fork() == 0  # each of two processes compiles every other kernel
turns = itertools.cycle((False, True))

def build(kernel, pointers, **constants):
    if next(turns) != SECOND:
        return
    def kind(name):
        if name in constants:
            return "constexpr"
        if name in FLOATS:
            return "fp32"
        if name in LONG or (name == "source" and constants.get("SOURCE")):
            return "*i64"
        return KINDS.get(name, DTYPE if name in pointers or name == "source" else "i32")
    source = ASTSource(kernel, {n: kind(n) for n in kernel.arg_names}, constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert done.asm["cubin"]
    print(kernel.__name__, done.metadata.shared)

FLOATS = {"momentum", "eps"}
LONG = {"examples", "out_labels", "labels", "counter", "correct_sum", "seen", "diverged"}
SINGLE = {name: "*fp32" for name in ("scale", "shift", "mean", "invstd", "running_mean",
          "running_var", "of_scale", "of_shift")}
KINDS = {"out": "*fp32", "loss_sum": "*fp64", "correct": "*i32", "bad": "*i32", **SINGLE}

for DTYPE, dot in (("*fp32", "ieee"), ("*fp32", "tf32x3"), ("*bf16", "ieee")):
    for c, out, size, stride, flat in ((3, 16, 5, 1, True), (16, 32, 3, 2, False)):
        shape = dict(C=c, O=out, SIZE=size, STRIDE=stride, BC=32 if flat else 16, BO=out, BP=64)
        build(kernels.convolve, {"x", "weight", "bias", "shortcut", "y"}, **shape, FLAT=flat,
              SOURCE=flat, BIAS=True, RELU=True, CX=0 if flat else 16, XSTRIDE=1, DOT=dot)
        build(kernels.correlate, {"g", "x", "out"}, **shape, FLAT=flat, SOURCE=flat, DOT=dot)
        if not flat:
            build(kernels.convolve_back, {"g", "weight", "x", "shortcut", "of_x"}, **shape,
                  SHORTCUT=True, DOT=dot)
    for ones in ({}, {"pixels": 1, "width": 1, "xh": 1, "xw": 1, "lanes": 1}):
        cx = 0 if ones else 8
        build(norms.normalise, {"x", "shortcut", "y"}, C=16, BLOCK=1024, RUNNING=bool(cx), CX=cx,
              XSTRIDE=2, **ones)
        ones = {name: ones[name] for name in ones if name in ("pixels", "lanes")}
        build(norms.normalise_back, {"g", "x", "of_x"}, C=16, BLOCK=1024, **ones)
DTYPE = "*fp32"
one = {"m": 1, "lanes": 1, "h": 1, "w": 1, "oh": 1, "ow": 1}
build(kernels.convolve, {"x", "weight", "bias", "shortcut", "y"}, C=16, O=16, SIZE=3, STRIDE=1,
      BC=16, BO=16, BP=64, FLAT=False, SOURCE=False, BIAS=False, RELU=False, CX=16, XSTRIDE=1,
      DOT="ieee", xh=1, xw=1, **one)
build(kernels.convolve_back, {"g", "weight", "x", "shortcut", "of_x"}, C=16, O=16, SIZE=3, STRIDE=1,
      BC=16, BO=16, BP=64, SHORTCUT=True, DOT="ieee", **one)
build(kernels.correlate, {"g", "x", "out"}, C=16, O=16, SIZE=3, STRIDE=1, BC=16, BO=16, BP=64,
      FLAT=False, SOURCE=False, DOT="ieee", **one)
del KINDS["out"]
build(inputs.gather, {"images", "out"}, AUGMENT=True, MARGIN=4, BLOCK=1024)
build(tail.score, {"logits", "gradient", "loss"}, CLASSES=10, PADDED=16, BLOCK=4)
build(tail.descend, {"theta", "gradient", "rates"}, BLOCK=1024)
build(tail.note, {"loss"}, PADDED=16)
if not SECOND:
    assert os.wait()[1] == 0
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    (tmp_path / "build.py").write_text(PROGRAM)  # Triton reads sources from files
    done = subprocess.run(
        [sys.executable, str(tmp_path / "build.py")],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shared = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(shared) == 34
    assert max(shared) < 227 * 1024  # what a block may have on that GPU
