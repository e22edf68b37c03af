"""How many numbers a vector of the kernels has on this machine: measured once, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from smallbatch import durable, private
from smallbatch.engines.lanes.native.compiler import FLAGS, LIMIT_S, CompilerFailed, identity, run
from smallbatch.machine import cache_folder, processor

USUAL = 8
WIDTHS: tuple[int, ...] = (
    4,
    USUAL,
    16,
)  # in numbers of four bytes: vectors of 128, 256 and 512 bits
# Another width than the usual one must be so much faster: a wider one leaves more places empty.
MARGIN = 1.1
ROUNDS = 3  # of all widths, interleaved; of each the fastest counts
PROBE = Path(__file__).with_name("probe.cpp")
_FILES = [PROBE, *(PROBE.with_name(f"{it}.h") for it in ("structures", "vectors", "products",
                                                        "winograd"))]  # fmt: skip


@cache
def vector_width() -> int:
    """The numbers of a vector of this machine's kernels: one of `WIDTHS`.

    It is measured when kernels are first compiled here, and kept in the cache folder, as the
    numbers of a run may depend on it: what was begun with it goes on with it. Where it cannot be
    kept, it is the usual one, as one start may find another width than the next.

    Raises:
        CompilerFailed: There is no compiler, or it fails.
    """
    folder = private.cache_folder(cache_folder)
    if folder is None:
        return USUAL
    path = folder / f"width-{_key()}.json"
    if (kept := _kept(path)) is not None:
        return kept
    with ExitStack() as stack:
        with suppress(OSError):  # without the lock, or after a long wait, for oneself
            wait = (len(WIDTHS) + 1) * LIMIT_S
            stack.enter_context(private.locked(path.with_suffix(".lock"), wait=wait))
        if (kept := _kept(path)) is not None:
            return kept
        try:
            rates = _measured(folder)
        except CompilerFailed:
            raise
        except (OSError, AttributeError):  # a read-only folder; no library of the probe's
            rates = {}
        if (kept := _kept(path)) is not None:  # another process did not wait for this one
            return kept
        if not rates:
            return USUAL
        text = json.dumps({"width": _chosen(rates), "images_per_second": rates})
        with suppress(OSError):
            durable.write(path, text.encode(), mode=0o600)
    return _kept(path) or USUAL


def _chosen(rates: dict[int, float]) -> int:
    """The fastest width, or the usual one if none is much faster."""
    fastest = max(rates, key=lambda width: rates[width], default=USUAL)
    return fastest if rates.get(fastest, 0) >= MARGIN * rates.get(USUAL, 0) else USUAL


def _measured(folder: Path) -> dict[int, float]:
    """Images per second of a convolution by the vectors of each width that works here.

    Raises:
        CompilerFailed: There is no compiler, or it fails for the usual width as well.
    """
    with tempfile.TemporaryDirectory(prefix="smallbatch-", dir=folder) as scratch:
        probes: dict[int, ctypes.CDLL] = {}
        for width in WIDTHS:
            try:
                probes[width] = _probe(width, Path(scratch))
            except CompilerFailed:
                if width == USUAL:
                    raise
            except OSError:  # on a disk that runs no programs
                continue
    rates = dict.fromkeys(probes, 0.0)
    for _ in range(ROUNDS):
        for width, probe in probes.items():
            rates[width] = max(rates[width], probe.images_per_second())
    return rates


def _probe(width: int, folder: Path) -> ctypes.CDLL:
    made = folder / f"probe-{width}.so"
    cxx, _ = identity()
    run([cxx, *FLAGS, "-DREAL=float", f"-DV={width}", str(PROBE), "-o", str(made)], LIMIT_S)
    if not made.is_file():
        raise CompilerFailed(f"{cxx} ended without a file")
    probe = ctypes.CDLL(str(made))
    probe.images_per_second.restype = ctypes.c_double
    return probe


def _kept(path: Path) -> int | None:
    """The width that was chosen before; None if that is not known, or somebody else said so."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        width = json.loads(private.read(path))["width"]
        return width if width in WIDTHS else None
    return None


def _key() -> str:
    """A hash of all that speeds depend on."""
    parts = [*FLAGS, platform.machine(), processor(), *identity()]
    sources = [path.read_bytes() for path in _FILES]
    return hashlib.sha256(b"\0".join([*sources, *map(str.encode, parts)])).hexdigest()[:16]
