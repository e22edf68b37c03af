"""The page in a real browser: whole at every width, silent, and each interaction done by hand."""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Generator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect

from tests.report.browser import CHROMIUM, Opened, browser, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH"),
]

ROOT = Path(__file__).parents[2]
LARGE = ROOT / "results/paper-cifar10-small/report.html"
FIRST = "article.answer:first-of-type"


@pytest.fixture(scope="module")
def chromium() -> Generator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def seen(chromium: Browser, reports: Path) -> Generator[Opened]:
    with opened(chromium, reports / "report.html") as found:
        yield found
        assert found.console == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_page_is_whole_and_silent(
    reports: Path, chromium: Browser, width: int, scheme: str
) -> None:
    path = reports / "report.html"
    with opened(chromium, path, width, color_scheme=scheme) as found:
        found.draw_all()
        assert found.console == []
        assert set(found.requests) == {path.as_uri()} | {
            request for request in found.requests if request.startswith("data:")
        }
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        assert found.beyond() == []
        cut = found.page.evaluate(
            """[...document.querySelectorAll(".chart")]
               .filter((chart) => chart.scrollWidth > chart.clientWidth + 1)
               .map((chart) => chart.dataset.figure)"""
        )
        assert cut == []
        words = " ".join(found.page.locator(".chart svg text").all_text_contents())
        assert "NaN" not in words
        assert "undefined" not in words


def test_the_probe_notices_what_it_looks_for(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><main><div style='width:2000px'>wide</div></main>"
        "<img src='elsewhere.png'><script>console.error('oh'); missing();</script>"
    )
    with opened(chromium, path, 390) as found:
        assert found.beyond()
        assert len(found.console) >= 2
        assert any(address.endswith("elsewhere.png") for address in found.requests)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_answers(
    reports: Path, chromium: Browser, width: int, height: int
) -> None:
    with opened(chromium, reports / "report.html", width, height) as found:
        title = found.box(f"{FIRST} .title")
        chart = found.box(f"{FIRST} .chart svg")
        assert title["y"] + title["height"] < height / 2
        assert chart["y"] + 60 < height  # at least the map's first rows
        if width > 1000:
            assert chart["y"] + chart["height"] < height
            assert chart["x"] > title["x"] + title["width"]
        contents = found.box("nav.contents")
        found.page.evaluate("scrollTo(0, 3000)")
        assert found.box("nav.contents")["y"] == pytest.approx(contents["y"], abs=1)


def _cell(found: Opened, text: str) -> tuple[float, float]:
    """The middle of the first cell of the first map that says this and no more."""
    exact = re.compile(rf"^(★ )?{text}$")
    label = found.page.locator(f"{FIRST} .chart svg text", has_text=exact).first.bounding_box()
    assert label is not None
    return label["x"] + label["width"] / 2, label["y"] + label["height"] / 2


def test_a_cell_shows_its_seeds_when_pointed_at_and_stays_when_clicked(seen: Opened) -> None:
    page, panel = seen.page, seen.page.locator(f"{FIRST} .cell")
    best, lost = _cell(seen, "84"), _cell(seen, "×")
    page.mouse.move(*best)
    panel.get_by_text("3 of 3 seeds finished; reliable").wait_for()
    assert panel.locator("li").count() == 3
    assert panel.locator("li").first.inner_text().startswith("seed 0: 8")
    panel.locator("svg").wait_for()  # its curves
    page.mouse.move(*lost)
    panel.get_by_text("all 3 seeds diverged; not reliable").wait_for()
    assert "diverged at update" in panel.locator("li").first.inner_text()
    page.mouse.click(*best)
    panel.get_by_text("3 of 3 seeds finished; reliable").wait_for()
    page.mouse.move(*lost)
    page.wait_for_timeout(100)
    assert "3 of 3 seeds finished" in panel.inner_text()
    page.mouse.click(*best)
    page.mouse.move(*lost)
    panel.get_by_text("all 3 seeds diverged").wait_for()


