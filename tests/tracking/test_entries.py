"""Names, params and metric points."""

from __future__ import annotations

import math
from dataclasses import replace

from smallbatch.tracking import ColumnInfo, RunInfo
from smallbatch.tracking.entries import epoch_points, run_name, run_params
from smallbatch.tracking.experiment import description

COLUMN = ColumnInfo("digits", "f" * 64, "study", 8, {"milestones": (0.5, 0.75), "epochs": 20})
RUN = RunInfo("0" * 16, 2.0**-6, 0, 600)


def test_a_run_is_named_by_what_varies() -> None:
    assert run_name(COLUMN, RUN) == "m=8 η̃=2^-6 seed 0"
    assert COLUMN.experiment == "digits/study"


def test_live_settings_and_those_read_back_from_json_are_the_same() -> None:
    read = ColumnInfo("digits", "f" * 64, "study", 8, {"epochs": 20, "milestones": [0.5, 0.75]})
    assert read.key == COLUMN.key
    assert run_params(read, RUN) == run_params(COLUMN, RUN)


def test_columns_of_other_settings_or_data_have_other_keys() -> None:
    others = [
        ColumnInfo("digits", "f" * 64, "study", 8, {"epochs": 21}),
        ColumnInfo("digits", "e" * 64, "study", 8, COLUMN.settings),
        ColumnInfo("digits", "f" * 64, "study", 16, COLUMN.settings),
    ]
    assert len({COLUMN.key, *(other.key for other in others)}) == 4


def test_a_figure_is_no_part_of_the_key_or_the_params() -> None:
    other = ColumnInfo("digits", "f" * 64, "study", 8, {**COLUMN.settings, "figure": "8"})
    assert other.key == COLUMN.key
    assert run_params(other, RUN) == run_params(COLUMN, RUN)


def test_the_side_of_crops_is_a_param_of_encoded_images_alone_and_no_part_of_the_key() -> None:
    encoded = replace(COLUMN, image_size=64)
    assert encoded.key == COLUMN.key
    assert run_params(encoded, RUN) == run_params(COLUMN, RUN) | {"image_size": "64"}
    timm = replace(encoded, settings={**COLUMN.settings, "input": "timm"})
    assert run_params(timm, RUN)["input"] == "timm"


def test_a_single_run_has_a_key_of_its_own() -> None:
    keys = {
        ColumnInfo("digits", "f" * 64, "study", 8, COLUMN.settings, single=single).key
        for single in (None, "0" * 16, "1" * 16)
    }
    assert len(keys) == 3


def test_the_stage_and_machine_do_not_change_the_key() -> None:
    other = ColumnInfo(
        "digits", "f" * 64, "study", 8, COLUMN.settings, stage="x", environment={"device": "cuda"}
    )
    assert other.key == COLUMN.key


def test_only_finite_values_become_points() -> None:
    row = {"epoch": 2, "train_loss": math.inf, "test_loss": math.nan, "lr": 0.5, "other": 1}
    assert epoch_points(row) == [("lr", 2, 0.5)]


def test_an_optimisers_own_settings_are_params_and_no_others() -> None:
    plain = run_params(COLUMN, RUN)
    assert (plain["optimizer"], plain["schedule"], plain["lr"]) == ("sgd", "step", "0.125")
    assert not {"momentum", "betas", "beta2_examples", "eps"} & set(plain)
    heavy = {"optimizer": "momentum", "momentum": 0.9, "betas": None, "eps": None}
    found = run_params(replace(COLUMN, settings={**COLUMN.settings, **heavy}), RUN)
    assert (found["optimizer"], found["momentum"], found["lr"]) == ("momentum", "0.9", "0.125")
    assert not {"betas", "eps"} & set(found)


def test_under_adamw_the_learning_rate_of_the_grid_is_eta() -> None:
    own = {"optimizer": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "schedule": "cosine"}
    column = replace(COLUMN, settings={**COLUMN.settings, **own})
    assert run_name(column, RUN) == "m=8 η=2^-6 seed 0"
    found = run_params(column, RUN)
    assert found["lr"] == found["base_lr"] == "0.015625"
    assert (found["betas"], found["schedule"]) == ("[0.9, 0.999]", "cosine")
    assert "milestones" not in found
    said = description(replace(column, settings={**column.settings, "model": "m", "norm": "none"}))
    assert "`log2_base_lr` is log₂ η" in said
    assert "optimizer adamw, schedule cosine" in said
    assert "η̃" not in said
