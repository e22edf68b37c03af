"""A real browser for the tests, and what it says of a page."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Pages are drawn without a GPU, without asking the network for updates, and on machines so busy
# that Chromium would take its own drawing process for hung and end it.
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-gpu-watchdog",
    "--disable-background-networking",
]
# Charts are drawn when they come into sight. On a busy machine a page was seen to stay undrawn. So
# frames are not waited for without end: a script has no time limit of its own.
SCROLL = """async () => {
  const frame = () => Promise.race([
    new Promise((done) => requestAnimationFrame(() => done(true))),
    new Promise((done) => setTimeout(() => done(false), 5000)),
  ]);
  for (let y = 0; y < document.body.scrollHeight; y += 400) {
    scrollTo(0, y);
    if (!await frame()) return false;
  }
  scrollTo(0, 0);
  return true;
}"""
TRIES = 3
"""How often a page is scrolled through, loaded anew each time, until it is drawn as for a print."""


@dataclass
class Opened:
    """A page, with what it wrote to the console and asked of anybody else."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def unfold(self) -> None:
        """Show every study in full."""
        self.page.evaluate(
            "document.querySelectorAll('details.study').forEach((it) => { it.open = true; })"
        )

    def start(self) -> None:
        """Wait for the first chart, if the page has any; a bare page is loaded anew."""
        if not self.page.locator(".chart").count():
            return
        for _ in range(TRIES):
            try:
                self.page.wait_for_selector(".chart.drawn svg", timeout=15_000)
                return
            except Error:  # no frame came in time
                self.page.reload()
                self.page.bring_to_front()
        self.page.wait_for_selector(".chart.drawn svg")

    def draw_all(self) -> None:
        """Scroll through the page until every chart is drawn."""
        self.unfold()
        for _ in range(TRIES):
            if self.page.evaluate(SCROLL):
                break
            self.page.reload()
            self.page.bring_to_front()
            self.unfold()
        else:  # nothing comes into sight without frames: as for a print
            self.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        self.page.wait_for_function(
            "document.querySelectorAll('.chart:not(.drawn)').length === 0",
            timeout=60_000,
            polling=100,
        )

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is, in pixels from the top left of the window."""
        found: Any = self.page.locator(selector).first.bounding_box()
        assert found is not None
        return found

    def beyond(self) -> list[str]:
        """What reaches beyond the window to the right, outside of boxes that scroll."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((e) =>
              e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, .chart")
            ).map((e) => e.outerHTML.slice(0, 80))"""
        )


@contextmanager
def browser() -> Generator[Browser]:
    """Start Chromium."""
    assert CHROMIUM is not None
    with sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1280, height: int = 800, **options: Any
) -> Generator[Opened]:
    """Open a page and wait for its first chart; options are those of a browser context."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.console.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.console.append(f"error: {error}"))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.as_uri())
    found.start()
    try:
        yield found
    finally:
        context.close()
