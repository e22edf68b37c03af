"""Results that do not belong together are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallbatch.analysis.evaluation import evaluate
from smallbatch.protocol.run import PROTOCOL
from smallbatch.report.claims import judge_models
from tests.analysis import synthetic


def written(
    root: Path,
    name: str,
    *columns: int,
    base_lrs: tuple[float, ...] = (2.0**-6, 2.0**-5),
    seeds: int = 2,
    base_lr_from: str | None = None,
) -> Path:
    """A small study whose best η̃ is 2^-5: at m = 2, 4 and 8 all are below the limit, near 2^-4."""
    settings = {"base_lr_from": base_lr_from}
    study = synthetic.Study(name, batch_sizes=columns or (2, 4), base_lrs=base_lrs, seeds=seeds,
                            settings=settings, epochs=6)  # fmt: skip
    return synthetic.write_models(root / "models", (study,))


def warnings(root: Path) -> list[str]:
    return list(evaluate(root / "models", root / "reports/evaluation").warnings)


def of_other_images(models: Path, study: str) -> None:
    for path in (models / "synthetic" / study).glob("*/runs.json"):
        content = json.loads(path.read_text())
        content["dataset"]["fingerprint"] = "0" * 64
        path.write_text(json.dumps(content))


def test_studies_of_different_images_are_pointed_out(tmp_path: Path) -> None:
    for name in "abc":
        written(tmp_path, name)
    assert warnings(tmp_path) == []
    of_other_images(tmp_path / "models", "b")
    (line,) = warnings(tmp_path)
    assert line.startswith(
        "synthetic: its studies were trained with different fingerprint (a, c | b) and cannot be"
    )


@pytest.mark.parametrize(
    ("norms", "differ"),
    [
        ({2: ("batch", None), 4: ("batch", None), 8: ("ghost", 4)}, False),  # up to 4
        ({2: ("batch", None), 4: ("ghost", 2), 8: ("ghost", 2)}, False),  # up to 2
        ({2: ("batch", None), 4: ("ghost", 2), 8: ("batch", None)}, True),
        ({2: ("batch", None), 4: ("ghost", 2), 8: ("ghost", 4)}, True),
        ({2: ("none", None), 4: ("none", None), 8: ("ghost", 4)}, True),
    ],
)
def test_a_bn_batch_of_up_to_a_number_is_one_setting(
    tmp_path: Path, norms: dict[int, tuple[str, int | None]], differ: bool
) -> None:
    models = written(tmp_path, "a", *norms)
    for m, (norm, size) in norms.items():
        path = models / f"synthetic/a/m{m}/runs.json"
        content = json.loads(path.read_text())
        content["settings"] |= {"norm": norm, "bn_batch_size": size}
        for run in content["runs"]:
            run["bn_batch_size"] = size
        path.write_text(json.dumps(content))
    found = warnings(tmp_path)
    assert len(found) == differ
    assert not differ or "its columns were trained with different norm" in found[0]


def of_protocol(number: int, folder: Path) -> None:
    for path in folder.rglob("runs.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": number}))


def test_columns_and_studies_of_different_protocols_are_pointed_out(tmp_path: Path) -> None:
    """As while the columns are trained again one after another after PROTOCOL was raised."""
    for name in "ab":
        written(tmp_path, name, 2, 4)
    models = tmp_path / "models/synthetic"
    of_protocol(7, models / "b/m4")
    across, within = warnings(tmp_path)
    assert across.startswith(
        "synthetic: its studies were trained with different protocol (a | b) and cannot be"
    )
    assert within.startswith(
        "synthetic/b: its columns were trained with different protocol (m2 | m4); train the"
    )
    of_protocol(7, models / "b")
    (line,) = warnings(tmp_path)
    assert line == across
    of_protocol(7, models)
    assert warnings(tmp_path) == []


@pytest.mark.parametrize(
    ("base_lr", "said"),
    [
        (2.0**-5, []),
        (2.0**-6, ["m2: 0.015625, now 0.03125; m4: 0.015625, now 0.03125"]),
        (2.0**-8, ["m2: 0.00390625, now 0.03125; m4: 0.00390625, now 0.03125"]),
    ],
    ids=["the best", "no longer the best", "no longer tried"],
)
def test_a_base_lr_taken_from_another_study_is_still_its_best(
    tmp_path: Path, base_lr: float, said: list[str]
) -> None:
    written(tmp_path, "a")
    written(tmp_path, "d", base_lrs=(base_lr,), base_lr_from="a")
    assert warnings(tmp_path) == [
        f"synthetic/d: was trained at an η̃ that is not the best of a ({text}); train these "
        "columns again"
        for text in said
    ]


def test_nothing_is_the_best_of_a_column_that_is_gone(tmp_path: Path) -> None:
    written(tmp_path, "a", 2)
    written(tmp_path, "d", base_lrs=(2.0**-5,), base_lr_from="a")
    (line,) = warnings(tmp_path)
    assert "not the best of a (m4: 0.03125, now none)" in line


@pytest.mark.parametrize(
    ("other", "named"), [({"base_lrs": (2.0**-6,)}, "η̃"), ({"seeds": 3}, "seeds")]
)
def test_columns_of_different_grids_are_pointed_out(
    tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    written(tmp_path, "a")
    written(tmp_path, "a", 8, **other)
    (line,) = warnings(tmp_path)
    assert line.startswith(f"synthetic/a: its columns have different {named} (m2, m4 | m8); ")


def test_with_equal_updates_columns_of_other_totals_are_pointed_out(tmp_path: Path) -> None:
    """A budget of the updates of 3 epochs at m = 2; then of 4 epochs."""

    def column(m: int, epochs: int) -> None:
        study = synthetic.Study("a", batch_sizes=(m,), base_lrs=(2.0**-6, 2.0**-5), epochs=epochs,
                                settings={"budget": "updates of 2"})  # fmt: skip
        synthetic.write_models(tmp_path / "models", (study,))

    column(2, 3)
    column(4, 6)
    assert warnings(tmp_path) == []
    column(8, 16)
    (line,) = warnings(tmp_path)
    assert line.startswith(
        "synthetic/a: its columns were trained with different epochs (m2, m4 | m8); train the"
    )


def test_columns_labelled_with_different_figures_are_pointed_out(tmp_path: Path) -> None:
    for m, figure in ((2, "7"), (4, "8")):
        study = synthetic.Study("a", batch_sizes=(m,), settings={"figure": figure})
        synthetic.write_models(tmp_path / "models", (study,))
    (line,) = warnings(tmp_path)
    assert line.startswith("synthetic/a: its columns were trained with different figure (m2 | m4)")


def test_each_m_may_have_the_best_base_lr_for_it(tmp_path: Path) -> None:
    written(tmp_path, "a", 2)
    written(tmp_path, "a", 64)  # where the limit is lower: 2^-5.6
    for m, best in ((2, 2.0**-5), (64, 2.0**-6)):
        written(tmp_path, "d", m, base_lrs=(best,), base_lr_from="a")
    assert warnings(tmp_path) == []


def test_an_older_protocol_is_told_even_where_all_columns_have_it(tmp_path: Path) -> None:
    models = written(tmp_path, "a")
    of_protocol(1, models)
    [line] = warnings(tmp_path)
    assert line.startswith(
        f"synthetic: trained under protocol 1, and the present one is {PROTOCOL}"
    )
    _, lines = judge_models(models, tmp_path / "reports")
    assert lines == [line]


def of_dataset(root: Path, dataset: str, *studies: synthetic.Study) -> None:
    synthetic.write_models(root / "models", studies, dataset)


SMALL = synthetic.Study("a", batch_sizes=(2, 4), base_lrs=(2.0**-6, 2.0**-5), seeds=2, epochs=6)


def test_data_sets_may_differ_in_all_that_columns_of_one_may_not(tmp_path: Path) -> None:
    of_dataset(tmp_path, "d", SMALL)
    other = replace(SMALL, epochs=8, base_lrs=(2.0**-7,), seeds=3, settings={"norm": "batch"})
    of_dataset(tmp_path, "e", other)
    assert warnings(tmp_path) == []


def test_an_older_protocol_is_said_of_the_data_set_that_has_it(tmp_path: Path) -> None:
    of_dataset(tmp_path, "d", SMALL)
    of_dataset(tmp_path, "e", replace(SMALL, protocol=1))
    (line,) = warnings(tmp_path)
    assert line.startswith("e: trained under protocol 1")


def test_the_best_base_lr_is_that_of_the_same_data_set(tmp_path: Path) -> None:
    """On d it is 2^-5 and on e 2^-6, as nothing else was tried there."""
    at = {"base_lr_from": "a"}
    for dataset, best in (("d", 2.0**-5), ("e", 2.0**-6)):
        grid = SMALL.base_lrs if dataset == "d" else (best,)
        dependent = replace(SMALL, name="b", base_lrs=(best,), settings=at)
        of_dataset(tmp_path, dataset, replace(SMALL, base_lrs=grid), dependent)
    assert warnings(tmp_path) == []
