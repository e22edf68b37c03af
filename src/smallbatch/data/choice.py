"""Which of a source's splits trains, and on which runs are tested."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smallbatch.errors import UserError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval")  # the first is taken
_NAMED = 10  # in a message: where someone names the folder of the classes, there may be thousands


@dataclass(frozen=True)
class Choice:
    """The splits that are used.

    Attributes:
        train: The name of the training split, as the source has it.
        test: That of the test split; None: there is none, and one is held out.
        others: The names of those that are not used.
        note: A line that says so, if one might expect something else.
    """

    train: str
    test: str | None
    others: tuple[str, ...]
    note: str | None


def choose(
    where: Path, found: Sequence[str], test_split: str | None, *, held_out: bool = False
) -> Choice:
    """Chooses by the common names, whatever their case.

    Args:
        where: The folder, for errors and the note.
        found: The names of its splits.
        test_split: The name that the configuration asks for.
        held_out: The test split is held out of the training split, which may have any name if it
            is the only one.

    Raises:
        UserError: There is no such split, or a test split where one is to be held out.
    """
    train = _first(found, TRAIN_NAMES)
    if held_out:
        return _without_test(where, found, train)
    if train is None:
        raise UserError(
            f"{where}: found {listed(found)}; allowed: a training split called "
            f"{listed(TRAIN_NAMES)}, or dataset.test_fraction where there are no splits"
        )
    rest = [name for name in found if name != train]
    test = _first(rest, TEST_NAMES if test_split is None else (test_split,))
    if test is None and test_split is not None:
        raise UserError(f"dataset.test_split: found {test_split!r}; allowed here: {listed(rest)}")
    if test is None:
        raise UserError(
            f"{where}: found {listed(found)}; allowed: a test split called {listed(TEST_NAMES)}, "
            "or dataset.test_split, or dataset.test_fraction, which holds one out"
        )
    others = tuple(name for name in rest if name != test)
    note = None
    if others or (test_split is None and test.lower() != TEST_NAMES[0]):
        left_out = f"; {listed(others)} not used" if others else ""
        note = f"{where}: runs train on {train} and are tested on {test}{left_out}"
        note += " (dataset.test_split chooses)" if test_split is None else ""
    return Choice(train, test, others, note)


def has_test(found: Sequence[str]) -> bool:
    """Whether one of these names is that of a split on which runs may be tested."""
    return any(name.lower() in TEST_NAMES for name in found)


def has_training(found: Sequence[str]) -> bool:
    """Whether one of these names is that of a training split."""
    return any(name.lower() in TRAIN_NAMES for name in found)


def _without_test(where: Path, found: Sequence[str], train: str | None) -> Choice:
    """The choice where a test split is held out, and must not be there already."""
    test = _first(found, TEST_NAMES)
    if test is not None:
        raise UserError(
            f"dataset.test_fraction: found with {where}, which has the test split {test}; "
            "allowed: where there is none, so leave the key out or move the split elsewhere"
        )
    if train is None and len(found) == 1:
        train = found[0]
    if train is None:
        raise UserError(
            f"{where}: found {listed(found)}; allowed: a training split called "
            f"{listed(TRAIN_NAMES)}, or one split only"
        )
    others = tuple(name for name in found if name != train)
    note = f"{where}: runs train on {train}; {listed(others)} not used" if others else None
    return Choice(train, None, others, note)


def _first(found: Sequence[str], names: Sequence[str]) -> str | None:
    for name in names:
        same = [other for other in found if other.lower() == name.lower()]
        if same:
            return name if name in same else same[0]
    return None


def listed(names: Sequence[str]) -> str:
    """Names in a message: the first few, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED]) or 'none'}{more}"
