"""Whose finished runs are used again, by what made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from smallbatch.engines import made_by
from smallbatch.engines.kinds import Engine
from smallbatch.engines.same_numbers import earlier_makers, is_compared

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig
    from smallbatch.config.study import StudyConfig
    from smallbatch.config.values import MicroBatch
    from smallbatch.records.schema import Environment


@dataclass(frozen=True)
class Makers:
    """Whose finished runs a column takes over instead of training them again.

    The same code, or earlier code with the same numbers, with the same libraries, on whatever
    hardware. An engine, a device, a micro-batch or several ranks that the settings name have to
    have made them.

    Attributes:
        exact: What makes the runs that are trained here, and earlier code with their numbers.
        codes: The engine of each digest of code, present or earlier.
        engines: Which of them may have made a run.
        device: ``cpu`` or ``cuda``; None: any.
        micro_batch: Most examples of a batch at a time, None for all; ``auto``: any.
        ranks: The number of processes that trained a run together; 1: any.
        same_hardware: Whether one kind of hardware has to have made all runs of a column.
    """

    exact: tuple[str, ...] = ()
    codes: Mapping[str, Engine] = field(default_factory=dict[str, Engine])
    engines: frozenset[Engine] = frozenset()
    device: str | None = None
    micro_batch: MicroBatch | None = "auto"
    ranks: int = 1
    same_hardware: bool = False

    def __contains__(self, text: object) -> bool:
        """Whether a maker, as a record has it, is one of them; not whether it may be mixed."""
        if text in self.exact:
            return True
        if (maker := _parsed(text)) is None:
            return False
        here, now = made_by.versions_here(), map(made_by.code_digest, get_args(Engine))
        return (
            self.codes.get(maker.code) in self.engines
            and (maker.code in now or is_compared(str(text)))
            and self.device in (None, maker.device)
            and self.micro_batch in ("auto", maker.micro_batch)
            and self.ranks in (1, maker.ranks)
            and maker.choices == made_by.choices_here()
            and all(here.get(name, version) == version for name, version in maker.versions.items())
        )

    def among(self, runs: Mapping[str, str | None]) -> set[str]:
        """Which runs of a column are not trained again.

        With ``same_hardware`` they are those of the present hardware; or all, if another made all.

        Args:
            runs: All of the column, and what made each; None where it is not kept.
        """
        kept = {run: text for run, text in runs.items() if text is not None and text in self}
        if not self.same_hardware:
            return set(kept)
        parsed = map(_parsed, kept.values())
        kinds = {maker and (maker.device, maker.hardware) for maker in parsed}
        if len(kept) == len(runs) and len(kinds) == 1:
            return set(kept)
        return {run for run, text in kept.items() if text in self.exact}

    def place(self, text: str) -> Environment:
        """Device, hardware, engine and kernels of a maker, as far as they are known.

        And its micro-batch and its ranks, if it had any.
        """
        if (maker := _parsed(text)) is None or maker.code not in self.codes:
            return {}
        engine = self.codes[maker.code]
        kernels = maker.kernels if engine == "stacked" else None
        parts = {} if maker.micro_batch is None else {"micro_batch": maker.micro_batch}
        parts |= {"ranks": maker.ranks} if maker.ranks > 1 else {}
        return {
            "device": maker.device, "hardware": maker.hardware,
            "engine": engine, "kernels": kernels, **parts,
        }  # fmt: skip


def makers_of(
    study: StudyConfig,
    compute: ComputeConfig,
    engine: Engine,
    *,
    batch_size: int,
    exact: tuple[str, ...] = (),
) -> Makers:
    """Whose runs are taken over under some settings.

    Args:
        study: Of the column.
        compute: What of it is ``auto`` takes the runs of any.
        engine: Which trains the column here; it need not be the one that the settings name.
        batch_size: m.
        exact: As in :class:`Makers`.
    """
    codes: dict[str, Engine] = {}
    for name in get_args(Engine):
        digest = made_by.code_digest(name)
        for text in (digest, *earlier_makers(digest, name, study)):
            codes[text.strip()] = name
    asked = get_args(Engine) if compute.engine == "auto" else (compute.engine, engine)
    return Makers(
        exact=exact,
        codes=codes,
        engines=frozenset(asked),
        device=None if compute.device == "auto" else compute.device,
        micro_batch=compute.micro_batch_at(batch_size),
        ranks=compute.ranks,
        same_hardware=compute.same_hardware,
    )


def _parsed(text: object) -> made_by.Maker | None:
    try:
        return made_by.Maker.parse(str(text))
    except ValueError:
        return None
