"""A campaign's table names the code that it is of, so that a stale one shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmarks.code import CAMPAIGNS, ROOT, digest, stale


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_a_table_is_of_the_code_as_it_stands(campaign: str) -> None:
    """Skipped, with the reason, where it is not: a campaign takes half an hour."""
    if line := stale(campaign):
        pytest.skip(line)


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_any_change_of_the_code_changes_the_digest(campaign: str, tmp_path: Path) -> None:
    for name in ("src/smallbatch", f"benchmarks/{campaign}"):
        shutil.copytree(ROOT / name, tmp_path / name)
    before = digest(campaign, tmp_path)
    assert before == digest(campaign)
    tried = [tmp_path / each for each in CAMPAIGNS[campaign]]
    sources = [
        *(path for each in tried if each.is_file() for path in [each]),
        *(path for each in tried for path in (each / "engines").rglob("*.[chp]*")),
        tmp_path / f"benchmarks/{campaign}/__main__.py",
    ]
    assert len(sources) > 2
    if campaign != "verdicts":
        assert {".h", ".cpp", ".py"} <= {path.suffix for path in sources}
    for path in sources:
        if path.suffix not in (".h", ".cpp", ".py"):
            continue
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert digest(campaign, tmp_path) != before, path
        path.write_bytes(content)
    (tmp_path / f"benchmarks/{campaign}/table.py").write_text("")
    assert digest(campaign, tmp_path) == before


def test_another_digest_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.code.digest", lambda _: "now")
    monkeypatch.setattr("benchmarks.code.ROOT", tmp_path)
    (tmp_path / "results/faults").mkdir(parents=True)
    (tmp_path / "results/faults/summary.json").write_text(json.dumps({"code": "then"}))
    line = "results/faults is of code then, which is now now: run it again"
    assert stale("faults") == line
    (tmp_path / "results/faults/summary.json").write_text(json.dumps({"code": "now"}))
    assert stale("faults") is None
