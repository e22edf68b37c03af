"""Which Parquet files of a folder are the shards of which split."""

import os
import re
from pathlib import Path

from smallbatch.data.choice import has_training
from smallbatch.data.files import below, visible
from smallbatch.errors import UserError

_SHARD = re.compile(  # group: the split
    r"([A-Za-z]\w*?)(?:-.*|[_.]?\d+(?:[-_.]of[-_.]\d+)?)?\.parquet", re.IGNORECASE
)
_OF = re.compile(
    r"(\d+)[-_. ]?of[-_. ]?(\d+)", re.IGNORECASE
)  # groups: a shard's number, of how many
_NAMED = 3  # in a message

# A split's shards by layout: a folder, or files whose names go on alike after the split's.
Layouts = dict[str, list[Path]]


def find_shards(folder: Path) -> dict[str, Layouts]:
    """The shards of each split in order; those of the one folder inside, if only that has some.

    Raises:
        UserError: Several folders inside have a training split.
        OSError: A folder cannot be read.
    """
    found = _splits_in(folder)
    if has_training(list(found)):
        return found
    inside = {
        Path(each.path): _splits_in(Path(each.path)) for each in visible(folder) if each.is_dir()
    }
    whole = {path: splits for path, splits in inside.items() if has_training(list(splits))}
    if len(whole) > 1:
        raise UserError(
            f"dataset.path: found {folder}, which has {len(whole)} data sets; "
            f"allowed: one of {', '.join(str(path) for path in whole)}"
        )
    return next(iter(whole.values()), found)


def complete(folder: Path, split: str, layouts: Layouts) -> list[Path]:
    """The shards of a split, complete and of one layout: two may hold the same images twice.

    Raises:
        UserError: They are not, as far as their names say.
        OSError: A folder cannot be read.
    """
    if len(layouts) > 1:
        names = [str(path.relative_to(folder)) for path, *_ in layouts.values()]
        raise UserError(
            f"dataset.path: found {folder}, which has the split {split} in {len(layouts)} layouts "
            f"({', '.join(names)}); allowed: one, so move the others elsewhere"
        )
    ((layout, paths),) = layouts.items()
    if layout == "a folder":
        for path in _parquet_below(paths[0].parent):
            if path not in paths:
                raise UserError(
                    f"{path}: found a shard in a folder within the split {split}; "
                    f"allowed: shards in {paths[0].parent} itself"
                )
    _check_complete(split, paths)
    return paths


def left_out(folder: Path, found: dict[str, Layouts]) -> str | None:
    """A line that names the Parquet files of a folder that belong to no split, if there are some.

    Raises:
        OSError: A folder cannot be read.
    """
    known = {path for layouts in found.values() for paths in layouts.values() for path in paths}
    names = [str(path.relative_to(folder)) for path in _parquet_below(folder) if path not in known]
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{folder}: {', '.join(names[:_NAMED])}{more} not used, being of no split"


def _splits_in(folder: Path) -> dict[str, Layouts]:
    found: dict[str, Layouts] = {}
    for entry in visible(folder):
        path = Path(entry.path)
        if entry.is_dir():
            inside = [Path(each.path) for each in visible(path) if _is_parquet(each)]
            if inside:
                found.setdefault(entry.name, {})["a folder"] = inside
        elif match := _SHARD.fullmatch(entry.name):
            rest = re.sub(r"\d.*", "0", path.stem.removeprefix(match[1]))
            layout = "-" if rest.startswith("-") else rest
            found.setdefault(match[1], {}).setdefault(layout, []).append(path)
    return found


def _parquet_below(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in below(folder) if _is_parquet(entry)]


def _is_parquet(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".parquet") and not entry.is_dir()


def _check_complete(split: str, paths: list[Path]) -> None:
    stated = [match for path in paths if (match := _OF.search(path.stem))]
    if stated:
        totals, numbers = {int(match[2]) for match in stated}, [int(match[1]) for match in stated]
        expected = max(totals)
        if len(totals) > 1 or len(paths) != expected or not _without_gap(numbers):
            raise UserError(
                f"{paths[0]}: its name says {int(stated[0][2])} shards, found {len(paths)}; "
                "allowed: every shard of one version of the split"
            )
        return
    numbers = _numbers(split, [path.stem for path in paths])
    if numbers is not None and not _without_gap(numbers):
        names = [path.name for path in paths]
        shown = names if len(names) <= 2 * _NAMED else [*names[:_NAMED], "…", *names[-_NAMED:]]
        raise UserError(
            f"{paths[0].parent}: found the shards {', '.join(shown)} of the split {split}; "
            "allowed: one file, or numbers from 0 or 1 that each come once and leave no gap"
        )


def _numbers(split: str, stems: list[str]) -> list[int] | None:
    """The numbers of shards, behind what their names have in common; None: they count nothing.

    A shard without a number is -1. Years and dates may begin anywhere: of them only those that
    come twice are returned.
    """
    if len(stems) == 1:
        match = re.fullmatch(rf"(?:{re.escape(split)})?[-_.]?(\d+)", stems[0])
        found = [match[1]] if match else []
    else:
        alike = os.path.commonprefix(stems)  # noqa: RUF071 - of names, not of paths
        common = re.sub(r"\d+$", "", alike)
        matches = [re.match(r"\d+", stem.removeprefix(common)) for stem in stems]
        found = [match[0] if match else "-1" for match in matches]
    dates = all(len(each) >= 4 and each[0] != "0" for each in found)
    return None if dates and len(set(found)) == len(found) else [int(each) for each in found]


def _without_gap(numbers: list[int]) -> bool:
    first = min(numbers)
    return first in (0, 1) and sorted(numbers) == list(range(first, first + len(numbers)))
