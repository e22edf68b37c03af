"""The page in a real browser: nothing on the console, no broken image, no overflow on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium on PATH"),
]

# The page as a frame of the wanted width; the script writes what it sees into the outer document.
PROBE = """<!doctype html><iframe id=f width={width} height=900 srcdoc=""></iframe><pre id=o></pre>
<script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const page = frame.contentDocument;
  const images = [...page.images];
  document.getElementById("o").textContent = JSON.stringify({{
    images: images.length,
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    svgs: page.querySelectorAll("svg").length,
    width: page.documentElement.scrollWidth,
    text: page.body.innerText.length,
  }});
}};
frame.srcdoc = {page};
</script>"""


def look(page: Path, width: int, folder: Path) -> tuple[dict[str, int], str]:
    """Measures of the page at a width in pixels, and what the browser logged."""
    probe = folder / f"probe-{width}.html"
    content = json.dumps(page.read_text()).replace("</", "<\\/")
    probe.write_text(PROBE.format(width=width, page=content))
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"]
    flags += ["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=5000"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(
        [BROWSER, *flags], capture_output=True, text=True, check=True, timeout=120
    )
    (found,) = re.findall(r'<pre id="o">(.*?)</pre>', done.stdout)
    return json.loads(found), done.stderr


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_whole_at_every_width(reports: Path, width: int, tmp_path: Path) -> None:
    seen, log = look(reports / "report.html", width, tmp_path)
    assert seen["text"] > 1000
    assert seen["svgs"] + seen["images"] >= 10
    assert seen["broken"] == 0
    assert seen["width"] <= width
    assert "CONSOLE" not in log


def test_the_probe_notices_what_it_looks_for(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><div style='width:2000px'>wide</div>"
        "<img src='data:image/png;base64,AAAA'><script>console.error('oh')</script>"
    )
    seen, log = look(page, 390, tmp_path)
    assert seen["broken"] == 1
    assert seen["width"] >= 2000
    assert "CONSOLE" in log
