"""The best base learning rate and accuracy at each batch size (arXiv 1804.07612, Fig. 15)."""

from __future__ import annotations

import pandas as pd

from smallbatch.analysis.cells import STUDY_KEYS

_VALIDATION = "validation_accuracy"

BEST_COLUMNS = [
    *STUDY_KEYS,
    "chosen_on",
    "batch_size",
    "base_lr",
    "lr",
    "accuracy",
    "min_accuracy",
    "max_accuracy",
    "sd_accuracy",
    "n_seeds",
    "n_diverged",
    _VALIDATION,
    "train_accuracy",
    "generalisation_gap",
    "population_test_accuracy",
    "grid_edge",
    "optimizer",
]


def best_cells(cells: pd.DataFrame, chosen_on: str = "test") -> pd.DataFrame:
    """Pick the cell with the highest median accuracy at each (study, m).

    Args:
        cells: As `summarise_cells` makes them.
        chosen_on: "test" ranks by the reported test accuracy, as the paper does, "validation" by
            the same measure of the validation split. The returned accuracies are always those of
            the test split. Of equal cells the one with the smaller η̃ is taken.

    Returns:
        One row per (dataset, study, batch_size) with any median at all. ``grid_edge`` is "lower" or
        "upper" if the chosen η̃ is the lowest or highest tried at that m (the optimum may lie
        outside), "only" if one alone was tried, else "".
    """
    key = {"test": "accuracy", "validation": _VALIDATION}[chosen_on]
    by_m = cells.groupby([*STUDY_KEYS, "batch_size"])["base_lr"]
    marked = cells.assign(
        chosen_on=chosen_on,
        _lowest=by_m.transform("min"),
        _highest=by_m.transform("max"),
    ).dropna(subset=[key])
    marked = marked.sort_values([*STUDY_KEYS, "batch_size", "base_lr"], ignore_index=True)
    best = marked.loc[marked.groupby([*STUDY_KEYS, "batch_size"])[key].idxmax()]
    at_lowest, at_highest = best["base_lr"] == best["_lowest"], best["base_lr"] == best["_highest"]
    edge = pd.Series("", index=best.index, dtype=object)
    edge = edge.mask(at_lowest, "lower").mask(at_highest, "upper")
    edge = edge.mask(at_lowest & at_highest, "only")
    return best.assign(grid_edge=edge)[BEST_COLUMNS].reset_index(drop=True)


def best_by_study(best: pd.DataFrame) -> pd.DataFrame:
    """Pick each study's best batch size from the rows of `best_cells`; of equals the smaller m.

    They are ranked by the split that their η̃ were chosen on.

    Returns:
        One row per study. ``overlapping`` lists the other batch sizes at whose best cell some seed
        reaches the winner's lowest seed, so that these seeds do not settle the order. If a seed of
        the winner diverged, the winner's median takes the place of its lowest seed.
    """
    ordered = best.sort_values([*STUDY_KEYS, "batch_size"], ignore_index=True)
    ranked = ordered["accuracy"].where(ordered["chosen_on"] == "test", ordered[_VALIDATION])
    groups = ranked.groupby([ordered[key] for key in STUDY_KEYS])
    winners = ordered.loc[groups.idxmax()].reset_index(drop=True)
    floors = winners.assign(
        _floor=winners["min_accuracy"].fillna(winners["accuracy"]), _best=winners["batch_size"]
    )
    rivals = ordered.merge(floors[[*STUDY_KEYS, "_floor", "_best"]], on=STUDY_KEYS)
    near = rivals[
        (rivals["max_accuracy"] >= rivals["_floor"]) & (rivals["batch_size"] != rivals["_best"])
    ]
    names = {
        study: tuple(sorted(group["batch_size"].tolist()))
        for study, group in near.groupby(STUDY_KEYS)
    }
    overlapping = [
        names.get((dataset, study), ())
        for dataset, study in zip(winners["dataset"], winners["study"], strict=True)
    ]
    return winners.assign(overlapping=pd.Series(overlapping, index=winners.index, dtype=object))
