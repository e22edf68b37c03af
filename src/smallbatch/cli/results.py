"""Commands for results: tables, report, verdicts, MLflow."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from smallbatch.cli import door
from smallbatch.cli.options import MODELS, PARAMS, load
from smallbatch.errors import UserError


@click.command()
@MODELS
@click.option("--all", "everything", is_flag=True, help="Columns that are set aside, too.")
@PARAMS
def evaluate(models: Path, everything: bool, params_file: Path) -> None:
    """Turn the runs under models/ into tables and metrics.

    Of the data set that params.yaml names, columns are set aside whose study or batch size it no
    longer names. Those of other data sets stay in, and so do all of another folder than models/,
    unless --params names a file for it.

    \b
    Examples:
      smallbatch evaluate
      dvc metrics show
    """
    from smallbatch.analysis.evaluation import evaluate as evaluate_runs
    from smallbatch.pipeline.experiments import is_named, naming_file
    from smallbatch.pipeline.held import evaluate_inputs, held

    file = None if everything else naming_file(params_file, models)
    with held(evaluate_inputs(models, file), lambda: evaluate_inputs(models, file)):
        if file is None:
            found = evaluate_runs(models)
        else:
            params = load(file)
            found = evaluate_runs(models, wanted=is_named(params), dataset=params.dataset.name)
    for line in found.lines():
        door.say(line)


@click.command()
@MODELS
def report(models: Path) -> None:
    """Write reports/report.html with its figures and tables, and say the answer of each study.

    Where MLFLOW_TRACKING_URI names a server, the page's cells have links to their runs there.

    \b
    Examples:
      smallbatch report
    """
    from smallbatch.pipeline.experiments import naming_file
    from smallbatch.pipeline.held import held, report_inputs
    from smallbatch.pipeline.single import DEFAULT_PARAMS
    from smallbatch.report.answer import answer_lines
    from smallbatch.report.page import build_report
    from smallbatch.tracking.links import experiment_links

    def links(names: list[str]) -> dict[str, str]:
        try:
            return experiment_links(names)
        except UserError as error:
            shown = door.shown(str(error))
            click.echo(f"warning: the report has no links to MLflow: {shown}", err=True)
            return {}

    first = ""
    with suppress(UserError):  # params.yaml only says which data set is at hand
        file = naming_file(DEFAULT_PARAMS, models)
        first = load(file).dataset.name if file is not None else ""
    with held(report_inputs(models), lambda: report_inputs(models)):
        page = build_report(models_dir=models, links=links, first=first)
    for line in answer_lines(page.parent):
        click.echo(door.shown(line), err=True)
    click.echo(page)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as in answers.json.")
@click.argument(
    "file", type=click.Path(path_type=Path), default=Path("reports/answers.json"), required=False
)
def answer(as_json: bool, file: Path) -> None:
    """Print which batch size and learning rate each study speaks for, and how sure that is.

    FILE defaults to reports/answers.json, which `smallbatch report` writes.

    \b
    Examples:
      smallbatch answer
      smallbatch answer results/paper-cifar10-small/answers.json
    """
    from smallbatch.report.answer import as_json as as_text
    from smallbatch.report.answer import read_answers, told

    cards = read_answers(file).answers
    lines = [told(card) for card in cards]
    lines = lines or ["no study has batch sizes and learning rates as its grid"]
    click.echo(as_text(cards).rstrip() if as_json else "\n".join(lines))


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--models", type=click.Path(path_type=Path), help="Judge the result files in this folder."
)
@click.option(
    "--measurements",
    type=click.Path(path_type=Path),
    default=Path("reports/measurements"),
    show_default=True,
    help="Folder of what `smallbatch measure` wrote; with --models.",
)
@click.option("--all", "everything", is_flag=True, help="What was not run, too.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Markdown on a terminal, too.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON, as in claims.json.")
def claims(
    file: Path | None,
    models: Path | None,
    measurements: Path,
    everything: bool,
    as_markdown: bool,
    as_json: bool,
) -> None:
    """Print the verdicts on those of the paper's claims that were run.

    A table on a terminal, elsewhere one in Markdown.

    FILE defaults to reports/claims.json, which `smallbatch report` writes. A line on stderr says if
    the evaluation beside it is of other runs by now. With --models the result files themselves are
    judged, in seconds, and nothing is written.

    \b
    Examples:
      smallbatch claims
      smallbatch claims results/paper-cifar10-small/claims.json
      smallbatch claims --models models --json
    """
    from smallbatch.report.claims import as_text, judge_models, read_claims, stale, unknown_then
    from smallbatch.report.claims_text import markdown, print_tables

    if as_json and as_markdown:
        raise UserError("--json and --markdown: found both, allowed: one of them")
    if models is None:
        file = file or Path("reports/claims.json")
        record = read_claims(file)
        found = [stale(file, record), unknown_then(file, record)]
        lines = [line for line in found if line is not None]
    else:
        if file is not None:
            raise UserError("FILE and --models: found both, allowed: one of them")
        record, lines = judge_models(models, measurements)
    for line in lines:
        click.echo(f"warning: {door.shown(line)}", err=True)
    if as_json:
        click.echo(as_text(record))
    elif as_markdown or not sys.stdout.isatty():
        click.echo(markdown(record, everything))
    else:
        print_tables(record, everything)


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
def sync(folders: tuple[Path, ...]) -> None:
    """Replay result files to MLflow; what is there already stays as it is.

    FOLDERS default to models/ and the single runs. MLFLOW_TRACKING_URI names the server; without
    it, mlflow.db in this folder.

    \b
    Examples:
      smallbatch sync
      MLFLOW_TRACKING_URI=http://localhost:5000 smallbatch sync models/digits
    """
    from smallbatch.pipeline.experiments import result_folders
    from smallbatch.text import count
    from smallbatch.tracking import sync as sync_files

    done = sync_files(folders or result_folders())
    discarded = f"; {done.runs_discarded} of other results moved to MLflow's trash"
    click.echo(
        f"{count(done.columns, 'column')}: {count(done.runs_created, 'MLflow run')} created, "
        f"{done.runs_updated} completed, {done.unchanged} unchanged; "
        f"{count(done.points_logged, 'metric point')} logged"
        + (discarded if done.runs_discarded else "")
    )


@click.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--open/--no-open",
    "open_browser",
    default=None,
    help="Open the link in a browser.  [default: on a terminal, if there is a browser]",
)
@click.option("--verbose", is_flag=True, help="What the server says, not its errors alone.")
def ui(port: int, open_browser: bool | None, verbose: bool) -> None:
    """Start the MLflow UI on 127.0.0.1, and print a link to the table of runs.

    That is the table of the first study of params.yaml, or of the newest runs. The link has a
    token, new at each start, without which nobody is answered. For MLflow's clients put it into
    MLFLOW_TRACKING_TOKEN.

    \b
    Examples:
      smallbatch ui
      smallbatch ui --port 5001
    """
    from smallbatch.pipeline.single import DEFAULT_PARAMS
    from smallbatch.tracking import ui as start_ui
    from smallbatch.tracking.ui import has_browser

    first = None
    with suppress(UserError):  # params.yaml only says which study comes first
        params = load(DEFAULT_PARAMS)
        first = f"{params.dataset.name}/{params.running[0]}"
    opening = sys.stdout.isatty() and has_browser() if open_browser is None else open_browser
    start_ui(port, first=first, open_browser=opening, verbose=verbose)
