"""Test images that lie side by side, and the files of their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from smallbatch.config.dataset import DatasetConfig
from smallbatch.data.encoded import load_encoded
from smallbatch.data.image_folder import open_image_folder
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import load_prepared
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise

CLASSES = ("n01", "n02", "n03")
LABELS = ("n02", "n01", "n03", "n03", "n01")  # of the test images, in the order of their names
NAMES = tuple(f"ILSVRC2012_val_{row:08}.JPEG" for row in range(1, 6))
NUMBERS = (2, 3, 1)  # of the classes


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes of two training images, and five test images side by side."""
    folder = tmp_path / "imagenet"
    (folder / "val").mkdir(parents=True)
    for label, name in enumerate(CLASSES):
        (folder / "train" / name).mkdir(parents=True)
        for row in range(2):
            content = encode(noise(10 * label + row, 12, 12, 3), "JPEG")
            (folder / "train" / name / f"{name}_{row}.JPEG").write_bytes(content)
    for row, name in enumerate(NAMES):
        (folder / "val" / name).write_bytes(encode(noise(100 + row, 12, 12, 3), "JPEG"))
    return folder


def meta_mat(path: Path) -> None:
    """As in ImageNet's development kit: a structure for each class."""
    synsets = np.array(
        [(number, name, f"words of {name}") for number, name in zip(NUMBERS, CLASSES, strict=True)],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)],
    )
    savemat(path, {"synsets": synsets[:, np.newaxis]})


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


