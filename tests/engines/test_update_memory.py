"""Bytes of one update, against counts by hand, real tensors and what NumPy allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from smallbatch.config.study import StudyConfig
from smallbatch.engines import update_memory as counted
from smallbatch.engines.kinds import Engine
from smallbatch.engines.lanes import native
from smallbatch.engines.lanes.native.lanes import NativeLanes
from smallbatch.engines.loop import initial_model
from smallbatch.engines.update_memory import loop_bytes, measure_column, stacked_bytes
from smallbatch.errors import UserError
from smallbatch.models.inputs import own_input
from smallbatch.protocol.run import Run
from tests.noise import make_dataset

ENGINES: tuple[Engine, ...] = ("loop", "stacked")
CPU = torch.device("cpu")
OWN = """
import torch
from torch import nn

def make(num_classes, in_chans):
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 50), nn.ReLU(), nn.Linear(50, num_classes))

class Looks(nn.Module):
    '''Reads a number from its images, which the meta device has not.'''
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.fc = nn.Linear(72, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (2 if float(x.sum()) > 1 else 1)

class Fails(Looks):
    def forward(self, x):
        raise RuntimeError("never again\\nbecause")
"""
needs_native = pytest.mark.skipif(
    not native.takes(StudyConfig(model="resnet8", norm="none", epochs=1, weight_decay=0), "cpu"),
    reason="there is no C++ compiler",
)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_memory.py").write_text(OWN)


def study(model: str, norm: str = "none", **settings: Any) -> StudyConfig:
    raw = {"model": model, "norm": norm, "epochs": 1, "weight_decay": 1e-4}
    return StudyConfig.model_validate({**raw, **settings})


MOMENTS = [("sgd", {}, 0), ("momentum", {"momentum": 0.9}, 1), ("adamw", {}, 2)]


@pytest.mark.parametrize(("optimizer", "more", "moments"), MOMENTS)
@pytest.mark.parametrize("m", [1, 7, 64])
def test_two_layers_are_counted_by_hand(
    m: int, optimizer: str, more: dict[str, Any], moments: int
) -> None:
    settings = study("own_memory:make", optimizer=optimizer, **more)
    weights = 4 * (72 * 50 + 50 + 50 * 3 + 3)
    image, label = 4 * 72, 8
    hidden, softmax = 4 * 50, 4 * 3  # after its ReLU, which takes it from its own output
    flat = image  # a copy, as a pixel's channels are beside each other in the batch
    each = image + label + flat + hidden + softmax
    # A number that the loss keeps, by which a mean would be divided.
    fixed = weights * (2 + moments) + 4
    assert loop_bytes(settings, m, (2, 6, 6), 3) == fixed + m * each


@pytest.mark.parametrize(
    ("model", "norm", "more", "size"),
    [
        *(("resnet8", norm, more, 10) for norm, more in (
            ("none", {}), ("batch", {}), ("ghost", {"bn_batch_size": 4}))),
        *(("alexnet", norm, more, 32) for norm, more in (
            ("none", {}), ("batch", {}), ("batch_conv", {}), ("ghost", {"bn_batch_size": 2}))),
        *(("resnet20", norm, more, 16) for norm, more in (
            ("none", {}), ("batch", {}), ("ghost", {"bn_batch_size": 4}), ("group", {}))),
        ("resnet10t", "batch", {}, 32),
        ("resnet10t", "ghost", {"bn_batch_size": 4}, 32),
    ],
)  # fmt: skip
def test_without_memory_the_count_is_that_of_real_tensors(
    model: str, norm: str, more: dict[str, Any], size: int
) -> None:
    settings = study(model, norm, **more)
    image = (3, size, size)
    data = make_dataset(n=4, test=4)
    for m in (4, 8, 24):
        run = Run(settings, "", m, 0.1, 0)
        real = initial_model(run, counted._blank(image, len(data.meta.classes), 1))
        expected = counted._count(real, run, image, m)
        assert all(it.device == CPU for it in real.parameters())
        assert loop_bytes(settings, m, image, len(data.meta.classes)) == expected


def test_real_tensors_are_counted_by_their_own_memory() -> None:
    """A twin: the addresses of all that autograd keeps, and of what an update needs."""
    settings, m = study("resnet8", "batch"), 6
    run = Run(settings, "", m, 0.1, 0)
    model = initial_model(run, counted._blank((3, 8, 8), 5, 1))
    images, labels = torch.randn(m, 3, 8, 8), torch.arange(m) % 5
    kept: dict[int, int] = {}
    everything: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        everything.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda it: it):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    named = [*model.parameters(), *model.buffers(), images, labels]
    for tensor in named:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    own = sum(it.numel() * it.element_size() for it in named)
    gradient = sum(it.numel() * 4 for it in model.parameters())
    assert loop_bytes(settings, m, (3, 8, 8), 5) == sum(kept.values()) + own + gradient


@pytest.mark.parametrize("model", ["resnet8", "resnet20", "alexnet"])
def test_twice_the_examples_need_twice_what_is_of_examples(model: str) -> None:
    """Without a norm nothing but weights and the loss's divisor is the same at every m."""
    settings = study(model)
    found = {m: loop_bytes(settings, m, (3, 16, 16), 10) for m in (1, 2, 4, 256, 512)}
    example = found[2] - found[1]
    fixed = found[1] - example
    assert example > 0
    assert found == {m: fixed + m * example for m in found}
    run = Run(settings, "", 2, 0.1, 0)
    parameters = initial_model(run, counted._blank((3, 16, 16), 10, 1)).parameters()
    assert fixed == 8 * sum(it.numel() for it in parameters) + 4


def test_a_model_that_needs_numbers_is_counted_on_real_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = study("own_memory:Looks")
    weights = 4 * (72 * 3 + 3)
    m = 16
    # Image, label, the flattened copy, the softmax; its product by a number keeps nothing.
    needed = 2 * weights + 4 + m * (4 * 72 + 8 + 4 * 72 + 4 * 3)
    assert loop_bytes(settings, m, (2, 6, 6), 3) == needed
    monkeypatch.setattr(counted, "free_memory", lambda: 2 * needed)
    assert loop_bytes(settings, m, (2, 6, 6), 3) == needed
    monkeypatch.setattr(counted, "free_memory", lambda: 2 * needed - 2)
    with pytest.raises(UserError, match=r"^a batch of 16 needs about 0\.00 GiB of memory$"):
        loop_bytes(settings, m, (2, 6, 6), 3)
    with pytest.raises(UserError, match=r"^model: 'own_memory:Fails' does not take .* never again"):
        loop_bytes(study("own_memory:Fails"), m, (2, 6, 6), 3)


def test_bf16_halves_activations_and_keeps_weights() -> None:
    """Autocast's copies of the weights are part of what the forward pass leaves."""
    whole, half = (
        [loop_bytes(study("resnet8", precision=it), m, (3, 16, 16), 10) for m in (64, 128)]
        for it in ("float32", "bf16")
    )
    assert 0.45 < (half[1] - half[0]) / (whole[1] - whole[0]) < 0.65


@needs_native
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("m", [2, 48])
def test_a_lane_is_what_numpy_has_allocated_for_it(m: int, optimizer: str) -> None:
    settings, image = study("resnet8", "batch", optimizer=optimizer), (3, 8, 8)
    found = stacked_bytes(settings, m, image, 10)
    run, data = Run(settings, "", m, 0.1, 0), counted._blank(image, 10, 1)
    NativeLanes([run], data, torch.float32)  # what is kept from now on is there
    tracemalloc.start()
    try:
        lanes = NativeLanes([run], data, torch.float32)
        domain = np.lib.tracemalloc_domain
        traces = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.DomainFilter(inclusive=True, domain=domain)]
        )
        allocated = sum(it.size for it in traces.traces)
    finally:
        tracemalloc.stop()
    evaluation = counted.arrays_of(lanes._evaluation)
    assert evaluation
    assert found == allocated - sum(it.nbytes for it in evaluation.values())
    assert found is not None
    # Its activations alone: the network's own sum of its buffers.
    assert found > lanes._network.bytes > 0


