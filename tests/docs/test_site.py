"""The documentation's site, built by mkdocs and read in Chromium without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Request, Route

import smallbatch
from tests.docs.pages import DOCS, ROOT, sources
from tests.report.browser import CHROMIUM, browser

pytestmark = pytest.mark.slow
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
MOST_SECONDS = 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sources(tmp_path_factory.mktemp("docs"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": ""}
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Of the processor, as other tests run beside this one.
    ended = os.times()
    used = ended.children_user + ended.children_system
    assert used - began.children_user - began.children_system < MOST_SECONDS
    return folder / "site"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Says nothing."""


class Reader:
    """A browser at the site, which lets no request leave it and notes what went wrong."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base, self.wrong = base, list[str]()
        context.route("**/*", self._answer)
        self.page: Page = context.new_page()
        self.page.on("requestfailed", self._failed)
        self.page.on("pageerror", lambda it: self.wrong.append(f"error: {it}"))
        self.page.on(
            "console",
            lambda it: self.wrong.append(it.text) if it.type in ("error", "warning") else None,
        )
        self.page.on(
            "response",
            lambda it: self.wrong.append(f"{it.status}: {it.url}") if it.status >= 400 else None,
        )

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was opened meanwhile
            self.wrong.append(f"{request.failure}: {request.url}")

    def _answer(self, route: Route) -> None:
        if route.request.url.startswith((self.base, "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"elsewhere: {route.request.url}")
            route.abort()

    def open(self, name: str) -> None:
        self.page.goto(f"{self.base}/{name}")


@pytest.fixture(scope="module")
def reader(site: Path) -> Generator[Reader]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with browser() as chromium:
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        yield Reader(context, f"http://127.0.0.1:{server.server_port}")
        context.close()
    server.shutdown()
    thread.join()
    server.server_close()


@needs_chromium
def test_every_page_opens_without_a_request_to_anybody_else(site: Path, reader: Reader) -> None:
    names = sorted(path.name for path in site.glob("*.html") if path.name != "404.html")
    assert len(names) > 20
    reader.page.set_viewport_size({"width": 390, "height": 800})
    for name in names:
        reader.open(name)
        assert reader.page.locator("h1").first.inner_text()
        width = reader.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is wider than a phone"
    reader.page.set_viewport_size({"width": 1280, "height": 800})
    reader.page.wait_for_load_state("networkidle")
    assert reader.wrong == []


@needs_chromium
def test_the_search_finds_a_page(reader: Reader) -> None:
    reader.open("index.html")
    field = reader.page.locator("input.md-search__input")
    field.click()
    field.press_sequentially("Optuna")
    reader.page.locator(".md-search-result__link", has_text="Coming from").first.click()
    reader.page.wait_for_url("**/coming-from.html*")
    assert reader.wrong == []


@needs_chromium
def test_the_diagrams_are_seen(reader: Reader) -> None:
    reader.open("architecture.html")
    shown = reader.page.locator(".diagram svg")
    assert shown.count() == (DOCS / "architecture.md").read_text("utf-8").count("```mermaid") > 0
    for diagram in shown.all():
        box = diagram.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 60
    # Texts stay within their boxes, in this machine's font.
    assert (
        reader.page.evaluate(
            """() => [...document.querySelectorAll(".diagram g > rect:first-child + text")].filter(
              (text) => text.getBBox().width > text.previousSibling.getBBox().width
            ).map((text) => text.textContent)"""
        )
        == []
    )


def test_every_page_is_beside_its_html_as_markdown_and_listed(site: Path) -> None:
    for path in DOCS.glob("*.md"):
        assert (site / path.name).stat().st_size > 100
    assert "smallbatch train [OPTIONS] STUDY BATCH_SIZE" in (site / "cli.md").read_text("utf-8")
    assert "train(*, batch_size" in (site / "api.md").read_text("utf-8")
    listed = re.findall(r"^- \[.+\]\((.+)\):", (site / "llms.txt").read_text("utf-8"), re.MULTILINE)
    assert len(listed) > 20


def test_links_out_of_the_documentation_are_paths(site: Path) -> None:
    text = (site / "own-images.html").read_text("utf-8")
    assert "../" not in re.findall(r"<article.*?</article>", text, re.DOTALL)[0]
    paper = (site / "paper.html").read_text("utf-8")
    assert "<code>results/paper-cifar10-small</code>" in paper


def test_the_reference_of_the_api_has_what_the_package_offers(site: Path) -> None:
    shown = re.findall(r'<h2 id="smallbatch\.api\.(\w+)"', (site / "api.html").read_text("utf-8"))
    assert sorted(shown) == sorted(smallbatch.__all__)


def test_the_commands_reference_has_every_option(site: Path) -> None:
    text = (site / "cli.html").read_text("utf-8")
    for option in ("--time-limit", "--bn-batch-size", "--measurements", "--scale"):
        assert option in text
