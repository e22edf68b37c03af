"""Names results that do not belong together, though they lie in one models directory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.analysis.frames import on_bn_axis, on_lr_axis, settings_of
from smallbatch.analysis.generalisation import best_cells
from smallbatch.protocol.run import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Hashable

    import pandas as pd

ORIGIN = ["fingerprint", "protocol"]
"""What all runs that are compared share: the images, and the rules of training and evaluation."""

# As params.yaml has it; evaluating does not depend on the code that checks that file.
_UPDATES_OF = re.compile(r"updates of ([1-9]\d*)")


def mixed_results(runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """A line for each data set and study whose results do not belong together; mostly none.

    Args:
        runs: One row per run, as `load_results` makes them.
        cells: As `summarise_cells` makes them of these runs.
    """
    return [
        *_of_an_older_protocol(runs),
        *_of_other_images(runs),
        *_of_other_settings(runs),
        *_at_an_old_choice(runs, cells),
        *_of_other_grids(runs),
    ]


def differing_settings(runs: pd.DataFrame) -> list[str]:
    """The settings, and what else runs share, in which the columns of one study differ."""
    return _differing(as_written(runs))


def _differing(group: pd.DataFrame) -> list[str]:
    varied = {"base_lrs", *(["bn_batch_size"] if on_bn_axis(group).all() else [])}
    fixed = [key for key in (*ORIGIN, *settings_of(group)) if key not in varied]
    counts = group[fixed].nunique(dropna=False)
    return [str(key) for key in counts.index[counts > 1]]


def as_written(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with the settings of params.yaml, where those at each m follow from them."""
    runs = runs.assign(epochs=_written_epochs(runs)).reset_index(drop=True)
    if not {"norm", "bn_batch_size", "bn_batch_sizes"} <= {*runs}:
        return runs
    # With a BN batch of "up to N" smaller batches have plain batch norm.
    for _, own in runs[runs["bn_batch_sizes"].isna()].groupby(STUDY_KEYS):
        sizes = own.loc[own["norm"].eq("ghost"), "bn_batch_size"].unique()
        if len(sizes) == 1:
            small = own.index[own["norm"].eq("batch") & (own["batch_size"] <= sizes[0])]
            runs.loc[small, "norm"], runs.loc[small, "bn_batch_size"] = "ghost", sizes[0]
    return runs


def _written_epochs(runs: pd.DataFrame) -> list[float]:
    """The epochs as params.yaml has them: with a budget of updates a run has others."""
    return [
        epochs * int(match.group(1)) / m
        if (match := _UPDATES_OF.fullmatch(str(budget)))
        else epochs
        for epochs, m, budget in zip(
            runs["epochs"].tolist(), runs["batch_size"].tolist(), runs["budget"], strict=True
        )
    ]


def _of_an_older_protocol(runs: pd.DataFrame) -> list[str]:
    """Data sets whose newest runs are of rules of training that this version no longer follows."""
    newest = runs.groupby("dataset")["protocol"].max()
    return [
        f"{dataset}: trained under protocol {protocol}, and the present one is {PROTOCOL}. What "
        "differs is in docs/decisions.md (Versions of the protocol); the results stand, and "
        "smallbatch plan names the columns that it concerns"
        for dataset, protocol in newest[newest < PROTOCOL].items()
    ]


def _of_other_images(runs: pd.DataFrame) -> list[str]:
    """Data sets some of whose studies were trained before the images of that name changed."""
    lines: list[str] = []
    for dataset, group in runs.groupby("dataset"):
        alike: dict[Hashable, list[str]] = {}
        for study, own in group.groupby("study"):
            origins = frozenset(own[ORIGIN].itertuples(index=False, name=None))
            alike.setdefault(origins, []).append(str(study))
        if len(alike) > 1:
            differing = [key for key in ORIGIN if group[key].nunique() > 1]
            lines.append(
                f"{dataset}: its studies were trained with different {', '.join(differing)} "
                f"({' | '.join(', '.join(studies) for studies in alike.values())}) and cannot be "
                "compared; train the older ones again, or delete those of them under "
                f"models/{dataset}/ that the grid no longer has"
            )
    return lines


def _of_other_settings(runs: pd.DataFrame) -> list[str]:
    """Studies some of whose columns are from before a change of the data or the settings.

    The columns are then not one experiment and must not be read as one curve.
    """
    lines: list[str] = []
    for (dataset, study), group in as_written(runs).groupby(STUDY_KEYS):
        if differing := _differing(group):
            alike = [
                _sizes(part["batch_size"].unique())
                for _, part in group.groupby(differing, dropna=False, sort=False)
            ]
            lines.append(
                f"{dataset}/{study}: its columns were trained with different "
                f"{', '.join(differing)} ({' | '.join(alike)}); train the older ones again, or "
                f"delete those of them under models/{dataset}/{study}/ that the grid no longer has"
            )
    return lines


def _at_an_old_choice(runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """Studies trained at the best η̃ of another one that is not the best there any more."""
    best = {
        (cell["dataset"], cell["study"], cell["batch_size"]): cell["base_lr"]
        for cell in best_cells(cells).to_dict("records")
    }
    chosen = runs.dropna(subset=["base_lr_from"])
    lines: list[str] = []
    for (dataset, study, source), group in chosen.groupby([*STUDY_KEYS, "base_lr_from"]):
        places = group[["batch_size", "base_lr"]].drop_duplicates()
        old = [
            f"m{m}: {base_lr:g}, now {'none' if now is None else format(now, 'g')}"
            for m, base_lr in places.itertuples(index=False, name=None)
            if (now := best.get((dataset, source, m))) != base_lr
        ]
        if old:
            rate = "η" if on_lr_axis(group) else "η̃"
            lines.append(
                f"{dataset}/{study}: was trained at an {rate} that is not the best of {source} "
                f"({'; '.join(old)}); train these columns again"
            )
    return lines


def _of_other_grids(runs: pd.DataFrame) -> list[str]:
    """Studies whose batch sizes were tried at different η̃, or with different seeds."""
    lines: list[str] = []
    for (dataset, study), group in runs.groupby(STUDY_KEYS):
        own_base_lrs = group["base_lr_from"].isna().all()  # otherwise each m has the best for it
        rate = "η" if on_lr_axis(group) else "η̃"
        for key, name in (("base_lr", rate), ("seed", "seeds")):
            alike: dict[Hashable, list[Any]] = {}
            for m, column in group.groupby("batch_size"):
                alike.setdefault(frozenset(column[key]), []).append(m)
            if len(alike) > 1 and (key != "base_lr" or own_base_lrs):
                lines.append(
                    f"{dataset}/{study}: its columns have different {name} "
                    f"({' | '.join(map(_sizes, alike.values()))}); compare them with care, or "
                    "train the older ones again"
                )
    return lines


def _sizes(batch_sizes: Any) -> str:
    return ", ".join(f"m{m}" for m in sorted(batch_sizes))
