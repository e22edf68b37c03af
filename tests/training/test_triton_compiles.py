"""The kernels compile for a Hopper GPU, which needs none: only the last step, loading, does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from smallbatch.training import triton_kernels as kernels

def build(kernel, pointers, **constants):
    def kind(name):
        if name in constants:
            return "constexpr"
        if name == "source":
            return "*i64" if constants.get("SOURCE") else "*fp32"
        return DTYPE if name in pointers else "i32"
    source = ASTSource(kernel, {n: kind(n) for n in kernel.arg_names}, constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert done.asm["cubin"]
    print(kernel.__name__, done.metadata.shared)

for DTYPE, dot in (("*fp32", "ieee"), ("*fp32", "tf32x3"), ("*bf16", "ieee")):
    for c, out, size, stride, flat in ((3, 16, 5, 1, True), (16, 32, 3, 2, False)):
        shape = dict(C=c, O=out, SIZE=size, STRIDE=stride, BC=32 if flat else 16, BO=out, BP=64)
        build(kernels.convolve, {"x", "weight", "bias", "shortcut", "y"}, **shape, FLAT=flat,
              SOURCE=flat, BIAS=True, RELU=True, CX=0 if flat else 16, XSTRIDE=1, DOT=dot)
        build(kernels.correlate, {"g", "x", "out"}, **shape, FLAT=flat, SOURCE=flat, DOT=dot)
        if not flat:
            build(kernels.convolve_back, {"g", "weight", "x", "shortcut", "of_x"}, **shape,
                  SHORTCUT=True, DOT=dot)
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
    assert len(shared) == 15
    assert max(shared) < 227 * 1024  # what a block may have on that GPU