@needs_native
def test_what_a_lane_has_for_each_example_grows_with_them() -> None:
    """From a batch in parts of 8 examples to one in parts of 32, of vectors that are full."""
    settings, image = study("resnet8", "none"), (3, 8, 8)
    few, more = (stacked_bytes(settings, m, image, 10) or 0 for m in (128, 512))
    assert 2 * few < more < 4 * few  # the weights are the rest


def test_a_timm_models_lanes_are_not_counted_on_a_cpu() -> None:
    assert stacked_bytes(study("resnet10t", "batch"), 4, (3, 32, 32), 10) is None


def test_rows_are_of_every_batch_size_and_the_most_of_several_bn_batches() -> None:
    data = make_dataset(channels=3, size=8)
    settings = study("resnet10t", "ghost", bn_batch_sizes=(2, 4))
    rows = [
        measure_column("s", settings, data, batch_size=m, engine=engine, device="cpu")
        for m in (2, 8) for engine in ENGINES
    ]  # fmt: skip
    assert rows[1::2] == [None, None]
    rows = [row for row in rows if row is not None]
    few = settings.model_copy(update={"bn_batch_sizes": None, "bn_batch_size": 2})
    expected = [loop_bytes(few, m, (3, 8, 8), 3) for m in (2, 8)]
    assert [row["bytes"] for row in rows] == expected  # more sub-batches, more statistics
    place = {"dataset": "noise", "fingerprint": "f" * 64, "study": "s", "model": "resnet10t",
             "norm": "ghost", "engine": "loop", "device": "cpu"}  # fmt: skip
    assert rows == [{**place, "batch_size": m, "bytes": n}
                    for m, n in zip((2, 8), expected, strict=True)]  # fmt: skip


