"""What is shown and kept of an `Advice`, made up."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

from smallbatch.analysis.advice import Advice, Final, Recommended
from smallbatch.config.study import StudyConfig
from smallbatch.errors import UserError
from smallbatch.protocol.optimiser import betas_at
from smallbatch.protocol.schedule import scheduled_lr, updates_after
from smallbatch.report.advice import advice_text, code_to_paste, read_advice, write_advice
from smallbatch.report.advice_figures import accuracy_figure
from smallbatch.report.advice_page import advice_page
from smallbatch.report.advice_places import Frame, place_names
from smallbatch.report.advice_text import width
from tests.report.browser import CHROMIUM, browser
from tests.report.made_up_advice import (
    made_up,
    raced,
    with_adamw,
    with_nothing,
    with_one_batch_size,
)

if TYPE_CHECKING:
    from pathlib import Path

LONG = tuple(f"Number {i} of the warnings goes on and on, {'and on, ' * 12}." for i in range(9))
EVIL = '"><script>alert(1)</script>'
ALL = {
    "whole": made_up(),
    "adamw": with_adamw(),
    "nothing": with_nothing(),
    "one": with_one_batch_size(),
    "long": made_up(warnings=LONG, target="time", dataset="字" * 90),
    "adamw, long": with_adamw(warnings=LONG),
    "evil": made_up(dataset=EVIL, model=EVIL, warnings=(EVIL,), untested=(EVIL,)),
}


@functools.cache
def page_of(name: str) -> str:
    """The page of one of them; drawing takes a second."""
    return advice_page(ALL[name])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The JSON of one of them."""
    data, _ = write_advice(with_one_batch_size(), tmp_path_factory.mktemp("advice"))
    return data.read_text()


def words(advice: Advice) -> str:
    """The text with its line breaks as spaces."""
    return " ".join(advice_text(advice).split())


def final(low: float | None, high: float | None, **more: Any) -> Final:
    found = made_up().final
    assert found is not None
    return replace(found, low=low, high=high, **more)


def recommended(**changed: Any) -> Recommended:
    found = made_up().recommended
    assert found is not None
    return replace(found, **changed)


@pytest.mark.parametrize("name", ALL)
def test_the_text_fits_on_one_screen(name: str) -> None:
    lines = advice_text(ALL[name], ["Page: reports/advice.html"]).split("\n")
    assert len(lines) <= 23  # one of 24 is the prompt's
    assert max(map(width, lines)) <= 80
    assert lines[-1] == "Page: reports/advice.html"


def test_a_path_is_never_cut_and_takes_the_lines_that_it_needs() -> None:
    path = f"Page: /{'a' * 200}/advice.html"
    lines = advice_text(made_up(warnings=LONG), [path]).split("\n")
    assert lines[-1] == path
    assert len(lines) - 1 + math.ceil(len(path) / 80) <= 23


def test_the_text_has_the_answer_and_the_code_as_it_is() -> None:
    advice = made_up()
    text = words(advice)
    assert "m = 16 and learning rate η = 0.0625 (η̃ = η/m = 2⁻⁸)" in text
    assert "91.2 % of new images" in text
    assert "2,000 test images" in text
    assert "interval by their number: 89.9 … 92.4 %." in text
    assert "Cannot be told apart from the runner-up, m = 32 at η̃ = 2⁻⁹" in text
    assert "+0.3 points, −0.6 … +1.2" in text
    assert "Tied in the race: m = 32 at η̃ = 2⁻⁹ and m = 8 at η̃ = 2⁻⁸" in text
    assert "Headroom to the edge: 2 octaves (a factor of 4)" in text
    assert advice.recommended is not None
    assert f"\n{advice.recommended.code}\n" in advice_text(advice)
    for warning in advice.warnings:
        assert warning in text


def test_warnings_that_do_not_fit_are_counted() -> None:
    text = advice_text(made_up(warnings=LONG))
    shown = sum(line.startswith("! Number") for line in text.splitlines())
    assert 1 <= shown < len(LONG)
    assert f"! {len(LONG) - shown} warnings more: see the page" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"final": final(0.002, 0.014)}, "Better than the runner-up, m = 32"),
        ({"final": final(-0.014, -0.002)}, "Less accurate than the runner-up, m = 32"),
        ({"final": final(-0.01, 0.01, overturned=True)}, "had them the other way round"),
        ({"final": final(None, None, seeds=(7,))}, "With 1 fresh seed nothing is known of chance"),
        ({"final": None}, "no final was run"),
        ({"target": "time"}, "Of the tied, the one that trains fastest was taken"),
        ({"recommended": recommended(base_lr=2.0**-6)}, "at the edge, with no headroom"),
        ({"recommended": recommended(base_lr=2.0**-5)}, "lies 1 octave (a factor of 2) above"),
        ({"recommended": recommended(batch_size=2)}, "nothing broke, so the edge is not known"),
        ({"recommended": recommended(on="bracket")}, "Provisional, as the budget ended before"),
    ],
)
def test_what_the_text_says(change: dict[str, Any], said: str) -> None:
    assert said in words(made_up(**change))
    assert said not in words(made_up())


