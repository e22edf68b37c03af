"""What a data set will be like, told from its configuration before it is prepared."""

from pathlib import Path

from smallbatch.config.params import DatasetConfig
from smallbatch.data.prepared import Meta, load_meta
from smallbatch.errors import UserError

# Training images, test images, channels, pixels, classes of the sources that are always the same.
_FIXED = {
    "digits": (1437, 360, 1, 8, 10),
    "cifar10": (50_000, 10_000, 3, 32, 10),
    "cifar100": (50_000, 10_000, 3, 32, 100),
}


def expected_meta(config: DatasetConfig, directory: Path) -> tuple[Meta, bool]:
    """Describe a data set: as it was prepared, or as it will be.

    Args:
        config: its configuration.
        directory: where it is or will be prepared, ``data/prepared/<dataset>``.

    Returns:
        The description, and whether it is that of the prepared data; otherwise its mean, std,
        fingerprint and classes' names stand for what is not known yet.

    Raises:
        UserError: it is not prepared, and only its images tell their shape.
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
