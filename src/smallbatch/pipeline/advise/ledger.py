"""What has been spent and decided, in a file, so that the same command goes on after a kill."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from smallbatch import durable, private
from smallbatch.errors import OUT_OF_TIME, Stopped
from smallbatch.execution.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    would else decide otherwise than the one before, whose runs it could then not use.

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
        try:
            found = json.loads(private.read_shared(path))
            if found.keys() - {"answer"} == self._content.keys():
                self._content = found
        except (OSError, ValueError, AttributeError):
            pass
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
        """The answer, if an attempt has come to its end.

        None also if it cannot be read: it is then concluded again from the trainings, all kept.
        """
        from pydantic import TypeAdapter, ValidationError

        from smallbatch.analysis.advice import Advice

        if (kept := self._content.get("answer")) is None:
            return None
        try:
            return TypeAdapter(Advice).validate_python(kept)
        except ValidationError:
            return None

    def end(self, answer: Advice) -> None:
        """Keep the answer."""
        self._content["answer"] = asdict(answer)
        self.save()

    def save(self) -> None:
        """Write the file."""
        self._content["seconds"] = round(self.seconds, 3)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(self._path, json.dumps(self._content, indent=1).encode())


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