def test_code_is_shown_with_its_imports_however_many_warnings_there_are() -> None:
    advice = made_up(warnings=LONG)
    assert advice.recommended is not None
    assert f"\n{advice.recommended.code}\n" in advice_text(advice)


def test_where_nothing_was_learned_nothing_is_claimed() -> None:
    alone = tuple(replace(cell, tied=False) for cell in made_up().raced)
    advice = made_up(recommended=recommended(beyond_chance=False), final=final(0.002, 0.014),
                     raced=alone)  # fmt: skip
    assert advice.recommended is not None
    for text in (words(advice), advice_page(advice)):
        assert "No answer: nothing was learned" in text
        assert "Better than" not in text
        assert 'class="card clear"' not in text
        assert "Expect" not in text
        assert advice.recommended.code.splitlines()[-1] not in text


def test_adamw_has_no_base_learning_rate() -> None:
    advice = with_adamw()
    assert "η̃" not in advice_text(advice)
    assert "learning rate η = 0.00390625." in words(advice)
    assert "η̃" not in page_of("adamw")


def test_no_recommendation_says_why() -> None:
    text = words(with_nothing())
    assert "No batch size and learning rate can be recommended." in text
    assert "! Every training diverged, even at the lowest η̃ tried" in text
    page = page_of("nothing")
    assert "No batch size and learning rate can be recommended." in page
    assert "<li>Every training diverged" in page
    assert "<pre" not in page


def test_one_batch_size_stands_alone() -> None:
    text = words(with_one_batch_size())
    assert "Tied" not in text
    assert "no final was run" in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = advice_text(made_up(dataset="a\x1b[2Jb", warnings=("c\x1b[31md",)))
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["adamw", "nothing", "long"])
def test_the_json_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    data, page = write_advice(ALL[name], tmp_path / "new", "mine")
    assert (data.name, page.name) == ("mine.json", "mine.html")
    assert sorted(path.name for path in data.parent.iterdir()) == ["mine.html", "mine.json"]
    assert read_advice(data) == ALL[name]
    content = json.loads(data.read_text())
    assert list(content)[:2] == ["advice", "dataset"]
    assert content["advice"] == 1


def test_the_same_advice_gives_the_same_bytes(tmp_path: Path) -> None:
    (first, page), (second, _) = (write_advice(made_up(), tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert page.read_text() == page_of("whole")


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_advice(made_up(seconds=math.inf), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(advice=2),
        lambda content: content.pop("advice"),
        lambda content: content.pop("ranges"),
        lambda content: content.update(epochs="30"),
        lambda content: content.update(other=1),
        lambda content: content.update(seconds=math.nan),
        lambda content: content["raced"][0].update(fate="lost"),
        lambda content: content["raced"][0].update(other=1),
        lambda content: content["ranges"][0]["survived"][0].append(1),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage: Any, saved: str, tmp_path: Path) -> None:
    data, content = tmp_path / "advice.json", json.loads(saved)
    damage(content)
    data.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"advice\.json: damaged") as error:
        read_advice(data)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_or_missing_is_refused(saved: str, tmp_path: Path) -> None:
    data = tmp_path / "advice.json"
    data.write_text(saved[:-40])
    with pytest.raises(UserError, match="damaged"):
        read_advice(data)
    with pytest.raises(UserError, match="no such file"):
        read_advice(tmp_path / "other.json")


@pytest.mark.parametrize("name", ALL)
def test_the_page_runs_nothing_and_fetches_nothing(name: str) -> None:
    page = page_of(name)
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page  # nor do the pictures refer to each other's parts
    assert "default-src 'none'" in page


def test_names_stay_text_on_the_page() -> None:
    page = page_of("evil")
    escaped = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
    assert page.count(escaped) >= 4
    assert EVIL not in page


def test_the_order_of_the_page() -> None:
    page = page_of("whole")
    parts = ["Train with batch size", "from torch.optim", 'id="time"', 'id="stable"',
             "Raced cells", "Batch sizes:", 'id="warnings"', 'id="larger"', 'id="untested"',
             'id="diagnostics"']  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_the_tables_hold_every_cell_and_seed() -> None:
    page = page_of("whole")
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page)
    cells = [re.split(r"</?t[hd][^>]*>", row) for row in rows]
    plain = [[text for text in row if text] for row in cells]
    assert ["16", "2⁻⁸", "0.0625", "64.6 ± 0.4 %", "79.7 ± 0.4 %", "91.3 ± 0.4 %",
            "trained to the end", "recommended", "76.2 s"] in plain  # fmt: skip
    assert ["256", "2⁻¹⁰", "0.25", "diverged", "–", "–", "stopped: a seed diverged",
            "23.5 s"] in plain  # fmt: skip
    assert ["1001", "91.4 %", "91.1 %", "+0.30"] in plain
    assert any("3 of 3 at 2⁻¹⁰ … 2⁻⁶, 1 of 3 at 2⁻⁵ and 0 of 3 at 2⁻⁴" in row for row in plain)


