"""The whole product from a wheel, in an environment and a folder that know no repository.

What runs there is the tutorial, from nothing to a comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.database import add_database
from tests.docs.pages import DOCS, blocks
from tests.project import UNTRACKED, stages_run

ROOT = Path(__file__).parents[1]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "dvc.yaml", ".dvcignore", ".dvc/config",
          ".dvc/.gitignore")  # fmt: skip
DATA = (".cpp", ".h", ".j2", ".css", ".js", ".json", ".yaml")

PAGE = DOCS / "tutorial.md"

pytestmark = pytest.mark.slow


class Installed:
    """An environment with the wheel; the libraries are those of the environment of the tests."""

    tracked = False
    """Whether what is trained is written to MLflow; once is enough, as it takes long."""

    def __init__(self, root: Path) -> None:
        self.venv, self.home, self.project = (
            root / name for name in ("venv", "home", "work/my-study")
        )
        self.home.mkdir()
        self.project.parent.mkdir()
        self.wheel = _build(root)
        venv.create(self.venv, symlinks=True)
        (self.site,) = self.venv.glob("lib/python*/site-packages")
        # Of a folder that is named here, Python reads no .pth files: those of editable installs.
        libraries = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        (self.site / "libraries.pth").write_text("".join(f"{it}\n" for it in sorted(libraries)))
        self.pip(self.wheel)

    def pip(self, wheel: Path) -> None:
        """Install a wheel, without what it requires."""
        self.call(sys.executable, "-m", "pip", "--python", self.venv / "bin/python", "install",
                  "--quiet", "--no-deps", "--no-index", wheel, cwd=self.venv)  # fmt: skip

    def start(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        # DVC is of the environment of the tests.
        path = [str(self.venv / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(path),
            # The kernels of all tests: to compile them anew takes long.
            "SMALLBATCH_CACHE": os.environ["SMALLBATCH_CACHE"],
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
        }
        if not self.tracked:
            environment["PYTHONPATH"] = str(UNTRACKED)
        return subprocess.run(
            words,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def call(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Run a command that must succeed, by default in the project; returns its output."""
        done = self.start(*words, cwd=cwd or self.project)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, program: str) -> str:
        return self.call(self.venv / "bin/python", "-c", program, cwd=self.home).strip()

    def repro(self, *targets: str) -> list[str]:
        """The stages whose commands ran."""
        return sorted(stages_run(self.call("dvc", "repro", *targets)))

    def edit(self, name: str, comment: str) -> None:
        """Add a comment to a file of the installed package, as an upgrade might."""
        with (self.site / "smallbatch" / name).open("a") as file:
            file.write(comment)


def _build(root: Path) -> Path:
    """A wheel, from a copy of what it is made of: building leaves files behind."""
    source = root / "source"
    shutil.copytree(
        ROOT / "src", source / "src", symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
    )  # fmt: skip
    shutil.copytree(ROOT / ".dvc/plots", source / ".dvc/plots")
    for name in NEEDED:
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", root / "wheels", source],
        check=True,
    )  # fmt: skip
    (wheel,) = (root / "wheels").glob("smallbatch_study-*.whl")
    return wheel


def test_a_wheel_gives_the_whole_product(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    where = Path(installed.python("import smallbatch; print(smallbatch.__file__)"))
    assert where == installed.site / "smallbatch/__init__.py"
    _all_files_are_there(installed)
    _the_tutorial_runs(installed)
    _an_upgrade_runs_again_what_it_changed(installed)
    _another_project_of_the_name_is_told(installed)


def _all_files_are_there(installed: Installed) -> None:
    package = ROOT / "src/smallbatch"
    kept = {
        str(path.relative_to(package)) for path in package.rglob("*")
        if path.suffix in (*DATA, ".py") or path.name in ("py.typed", "dvcignore", "gitignore")
    }  # fmt: skip
    kept |= {f"projects/layout/plots/{path.name}" for path in (ROOT / ".dvc/plots").iterdir()}
    packed = {
        name.removeprefix("smallbatch/") for name in zipfile.ZipFile(installed.wheel).namelist()
    }
    assert len(kept) > 200
    assert kept <= packed
    assert (installed.venv / "bin/smallbatch-team-server").exists()
    refused = installed.start(installed.venv / "bin/smallbatch-team-server", cwd=installed.home)
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (2, "team-server")


def _the_tutorial_runs(installed: Installed) -> None:
    """As a newcomer follows it: its blocks, one after the other, in one shell."""
    found = [block for block in blocks(PAGE) if block.language == "sh"]
    script = "".join(block.text for block in found if block.executed)
    assert len(found) - sum(block.executed for block in found) == 2  # a browser and a server
    output = installed.call("bash", "-euo", "pipefail", "-c", script, cwd=installed.project.parent)
    study = installed.project
    assert (study / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    assert (study / "reports/report.html").stat().st_size > 100_000
    before = json.loads((study / "before.json").read_text())["answers"]
    after = json.loads((study / "reports/answers.json").read_text())["answers"]
    assert len(before) == len(after) > 0
    assert before != after
    # "Only the new columns train": each column's command was called once.
    trained = {f"train@resnet8-{m}": 1 for m in (4, 8, 32)}
    once = {"prepare": 1, **trained}
    # The new batch size also has a memory of its own, which `measure` counts.
    twice = dict.fromkeys(("measure", "evaluate", "report"), 2)
    assert Counter(stages_run(output)) == once | twice
    assert "quick" in installed.call("smallbatch", "profile", "list")
    untracked = installed.call("git", "status", "--porcelain", "--untracked-files=all")
    names = {line.split()[-1] for line in untracked.splitlines()}
    assert {"dvc.lock", "dvc.yaml", "params.yaml"} <= names
    assert not any(name.startswith((".smallbatch", "models", "mlflow", "data")) for name in names)


def _an_upgrade_runs_again_what_it_changed(installed: Installed) -> None:
    installed.edit("cli/results.py", "# other words\n")  # of which no stage's output is made
    installed.edit("report/page.css", "/* other colours */\n")
    assert installed.repro() == ["report"]
    (runs,) = installed.project.glob("models/*/resnet8/m8/timing.json")
    before = runs.read_bytes()
    installed.edit("engines/loop.py", "# other numbers\n")
    add_database(installed.project)
    installed.tracked = True
    assert installed.repro("train@resnet8-8") == ["train@resnet8-8"]
    installed.tracked = False
    assert runs.read_bytes() != before
    with sqlite3.connect(installed.project / "mlflow.db") as database:
        # Of two learning rates, with their parent.
        found = database.execute("select status, count(*) from runs group by 1").fetchall()
    assert found == [("FINISHED", 3)]


def _another_project_of_the_name_is_told(installed: Installed) -> None:
    wheel = installed.wheel.parent / "smallbatch-0.2.0-py3-none-any.whl"
    info = "smallbatch-0.2.0.dist-info"
    files = {
        "smallbatch/candidates.py": "",
        "smallbatch/__init__.py": installed.call("cat", installed.site / "smallbatch/__init__.py"),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: smallbatch\nVersion: 0.2.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    installed.pip(wheel)
    done = installed.start("smallbatch", "answer", cwd=installed.project)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "smallbatch 0.2.0" in line
