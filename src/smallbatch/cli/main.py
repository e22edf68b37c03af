"""The `smallbatch` command: parses, calls, prints; the work is in the modules it calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from smallbatch.cli import pipeline, results
from smallbatch.cli.bench import bench
from smallbatch.cli.profiles import profile
from smallbatch.cli.single import run
from smallbatch.errors import Stopped, UserError


class _BadInput(click.ClickException):
    exit_code = 2


class Group(click.Group):
    """Shows errors of the user as one line, with exit status 2, and why a training stopped."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        _find_a_home()
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _BadInput(" ".join(str(error).split())) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, a read-only folder
            where = f"{error.filename}: " if error.filename else ""
            raise _BadInput(f"{where}{error.strerror or error}") from None
        except Stopped as stopped:
            click.echo(str(stopped), err=True)
            # End at once: a regular exit takes seconds, because of torch.
            os._exit(stopped.exit_code)


def _find_a_home() -> None:
    """Give a user without a home folder `/`, as containers do: libraries fail without one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="smallbatch")
def main() -> None:
    """Which batch sizes train stably, and which generalise?

    A pipeline after Masters & Luschi 2018, "Revisiting Small Batch Training for Deep Neural
    Networks". `dvc repro` runs it whole; these commands are its stages and its tools.

    \b
    Examples:
      dvc repro                                        # data → runs → report
      smallbatch run --model resnet8 --batch-size 4 --base-lr 2^-6 --epochs 20
      smallbatch ui                                    # browse the runs in MLflow
    """


for command in (
    pipeline.prepare, pipeline.plan, pipeline.train, pipeline.measure, run,
    results.evaluate, results.report, results.claims, results.sync, results.ui,
    profile, bench,
):  # fmt: skip
    main.add_command(command)
