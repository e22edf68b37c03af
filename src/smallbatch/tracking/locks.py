"""Keeps the processes of one machine from writing to one store at the same time."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from smallbatch import machine, private
from smallbatch.errors import UserError
from smallbatch.tracking.uri import TrackingUri

WAIT_S = 600.0
"""Most seconds to wait for another process; a large campaign to a slow server takes minutes."""
_QUIET_S = 2.0


class Busy(UserError):  # noqa: N818 - the state of a store
    """Another process writes to the store, which therefore can be reached."""


def own_folder() -> Path:
    """A private folder for locks and half-made files: in the cache, else in `.smallbatch` here.

    All processes of a user must find the same one. The temporary folder would not do: others may
    write it, so that they could plant a link or a lock there.

    Raises:
        UserError: Neither can be written by this user alone.
    """
    problem: Exception | None = None
    for parent in (machine.cache_folder, lambda: Path(".smallbatch").absolute()):
        try:
            folder = private.make_folder(parent() / "tracking")
            if os.access(folder, os.W_OK):
                return folder
            raise PermissionError(f"{folder}: cannot be written")
        except (OSError, RuntimeError) as error:  # the latter: there is no home
            problem = problem or error
    raise UserError(
        f"SMALLBATCH_CACHE: MLflow is written under a lock, and there is no place for it that only "
        f"this user can write ({problem}); name such a folder"
    )


@contextmanager
def exclusive(uri: TrackingUri, purpose: str, *, wait: float = WAIT_S) -> Generator[None]:
    """Keep other processes of this machine from using the same store for the same purpose.

    Args:
        uri: The store; all its spellings share one lock.
        purpose: The name of the experiment, or `initialise`.
        wait: Seconds to wait for another process, at most. What is waited for is told on stderr.

    Raises:
        Busy: Another process has it for that long.
        UserError: There is no place for locks.
    """
    name = hashlib.sha256(f"{uri.store}\n{purpose}".encode()).hexdigest()[:16]
    path = own_folder() / f"{name}.lock"
    tell_at: list[float] = [time.monotonic() + _QUIET_S]

    def check() -> None:
        if tell_at and time.monotonic() > tell_at[0]:
            tell_at.clear()
            print(f"waiting for another process that writes to {uri} ({purpose})", file=sys.stderr)

    with ExitStack() as held:
        try:
            held.enter_context(private.locked(path, wait=wait, check=check))
        except TimeoutError:
            raise Busy(
                f"MLFLOW_TRACKING_URI: another process has been writing to {uri} ({purpose}) for "
                f"over {wait:g} s; it holds {path}"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        yield
