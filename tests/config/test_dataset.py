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
def test_what_is_written_without_keys_that_came_later_is_as_before_there_were_any(
    settings: dict[str, Any], digest: str
) -> None:
    """Single runs keep their images below this digest."""
    config = DatasetConfig.model_validate(settings)
    written = config.model_dump_json()
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == digest
    later = {"test_fraction", "storage", "short_side", "test_labels"}
    assert not later & config.model_dump().keys()


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


def test_keys_that_came_later_are_written_and_read_back() -> None:
    later = {"storage": "encoded", "short_side": 256, "test_labels": "labels.txt"}
    config = DatasetConfig.model_validate(OWN | later)
    assert later.items() <= config.model_dump().items()
    assert DatasetConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("storage", "jpeg", "storage: found 'jpeg', allowed: auto, pixels, encoded"),
        ("short_side", 3, "short_side: found 3, allowed: greater than or equal to 4"),
        ("short_side", 256.0, r"short_side: found 256\.0, allowed: a"),
        ("test_labels", "", "test_labels: found ''"),
    ],
)
def test_wrong_values_are_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}"):
        parse_dataset(OWN | {key: value}, "params.yaml")