def test_images_have_the_size_that_the_study_trains_on() -> None:
    data = make_dataset(channels=3, size=32)
    data = replace(data, meta=replace(data.meta, short_side=200))
    settings = study("resnet10t", "batch")
    timm = settings.model_copy(update={"input": "timm"})
    side = own_input("resnet10t").side
    for given, pixels in ((settings, 32), (timm, side)):
        row = measure_column("s", given, data, batch_size=4, engine="loop", device="cpu")
        assert row is not None
        assert row["bytes"] == loop_bytes(settings, 4, (3, pixels, pixels), 3)
        assert row["fingerprint"] == data.meta.fingerprint
    assert side > 100


def test_what_cannot_be_a_column_cannot_be_measured() -> None:
    settings = study("resnet10t", "ghost", bn_batch_sizes=(4, 8))
    with pytest.raises(UserError, match=r"studies\.s\.bn_batch_sizes: found none up to "):
        measure_column("s", settings, make_dataset(), batch_size=2, engine="loop", device="cpu")


def allocated(update: Callable[[], None]) -> tuple[int, int]:
    """Bytes that torch's allocator on the CPU gave out at most, and in the end, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        update()
    profiler: Any = found.profiler
    every = profiler.kineto_results.events()
    events = sorted((it.start_ns(), it.nbytes()) for it in every if it.name() == "[memory]")
    at = np.cumsum([count for _, count in events])
    return int(at.max()), int(at[-1])


@pytest.mark.parametrize(
    ("model", "norm", "m"),
    [("resnet8", "none", 2), ("resnet8", "none", 64), ("resnet20", "batch", 32),
     ("alexnet", "none", 64), ("resnet10t", "batch", 64)],
)  # fmt: skip
def test_a_real_update_takes_what_is_counted_and_some_scratch(
    model: str, norm: str, m: int
) -> None:
    """The update that a GPU's allocator watches, on a CPU; in the end all is free again."""
    settings, image = study(model, norm), (3, 32, 32)
    run = Run(settings, "", m, 0.1, 0)
    most, left = allocated(lambda: counted._update_by_loop(run, image, 10, CPU))
    assert 1 < most / loop_bytes(settings, m, image, 10) < 1.7
    assert left == 0


@pytest.mark.parametrize("model", ["resnet8", "resnet10t"])  # by layers, and by vmap
def test_a_lanes_update_of_which_the_allocators_peak_is_taken_runs(model: str) -> None:
    settings, image = study(model, "batch"), (3, 32, 32)
    found: list[int] = []
    for m in (4, 32):
        run = Run(settings, "", m, 0.1, 0)
        most, left = allocated(partial(counted._update_by_lane, run, image, 10, CPU))
        assert left == 0
        found.append(most)
    each = loop_bytes(settings, 32, image, 10) - loop_bytes(settings, 4, image, 10)
    assert found[1] - found[0] > 0.8 * each


def test_on_a_gpu_the_second_updates_peak_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator made up: 100 bytes are there, 7 of a workspace stay after the first update."""
    calls: list[str] = []
    state = {"now": 100, "peak": 0}

    def update() -> None:
        calls.append("update")
        state["now"] = 107
        state["peak"] = max(state["peak"], state["now"] + (50 if len(calls) == 1 else 40))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: state["now"])
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: state.update(peak=state["now"])
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state["peak"])
    assert counted._allocated(update) == 40
    assert calls == ["update", "update"]

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    with pytest.raises(UserError, match=r"^on the GPU it fails: CUDA out of memory\.$"):
        counted._allocated(fails)
