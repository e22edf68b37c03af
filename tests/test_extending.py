"""The guides of docs/extending.md, done: their changes in a copy of the sources, then a use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs/extending.md"
CHANGE = re.compile(
    r"(?P<kind>New file|In) `(?P<path>src/[^`]+)`:\n\n"
    r"(?P<indent> *)```(?P<language>\w+)\n(?P<block>.*?)\n *```",
    re.DOTALL,
)

# What uses the result of each guide; `noise` is a data set of 23 images, `column_of` makes columns.
PRELUDE = """
import json
from pathlib import Path
import torch
import smallbatch
assert Path(smallbatch.__file__).is_relative_to(Path.cwd()), smallbatch.__file__
from smallbatch.config.params import ComputeConfig, parse_dataset
from smallbatch.config.study import StudyConfig
from smallbatch.engines.lanes import train_lanes
from smallbatch.engines.loop import initial_model, train
from smallbatch.engines.resident import load_resident
from smallbatch.placement.placement import place
from smallbatch.protocol.column import plan_column
from tests.noise import make_dataset

noise = make_dataset()

def column_of(model, norm, dataset=noise, epochs=2, seeds=2, batch_size=4):
    settings = StudyConfig(model=model, norm=norm, epochs=epochs, weight_decay=1e-4)
    return plan_column(
        "new", settings, dataset, batch_size=batch_size, base_lrs=(2**-8, 2**-6), seeds=range(seeds)
    )

def resident(dataset):
    return load_resident(dataset, augment=False, device=torch.device("cpu"), dtype=torch.float64)

def agree(column):
    data = resident(column.dataset)
    stacked = train_lanes(column.runs, data, dtype=torch.float64)
    for run, lane in zip(column.runs, stacked, strict=True):
        plain = train(run, data, dtype=torch.float64)
        assert plain.outcome == lane.outcome == "finished"
        for name, value in plain.weights.items():
            assert torch.allclose(value, lane.weights[name], rtol=1e-8, atol=1e-10), name
"""

MODEL = """
for norm in ("none", "batch"):
    column = column_of("small_cnn", norm)
    agree(column)
    assert place(column, ComputeConfig(engine="auto", device="cpu"), keep=False).engine == "loop"
    asked = place(column, ComputeConfig(engine="stacked", device="cpu"), keep=False)
    assert asked.engine == "stacked" and "by torch.vmap" in asked.remark
again = [initial_model(column.runs[0], resident(noise)).fc.weight for _ in range(2)]
assert torch.equal(*again)
"""

NORM = """
from smallbatch.engines.lanes import native
from smallbatch.models import build_model

column = column_of("resnet8", "layer")
model = initial_model(column.runs[0], resident(noise))
assert isinstance(model.norm1, torch.nn.GroupNorm) and model.norm1.num_groups == 1
agree(column)
if native.takes(column.runs[0].settings, "cpu"):
    data = load_resident(noise, augment=False, device=torch.device("cpu"))
    (fast, *_), slow = train_lanes(column.runs, data), train(column.runs[0], data)
    assert abs(fast.rows[0]["train_loss"] - slow.rows[0]["train_loss"]) < 1e-3
timm = build_model(
    "resnet18", "layer", num_classes=3, in_chans=2, image_size=8, seed=0, batch_size=4
)
assert timm.bn1.num_groups == 1
"""

SOURCE = """
from smallbatch.data.expected import expected_meta
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import load_prepared

config = parse_dataset({"name": "lines", "source": "stripes", "subset": 160}, "test")
guess, prepared = expected_meta(config, Path("data/prepared/lines"))
assert not prepared
meta = prepare(config)
assert meta.counts == guess.counts and meta.fingerprint == prepare(config).fingerprint
assert expected_meta(config, Path("data/prepared/lines")) == (meta, True)
dataset = load_prepared(Path("data/prepared/lines"))
column = column_of("resnet8", "none", dataset, epochs=3)
result = train(column.runs[0], load_resident(dataset, augment=False, device=torch.device("cpu")))
assert result.final["test_accuracy"] > 0.9, result.final
"""

CLAIM = """
import pandas as pd
from smallbatch.analysis.claims import CLAIMS, judge
from smallbatch.analysis.evidence import Evidence
from tests.analysis.test_claims import level, raised, runs_of

(claim,) = [claim for claim in CLAIMS if claim.name == "small-beats-large"]

