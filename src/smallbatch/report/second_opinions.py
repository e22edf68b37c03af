"""How much depends on two choices of the paper: η̃ chosen on the test set, and equal epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.analysis.families import shared_settings
from smallbatch.analysis.generalisation import best_by_study
from smallbatch.analysis.sampling import learned
from smallbatch.report.labels import listed, percent, points, power_of_two, rate_of, rates_of
from smallbatch.report.tables import Table
from smallbatch.text import count

if TYPE_CHECKING:
    import pandas as pd

PAPER = (
    "The paper: for the same number of epochs, small batches reach the best test accuracy, and "
    "train reliably over a wider range of η̃."
)
SHALLUE = (
    "Shallue et al. (2018) found no evidence that larger batches hurt, once the learning rate and "
    "everything else is tuned again for each batch size and budget. With equal epochs a large m "
    "makes fewer updates than it could use."
)
DECIDED = (
    "What this data can decide: which m is best for the budget it had with {optimiser}, when "
    "{rate} alone is tuned, on this grid. What it cannot: whether a large m with {other}another "
    "schedule, another weight decay or more epochs would catch up."
)


UNDECIDED = (
    "No study here learned and has several batch sizes to compare: which m is best, these data "
    "cannot say."
)


def validation_sentence(on_test: pd.DataFrame, on_validation: pd.DataFrame) -> str | None:
    """What changes in one study when η̃ and m are chosen on the validation split.

    Args:
        on_test: The study's rows of `best_cells`, chosen on the test set; not empty.
        on_validation: The same, chosen on the validation split.

    Returns:
        The sentences; None where there is no validation split.
    """
    chosen = on_validation.dropna(subset=["accuracy"]).sort_values("batch_size", ignore_index=True)
    if chosen.empty:
        return None
    ordered = on_test.sort_values("batch_size", ignore_index=True)  # of equals the smaller m
    rate = rate_of(on_test)
    first = max(ordered.to_dict("records"), key=lambda row: row["accuracy"])
    second = max(chosen.to_dict("records"), key=lambda row: row["validation_accuracy"])
    start = "Chosen on the validation split instead of the test set"
    sizes = chosen["batch_size"].tolist()
    has = "has" if len(sizes) == 1 else "have"
    if set(sizes) != set(ordered["batch_size"]):
        start += f" (which m = {listed([str(m) for m in sizes])} alone {has})"
    if all(first[key] == second[key] for key in ("batch_size", "base_lr")):
        said = f"{start}, the best cell is the same."
    else:
        said = (
            f"{start}, the best cell is m = {second['batch_size']} with "
            f"{rate} = {power_of_two(second['base_lr'])}, {percent(second['accuracy'])} on the "
            "test set."
        )
    both = ordered.merge(chosen, on="batch_size", suffixes=("", "_validation"))
    moved = both.loc[both["base_lr"] != both["base_lr_validation"], "batch_size"]
    if len(moved) and len(both) > 1:
        said += f" The best {rate} is another one at m = {listed([str(m) for m in moved])}."
    return said


def choice_table(on_test: pd.DataFrame, on_validation: pd.DataFrame) -> Table:
    """One study's best η̃ at each batch size, chosen on the test set and on the validation split."""
    both = on_test.merge(on_validation, on="batch_size", suffixes=("_test", "_validation"))
    rows = [
        [
            str(row["batch_size"]),
            power_of_two(row["base_lr_test"]),
            power_of_two(row["base_lr_validation"]),
            percent(row["accuracy_test"]),
            percent(row["accuracy_validation"]),
            points(row["accuracy_test"] - row["accuracy_validation"]),
        ]
        for row in both.to_dict("records")
    ]
    rate = rate_of(on_test)
    headers = (
        "m",
        f"{rate} chosen on test",
        f"{rate} chosen on validation",
        "test accuracy, chosen on test",
        "test accuracy, chosen on validation",
        "gained by choosing on test (points)",
    )
    caption = f"What choosing the best {rate} on the test set, as the paper does, is worth."
    return Table(caption, headers, rows)


def budget_table(best: pd.DataFrame, runs: pd.DataFrame) -> Table | None:
    """Best accuracies of studies that differ only in their budget; None if there are none.

    Args:
        best: The best cell of each m, of one data set.
        runs: The runs of the same data set.
    """
    rows = [row for group in _under_both_budgets(runs) for row in _budget_rows(best, group)]
    if not rows:
        return None
    headers = (
        "m",
        "study",
        "budget",
        "epochs",
        "updates",
        f"best {rates_of(best)}",
        "accuracy (median)",
    )
    caption = (
        "Equal epochs against equal updates: the same model with the same number of examples at "
        "every m, and with the same number of updates."
    )
    return Table(caption, headers, rows)