def test_a_cell_can_be_tapped(reports: Path, chromium: Browser) -> None:
    with opened(
        chromium, reports / "report.html", 390, 844, has_touch=True, is_mobile=True
    ) as found:
        found.page.touchscreen.tap(*_cell(found, "84"))
        found.page.locator(f"{FIRST} .cell").get_by_text("3 of 3 seeds finished").wait_for()
        assert found.console == []


def test_every_figure_has_a_table_and_the_keyboard_reaches_each_cell(seen: Opened) -> None:
    page = seen.page
    charts, tables = page.locator(".chart").count(), page.locator("details[data-rows]").count()
    assert charts == tables > 10
    summary = page.locator(f"{FIRST} summary")
    summary.focus()
    page.keyboard.press("Enter")
    rows = page.locator(f"{FIRST} tbody tr")
    rows.first.wait_for()
    assert rows.count() == 6 * 8
    page.keyboard.press("Tab")  # the box that scrolls
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('tbody') !== null"):
            break
    page.keyboard.press("Enter")
    panel = page.locator(f"{FIRST} .cell")
    panel.locator("h4").wait_for()
    assert panel.locator("h4").inner_text().startswith("m = 2, η̃ = 2⁻¹⁰, η = 2⁻⁹")
    assert panel.get_attribute("aria-live") == "polite"
    place = seen.box(f"{FIRST} .cell h4")  # in sight, though the table is long
    assert 0 <= place["y"] < 800
    unnamed = page.locator(".chart:not([aria-label]), .chart[aria-label='']").count()
    assert unnamed == 0


def test_a_cell_can_be_chosen_while_its_map_is_drawn_again(seen: Opened) -> None:
    seen.page.locator(f"{FIRST} details[data-rows] summary").click()
    seen.page.locator(f"{FIRST} tbody th button").first.wait_for()
    seen.page.evaluate(
        f"""document.querySelector("input[value=lr]").click();
        document.querySelector("{FIRST} tbody th button").click()"""
    )
    seen.page.locator(f"{FIRST} .cell h4").wait_for(timeout=5000)


def test_curves_of_a_cell_follow_the_colour_scheme(seen: Opened) -> None:
    label = seen.page.locator(f"{FIRST} .cell svg text[fill]").first
    seen.page.mouse.move(*_cell(seen, "84"))
    label.wait_for()
    light = label.get_attribute("fill")
    seen.page.emulate_media(color_scheme="dark")
    expect(label).not_to_have_attribute("fill", str(light))


def test_the_table_of_a_figure_over_studies_names_them(seen: Opened) -> None:
    chart = seen.page.locator("[data-figure='synthetic.best-accuracy']")
    chart.scroll_into_view_if_needed()
    chart.locator("svg").wait_for()  # what is below it moves when it is drawn
    seen.page.locator('details[data-rows="synthetic.best-accuracy"] summary').click()
    box = seen.page.locator('details[data-rows="synthetic.best-accuracy"]')
    box.locator("tbody th", has_text="resnet8-bn").first.wait_for(timeout=5000)
    one = seen.page.locator(f"{FIRST} details[data-rows]")
    one.locator("summary").click()
    expect(one.locator("thead th").first).to_contain_text("m")
    expect(one.locator("thead th")).not_to_contain_text(["study"])


def test_learning_rates_are_shown_as_either(seen: Opened) -> None:
    chart = seen.page.locator(f"{FIRST} .chart")
    assert "base learning rate η̃" in chart.inner_text()
    seen.page.get_by_label("η = m·η̃").check()
    chart.get_by_text("learning rate η = m·η̃").first.wait_for()
    # 2⁻¹⁰ at m = 2 is the lowest of all: η = 2⁻⁹
    labels = chart.locator(".role-axis-label text").all_text_contents()
    assert "2⁻⁹" in labels
    assert "2⁻¹⁰" not in labels


