"""A checkout in a folder of its own, for tests that run the pipeline by real `dvc` processes."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.database import add_database

ROOT = Path(__file__).parents[1]
UNTRACKED = ROOT / "tests/untracked"
"""Of processes that have this folder on their path, none writes the runs it trains to MLflow."""


class Project:
    """A copy of the sources and the pipeline, with params and an MLflow database of its own.

    Attributes:
        root: Its folder.
        tracked: Whether what is trained by its commands is written to MLflow, which takes as much
            processor time as a short training.
    """

    def __init__(self, root: Path, params: str, *, tracked: bool = True) -> None:
        self.root = root
        self.tracked = tracked
        (root / ".dvc").mkdir(parents=True)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/.gitignore", ".dvc/config"):
            shutil.copy(ROOT / name, root / name)
        shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
        # Bytecode comes along: it is of these files, whose times and sizes stay the same. While it
        # is written, its names end in numbers.
        skip = shutil.ignore_patterns("*.egg-info", "*.pyc.*")
        shutil.copytree(ROOT / "src", root / "src", ignore=skip)
        (root / "params.yaml").write_text(params)
        add_database(root)
        subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the project; its output is one stream."""
        # The stages must find this interpreter's environment, and this copy of the source.
        path = [self.root / "src", *([] if self.tracked else [UNTRACKED])]
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(map(str, path)),
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            words,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str) -> str:
        """Run a command that must succeed; returns its output."""
        with self.start(*words) as process:
            output = process.communicate()[0]
        assert process.returncode == 0, output
        return output

    def repro(self) -> list[str]:
        """Run the pipeline; returns the stages whose commands ran."""
        return stages_run(self.call("dvc", "repro"))

    def outputs(self) -> dict[str, bytes]:
        """What does not depend on the clock."""
        paths = [p for p in self.root.glob("models/**/*") if p.is_file()]
        return {
            str(p): p.read_bytes() for p in paths if p.name not in ("timing.json", "system.json")
        }

    def runs_in_mlflow(self) -> list[tuple[str, str]]:
        """(experiment, run hash) of every child run, straight from the database."""
        with sqlite3.connect(self.root / "mlflow.db") as database:
            return sorted(
                database.execute(
                    "SELECT e.name, t.value FROM tags t JOIN runs r USING (run_uuid) "
                    "JOIN experiments e USING (experiment_id) WHERE t.key = 'smallbatch.run'"
                )
            )


def stages_run(output: str) -> list[str]:
    """The stages whose commands ran, from what `dvc repro` printed; `code` always does."""
    found = re.findall(r"^Running stage '(.*)':$", output, re.MULTILINE)
    return [stage for stage in found if stage != "code"]
