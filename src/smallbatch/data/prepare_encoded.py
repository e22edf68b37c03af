"""Prepares a data set whose images are kept encoded; see `encoded`."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallbatch import durable
from smallbatch.config.params import DatasetConfig
from smallbatch.data.decoder import decoder_digest
from smallbatch.data.encode import Stored, encode
from smallbatch.data.encoded import INDEX, EncodedDataset, index_digest, load_encoded
from smallbatch.data.encoded_files import Shards
from smallbatch.data.expected import settings_digest
from smallbatch.data.files import listing
from smallbatch.data.images import in_threads, pillow_as_told
from smallbatch.data.label_file import NAMES_OF_NUMBERS
from smallbatch.data.prepared import (
    Meta,
    as_json,
    fingerprint,
    replace_prepared,
    write_file,
    write_meta,
)
from smallbatch.data.rows import (
    Digests,
    check_classes,
    check_parts,
    select,
    select_train,
    tell_of_shared,
)
from smallbatch.data.scratch import remove_unfinished, unfinished_folder
from smallbatch.data.selection import by_content
from smallbatch.data.sources import label_file, source_files
from smallbatch.data.split import Rows, Source, Split
from smallbatch.errors import UserError

SHARD = 2**28
"""Bytes of images with which a shard is full."""
_RATIO = 8 / 7
"""The short side of images that are kept over the side of crops, as 256 is to 224."""
_AT_ONCE = 8  # images that a thread takes at a time: of photographs, each may have megabytes


def short_side(config: DatasetConfig) -> int:
    """The largest short side in pixels with which images are kept; ``image_size`` must be set."""
    return config.short_side or round((config.image_size or 0) * _RATIO)


def prepare_encoded(
    config: DatasetConfig,
    source: Source,
    root: Path,
    say: Callable[[str], object],
    told: Callable[[int, int], object],
) -> Meta:
    """Prepares a data set whose images are kept encoded; the arguments are those of `prepare`.

    The training split of the source becomes shards called ``train``, and its test split ``test``.
    Which training images are the validation split is chosen by their content and stands in the
    index alone. What is finished when the process is killed is kept, and the same call goes on;
    one that has nothing to do leaves the files alone.

    Raises:
        UserError: The source or an option is wrong, or the folder can't be written.
    """
    check_classes(source)
    pool = np.union1d(*select_train(config, source))
    test = select(source.test, source.classes, config.test_subset, "test_subset", config.seed)
    directory = root / "prepared" / config.name
    note = directory.parent / f".{config.name}.made_from"
    try:
        key = _key(config, root)
        if (there := _unchanged(directory, note, key)) is not None:
            say(f"{config.name}: settings and files unchanged, so what is prepared is kept")
            _tell(there, say)
            remove_unfinished(directory.parent, config.name)
            return there.meta
        with unfinished_folder(directory.parent, config.name, key) as folder:
            new, notes = folder / "new", folder / "notes"
            for path in (new, notes):
                path.mkdir(exist_ok=True)
            shards = [Shards(new, notes, it, source.classes, SHARD) for it in ("train", "test")]
            _write(config, source, (pool, test), shards, told)
            meta = _describe(config, source, shards)
            _tell(load_encoded(new), say)
            shutil.rmtree(folder / "old", ignore_errors=True)  # of a process killed at its end
            durable.write(note, _made(new, key))
            replace_prepared(new, directory, aside=folder / "old")
    except OSError as error:
        raise UserError(
            f"{error.filename or directory}: cannot prepare {config.name} "
            f"({error.strerror or error}); the same command goes on from what is finished"
        ) from error
    return meta


def _key(config: DatasetConfig, root: Path) -> str:
    """What shards are made from: settings, files, and what encodes."""
    labels = label_file(config, root)
    names = labels and labels.with_name(NAMES_OF_NUMBERS)
    files = (source_files(config, root), labels, names if names and names.exists() else None)
    made_from = [
        settings_digest(config),
        [listing(it) for it in files if it is not None],
        [decoder_digest(), SHARD],
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _unchanged(directory: Path, note: Path, key: str) -> EncodedDataset | None:
    """The data set that is there, if it is whole and was made from the same."""
    try:
        noted = durable.read(note)
        return load_encoded(directory) if noted == _made(directory, key) else None
    except (OSError, UserError):
        return None


def _made(directory: Path, key: str) -> bytes:
    """The content of the note on a data set: what it was made from, and which it is.

    It lies beside the data set, whose own files are the same wherever and whenever they are made.
    """
    meta = hashlib.sha256(durable.read(directory / "meta.json")).hexdigest()
    return f"{key} {meta}\n".encode()


def _write(
    config: DatasetConfig,
    source: Source,
    rows: tuple[Rows, Rows],
    shards: list[Shards],
    told: Callable[[int, int], object],
) -> None:
    """Writes the shards of both splits."""
    total, before = sum(map(len, rows)), 0
    for split, chosen, into in zip((source.train, source.test), rows, shards, strict=True):
        images = partial(_images, config, split, chosen)
        with pillow_as_told():
            into.write(split.labels[chosen], images, lambda n, b=before: told(b + n, total))
        before += len(chosen)


def _images(config: DatasetConfig, split: Split, rows: Rows, first: int) -> Generator[Stored]:
    assert split.encoded is not None  # noqa: S101 - sources of which images are kept encoded
    one = partial(encode, short_side=short_side(config), max_megapixels=config.max_megapixels)
    return in_threads(one, split.encoded(rows[first:]), _AT_ONCE)


def _describe(config: DatasetConfig, source: Source, shards: list[Shards]) -> Meta:
    """Parts the splits, and writes the index and the description of a data set's shards."""
    names = sorted(path.name for path in shards[0].folder.glob("*.parquet"))
    pool, test = (_rows(each, names) for each in shards)
    held_out = np.zeros(len(pool), dtype=bool)
    if config.validation_fraction:
        count = round(config.validation_fraction * len(pool))
        held_out = by_content(pool["label"], pool["digest"], count, seed=config.seed)
        kept, chosen = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        check_parts(config, source.classes, pool["label"], kept, chosen)
    splits = {"train": pool[~held_out], "validation": pool[held_out], "test": test}
    mean, std = _statistics(shards[0], ~held_out)
    side, size = short_side(config), config.image_size or 0
    arrays = {
        f"{split}_{field}": rows[field]
        for split, rows in splits.items()
        for field in ("label", "digest")
    }
    meta = Meta(
        name=config.name,
        source=config.source,
        classes=source.classes,
        channels=3,
        height=size,
        width=size,
        mean=mean,
        std=std,
        counts={split: len(rows) for split, rows in splits.items()},
        fingerprint=fingerprint(source.classes, arrays | {"sides": np.array([size, side])}),
        scale=config.scale,
        short_side=side,
    )
    _write_index(config, meta, np.concatenate([*splits.values()]), shards[0].folder, names)
    return meta


