from __future__ import annotations

import contextlib
import copy
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from smallbatch.config import yaml_file
from smallbatch.config.base_lr import format_base_lr, parse_base_lr
from smallbatch.config.params import load_params, parse_dataset, parse_params, parse_study
from smallbatch.config.profiles import FOLDER
from smallbatch.errors import UserError
from smallbatch.protocol.run import Run

ROOT = Path(__file__).parents[2]

GOOD: dict[str, Any] = {
    "dataset": {"name": "digits", "source": "digits"},
    "grid": {"studies": ["a"], "batch_sizes": [2, 8], "base_lrs": ["2^-3", 0.5], "seeds": 2},
    "studies": {"a": {"model": "resnet8", "epochs": 3, "weight_decay": 1e-4}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[key]
    place[last] = value
    return raw


def test_good_params_are_typed() -> None:
    params = parse_params(GOOD, "params.yaml")
    assert params.grid.base_lrs == (0.125, 0.5)
    assert params.base_lrs("a") == (0.125, 0.5)
    own = parse_params(changed("studies.a.base_lrs", ["2^-1"]), "params.yaml")
    assert own.base_lrs("a") == (0.5,)


def test_a_study_has_seeds_of_its_own_or_those_of_the_grid() -> None:
    raw = changed("studies.a.seeds", 24)
    raw["studies"]["b"] = GOOD["studies"]["a"]
    params = parse_params(raw, "params.yaml")
    assert (list(params.seeds("a")), list(params.seeds("b"))) == (list(range(24)), [0, 1])
    assert parse_params(changed("studies.a.seeds", None), "x").seeds("a") == range(2)


def test_seeds_of_a_studys_own_are_in_no_runs_settings() -> None:
    own = parse_params(changed("studies.a.seeds", 24), "params.yaml")
    study, plain = own.studies["a"], parse_params(GOOD, "params.yaml").studies["a"]
    (here,), (before,) = study.at(8), plain.at(8)
    for exclude_unset in (False, True):
        assert "seeds" not in plain.model_dump(exclude_unset=exclude_unset)
        assert "seeds" not in here.model_dump(exclude_unset=exclude_unset)
    assert Run(here, "images", 8, 0.1, 7).hash == Run(before, "images", 8, 0.1, 7).hash
    # But a cluster is told of them.
    assert parse_params(own.model_dump(mode="json", exclude_unset=True), "x") == own


# What the issue names: each must be one line with the key, what was found and what is allowed.
BAD = [
    ("dataset.sourc", 1, ["unknown key 'dataset.sourc'", "did you mean 'source'?"]),
    ("studies.a.epcohs", 2, ["unknown key 'studies.a.epcohs'", "did you mean 'epochs'?"]),
    ("foo", 1, ["unknown key 'foo'", "dataset, grid, studies, compute"]),
    ("dataset.source", "cifar", ["dataset.source: found 'cifar'", "did you mean 'cifar10'?"]),
    ("dataset.name", "../x", ["dataset.name: found '../x'", "letters"]),
    ("grid.batch_sizes", [], ["grid.batch_sizes: found []", "at least one"]),
    ("grid.batch_sizes", [0], ["grid.batch_sizes.0: found 0", "greater than or equal to 1"]),
    ("grid.batch_sizes", ["2"], ["grid.batch_sizes.0: found '2'", "whole number"]),
    ("grid.batch_sizes", [True], ["grid.batch_sizes.0: found True", "whole number"]),
    ("grid.batch_sizes", [2, 2], ["batch_sizes lists 2 more than once"]),
    ("grid.base_lrs", [], ["grid.base_lrs: found []", "at least one"]),
    ("grid.base_lrs", [0], ["grid.base_lrs.0: found 0", "above 0"]),
    ("grid.base_lrs", [-0.5], ["grid.base_lrs.0: found -0.5", "above 0"]),
    ("grid.base_lrs", [float("nan")], ["grid.base_lrs.0: found nan", "above 0"]),
    ("grid.base_lrs", ["2^x"], ["grid.base_lrs.0: found '2^x'", "2^-6"]),
    ("grid.seeds", 0, ["grid.seeds: found 0"]),
    ("studies.a.seeds", 0, ["studies.a.seeds: found 0, allowed: greater than or equal to 1"]),
    ("studies.a.seeds", 10_001, ["studies.a.seeds: found 10001, allowed: less than or equal"]),
    ("studies.a.seeds", "3", ["studies.a.seeds: found '3', allowed: a whole number"]),
    ("studies.a.seed", 3, ["unknown key 'studies.a.seed'", "did you mean 'seeds'?"]),
    ("grid.studies", ["b"], ["grid.studies: found 'b'", "allowed: a"]),
    ("studies.a.warmup", 1.0, ["studies.a.warmup: found 1.0", "less than 1"]),
    ("studies.a.warmup", -0.1, ["studies.a.warmup: found -0.1", "greater than or equal to 0"]),
    ("studies.a.epochs", 2.5, ["studies.a.epochs: found 2.5", "whole number"]),
    ("studies.a.model", "resnet9", ["studies.a.model", "resnet9", "resnet8"]),
    ("studies.a.norm", "batc", ["studies.a.norm: found 'batc'", "did you mean 'batch'?"]),
    ("studies.a.norm", "batch_conv", ["studies.a.norm", "alexnet"]),
    ("studies.a.norm", "ghost", ["studies.a.bn_batch_size"]),
    ("studies.a.bn_batch_size", 2, ["studies.a.bn_batch_size", "ghost"]),
    ("studies.../../x", {}, ["studies"]),
    ("studies.a", None, ["studies.a: found None"]),
    ("dataset.subset", 4, ["grid.batch_sizes: found 8", "at most the 4"]),
    ("dataset.validation_fraction", 1.0, ["dataset.validation_fraction: found 1.0"]),
    ("studies.a.warmup", 0.6, ["warmup: found 0.6", "at most the first of milestones, 0.5"]),
    ("studies.a.base_lrs", ["2^-1", 0.5], ["base_lrs lists 0.5 more than once"]),
    ("studies.a.budget", "updates", ["studies.a.budget: found 'updates'", "updates of 64"]),
    ("studies.a.budget", "updates of 4", ["give 1.5 epochs at batch size 2", "a whole number"]),
    ("studies.a.base_lr", "the best", ["studies.a.base_lr: found 'the best'", "`best of`"]),
    ("studies.a.base_lr", "best of b", ["studies.a.base_lr: found 'best of b'", "grid.dependent"]),
    ("studies.a.bn_batch_sizes", [2], ["bn_batch_sizes: allowed with norm ghost"]),
    ("studies.a.bn_batch_sizes", [1], ["studies.a.bn_batch_sizes.0: found 1"]),
    ("grid.dependent", [{"name": "b", "after": "a"}], ["grid.dependent: found 'b'", "allowed: a"]),
    ("grid.dependent", [{"name": "a", "after": "a"}], ["studies.a.base_lr: missing", "best of a"]),
    ("grid.dependent", [{"name": "a"}], ["grid.dependent.0.after: missing"]),
    ("dataset.scale", "So small", ["dataset.scale: found 'So small'"]),
    ("compute", {"workers": "all"}, ["compute.workers: found 'all', allowed: a whole number"]),
    ("compute", {"workers": 0}, ["compute.workers: found 0", "or auto"]),
    (
        "compute",
        {"decoders": "many"},
        ["compute.decoders: found 'many', allowed: a whole number from 0 to 1024, or auto"],
    ),
    (
        "compute",
        {"decoders": -1},
        ["compute.decoders: found -1, allowed: a whole number from 0 to 1024, or auto"],
    ),
    (
        "compute",
        {"ray": {"gpus": 2}},
        ["compute.ray.gpus: found 2, allowed: a whole number from 0 to 1, or auto"],
    ),
    ("studies.a.budget", "updates of 4\n", ["found 'updates of 4\\n', allowed: epochs, or"]),
    ("studies.a.base_lr", "best of b\n", ["found 'best of b\\n', allowed: `best of` and"]),
    ("dataset.name", "own\n", ["dataset.name: found 'own\\n', allowed: lower-case"]),
    ("compute", {"device": "gpu"}, ["compute.device: found 'gpu'", "auto, cpu, cuda"]),
]


@pytest.mark.parametrize(("path", "value", "said"), BAD)
def test_bad_params_are_one_line_naming_the_key(path: str, value: object, said: list[str]) -> None:
    raw = changed(path, value) if "/" not in path else changed("studies", {"../../x": GOOD})
    with pytest.raises(UserError) as error:
        parse_params(raw, "params.yaml")
    line = str(error.value)
    assert line.startswith("params.yaml: ")
    assert "\n" not in line
    for part in said:
        assert part in line


def dependent_params() -> dict[str, Any]:
    raw = changed("grid.dependent", [{"name": "g", "after": "a"}])
    raw["studies"]["g"] = {
        "model": "resnet8", "epochs": 3, "weight_decay": 0.0, "norm": "ghost",
        "bn_batch_sizes": [2, 4, 8], "base_lr": "best of a",
    }  # fmt: skip
    return raw


ADAMW = {"optimizer": "adamw", "lrs": [0.001]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optimizer": "adam"},
            "optimizer: found 'adam', allowed: sgd, momentum, nesterov, adamw (did",
        ),
        ({"schedule": "cosin"}, "schedule: found 'cosin', allowed: step, cosine, constant (did"),
        ({"momentum": 0.9}, "momentum: found with optimizer sgd, allowed with momentum or nest"),
        ({**ADAMW, "momentum": 0.9}, "momentum: found with optimizer adamw, allowed with moment"),
        ({"optimizer": "momentum", "momentum": 1.0}, "momentum: found 1.0, allowed: "),
        ({"optimizer": "nesterov", "momentum": 0}, "momentum: found 0 with optimizer nesterov, "),
        ({"optimizer": "momentum", "betas": [0.9, 0.99]}, "betas: found with optimizer momentum"),
        ({**ADAMW, "betas": [0.9, 1.0]}, "betas.1: found 1.0, allowed: "),
        ({**ADAMW, "betas": [-0.1, 0.9]}, "betas.0: found -0.1, allowed: "),
        ({**ADAMW, "betas": [0.9]}, "betas"),
        ({**ADAMW, "beta2_examples": 0}, "beta2_examples: found 0, allowed: "),
        ({**ADAMW, "beta2_examples": 9.0, "betas": [0.9, 0.99]}, "beta2_examples: found beside"),
        ({"beta2_examples": 9.0}, "beta2_examples: found with optimizer sgd, allowed with adamw"),
        ({**ADAMW, "eps": 0.0}, "eps: found 0.0, allowed: "),
        (
            {**ADAMW, "base_lrs": [0.1]},
            "base_lrs: found with optimizer adamw, allowed with sgd or momentum or nesterov; adamw",
        ),
        ({"optimizer": "adamw"}, "lrs: missing, allowed with adamw: a list of learning rates η"),
        (
            {"lrs": [0.1]},
            "lrs: found with optimizer sgd, allowed with adamw; sgd's learning rates are base_lrs",
        ),
        ({"schedule": "cosine", "milestones": [0.3]}, "milestones: found with schedule cosine"),
        ({"schedule": "constant", "lr_decay": 0.5}, "lr_decay: found with schedule constant"),
    ],
)
def test_keys_of_another_optimiser_or_schedule_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    raw = changed("studies.a", {**GOOD["studies"]["a"], **settings})
    with pytest.raises(UserError) as error:
        parse_params(raw, "params.yaml")
    assert re.match(rf"params.yaml: studies.a(\.|: ){re.escape(said)}", str(error.value))
    assert "\n" not in str(error.value)


