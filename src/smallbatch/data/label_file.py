"""The classes of test images that lie side by side, from a file of labels, as of ImageNet."""

import io
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from smallbatch import durable
from smallbatch.data.files import composed
from smallbatch.errors import UserError
from smallbatch.text import count

_LARGEST = 2**28  # bytes; ImageNet's have up to 2.5e6
NAMES_OF_NUMBERS = "meta.mat"
"""The file beside a file of numbers that tells their classes."""
_KEY = "dataset.test_labels"
_FORMS = "lines of a file name and its class, or the class of each image in the order of file names"


def by_class(
    folder: Path, names: list[str], file: Path, classes: Collection[str]
) -> dict[str, list[str]]:
    """The images of each class that has some, in the order of the classes and of names.

    The file has lines of an image's name, with or without its suffix, and its class, parted by a
    comma or white space, where a first line may be a header and words after the class are left out;
    or the class of each image in the order of names; or numbers, whose classes the ``meta.mat`` of
    ImageNet's development kit beside it tells.

    Args:
        folder: The folder of the images, for errors.
        names: Their file names, sorted.
        file: The file of labels.
        classes: The names of the classes.

    Raises:
        UserError: The file cannot be read, an image or a line is missing, or a label is no class.
    """
    try:
        text = durable.read(file, _LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{_KEY}: found {file}, cannot read it ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{_KEY}: found {file}, which is not UTF-8; allowed: {_FORMS}") from error
    lines = [(at, composed(it.strip())) for at, it in enumerate(text.splitlines(), 1) if it.strip()]
    if not lines:
        raise UserError(f"{_KEY}: found {file}, which is empty; allowed: {_FORMS}")
    if all(line in classes or len(_fields(line)) == 1 for _, line in lines):
        labelled = _in_order(folder, names, file, lines, classes)
    else:
        labelled = _named(folder, names, file, lines, classes)
    found: dict[str, list[str]] = {name: [] for name in classes}
    for name, label in labelled:
        found[label].append(name)
    return {label: group for label, group in found.items() if group}


def _fields(line: str) -> list[str]:
    """A name and the rest; or a name alone."""
    return [it.strip().strip('"') for it in line.split("," if "," in line else None, 1)]


def _in_order(
    folder: Path,
    names: list[str],
    file: Path,
    lines: list[tuple[int, str]],
    classes: Collection[str],
) -> Iterator[tuple[str, str]]:
    """Each image's name and class, from a line for each in the order of names."""
    if len(lines) != len(names):
        raise UserError(
            f"{file}: found {count(len(lines), 'label')} for {count(len(names), 'image')} of "
            f"{folder}; allowed: one for each, in the order of file names"
        )
    known: dict[str, str] = {}
    if not all(line in classes for _, line in lines) and all(it.isdecimal() for _, it in lines):
        known = _wnids(file)
    for name, (at, line) in zip(names, lines, strict=True):
        yield name, _checked(file, at, known.get(line, line), classes)


def _named(
    folder: Path,
    names: list[str],
    file: Path,
    lines: list[tuple[int, str]],
    classes: Collection[str],
) -> Iterator[tuple[str, str]]:
    """Each image's name and class, from lines that name both."""
    stems = Counter(Path(composed(name)).stem for name in names)
    known = {stem: name for name in names if stems[stem := Path(composed(name)).stem] == 1}
    known |= {composed(name): name for name in names}
    labels: dict[str, str] = {}
    most = 1 + max(name.count(" ") for name in classes)
    for position, (at, line) in enumerate(lines):
        first, label = (*_fields(line), "")[:2]
        name = known.get(first.rpartition("/")[2])
        label = label if label in classes else _begun(label, classes, most)
        if position == 0 and name is None and label not in classes:
            continue  # a header
        if name is None:
            raise UserError(
                f"{file}, line {at}: found the image {first!r}, which {folder} does not have; "
                "allowed: the names of its images"
            )
        if name in labels:
            raise UserError(f"{file}, line {at}: found {first!r} again; allowed: each image once")
        labels[name] = _checked(file, at, label, classes)
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(
            f"{folder / missing[0]}: found no label in {file}; allowed: a line for each image"
        )
    return ((name, labels[name]) for name in names)


def _begun(label: str, classes: Collection[str], most: int) -> str:
    """The longest class, of up to so many words, with which a label begins; or its first word."""
    words = label.split(" ", most)[:most]
    begun = (" ".join(words[:n]) for n in range(len(words), 0, -1))
    return next((it for it in begun if it in classes), words[0])


def _checked(file: Path, at: int, label: str, classes: Collection[str]) -> str:
    if label not in classes:
        raise UserError(
            f"{file}, line {at}: found the label {label!r}; allowed: the name of a class, which "
            "is a folder of the training split"
        )
    return label


def _wnids(file: Path) -> dict[str, str]:
    """The classes of ImageNet's numbers, from the ``meta.mat`` beside a file."""
    meta = file.with_name(NAMES_OF_NUMBERS)
    try:
        content = io.BytesIO(durable.read(meta, _LARGEST))
    except OSError as error:
        raise UserError(
            f"{_KEY}: found numbers in {file}, and not the meta.mat that names their classes "
            f"({error.strerror}); allowed: that beside it, {_FORMS}"
        ) from error
    try:
        from scipy.io import loadmat

        synsets: Any = loadmat(content, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    # A damaged file may make SciPy's parser raise almost any exception.
    except Exception as error:
        raise UserError(
            f"{meta}: not the meta.mat of ImageNet's development kit ({type(error).__name__}); "
            f"allowed for {_KEY}: {_FORMS}"
        ) from error
