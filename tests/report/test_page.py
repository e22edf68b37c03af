from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from smallbatch.analysis.evaluation import evaluate, read_evaluation, refuse_stale
from smallbatch.cli.main import main
from smallbatch.errors import UserError
from smallbatch.report.document import embedded
from smallbatch.report.page import build_report
from tests.analysis import synthetic

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects what a browser would load and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.figures: dict[str, str] = {}
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if attributes.get("data-figure"):
            self.figures[str(attributes["data-figure"])] = str(attributes["aria-label"])
        self.loaded += [str(attributes[key]) for key in ("src", "srcset") if key in attributes]
        if tag == "link":
            self.loaded.append(str(attributes["href"]))
        if tag == "a":
            self.links.append(str(attributes["href"]))
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def page(reports: Path) -> Page:
    return Page((reports / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_loads_nothing(page: Page, reports: Path) -> None:
    assert page.open == []
    assert all(address.startswith("data:") for address in page.loaded)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    text = (reports / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text  # so no script can fetch anything either
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def test_several_kinds_of_hardware_are_named_above_the_table_of_machines(page: Page) -> None:
    words = "".join(page.words)
    section = words[words.rindex("Hardware and versions") : words.rindex("Definitions in full")]
    for sentence in (
        "synthetic/hopeless, m = 4: ",
        " runs on Example CPU, 1 run on Another CPU.",
        "synthetic/hopeless: m = 2 on Example CPU; m = 4 on Another CPU and Example CPU.",
        "Between these, numbers round differently, and times cannot be compared.",
    ):
        assert sentence in section
    assert "synthetic/single: m" not in section


def test_every_figure_is_described_and_saved_twice(page: Page, reports: Path) -> None:
    figures = reports / "figures"
    # Two studies with all figures, one that has nothing to show, one cell, and the comparison with
    # what a batch size costs.
    assert len(page.figures) == 2 * 5 + 3 + 4 + 3
    assert all(page.figures.values())
    stems = {path.stem for path in figures.glob("*.svg")}
    assert stems == {path.stem for path in figures.glob("*.png")}
    for name in page.figures:
        files = {stem for stem in stems if stem.removesuffix("-lr").removesuffix("-base") == name}
        assert files, name
        stems -= files
    assert stems == set()
    for path in figures.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        words = " ".join(root.itertext())
        assert "NaN" not in words
        assert "undefined" not in words
        assert "2026" not in words


def test_no_missing_number_shows_through(page: Page) -> None:
    text = " ".join(page.words)
    assert not re.search(r"\b(nan|inf|None|<NA>|NaT|null)\b", text)
    assert "{{" not in text


def test_the_page_says_what_the_data_says(page: Page) -> None:
    text = re.sub(r"\s+", " ", " ".join(page.words))
    assert "The highest reported accuracy is 90.0 % (median of 3 seeds" in text
    assert "at m = 8 with η̃ = 2⁻⁴ (η = 2⁻¹)" in text
    assert "one seed, so nothing is known about its spread" in text
    assert "Every run diverged." in text
    assert "Not trained to the end and left out: synthetic/single/m8." in text
    assert "single: was trained at an η̃ that is not the best of hopeless (m4: 0.01, now no" in text
    assert "The best η̃ is the lowest one tried at m = 512" in text
    assert "Shallue et al. (2018) found no evidence" in text
    # versions and machine from the timing files
    for value in ("Example CPU", "2.11.0", "1.0.31", "0123456789abcdef"):
        assert value in text
    # what the paper concludes of the figures named in the settings, and of its summaries
    for label in ("Fig. 2", "Fig. 8", "Fig. 15", "Fig. 16", "text"):
        assert f"The paper, {label}" in text


def test_tables_can_be_read_back(reports: Path) -> None:
    best = pd.read_csv(reports / "tables/best_accuracy.csv", keep_default_na=False)
    assert best.groupby("study").size().to_dict() == {"resnet8": 6, "resnet8-bn": 6, "single": 1}
    ranges = pd.read_csv(reports / "tables/stable_range.csv")
    assert len(ranges) == 4 * (6 + 6 + 2 + 1)
    bn = ranges[(ranges["study"] == "resnet8-bn") & (ranges["fraction"] == 0.5)]
    assert bn.set_index("batch_size")["upper"].to_dict()[2] == 2**-4
    curves = pd.read_csv(reports / "tables/convergence.csv")
    assert {"study", "batch_size", "epoch", "test_accuracy", "train_loss"} <= set(curves)


def test_studies_of_several_bn_batch_sizes_alone_make_a_report(
    reports: Path, tmp_path: Path
) -> None:
    settings = {"norm": "ghost", "bn_batch_sizes": [4]}
    study = synthetic.Study("ghost", batch_sizes=(4,), base_lrs=(2.0**-7, 2.0**-6), seeds=2,
                            settings=settings)  # fmt: skip
    synthetic.write_models(tmp_path / "models", (study,))
    evaluate(tmp_path / "models", tmp_path / "evaluation")
    page = Page(build_report(tmp_path / "evaluation", tmp_path / "models", tmp_path).read_text())
    text = " ".join(page.words)
    assert "Best BN batch size: 4 at m = 4 (the only one tried)." in text
    assert "at the η̃ of the study's own grid" in text
    assert "best for it in" not in text
    (cell,) = pd.read_csv(tmp_path / "tables/bn_batch.csv").to_dict("records")
    # Of the two η̃ that nearer the limit is better; it has two seeds, not four.
    assert (cell["base_lr"], cell["n_seeds"]) == (2.0**-6, 2)
    for path in (tmp_path / "tables").iterdir():
        header = path.read_text().partition("\n")[0]
        assert header == (reports / "tables" / path.name).read_text().partition("\n")[0]


def test_the_figures_of_imagenet_are_named_after_the_papers(tmp_path: Path) -> None:
    """Fig. 12: accuracy against m at each η̃; Fig. 14: against the BN batch, for each SGD batch."""
    shared = {"model": "resnet50", "augment": True}
    sizes = [8, 16, 32, 64, 128]
    plain = synthetic.Study("plain", settings={**shared, "norm": "batch", "figure": "12"})
    ghost = synthetic.Study(
        "ghost", batch_sizes=(32, 128), base_lrs=(2.0**-7,),
        settings={**shared, "norm": "ghost", "bn_batch_sizes": sizes, "figure": "14"},
    )  # fmt: skip
    synthetic.write_models(tmp_path / "models", (plain, ghost))
    evaluate(tmp_path / "models", tmp_path / "evaluation")
    html = build_report(tmp_path / "evaluation", tmp_path / "models", tmp_path).read_text()
    for study, figure, other, chart in (
        ("plain", "12", "14", "accuracy"), ("ghost", "14", "12", "bn-batch"),
    ):  # fmt: skip
        section = html.partition(f'id="study-synthetic.{study}"')[2].partition('id="study-')[0]
        assert f"The paper, Fig. {figure}</strong>" in section
        assert f"The paper, Fig. {other}" not in section
        assert f'data-figure="synthetic.{study}.{chart}"' in section
        assert (tmp_path / f"figures/synthetic.{study}.{chart}.svg").exists()
    cells = pd.read_csv(tmp_path / "tables/bn_batch.csv")
    assert list(zip(cells.batch_size, cells.bn_batch_size, strict=True)) == [
        *((32, size) for size in (8, 16, 32)), *((128, size) for size in (8, 16, 32, 64, 128)),
    ]  # fmt: skip
    claims = {
        it["claim"]: it["findings"][0]
        for it in json.loads((tmp_path / "claims.json").read_text())["claims"]
        if it["figure"] in ("12", "14")
    }
    # The best m of these made-up runs is 8, on a grid without 4 and 16.
    assert claims["best-batch-size-fig-12"]["effect"] < 0
    assert claims["bn-batch-16-to-64-best-fig-14"]["scale"].startswith("1024 images")
    assert "not run" not in {finding["verdict"] for finding in claims.values()}


def test_what_differs_or_is_missing_is_not_said_of_all(tmp_path: Path) -> None:
    long = synthetic.Study("long", epochs=16, batch_sizes=(8,), log_base_lr_0=-30.0)
    short = synthetic.Study("short", epochs=3, batch_sizes=(8,), log_base_lr_0=-30.0)
    synthetic.write_models(tmp_path / "models", (long, short))
    evaluate(tmp_path / "models", tmp_path / "evaluation")
    page = Page(build_report(tmp_path / "evaluation", tmp_path / "models", tmp_path).read_text())
    text = re.sub(r"\s+", " ", " ".join(page.words))
    assert "Reported accuracy: see “What was run” of each study, as they differ." in text
    assert "which m is best, these data cannot say" in text  # all diverged, at one m
    assert "What this data can decide" not in text
    assert "synthetic.stable-range" not in page.figures  # it would be empty


def test_the_same_data_gives_the_same_bytes(reports: Path, tmp_path: Path) -> None:
    build_report(reports / "evaluation", reports.parent / "models", tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        assert path.read_bytes() == (reports / path.relative_to(tmp_path)).read_bytes(), path.name


def test_figures_of_studies_that_are_gone_are_removed(reports: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(reports.parent / "models/synthetic/single/m4", models / "d/single/m4")
    stale = tmp_path / "reports/figures/synthetic.gone.accuracy.svg"
    stale.parent.mkdir(parents=True)
    stale.touch()
    evaluate(models, tmp_path / "reports/evaluation")
    build_report(tmp_path / "reports/evaluation", models, tmp_path / "reports")
    assert not stale.exists()


def test_without_timing_files_hardware_is_said_to_be_unknown(tmp_path: Path) -> None:
    tiny = synthetic.Study("tiny", batch_sizes=(2,), base_lrs=(2**-6,), seeds=1)
    evaluate(synthetic.write_models(tmp_path / "models", (tiny,)), tmp_path / "evaluation")
    path = build_report(tmp_path / "evaluation", tmp_path / "elsewhere", tmp_path)
    assert "Not recorded: there are no timing files" in path.read_text(encoding="utf-8")


def test_a_report_needs_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.parquet: no such file; run smallbatch evaluate"):
        build_report(tmp_path, tmp_path, tmp_path)


def _train_again(models: Path) -> None:
    """The same runs with other results, as another engine gives them."""
    path = models / "synthetic/tiny/m2/runs.json"
    content = json.loads(path.read_text())
    content["runs"][0]["final"]["train_loss"] += 1e-9
    path.write_text(json.dumps(content))


def _train_another(models: Path) -> None:
    more = synthetic.Study("more", batch_sizes=(2,), base_lrs=(2**-6,), seeds=1)
    synthetic.write_models(models, (more,))


def test_a_report_needs_an_evaluation_of_the_present_columns(tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "evaluation"
    settings = {"bn_batch_size": 2, "figure": 'a "b",\r c', "lookahead": [0.5, None]}
    tiny = synthetic.Study(
        "tiny", batch_sizes=(2, 4), base_lrs=(2**-6, 2**-2), seeds=1, settings=settings
    )
    evaluate(synthetic.write_models(models, (tiny,)), out)
    changes: dict[str, Callable[[Path], object]] = {
        "a column less": lambda models: shutil.rmtree(models / "synthetic/tiny/m4"),
        "a column more": _train_another,
        "other results": _train_again,
        "other times": lambda models: (models / "synthetic/tiny/m2/timing.json").unlink(),
    }
    for name, change in changes.items():
        changed = shutil.copytree(models, tmp_path / name)
        refuse_stale(read_evaluation(out)[0], out, changed)
        change(changed)
        with pytest.raises(UserError, match=r"not of the columns .* now; run smallbatch evaluate$"):
            build_report(out, changed, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_claims_of_another_evaluation_are_told(tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "reports"
    settings = {"norm": "ghost", "bn_batch_sizes": [4]}
    ghost = synthetic.Study("ghost", batch_sizes=(4,), base_lrs=(2**-6,), settings=settings)
    tiny = synthetic.Study("tiny", batch_sizes=(2,), base_lrs=(2**-6,))
    synthetic.write_models(models, (ghost, tiny))
    path = out / "claims.json"

    def told() -> str:
        result = CliRunner().invoke(main, ["claims", str(path)])
        assert result.exit_code == 0
        assert "not run" in result.stdout
        return result.stderr

    evaluate(models, out / "evaluation")
    build_report(out / "evaluation", models, out)
    assert told() == ""
    evaluate(models, out / "evaluation")
    assert told() == ""
    _train_again(models)
    evaluate(models, out / "evaluation")
    assert told() == (
        f"warning: {path}: not of the runs in {out / 'evaluation'}; run smallbatch report\n"
    )
    older = json.loads(path.read_text())
    del older["runs_sha256"]
    path.write_text(json.dumps(older))
    assert told() == ""


def test_names_are_escaped(reports: Path, tmp_path: Path) -> None:
    settings = {"model": "<script>alert(1)</script>"}
    odd = synthetic.Study("odd", batch_sizes=(4,), base_lrs=(0.01,), seeds=1, settings=settings)
    synthetic.write_models(tmp_path / "models", (odd,))
    evaluate(tmp_path / "models", tmp_path / "evaluation")
    path = build_report(tmp_path / "evaluation", tmp_path / "models", tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text


def test_data_cannot_leave_their_script_element() -> None:
    content = {"</script><script>alert(1)</script>": "<!-- \u2028 ü"}
    text = embedded(content)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == content