KAGGLE = lines(
    "ImageId,PredictionString",
    *(f"{NAMES[row][:-5]},{LABELS[row]} 240 170 260 240 " for row in (3, 0, 4, 2, 1)),
)
IN_ORDER = lines(*LABELS)
TRUTH = lines(*(str(NUMBERS[CLASSES.index(label)]) for label in LABELS))
FORMS = {
    "Kaggle's": KAGGLE,
    "names and labels": lines(*(f"{n} {la}" for n, la in zip(NAMES, LABELS, strict=True))),
    "tabs": lines(*(f"{n}\t{la}" for n, la in zip(NAMES, LABELS, strict=True))),
    "folders and CSV": lines(*(f"val/{n},{la}" for n, la in zip(NAMES, LABELS, strict=True))),
    "quoted": lines("name,label", *(f'"{n}","{la}"' for n, la in zip(NAMES, LABELS, strict=True))),
    "Windows": "\ufeff" + KAGGLE.replace("\n", "\r\n"),
    "in order": IN_ORDER,
    "numbers": TRUTH,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_labels(imagenet: Path, form: str) -> None:
    (imagenet / "labels.txt").write_bytes(FORMS[form].encode())
    meta_mat(imagenet / "meta.mat")
    source = open_image_folder(imagenet, None, test_labels="labels.txt")
    assert source.classes == CLASSES
    assert source.test.encoded is not None
    names = [Path(image.where).name for image in source.test.encoded(np.arange(5))]
    labels = [CLASSES[label] for label in source.test.labels]
    assert dict(zip(names, labels, strict=True)) == dict(zip(NAMES, LABELS, strict=True))


@pytest.mark.parametrize("storage", ["encoded", "pixels"])
def test_such_a_split_is_prepared(imagenet: Path, tmp_path: Path, storage: str) -> None:
    (tmp_path / "truth.txt").write_text(IN_ORDER)
    raw = {"name": "own", "source": "image_folder", "path": str(imagenet), "image_size": 12,
           "storage": storage, "test_labels": "../truth.txt"}  # fmt: skip
    config = DatasetConfig.model_validate(raw)
    prepare(config, tmp_path)
    read: Any = load_encoded if storage == "encoded" else load_prepared
    data = read(tmp_path / "prepared/own")
    assert data.meta.counts == {"train": 6, "validation": 0, "test": 5}
    if storage == "encoded":  # by class, and in a class by name
        order = (1, 4, 0, 2, 3)
        contents = [(imagenet / "val" / NAMES[row]).read_bytes() for row in order]
        assert [data.test.read(row) for row in range(5)] == contents
        assert data.test.labels.tolist() == [0, 0, 1, 2, 2]
    first = data.meta.fingerprint
    (tmp_path / "truth.txt").write_text(lines("n01", "n02", "n03", "n03", "n01"))
    prepare(config, tmp_path)
    assert read(tmp_path / "prepared/own").meta.fingerprint != first


def test_numbers_that_are_names_of_classes(imagenet: Path) -> None:
    for number, name in enumerate(CLASSES, 1):
        (imagenet / "train" / name).rename(imagenet / "train" / str(number))
    (imagenet / "labels.txt").write_text(lines("2", "1", "3", "3", "1"))
    source = open_image_folder(imagenet, None, test_labels="labels.txt")
    assert source.test.labels.tolist() == [0, 0, 1, 2, 2]


def test_classes_of_several_words(imagenet: Path) -> None:
    (imagenet / "train/n02").rename(imagenet / "train/golden retriever")
    labels = [label.replace("n02", "golden retriever") for label in LABELS]
    for rows in (labels, [f"{n},{la}" for n, la in zip(NAMES, labels, strict=True)]):
        (imagenet / "labels.txt").write_text(lines(*rows))
        source = open_image_folder(imagenet, None, test_labels="labels.txt")
        assert source.classes == ("golden retriever", "n01", "n03")
        assert source.test.labels.tolist() == [0, 1, 1, 2, 2]


def test_words_after_a_class_are_left_out_and_no_word_of_it(imagenet: Path) -> None:
    (imagenet / "train/n02").rename(imagenet / "train/golden retriever")
    (imagenet / "train/n03").rename(imagenet / "train/golden")
    labels = {"n01": "n01 so", "n02": "golden retriever so it is", "n03": "golden 9"}
    rows = [f"{n} {labels[la]}" for n, la in zip(NAMES, LABELS, strict=True)]
    (imagenet / "labels.txt").write_text(lines(*rows))
    source = open_image_folder(imagenet, None, test_labels="labels.txt")
    assert source.classes == ("golden", "golden retriever", "n01")
    assert source.test.labels.tolist() == [0, 0, 1, 2, 2]


NAMED = [f"{n} {la}" for n, la in zip(NAMES, LABELS, strict=True)]
DAMAGES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("\n", r"^dataset\.test_labels: found .*labels\.txt, which is empty; allowed: lines"),
    "binary": (b"\xff\xfe\x00", r"^dataset\.test_labels: .*which is not UTF-8; allowed: lines of"),
    "too few": (lines(*LABELS[1:]), r"labels\.txt: found 4 labels for 5 images of .*val; allowed"),
    "too many": (lines(*LABELS, "n01"), r"found 6 labels for 5 images"),
    "no class": (lines(*LABELS[:4], "n09"), r"labels\.txt, line 5: found the label 'n09'; allowed"),
    "class of a name": (lines(*NAMED[:2], f"{NAMES[2]} n09", *NAMED[3:]), "line 3: .* label 'n09'"),
    "no label": (lines(*NAMED[:2], f"{NAMES[2]},", *NAMED[3:]), "line 3: found the label ''"),
    "no such image": (lines(*NAMED[:4], "x.JPEG n01"), r"line 5: found the image 'x\.JPEG', which"),
    "first of no image": (lines("x.JPEG n01", *NAMED[1:]), r"line 1: found the image 'x\.JPEG'"),
    "twice": (lines(*NAMED, NAMED[1]), rf"line 6: found '{NAMES[1]}' again; allowed: each image"),
    "a missing line": (lines(*NAMED[:4]), rf"val/{NAMES[4]}: found no label in .*labels\.txt"),
    "class without images": (
        lines(*(f"{name} n01" for name in NAMES)), "val: class 'n02' of .*train is missing",
    ),
    "a number of no class": (lines("1", "2", "3", "4", "1"), "line 4: found the label '4'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_labels_are_one_line(imagenet: Path, damage: str) -> None:
    text, message = DAMAGES[damage]
    (imagenet / "labels.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    meta_mat(imagenet / "meta.mat")
    with pytest.raises(UserError, match=message) as caught:
        open_image_folder(imagenet, None, test_labels="labels.txt")
    assert "\n" not in str(caught.value)


def test_numbers_need_the_development_kits_table(imagenet: Path) -> None:
    (imagenet / "truth.txt").write_text(TRUTH)
    with pytest.raises(
        UserError,
        match=r"^dataset\.test_labels: found numbers in .*truth\.txt, and not the meta\.mat .*"
        "allowed: that beside it, lines of a file name and its class, or the class of each image",
    ):
        open_image_folder(imagenet, None, test_labels="truth.txt")
    for content in (b"", b"damaged" * 100):
        (imagenet / "meta.mat").write_bytes(content)
        with pytest.raises(UserError, match=r"meta\.mat: not the meta\.mat of ImageNet's develop"):
            open_image_folder(imagenet, None, test_labels="truth.txt")


def test_a_flat_split_without_the_key_is_refused_by_its_name(imagenet: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"{NAMES[0]}: image outside a class; .*/<class>/\*, or dataset\.test_labels",
    ):
        open_image_folder(imagenet, None)


def test_the_key_is_refused_where_there_are_folders_of_classes(
    imagenet: Path, folder: Path
) -> None:
    (folder / "labels.txt").write_text("ant")
    with pytest.raises(
        UserError,
        match=r"^dataset\.test_labels: found 'labels\.txt' with .*test, which has f",
    ):
        open_image_folder(folder, None, test_labels="labels.txt")
    with pytest.raises(UserError, match=r"dataset\.test_labels: found .*absent, cannot read it"):
        open_image_folder(imagenet, None, test_labels="absent")
    for file in (imagenet / "val").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="val: empty; allowed: images"):
        open_image_folder(imagenet, None, test_labels="absent")


def test_a_name_without_suffix_must_be_that_of_one_image(imagenet: Path) -> None:
    (imagenet / "val/a.png").write_bytes(encode(noise(1, 12, 12, 3)))
    (imagenet / "val/a.JPEG").write_bytes(encode(noise(2, 12, 12, 3), "JPEG"))
    (imagenet / "labels.txt").write_text(lines(*NAMED, "a n01", "a.png n01"))
    with pytest.raises(UserError, match="line 6: found the image 'a', which"):
        open_image_folder(imagenet, None, test_labels="labels.txt")
    (imagenet / "labels.txt").write_text(lines(*NAMED, "a.JPEG n01", "a.png n02"))
    source = open_image_folder(imagenet, None, test_labels="labels.txt")
    assert source.test.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
