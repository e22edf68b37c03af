"""Describes a data set from its configuration, before it is prepared."""

from pathlib import Path

from smallbatch.config.params import DatasetConfig
from smallbatch.data.prepared import Meta, load_meta
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
        UserError: The data is not prepared, and the shape of its images is only known then.
    """
    if config.source not in _FIXED:
        try:
            return load_meta(directory), True
        except UserError as error:
            raise UserError(
                f"{directory}: not prepared, and a {config.source} source tells its shape only "
                f"then; run `smallbatch prepare` first ({error})"
            ) from error
    guess = _from_configuration(config)
    try:
        meta = load_meta(directory)
    except UserError:
        return guess, False
    described = [
        (m.source, m.channels, m.height, m.width, m.counts, len(m.classes)) for m in (meta, guess)
    ]
    return (meta, True) if described[0] == described[1] else (guess, False)


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
