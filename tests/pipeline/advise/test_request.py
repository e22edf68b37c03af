"""Budgets as they are written, and what a request's key depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smallbatch.config.params import parse_dataset, parse_study
from smallbatch.errors import UserError
from smallbatch.pipeline.advise.request import Request, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("1.5m", 90), (" 5m ", 300)],
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    found = parse_budget(text)
    assert (found.seconds, found.images) == (seconds, None)


@pytest.mark.parametrize(
    ("text", "images"), [("images=2e6", 2_000_000), ("images=500", 500), ("images = 1_000", 1000)]
)
def test_a_number_of_images_is_read(text: str, images: int) -> None:
    found = parse_budget(text)
    assert (found.seconds, found.images) == (None, images)


@pytest.mark.parametrize(
    "text",
    [
        "٥m",
        "images=٥٠",
        "",
        "0m",
        "20",
        "-5m",
        "m",
        "20 minutes",
        "images=",
        "images=0",
        "nan",
        "1e9h",
        "5m5",
    ],
)
def test_anything_else_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UserError, match="allowed: a time such as 20m") as refused:
        parse_budget(text)
    assert "\n" not in str(refused.value)


def test_the_key_is_of_all_that_the_answer_depends_on() -> None:
    request = Request(
        parse_dataset({"name": "digits", "source": "digits"}, "test"),
        parse_study({"model": "resnet8", "epochs": 2, "weight_decay": 0.0}, "test"),
        parse_budget("20m"),
    )
    others = [
        replace(request, budget=parse_budget("21m")),
        replace(request, budget=parse_budget("images=20")),
        replace(request, batch_sizes=(4,)),
        replace(request, epochs=3),
        replace(request, target="time"),
        replace(request, study=request.study.model_copy(update={"weight_decay": 0.1})),
        replace(request, dataset=request.dataset.model_copy(update={"image_size": 16})),
    ]
    assert len({it.key("") for it in (request, *others)}) == 1 + len(others)
    assert replace(request, budget=parse_budget("1200s")).key("") == request.key("")
    assert request.key("other images") != request.key("")
    # Seeds of the study are those of its grid.
    more = replace(request, study=request.study.model_copy(update={"seeds": 24}))
    assert more.key("") == request.key("")