def _write_index(
    config: DatasetConfig, meta: Meta, rows: npt.NDArray[np.void], folder: Path, names: list[str]
) -> None:
    write_file(folder / "index.npy", lambda file: np.save(file, rows))
    sizes = {name: (folder / name).stat().st_size for name in names}
    content = as_json(meta) | {"settings": settings_digest(config), "shards": sizes}
    content = json.loads(json.dumps(content))  # as it is read
    write_meta(folder, content | {"digest": index_digest(content, rows)})


def _rows(shards: Shards, names: list[str]) -> npt.NDArray[np.void]:
    """Rows of the index from the notes on a split's shards."""
    found = list[npt.NDArray[np.void]]()
    for number, part in enumerate(shards.parts()):
        rows = np.empty(len(part), INDEX)
        for field in ("label", "offset", "length", "digest"):
            rows[field] = part[field]
        rows["shard"] = names.index(shards.name(number))
        found.append(rows)
    return np.concatenate(found)


def _tell(data: EncodedDataset, say: Callable[[str], object]) -> None:
    held_out = data.test.digest[:0] if data.validation is None else data.validation.digest
    splits = {"test": data.test.digest, "validation": held_out, "training": data.train.digest}
    tell_of_shared({name: _texts(each) for name, each in splits.items()}, "byte by byte", say)


def _texts(digests: npt.NDArray[np.uint8]) -> Digests:
    return digests.view(f"S{digests.shape[1]}").reshape(-1)


def _statistics(
    shards: Shards, used: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of the used images' pixels over 255.

    From exact sums, so that the order of a summation has no effect; see
    `prepared.channel_statistics`.
    """
    count, sums, squares, start = 0, [0] * 3, [0] * 3, 0
    for part in shards.parts():
        some = part[used[start : start + len(part)]]
        start += len(part)
        count += sum(some["pixels"].tolist())
        for channel in range(3):
            sums[channel] += sum(some["sums"][:, channel].tolist())
            squares[channel] += sum(some["squares"][:, channel].tolist())
    variances = (count * q - s**2 for s, q in zip(sums, squares, strict=True))
    mean = tuple(s / (255 * count) for s in sums)
    return mean, tuple(math.sqrt(it / (255 * count) ** 2) for it in variances)
