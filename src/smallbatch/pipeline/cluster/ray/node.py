"""What runs on a node: a workspace, a worker in it, and messages of what the worker leaves."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from smallbatch import durable, machine, private
from smallbatch.data.prepared import load_meta
from smallbatch.errors import UserError
from smallbatch.pipeline.child import environment
from smallbatch.pipeline.cluster.board import FOLDER, Board, State, Task
from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.pipeline.cluster.ray.connect import own_folder
from smallbatch.pipeline.cluster.ray.files import WORK, pieces
from smallbatch.pipeline.cluster.ray.shipped import FULL, STALE
from smallbatch.records import fence

FETCH = "SMALLBATCH_NODE_DATA"
"""Environment variable of a node: `fetch` brings the images there even where it sees them."""
_POLL_S = 0.1
_LOCK_S = 3600.0
_UNUSED_S = 30 * 86_400.0
_SECRET = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class _Over(Exception):  # noqa: N818
    """The keeper goes on with another attempt, or with none."""


def carry_out(inbox: Any, message: Mapping[str, Any]) -> str:
    """Train a task's column in a workspace; returns JSON of the exit status and of all files."""
    root = private.make_folder(machine.cache_folder()) / "nodes"
    private.make_folder(root)
    task = Task(**message["task"])
    post = _Post(inbox, {"key": task.key, "of": [task.number, message["attempt"]]})
    try:
        with _workspace(root, f"{message['project']}-{task.key}") as place:
            content = _Content(root / "content", post)
            _lay_out_data(task, message, place, content)
            for name in message["offers"]:
                content.lay_out(name, place)
            return _train(task, message, place, post)
    except _Over:
        return json.dumps({"exit": STALE, "said": "", "files": {}})