def test_an_optimisers_numbers_are_written_out() -> None:
    def study(**settings: Any) -> Any:
        raw = changed("studies.a", {**GOOD["studies"]["a"], **settings})
        return parse_params(raw, "params.yaml").studies["a"]

    assert study().momentum is study().betas is study().eps is None
    assert study(optimizer="nesterov").momentum == 0.9
    assert (study(**ADAMW).betas, study(**ADAMW).eps) == ((0.9, 0.999), 1e-8)
    assert study(schedule="cosine", warmup=0.9).warmup == 0.9  # no milestone to come before


def test_a_dependent_study_has_the_axis_of_the_one_it_follows() -> None:
    raw = copy.deepcopy(GOOD)
    raw["studies"]["b"] = {**GOOD["studies"]["a"], "optimizer": "adamw", "base_lr": "best of a"}
    raw["grid"]["dependent"] = [{"name": "b", "after": "a"}]
    with pytest.raises(UserError, match="'best of a' with the optimisers adamw and sgd"):
        parse_params(raw, "params.yaml")
    raw["studies"]["a"] |= ADAMW
    assert parse_params(raw, "params.yaml").base_lrs("a") == (0.001,)


def test_a_dependent_study_names_the_one_it_follows() -> None:
    params = parse_params(dependent_params(), "params.yaml")
    assert params.running == ("a", "g")
    assert params.studies["g"].best_of == "a"
    raw = dependent_params()
    raw["grid"]["studies"].append("g")
    with pytest.raises(UserError, match=r"under grid\.dependent, not grid\.studies"):
        parse_params(raw, "params.yaml")
    raw = dependent_params()
    raw["grid"]["batch_sizes"] = [2, 5]
    with pytest.raises(UserError, match="leaves a last sub-batch of one example"):
        parse_params(raw, "params.yaml")


