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
from PIL import features

from smallbatch.config.params import DatasetConfig
from smallbatch.data.encode import QUALITY, Stored, encode
from smallbatch.data.encoded import INDEX, index_digest
from smallbatch.data.encoded_files import Part, Shards
from smallbatch.data.expected import settings_digest
from smallbatch.data.files import listing
from smallbatch.data.images import in_threads, pillow_as_told
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
from smallbatch.data.scratch import unfinished_folder
from smallbatch.data.selection import by_content
from smallbatch.data.sources import source_files
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
    index alone. What is finished when the process is killed is kept, and the same call goes on.

    Raises:
        UserError: The source or an option is wrong, or the folder can't be written.
    """
    check_classes(source)
    pool = np.union1d(*select_train(config, source))
    test = select(source.test, source.classes, config.test_subset, "test_subset", config.seed)
    directory = root / "prepared" / config.name
    try:
        key = _key(config, source, root)
        with unfinished_folder(directory.parent, config.name, key) as folder:
            new, notes = folder / "new", folder / "notes"
            for path in (new, notes):
                path.mkdir(exist_ok=True)
            parts = _encoded(config, source, (pool, test), (new, notes), told)
            meta = _describe(config, source, parts, new, say)
            shutil.rmtree(folder / "old", ignore_errors=True)  # of a process killed at its end
            replace_prepared(new, directory, aside=folder / "old")
    except OSError as error:
        raise UserError(
            f"{error.filename or directory}: cannot prepare {config.name} "
            f"({error.strerror or error}); the same command goes on from what is finished"
        ) from error
    return meta


def _key(config: DatasetConfig, source: Source, root: Path) -> str:
    """What finished shards were made from: settings, files, labels, and what encodes."""
    files = source_files(config, root)
    labels = {"train": source.train.labels, "test": source.test.labels}
    made_from = [
        settings_digest(config),
        listing(files) if files else None,
        fingerprint(source.classes, labels),
        [features.version("pil"), features.version("libjpeg_turbo"), QUALITY, SHARD],
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def _encoded(
    config: DatasetConfig,
    source: Source,
    rows: tuple[Rows, Rows],
    folders: tuple[Path, Path],
    told: Callable[[int, int], object],
) -> dict[str, list[Part]]:
    """Writes the shards of both splits; the notes on them."""
    total = sum(map(len, rows))
    found: dict[str, list[Part]] = {}
    before = 0
    for name, split, chosen in zip(
        ("train", "test"), (source.train, source.test), rows, strict=True
    ):
        images = partial(_images, config, split, chosen)
        shards = Shards(*folders, name, source.classes, SHARD)
        with pillow_as_told():
            found[name] = shards.write(
                split.labels[chosen], images, lambda done, b=before: told(b + done, total)
            )
        before += len(chosen)
    return found


def _images(config: DatasetConfig, split: Split, rows: Rows, first: int) -> Generator[Stored]:
    assert split.encoded is not None  # noqa: S101 - sources of which images are kept encoded
    one = partial(encode, short_side=short_side(config), max_megapixels=config.max_megapixels)
    return in_threads(one, split.encoded(rows[first:]), _AT_ONCE)


def _describe(
    config: DatasetConfig,
    source: Source,
    parts: dict[str, list[Part]],
    folder: Path,
    say: Callable[[str], object],
) -> Meta:
    """Parts the splits, and writes the index and the description of a data set's shards."""
    shards = sorted(path.name for path in folder.glob("*.parquet"))
    pool, test = (_rows(parts[name], name, shards) for name in ("train", "test"))
    held_out = np.zeros(len(pool), dtype=bool)
    if config.validation_fraction:
        count = round(config.validation_fraction * len(pool))
        held_out = by_content(pool["label"], pool["digest"], count, seed=config.seed)
        kept, chosen = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        check_parts(config, source.classes, pool["label"], kept, chosen)
    splits = {"train": pool[~held_out], "validation": pool[held_out], "test": test}
    seen = {
        "test": _digests(splits["test"]),
        "validation": _digests(splits["validation"]),
        "training": _digests(splits["train"]),
    }
    tell_of_shared(seen, "byte by byte", say)
    mean, std = _statistics(np.concatenate(parts["train"])[~held_out])
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
    _write_index(config, meta, np.concatenate([*splits.values()]), folder, shards)
    return meta


def _write_index(
    config: DatasetConfig, meta: Meta, rows: npt.NDArray[np.void], folder: Path, shards: list[str]
) -> None:
    write_file(folder / "index.npy", lambda file: np.save(file, rows))
    sizes = {name: (folder / name).stat().st_size for name in shards}
    content = as_json(meta) | {"settings": settings_digest(config), "shards": sizes}
    content = json.loads(json.dumps(content))  # as it is read
    write_meta(folder, content | {"digest": index_digest(content, rows)})


def _rows(parts: list[Part], split: str, shards: list[str]) -> npt.NDArray[np.void]:
    """Rows of the index from the notes on a split's shards."""
    notes = np.concatenate(parts)
    rows = np.empty(len(notes), INDEX)
    for field in ("label", "offset", "length", "digest"):
        rows[field] = notes[field]
    first = next(index for index, name in enumerate(shards) if name.startswith(f"{split}-"))
    rows["shard"] = first + np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return rows


def _digests(rows: npt.NDArray[np.void]) -> Digests:
    digests = np.ascontiguousarray(rows["digest"])
    return digests.view(f"S{digests.shape[1]}").reshape(-1)


def _statistics(notes: Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of all pixels divided by 255.

    From exact sums, so that the order of a summation has no effect; see
    `prepared.channel_statistics`.
    """
    count = sum(notes["pixels"].tolist())
    mean, std = list[float](), list[float]()
    for channel in range(3):
        total, squares = (sum(notes[it][:, channel].tolist()) for it in ("sums", "squares"))
        mean.append(total / (255 * count))
        std.append(math.sqrt((count * squares - total**2) / (255 * count) ** 2))
    return tuple(mean), tuple(std)
