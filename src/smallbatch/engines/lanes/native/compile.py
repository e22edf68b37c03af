"""Compiles the kernels with this machine's C++ compiler, once, and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from smallbatch import durable
from smallbatch.machine import cache_folder, processor

SOURCE = Path(__file__).with_name("kernels.cpp")
_FILES = [*sorted(SOURCE.parent.glob("*.h")), SOURCE]
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno")
LANES = 8  # numbers in a vector, which may be several machine vectors or a part of one


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of the usual names on PATH; None without one."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def available() -> bool:
    """Whether the kernels are compiled already or can be compiled here."""
    try:
        library("float")
    except OSError:
        return False
    return True


@cache
def library(real: str) -> ctypes.CDLL:
    """The kernels for ``float`` or ``double``, compiled if this machine has not done so yet.

    Raises:
        OSError: There is no compiler, or it fails.
    """
    path = cache_folder() / f"kernels-{_key(real)}.so"
    if not path.exists():
        _compile(real, path)
    return ctypes.CDLL(str(path))


def version() -> str:
    """16 hex digits that identify these kernels; others may round differently."""
    return _key("float")


def _key(real: str) -> str:
    """A hash of everything that the binary depends on."""
    parts = [real, *FLAGS, str(LANES), platform.machine(), processor(), *_compiler()]
    sources = [path.read_bytes() for path in _FILES]
    return hashlib.sha256(b"\0".join([*sources, *map(str.encode, parts)])).hexdigest()[:16]


@cache
def _compiler() -> tuple[str, str]:
    """The compiler, and the version that it reports."""
    cxx = compiler() or ""
    try:
        done = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return cxx, ""
    return cxx, done.stdout


def _compile(real: str, path: Path) -> None:
    cxx = compiler()
    if cxx is None:
        raise OSError("found no C++ compiler (c++, g++ or clang++ on PATH, or $CXX)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        command = [cxx, *FLAGS, f"-DREAL={real}", f"-DV={LANES}", str(SOURCE), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{cxx} cannot compile {SOURCE.name}: {done.stderr.strip()[:2000]}")
        durable.write(path, part.read_bytes())
