"""How the keeper reaches a Ray cluster, or makes one of this machine alone."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from smallbatch import durable, machine, private
from smallbatch.errors import UserError

_ANSWER_S = 5.0
_TRIES, _PAUSE_S = 3, 2.0
_SLOW = "Initialization failure from server"  # of Ray's client
_MEMORY = 2**28  # bytes of a local cluster's object store: there only progress passes through it
_PREFIX = "smallbatch-ray-"
_LOCK_S = 600.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Else Ray binds to, and looks for, the address that the machine has on its network.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def address_of(asked: str) -> str | None:
    """The address to connect to; None for a cluster of this machine alone.

    Args:
        asked: As `compute.ray.address` has it. `auto` is that of `RAY_ADDRESS`, or of a cluster
            that this user started on this machine.

    Raises:
        UserError: Nothing answers there.
    """
    if asked != "auto":
        _probe(asked)
        return asked
    if named := os.environ.get("RAY_ADDRESS"):
        return address_of(named) if named not in ("auto", "local") else None
    with suppress(OSError, UserError, UnicodeDecodeError):
        # Private: whoever else wrote it would have us train, and show our token, elsewhere.
        note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108
        found = private.read(note).decode().strip()
        _probe(found)
        return found
    return None


def _probe(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not host or not colon or not 0 < int(port) < 2**16:
            raise ValueError
    except ValueError:
        raise UserError(
            f"compute.ray.address: found {address!r}, allowed: auto, HOST:6379 or ray://HOST:10001"
        ) from None
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"compute.ray.address: found {address}, where no Ray cluster answers "
            f"({error.strerror or error})"
        ) from None


def gone(address: str) -> str | None:
    """What to say where the cluster of a keeper that ended does not answer; None if it does."""
    try:
        _probe(address)
    except UserError:
        return (
            f"the Ray cluster at {address} is gone; when it has been started again, "
            "the same command goes on"
        )
    return None


def _init(ray: Any, address: str) -> None:
    """Connect; to a client server again, if a busy machine gave it too little time to answer."""
    for left in reversed(range(_TRIES if address.startswith("ray://") else 1)):
        try:
            ray.init(address=address, log_to_driver=False, namespace="smallbatch")
            return
        except ConnectionError as error:
            if not left or _SLOW not in str(error):
                raise
            time.sleep(_PAUSE_S)


@contextmanager
def connected(address: str | None) -> Generator[Any]:
    """Ray's module, connected; the connection, or the local cluster, ends with the context."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else the project's folder and the environment go along.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    if address is not None:
        if address.removeprefix("ray://").rpartition(":")[0].strip("[]") in _LOOPBACK:
            os.environ.update(_ON_LOOPBACK)
        _use_token()
        ray: Any = import_module("ray")
        _init(ray, address)
        yield ray
        ray.shutdown()
        return
    folder = private.make_folder(machine.cache_folder())
    token = folder / "ray-token"
    if not token.exists():
        durable.write(token, secrets.token_hex(32).encode(), mode=0o600)
    private.read(token)
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **_ON_LOOPBACK}
    ray = import_module("ray")
    with sessions() as place:
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=_MEMORY,
                namespace="smallbatch",
                _temp_dir=str(place / "r"),  # which Ray opens to all
            )
            yield ray
        finally:
            ray.shutdown()


def sessions(parent: Path = Path("/tmp")) -> AbstractContextManager[Path]:  # noqa: S108
    """A folder of this user alone; those that killed keepers left are removed first.

    Its path is short, for names of sockets have at most 107 bytes.
    """
    return own_folder(
        private.make_folder(machine.cache_folder()) / "ray.lock",
        parent.glob(f"{_PREFIX}*"),
        lambda: Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)),
    )


@contextmanager
def own_folder(lock: Path, others: Iterable[Path], make: Callable[[], Path]) -> Generator[Path]:
    """A folder while the context lasts; those that killed processes left are removed first.

    Args:
        lock: A file that is locked meanwhile.
        others: Folders like this one. Those that a process uses, and other users', stay.
        make: Makes it.
    """
    with private.locked(lock, wait=_LOCK_S):
        for left in others:
            with suppress(OSError):
                found = left.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                    continue
                if (held := _hold_folder(left)) is not None:
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(held)
        place = make()
        held = _hold_folder(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if held is not None:
            os.close(held)


def _hold_folder(folder: Path) -> int | None:
    """A lock on a folder that ends with this process; None where another has it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return private.hold(os.open(folder, flags))


def _use_token() -> None:
    """Show the cluster the token of this user, if there is one, also where Ray would not."""
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if has_token or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def why(said: str, address: str) -> str | None:
    """What keeps a keeper from its cluster, from what Ray said; None where that tells nothing."""
    if "Unauthenticated" in said or "AuthenticationError" in said:
        return (
            f"compute.ray.address: {address}: the cluster refuses the token; it has to be that of "
            "the cluster, in ~/.ray/auth_token or named by RAY_AUTH_TOKEN_PATH"
        )
    if "Version mismatch" in said:
        return f"compute.ray.address: {address}: the cluster has another version of Ray or Python"
    return None
