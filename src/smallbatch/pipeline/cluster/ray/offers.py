"""Files that nodes ask for, laid out in Ray's object store when one does."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.model_files import FROM_TIMM, file_digest, model_files, weights_file
from smallbatch.pipeline.cluster.ray.files import pieces

if TYPE_CHECKING:
    from smallbatch.pipeline.cluster.board import Task
    from smallbatch.pipeline.cluster.ray.files import Column

_PIECE = 2**26  # bytes


class Offers:
    """What is laid out, by name: a data set's images, a model's files, a column's progress.

    Images and models stay, as every node asks for them once; progress goes with its attempt.

    Args:
        ray: Ray's module, connected.
        inbox: The actor that nodes ask.
    """

    def __init__(self, ray: Any, inbox: Any) -> None:
        self._ray, self._inbox = ray, inbox
        self._files: dict[str, list[Path]] = {}
        self._laid: dict[str, list[dict[str, Any]]] = {}
        self._count = 0

    @staticmethod
    def images(task: Task) -> str:
        """The name of a task's images, which may lie in several folders."""
        return f"images {task.fingerprint} {task.images}"

    def of(self, task: Task, column: Column) -> list[str]:
        """The names of what else an attempt at a task begins with.

        Raises:
            UserError: A source of the model is no Python.
        """
        self._files[self.images(task)] = sorted(task.images.glob("*"))
        names, study = list[str](), task.params["studies"][task.study]
        model = model_files([study])
        if study.get("pretrained") == FROM_TIMM:
            model += [it for it in [weights_file(study["model"], FROM_TIMM)] if it.is_file()]
        if model:
            stamps = repr([(it, it.stat().st_mtime_ns, it.stat().st_size) for it in model])
            names.append(f"model {hashlib.sha256(stamps.encode()).hexdigest()}")
            self._files[names[-1]] = model
        if kept := column.kept():
            self._count += 1
            names.append(f"progress {self._count}")
            self._files[names[-1]] = kept
        return names

    @staticmethod
    def sizes(task: Task) -> dict[str, int]:
        """Of the files of a task's images, in bytes."""
        files = task.images.glob("*.*")
        return {it.name: it.stat().st_size for it in files if it.suffix in (".npy", ".parquet")}

    def lay_out(self, name: str) -> None:
        """Lay files out; of a name that is no longer one nothing."""
        if name not in self._laid:
            keep = name.startswith(("images ", "model "))
            files = [it for it in self._files.get(name, []) if it.is_file()]
            self._laid[name] = [self._file(it, keep) for it in files]
        self._ray.get(self._inbox.offer.remote(name, self._laid[name]))

    def withdraw(self, names: Collection[str]) -> None:
        """Take the progress back that an attempt began with."""
        for name in names:
            if not name.startswith("model "):
                self._files.pop(name, None)
                self._laid.pop(name, None)
                self._inbox.withdraw.remote(name)

    def _file(self, path: Path, keep: bool) -> dict[str, Any]:
        put = [self._ray.put(body) for _, _, body in pieces(path, _PIECE)]
        return {"name": str(path), "sha256": file_digest(path), "keep": keep, "pieces": put}
