"""What has been spent and decided, in a file, so that the same command goes on after a kill."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from smallbatch import durable, private
from smallbatch.errors import OUT_OF_TIME, Stopped
from smallbatch.execution.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smallbatch.analysis.advice import Advice
    from smallbatch.pipeline.advise.request import Budget

T = TypeVar("T")

SPARE = 0.05
"""The share of a time that is left for the answer, its pages and MLflow,"""
LEAST_SPARE_S, MOST_SPARE_S = 6.0, 60.0
"""but not less or more than this."""


class OutOfBudget(Stopped):
    """The budget is spent; what has been found by then is the answer."""

    def __init__(self) -> None:
        super().__init__("the budget is spent", OUT_OF_TIME)


class Ledger:
    """Time and images spent, over all attempts, and every decision that depended on them.

    A decision is taken once and then read from the file: an attempt that goes on has less left, and
    would else decide otherwise than the one before, whose runs it could then not use. A file that
    is not as it was written is as none.

    Args:
        path: The file.
        budget: What may be spent.

    Attributes:
        images: Training images seen by all runs; whoever trains adds to it, also runs that an
            earlier attempt trained.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path, self._budget = path, budget
        self._content: dict[str, Any] = {"seconds": 0.0, "decided": {}}
        self.images = 0
        with suppress(OSError, durable.Damaged, durable.Misplaced):
            _, self._content = durable.unseal(private.read_shared(path), of=path.name)
        self._before = float(self._content["seconds"])
        began = psutil.Process().create_time()  # before this package was imported
        self._zero = time.monotonic() - max(0.0, time.time() - began)

    @property
    def seconds(self) -> float:
        """Seconds spent, over all attempts."""
        return self._before + time.monotonic() - self._zero

    @property
    def spare(self) -> float:
        """Seconds that are kept for the answer."""
        share = SPARE * (self._budget.seconds or 0.0)
        return min(MOST_SPARE_S, max(LEAST_SPARE_S, share))

    @property
    def left(self) -> float:
        """What may still be spent on training, in seconds or images."""
        if self._budget.seconds is not None:
            return self._budget.seconds - self.spare - self.seconds
        return float((self._budget.images or 0) - self.images)

    @property
    def by_images(self) -> bool:
        """Whether the budget is in images; else in seconds."""
        return self._budget.images is not None

    @property
    def until_end(self) -> float:
        """Seconds until the command should have ended; an hour if the budget is not of time."""
        return 3600.0 if self._budget.seconds is None else self._budget.seconds - self.seconds

    def decide(self, name: str, how: Callable[[], T]) -> T:
        """What was decided under this name, or else what is decided now; JSON can hold it."""
        decided = self._content["decided"]
        if name not in decided:
            decided[name] = how()
            self.save()
        return decided[name]

    @property
    def has_begun(self) -> bool:
        """Whether anything was decided, perhaps in an earlier attempt."""
        return bool(self._content["decided"])

    @property
    def answer(self) -> Advice | None:
        """The answer, if an attempt has come to its end."""
        from pydantic import TypeAdapter

        from smallbatch.analysis.advice import Advice

        kept = self._content.get("answer")
        return None if kept is None else TypeAdapter(Advice).validate_python(kept)

    def end(self, answer: Advice, columns: Iterable[Path]) -> None:
        """Keep the answer, and the folders of the columns that MLflow is still to have whole."""
        unlogged = {str(it): _digest(it) for it in columns}
        self._content |= {"answer": asdict(answer), "unlogged": unlogged}
        self.save()

    @property
    def unlogged(self) -> dict[Path, bool]:
        """The folders of the columns that MLflow may not have whole, and if they are still there.

        Another request for the same model may have put its columns in their place.
        """
        kept: dict[str, str | None] = self._content.get("unlogged", {})
        return {Path(it): _digest(Path(it)) == digest for it, digest in kept.items()}

    def logged(self) -> None:
        """Note that MLflow has all columns whole."""
        self._content["unlogged"] = {}
        self.save()

    def save(self) -> None:
        """Write the file."""
        self._content["seconds"] = round(self.seconds, 3)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        durable.seal(self._path, {}, self._content, of=self._path.name)


def _digest(column: Path) -> str | None:
    """Of a column's file that says what its runs are; None: there is none."""
    try:
        return hashlib.sha256((column / "runs.json").read_bytes()).hexdigest()
    except OSError:
        return None


class Deadline(Watch):
    """Stops a training by signals, as another watch does, or when the budget's time is spent."""

    def __init__(self, signals: Watch, ledger: Ledger) -> None:
        super().__init__()
        self._signals, self._ledger = signals, ledger
        self._saved = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until trainings have to end."""
        return self._signals.left if self._ledger.by_images else max(0.0, self._ledger.left)

    def stopping(self) -> bool:
        """Whether the training has to end."""
        if time.monotonic() > self._saved + 5:  # what a kill could make it forget
            self._saved = time.monotonic()
            self._ledger.save()
        return self._signals.stopping() or (not self._ledger.by_images and self._ledger.left <= 0)

    def check(self) -> None:
        """Raise if the training has to end.

        Raises:
            OutOfBudget: The time is spent.
            Stopped: By a signal.
        """
        self._signals.check()
        if self.stopping():
            raise OutOfBudget
