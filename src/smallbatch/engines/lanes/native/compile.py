"""Compiles the kernels with this machine's C++ compiler, once, and loads them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from smallbatch import durable, private
from smallbatch.engines.lanes.native import width
from smallbatch.engines.lanes.native.compiler import FLAGS, LIMIT_S, CompilerFailed, identity, run
from smallbatch.machine import cache_folder, processor

SOURCE = Path(__file__).with_name("kernels.cpp")
# Includes that source, and adds the optimisers with moments. Plain SGD has its own library, so that
# no change to the others can change how it rounds.
WITH_MOMENTS = Path(__file__).with_name("optimisers.cpp")
_FILES = [*sorted(SOURCE.parent.glob("*.h")), SOURCE]


def available(moments: bool = False) -> bool:
    """Whether the kernels are compiled already or can be compiled here."""
    return failure(moments) is None


def failure(moments: bool = False) -> str | None:
    """Why there are no kernels, in one line; None where there are."""
    found = _found("float", moments)
    return found if isinstance(found, str) else None


def library(real: str, decided: str | None = None, moments: bool = False) -> ctypes.CDLL:
    """The kernels for ``float`` or ``double``, compiled if this machine has not done so yet.

    Args:
        real: The type of numbers.
        decided: The version that they must have, if that was decided before.
        moments: Whether the optimiser has moments; without, it is plain SGD.

    Raises:
        OSError: There is no compiler, or it fails.
        RuntimeError: They have another version.
    """
    found = _found(real, moments)
    if decided is not None and (isinstance(found, str) or version_of(moments) != decided):
        raise RuntimeError(f"the native kernels {decided} are not to be had any more")
    if isinstance(found, str):
        raise CompilerFailed(found)
    return found


def version_of(moments: bool = False) -> str:
    """16 hex digits that identify these kernels; others may round differently."""
    return _key("float", moments, width.vector_width())


@cache
def _found(real: str, moments: bool) -> ctypes.CDLL | str:
    """The kernels, or why there are none.

    It is found out once, before workers are forked, as a compiler may fail now and not later:
    whatever this process and its workers compute, they compute by the same.
    """
    try:
        places = width.vector_width()
        folder = private.cache_folder(cache_folder)
        if folder is not None:
            try:
                return _kept(real, moments, places, folder)
            except CompilerFailed:
                raise
            except OSError as error:  # full, read-only, or on a disk that runs no programs
                why = error.strerror or error
                private.say_once(f"{folder}: {why}; kernels are compiled at every start")
        with tempfile.TemporaryDirectory(prefix="smallbatch-") as scratch:
            return ctypes.CDLL(str(_compile(real, moments, places, Path(scratch))))
    except OSError as error:
        return str(error)


def _key(real: str, moments: bool, places: int) -> str:
    """A hash of everything that the binary depends on."""
    parts = [real, *FLAGS, str(places), platform.machine(), processor(), *identity()]
    files = [*_FILES, WITH_MOMENTS] if moments else _FILES
    sources = [path.read_bytes() for path in files]
    return hashlib.sha256(b"\0".join([*sources, *map(str.encode, parts)])).hexdigest()[:16]


def _kept(real: str, moments: bool, places: int, folder: Path) -> ctypes.CDLL:
    """The kernels from the cache folder, compiled into it where it has none that are whole."""
    path = folder / f"kernels-{_key(real, moments, places)}.so"
    checked = _whole(path)
    if checked is None:
        with ExitStack() as stack:
            with suppress(OSError):  # without the lock, or after a long wait, for oneself
                lock = private.locked(path.with_suffix(".lock"), wait=LIMIT_S + 30)
                stack.enter_context(lock)
            checked = _whole(path)
            if checked is None:
                _compile_into(real, moments, places, path)
                checked = _whole(path)
    if checked is None:
        raise OSError(errno.EAGAIN, "another process changes it", str(path))
    # What was checked, whatever is at its place now. The descriptor stays open: for a number that
    # comes again the linker would give the library that it loaded under that name before.
    return ctypes.CDLL(f"/proc/self/fd/{checked}")


def _whole(path: Path) -> int | None:
    """A descriptor of a library that this user alone can have written, as it was compiled.

    Loading runs code; and half a library ends the process that loads it, by a signal.
    """
    try:
        found = private.open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = error.strerror
    else:
        with suppress(OSError), os.fdopen(found, "rb", closefd=False) as file:
            if private.read(_digest(path)) == _sha256(file.read()):
                return found
        os.close(found)
        why = "not as it was compiled"
    private.say_once(f"{path}: {why}; compiling it anew")
    return None


def _compile_into(real: str, moments: bool, places: int, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = _compile(real, moments, places, Path(scratch))
        made.chmod(0o700)  # whatever the umask is
        durable.write(_digest(path), _sha256(made.read_bytes()), mode=0o600)
        made.replace(path)


def _compile(real: str, moments: bool, places: int, folder: Path) -> Path:
    """Compile the kernels into a folder.

    Raises:
        CompilerFailed: There is no compiler, or it fails.
    """
    made = folder / "kernels.so"
    cxx, _ = identity()
    source = str(WITH_MOMENTS if moments else SOURCE)
    run([cxx, *FLAGS, f"-DREAL={real}", f"-DV={places}", source, "-o", str(made)], LIMIT_S)
    if not made.is_file():
        raise CompilerFailed(f"{cxx} ended without a file")
    return made


def _digest(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