def test_a_curve_for_each_batch_size_with_the_recommended_one_marked() -> None:
    page = page_of("whole")
    svg = page.split('class="wide">')[1].split("</svg>")[0]
    names = re.findall(r">(m = [^<]*)<", svg)
    assert sorted(names) == sorted(
        ["m = 16 ★", "m = 32 (tied)", "m = 8 (tied)", *(f"m = {m}" for m in (2, 4, 64, 128, 256))]
    )


def test_curves_that_are_flat_or_of_one_epoch_can_be_drawn() -> None:
    flat = raced(16, 2.0**-8, 0.9, curve=(0.5,), tied=True)
    page = advice_page(made_up(raced=(flat, replace(flat, batch_size=8, curve=()))))
    assert "m = 16 ★" in page
    assert "m = 8 (tied)" not in page


@pytest.mark.parametrize(
    ("longest", "fastest", "title"),
    [
        (299.0, 200.0, "seconds of one training"),
        (900.0, 200.0, "minutes of one training"),
        (1500.0, 200.0, "minutes of one training (log scale)"),
        (72_000.0, 72_000.0, "hours of one training"),
    ],
)
def test_the_axis_of_time_suits_the_trainings(longest: float, fastest: float, title: str) -> None:
    cells = (raced(2, 0.1, 0.8, seconds=longest), raced(64, 0.1, 0.8, seconds=fastest))
    svg = accuracy_figure(made_up(raced=cells), 640)
    assert f">{title}<" in svg
    assert "e+" not in re.sub(r"<path[^>]*>", "", svg)  # of a tick's label


def test_names_of_curves_do_not_meet() -> None:
    frame = Frame(300, 200, 90, (0.0, 1.0), (0.0, 1.0), log=False)
    curves = [[(0.0, 0.2), (0.9, 0.8)] for _ in range(6)]
    places = place_names(frame, curves, ["m = 16"] * 6)
    for side in (False, True):
        heights = sorted(200 * place.y for place in places if place.left is side)
        assert all(b - a >= 13 for a, b in pairwise(heights))
    assert all(0 < place.y < 1 for place in places)


STUDIES: dict[str, dict[str, Any]] = {
    "step": {"milestones": (0.5, 0.755), "lr_decay": 0.2},
    "none passed": {"milestones": ()},
    "cosine": {"schedule": "cosine"},
    "constant": {"schedule": "constant"},
    "step, warm-up": {"warmup": 0.13, "milestones": (0.3, 0.9)},
    "cosine, warm-up": {"schedule": "cosine", "warmup": 0.13, "optimizer": "nesterov"},
    "constant, warm-up": {"schedule": "constant", "warmup": 0.13, "optimizer": "momentum"},
    "adamw": {"optimizer": "adamw", "schedule": "cosine", "betas": (0.8, 0.97), "eps": 1e-6},
    "adamw by examples": {"optimizer": "adamw", "beta2_examples": 1234.5, "warmup": 0.1},
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_code_trains_as_this_program_does(name: str) -> None:
    study = StudyConfig(model="resnet8", epochs=7, weight_decay=3e-3, **STUDIES[name])
    n, m, lr = 110, 16, 0.1 / 3
    updates = updates_after(7, n, m)
    code = code_to_paste(study, m, lr, n)
    assert all(len(line) <= 80 for line in code.splitlines())
    model = torch.nn.Linear(3, 2)
    names: dict[str, Any] = {
        "model": model,
        "train_set": torch.utils.data.TensorDataset(torch.randn(n, 3), torch.zeros(n).long()),
    }
    exec(code, names)
    optimizer, scheduler, loader = names["optimizer"], names.get("scheduler"), names["loader"]
    assert (len(loader), loader.batch_size) == (n // m, m)
    assert (scheduler is None) == (name in ("constant", "none passed"))
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == study.weight_decay
    if study.optimizer == "adamw":
        assert type(optimizer) is torch.optim.AdamW
        assert (group["betas"], group["eps"]) == (betas_at(study, m), study.eps)
    else:
        assert type(optimizer) is torch.optim.SGD
        assert (group["momentum"], group["dampening"]) == (study.momentum or 0, 0)
        assert group["nesterov"] == (study.optimizer == "nesterov")
    images, labels = next(iter(loader))
    for update in range(updates):
        assert group["lr"] == pytest.approx(scheduled_lr(update, updates, lr, study), rel=1e-9)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    assert f"{updates} updates" in code


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser_nothing_is_fetched_and_nothing_reaches_beyond_a_phone(
    tmp_path: Path,
) -> None:
    page = tmp_path / "advice.html"
    page.write_text(page_of("long"))
    with browser() as found:
        for size, shown in ((390, "narrow"), (1280, "wide")):
            context = found.new_context(viewport={"width": size, "height": 800})
            tab, requests = context.new_page(), list[str]()
            tab.on("request", lambda it, requests=requests: requests.append(it.url))
            tab.goto(page.as_uri())
            assert requests == [page.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") == size
            for kind in ("narrow", "wide"):
                visible = tab.locator(f".{kind} svg").first.is_visible()
                assert visible == (kind == shown)
            context.close()
