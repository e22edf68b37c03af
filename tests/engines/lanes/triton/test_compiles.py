"""The kernels compile for a Hopper GPU, which needs none: only the last step, loading, does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
KERNELS = {
    "rows", "rows_weight", "taps", "taps_back", "taps_weight", "images", "images_weight",
    "moments", "normalise", "sums_back", "normalise_back", "pool", "pool_back",
    "gather", "pool_and_score", "spread_back", "weight_sums", "score", "descend", "note",
}  # fmt: skip


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {
        "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths,
        "DISABLE_PTXAS_OPT": "1",  # the assembler's own optimisations, after all that is checked
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.lanes.triton.compile_all"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in lines} == KERNELS
    # What a program may have on that GPU.
    assert max(int(shared) for _, shared in lines) < 227 * 1024
