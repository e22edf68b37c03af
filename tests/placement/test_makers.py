"""Whose finished runs are used again: true of literal records, as they lie on disks."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.engines import same_numbers
from smallbatch.engines.kinds import Engine
from smallbatch.engines.made_by import Maker, code_digest, made_by_on
from smallbatch.placement.makers import Makers, makers_of

STUDY = StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=0.0)
TORCH, TIMM, NUMPY = (metadata.version(name) for name in ("torch", "timm", "numpy"))
BASE = TORCH.partition("+")[0]
THERE = "0123456789abcdef AVX512"  # another processor


def text(
    where: str = f"cpu {THERE} torch",
    *,
    engine: Engine = "loop",
    torch: str = TORCH,
    timm: str = TIMM,
    numpy: str = NUMPY,
    triton: str = "",
) -> str:
    return f"{code_digest(engine)} torch {torch} timm {timm} numpy {numpy} {triton}{where}"


def makers(placed: Engine = "loop", **compute: Any) -> Makers:
    own = made_by_on(placed, "cpu", STUDY)
    return makers_of(STUDY, ComputeConfig(**compute), placed, batch_size=32, exact=(own,))


def test_a_maker_is_taken_apart() -> None:
    found = Maker.parse(
        "c0de torch 2.9.1+cu128 timm 1.0.22 numpy 2.3.5 triton 3.5.1 cuda NVIDIA H200 NVL AVX512 "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 NVIDIA_TF32_OVERRIDE=1 TIMM_USE_NAFLEXVIT=true triton"
    )
    assert found == Maker(
        code="c0de",
        versions={"torch": "2.9.1", "timm": "1.0.22", "numpy": "2.3.5", "triton": "3.5.1"},
        choices=frozenset({"NVIDIA_TF32_OVERRIDE=1", "TIMM_USE_NAFLEXVIT=true"}),
        device="cuda",
        hardware="NVIDIA H200 NVL AVX512 CUBLAS_WORKSPACE_CONFIG=:4096:8",
        kernels="triton",
    )
    native = Maker.parse("c torch 2 timm 1 numpy 2 cpu 00ff AVX2 00112233445566aa")
    assert (native.hardware, native.kernels) == ("00ff AVX2", "native")


@pytest.mark.parametrize("said", ["", "code", "code cpu", "code torch cpu x torch", "a b c d e"])
def test_what_nobody_says_of_a_run_is_nobody(said: str) -> None:
    with pytest.raises(ValueError, match="made by: found"):
        Maker.parse(said)
    assert said not in makers()


def test_what_is_made_here_is_read_back() -> None:
    for engine in ("loop", "stacked"):
        own = Maker.parse(made_by_on(engine, "cpu", STUDY))
        assert own.code == code_digest(engine)
        assert own.versions == {"torch": BASE, "timm": TIMM, "numpy": NUMPY}
        assert own.device == "cpu"
    assert own.kernels in ("native", "torch")


@pytest.mark.parametrize(
    "made",
    [
        text(),
        text("cpu 0123456789abcdef DEFAULT ATEN_CPU_CAPABILITY=default torch"),
        text("cuda NVIDIA H200 AVX2 torch"),
        text("cuda NVIDIA H200 AVX2 grouped", engine="stacked"),
        text(f"cpu {THERE} 0123456789abcdef", engine="stacked"),
        text(torch=f"{BASE}+cu999"),
        text(torch=BASE),
    ],
)
def test_runs_of_other_hardware_and_either_engine_are_taken_over(made: str) -> None:
    for engine in ("loop", "stacked"):
        assert made in makers(engine)


@pytest.mark.parametrize(
    "made",
    [
        text(torch="2.0.0"),
        text(timm="0.9.0"),
        text(numpy="1.26.0"),
        text().replace(code_digest("loop"), "0" * 64),
        text(f"cpu {THERE} TIMM_USE_NAFLEXVIT=true torch"),
        text(f"cpu {THERE} DNNL_DEFAULT_FPMATH_MODE=BF16 torch"),
    ],
)
def test_runs_of_other_code_libraries_models_and_bits_are_not(made: str) -> None:
    for engine in ("loop", "stacked"):
        assert made not in makers(engine)


def test_variables_that_are_the_same_there_and_here_are_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIMM_USE_NAFLEXVIT", "true")
    assert text(f"cpu {THERE} TIMM_USE_NAFLEXVIT=true torch") in makers()
    assert text() not in makers()


def test_tritons_version_counts_where_both_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = text("cuda NVIDIA H200 AVX2 triton", engine="stacked", triton="triton 1.2.3 ")
    real = metadata.version

    def installed(version: str | None) -> None:
        def find(name: str) -> str:
            if name == "triton" and version is None:
                raise metadata.PackageNotFoundError(name)
            return version if name == "triton" and version else real(name)

        monkeypatch.setattr(metadata, "version", find)

    for version, taken in ((None, True), ("1.2.3", True), ("1.2.4", False)):
        installed(version)
        assert (made in makers("stacked")) is taken


def test_an_engine_or_a_device_that_is_asked_for_has_to_have_made_them() -> None:
    loop, stacked = text(), text(engine="stacked")
    gpu = text("cuda NVIDIA H200 AVX2 torch")
    by_loop = makers(engine="loop")
    assert (loop in by_loop, stacked in by_loop, gpu in by_loop) == (True, False, True)
    on_cpu = makers(device="cpu")
    assert (loop in on_cpu, stacked in on_cpu, gpu in on_cpu) == (True, True, False)
    fallen_back = makers_of(STUDY, ComputeConfig(engine="stacked"), "loop", batch_size=32)
    assert loop in fallen_back
    assert stacked in fallen_back


def test_earlier_code_with_the_same_numbers_counts_on_other_hardware_as_far_as_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declared = tmp_path / "same_numbers.json"
    entry = {"now": code_digest("stacked"), "earlier": ["e" * 64]}
    declared.write_text(json.dumps({"stacked": entry}))
    monkeypatch.setattr(same_numbers, "FILE", declared)
    same_numbers._earlier.cache_clear()  # pyright: ignore[reportPrivateUsage]
    try:
        found = makers("stacked")
        adamw = StudyConfig(
            model="resnet8", norm="none", epochs=1, weight_decay=0.0, optimizer="adamw"
        )
        of_others = makers_of(adamw, ComputeConfig(), "stacked", batch_size=32)
    finally:
        same_numbers._earlier.cache_clear()  # pyright: ignore[reportPrivateUsage]
    now, then = code_digest("stacked"), "e" * 64
    ways = {"grouped": True, "triton": False, "micro_batch=8 torch": False, "ranks=2 torch": False}
    for way, taken in ways.items():
        made = text(f"cuda NVIDIA H200 AVX2 {way}", engine="stacked").replace(now, then)
        assert (made in found) is taken, way
        assert made not in of_others
        assert made.replace(then, now) in found
    streamed = made_by_on("stacked", "cpu", STUDY, streamed=True)
    assert streamed in found
    assert streamed.replace(now, then) not in found


def test_one_kind_of_hardware_where_that_is_asked_for() -> None:
    own, there = made_by_on("loop", "cpu", STUDY), text()
    elsewhere = text("cuda NVIDIA H200 AVX2 torch")
    any_, same = makers(), makers(same_hardware=True)
    mixed = {"a": own, "b": there, "c": None}
    assert any_.among(mixed) == {"a", "b"}
    assert same.among(mixed) == {"a"}
    assert same.among({"a": there, "b": elsewhere}) == set()
    assert same.among({"a": there, "b": None}) == set()  # the present hardware is to train b
    assert same.among({"a": there, "b": text(engine="stacked")}) == {"a", "b"}


def test_a_micro_batch_that_is_asked_for_has_to_have_made_them() -> None:
    whole, parts = text(), text(f"cpu {THERE} micro_batch=8 torch")
    found = Maker.parse(parts)
    assert (found.micro_batch, found.hardware, found.kernels) == (8, THERE, "torch")
    assert Maker.parse(whole).micro_batch is None
    assert Maker.parse(made_by_on("loop", "cpu", STUDY, None, 8)).micro_batch == 8
    assert "micro" not in made_by_on("loop", "cpu", STUDY)
    # The third is one of all 32 examples, which divides nothing.
    for asked, taken in (("auto", (True, True)), (8, (False, True)), (32, (True, False)),
                         (16, (False, False))):  # fmt: skip
        compute = ComputeConfig.model_validate({"micro_batch": asked})
        by = makers_of(STUDY, compute, "loop", batch_size=32)
        assert (whole in by, parts in by) == taken, asked
    assert makers().place(parts)["micro_batch"] == 8
    assert "micro_batch" not in makers().place(whole)


def test_where_a_run_was_made_is_told() -> None:
    assert makers().place(text("cuda NVIDIA H200 AVX2 triton", engine="stacked")) == {
        "device": "cuda", "hardware": "NVIDIA H200 AVX2", "engine": "stacked", "kernels": "triton",
    }  # fmt: skip
    assert makers().place(text())["kernels"] is None
    assert makers().place("code") == {}
