"""The GPU benchmark's command, rehearsed on a CPU in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.book import Book
from benchmarks.gpu.page import write
from benchmarks.gpu.parts import BATCH_SIZES, one_by_one, side_by_side

ROOT = Path(__file__).parents[2]
# A GPU machine may lack what the command must not need; ends up as a module that Python imports
# before anything else.
BLOCKER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlflow", "dvc", "pydantic", "ruamel"}:
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Missing())
"""


def rehearse(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--toy"]
    return subprocess.run(
        [*command, "--out", str(tmp_path / "out"), *more],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_checks_and_resumes(tmp_path: Path) -> None:
    parts = ("check itself", "hardware", "stacked none", "script 2", "grid")
    done = rehearse(tmp_path, "--parts", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "out/gpu.json").read_text())
    assert set(kept) == set(parts)
    assert all(entry["error"] is None and entry["rows"] for entry in kept.values())
    checks = kept["check itself"]["rows"]
    assert len(checks) == 4
    assert all(row["passed"] for row in checks)
    rates = [row["images_per_second"] for name in ("stacked none", "script 2", "grid")
             for row in kept[name]["rows"] if row.get("m") != "evaluation"]  # fmt: skip
    assert all(rate > 0 for rate in rates)
    page = (tmp_path / "out/gpu.md").read_text()
    assert page.startswith("# A rehearsal with toy sizes: no results")
    for title in ("Images per second", "Checks", "Fig. 2, extrapolated"):
        assert title in page
    assert "Failed" not in page
    # A part that failed is done again, all others are kept.
    kept["hardware"]["error"] = "of an earlier try"
    (tmp_path / "out/gpu.json").write_text(json.dumps(kept))
    again = rehearse(tmp_path, "--parts", *parts)
    assert again.returncode == 0, again.stdout + again.stderr
    measured = [line for line in again.stdout.splitlines() if line.startswith("[")]
    assert len(measured) == 1
    assert "hardware" in measured[0]
    after = json.loads((tmp_path / "out/gpu.json").read_text())
    assert after["hardware"]["error"] is None
    assert after["grid"] == kept["grid"]


def test_what_does_not_fit_the_time_is_left_out_and_said(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--parts", "hardware", "grid", "--minutes", "0")
    assert done.returncode == 1
    page = (tmp_path / "out/gpu.md").read_text()
    assert "Left out for time" in page
    assert "- grid" in page


def test_a_part_past_its_limit_is_ended_and_what_it_said_is_kept(tmp_path: Path) -> None:
    from argparse import Namespace

    from benchmarks.gpu.__main__ import _Runner
    from benchmarks.gpu.parts import Part

    script = tmp_path / "part.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        'print(\'{"m": 2, "pid": %d}\' % child.pid, flush=True)\n'
        "time.sleep(60)\n"
    )
    book = Book(tmp_path / "gpu.json", time.monotonic() + 60)
    runner = _Runner(book, Namespace(device="cpu", toy=False, commit=None), tmp_path)
    began = time.monotonic()
    runner.run(Part("slow", (str(script),), 2.0, {"way": "slow"}))
    assert time.monotonic() - began < 20
    entry = json.loads((tmp_path / "gpu.json").read_text())["slow"]
    assert entry["error"] == "ended after 2 s"
    (row,) = entry["rows"]
    assert (row["way"], row["m"]) == ("slow", 2)
    time.sleep(0.2)
    status = Path(f"/proc/{row['pid']}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"  # the child is gone too
    assert not book.done("slow")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--parts", "bananas"], "--parts: found 'bananas', allowed: beginnings of check resnet8"),
        (["--device", "cuda"], "--device: found cuda, but torch sees no CUDA device"),
        ([], "has results of cuda; name another folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    tmp_path: Path, more: list[str], says: str
) -> None:
    if more == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "out").mkdir()
    row = {"what": "machine", "device": "cuda"}
    (tmp_path / "out/gpu.json").write_text(json.dumps({"hardware": {"rows": [row]}}))
    done = rehearse(tmp_path, *more)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def test_names_of_parts_are_unique_and_every_batch_size_is_measured(tmp_path: Path) -> None:
    parts = [*side_by_side(False), *one_by_one(False, tmp_path / "images.npz")]
    assert len({part.name for part in parts}) == len(parts)
    commands = [" ".join(part.command) for part in parts if part.kept]
    for m in BATCH_SIZES:
        assert any("textbook.py" in c and f"--batch-size {m} " in c for c in commands)


def test_the_committed_page_is_made_of_the_committed_results(tmp_path: Path) -> None:
    book = Book(ROOT / "results/bench/gpu.json", 0.0)
    write(tmp_path / "gpu.md", book)
    committed = (ROOT / "results/bench/gpu.md").read_text()
    assert committed.startswith((tmp_path / "gpu.md").read_text().rstrip())
