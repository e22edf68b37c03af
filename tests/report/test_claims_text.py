"""The verdicts as people read them, on a terminal and in Markdown."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smallbatch.analysis.claims import CLAIMS
from smallbatch.cli.main import main
from smallbatch.report.claims import ClaimsRecord, as_text, rows, unknown_then

Run = Callable[..., str]


def claim(statement: str, figure: str, verdict: str, **more: Any) -> dict[str, Any]:
    """A claim with one finding."""
    data = "digits" if verdict != "not run" else None
    finding = {"dataset": data, "scale": None, "verdict": verdict, "effect": None, "low": None,
               "high": None, "n": None, "reason": ""} | more  # fmt: skip
    return {"claim": statement, "figure": figure, "statement": statement, "criterion": "…",
            "unit": "accuracy", "findings": [finding]}  # fmt: skip


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClaimsRecord:
    """One verdict of each kind, in `claims.json`."""
    monkeypatch.chdir(tmp_path)
    found = ClaimsRecord.model_validate({"claims": [
        claim("Not here", "9", "not run", reason="no data set has Fig. 9's study"),
        claim("Open", "2", "undecided", effect=-0.0123, low=-0.05, high=0.02, n=3,
              reason="the best η̃ of a at m = 8 is on the edge of the grid: it may do better "
              "outside, and so may the best of others at other batch sizes"),
        claim("Nor here", "9", "not run"),
        claim("Sure [bold]", "3", "strictly supported", effect=0.05, low=0.01, high=0.09, n=5),
        claim("Wrong \x1b[2J", "4", "contradicted", effect=-0.05, low=-0.09, high=-0.01, n=5),
        claim("Few", "text", "undecided", effect=0.01, n=1),
        claim("Not this either", "13b", "not run"),
    ]})  # fmt: skip
    Path("claims.json").write_text(as_text(found))
    return found


def printed(*words: str) -> str:
    """What the command prints into a pipe."""
    result = CliRunner().invoke(main, ["claims", "claims.json", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def on_a_terminal(*words: str) -> str:
    """What the command prints on a terminal of 80 columns."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-m", "smallbatch", "claims", "claims.json", *words],
        stdout=child,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    ) as process:
        os.close(child)
        text = b""
        try:
            while part := os.read(parent, 4096):
                text += part
        except OSError:  # how Linux ends a terminal whose other side has closed
            pass
        assert process.wait() == 0
    os.close(parent)
    return text.decode()


NOT_RUN = "not run: 3 statements (Fig. 9, 13b; `smallbatch claims --all` shows them)"


def test_markdown_has_what_was_run_and_a_line_on_the_rest() -> None:
    lines = printed().splitlines()
    assert len(lines) == 2 + 4 + 2
    assert "| Open | 2 | undecided | −1.23 [−5, +2] points | 3 | digits | the best" in lines[2]
    assert lines[-2:] == ["", NOT_RUN]
    assert not any("Not here" in line for line in lines)


def test_all_has_what_was_not_run() -> None:
    lines = printed("--all").splitlines()
    assert len(lines) == 2 + 7
    assert lines[2] == "| Not here | 9 | not run | – | – | – | no data set has Fig. 9's study |"


def test_what_an_earlier_version_did_not_judge_is_told(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    older = [it for it in CLAIMS if it.figure not in ("12", "14")]
    claims = [claim("…", it.figure, "not run") | {"claim": it.name} for it in older]
    path.write_text(json.dumps({"claims": claims}))
    told = CliRunner().invoke(main, ["claims", str(path)]).stderr
    assert "which had not 7 of 43 claims (Fig. 12, 14); `smallbatch report` judges them all" in told
    present = [claim("…", it.figure, "not run") | {"claim": it.name} for it in CLAIMS]
    assert unknown_then(path, ClaimsRecord.model_validate({"claims": present})) is None


def test_json_has_everything(record: ClaimsRecord) -> None:
    assert ClaimsRecord.model_validate_json(printed("--json")) == record
    both = CliRunner().invoke(main, ["claims", "claims.json", "--json", "--markdown"])
    assert both.exit_code == 2
    assert "--json and --markdown: found both" in both.output


def test_a_terminal_has_a_table_coloured_by_verdict() -> None:
    text = on_a_terminal()
    for verdict, colour in {
        "undecided": "33",
        "strictly": "1;32",  # supported, in the next line
        "contradicted": "31",
    }.items():
        assert f"\x1b[{colour}m{verdict}" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain  # a statement steers no terminal
    lines = [line.rstrip() for line in plain.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "digits"
    assert "Sure [bold]" in plain
    (first,) = (index for index, line in enumerate(lines) if line.startswith(" Open "))
    assert re.search(r"undecided +−1.23 points +3$", lines[first])
    assert re.search(r"the best η̃ of a at m = 8 .* \[−5, \+2\]$", lines[first + 1])
    (few,) = (index for index, line in enumerate(lines) if line.startswith(" Few "))
    assert lines[few].endswith("+1 points          1")
    assert lines[few + 1].strip() == "without bounds"
    assert lines[-1] == NOT_RUN
    assert "Not here" not in plain
    everything = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("--all"))
    assert "Not here" in everything
    assert everything.index("Few") < everything.index("Not here")  # it comes last
    assert "--all" not in everything


def test_markdown_may_be_asked_for_on_a_terminal() -> None:
    assert on_a_terminal("--markdown").replace("\r\n", "\n") == printed()


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.05, 0.02, "−1.23 [−5, +2] points"),
        (None, None, "−1.23 points, without bounds"),
        (-0.05, None, "−1.23 points, at least −5"),
        (None, 0.02, "−1.23 points, at most +2"),
        # Each is a bound of its own; together they may enclose nothing.
        (0.03, 0.02, "−1.23 points, at least +3 and at most +2"),
    ],
)
def test_only_an_interval_looks_like_one(low: float | None, high: float | None, shown: str) -> None:
    only = claim("Open", "2", "undecided", effect=-0.0123, low=low, high=high, n=3)
    assert rows(ClaimsRecord.model_validate({"claims": [only]}))[0][3] == shown