def verdict(rows):
    nothing = pd.DataFrame()
    (finding,) = judge(claim, [Evidence("made-up", pd.DataFrame(rows), nothing, nothing)])
    return finding.verdict

holds, fails = (0.1, 0.095, 0.105), (-0.1, -0.095, -0.105)
assert verdict(runs_of("2", raised(holds, lambda m: m == 2))) == "strictly supported"
assert verdict(runs_of("2", raised(fails, lambda m: m == 2))) == "contradicted"
assert verdict(runs_of("2", level())) == "undecided"
assert verdict(runs_of("2", raised(holds, lambda m: m == 2), ms=(2, 4))) == "undecided"
assert verdict(runs_of("3", level())) == "not run"
"""

ENGINE = """
import pandas as pd
from smallbatch.execution.column import train_column

column = column_of("resnet8", "none", seeds=1, batch_size=5)

for engine in ("loop", "halves"):
    compute = ComputeConfig(engine=engine, device="cpu", workers=2)
    placement = place(column, compute)
    assert placement.engine == engine
    train_column(
        column, Path(engine), placement=placement, checkpoint_seconds=60, work=Path("work", engine),
        environment={},
    )
    assert json.loads(Path(engine, "timing.json").read_text())["column"]["engine"] == engine
loop, halves = (pd.read_parquet(Path(engine, "history.parquet")) for engine in ("loop", "halves"))
pd.testing.assert_frame_equal(loop, halves, rtol=1e-3, check_exact=False, check_like=True)

from dataclasses import replace
from smallbatch.engines import halves as engine
hopeless = replace(column.runs[0], base_lr=1e20)
data = load_resident(noise, augment=False, device=torch.device("cpu"))
ours, oracle = engine.train(hopeless, data, print), train(hopeless, data)
assert ours.outcome == oracle.outcome == "diverged" and ours.diverged_at == oracle.diverged_at
assert set(ours.final) == set(oracle.final) and set(ours.rows[0]) == set(oracle.rows[0])
"""

USES = {
    "Add a model": MODEL,
    "Add a norm": NORM,
    "Add a data source": SOURCE,
    "Add a claim": CLAIM,
    "Add an engine": ENGINE,
}


def guides() -> dict[str, str]:
    """The text of each guide by its title."""
    _, *sections = re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)
    return {title: text for title, _, text in (part.partition("\n") for part in sections)}


def copy_sources(root: Path) -> None:
    """Copy ``src/`` into a folder."""
    # Bytecode comes along, as in tests/project.py; that of a changed file is of another size.
    skip = shutil.ignore_patterns("*.egg-info", "*.pyc.*")
    shutil.copytree(ROOT / "src", root / "src", ignore=skip)


def make_changes(guide: str, root: Path) -> int:
    """Make a guide's changes below a folder; returns how many they are."""
    changes = list(CHANGE.finditer(guide))
    for change in changes:
        path = root / change["path"]
        if change["language"] != "diff":
            block = textwrap.dedent(change["block"]) + "\n"
            assert change["kind"] == "New file"
            assert not path.exists(), path
            path.write_text(block)
            continue
        lines = [line.removeprefix(change["indent"]) for line in change["block"].split("\n")]
        lines = [line or " " for line in lines]
        old, new = (
            "".join(f"{line[1:]}\n" for line in lines if line[0] in (" ", mark)) for mark in "-+"
        )
        text = path.read_text()
        assert text.count(old) == 1, f"{change['path']} holds this {text.count(old)} times:\n{old}"
        path.write_text(text.replace(old, new))
    return len(changes)


def test_every_guide_is_tried() -> None:
    assert list(guides()) == list(USES)
    text = GUIDE.read_text()
    assert len(CHANGE.findall(text)) == text.count("```python") + text.count("```diff")


@pytest.mark.parametrize("title", USES)
def test_the_changes_of_a_guide_fit_the_sources(title: str, tmp_path: Path) -> None:
    copy_sources(tmp_path)
    assert make_changes(guides()[title], tmp_path)


@pytest.mark.slow
def test_the_guides_work_as_they_are_written(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    for guide in guides().values():
        make_changes(guide, tmp_path)
    # All in one process: most of the time goes to imports.
    uses = [f"print({title!r}, flush=True)\n{use}" for title, use in USES.items()]
    used = subprocess.run(
        [sys.executable, "-c", "\n".join([PRELUDE, *uses])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "src", ROOT)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert used.returncode == 0, used.stdout + used.stderr
