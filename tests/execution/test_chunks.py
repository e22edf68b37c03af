"""Which runs are computed together: as many as fill vectors, and those that already were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines.kinds import Engine
from smallbatch.engines.lanes.native import algorithms
from smallbatch.engines.resident import load_resident
from smallbatch.execution.chunks import Job, plan_chunks
from smallbatch.execution.watch import Watch
from smallbatch.placement.placement import Placement
from smallbatch.placement.workload import Method
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.run import Run
from smallbatch.records.checkpoints import ChunkPlan

PLAIN = StudyConfig(model="resnet8", epochs=1, weight_decay=0.0)
GHOST = StudyConfig(
    model="resnet8", norm="ghost", bn_batch_sizes=(2, 4), epochs=1, weight_decay=0.0
)


@pytest.fixture(autouse=True)
def vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of four lanes, or of eight if a batch norm sees two examples at a time."""

    def lanes(model: torch.nn.Module, batch_size: int, image: tuple[int, int, int]) -> int:
        assert (batch_size, image) == (4, (2, 6, 6))
        return 8 if any(getattr(it, "bn_batch_size", 0) == 2 for it in model.modules()) else 4

    monkeypatch.setattr(algorithms, "lanes_of_a_vector", lanes)


def column_of(data: Dataset, study: StudyConfig, runs: int) -> Column:
    base_lrs = [2.0**-i for i in range(runs, 0, -1)]
    return plan_column("s", study, data, batch_size=4, base_lrs=base_lrs, seeds=[0])


def sizes(
    column: Column,
    data: Dataset,
    folder: Path,
    *,
    engine: Engine = "stacked",
    native: str | None = "kernels",
    missing: tuple[Run, ...] | None = None,
) -> list[int]:
    """The number of runs of each chunk, of two workers with memory for all."""
    placement = Placement("cpu", Method(engine), 2, 2**40, "", native=native)
    job = Job(column.runs, missing or column.runs, data, placement, folder, {}, ChunkPlan(folder),
              60, Watch(), lambda: None)  # fmt: skip
    resident: Any = load_resident(data, augment=False, device=torch.device("cpu"))
    planned = plan_chunks(job, resident)
    hashes = {run.hash for run in job.missing}
    assert hashes <= {name for chunk in planned for name in chunk}
    assert job.plan.read() == planned
    return [len(chunk) for chunk in planned]


def test_native_lanes_fill_vectors_and_others_are_dealt_evenly(
    noise: Dataset, tmp_path: Path
) -> None:
    column = column_of(noise, PLAIN, 11)
    assert sizes(column, noise, tmp_path / "native") == [7, 4]
    assert sizes(column, noise, tmp_path / "torch", native=None) == [6, 5]
    loop = sizes(column, noise, tmp_path / "loop", engine="loop", native=None)
    assert loop == [1] * 11


def test_each_bn_batch_size_has_vectors_of_its_own(noise: Dataset, tmp_path: Path) -> None:
    column = column_of(noise, GHOST, 7)
    assert sizes(column, noise, tmp_path) == [7, 4, 3]


def test_chunks_of_an_earlier_attempt_stay_and_the_rest_is_dealt(
    noise: Dataset, tmp_path: Path
) -> None:
    column = column_of(noise, PLAIN, 17)
    kept = [run.hash for run in column.runs[::3]]  # six, as nobody would deal them now
    ChunkPlan(tmp_path).write([kept])
    missing = column.runs[3:]
    assert sizes(column, noise, tmp_path, missing=missing) == [6, 5, 4]
    assert ChunkPlan(tmp_path).read()[0] == kept
