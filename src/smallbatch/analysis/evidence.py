"""The data of one data set on which claims are judged: seed arrays, curves, measurements."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from smallbatch.analysis.frames import on_bn_axis
from smallbatch.analysis.mixed import ORIGIN, differing_settings
from smallbatch.analysis.seeds import Floats, SeedArray, seed_array

if TYPE_CHECKING:
    import numpy.typing as npt


BN_FIGURES = ("13a", "13b", "14")
"""Those with the BN batch size as an axis; all others have η̃."""


_FIGURES: dict[str, dict[str, object]] = {
    "1": {"model": "alexnet", "norm": "none", "augment": False},
    "2": {"model": "resnet8", "norm": "none", "augment": False},
    "3": {"model": "resnet20", "norm": "none", "augment": False},
    "text": {"model": "resnet32", "norm": "none", "augment": False},
    "5": {"model": "alexnet", "norm": "batch", "augment": False},
    "6": {"model": "alexnet", "norm": "batch_conv", "augment": False},
    "7": {"model": "resnet32", "norm": "batch", "augment": False},
    **{
        figure: {"model": "resnet32", "norm": "batch", "augment": True}
        for figure in ("8", "9", "10", "11", "17", "18")
    },
    **{
        figure: {"model": "resnet32", "norm": "ghost", "augment": True} for figure in ("13a", "13b")
    },
    "12": {"model": "resnet50", "norm": "batch", "augment": True},
    "14": {"model": "resnet50", "norm": "ghost", "augment": True},
}
"""What the study of a figure trains; of what is labelled so and trains something else, no claim
about the figure says anything."""
STAND_INS = {"resnet50": "resnet10t"}
"""Smaller models that may be judged in a model's place, as a profile's small scale does; what is
found then says so."""
PAPER_TRAINING = {"optimizer": "sgd", "schedule": "step"}
"""How every study of the paper trains: claims say nothing of other optimisers and schedules."""
_WITH_WARM_UP = ("10", "11")
_LABELS = {"figure", "base_lr_from"}
"""Settings by which studies may differ that are compared: how they are called and chosen."""


class UndecidableError(Exception):
    """There are runs, but the criterion cannot be applied to them; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """The runs of one data set under ``models/``.

    Attributes:
        dataset: The name of the data set.
        runs: Its runs, as `load_results` makes them.
        history: Its epochs, as `load_results` makes them.
        variances: Rows of `engines.update_variance`; empty if nothing was measured.
        memory: Rows of `engines.update_memory`; empty likewise.
    """

    dataset: str
    runs: pd.DataFrame
    history: pd.DataFrame
    variances: pd.DataFrame = field(default_factory=pd.DataFrame)
    memory: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def studies(self) -> dict[str, str]:
        """Figure of the paper → the study with that label; of several, the one with most runs."""
        labelled = self.runs.dropna(subset=["figure"])
        sizes = labelled.groupby(["figure", "study"]).size().sort_values(kind="stable")
        return {str(figure): str(study) for figure, study in sizes.index}

    def stand_ins(self, figures: tuple[str, ...]) -> list[str]:
        """A line for each of the figures whose study trains a smaller model than the paper's."""
        lines: list[str] = []
        for figure in figures:
            name, papers = self.studies.get(figure), _FIGURES.get(figure, {}).get("model")
            models = sorted(set(self.runs.loc[self.runs["study"] == name, "model"]) - {papers})
            if STAND_INS.get(str(papers)) in models:
                lines.append(f"{name}: its model is {', '.join(models)}, the paper's {papers}")
        return lines

    @property
    def as_the_papers(self) -> set[str]:
        """The studies that train with the paper's optimiser and schedule."""
        other = [self.runs[key] != value for key, value in PAPER_TRAINING.items()]
        others = self.runs.loc[other[0] | other[1], "study"]
        return set(self.runs["study"]) - set(others)

    def array(self, figure: str) -> SeedArray:
        """The seed array of a figure's study.

        Raises:
            UndecidableError: The study's best cell is hardly better than chance, or its columns
                do not belong together, or its axis is not that of the figure.
        """
        runs = self._runs(figure)
        on_bn, name = on_bn_axis(runs).all(), self.studies[figure]
        if on_bn and runs.groupby("batch_size")["base_lr"].nunique().max() > 1:
            raise UndecidableError(f"{name}: several η̃ at one batch size")
        array = seed_array(runs, "bn_batch_size" if on_bn else "base_lr")
        if not len(array.seeds):
            raise UndecidableError(f"{array.name}: its cells have no seed in common")
        if not array.usable.any():
            raise UndecidableError(f"{array.name}: in no cell do all seeds finish")
        # With two classes nothing is twice as good as chance. Of ten classes both are 20 %.
        best = float(np.nanmax(array.sample()))
        if best < min(2 * array.chance, array.chance + (1 - array.chance) / 9):
            raise UndecidableError(
                f"{array.name}: its best cell, {100 * best:.1f} %, is hardly better than chance"
            )
        return array

    def arrays(self, more: str, less: str, *, about: str) -> list[SeedArray]:
        """The seed arrays of two figures, restricted to the seeds that both of them have.

        Args:
            more: The figure with more epochs, warm-up or parameters, if ``about`` is these.
            less: The other figure.
            about: The setting that the claim is about, in which alone the studies may differ.

        Raises:
            UndecidableError: As `array` does, or the studies were trained on different images,
                differ in other settings or not in ``about``, or have no seed in common.
        """
        self._refuse_other_settings(self._runs(more, less), self.studies[more], about)
        arrays = [self.array(figure) for figure in (more, less)]
        common = set.intersection(*(set(array.seeds.tolist()) for array in arrays))
        if not common:
            raise UndecidableError("the studies have no seed in common")
        return [array.of_seeds(common) for array in arrays]

    def curves(self, figure: str, base_lr: float) -> tuple[npt.NDArray[np.int64], Floats]:
        """Test accuracy by epoch at one η̃: batch sizes (B,) and values (B, S, E).

        A diverged run has the accuracy of chance from its last epoch on.

        Raises:
            UndecidableError: That η̃ was not run, or the study's columns do not belong together.
        """
        runs = self._runs(figure)
        own = self.history[self.history["study"] == runs["study"].iloc[0]]
        own = own[own["base_lr"] == base_lr]
        if own.empty:
            raise UndecidableError(f"η̃ = {base_lr:g} was not run")
        chance = 1.0 / float(runs["classes"].iloc[0])
        place, name = ["batch_size", "seed"], self.studies[figure]
        if own.duplicated([*place, "epoch"]).any():
            raise UndecidableError(f"{name}: several runs of one batch size and seed")
        wide = own.set_index([*place, "epoch"])["test_accuracy"].unstack("epoch")
        diverged = own.groupby(place)["outcome"].first().eq("diverged")
        wide.loc[diverged] = wide.loc[diverged].fillna(chance)
        if wide.isna().any(axis=None):
            raise UndecidableError(f"{name}: its finished runs have different numbers of epochs")
        batch_sizes = np.unique(own["batch_size"].to_numpy(dtype=np.int64))
        seeds = sorted(set(own["seed"]))
        full = pd.MultiIndex.from_product([batch_sizes, seeds])
        if not full.isin(wide.index).all():
            raise UndecidableError("its batch sizes were run on different seeds")
        values = wide.reindex(full).to_numpy(dtype=float)
        return batch_sizes, values.reshape(len(batch_sizes), len(seeds), -1)

    def refuse_mixed(self, study: str) -> None:
        """Check that the columns of a study are one experiment.

        Raises:
            UndecidableError: They were trained on different images, or with different settings.
        """
        if differing := differing_settings(self.runs[self.runs["study"] == study]):
            raise UndecidableError(f"{study}: trained with different {' and '.join(differing)}")

    def refuse_other_measured(self, study: str, rows: pd.DataFrame) -> None:
        """Check that a study's measurement is of what was trained.

        A table of names alone would go on after the images or the model have been replaced.

        Args:
            study: The name of the study, which need not have been trained.
            rows: Its rows of `variances` or `memory`; older ones lack what is missing there.

        Raises:
            UndecidableError: The images, the model or the norm were others.
        """
        trained = self.runs[self.runs["study"] == study]
        # Under `bn_batch_size: up to N` the norm depends on m.
        at_m = trained[trained["batch_size"].isin(rows["batch_size"])]
        of_norm = rows[rows["batch_size"].isin(at_m["batch_size"])] if len(at_m) else rows
        for key, table, runs in (
            ("fingerprint", rows, self.runs),
            ("model", rows, trained),
            ("norm", of_norm, at_m if len(at_m) else trained),
        ):
            measured = set(table[key].dropna()) if key in table else set[str]()
            if measured and len(runs) and measured != set(runs[key]):
                what = "on other images" if key == "fingerprint" else f"with another {key}"
                raise UndecidableError(f"{study}: measured {what}; run smallbatch measure")

    def _refuse_other_settings(self, runs: pd.DataFrame, more: str, about: str) -> None:
        names = " and ".join(sorted(set(runs["study"])))
        differing = set(differing_settings(runs)) - _LABELS
        if differing != {about}:
            found = ", ".join(sorted(differing)) or "no setting"
            raise UndecidableError(f"{names} differ in {found}, and should in {about} alone")
        amount = {"model": "parameters", "norm": None}.get(about, about)
        first, second = runs[runs["study"] == more], runs[runs["study"] != more]
        if amount and not first[amount].min() > second[amount].max():
            raise UndecidableError(f"{names}: {more} does not have more {amount}")

    def _refuse_unlike(self, figure: str, name: str) -> None:
        own = self.runs[self.runs["study"] == name].iloc[0]
        for key, value in PAPER_TRAINING.items():
            if own[key] != value:
                raise UndecidableError(
                    f"{name}: not the paper's setting, its {key} is {own[key]}, the paper's {value}"
                )
        for key, value in _FIGURES.get(figure, {}).items():
            if own[key] not in (value, STAND_INS.get(str(value))):
                raise UndecidableError(
                    f"{name}: its {key} is {own[key]}, Fig. {figure} has {value}"
                )
        warm_up = figure in _WITH_WARM_UP
        if bool(own["warmup"]) != warm_up:
            raise UndecidableError(
                f"{name}: its warm-up is {own['warmup']:g}, Fig. {figure} has "
                f"{'one' if warm_up else 'none'}"
            )

    def _refuse_several(self, figure: str) -> None:
        labelled = sorted(set(self.runs.loc[self.runs["figure"] == figure, "study"]))
        if len(labelled) > 1:
            raise UndecidableError(
                f"{' and '.join(labelled)} are labelled figure {figure}, which is one study; "
                "leave the label to one of them"
            )

    def _runs(self, *figures: str) -> pd.DataFrame:
        names = [self.studies[figure] for figure in figures]
        for figure, name in zip(figures, names, strict=True):
            self._refuse_several(figure)
            self.refuse_mixed(name)
            on_bn = on_bn_axis(self.runs[self.runs["study"] == name])
            if figure in BN_FIGURES and not on_bn.all():
                raise UndecidableError(
                    f"{name}: its axis is not the BN batch size, as that of Fig. {figure} is"
                )
            if figure not in BN_FIGURES and on_bn.any():
                raise UndecidableError(f"{name}: its axis is the BN batch size, not η̃")
            self._refuse_unlike(figure, name)
        runs = self.runs[self.runs["study"].isin(names)]
        counts = runs[ORIGIN].nunique()
        if differing := [str(key) for key in counts.index[counts > 1]]:
            raise UndecidableError(
                f"{' and '.join(names)}: trained with different {' and '.join(differing)}"
            )
        return runs


def common_batch_sizes(*arrays: SeedArray) -> tuple[npt.NDArray[np.int64], list[SeedArray]]:
    """Restrict studies to the batch sizes that all of them ran.

    Raises:
        UndecidableError: There are none.
    """
    common = set.intersection(*(set(array.batch_sizes.tolist()) for array in arrays))
    if not common:
        raise UndecidableError("the studies have no batch size in common")
    batch_sizes = np.array(sorted(common), dtype=np.int64)
    kept = [
        replace(
            array,
            batch_sizes=batch_sizes,
            values=array.values[np.isin(array.batch_sizes, batch_sizes)],
        )
        for array in arrays
    ]
    return batch_sizes, kept
