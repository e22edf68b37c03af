"""Pages that programs write are as those programs write them now; diagrams lose nothing."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from xml.etree import ElementTree

import pytest

from smallbatch.analysis.claims import CLAIMS
from tests.docs.pages import DOCS


def _tool(name: str) -> ModuleType:
    spec = spec_from_file_location(f"docs_tools_{name}", DOCS / f"tools/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_the_paper_is_that_of_the_claims_and_results() -> None:
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert text == _tool("paper").page(), "run: python docs/tools/paper.py"
    for claim in CLAIMS:
        assert f"**{claim.statement}.**" in text
        assert claim.criterion in text


def test_the_list_for_language_models_is_that_of_the_nav() -> None:
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert text == _tool("llms").listing(), "run: python docs/tools/llms.py"
    listed = re.findall(r"^- \[.+\]\((.+)\): .{20,}", text, re.MULTILINE)
    on_disk = {path.name for path in (*DOCS.glob("*.md"), *DOCS.glob("*.ipynb"))}
    assert sorted(listed) == sorted(on_disk)


def test_a_diagram_has_every_box_and_every_arrow() -> None:
    drawn = _tool("diagrams").drawn
    for block in re.findall(
        r"```mermaid\n(.*?)```", (DOCS / "architecture.md").read_text("utf-8"), re.DOTALL
    ):
        root = ElementTree.fromstring(drawn(block))
        shown = {"".join(it.itertext()) for it in root.iter() if it.tag.endswith("}text")}
        for text in re.findall(r"\[\(?\"?([^\]]*?)\"?\)?\]|\|\"?(.*?)\"?\|", block):
            for words in "".join(text).split("<br>"):
                assert words in shown
        arrows = [it for it in root.iter() if it.get("marker-end")]
        assert len(arrows) == len(re.findall(r"-->|-\.->", block)) > 3


def test_what_a_diagram_cannot_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="no arrow: a ==> b"):
        _tool("diagrams").drawn("flowchart TD\n  a ==> b\n")
