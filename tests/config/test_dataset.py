"""The settings of a data set, as they are written and digested."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from smallbatch.config.dataset import DatasetConfig
from smallbatch.config.params import parse_dataset
from smallbatch.errors import UserError

OWN = {"name": "own", "source": "image_folder", "path": "images", "image_size": 32,
       "test_split": "val", "validation_fraction": 0.1, "seed": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        (OWN, "c97840324f7beb8b"),
        ({"name": "digits", "source": "digits"}, "b675349aca1dad07"),
    ],
)
def test_what_is_written_without_a_test_fraction_is_as_before_there_was_one(
    settings: dict[str, Any], digest: str
) -> None:
    """Single runs keep their images below this digest."""
    config = DatasetConfig.model_validate(settings)
    written = config.model_dump_json()
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == digest
    assert "test_fraction" not in config.model_dump()


def test_a_test_fraction_is_written_and_read_back() -> None:
    config = DatasetConfig(name="own", source="image_folder", path="x", test_fraction=0.25)
    assert config.model_dump()["test_fraction"] == 0.25
    assert DatasetConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump(exclude_defaults=True, exclude={"name"}) == {
        "source": "image_folder", "path": "x", "test_fraction": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, "0.2", True])
def test_a_fraction_that_leaves_a_split_empty_is_refused(fraction: object) -> None:
    raw = {"name": "own", "source": "parquet", "path": "x", "test_fraction": fraction}
    with pytest.raises(UserError, match=r"params\.yaml: test_fraction: found"):
        parse_dataset(raw, "params.yaml")
