"""What is told of a data set before it is prepared is what preparing makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import DatasetConfig
from smallbatch.data.expected import expected_meta
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"subset": 101, "test_subset": 33, "validation_fraction": 0.15},
        {"image_size": 12, "validation_fraction": 0.1},
    ],
)
def test_digits(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = DatasetConfig(name="d", source="digits", **settings)
    folder = tmp_path / "prepared/d"
    guess, known = expected_meta(config, folder)
    assert not known
    meta = prepare(config, tmp_path)
    assert guess.counts == meta.counts
    assert (guess.channels, guess.height, guess.width) == (meta.channels, meta.height, meta.width)
    assert len(guess.classes) == len(meta.classes)
    assert expected_meta(config, folder) == (meta, True)
    other = config.model_copy(update={"subset": 500, "validation_fraction": 0.0})
    changed, known = expected_meta(other, folder)  # what is prepared is of another configuration
    assert not known
    assert changed.counts["train"] == 500


def test_cifar() -> None:
    config = DatasetConfig(name="c", source="cifar100", subset=2500)
    meta, known = expected_meta(config, Path("nowhere"))
    assert not known
    assert meta.counts == {"train": 2500, "validation": 0, "test": 10_000}
    assert (meta.channels, meta.height, len(meta.classes)) == (3, 32, 100)


def test_other_sources_must_be_prepared_first(tmp_path: Path) -> None:
    config = DatasetConfig(name="own", source="image_folder", path="images")
    with pytest.raises(UserError, match="run `smallbatch prepare` first"):
        expected_meta(config, tmp_path / "own")