def test_convergence_is_shown_against_epochs_updates_and_time(seen: Opened) -> None:
    seen.unfold()
    chart = seen.page.locator("[data-figure$='convergence-test-accuracy']").first
    chart.scroll_into_view_if_needed()
    for label, title in (
        ("updates", "updates (log scale)"),
        ("time", "seconds of training"),
        ("epochs", "epoch"),
    ):
        seen.page.get_by_label(label, exact=True).check()
        chart.get_by_text(title).first.wait_for()


def test_a_study_is_unfolded_by_its_heading_and_by_a_link_to_it(seen: Opened) -> None:
    page = seen.page
    folded = page.locator("details.study")
    assert [folded.nth(i).get_attribute("open") for i in range(folded.count())] == [None] * 4
    heading = page.locator("details.study > summary", has_text="resnet8-bn in full")
    heading.click()
    inside = page.locator("[data-figure='synthetic.resnet8-bn.stable-range']")
    inside.scroll_into_view_if_needed()
    inside.locator("svg").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.locator(f"{FIRST} .card h3 a").click()
    page.locator("[id='study-synthetic.resnet8']").wait_for()
    page.locator("details.study[open] [data-figure='synthetic.resnet8.accuracy'] svg").wait_for()
    assert 0 <= seen.box("[id='study-synthetic.resnet8']")["y"] < 200


def test_a_study_can_be_left_out(seen: Opened) -> None:
    page = seen.page
    chart = page.locator("[data-figure='synthetic.best-accuracy']")
    chart.scroll_into_view_if_needed()
    chart.get_by_text("resnet8-bn").first.wait_for()
    assert page.locator("article.answer:visible").count() == 4
    page.get_by_label("resnet8-bn", exact=True).uncheck()
    chart.get_by_text("resnet8-bn").first.wait_for(state="detached")
    assert page.locator("article.answer:visible").count() == 3
    page.get_by_label("resnet8-bn", exact=True).check()
    chart.get_by_text("resnet8-bn").first.wait_for()
    assert not page.locator("#none").is_visible()
    for box in page.locator("input[name=study]").all():
        box.uncheck()
    page.locator("#none").wait_for()
    assert page.locator("article.answer:visible").count() == 0


def test_tables_are_sorted_by_a_header(seen: Opened) -> None:
    seen.unfold()
    table = seen.page.locator("table[aria-label^='Best cell at each batch size']").first
    head = table.locator("th", has_text="accuracy (median)")

    def column() -> list[float]:
        index = head.evaluate("(head) => head.cellIndex")
        cells = table.locator("tbody tr").evaluate_all(
            "(rows, i) => rows.map((row) => row.cells[i].textContent)", index
        )
        return [float(cell.split()[0]) for cell in cells]

    before = column()
    head.locator("button").click()
    assert column() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    seen.page.keyboard.press("Enter")
    assert column() == sorted(before, reverse=True)
    assert before != sorted(before)
    rates = table.locator("th", has_text="best η̃")
    rates.locator("button").click()
    exponents = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert exponents == sorted(exponents, key=_power)
    assert len(set(exponents)) > 1


def _power(text: str) -> float:
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    return 2.0 ** int(text[1:].translate(digits))


def test_claims_are_shown_by_verdict(seen: Opened) -> None:
    page = seen.page
    rows = page.locator("#claims-table tbody tr")
    every = rows.count()
    button = page.locator(".filters button").first
    verdict = button.get_attribute("value")
    button.click()
    shown = page.locator("#claims-table tbody tr:visible .verdict").all_inner_texts()
    assert set(shown) == {verdict}
    assert len(shown) < every
    assert f"({len(shown)})" in button.inner_text()
    button.click()
    assert page.locator("#claims-table tbody tr:visible").count() == every


def test_print_has_every_figure(seen: Opened) -> None:
    page = seen.page
    drawn = page.locator(".chart.drawn").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelectorAll('.chart:not(.drawn)').length === 0")
    assert drawn < page.locator(".chart.drawn").count()
    page.emulate_media(media="print")
    assert not page.locator("nav.contents").is_visible()


