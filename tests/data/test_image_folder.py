import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallbatch.data.image_folder import open_image_folder
from smallbatch.errors import UserError


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


def test_classes_labels_and_pixels(folder: Path) -> None:
    source = open_image_folder(folder, None)
    assert source.classes == ("ant", "bee")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    images = source.train.read(np.array([1, 5]))
    np.testing.assert_array_equal(images[0], pixels_of(folder / "train/ant/1.png"))
    np.testing.assert_array_equal(images[1], pixels_of(folder / "train/bee/2.png"))


@pytest.mark.parametrize("name", ["val", "validation"])
def test_val_stands_in_for_a_missing_test(folder: Path, name: str) -> None:
    (folder / "test").rename(folder / name)
    assert len(open_image_folder(folder, None).test.labels) == 4


def test_only_requested_images_are_opened(folder: Path) -> None:
    (folder / "train/ant/0.png").write_bytes(b"damaged")
    source = open_image_folder(folder, None)
    assert source.train.read(np.array([1, 2])).shape == (2, 3, 5, 5)
    with pytest.raises(UserError, match=r"train/ant/0\.png: not a readable image"):
        source.train.read(np.array([0, 1]))


def test_hidden_files_and_notes_beside_classes_are_ignored(folder: Path) -> None:
    (folder / "train/.DS_Store").write_bytes(b"x")
    (folder / "train/ant/.thumbnail.png").write_bytes(b"x")
    (folder / "train/README.md").write_text("x")
    assert len(open_image_folder(folder, None).train.labels) == 6


@pytest.mark.parametrize("name", [".net", "recycler", "lost+found"])
def test_a_class_that_is_named_as_litter_is_told(folder: Path, name: str) -> None:
    assert open_image_folder(folder, None).note is None
    shutil.copytree(folder / "train/ant", folder / "train" / name)
    (folder / "test/.cache").mkdir()
    (folder / "test/.cache/._1.png").write_bytes(b"x")
    source = open_image_folder(folder, None)
    assert source.classes == ("ant", "bee")
    assert source.note == (
        f"{folder / 'train'}: {name} (images: 3) not used, being named as what systems leave "
        "in folders"
    )


def test_suffixes_in_capitals_and_jpeg_and_webp(folder: Path) -> None:
    image = Image.open(folder / "train/ant/0.png")
    image.save(folder / "train/ant/a.JPG")
    image.save(folder / "train/ant/b.jpeg")
    image.save(folder / "train/ant/c.webp", lossless=True)
    source = open_image_folder(folder, None)
    assert source.train.read(np.arange(6)).shape == (6, 3, 5, 5)
    # In the order of names: 0.png 1.png 2.png a.JPG b.jpeg c.webp.
    np.testing.assert_array_equal(
        source.train.read(np.array([5]))[0], pixels_of(folder / "train/ant/0.png")
    )


