"""The images of a run outside the pipeline: its own copy, and that it follows the source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smallbatch.data import decoder
from smallbatch.errors import UserError
from smallbatch.pipeline import single

DIGITS = """dataset: {name: digits, source: digits, subset: 200, test_subset: 50}
grid: {studies: [s], batch_sizes: [4], base_lrs: [0.1], seeds: 1}
studies: {s: {model: alexnet, epochs: 1, weight_decay: 0}}
"""
Run = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Plans a run in an empty folder, without training it: its data set, and what was said."""
    monkeypatch.chdir(tmp_path)

    def call(dataset: str = "own") -> tuple[Any, list[str]]:
        said: list[str] = []
        planned: list[Any] = []

        def plan_only(plan: Callable[[], Any], *_: object, **__: object) -> Path:
            planned.append(plan())
            record = {"outcome": "diverged", "diverged_at": 1, "updates": 2}
            Path("runs.json").write_text(json.dumps({"runs": [record]}))
            return Path()

        monkeypatch.setattr(single, "train_and_track", plan_only)
        single.single_run(
            Path("params.yaml"), dataset, {"model": "alexnet", "epochs": 1, "weight_decay": 0.0},
            batch_size=4, base_lr=0.01, seed=0, device="cpu", say=said.append,
        )  # fmt: skip
        return planned[0].dataset, said

    return call


def params(source: str) -> None:
    Path("params.yaml").write_text(
        DIGITS.replace("digits, source: digits", f"own, source: {source}, path: img")
        .replace(", subset: 200, test_subset: 50", "")
    )  # fmt: skip


def add_images(*classes: str) -> None:
    for split, name in ((split, name) for split in ("train", "test") for name in classes):
        folder = Path("img", split, name)
        folder.mkdir(parents=True)
        seed = [len(split), ord(name[0])]
        pixels = np.random.default_rng(seed).integers(0, 255, (6, 24, 40, 3), dtype=np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{index}.png")


def test_one_parquet_file_is_prepared_once_and_again_when_it_changed(run: Run) -> None:
    params("parquet")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("path: img", "path: img, test_fraction: 0.25"))
    add_images("ant")
    content = [file.read_bytes() for file in sorted(Path("img/train/ant").iterdir())] * 2
    table = pa.table({"img": content, "label": [0, 1] * 6})
    shutil.rmtree("img")
    pq.write_table(table, "img")
    first, said = run()
    assert (first.meta.counts["train"], first.meta.counts["test"]) == (9, 3)
    said = [line for line in said if "pixel by pixel" not in line]
    assert said == []
    again, said = run()
    assert (again.meta.fingerprint, said) == (first.meta.fingerprint, [])
    pq.write_table(table.slice(0, 8), "img")
    changed, said = run()
    assert changed.meta.counts["test"] == 2
    assert said[0].startswith("img: changed since ")


def test_images_that_changed_are_prepared_again(run: Run) -> None:
    params("image_folder")
    add_images("ant", "bee")
    first, said = run()
    assert (len(first.meta.classes), first.meta.height, first.meta.width) == (2, 24, 40)
    assert said == []
    again, said = run()
    assert (again.meta.fingerprint, said) == (first.meta.fingerprint, [])
    add_images("cat")
    changed, said = run()
    assert changed.meta.classes == ("ant", "bee", "cat")
    assert [line.startswith("img: changed since ") for line in said] == [True]
    assert run()[1] == []


def test_shards_that_changed_are_read_again(run: Run) -> None:
    params("parquet")
    add_images("ant", "bee")
    png = Path("img/train/ant/0.png").read_bytes()
    shutil.rmtree("img")
    for split in ("train", "test"):
        Path("img").mkdir(exist_ok=True)
        pq.write_table(pa.table({"img": [png] * 4, "label": [0, 1] * 2}), f"img/{split}.parquet")
    assert run()[0].meta.counts["train"] == 4
    pq.write_table(pa.table({"img": [png] * 6, "label": [0, 1] * 3}), "img/train.parquet")
    assert run()[0].meta.counts["train"] == 6


