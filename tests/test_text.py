"""Counts agree with their nouns, in all that the package says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from smallbatch.pipeline.progress import Progress
from smallbatch.pipeline.run_progress import RunProgress
from smallbatch.text import count

PACKAGE = Path(__file__).parents[1] / "src/smallbatch"
NOUNS = (
    *("runs", "columns", "studies", "epochs", "seeds", "images", "updates", "statements"),
    *("cells", "lanes", "workers", "cores", "labels", "rows", "files", "values"),
)
FIXED = re.compile(rf"^(?: MLflow| base)? ?({'|'.join(NOUNS)})\b")
NEVER_ONE = {
    ("report/claims.py", "seeds"),  # more than three
    ("report/environment.py", "columns"),  # of some that are more than others
    ("report/wording.py", "seeds"),  # one has another sentence
    ("report/answer.py", "seeds"),  # so has it there
    ("report/settings.py", "epochs"),
    ("report/rows.py", "seeds"),
    ("speed/plan_table.py", "runs"),  # nor here
    ("tracking/sync.py", "columns"),
    ("engines/lanes/triton/layers.py", "images"),  # their offsets overflow
    ("data/images.py", "images"),  # more than the memory holds
    ("data/parquet.py", "labels"),
    ("records/reading.py", "rows"),
    ("cli/pipeline.py", "images"),  # of several splits
    ("analysis/claims.py", "images"),  # a training set
    ("config/params.py", "columns"),  # more than are allowed
    ("config/study.py", "epochs"),  # not a whole number, or too many
    ("pipeline/cluster/elsewhere.py", "images"),  # a second
    ("pipeline/cluster/wait.py", "images"),
    ("placement/workload.py", "lanes"),  # a key of what is known of a machine
    ("placement/workload.py", "workers"),
    ("data/rows.py", "images"),
    ("report/tables.py", "epochs"),
    ("report/tables.py", "updates"),
    ("pipeline/advise/advise.py", "epochs"),  # two at least
    ("pipeline/advise/advise.py", "images"),  # a training set
    ("pipeline/advise/remarks.py", "images"),
    ("pipeline/advise/session.py", "images"),  # of several trainings
    ("pipeline/advise/session.py", "seeds"),  # three
    ("report/advice_code.py", "updates"),  # of two epochs at least
    ("report/advice_words.py", "cells"),  # more than can be named
}


def fixed_plurals() -> Iterator[tuple[str, str]]:
    """Nouns in the plural after a number that may be one, by module."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, after in pairwise(parts):
                text = after.value if isinstance(after, ast.Constant) else ""
                found = FIXED.match(str(text)) if isinstance(value, ast.FormattedValue) else None
                if found:
                    yield path.relative_to(PACKAGE).as_posix(), found.group(1)


def test_no_noun_is_in_the_plural_after_a_one() -> None:
    assert set(fixed_plurals()) <= NEVER_ONE


def test_count() -> None:
    assert (count(1, "run"), count(2, "run"), count(0, "run")) == ("1 run", "2 runs", "0 runs")
    assert (count(1, "study", "studies"), count(2, "study", "studies")) == ("1 study", "2 studies")


def test_progress_of_one_run_and_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("d/s m=1", 1, 1, 1, terminal=False):
        pass
    with RunProgress("d/s m=1", 1, 1, terminal=False):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "d/s m=1: 1 run × 1 epoch × 1 image"
    assert lines[1].startswith("d/s m=1: 0/1 run in ")
    assert lines[2] == "d/s m=1: 1 epoch × 1 image"
