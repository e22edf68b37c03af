"""The `smallbatch` command: parses, calls, prints; the work is in the modules it calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from smallbatch import DISTRIBUTION
from smallbatch.cli import cluster, door, pipeline, results
from smallbatch.cli.advise import advise
from smallbatch.cli.bench import bench
from smallbatch.cli.profiles import profile
from smallbatch.cli.projects import init
from smallbatch.cli.single import run
from smallbatch.errors import Missing, Stopped, UserError


class _BadInput(click.ClickException):
    exit_code = 2


class Group(click.Group):
    """Ends a command that fails in one line; see :mod:`smallbatch.cli.door`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        door.open_to_signals()
        _find_a_home()
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError, SystemExit):
            raise
        except click.ClickException as error:
            error.message = door.one_line(error.message)  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except UserError as error:
            raise _BadInput(door.one_line(f"{error}{_advice(error)}")) from None
        except OSError as error:  # a full disk, a read-only folder
            where = f"{error.filename}: " if error.filename else ""
            raise _BadInput(door.one_line(f"{where}{error.strerror or error}")) from None
        except Stopped as stopped:
            click.echo(door.one_line(str(stopped)), err=True)
            # End at once: a regular exit takes seconds, because of torch.
            os._exit(stopped.exit_code)
        except BaseException as error:  # noqa: BLE001 - an interruption, or our own fault
            ctx.exit(door.leave_because_of(error))


def _advice(error: UserError) -> str:
    """What helps besides, where a project's file is missing since there is no project."""
    if isinstance(error, Missing) and not Path("dvc.yaml").exists():
        return "; this folder holds no project: `smallbatch init` lays one out"
    return ""


def _find_a_home() -> None:
    """Give a user without a home folder `/`, as containers do: libraries fail without one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION)
def main() -> None:
    """Which batch sizes train stably, and which generalise?

    A pipeline after Masters & Luschi 2018, "Revisiting Small Batch Training for Deep Neural
    Networks". `dvc repro` runs it whole; these commands are its stages and its tools.

    \b
    Examples:
      smallbatch init study && cd study                # a project of your own
      dvc repro                                        # data → runs → report
      smallbatch run --model resnet8 --batch-size 4 --base-lr 2^-6 --epochs 20
      smallbatch advise --data photos --model resnet18 --budget 20m   # for your own images
      smallbatch ui                                    # browse the runs in MLflow
    """


for command in (
    init, pipeline.code, pipeline.prepare, pipeline.plan, pipeline.train, pipeline.work,
    pipeline.measure, cluster.submit, cluster.status, cluster.cancel, run, advise,
    results.evaluate, results.report, results.answer, results.claims, results.sync, results.ui,
    profile, bench,
):  # fmt: skip
    main.add_command(command)