def remove(path: Path) -> None:
    for child in path.iterdir():
        child.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (
        lambda f: (f / "test").rename(f / "other"),
        r"images: found other, train; allowed: a test split called test, .*val.*test_split",
    ),
    "no train": (
        lambda f: (f / "train").rename(f / "other"),
        r"images: found other, test; allowed: a training split called train, training",
    ),
    "empty class": (lambda f: remove(f / "test/bee"), r"test/bee: empty"),
    "class only in train": (
        lambda f: (f / "test/bee").rename(f / "test/.bee"),
        r"test: class 'bee' of .*train is missing",
    ),
    "class only in test": (
        lambda f: (f / "train/bee").rename(f / "train/.bee"),
        r"train: class 'bee' of .*test is missing",
    ),
    "empty train": (
        lambda f: [(f / "train" / n).rename(f / "train" / f".{n}") for n in ("ant", "bee")],
        r"train: empty",
    ),
    "stray file": (lambda f: (f / "train/ant/x.txt").write_text("x"), r"train/ant/x\.txt: not an"),
    "nested folder": (lambda f: (f / "train/ant/x.png").mkdir(), r"train/ant/x\.png: not an image"),
    "unsupported": (lambda f: (f / "train/ant/x.bmp").write_text("x"), r"x\.bmp: .*\.png \.jpg"),
    "no class": (lambda f: (f / "train/x.png").write_text("x"), r"x\.png: image outside a class"),
    "broken link": (lambda f: (f / "test/ant/x.png").symlink_to("absent"), r"x\.png: not an image"),
    "leak": (
        lambda f: (f / "test/ant/x.png").symlink_to(f / "train/ant/0.png"),
        r"test/ant/x\.png: the same file as .*train/ant/0\.png",
    ),
    "two classes": (
        lambda f: (f / "train/bee/x.png").hardlink_to(f / "train/ant/0.png"),
        r"train/bee/x\.png: the same file as .*train/ant/0\.png",
    ),
    "link to itself": (
        lambda f: (f / "test/ant/x.png").symlink_to(f / "test/ant/x.png"),
        r"x\.png: ",
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_folders_name_the_culprit(folder: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_image_folder(folder, None)
    assert "\n" not in str(caught.value)


def test_a_file_linked_twice_within_its_class_is_allowed(folder: Path) -> None:
    (folder / "train/ant/x.png").symlink_to(folder / "train/ant/0.png")
    assert len(open_image_folder(folder, None).train.labels) == 7


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.path: found .*nowhere"):
        open_image_folder(tmp_path / "nowhere", None)


def test_a_fifo_among_the_images_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "train/ant/x.png")
    with pytest.raises(UserError, match=r"train/ant/x\.png: not an image"):
        open_image_folder(folder, None)


@pytest.mark.parametrize(
    "name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "ehthumbs.db", "Icon\r"]
)
def test_what_systems_leave_beside_images_is_ignored(folder: Path, name: str) -> None:
    (folder / "train/ant" / name).write_bytes(b"x")
    (folder / "train" / name).write_bytes(b"x")
    assert len(open_image_folder(folder, None).train.labels) == 6


@pytest.mark.parametrize("name", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN"])
def test_folders_that_systems_leave_are_no_classes_and_no_splits(folder: Path, name: str) -> None:
    for place in (folder, folder / "train", folder / "test/ant"):
        (place / name).mkdir()
        (place / name / ("0.txt" if place == folder / "train" else "0.png")).write_bytes(b"x")
    source = open_image_folder(folder, None)
    assert source.classes == ("ant", "bee")
    assert source.note is None


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("in_train", "in_test"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_class_is_one_in_either_unicode_form(folder: Path, in_train: str, in_test: str) -> None:
    (folder / "train/bee").rename(folder / "train" / in_train)
    (folder / "test/bee").rename(folder / "test" / in_test)
    source = open_image_folder(folder, None)
    assert source.classes == ("ant", COMPOSED)
    assert source.test.labels.tolist() == [0, 0, 1, 1]


def test_two_forms_of_one_class_in_one_split_are_told_apart(folder: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (folder / "train" / name).mkdir()
        (folder / "train" / name / "0.png").write_bytes(b"x")
    with pytest.raises(
        UserError, match="another folder is also called 'caf\u00e9', in another Uni"
    ):
        open_image_folder(folder, None)


def test_the_order_of_files_does_not_depend_on_their_unicode_form(folder: Path) -> None:
    pixels = {}
    for index, name in enumerate(("e\u0301", "\u00e9")):
        path = folder / "train/ant" / f"{name}.png"
        Image.fromarray(np.full((5, 5, 3), index + 1, dtype=np.uint8)).save(path)
        Image.fromarray(np.full((5, 5, 3), 9, dtype=np.uint8)).save(path.with_name("f.png"))
        pixels[name] = open_image_folder(folder, None).train.read(np.arange(5))[:, 0, 0, 0]
        path.unlink()
    one, other = pixels.values()
    assert (one[3:].tolist(), other[3:].tolist()) == ([9, 1], [9, 2])  # f before é in both


def test_it_says_which_of_several_splits_is_the_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert open_image_folder(folder, None).note == (
        f"{folder}: runs train on train and are tested on val (dataset.test_split chooses)"
    )
    shutil.copytree(folder / "val", folder / "test")
    (folder / "test/ant/0.png").unlink()
    both = open_image_folder(folder, None)
    assert len(both.test.labels) == 3
    assert both.note == (
        f"{folder}: runs train on train and are tested on test; val not used "
        "(dataset.test_split chooses)"
    )
    chosen = open_image_folder(folder, None, test_split="val")
    assert len(chosen.test.labels) == 4
    assert chosen.note == f"{folder}: runs train on train and are tested on val; test not used"
    shutil.rmtree(folder / "test")
    assert open_image_folder(folder, None, test_split="val").note is None


def test_a_folder_of_many_classes_gives_a_short_message(folder: Path) -> None:
    for index in range(20):
        (folder / "train" / f"class {index:02}").mkdir()
    with pytest.raises(UserError, match=r"found ant, bee, .*, class 07 and 12 more; allowed"):
        open_image_folder(folder / "train", None)


@pytest.mark.parametrize("name", ["valid", "testing", "Test", "dev", "VALIDATION"])
@pytest.mark.parametrize("train", ["train", "training", "Train"])
def test_common_names_of_splits(folder: Path, train: str, name: str) -> None:
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / name)
    source = open_image_folder(folder, None)
    assert (len(source.train.labels), len(source.test.labels)) == (6, 4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("holdout", r"dataset\.test_split: found 'holdout'; allowed here: test"),
        ("train", r"dataset\.test_split: found 'train'; allowed here: test"),
    ],
)
def test_a_split_that_is_not_there(folder: Path, asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_image_folder(folder, None, test_split=asked)