def test_images_that_are_gone_are_used_as_they_were(run: Run) -> None:
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    shutil.rmtree("img")
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert ["img: not there; the run uses the images as they were prepared" in s for s in said] == [
        True
    ]
    shutil.rmtree(".smallbatch")
    with pytest.raises(UserError, match=r"dataset\.path: found img, which does not exist"):
        run()


def test_a_listing_that_was_not_written_costs_only_time(run: Run) -> None:
    """As when the process was killed between the images and their listing."""
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    [note] = Path(".smallbatch/data").glob("*/listing")
    note.unlink()
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert len(said) == 1
    assert run()[1] == []


def test_a_listing_counts_for_the_images_alone_that_it_was_written_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short between new images and their listing, after which the old images are put back."""
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    add_images("cat")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(single, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    for split in ("train", "test"):
        shutil.rmtree(f"img/{split}/cat")
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert len(said) == 1
    assert run()[1] == []


def test_images_that_change_while_they_are_prepared_are_prepared_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallbatch.data import prepare

    params("image_folder")
    add_images("ant", "bee")
    real = prepare.prepare

    def and_more_come(*words: Any, **named: Any) -> Any:
        add_images("cat")
        return real(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare", and_more_come)
        run()
    assert not list(Path(".smallbatch/data").glob("*/listing"))
    assert len(run()[1]) == 1
    assert run()[1] == []


def test_images_are_decoded_again_by_another_version_of_the_decoder(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    params("image_folder")
    add_images("ant", "bee")
    first, _ = run()
    monkeypatch.setattr(decoder.metadata, "version", lambda name: f"another {name}")
    again, said = run()
    assert again.meta.fingerprint == first.meta.fingerprint
    assert [line.split(": ", 1)[1] for line in said] == [
        "made by other code or libraries, or cut short, thus prepared again"
    ]
    assert run()[1] == []


@pytest.mark.parametrize("content", [b"", b"\xff", b"1", b"[]", b"0" * 64])
def test_a_damaged_listing_costs_only_time(run: Run, content: bytes) -> None:
    params("image_folder")
    add_images("ant", "bee")
    run()
    [note] = Path(".smallbatch/data").glob("*/listing")
    note.write_bytes(content)
    assert len(run()[1]) == 1
    assert run()[1] == []


def test_it_says_where_a_built_in_data_set_is_that_of_the_params(run: Run) -> None:
    data, said = run("digits")
    assert (data.meta.counts["train"], said) == (1437, [])
    Path("params.yaml").write_text(DIGITS)
    data, said = run("digits")
    assert data.meta.counts["train"] == 200
    assert said == [
        "--dataset digits: that of params.yaml, {source: digits, subset: 200, test_subset: 50}"
    ]


NO_BETTER = "ended no better than always naming the most frequent class"
NOTHING = f"{NO_BETTER} (10 %): nothing learned; try another learning rate or longer training"


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (0, NOTHING),
        (50, NOTHING),
        (51, ""),  # a guess gets as many right in 0.7 % of all tries
        (360, ""),
    ],
)
def test_a_run_that_learned_nothing_says_so(right: int, said: str) -> None:
    assert single.learned_nothing({"test_accuracy": right / 360}, np.arange(360) % 10) == said


def test_naming_the_most_frequent_class_is_no_learning() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    at_chance = single.learned_nothing({"test_accuracy": 0.8}, labels)
    assert at_chance.startswith(f"{NO_BETTER} (80 %): nothing learned")
    assert single.learned_nothing({"test_accuracy": 0.95}, labels) == ""


@pytest.mark.parametrize(
    ("population", "said"),
    [
        (None, "nothing learned"),
        (0.12, "nothing learned"),
        (0.97, "with statistics recomputed over the training set it reaches 97 %"),
    ],
)
def test_stale_statistics_are_not_taken_for_having_learned_nothing(
    population: float | None, said: str
) -> None:
    final = {"test_accuracy": 0.1, "population_test_accuracy": population}
    line = single.learned_nothing(final, np.arange(360) % 10)
    assert line.startswith(f"{NO_BETTER} (10 %)")
    assert said in line
