from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smallbatch.analysis.budgets import COLUMNS, compare_budgets, speeds_of_columns
from smallbatch.analysis.families import families
from tests.analysis.accuracies import LOST, Accuracies, grid, runs_of

N = 1024
SIZES = (2, 4, 8, 16)
EPOCHS = (1, 2, 4, 8)
SETTINGS: dict[str, Any] = {
    "model": "resnet8", "norm": "none", "bn_batch_size": math.nan, "augment": False,
    "weight_decay": 1e-4, "milestones": "[0.5, 0.75]", "lr_decay": 0.1, "warmup": 0.0,
    "precision": "float32",
}  # fmt: skip
Law = Callable[[int, int], float]


def rows_of(accuracies: Accuracies, **settings: Any) -> pd.DataFrame:
    """Runs with their settings where `load_results` has them: before the number of parameters."""
    runs = runs_of(accuracies, n_train=N, **SETTINGS | settings)
    names = [str(name) for name in runs.columns]
    usual = set(runs_of(accuracies).columns) | {"n_train"}
    moved = [name for name in names if name not in usual]
    kept = [name for name in names if name in usual]
    at = kept.index("parameters")
    return runs[[*kept[:at], *moved, *kept[at:]]]


def study(name: str, epochs: int, tops: dict[int, float], n: int = 4, **more: Any) -> pd.DataFrame:
    # All studies have the same noise, so that a law of the means stays one.
    return rows_of(grid(tops, n=n, sd=0.002), study=name, epochs=epochs, **more)


def family(law: Law, sizes: tuple[int, ...] = SIZES, **more: Any) -> pd.DataFrame:
    return pd.concat(
        [study(f"net-{e}", e, {m: law(e, m) for m in sizes}, **more) for e in EPOCHS]
    )  # fmt: skip


def compared(runs: pd.DataFrame, speeds: dict[int, float] | None = None) -> pd.DataFrame:
    (found,) = families(runs)
    return compare_budgets(found, speeds or {})


def standings(table: pd.DataFrame, budget: str, amount: float) -> dict[int, str]:
    own = table[(table["budget"] == budget) & np.isclose(table["amount"].astype(float), amount)]
    return dict(zip(own["batch_size"], own["standing"], strict=True))


def by_updates(epochs: int, m: int) -> float:
    return 0.2 + 0.05 * math.log2(epochs * N / m)


def by_epochs(epochs: int, m: int) -> float:
    return 0.4 + 0.05 * math.log2(epochs)


def test_where_updates_alone_count_small_batches_win_equal_epochs_and_nothing_else() -> None:
    table = compared(family(by_updates))
    for epochs in EPOCHS:
        found = standings(table, "epochs", epochs)
        assert found == {2: "best", 4: "worse", 8: "worse", 16: "worse"}
    # 512 updates are one epoch at m = 2 and eight at m = 16.
    found = standings(table, "updates", 512)
    assert set(found) == set(SIZES)
    assert sorted(found.values()) == ["best", "open", "open", "open"]
    own = table[(table["budget"] == "updates") & (table["amount"] == 512)]
    assert own["epochs"].tolist() == [1, 2, 4, 8]
    assert own["accuracy"].astype(float).to_numpy() == pytest.approx(0.2 + 0.05 * 9, abs=0.005)


def test_where_epochs_alone_count_large_batches_win_equal_updates() -> None:
    table = compared(family(by_epochs))
    assert sorted(standings(table, "epochs", 4).values()) == ["best", "open", "open", "open"]
    assert standings(table, "updates", 512) == {2: "worse", 4: "worse", 8: "worse", 16: "best"}


def test_equal_time_takes_the_machines_speed() -> None:
    # Twice as fast with each doubling: equal time is then equal updates.
    rates = {m: 100.0 * m for m in SIZES}
    table = compared(family(by_updates), rates)
    time, updates = (table[table["budget"] == it] for it in ("seconds", "updates"))
    assert time["amount"].unique().tolist() == [N / 200 * e for e in EPOCHS[:3]]
    same = ["batch_size", "epochs", "standing"]
    assert time[same].to_numpy().tolist() == updates[same].to_numpy().tolist()
    # With one speed for all it is equal epochs.
    table = compared(family(by_updates), dict.fromkeys(SIZES, 100.0))
    assert standings(table, "seconds", N / 100) == standings(table, "epochs", 1)
    # Without a speed there is no time.
    assert "seconds" not in set(compared(family(by_updates))["budget"])


