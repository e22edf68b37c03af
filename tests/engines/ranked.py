"""Trainings by several ranks and by one process, for tests."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smallbatch.config.study import StudyConfig
from smallbatch.engines import loop
from smallbatch.engines.ranks import Ranks
from smallbatch.engines.resident import load_resident
from smallbatch.errors import UserError
from smallbatch.protocol.run import Run
from tests.engines.test_streamed import dataset, streamed
from tests.noise import make_dataset

if TYPE_CHECKING:
    from smallbatch.engines.batches import BatchSource
    from smallbatch.protocol.outcome import RunResult

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run, how it is computed, and on what."""

    norm: str
    m: int
    bn: int | None = None
    micro: int | None = None
    model: str = "resnet8"
    dtype: torch.dtype = torch.float64
    streamed: bool = False
    rate: float = 2.0**-9
    updates: int = 50
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def train(self, ranks: Ranks | None = None) -> RunResult:
        settings = {
            "weight_decay": 1e-3,
            "augment": True,
            "epochs": -(-self.updates * self.m // 23),
        }
        study = StudyConfig.model_validate(
            {"model": self.model, "norm": self.norm, "bn_batch_size": self.bn, **settings}
            | self.more
        )
        run = Run(study, "f", self.m, self.rate, seed=3)
        return loop.train(run, self.source(), dtype=self.dtype, micro_batch=self.micro, ranks=ranks)

    def source(self) -> BatchSource:
        if self.streamed:
            return streamed(dataset(23, side=8))
        data = make_dataset(23, size=8)
        return load_resident(data, augment=True, device=CPU, dtype=self.dtype)


def train_by(plans: dict[int, dict[str, Case]], folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each rank has in the end, by number of ranks and case; an error as its text.

    They train in ``folder``, all as forks of one process that has imported torch and trained
    nothing.
    """
    torch.save(plans, folder / "plans.pt")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from tests.engines.ranked import main; main()"]
    subprocess.run(command, cwd=folder, env=env, check=True, timeout=240)
    return {
        size: [torch.load(folder / f"{size}-{i}.pt", weights_only=False) for i in range(size)]
        for size in plans
    }


def main() -> None:
    torch.set_num_threads(1)
    plans = torch.load("plans.pt", weights_only=False)
    fork = multiprocessing.get_context("fork")
    for size, cases in plans.items():
        ranks = [fork.Process(target=_rank, args=(i, size, cases)) for i in range(size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert not any(rank.exitcode for rank in ranks)


def _rank(rank: int, size: int, cases: dict[str, Case]) -> None:
    ranks, found = Ranks.meet(rank, size, "cpu", f"meet-{size}"), dict[str, Any]()
    for name, case in cases.items():
        try:
            found[name] = case.train(ranks)
        except UserError as error:
            found[name] = str(error)
    torch.save(found, f"{size}-{rank}.pt")