def test_a_study_of_several_bn_batch_sizes_has_one_base_lr_at_each_batch_size() -> None:
    raw = changed("grid.studies", ["g"])
    raw["studies"]["g"] = {**dependent_params()["studies"]["g"], "base_lr": None}
    with pytest.raises(UserError) as error:
        parse_params(raw, "params.yaml")
    assert str(error.value) == (
        "params.yaml: studies.g.bn_batch_sizes: found with 2 base learning rates, allowed: with "
        "one, by `base_lr: best of STUDY` or a list base_lrs of one"
    )
    raw["studies"]["g"]["base_lrs"] = ["2^-3"]
    assert parse_params(raw, "params.yaml").base_lrs("g") == (0.125,)


def test_a_column_has_the_bn_batch_sizes_up_to_its_own() -> None:
    study = parse_params(dependent_params(), "params.yaml").studies["g"]
    assert [each.bn_batch_size for each in study.at(4)] == [2, 4]
    assert [each.bn_batch_size for each in study.at(2)] == [2]


def test_a_bn_batch_of_up_to_a_number_is_plain_batch_norm_below_it() -> None:
    raw = changed("studies.a.norm", "ghost")
    raw["studies"]["a"]["bn_batch_size"] = "up to 8"
    study = parse_params(raw, "params.yaml").studies["a"]
    found = [(each.norm, each.bn_batch_size) for m in (2, 8, 16) for each in study.at(m)]
    assert found == [("batch", None), ("batch", None), ("ghost", 8)]
    assert study.model_dump(mode="json")["bn_batch_size"] == "up to 8"
    assert parse_study(study.model_dump(mode="json"), "again") == study

    # The same runs as those of the norm batch, and above as those of sub-batches of 8.
    for norm, size, sizes in (("batch", None, (2, 8)), ("ghost", 8, (16,))):
        plain = study.model_copy(update={"norm": norm, "bn_batch_size": size})
        for m in sizes:
            hashes = {Run(each, "images", m, 0.1, 0).hash for it in (study, plain)
                      for each in it.at(m)}  # fmt: skip
            assert len(hashes) == 1


