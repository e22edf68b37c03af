"""Examples in the documentation are accepted by the program."""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from smallbatch.analysis.claims import CLAIMS
from smallbatch.config import profiles
from smallbatch.config.params import parse_dataset, parse_params

ROOT = Path(__file__).parents[1]
# Every page for readers; those of results speak of the code that made them.
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/README.md"))
)
GUIDES = [path for path in PAGES if "results" not in path.relative_to(ROOT).parts]
# Files that a page tells its reader to make, or that belong to other programs.
NOT_OURS = re.compile(
    r"^(train|test)/<class>|^data/|^models/|^reports/|^mlartifacts/|^(\.smallbatch|/)"
)

NO_TESTS = {"test_accuracy", "test_loss", "test_labels"}  # columns of results, and a key


def _files() -> list[str]:
    folders = ("src", "tests", "benchmarks", "bin", "docs", "results", ".ci", ".dvc")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    top = [ROOT / folder for folder in folders]
    return [f"/{path.relative_to(ROOT)}" for path in (*top, *found, *ROOT.glob("*.*"))]


FILES = _files()


def _headings(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, part in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        if not re.match(r"https?:", target):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not part or part in _headings(file), f"{target}#{part}"


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_that_a_page_mentions_exist(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    new = set(re.findall(r"New file `([^`]+)`", text))
    mentioned = set(re.findall(r"`([\w./*-]+\.(?:py|cpp|h|yaml|toml))`", text))
    mentioned |= set(re.findall(r"`((?:[\w*-]+/)+)`", text))
    for path in mentioned - new:
        if not NOT_OURS.match(path):
            ends = re.compile("/" + re.escape(path.rstrip("/")).replace(r"\*", "[^/]*") + "$")
            assert any(ends.search(file) for file in FILES), path
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in set(re.findall(r"`(test_\w+)`", text)) - NO_TESTS:
        assert f"def {name}(" in tests, name
    # "`name` in `file`", "`Class.name` and `name` in `file`"
    for names, path in re.findall(r"((?:`[\w.]+`(?: and |, ))*`[\w.]+`) in\s+`([\w./]+)`", text):
        sources = [ROOT / file[1:] for file in FILES if file.endswith(f"/{path}")]
        if path in new or not sources or not sources[0].is_file():
            continue
        source = "\n".join(file.read_text() for file in sources)
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"\b{part}\b", source), f"{name} in {path}"


def test_the_readme_quotes_the_answer_as_the_report_gives_it() -> None:
    quoted = re.findall(r"^> (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    said = " ".join(quoted).removesuffix(" …")
    answers = json.loads((ROOT / "results/paper-cifar10-small/answers.json").read_text())["answers"]
    (card,) = (it for it in answers if it["study"] == "resnet8")
    assert len(said) > 200
    assert " ".join([f"**{card['title']}.**", *card["lines"]]).startswith(said)


def test_the_params_of_the_how_to_are_valid() -> None:
    text = (ROOT / "docs/own-images.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    raw, encoded = (YAML(typ="safe").load(textwrap.dedent(block)) for block in blocks)
    assert parse_params(raw, "docs/own-images.md").dataset.source == "image_folder"
    assert parse_dataset(encoded["dataset"], "docs/own-images.md").image_size == 224


def test_the_architecture_shows_the_rooms_in_their_layers() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (drawn,) = re.findall(r"```mermaid\nflowchart TB\n(.*?)```", text, re.DOTALL)
    rows = re.findall(r"direction LR\n +(.*)", drawn)
    names = [re.sub(r"\w+\[\"(.*)\"\]", r"\1", name) for row in rows for name in row.split(" --> ")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert names == [layer.replace(" | ", " · ") for layer in layers]
    for room in (ROOT / "src/smallbatch").iterdir():
        name = f"{room.name}/" if room.is_dir() else room.name
        assert name.startswith("_") or name == "py.typed" or f"\n| `{name}` |" in text, name


def test_no_page_installs_the_project_of_another() -> None:
    """What the public index has as `smallbatch` is not this."""
    wrong = re.compile(
        r"\b(pip|pipx|uv|conda|poetry)\b[^\n`]*\b(install|add|run|tool)\b[^\n`]*"
        r"""[\s'"]smallbatch(?=[\s'"\[=<>~@]|$)(?! @ file)"""
    )
    assert wrong.search("pip install 'smallbatch[server]'")
    assert not wrong.search("pip install 'smallbatch-study[server] @ file:///a/b.whl'")
    own = "uninstall smallbatch smallbatch-study"  # the way out of a clash
    assert wrong.search(own.replace("uninstall", "pip install"))
    files = [*PAGES, *ROOT.glob("src/**/*.py"), *ROOT.glob("bin/*"), ROOT / "pyproject.toml"]
    for file in files:
        for line in file.read_text().splitlines():
            assert "uninstall" in line or not wrong.search(line), f"{file}: {line}"


def test_the_readme_counts_the_verdicts_as_the_results_do() -> None:
    best: dict[str, tuple[tuple[int, int], str]] = {}
    # What compares more, such as more studies, counts before what has more seeds.
    for folder in ("paper-cifar10-small", "imagenette-small", "cifar10-small-seeds"):
        for claim in json.loads((ROOT / "results" / folder / "claims.json").read_text())["claims"]:
            for finding in claim["findings"]:
                if finding["verdict"] != "not run":
                    known = (len(finding["parts"]), finding["n"] or 0)
                    found = (known, finding["verdict"])
                    best[claim["claim"]] = max(best.get(claim["claim"], found), found)
    verdicts = {claim: verdict for claim, (_, verdict) in best.items()}
    found = Counter(verdicts.get(claim.name, "not run") for claim in CLAIMS)
    said = (
        f"of {len(CLAIMS)} statements, {found['strictly supported']} are strictly supported at a "
        f"small scale, {found['undecided']} are undecided and {found['not run']} were not run"
    )
    assert said in " ".join((ROOT / "README.md").read_text().split())
    assert found.total() == sum(
        found[verdict] for verdict in ("strictly supported", "undecided", "not run")
    )


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *((name, scale) for name in ("paper-cifar10", "paper-cifar100", "paper-imagenet",
                            "momentum-cifar10")
          for scale in ("full", "small", "smoke")),
        ("finetune", "full"),
        ("finetune", "smoke"),
        ("budgets", "full"),
        ("budgets", "smoke"),
        *(("ladder", scale) for scale in ("full", "5000", "2500", "1000", "smoke")),
    ],
)  # fmt: skip
def test_a_profiles_head_says_how_many_runs_it_has(name: str, scale: str) -> None:
    text = profiles.read(name, None if scale == "full" else scale)
    (said,) = re.findall(rf"^#.* {scale} +([\d,]+) runs of", text, re.MULTILINE)
    raw = YAML(typ="safe").load(text)
    grid, studies = raw["grid"], raw["studies"]
    runs = 0
    for study in (studies[name] for name in grid["studies"]):
        rates = study.get("lrs") or study.get("base_lrs") or grid["base_lrs"]
        runs += len(rates) * len(grid["batch_sizes"]) * study.get("seeds", grid["seeds"])
    for dependent in grid["dependent"]:
        study = studies[dependent["name"]]
        cells = sum(b <= m for m in grid["batch_sizes"] for b in study["bn_batch_sizes"])
        runs += cells * study.get("seeds", grid["seeds"])
    assert int(said.replace(",", "")) == runs
