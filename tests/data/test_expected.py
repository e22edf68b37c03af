"""What is told of a data set before it is prepared is what preparing makes of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import DatasetConfig
from smallbatch.data.expected import check_prepared, expected_meta, settings_digest
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


def without_digest(folder: Path) -> None:
    """As an older version prepared it."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["settings"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("change", [{"seed": 1}, {"subset": 59}, {"scale": "small"}])
def test_data_prepared_with_other_settings_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    config = DatasetConfig(name="d", source="digits", subset=60, test_subset=40)
    prepare(config, tmp_path)
    folder = tmp_path / "prepared/d"
    check_prepared(config.model_copy(update={"max_megapixels": 1}), folder)  # a mere limit
    other = config.model_copy(update=change)
    with pytest.raises(UserError, match=r"d: prepared with other settings .*; run `smallbatch"):
        check_prepared(other, folder)
    assert not expected_meta(other, folder)[1]
    without_digest(folder)
    check_prepared(config, folder)
    if "subset" in change:
        with pytest.raises(UserError, match="other settings"):
            check_prepared(other, folder)


@pytest.mark.parametrize(
    "change",
    [{"subset": 4}, {"test_subset": 2}, {"test_fraction": 0.5}, {"validation_fraction": 0.5},
     {"image_size": 6}, {"source": "parquet"}, {"path": "elsewhere"}],
)  # fmt: skip
def test_images_prepared_with_other_settings_are_refused(
    tmp_path: Path, folder: Path, change: dict[str, Any]
) -> None:
    config = DatasetConfig(name="own", source="image_folder", path=str(folder))
    other, prepared = config.model_copy(update=change), tmp_path / "prepared/own"
    meta = prepare(config, tmp_path)
    with pytest.raises(UserError, match="own: prepared with other settings"):
        expected_meta(other, prepared)
    assert expected_meta(config, prepared) == (meta, True)
    without_digest(prepared)
    assert expected_meta(config, prepared) == (meta, True)
    if "path" not in change:  # which nothing else shows
        with pytest.raises(UserError, match="own: prepared with other settings"):
            expected_meta(other, prepared)


def test_a_new_option_leaves_the_digest_of_the_settings() -> None:
    settings = {"source": "digits", "subset": 60}
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    assert settings_digest(DatasetConfig.model_validate({"name": "d", **settings})) == digest


def test_the_digest_of_settings_is_as_it_was_before_there_was_a_test_fraction() -> None:
    own = {"name": "own", "source": "image_folder", "path": "images", "image_size": 32,
           "test_split": "val", "validation_fraction": 0.1, "seed": 3}  # fmt: skip
    digest = "ae33ddbf394e7ea785c197b01baa02926f8c873ed8c2b7614b992280f5f67fee"
    assert settings_digest(DatasetConfig.model_validate(own)) == digest
    changed = {**own, "test_split": None, "test_fraction": 0.2}
    assert settings_digest(DatasetConfig.model_validate(changed)) != digest


def test_cifar() -> None:
    config = DatasetConfig(name="c", source="cifar100", subset=2500)
    meta, known = expected_meta(config, Path("nowhere"))
    assert not known
    assert meta.counts == {"train": 2500, "validation": 0, "test": 10_000}
    assert (meta.channels, meta.height, len(meta.classes)) == (3, 32, 100)


def test_other_sources_must_be_prepared_first(tmp_path: Path) -> None:
    config = DatasetConfig(name="own", source="image_folder", path="images")
    line = "run `smallbatch prepare`; the shape of its images is known from there alone"
    with pytest.raises(UserError, match=line):
        expected_meta(config, tmp_path / "own")


@pytest.mark.parametrize("digest", [True, False])
def test_data_of_another_name_are_refused(tmp_path: Path, digest: bool) -> None:
    """They were copied or renamed, and results would have the old name."""
    config = DatasetConfig(name="d", source="digits", subset=60, test_subset=40)
    prepare(config, tmp_path)
    folder = tmp_path / "prepared/d"
    if not digest:
        without_digest(folder)
    check_prepared(config, folder)
    with pytest.raises(UserError, match=r"d: prepared with other settings"):
        check_prepared(config.model_copy(update={"name": "e"}), folder)
