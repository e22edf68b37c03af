"""The report stage: makes figures, tables and one self-contained HTML page from an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch import private
from smallbatch.analysis.cells import MAIN_FRACTION, STUDY_KEYS
from smallbatch.analysis.convergence import CURVES, median_curves, shown_base_lr
from smallbatch.analysis.evaluation import (
    by_study,
    read_set_aside,
    write_text,
)
from smallbatch.analysis.frames import ADAMW, GRID_KEYS
from smallbatch.analysis.limit_band import fit_band
from smallbatch.analysis.measurements import read_memory, read_variances
from smallbatch.analysis.mixed import mixed_results
from smallbatch.analysis.scaling import scaling
from smallbatch.analysis.seeds import seed_array
from smallbatch.analysis.stability import fit_upper_limit
from smallbatch.records.columns import find_columns
from smallbatch.report import answer, budgets, paper, second_opinions, tables
from smallbatch.report.charts import kinds
from smallbatch.report.claim_rows import claim_rows, verdict_counts
from smallbatch.report.claims import as_text, claims_tables, counts_sentence, judged_record
from smallbatch.report.costs import cost_figures, cost_kinds, cost_rows, cost_table
from smallbatch.report.document import library, render
from smallbatch.report.environment import environment_table, mixed_hardware, read_timings
from smallbatch.report.figures import Figure, Gallery, remove_others, study_figures, summary_figures
from smallbatch.report.files import write_tables
from smallbatch.report.frames import Frames, load_frames
from smallbatch.report.ghost import ghost_section
from smallbatch.report.images import with_images
from smallbatch.report.labels import rates_of
from smallbatch.report.rows import (
    Row,
    cell_rows,
    columnar,
    curve_rows,
    fit_rows,
    mark_answer,
    range_rows,
    rule_rows,
    run_rows,
)
from smallbatch.report.settings import reported_rule, setting
from smallbatch.report.study_words import study_card, study_words
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


FEW = 2
"""Of so many studies all is unfolded on the page."""


def build_report(
    evaluation_dir: Path = Path("reports/evaluation"),
    models_dir: Path = Path("models"),
    out: Path = Path("reports"),
    links: Callable[[list[str]], Mapping[str, str]] = lambda _: {},
    first: str = "",
) -> Path:
    """Draw all figures, write all tables and the page.

    Args:
        evaluation_dir: The folder that `evaluate` wrote.
        models_dir: The folder of the columns, for timing files and the names of unfinished columns;
            the evaluation must be of them, unless there is no such folder.
        out: The folder for ``report.html``, ``claims.json``, ``answers.json``, ``vega.js``,
            ``figures/`` (SVG, PNG) and ``tables/`` (CSV).
        first: The data set that comes first, such as that of ``params.yaml``.
        links: Gives the addresses of the runs of some ``<dataset>/<study>``, where there are any.

    Returns:
        The path of the page.

    Raises:
        UserError: The evaluation is missing, or of other columns, or a file is damaged.
    """
    frames = load_frames(evaluation_dir, models_dir)
    set_aside = read_set_aside(evaluation_dir)
    timings = read_timings(models_dir, set_aside)
    variances, memory = (read(out / "measurements") for read in (read_variances, read_memory))
    private.refuse_links_of_others(out / "figures", out / "tables")
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
    runs = frames.all_runs
    optimisers = set(runs["optimizer"])
    costs = cost_table(runs, timings, memory)
    drawn: dict[str, list[Row]] = {
        "cells": cell_rows(frames.cells, frames.best),
        "bn_cells": cell_rows(frames.bn_cells, frames.best.iloc[:0]),
        "ranges": [],
        "runs": run_rows(frames.runs, frames.history),
        "fit": [],
        "rules": [],
        "curves": [],
        "costs": cost_rows(costs),
    }
    under_budgets = budgets.under_budgets(frames.runs, timings)
    drawn[budgets.KIND] = budgets.budget_rows(under_budgets)
    specifications = {**kinds(), **cost_kinds(), budgets.KIND: budgets.budget_kind()}
    gallery = Gallery(out / "figures", specifications, drawn)
    studies: list[dict[str, Any]] = []
    curves = [pd.DataFrame(columns=[*STUDY_KEYS, *CURVES])]
    for dataset, study in _study_keys(frames.cells):
        own = frames.only(dataset=dataset, study=study)
        curves.append(_curves(own))
        studies.append(_study_section(gallery, drawn, own, curves[-1]))
    for dataset, study in _study_keys(frames.bn_cells):
        own = frames.only(dataset=dataset, study=study)
        section = ghost_section(own.bn_cells, with_images(own.bn_runs, own.images))
        section["figures"] = [gallery.add(figure) for figure in section["figures"]]
        studies.append(section)
    datasets = [
        _dataset_section(
            gallery,
            str(dataset),
            frames.only(dataset=dataset),
            studies,
            drawn,
            under_budgets[under_budgets["dataset"] == dataset],
        )
        for dataset in sorted(runs["dataset"].unique(), key=lambda name: (name != first, name))
    ]
    remove_others(gallery.directory, gallery.names)
    shown_curves = pd.concat(curves[1:] or curves)
    write_tables(out / "tables", frames, shown_curves, timings, under_budgets, costs)
    verdicts = judged_record(runs, frames.history, variances, memory)
    write_text(out / "claims.json", as_text(verdicts) + "\n")
    answered = [study for study in studies if "card" in study]
    # What says most comes first; others stay in order.
    answered.sort(key=lambda study: (study["dataset"] != first, study["card"].sure == "undecided"))
    write_text(out / answer.NAME, answer.as_json(study["card"] for study in answered))
    of_paper = runs["figure"].notna().any()
    judged = claim_rows(verdicts) if of_paper else []
    figures = [
        *(study["heat_map"] for study in answered),
        *(figure for section in [*studies, *datasets] for figure in section["figures"]),
    ]
    page = render(
        answered=answered,
        one_dataset=len(datasets) == 1,
        datasets=datasets,
        wide={name for name, kind in specifications.items() if kind.facet},
        timed=any(row["seconds"] is not None for row in drawn["curves"]),
        claims=judged,
        claim_data=sorted({row.data for row in judged}),
        few=len(studies) <= FEW,
        verdicts=verdict_counts(judged),
        claim_tables=claims_tables(verdicts)[1:] if of_paper else [],
        claim_counts=counts_sentence(verdicts),
        objection=second_opinions.objection(frames.best, frames.runs)
        if of_paper
        else [second_opinions.decided(frames.best, frames.runs)],
        environment=environment_table(timings),
        mixed_hardware=mixed_hardware(timings),
        notices=[*mixed_results(runs, frames.cells), *_left_out(models_dir, set_aside)],
        counts=_counts(frames),
        what_runs_share=_reported(runs),
        fraction=MAIN_FRACTION,
        adamw=ADAMW in optimisers,
        only_adamw=optimisers == {ADAMW},
        with_momentum=bool(optimisers & {"momentum", "nesterov"}),
        rate=rates_of(runs),
        reference=paper.REFERENCE,
        overview=[paper.FIGURES["15"], paper.FIGURES["16"]],
        data={
            "kinds": {name: vars(kind) for name, kind in specifications.items()},
            "figures": {each.name: {"kind": each.kind, "tables": each.tables} for each in figures},
            "tables": {name: columnar(rows) for name, rows in drawn.items()},
            "mlflow": links([f"{dataset}/{study}" for dataset, study in _study_keys(runs)]),
        },
    )
    write_text(out / "vega.js", library())  # for the page of `dvc plots`
    path = out / "report.html"
    write_text(path, page)
    return path


def _study_keys(cells: pd.DataFrame) -> list[tuple[str, str]]:
    keys = cells[STUDY_KEYS].drop_duplicates().sort_values(STUDY_KEYS)
    return list(zip(keys["dataset"], keys["study"], strict=True))


def _curves(own: Frames) -> pd.DataFrame:
    base_lr = shown_base_lr(own.cells, own.runs["figure"].iloc[0])
    curves = median_curves(own.history[own.history["base_lr"] == base_lr])
    curves.insert(0, "dataset", own.cells["dataset"].iloc[0])
    curves.insert(1, "study", own.cells["study"].iloc[0])
    return curves


def _study_section(
    gallery: Gallery, drawn: dict[str, list[Row]], own: Frames, curves: pd.DataFrame
) -> dict[str, Any]:
    dataset, study = (str(own.cells[key].iloc[0]) for key in STUDY_KEYS)
    fit = fit_upper_limit(own.ranges[own.ranges["fraction"] == MAIN_FRACTION])
    band = fit_band(seed_array(own.runs)) if fit else None
    rules = scaling(own.best, own.cells)
    drawn["rules"] += rule_rows(own.cells, rules)
    drawn["fit"] += fit_rows(dataset, study, own.ranges, fit, band)
    drawn["curves"] += curve_rows(curves, own.runs)
    said = study_words(
        with_images(own.runs, own.images), own.cells, own.best, own.best_on_validation,
        own.winners, own.ranges, fit, band,
    )  # fmt: skip
    figure = own.runs["figure"].iloc[0]
    card = study_card(own.runs, own.cells, own.best, own.winners)
    mark_answer(drawn["cells"], card)
    if said.learned:
        drawn["ranges"] += range_rows(own.ranges, own.cells)
    found = study_figures(
        dataset,
        own.cells,
        own.ranges,
        curves,
        fits=fit is not None,
        band=band is not None,
        learned=said.learned,
        rules=rules,
    )
    heat_map, *others = [gallery.add(each) for each in found]
    return {
        "dataset": dataset,
        "name": study,
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "card": card,
        "setting": setting(own.runs),
        "heat_map": heat_map,
        "sentences": [said.best, said.validation, said.range, said.fit],
        "warnings": said.warnings,
        "figures": others,
        "tables": said.tables,
    }


def _dataset_section(
    gallery: Gallery,
    dataset: str,
    own: Frames,
    studies: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, Sequence[Row]],
    under_budgets: pd.DataFrame,
) -> dict[str, Any]:
    figures: list[Figure] = []
    shown: list[tables.Table] = []
    if len(own.cells):  # otherwise all studies have several BN batch sizes, and another grid
        found = summary_figures(dataset, {"dataset": dataset}, own.cells, own.best)
        if not any(row["dataset"] == dataset for row in drawn["ranges"]):
            found = [it for it in found if not it.kind.startswith("all-ranges")]
        found += budgets.budget_figures(dataset, under_budgets)
        figures = [gallery.add(figure) for figure in found]
        shown = [
            tables.study_table(own.winners, own.runs),
            *filter(None, [second_opinions.budget_table(own.best, own.runs)]),
            *budgets.budget_tables(under_budgets),
        ]
    figures += [gallery.add(figure) for figure in cost_figures(dataset, drawn["costs"])]
    return {
        "name": dataset,
        "of_paper": own.all_runs["figure"].notna().any(),
        "figures": figures,
        "tables": shown,
        "studies": [study for study in studies if study["dataset"] == dataset],
    }


def _reported(runs: pd.DataFrame) -> str:
    rules = {reported_rule(own) for _, own in runs.groupby(STUDY_KEYS)}
    rule = rules.pop() if len(rules) == 1 else "see “What was run” of each study, as they differ"
    return f"Reported accuracy: {rule}."


def _counts(frames: Frames) -> str:
    runs = frames.all_runs
    cells = runs.groupby([*GRID_KEYS, "bn_batch_size"], dropna=False).ngroups
    diverged = int(runs["outcome"].eq("diverged").sum())
    return (
        f"{count(len(runs), 'run')} in {count(cells, 'cell')} of "
        f"{count(len(_study_keys(runs)), 'study', 'studies')}; {count(diverged, 'run')} diverged"
    )


def _left_out(models_dir: Path, set_aside: Sequence[str]) -> list[str]:
    lines: list[str] = []
    if set_aside:
        lines.append(
            f"Set aside, as params.yaml no longer names them: {by_study(set_aside)}. "
            "`smallbatch evaluate --all` and then `smallbatch report` bring them in."
        )
    if models_dir.is_dir():
        names = [path.relative_to(models_dir).as_posix() for path in find_columns(models_dir)[1]]
        if names:
            lines.append(f"Not trained to the end and left out: {', '.join(names)}.")
    return lines
