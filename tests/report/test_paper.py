from __future__ import annotations

import re

import pytest

from smallbatch.report.paper import FIGURES, paper_figure


@pytest.mark.parametrize("label", ["8", "Fig. 8", "fig 8", "Figure 8"])
def test_labels_find_their_figure(label: str) -> None:
    figure = paper_figure(label)
    assert figure is not None
    assert figure.label == "8"


def test_parts_of_a_figure_and_unknown_labels() -> None:
    assert paper_figure("13a") == FIGURES["13"]
    assert paper_figure("text") == FIGURES["text"]
    assert paper_figure(None) is None
    assert paper_figure("99") is None


def test_every_figure_is_there() -> None:
    assert set(FIGURES) == {str(number) for number in range(1, 19)} | {"text"}


def test_the_one_accuracy_in_the_papers_text_is_the_only_one_given() -> None:
    text = " ".join(f"{figure.study} {figure.conclusion}" for figure in FIGURES.values())
    assert re.findall(r"[\d.]+ ?%", text) == ["76 %"]
