"""What a configuration says of a data set, before it is prepared and when it is used."""

import hashlib
import json
from pathlib import Path

from smallbatch.config.params import DatasetConfig
from smallbatch.data.prepared import Meta, load_meta, settings_of
from smallbatch.errors import UserError

# Sources that never change: training images, test images, channels, pixels, classes.
_FIXED = {
    "digits": (1437, 360, 1, 8, 10),
    "cifar10": (50_000, 10_000, 3, 32, 10),
    "cifar100": (50_000, 10_000, 3, 32, 100),
}


def expected_meta(config: DatasetConfig, directory: Path) -> tuple[Meta, bool]:
    """Describe a data set: as it was prepared, or as it will be.

    Args:
        config: The configuration.
        directory: The folder where it is or will be prepared, ``data/prepared/<dataset>``.

    Returns:
        The description, and whether it is that of prepared data. If not, mean, std, fingerprint and
        the classes' names are placeholders.

    Raises:
        UserError: The data is not prepared with these settings, and the shape of its images is only
            known then.
    """
    if config.source not in _FIXED:
        try:
            meta = load_meta(directory)
        except UserError as error:
            raise UserError(
                f"{error}; the shape of its images is known from there alone"
            ) from error
        check_prepared(config, directory)
        return meta, True
    guess = _from_configuration(config)
    try:
        meta = load_meta(directory)
    except UserError:
        return guess, False
    return (meta, True) if _is_prepared_with(config, meta, directory) else (guess, False)


def check_prepared(config: DatasetConfig, directory: Path) -> None:
    """Refuse data that were prepared with other settings.

    Args:
        config: The configuration.
        directory: The folder of the prepared data, ``data/prepared/<dataset>``.

    Raises:
        UserError: They were, or they are not prepared.
    """
    if not _is_prepared_with(config, load_meta(directory), directory):
        raise UserError(
            f"{directory}: prepared with other settings than the present dataset.*; "
            "run `smallbatch prepare`"
        )


def settings_digest(config: DatasetConfig) -> str:
    """SHA-256 (hex) of the settings on which prepared data depend, but for their name.

    Those with a default value are left out, so that a new option leaves it as it was.
    """
    settings = config.model_dump(exclude={"name", "max_megapixels"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _is_prepared_with(config: DatasetConfig, meta: Meta, directory: Path) -> bool:
    if meta.name != config.name:  # copied, or renamed
        return False
    digest = settings_of(directory)
    if digest is not None:
        return digest == settings_digest(config)
    # Prepared by an older version, which noted no settings: by what shows of them.
    if config.source in _FIXED:
        one, other = (
            (m.source, m.channels, m.height, m.width, m.counts, len(m.classes))
            for m in (meta, _from_configuration(config))
        )
        return one == other
    total = meta.counts["train"] + meta.counts["validation"]
    size = config.image_size
    return (
        meta.source == config.source
        and config.test_fraction is None  # which those versions did not know
        and config.subset in (None, total)
        and meta.counts["validation"] == round(config.validation_fraction * total)
        and config.test_subset in (None, meta.counts["test"])
        and (size is None or meta.height == meta.width == size)
    )


def _from_configuration(config: DatasetConfig) -> Meta:
    train, test, channels, pixels, classes = _FIXED[config.source]
    total = config.subset or train
    validation = round(config.validation_fraction * total)
    size = config.image_size or pixels
    return Meta(
        name=config.name,
        source=config.source,
        classes=tuple(str(i) for i in range(classes)),
        channels=channels,
        height=size,
        width=size,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        counts={
            "train": total - validation,
            "validation": validation,
            "test": config.test_subset or test,
        },
        fingerprint="",
    )
