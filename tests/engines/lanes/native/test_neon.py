"""The kernels on ARM's vectors (NEON), by an emulator, against this machine's.

The other tests of kernels run with this machine's vectors alone. Here `driver.cpp` calls each
kernel with small inputs and prints what it computes; it is compiled for both machines.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from smallbatch.engines.lanes.native import compile as native
from smallbatch.engines.lanes.native.compiler import FLAGS, identity

CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
DRIVER = Path(__file__).with_name("driver.cpp")
SOURCES = native.SOURCE.parent
# Neither a library, as the driver is a program, nor code for the machine that compiles.
PORTABLE = [flag for flag in FLAGS if flag not in {"-shared", "-march=native"}]
# Of the largest number of a block. Both machines add in the same order, but may differ in which
# products are rounded before they are added, in 1/d (an estimate on some) and in exp and log. That
# is a few roundings of 6e-8 or 1.1e-16, which 4×4 tiles amplify most. Measured: 2e-7 and 4e-16
# where both machines fuse products with sums, 6e-6 and 8e-15 where this one cannot.
TOLERANCE = {"float": 2e-5, "double": 3e-14}
# Numbers that are only moved, compared or added have the same bits.
EXACT = re.compile("flush|unpack|pack|across|sums_of|add_parts|max pool|hits")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CROSS_COMPILER is None or EMULATOR is None,
        reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 (or qemu-aarch64-static) on PATH",
    ),
]

Blocks = dict[str, NDArray[np.float64]]


def emulated(folder: Path, real: str, places: int, sources: Path = SOURCES) -> Blocks:
    """What the driver prints on ARM. The compiler must have nothing to say of the kernels."""
    made = folder / "arm"
    flags = [*PORTABLE, "-static", "-Wall", "-Wextra"]
    said = _compile([str(CROSS_COMPILER), *flags], made, real, places, sources)
    assert "warning:" not in said, said
    return _run([str(EMULATOR), str(made)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neon")


@cache
def here(folder: Path, real: str, places: int) -> Blocks:
    made = folder / "here"
    _compile([identity()[0], *PORTABLE, "-march=native"], made, real, places, SOURCES)
    return _run([str(made)])


def _compile(command: list[str], made: Path, real: str, places: int, sources: Path) -> str:
    own = [f"-I{sources}", f"-DREAL={real}", f"-DV={places}", str(DRIVER), "-o", str(made)]
    done = subprocess.run([*command, *own], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _run(command: list[str]) -> Blocks:
    """The numbers of each block by its name, which ends where the numbers of its line begin."""
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split(": ") for line in printed.splitlines()]
    blocks = {name: np.array(numbers.split(), np.float64) for name, numbers in lines}
    assert len(blocks) == len(lines)
    return blocks


def deviating(blocks: Blocks, expected: Blocks, real: str) -> dict[str, float]:
    """The blocks that differ by more than rounding, and by how much."""
    assert blocks.keys() == expected.keys()
    found: dict[str, float] = {}
    for name, numbers in expected.items():
        mine = blocks[name]
        assert np.isfinite(numbers).any(), name
        tolerance = 0 if EXACT.match(name) else TOLERANCE[real] * np.nanmax(np.abs(numbers))
        alike = mine.shape == numbers.shape and np.array_equal(np.isnan(mine), np.isnan(numbers))
        apart = np.nanmax(np.abs(mine - numbers)) if alike else np.inf
        if apart > tolerance:
            found[name] = float(apart)
    return found


@pytest.mark.parametrize(("real", "places"), [("float", 4), ("double", 4)])
def test_the_kernels_compute_the_same_on_arm(folder: Path, real: str, places: int) -> None:
    blocks, expected = emulated(folder, real, places), here(folder, real, places)
    assert not deviating(blocks, expected, real)
    # Each number is 0 or not: kept before, flushed within, and kept again after.
    kept = [expected[f"flush {when}"].tolist() for when in ("before", "within", "after")]
    ones = [1.0] * (2 + 2 * places)
    assert kept == [ones, [0.0] * len(ones), ones]


def test_faults_of_vectors_are_found(folder: Path) -> None:
    faults = {
        "x[v ^ bit]": "x[v ^ 1]",
        "x[v % L]": "x[v / (V / L)]",
        "before | 1 << 24": "before",
    }
    sources = folder / "sources"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (sources / "vectors.h").read_text()
    for right, wrong in faults.items():
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    (sources / "vectors.h").write_text(text)
    found = deviating(emulated(folder, "float", 4, sources), here(folder, "float", 4), "float")
    assert found.keys() >= {"across L1", "batch norm L2", "unpack L2", "tiles of 4 L2"}
    assert "flush within" in found
    assert not found.keys() & {"unpack L4", "across L4", "tiles of 4 L4", "flush after"}