def test_a_long_name_fits_the_switches(seen: Opened) -> None:
    assert seen.page.evaluate(
        """() => {
          document.querySelector(".view input[name=study]").nextSibling.data = "a".repeat(64);
          const contents = document.querySelector(".contents");
          return contents.scrollWidth <= contents.clientWidth;
        }"""
    )


def test_figures_of_a_dark_page_are_readable_in_print(reports: Path, chromium: Browser) -> None:
    with opened(chromium, reports / "report.html", color_scheme="dark") as found:
        found.draw_all()
        found.page.emulate_media(media="print")
        light = found.page.evaluate(
            """[...document.querySelectorAll(".chart svg text")]
               .filter((text) => !text.closest(".role-mark"))
               .filter((text) => getComputedStyle(text).fill !== "rgb(0, 0, 0)")
               .map((text) => text.parentElement.getAttribute("class"))"""
        )
        assert light == []


def test_everything_is_drawn_before_it_is_printed(seen: Opened) -> None:
    page = seen.page
    left = "document.querySelectorAll('.chart:not(.drawn)').length"
    page.evaluate(f"window.print = () => {{ window.left = {left}; }}")
    page.get_by_role("button", name="Print").click()
    page.wait_for_function("window.left !== undefined", timeout=60_000)
    assert page.evaluate("window.left") == 0
    assert page.locator("details.study:not([open])").count() == 0
    page.set_viewport_size({"width": 700, "height": 900})
    page.emulate_media(media="print")
    wide = page.evaluate(
        "[...document.querySelectorAll('.chart svg')].filter((it) => "
        "it.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0


def test_without_javascript_the_answers_and_tables_are_there(
    reports: Path, chromium: Browser
) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((reports / "report.html").as_uri())
    assert page.locator(".card .title").first.inner_text().startswith("Batch size 8")
    assert "figures are in" in page.locator("noscript").inner_text()
    assert page.locator("table").count() > 10
    context.close()


def test_a_large_report_opens_at_once(chromium: Browser) -> None:
    """1,620 runs; the page is the committed one, made by the present script and template."""
    text = LARGE.read_text(encoding="utf-8")
    assert LARGE.stat().st_size < 5_000_000
    assert (ROOT / "src/smallbatch/report/page.js").read_text(encoding="utf-8") in text
    assert text.count("vegaEmbed=") == 1  # one copy of the library
    took: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        with opened(chromium, LARGE) as found:
            took.append(time.perf_counter() - began)
            assert found.console == []
            assert found.page.locator(".chart.drawn").count() < 8
    assert min(took) < 2


@pytest.mark.parametrize("width", [390, 1280])
def test_a_large_report_is_whole(chromium: Browser, width: int) -> None:
    with opened(chromium, LARGE, width) as found:
        found.draw_all()
        assert found.console == []
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        assert found.beyond() == []


def test_a_cell_leads_to_its_runs_where_a_server_is_known(
    reports: Path, chromium: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "linked.html"
    text = (reports / "report.html").read_text(encoding="utf-8")
    none = '<script type="application/json" id="mlflow">{}</script>'
    assert none in text
    known = none.replace(
        "{}", '{"synthetic/resnet8":"http://127.0.0.1:9/#/experiments/7/runs?workflowType=x"}'
    )
    path.write_text(text.replace(none, known), encoding="utf-8")
    with opened(chromium, path) as found:
        cell = _cell(found, "84")
        found.page.mouse.click(*cell)
        link = found.page.get_by_role("link", name="Its runs in MLflow")
        address, _, query = str(link.get_attribute("href")).partition("?")
        assert address == "http://127.0.0.1:9/#/experiments/7/runs"
        asked_for = urllib.parse.parse_qs(query)
        assert asked_for["orderByKey"] == ["metrics.`reported_accuracy`"]  # else MLflow folds them
        (asked,) = asked_for["searchFilter"]
        assert asked.split(" and ") == [
            "params.study = 'resnet8'",
            "params.batch_size = '8'",
            "params.base_lr = '0.015625'",
        ]