def decided(best: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What these data can decide, see `objection`."""
    compares = any(
        own["batch_size"].nunique() > 1
        and learned(own, runs[(runs["dataset"] == dataset) & (runs["study"] == study)])
        for (dataset, study), own in best.groupby(STUDY_KEYS)
    )
    if not compares:
        return UNDECIDED
    optimisers = sorted(set(runs["optimizer"]))
    plain = optimisers == ["sgd"]
    return DECIDED.format(
        optimiser="plain SGD" if plain else "the optimiser it had",
        rate=rates_of(runs) if rates_of(runs) in ("η̃", "η") else "the learning rate",
        other="momentum, " if plain else "another optimiser, ",
    )


def objection(best: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Shallue et al.'s objection to the paper's claim, and what these data say about it.

    Args:
        best: The best cell of each (data set, study, m), chosen on the test set.
        runs: The runs of all data sets, without studies of several BN batch sizes.
    """
    said = [PAPER, SHALLUE, decided(best, runs), _budgets_sentence(best, runs)]
    if best.empty:
        return said
    edges = best[best["grid_edge"] != ""]
    if edges.empty:
        return [*said, f"In no column is the best {rates_of(best)} on the edge of its grid."]
    edge = (
        f"In {len(edges)} of {count(len(best), 'column')} the best {rates_of(best)} is on the edge "
        "of its grid: tuning did not end there, and the accuracy is a lower bound."
    )
    return [*said, edge]


def _budgets_sentence(best: pd.DataFrame, runs: pd.DataFrame) -> str:
    found = [
        _under(str(study), best, own)
        for group in _under_both_budgets(runs)
        for study, own in group.groupby("study")
    ]
    if not found:
        return f"{_budgets_apart(runs)}, so the objection is not put to the test."
    return (
        f"Under both budgets: {listed(found)}. With equal updates a large m sees more examples, "
        "so neither budget is neutral: one favours small m, the other large m."
    )


def _under(study: str, best: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What came out best of one study, with its budget."""
    dataset = runs["dataset"].iloc[0]
    budget = "equal epochs" if runs["budget"].iloc[0] == "epochs" else "equal updates"
    own = best[(best["dataset"] == dataset) & (best["study"] == study)]
    if not learned(own, runs):
        return f"{study} on {dataset} did not learn with {budget}"
    top: dict[Any, Any] = best_by_study(own).iloc[0].to_dict()
    rivals = [str(m) for m in top["overlapping"]]
    near = f"; seeds of m = {listed(rivals)} overlap" if rivals else ""
    verb = "is best on the test set" if len(own) > 1 else "was run"
    return (
        f"{study} on {dataset} {verb} at m = {top['batch_size']} "
        f"({percent(float(top['accuracy']))}{near}) with {budget}"
    )


def _budgets_apart(runs: pd.DataFrame) -> str:
    """Which budgets studies had of which none can be compared under both."""
    if runs.empty:
        return "No study here has m and η̃ as its grid"
    several = runs["dataset"].nunique() > 1
    names = runs["study"] + (" on " + runs["dataset"] if several else "")
    in_epochs = runs["budget"].eq("epochs")
    epochs, updates = (sorted(set(names[it])) for it in (in_epochs, ~in_epochs))
    if epochs and updates:
        return (
            f"{listed(epochs)} had equal epochs at every batch size, {listed(updates)} equal "
            "updates; no study can be compared under both"
        )
    if epochs and runs.groupby(STUDY_KEYS)["epochs"].nunique().gt(1).any():
        return "Some studies had other epochs at other batch sizes, none equal updates"
    one, other = ("epochs", "updates") if epochs else ("updates", "epochs")
    return (
        f"In each study every batch size had the same number of {one}; no study was run with "
        f"equal {other} as well"
    )


def _under_both_budgets(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs of each experiment that has studies with either budget."""
    return [
        group
        for _, group in runs.groupby(shared_settings(runs), dropna=False)
        if group["budget"].ne("epochs").any() and group["budget"].eq("epochs").any()
    ]


def _budget_rows(best: pd.DataFrame, runs: pd.DataFrame) -> list[list[str]]:
    columns = runs.groupby(["batch_size", "study"], as_index=False)[
        ["budget", "epochs", "updates"]
    ].first()
    found = columns.merge(best, on=["batch_size", "study"])
    return [
        [
            str(row["batch_size"]),
            row["study"],
            "equal epochs" if row["budget"] == "epochs" else "equal updates",
            str(row["epochs"]),
            str(row["updates"]),
            power_of_two(row["base_lr"]),
            percent(row["accuracy"]),
        ]
        for row in found.to_dict("records")
    ]