class _Post:
    """Sends messages to the keeper, and fetches files that it lays out."""

    def __init__(self, inbox: Any, who: Mapping[str, Any]) -> None:
        self.ray: Any = import_module("ray")
        self._inbox, self._who = inbox, who
        self._sent: dict[str, tuple[int, int, int]] = {}
        self.digests: dict[str, str] = {}

    def push(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Send a message; waits until it is taken."""
        text = json.dumps({**head, **self._who})
        while (answer := self.ray.get(self._inbox.push.remote(text, body))) == FULL:
            time.sleep(_POLL_S)
        if answer == STALE:
            raise _Over

    def fetch(self, name: str) -> list[dict[str, Any]]:
        """The files of a name, with references to their pieces."""
        while (files := self.ray.get(self._inbox.want.remote(name))) is None:
            self.push({"kind": "sign"})  # raises where the attempt is over
            time.sleep(_POLL_S)
        return files

    def push_changed(self, place: Path, *, results: Path | None = None) -> None:
        """Send the files of the work folder that changed, and at the end those of the column."""
        found = {it for it in durable.files_below(place / WORK) if it.is_file()}
        found |= set((place / results).glob("*")) if results else set()
        names = dict[str, Path]()
        for path in sorted(found):
            if path.parent.name.endswith(".checkpoints"):
                continue  # it is renamed once it is whole
            if not path.name.endswith((".lock", ".part")) and ".lock." not in path.name:
                names[str(fence.plain(path.relative_to(place)))] = path
        changed = names.keys() != self.digests.keys()
        for name, path in names.items():
            with suppress(FileNotFoundError):  # a checkpoint, in the meantime replaced
                changed |= self._push_file(name, path)
        if changed:
            self.push({"kind": "kept", "names": [*names]})
        self.digests = {name: it for name, it in self.digests.items() if name in names}

    def _push_file(self, name: str, path: Path) -> bool:
        stamp = _stamp(path)
        if self._sent.get(name) == stamp:
            return False
        digest = hashlib.sha256()
        for offset, size, body in pieces(path):
            digest.update(body)
            head = {"kind": "file", "name": name, "offset": offset, "size": size}
            if offset + len(body) == size:
                head["sha256"] = self.digests[name] = digest.hexdigest()
            self.push(head, body)
        self._sent[name] = stamp
        return True

    def note(self, file: Mapping[str, Any], path: Path) -> None:
        """The keeper has this file already."""
        self._sent[file["name"]] = _stamp(path)
        self.digests[file["name"]] = file["sha256"]


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


class _Content:
    """Files that a node keeps by what is in them, so that each is fetched once."""

    def __init__(self, folder: Path, post: _Post) -> None:
        self._folder, self._post = private.make_folder(folder), post

    def lay_out(self, name: str, place: Path) -> None:
        """Put the files of a name into a workspace."""
        for file in self._post.fetch(name):
            target = place / file["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if file["keep"]:
                os.link(self._kept(file), target)
            else:
                self._write(file, target)
                self._post.note(file, target)

    def _kept(self, file: Mapping[str, Any]) -> Path:
        path = self._folder / file["sha256"]
        with private.locked(self._folder / f"{path.name}.lock", wait=_LOCK_S):
            if not path.exists():
                self._remove_unused()
                self._write(file, path)
            os.utime(path)
        return path

    def _remove_unused(self) -> None:
        for path in self._folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _UNUSED_S:
                    path.unlink()

    def _write(self, file: Mapping[str, Any], path: Path) -> None:
        part, digest = path.with_name(f"{path.name}.part"), hashlib.sha256()
        with part.open("wb") as out:
            for piece in file["pieces"]:
                body = self._post.ray.get(piece)
                digest.update(body)
                out.write(body)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file["sha256"]:
            raise OSError(f"{file['name']}: changed while it was fetched")
        part.replace(path)


def _workspace(root: Path, name: str) -> AbstractContextManager[Path]:
    """A folder for one attempt; those whose task was killed are removed first."""
    places = private.make_folder(root / "places")

    def make() -> Path:
        place = places / f"{name}-{time.time_ns():x}"
        place.mkdir(mode=0o700)
        return place

    return own_folder(places / "lock", places.iterdir(), make)


def _lay_out_data(task: Task, message: Mapping[str, Any], place: Path, content: _Content) -> None:
    """The prepared images: where this node sees them a link, else a copy that it keeps."""
    there, here = Path(message["folder"]) / task.images, place / task.images
    if os.environ.get(FETCH) != "fetch" and _is_same(there, task.fingerprint, message["data"]):
        here.parent.mkdir(parents=True)
        here.symlink_to(there)
    else:
        content.lay_out(message["images"], place)


def _is_same(folder: Path, fingerprint: str, sizes: Mapping[str, int]) -> bool:
    """Whether a folder has these images; their content is checked when they are read."""
    with suppress(UserError, OSError):
        same = load_meta(folder).fingerprint == fingerprint
        return same and all((folder / it).stat().st_size == size for it, size in sizes.items())
    return False


def _train(task: Task, message: Mapping[str, Any], place: Path, post: _Post) -> str:
    board = Board(place / FOLDER)
    file, log = board.file_of(task), place / "log"
    file.parent.mkdir(parents=True)
    durable.write(file, json.dumps(_fitted(message)).encode())
    if message["attempt"] > 1:  # the worker's is the next
        board.set_state(task.key, State(task.number, message["attempt"] - 1))
    words = ["-m", "smallbatch.pipeline.cluster.ray.mortal", str(os.getpid()), "work"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", *words, str(file.relative_to(place))],
            cwd=place, env=_environment(message), stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    news = _News(board, task.key, log, post)
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(message["seconds"])
            ended = process.returncode
            news.tell()
            # After its end, so that nothing is left out.
            post.push_changed(place, results=task.results if ended == 0 else None)
            if ended is not None:
                said = f"{platform.node()}: {news.last_line()}"
                return json.dumps({"exit": ended, "said": said, "files": post.digests})
    finally:
        process.kill()
        process.wait()


def _fitted(message: Mapping[str, Any]) -> dict[str, Any]:
    """The task with this node's memory: of what is free, the share that its cores have."""
    task, share = dict(message["task"]), message["cpus"] / machine.cores()
    compute = dict(task["params"].get("compute", {}))
    if not message["gpus"] and compute.get("memory", "auto") == "auto" and share < 1:
        compute["memory"] = round(machine.free_memory() / 2 * share / 2**30, 3)
    return task | {"params": {**task["params"], "compute": compute}}


def _environment(message: Mapping[str, Any]) -> dict[str, str]:
    """This node's own, without what opens the cluster."""
    found = {name: it for name, it in environment().items() if name not in _SECRET}
    if not message["gpus"]:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found | {"OMP_NUM_THREADS": "1"}


class _News:
    """What is new in a worker's state, its events and what it says."""

    def __init__(self, board: Board, key: str, log: Path, post: _Post) -> None:
        self._board, self._key, self._post = board, key, post
        self._files = {"log": log, EVENTS: board.folder_of(key) / EVENTS}
        self._told = dict.fromkeys(self._files, 0)
        self._state: State | None = None

    def tell(self) -> None:
        """Send it."""
        state = self._board.state(self._key)
        if state is not None and state != self._state:
            self._state = state
            self._post.push({"kind": "state", "state": vars(state)})
        else:
            self._post.push({"kind": "sign"})
        for name, path in self._files.items():
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(self._told[name])
                while body := file.read(2**20):
                    self._post.push({"kind": "more", "name": name}, body)
                    self._told[name] += len(body)

    def last_line(self) -> str:
        """The last line that the worker said."""
        with suppress(FileNotFoundError):
            lines = self._files["log"].read_text(errors="replace").strip().splitlines()
            return lines[-1].removeprefix("Error: ")[:300] if lines else "said nothing"
        return "said nothing"
