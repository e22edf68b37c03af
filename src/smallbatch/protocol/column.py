"""A column: every base learning rate and seed of a study at one batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smallbatch.config.base_lr import refuse_overflow
from smallbatch.config.model_files import model_digest
from smallbatch.config.study import StudyConfig
from smallbatch.errors import UserError
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import updates_after

if TYPE_CHECKING:
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset


@dataclass(frozen=True)
class Column:
    """The runs of a study at one batch size.

    Attributes:
        study: The name of the study.
        dataset: The prepared data.
        runs: A run for each (BN batch size, η̃, seed).
    """

    study: str
    dataset: Dataset | EncodedDataset
    runs: tuple[Run, ...]

    @property
    def streamed(self) -> bool:
        """Whether images are decoded while runs train, as they are too many to lie in memory."""
        return self.dataset.meta.short_side is not None

    @property
    def batch_size(self) -> int:
        """M, the same for every run."""
        return self.runs[0].batch_size

    def updates(self, run: Run) -> int:
        """The number of updates of a run that finishes."""
        n = self.dataset.meta.counts["train"]
        return updates_after(run.settings.epochs, n, run.batch_size)


def plan_column(
    study: str,
    settings: StudyConfig,
    dataset: Dataset | EncodedDataset,
    *,
    batch_size: int,
    base_lrs: Sequence[float],
    seeds: Sequence[int],
) -> Column:
    """Make the column of a study at a batch size.

    Raises:
        UserError: The batch size exceeds the training set, or does not suit the settings or
            the learning rates; or there are no such pretrained weights.
    """
    n = dataset.meta.counts["train"]
    if batch_size > n:
        raise UserError(
            f"batch size: found {batch_size}, allowed: at most the {n} training examples "
            f"of {dataset.meta.name}"
        )
    try:
        variants = settings.at(batch_size)
        refuse_overflow(max(base_lrs), settings.examples_per_rate(batch_size))
    except ValueError as error:
        raise UserError(f"studies.{study}.{error}") from None
    if settings.input is not None:
        dataset = _as_timm_has_it(study, settings, dataset)
    fingerprint, model = dataset.meta.fingerprint, model_digest(settings)
    return Column(
        study,
        dataset,
        tuple(
            Run(variant, fingerprint, batch_size, base_lr, seed, model)
            for variant in variants
            for base_lr in base_lrs
            for seed in seeds
        ),
    )


def _as_timm_has_it(
    study: str, settings: StudyConfig, dataset: Dataset | EncodedDataset
) -> Dataset | EncodedDataset:
    """The data set with the size, statistics, crop and filter of the study's model."""
    from smallbatch.models.inputs import own_input

    if dataset.meta.short_side is None:
        raise UserError(
            f"studies.{study}.input: found timm with images that are prepared as pixels, allowed: "
            "with dataset.storage: encoded"
        )
    own = own_input(settings.model)
    meta = replace(
        dataset.meta, height=own.side, width=own.side, mean=own.mean, std=own.std,
        crop_ratio=own.crop_ratio, interpolation=own.interpolation,
    )  # fmt: skip
    return replace(dataset, meta=meta)
