"""The report stage: makes figures, tables and one self-contained HTML page from an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from smallbatch import private
from smallbatch.analysis.cells import MAIN_FRACTION, STUDY_KEYS
from smallbatch.analysis.claims import read_variances
from smallbatch.analysis.convergence import CURVES, median_curves, shown_base_lr
from smallbatch.analysis.evaluation import (
    read_evaluation,
    refuse_stale,
    write_table,
    write_text,
)
from smallbatch.analysis.frames import GRID_KEYS, on_bn_axis
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.ghost import bn_cells
from smallbatch.analysis.limit_band import fit_band
from smallbatch.analysis.mixed import mixed_results
from smallbatch.analysis.seeds import seed_array
from smallbatch.analysis.stability import fit_upper_limit, stable_ranges
from smallbatch.records.columns import find_columns
from smallbatch.report import paper, second_opinions, tables
from smallbatch.report.claims import (
    as_text,
    claims_tables,
    counts_sentence,
    judged_record,
)
from smallbatch.report.environment import environment_table, read_timings
from smallbatch.report.ghost import ghost_section
from smallbatch.report.labels import count
from smallbatch.report.pictures import Gallery, Picture, study_pictures, summary_pictures
from smallbatch.report.study_words import study_words

# Figures of an earlier report, of studies that no longer exist, are deleted.
_FIGURE_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class Frames:
    """The data of the page, for all studies or for one."""

    runs: pd.DataFrame
    bn_runs: pd.DataFrame
    cells: pd.DataFrame
    history: pd.DataFrame
    best: pd.DataFrame
    best_on_validation: pd.DataFrame
    winners: pd.DataFrame
    ranges: pd.DataFrame
    bn_cells: pd.DataFrame

    def only(self, **where: str) -> Frames:
        """Keep the rows of one data set, or of one study of it."""
        kept: dict[str, pd.DataFrame] = {}
        for name, frame in vars(self).items():
            for key, value in where.items():
                frame = frame[frame[key] == value]
            kept[name] = frame
        return Frames(**kept)


def build_report(
    evaluation_dir: Path = Path("reports/evaluation"),
    models_dir: Path = Path("models"),
    out: Path = Path("reports"),
) -> Path:
    """Draw all figures, write all tables and the page.

    Args:
        evaluation_dir: The folder that `evaluate` wrote.
        models_dir: The folder of the columns, for timing files and the names of unfinished columns;
            the evaluation must be of them, unless there is no such folder.
        out: The folder for ``report.html``, ``claims.json``, ``figures/`` (SVG, PNG) and
            ``tables/`` (CSV).

    Returns:
        The path of the page.

    Raises:
        UserError: The evaluation is missing, or of other columns, or a file is damaged.
    """
    frames = _load(evaluation_dir, models_dir)
    timings = read_timings(models_dir)
    variances = read_variances(out / "measurements")
    private.refuse_links_of_others(out / "figures", out / "tables")
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
    gallery = Gallery(out / "figures")
    studies: list[dict[str, Any]] = []
    curves = [pd.DataFrame(columns=[*STUDY_KEYS, *CURVES])] if frames.cells.empty else []
    for dataset, study in _study_keys(frames.cells):
        own = frames.only(dataset=dataset, study=study)
        own_curves = _curves(own)
        curves.append(own_curves)
        studies.append(_study_section(gallery, f"{dataset}.{study}", own, own_curves))
    for dataset, study in _study_keys(frames.bn_cells):
        own = frames.only(dataset=dataset, study=study)
        name = f"{dataset}.{study}"
        studies.append(ghost_section(gallery, name, own.bn_cells, own.bn_runs))
    datasets = [
        _dataset_section(gallery, str(dataset), frames.only(dataset=dataset), studies)
        for dataset in sorted(_all_runs(frames)["dataset"].unique())
    ]
    across = _across(gallery, frames) if frames.cells["dataset"].nunique() > 1 else []
    _remove_other_figures(gallery.directory, [*datasets, *studies, {"pictures": across}])
    _write_tables(out / "tables", frames, pd.concat(curves), timings)
    verdicts = judged_record(_all_runs(frames), frames.history, timings, variances)
    write_text(out / "claims.json", as_text(verdicts) + "\n")
    page = _template().render(
        claims=claims_tables(verdicts),
        claim_counts=counts_sentence(verdicts),
        datasets=datasets,
        across=across,
        objection=second_opinions.objection(frames.best, frames.runs),
        environment=environment_table(timings),
        notices=[
            *mixed_results(_all_runs(frames), frames.cells),
            *_unfinished(models_dir),
        ],
        counts=_counts(frames),
        fraction=MAIN_FRACTION,
        reference=paper.REFERENCE,
        overview=[paper.FIGURES["15"], paper.FIGURES["16"]],
    )
    path = out / "report.html"
    write_text(path, page)
    return path


def _load(evaluation_dir: Path, models_dir: Path) -> Frames:
    runs, cells, history = read_evaluation(evaluation_dir)
    if models_dir.is_dir():
        refuse_stale(runs, evaluation_dir, models_dir)
    best = best_cells(cells)
    return Frames(
        runs=runs[~on_bn_axis(runs)],
        bn_runs=runs[on_bn_axis(runs)],
        cells=cells,
        history=history,
        best=best,
        best_on_validation=best_cells(cells, "validation"),
        winners=best_by_study(best),
        ranges=stable_ranges(cells),
        bn_cells=bn_cells(runs),
    )


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
    gallery: Gallery, name: str, own: Frames, curves: pd.DataFrame
) -> dict[str, Any]:
    fit = fit_upper_limit(own.ranges[own.ranges["fraction"] == MAIN_FRACTION])
    band = fit_band(seed_array(own.runs)) if fit else None
    said = study_words(
        own.runs, own.cells, own.best, own.best_on_validation, own.winners, own.ranges, fit, band
    )
    figure = own.runs["figure"].iloc[0]
    return {
        "dataset": str(own.cells["dataset"].iloc[0]),
        "name": str(own.cells["study"].iloc[0]),
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "best": said.best,
        "range": said.range,
        "fit": f"{said.validation} {said.fit}".strip(),
        "warnings": said.warnings,
        "pictures": study_pictures(
            gallery, name, own.cells, own.best, own.ranges, curves, fit, band
        ),
        "tables": said.tables,
    }


def _dataset_section(
    gallery: Gallery, dataset: str, own: Frames, studies: list[dict[str, Any]]
) -> dict[str, Any]:
    pictures: list[Picture] = []
    shown: list[tables.Table] = []
    if len(own.cells):  # otherwise all studies have several BN batch sizes, and another grid
        pictures = summary_pictures(gallery, dataset, own.cells, own.best, own.ranges)
        shown = [
            tables.study_table(own.winners, own.runs),
            *filter(None, [second_opinions.budget_table(own.best, own.runs)]),
        ]
    return {
        "name": dataset,
        "pictures": pictures,
        "tables": shown,
        "studies": [study for study in studies if study["dataset"] == dataset],
    }


def _across(gallery: Gallery, frames: Frames) -> list[Picture]:
    """The summary figures over the studies of each data set."""

    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(study=frame["dataset"] + " " + frame["study"])

    shown = (renamed(frame) for frame in (frames.cells, frames.best, frames.ranges))
    return summary_pictures(gallery, "all data sets", *shown)


def _write_tables(
    directory: Path, frames: Frames, curves: pd.DataFrame, timings: pd.DataFrame
) -> None:
    ranges = frames.ranges.assign(
        holes=[" ".join(f"{value:g}" for value in holes) for holes in frames.ranges["holes"]]
    )
    winners = frames.winners.assign(
        overlapping=[" ".join(map(str, values)) for values in frames.winners["overlapping"]]
    )
    write_table(frames.best, directory / "best_accuracy.csv")
    write_table(frames.best_on_validation, directory / "best_accuracy_on_validation.csv")
    write_table(ranges, directory / "stable_range.csv")
    write_table(curves, directory / "convergence.csv")
    write_table(winners, directory / "studies.csv")
    write_table(frames.cells, directory / "cells.csv")
    write_table(frames.bn_cells, directory / "bn_batch.csv")
    write_table(_fits(frames.ranges), directory / "limit_fit.csv")
    write_table(timings, directory / "timing.csv")


def _fits(ranges: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (dataset, study, fraction), group in ranges.groupby([*STUDY_KEYS, "fraction"]):
        fit = fit_upper_limit(group)
        if fit is not None:
            rows.append({"dataset": dataset, "study": study, "fraction": fraction, **vars(fit)})
    names = ["base_lr_0", "m_star", "rms_octaves", "n_points", "m_star_bound"]
    return pd.DataFrame(rows, columns=[*STUDY_KEYS, "fraction", *names])


def _all_runs(frames: Frames) -> pd.DataFrame:
    return pd.concat([frames.runs, frames.bn_runs])


def _counts(frames: Frames) -> str:
    runs = _all_runs(frames)
    cells = runs.groupby([*GRID_KEYS, "bn_batch_size"], dropna=False).ngroups
    diverged = int(runs["outcome"].eq("diverged").sum())
    return (
        f"{count(len(runs), 'run')} in {count(cells, 'cell')} of "
        f"{count(len(_study_keys(runs)), 'study', 'studies')}; {count(diverged, 'run')} diverged"
    )


def _unfinished(models_dir: Path) -> list[str]:
    if not models_dir.is_dir():
        return []
    names = [path.relative_to(models_dir).as_posix() for path in find_columns(models_dir)[1]]
    return [f"Not trained to the end and left out: {', '.join(names)}."] if names else []


def _remove_other_figures(directory: Path, sections: list[dict[str, Any]]) -> None:
    drawn: set[str] = set()
    for section in sections:
        pictures: list[Picture] = section["pictures"]
        drawn |= {picture.name for picture in pictures}
    for path in directory.iterdir():
        if path.suffix in _FIGURE_SUFFIXES and path.stem not in drawn:
            path.unlink(missing_ok=True)  # another report may be at it


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