@pytest.mark.parametrize("value", ["up to 1", "up to", "8", "up to eight", "up to 4\n", "up to ४"])
def test_an_odd_largest_bn_batch_is_refused(value: str) -> None:
    raw = {"model": "resnet8", "norm": "ghost", "bn_batch_size": value, "epochs": 1,
           "weight_decay": 0.0}  # fmt: skip
    with pytest.raises(UserError, match=r"s: bn_batch_size: found .*, allowed: (a whole|greater)"):
        parse_study(raw, "s")


def test_with_equal_updates_epochs_grow_with_the_batch_size() -> None:
    raw = changed("studies.a.budget", "updates of 8")
    raw["studies"]["a"]["epochs"] = 4
    study = parse_params(raw, "params.yaml").studies["a"]
    assert [study.at(m)[0].epochs for m in (2, 8, 32)] == [1, 4, 16]
    # N examples: epochs·N/m updates, the same for all.
    assert {study.at(m)[0].epochs / m for m in (2, 8, 32)} == {0.5}


def test_batch_norm_needs_two_examples() -> None:
    raw = changed("studies.a.norm", "batch")
    raw["grid"]["batch_sizes"] = [1, 8]
    with pytest.raises(UserError, match=r"studies\.a\.batch_size: found 1.*at least 2"):
        parse_params(raw, "params.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("- 1", "expected the keys"),
        ("", "expected the keys"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_params(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smallbatch profile use"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid_and_says_what_it_costs(profile: Path) -> None:
    load_params(profile)
    head = [line for line in profile.read_text().splitlines() if line.startswith("#")]
    assert any("Command:" in line for line in head)


def test_the_default_params_are_the_quick_profile() -> None:
    assert Path("params.yaml").read_text() == (FOLDER / "quick.yaml").read_text()


@given(st.integers(-40, 5))
def test_powers_of_two_survive_the_round_trip(exponent: int) -> None:
    assert parse_base_lr(f"2^{exponent}") == 2.0**exponent == parse_base_lr(2.0**exponent)
    assert format_base_lr(2.0**exponent) == f"2^{exponent}"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_value_anywhere_is_accepted_or_named(value: Any) -> None:
    for path in ("grid.base_lrs", "studies.a", "dataset", "grid.batch_sizes", "studies"):
        with contextlib.suppress(UserError):  # and nothing else
            parse_params(changed(path, value), "params.yaml")


def test_a_key_of_any_length_is_refused_in_a_short_line() -> None:
    """In a study's name, an unknown key, and a list of studies."""
    long = "resn0x" + "f" * 5000
    for change in (
        lambda raw: raw["studies"].update({long: {"model": "resnet8"}}),
        lambda raw: raw.update({long: 1}),
        lambda raw: raw["grid"].update(studies=[long]),
        lambda raw: raw["grid"].update({"seeds": "9" * 5000}),
    ):
        raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
        change(raw)
        with pytest.raises(UserError) as refusal:
            parse_params(raw, "params.yaml")
        assert len(str(refusal.value)) < 1500


@pytest.mark.parametrize("special", ["fifo", "/dev/zero"])
def test_a_file_that_never_ends_is_refused_at_once(tmp_path: Path, special: str) -> None:
    if special == "fifo":
        os.mkfifo(tmp_path / special)
    with pytest.raises(UserError, match=r"cannot be read: .*found a (FIFO|device), allowed"):
        load_params(tmp_path / special)


@pytest.mark.parametrize("split", ["../x", "", "a/b", ".hidden", "a" * 65])
def test_a_test_split_cannot_lead_outside(split: str) -> None:
    with pytest.raises(UserError, match=r"test_split"):
        parse_dataset({"name": "a", "source": "image_folder", "test_split": split}, "params.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ngrid: !!bool x", "line 2: not valid YAML: bool 'x' cannot be read"),
        ("\n\ngrid: !!int", "line 3: not valid YAML: int '' cannot be read"),
        ("grid: !!float x", "line 1: not valid YAML: float 'x' cannot be read"),
        ("? {a: 1}\n: 2", "line 1: not valid YAML: found unhashable key"),
        ("? [a, [b]]\n: 2", "line 1: not valid YAML: map '…' cannot be read"),
        ("a: 1\ngrid: 2024-13-45", "line 2: not valid YAML: timestamp '2024-13-45' cannot be read"),
        ("grid:\n\tseeds: 1", r"line 2: not valid YAML: found character '\t'"),
        ("grid: 1\ngrid: 2", 'line 2: not valid YAML: found duplicate key "grid"'),
        ("grid: 1\n--- 2", "line 2: not valid YAML: but found another document"),
        ("a:\n  !!python/object:os.system x", "line 2: not valid YAML: could not determine"),
        ("a: *b", "line 1: not valid YAML: found undefined alias"),
        ("\n" + "[" * 50_000, "line 2: not valid YAML: it is nested too deeply"),
        ("- " * 50_000, "line 1: not valid YAML: it is nested too deeply"),
        ("&a a: &a b\n? &a c\n", "unknown key 'a'"),
        ("\n\xff", "line 2: not valid YAML: a byte that is no UTF-8"),
        ("a: 1\n" * 50_000, "too large, allowed: at most 200,000 bytes"),
        ("", "expected the keys"),
    ],
)
def test_odd_yaml_is_refused_at_once_with_its_line(
    tmp_path: Path, text: str, said: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="latin-1")
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert time.process_time() - started < 4
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert not recwarn


@pytest.mark.parametrize("kind", ["folder", "pipe", "zeros"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "params.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"params\.yaml: cannot be read: "):
        load_params(path)


@pytest.mark.parametrize(
    ("grid", "study", "said"),
    [
        ({"base_lrs": ["2^-6", "2^1023"]}, {}, "grid.base_lrs.1: found '2^1023', allowed: 2^-126"),
        ({"base_lrs": [1e308]}, {}, "grid.base_lrs.0: found 1e+308, allowed: 2^-126 to 2^127"),
        ({"base_lrs": [5e-324]}, {}, "grid.base_lrs.0: found 5e-324, allowed: 2^-126 to 2^127"),
        ({"base_lrs": ["2^-1075"]}, {}, "grid.base_lrs.0: found '2^-1075', allowed: 2^-126"),
        ({"base_lrs": ["1e999"]}, {}, "grid.base_lrs.0: found '1e999', allowed: 2^-126"),
        ({"base_lrs": 1e308}, {}, "grid.base_lrs: found 1e+308, allowed: a list"),
        ({"base_lrs": ["2^-6", "2^126"]}, {}, "studies.a.base_lr: found 2^126 at batch size 4"),
        ({}, {"base_lrs": ["2^127"]}, "studies.a.base_lr: found 2^127 at batch size 4"),
        ({"base_lrs": [0.001 * (i + 1) for i in range(40_000)]}, {}, "at most 10000 items"),
        ({"batch_sizes": [*range(2, 10_000)], "dependent": [{"name": "a", "after": "a"}]}, {},
         "found 19996 columns, allowed: at most 10000"),
        ({"batch_sizes": [2**30]}, {"budget": "updates of 1", "epochs": 2},
         "give 2.14748e+09 epochs at batch size 1073741824, allowed: a whole number up to"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_trained_with_are_refused(
    grid: dict[str, Any], study: dict[str, Any], said: str
) -> None:
    settings = {"model": "resnet8", "norm": "none", "epochs": 1, "weight_decay": 0.0}
    with pytest.raises(UserError) as caught:
        parse_params(
            {
                "dataset": {"name": "d", "source": "digits"},
                "grid": {"studies": ["a"], "batch_sizes": [4], "base_lrs": [1], "seeds": 1} | grid,
                "studies": {"a": settings | study},
            },
            "params.yaml",
        )
    assert said in str(caught.value)


def test_many_values_take_no_time() -> None:
    """As many as a grid may have."""
    text = ", ".join(f"{1e-4 * (i + 1):.6g}" for i in range(10_000))
    started = time.process_time()
    params = parse_params(
        yaml_file.parse(
            f"""
dataset: {{name: d, source: digits}}
grid: {{studies: [a], batch_sizes: [4], base_lrs: [{text}], seeds: 1}}
studies: {{a: {{model: resnet8, norm: none, epochs: 1, weight_decay: 0.0}}}}""",
            "params.yaml",
        ),
        "params.yaml",
    )
    assert len(params.grid.base_lrs) == 10_000
    assert time.process_time() - started < 4
