"""The link that `smallbatch ui` prints, opened in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.report.browser import CHROMIUM, browser
from tests.tracking.conftest import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

SOURCE = Path(__file__).parents[2] / "src"
PARAMS = """
dataset: {name: digits, source: digits}
grid: {studies: [study], dependent: [], batch_sizes: [8], base_lrs: [2^-6, 2^-3], seeds: 2}
advise: {studies: []}
studies: {study: {model: resnet8, norm: none, epochs: 6, weight_decay: 0}}
"""


def start(environment: dict[str, str], *words: str) -> tuple[subprocess.Popen[str], str]:
    """A server, and the one line that it prints."""
    with Path("ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "smallbatch", "ui", "--port", str(free_port()), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def check_table(page: Page) -> None:
    """Every run has a row, with what it is and how it ended, at the first sight."""
    page.wait_for_selector(".ag-row >> text=m=8 η̃=2^-3 seed 1", timeout=120_000)
    page.locator(".ag-cell").filter(has_text=re.compile("^diverged$")).first.wait_for()
    for name in ("batch_size", "base_lr", "log2_base_lr", "seed", "outcome", "reported_accuracy"):
        box = page.locator(".ag-header").get_by_text(name, exact=True).first.bounding_box()
        assert box is not None, name
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 1280, name
    rows = page.locator(".ag-pinned-left-cols-container .ag-row").all_inner_texts()
    assert sorted(re.findall(r"m=8.*", "\n".join(rows))) == [
        f"m=8 η̃={lr} seed {seed}" for lr in ("2^-3", "2^-6") for seed in (0, 1)
    ]  # and not the column's own run, below which MLflow would fold them away
    assert page.locator(".ag-cell").filter(has_text=re.compile("^diverged$")).count() == 2
    assert page.locator(".ag-cell").filter(has_text=re.compile("^finished$")).count() == 2
    assert page.get_by_text("Welcome to MLflow Assistant").count() == 0  # a panel over the table


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_link_leads_to_the_runs(columns: Any, workplace: Path) -> None:
    columns.write(8, study="another")
    columns.write(8, diverged=(2.0**-3,))
    (workplace / "params.yaml").write_text(PARAMS)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    sync = [sys.executable, "-P", "-m", "smallbatch", "sync"]
    subprocess.run(sync, env=environment, check=True, capture_output=True)
    server, link = start(environment)
    try:
        assert re.fullmatch(
            r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}#/experiments/\d+/runs\S*", link
        )
        with browser() as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.goto(link, timeout=120_000)
            check_table(page)
            # As a file leads there that `--open` opens: from another page, and without a cookie.
            leading = workplace / "ui.html"
            leading.write_text(f'<meta http-equiv="refresh" content="0; url={link}">')
            other = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
            other.goto(leading.as_uri(), timeout=120_000)
            check_table(other)
        assert server.poll() is None
    finally:
        server.terminate()
        assert server.stdout is not None
        assert server.stdout.read() == ""  # the link is all that it says
        server.stdout.close()
        server.wait(60)
    assert (workplace / "ui.log").read_text() == ""


@pytest.mark.slow
def test_a_browser_is_shown_a_file_that_others_cannot_read(
    columns: Any, workplace: Path, tmp_path: Path
) -> None:
    """Its command line tells nobody the token; and without runs the link says so."""
    opened = tmp_path / "opened"
    fake = tmp_path / "browser"
    fake.write_text(f'#!/bin/sh\necho "$1" > {opened}.part; mv {opened}.part {opened}\n')
    fake.chmod(0o755)
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "BROWSER": str(fake),
        "SMALLBATCH_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    server, link = start(environment, "--open")
    try:
        assert link.endswith("#/experiments?workflowType=machine_learning")
        deadline = time.monotonic() + 60
        while not opened.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shown = opened.read_text().strip()
        assert shown.startswith("file://")
        page = Path(shown.removeprefix("file://"))
        assert link in page.read_text()
        assert page.stat().st_mode & 0o077 == 0
    finally:
        server.terminate()
        server.wait(60)
        assert server.stdout is not None
        server.stdout.close()
    assert "no runs yet" in (workplace / "ui.log").read_text()
