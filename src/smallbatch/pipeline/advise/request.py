"""What the user asks for."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smallbatch import modules
from smallbatch.config.model_files import model_digest
from smallbatch.engines.made_by import code_digest
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.config.dataset import DatasetConfig
    from smallbatch.config.study import StudyConfig

BATCH_SIZES = (4, 16, 64)
"""Those that are tried if the user names none, as far as the training set allows."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_IMAGES = re.compile(r"images\s*=\s*(\d[\d_]*(?:\.\d+)?(?:e\d{1,2})?)", re.ASCII)
_MOST_SECONDS = 10_000 * 3600


@dataclass(frozen=True)
class Budget:
    """What may be spent; one of the two is given.

    Attributes:
        text: As the user wrote it.
        seconds: From the start of the command to its end.
        images: Training images seen by all runs together.
    """

    text: str
    seconds: float | None
    images: int | None


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        dataset: The images, all that there are of them.
        study: The settings of a training; its ``epochs`` count only if ``epochs`` is given.
        budget: What may be spent.
        batch_sizes: m, ascending; empty: `BATCH_SIZES`.
        epochs: Of a whole training; None: as many as the budget allows.
        target: The highest accuracy, or the shortest training that cannot be told from it.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    dataset: DatasetConfig
    study: StudyConfig
    budget: Budget
    batch_sizes: tuple[int, ...] = ()
    epochs: int | None = None
    target: Literal["accuracy", "time"] = "accuracy"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def key(self, images: str) -> str:
        """16 hex digits of all that the answer depends on.

        Other images, code or another model start from the beginning: what was spent on the old ones
        is not spent on them.

        Args:
            images: A digest of the images' files.
        """
        content = [
            images,
            [modules.digest(file) for file in _decides()],
            self.dataset.model_dump(mode="json"),
            self.study.model_dump(mode="json", exclude={"seeds"}),  # an advice has its own
            model_digest(self.study),
            code_digest("loop"),
            code_digest("stacked"),
            [self.budget.seconds, self.budget.images],
            self.batch_sizes,
            self.epochs,
            self.target,
            self.device,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _decides() -> list[Path]:
    """The files that decide what is trained and told, besides those that decide how."""
    analysis = modules.PACKAGE / "analysis"
    return [*sorted(Path(__file__).parent.glob("*.py")), analysis / "race.py",
            analysis / "advice.py"]  # fmt: skip


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``20m``, ``1h30m``, ``90s`` or ``images=2e6``.

    Raises:
        UserError: It is none of these, or nothing.
    """
    text = text.strip()
    if images := _IMAGES.fullmatch(text):
        number = float(images.group(1))
        if 1 <= number <= 1e15:
            return Budget(text, None, int(number))
    elif text and (found := _DURATION.fullmatch(text)):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        total = 3600 * hours + 60 * minutes + seconds
        if 0 < total <= _MOST_SECONDS:
            return Budget(text, total, None)
    raise UserError(
        f"budget: found {text[:80]!r}, allowed: a time such as 20m, 2h or 90s, at most 10000h, or "
        "images=2e6"
    )