def test_between_two_numbers_of_epochs_accuracies_are_interpolated() -> None:
    speeds = {2: 100.0, 4: 300.0, 8: 300.0, 16: 300.0}
    table = compared(family(by_epochs), speeds)
    own = table[(table["budget"] == "seconds") & table["amount"].eq(N / 100)].set_index(
        "batch_size"
    )
    # In the time of one epoch at m = 2 the others make three: log₂ 3 of the law.
    assert own.loc[2, "accuracy"] == pytest.approx(0.4, abs=0.004)
    assert own.loc[4, "accuracy"] == pytest.approx(0.4 + 0.05 * math.log2(3), abs=0.004)
    assert own.loc[4, "epochs"] == pytest.approx(3)


def slowing_down(epochs: float, m: int) -> float:
    return 0.9 - 0.5 / epochs


def test_interpolation_makes_no_batch_size_worse_where_all_learn_alike_in_time() -> None:
    """Learning that slows down is above the straight line between two numbers of epochs."""
    speeds = {2: 100.0, 4: 141.0, 8: 141.0, 16: 141.0}
    # All m have learnt alike after equal times: those that are faster, after more epochs.
    runs = family(lambda epochs, m: slowing_down(epochs * 100 / speeds[m], m))
    time = compared(runs, speeds)
    time = time[time["budget"] == "seconds"]
    assert len(time) > 8
    assert set(time["standing"]) == {"best", "open"}
    for amount, own in time.groupby("amount"):
        truth = slowing_down(float(str(amount)) * 100 / N, 2)
        assert own["accuracy"].astype(float).to_numpy() == pytest.approx(truth, abs=0.012)
    # A batch size that is truly behind is called so.
    behind = family(lambda epochs, m: slowing_down(epochs * 100 / speeds[m], m) - 0.1 * (m == 8))
    table = compared(behind, speeds)
    own = table[(table["budget"] == "seconds") & (table["batch_size"] == 8)]
    assert set(own["standing"]) == {"worse"}


def test_a_budget_that_fewer_than_half_of_the_batch_sizes_can_have_is_left_out() -> None:
    table = compared(family(by_updates))
    # 4096 updates are eight epochs at m = 2, and more than eight at any other.
    assert sorted(table.loc[table["budget"] == "updates", "amount"].unique()) == [512, 1024, 2048]
    assert set(standings(table, "updates", 2048)) == {2, 4}


