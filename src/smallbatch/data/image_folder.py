"""The source ``image_folder``: ``train/<class>/*`` and ``test/<class>/*``.

If a test split is to be held out, also ``train/<class>/*`` alone, or ``<class>/*``. With a file of
labels also ``test/*``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallbatch.config.dataset import MEGAPIXELS
from smallbatch.data.choice import choose, has_test, has_training
from smallbatch.data.files import composed, litter, no_folder, visible
from smallbatch.data.held_out import hold_out
from smallbatch.data.images import decode_all
from smallbatch.data.label_file import by_class
from smallbatch.data.split import Encoded, Images, Rows, Source, Split
from smallbatch.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class _Folder:
    """One split's folder: its classes and, per class, its image files, all sorted by name.

    Files are told by their paths relative to the folder: there may be millions of them.
    """

    path: Path
    files: dict[str, list[str]]


def open_image_folder(
    path: Path,
    image_size: int | None,
    *,
    test_split: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    max_megapixels: int = MEGAPIXELS,
    test_labels: str | None = None,
) -> Source:
    """Lists a folder of images; the class names are the sorted names of its sub-folders.

    Names are compared in Unicode's composed form. What systems leave in folders (``Thumbs.db``, all
    that starts with a dot) is ignored; the note names such a folder if it holds images.

    Args:
        path: The folder with ``train/`` and ``test/``, or other common names of the two.
        image_size: Side of the square that images are resized to; None needs equal sizes.
        test_split: The name of the test split's folder; None: the first of the common names.
        test_fraction: The share that is held out as the test split, where there is none.
        seed: The data set's seed, by which it is drawn.
        max_megapixels: Larger images are refused.
        test_labels: The file, relative to ``path``, with the labels of test images that lie side by
            side; see `label_file.by_class`.

    Returns:
        The source; images are decoded when they are read.

    Raises:
        UserError: A folder is missing or empty, a class is missing from a split, a file is not
            an image, one file serves two classes or both splits, or there is a test split where
            one is to be held out.
    """
    if not path.is_dir():
        raise UserError(f"dataset.path: {no_folder(path)}; allowed: a folder")
    try:
        paths, note = _split_folders(path, test_split, held_out=test_fraction is not None)
        folders = [_list_split(paths[0], flat_key="")]
        folders += [_list_test(each, path, test_labels, folders[0]) for each in paths[1:]]
        _check_same_classes(folders[0], folders[-1])
        _check_no_shared_files(folders)
        notes = [note, *(_left_out(folder.path) for folder in folders)]
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot read it ({error.strerror})") from error
    classes = tuple(folders[0].files)
    splits = [_split(folder, image_size, max_megapixels) for folder in folders]
    if test_fraction is not None:
        splits = hold_out(splits[0], classes, test_fraction, seed)
    return Source(classes, *splits, note="; ".join(filter(None, notes)) or None)


def splits_in(path: Path) -> list[str]:
    """The names of a folder's splits; none if its sub-folders are classes.

    A sub-folder called like a split is a class if it holds no folders: one of trains, say.

    Raises:
        OSError: A folder cannot be read.
    """
    names = [each.name for each in visible(path) if each.is_dir()]
    called_so = [name for name in names if has_training([name]) or has_test([name])]
    return names if any(e.is_dir() for name in called_so for e in visible(path / name)) else []


def _split_folders(
    path: Path, test_split: str | None, *, held_out: bool
) -> tuple[list[Path], str | None]:
    """The folders of the training and the test split, or of all images; and a note on them."""
    names = [each.name for each in visible(path) if each.is_dir()]
    if held_out and not splits_in(path):
        return [path], None
    choice = choose(path, names, test_split, held_out=held_out)
    chosen = [name for name in (choice.train, choice.test) if name is not None]
    return [path / name for name in chosen], choice.note


def _list_test(folder: Path, root: Path, labels: str | None, train: _Folder) -> _Folder:
    """The test split, with folders of classes or with a file of labels."""
    if labels is None:
        return _list_split(folder, flat_key=", or dataset.test_labels, a file of their labels")
    names: list[str] = []
    for entry in visible(folder):
        if entry.is_dir():
            raise UserError(
                f"dataset.test_labels: found {labels!r} with {folder}, which has folders, such as "
                f"{entry.name}; allowed: where test images lie side by side"
            )
        if _is_named_as_image(entry.name):
            names.append(entry.name)
    if not names:
        raise UserError(f"{folder}: empty; allowed: images")
    return _Folder(folder, by_class(folder, names, root / labels, train.files))


def _list_split(folder: Path, *, flat_key: str) -> _Folder:
    files: dict[str, list[str]] = {}
    for entry in visible(folder):
        name = composed(entry.name)
        if entry.is_dir():
            if name in files:
                raise UserError(f"{entry.path}: another folder is also called {name!r}, in another "
                                "Unicode form; allowed: one folder for each class")  # fmt: skip
            files[name] = _list_class(Path(entry.path))
        elif _is_named_as_image(entry.name):
            raise UserError(
                f"{entry.path}: image outside a class; allowed: {folder}/<class>/*{flat_key}"
            )
    if not files:
        raise UserError(f"{folder}: empty; allowed: a folder of images for each class")
    return _Folder(folder, files)


def _list_class(folder: Path) -> list[str]:
    files: list[str] = []
    for entry in visible(folder):
        if not entry.is_file() or not _is_named_as_image(entry.name):
            raise UserError(f"{entry.path}: not an image; allowed: files {' '.join(SUFFIXES)}")
        files.append(f"{folder.name}/{entry.name}")
    if not files:
        raise UserError(f"{folder}: empty; allowed: at least one image a class")
    return files


def _left_out(folder: Path) -> str | None:
    """A line on folders named as systems name theirs that hold images: they may be classes."""
    found: list[str] = []
    for entry in litter(folder):
        try:
            names = [each.name for each in visible(Path(entry.path))] if entry.is_dir() else []
        except OSError:  # a system's own, such as lost+found
            continue
        if images := sum(map(_is_named_as_image, names)):
            found.append(f"{entry.name} (images: {images})")
    if not found:
        return None
    return f"{folder}: {', '.join(found)} not used, being named as what systems leave in folders"


def _is_named_as_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _check_same_classes(train: _Folder, test: _Folder) -> None:
    for has, lacks in ((train, test), (test, train)):
        missing = [name for name in has.files if name not in lacks.files]
        if missing:
            raise UserError(
                f"{lacks.path}: class {missing[0]!r} of {has.path} is missing; "
                "allowed: every class in both splits"
            )


def _check_no_shared_files(folders: list[_Folder]) -> None:
    """Refuses a file that links put into two classes or splits: a wrong label, or a leak."""
    groups = [(folder.path, group) for folder in folders for group in folder.files.values()]
    places: npt.NDArray[np.uint64] = np.empty(
        (sum(len(group) for _, group in groups), 2), np.uint64
    )
    at = 0
    for path, group in groups:
        for file in group:
            status = (path / file).stat()
            places[at] = status.st_dev, status.st_ino
            at += 1
    order = np.lexsort(places.T)
    again = np.flatnonzero((places[order][1:] == places[order][:-1]).all(axis=1))
    if not len(again):
        return
    files = [path / file for path, group in groups for file in group]
    for first, second in sorted((order[it], order[it + 1]) for it in again):
        if files[first].parent != files[second].parent:
            raise UserError(
                f"{files[second]}: the same file as {files[first]}; "
                "allowed: one class and one split"
            )


def _split(folder: _Folder, image_size: int | None, max_megapixels: int) -> Split:
    files = [file for group in folder.files.values() for file in group]
    sizes = [len(group) for group in folder.files.values()]

    def encoded(rows: Rows) -> Iterator[Encoded]:
        paths = (folder.path / files[row] for row in rows)
        return (Encoded(str(path), path) for path in paths)

    def read(rows: Rows) -> Images:
        return decode_all(encoded(rows), len(rows), image_size, max_megapixels)

    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    return Split(str(folder.path), labels, read, encoded)