def test_accuracies_are_of_choices_on_other_seeds_with_their_interval() -> None:
    # Two η̃, each lucky at one seed: what the others choose is never the lucky one.
    lucky = {(m, 2.0**-8): [0.9, 0.5, 0.5] for m in (2, 4)}
    lucky |= {(m, 2.0**-7): [0.5, 0.9, 0.5] for m in (2, 4)}
    runs = pd.concat([rows_of(lucky, study=f"a{e}", epochs=e) for e in (1, 2, 4)])
    row = compared(runs).iloc[0]
    # At seed 0 the other seeds choose the second η̃, at 1 the first; at 2 both are alike: 0.5 each.
    assert row["accuracy"] == pytest.approx(0.5)
    spread = pd.concat([
        rows_of({(2, 0.1): [0.4, 0.5, 0.6], (4, 0.1): [0.4, 0.5, 0.6]},
                study=f"a{e}", epochs=e) for e in (1, 2, 4)
    ])  # fmt: skip
    row = compared(spread).iloc[0]
    # Student's t of two degrees of freedom: 4.303 · 0.1 / √3.
    assert row["accuracy"] - row["low"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert row["high"] - row["accuracy"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


def test_a_cell_with_a_diverged_seed_counts_as_chance() -> None:
    runs = pd.concat([
        rows_of({(2, 0.1): [0.4] * 3, (2, 0.2): [0.9, 0.9, LOST], (4, 0.1): [0.5, 0.51, 0.49],
                 (4, 0.2): [LOST] * 3, (8, 0.1): [LOST] * 3, (8, 0.2): [LOST] * 3},
                study=f"a{e}", epochs=e) for e in (1, 2, 4)
    ])  # fmt: skip
    table = compared(runs)
    assert standings(table, "epochs", 1) == {2: "worse", 4: "best", 8: "unusable"}
    lost = table[table["batch_size"] == 8]
    assert lost["accuracy"].isna().all()
    assert lost["on_edge"].all()


def test_one_seed_has_no_interval_and_no_interval_leaves_what_an_accuracy_can_be() -> None:
    one = compared(family(by_updates, n=1))
    assert one[["low", "high"]].isna().all(axis=None)
    wide = {(m, 0.1): [0.02, 0.98, 0.5] for m in (2, 4)}
    table = compared(pd.concat([rows_of(wide, study=f"a{e}", epochs=e) for e in (1, 2, 4)]))
    assert set(table["low"]) == {0.0}
    assert set(table["high"]) == {1.0}
    # One learning rate has no edge: no grid ends there.
    assert not table["on_edge"].any()


def test_where_nothing_is_beyond_chance_nothing_is_compared() -> None:
    # Of 100 test images 10 to 14 are right, of ten classes.
    runs = family(lambda epochs, m: 0.1 + 0.01 * math.log2(m)).assign(n_test=100)
    table = compared(runs)
    assert set(table["standing"]) == {""}
    assert set(compared(runs.assign(n_test=100_000))["standing"]) > {"best", "worse"}


def test_times_that_differ_by_less_than_speeds_are_known_are_the_same() -> None:
    speeds = {2: 100.0, 4: 99.0, 8: 97.0, 16: 100.0}
    table = compared(family(by_epochs), speeds)
    first = table[(table["budget"] == "seconds") & table["amount"].eq(N / 100)]
    # At m = 4 the first epoch takes 1 % longer; at 8, 3 %, and there is no shorter run.
    assert first["batch_size"].tolist() == [2, 4, 16]
    last = table[(table["budget"] == "seconds") & table["amount"].eq(8 * N / 100)]
    assert last["batch_size"].tolist() == [2, 4, 8, 16]


def test_a_lone_batch_size_that_finishes_is_the_best() -> None:
    runs = pd.concat([
        rows_of({(2, 0.1): [0.4, 0.41, 0.39], (4, 0.1): [LOST] * 3}, study=f"a{e}", epochs=e)
        for e in (1, 2, 4)
    ])  # fmt: skip
    assert standings(compared(runs), "epochs", 2) == {2: "best", 4: "unusable"}


def test_with_fewer_than_three_seeds_nothing_is_compared() -> None:
    table = compared(family(by_updates, n=2))
    assert set(table["standing"]) == {""}
    assert table["accuracy"].notna().all()


def test_a_family_differs_in_its_epochs_alone() -> None:
    runs = family(by_updates)
    other = family(by_updates, weight_decay=5e-4).assign(study=lambda it: "other-" + it["study"])
    (one,) = families(runs)
    assert (one.name, one.studies) == ("net", ("net-1", "net-2", "net-4", "net-8"))
    assert {it.name for it in families(pd.concat([runs, other]))} == {"net", "other-net"}
    # Two numbers of epochs are not enough.
    assert not families(runs[runs["epochs"] > 2])
    # An m that too few of the studies have is left out.
    (found,) = families(runs[(runs["study"].isin(["net-1", "net-2"])) | (runs["batch_size"] < 16)])
    assert sorted(found.epochs) == [2, 4, 8]


@pytest.mark.parametrize("setting", ["pretrained", "freeze", "input", "a_setting_of_tomorrow"])
def test_no_other_setting_may_differ(setting: str) -> None:
    none: dict[str, Any] = {setting: None}
    runs = family(by_updates, SIZES, **none)
    runs.loc[runs["epochs"] == 8, setting] = "something"
    (found,) = families(runs)
    assert found.studies == ("net-1", "net-2", "net-4")


def test_seeds_and_learning_rates_that_only_some_have_are_left_out() -> None:
    runs = family(by_updates)
    few = runs[(runs["study"] != "net-4") | ((runs["seed"] < 3) & (runs["base_lr"] > 2**-10))]
    (found,) = families(few)
    assert found.seeds.tolist() == [0, 1, 2]
    assert found.base_lrs.tolist() == [2.0**k for k in (-9, -8, -7, -6)]


@pytest.mark.parametrize(
    "odd",
    [
        {"seeds": 1},  # would leave one seed of four
        {"base_lrs": (0.25, 0.5)},  # would leave no learning rate
    ],
)
def test_one_odd_study_leaves_the_others_as_they_are(odd: dict[str, Any]) -> None:
    runs = family(by_updates)
    more = rows_of(
        grid(dict.fromkeys(SIZES, 0.5), odd.get("base_lrs", (2**-9, 2**-8)), n=odd.get("seeds", 4)),
        study="net-16", epochs=16,
    )  # fmt: skip
    (found,) = families(pd.concat([runs, more]))
    assert found.studies == ("net-1", "net-2", "net-4", "net-8")
    assert len(found.seeds) == 4
    assert len(found.base_lrs) == 5


def test_of_two_studies_of_equal_length_that_with_more_runs_is_taken() -> None:
    again = rows_of(grid(dict.fromkeys(SIZES, 0.1), n=1), study="a-quick-look", epochs=4)
    (found,) = families(pd.concat([again, family(by_updates)]))
    assert found.studies == ("net-1", "net-2", "net-4", "net-8")
    assert len(found.seeds) == 4


def test_a_study_at_the_best_learning_rate_of_another_is_left_out() -> None:
    runs = family(by_updates)
    runs.loc[runs["epochs"] == 8, "base_lr_from"] = "net-4"
    (found,) = families(runs)
    assert found.studies == ("net-1", "net-2", "net-4")


def test_names_of_families_are_whole_words_and_each_its_own() -> None:
    def named(*names: str, **settings: Any) -> pd.DataFrame:
        own = [study(name, e, dict.fromkeys(SIZES, 0.4), **settings)
               for name, e in zip(names, (10, 12, 16), strict=True)]  # fmt: skip
        return pd.concat(own)

    (found,) = families(named("net-10", "net-12", "net-16"))
    assert found.name == "net"
    (found,) = families(named("net", "net-long", "net-longer"))
    assert found.name == "net"
    (found,) = families(named("a", "b", "c"))
    assert found.name == "a"
    plain = named("net-1", "net-2", "net-4")
    normed = named("net-1-bn", "net-2-bn", "net-4-bn", norm="batch")
    names = {it.name: it.studies for it in families(pd.concat([plain, normed]))}
    assert names == {
        "net-1 and others": ("net-1", "net-2", "net-4"),
        "net-1-bn and others": ("net-1-bn", "net-2-bn", "net-4-bn"),
    }


def test_studies_of_which_parts_are_of_other_protocols_are_two_families() -> None:
    """As after an upgrade, when some columns were trained again; their studies have one name."""
    old = family(by_updates, (2, 4)).assign(protocol=1)
    new = family(by_updates, (8, 16)).assign(protocol=2)
    found = {it.name: sorted(it.epochs) for it in families(pd.concat([old, new]))}
    assert found == {"net-1 and others (1)": [2, 4], "net-1 and others (2)": [8, 16]}


def test_a_bn_batch_of_up_to_n_is_one_study() -> None:
    runs = family(by_updates, norm="ghost", bn_batch_size=4.0)
    small = runs["batch_size"] <= 4
    runs.loc[small, "norm"], runs.loc[small, "bn_batch_size"] = "batch", math.nan
    (found,) = families(runs)
    assert sorted(found.epochs) == list(SIZES)


def test_results_that_do_not_say_how_many_images_there_were_are_left_out() -> None:
    runs = family(by_updates)
    assert not families(runs.assign(n_train=pd.array([pd.NA] * len(runs), dtype="Int64")))


def test_studies_of_equal_updates_join_the_family_with_the_epochs_of_each_m() -> None:
    runs = family(by_updates)
    more = [
        study("net-updates", m, {m: by_updates(m, m)}, budget="updates of 1") for m in (16, 32)
    ]  # fmt: skip
    (found,) = families(pd.concat([runs, *more]))
    assert found.epochs[16].tolist() == [1, 2, 4, 8, 16]
    assert found.epochs[2].tolist() == [1, 2, 4, 8]


MACHINE = {"cpu": "A", "cores": 2, "device": "cpu", "engine": "stacked", "workers": 2}


def timings(**first: Any) -> pd.DataFrame:
    rows = [
        {"dataset": "digits", "study": name, "batch_size": m, "images_per_second": rate,
         "environment": json.dumps(MACHINE | {"torch": name})}
        for name, m, rate in [("net-1", 2, 10.0), ("net-2", 2, 30.0), ("net-4", 2, 20.0),
                              ("net-1", 4, 50.0), ("net-2", 4, math.nan), ("other", 4, 1.0)]
    ]  # fmt: skip
    rows[0]["environment"] = json.dumps(MACHINE | first)
    return pd.DataFrame(rows)


def test_speeds_are_medians_over_the_studies() -> None:
    (found,) = families(family(by_updates))
    assert speeds_of_columns(found, timings()) == {2: 20.0, 4: 50.0}
    assert speeds_of_columns(found, pd.DataFrame()) == {}


@pytest.mark.parametrize(
    "first", [{"cpu": "B"}, {"engine": "loop"}, {"workers": 8}, {"kernels": "other"}]
)
def test_speeds_are_of_one_kind_of_machine(first: dict[str, Any]) -> None:
    (found,) = families(family(by_updates))
    assert speeds_of_columns(found, timings(**first)) == {}


def test_speeds_of_columns_that_several_machines_trained_are_none() -> None:
    (found,) = families(family(by_updates))
    mixed = json.dumps(MACHINE | {"hardware": "several: not that of all runs"})
    assert speeds_of_columns(found, timings().assign(environment=mixed)) == {}


def test_the_table_has_its_columns() -> None:
    assert compared(family(by_updates)).columns.tolist() == list(COLUMNS)
