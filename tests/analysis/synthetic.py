"""Result files of made-up studies whose right answers are known, in the format `train` writes.

A run diverges where η̃ exceeds η̃₀ / (1 + m/m*), rounded to the grid; below that its accuracy falls
off with the distance (in octaves) from the best η̃ of its batch size, and with m.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.protocol.run import PROTOCOL

if TYPE_CHECKING:
    from pathlib import Path

BATCH_SIZES = (2, 8, 32, 64, 128, 512)
BASE_LRS = tuple(2.0**k for k in range(-10, -2))
N_TRAIN = 1024
CLASSES = 10


@dataclass(frozen=True)
class Study:
    """One made-up study.

    Attributes:
        log_base_lr_0, m_star: the limit of stability log2 η̃₀ - log2(1 + m/m*).
        best_m: the batch size with the highest accuracy.
        peak: the accuracy reached there.
        population_gain: by how much accuracies with recomputed batch-norm statistics are above it.
    """

    name: str
    log_base_lr_0: float = -4.0
    m_star: float = 32.0
    best_m: int = 8
    peak: float = 0.9
    population_gain: float = 0.001
    seeds: int = 3
    epochs: int = 12
    protocol: int = PROTOCOL
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    base_lrs: tuple[float, ...] = BASE_LRS
    settings: dict[str, Any] = field(default_factory=dict)
    # (m, η̃) → how many of its seeds diverge although η̃ is below the limit
    unlucky: dict[tuple[int, float], int] = field(default_factory=dict)

    def limit(self, batch_size: int) -> float:
        """The largest stable η̃."""
        return 2.0 ** (self.log_base_lr_0 - math.log2(1 + batch_size / self.m_star))

    def accuracy(self, batch_size: int, base_lr: float) -> float:
        """The final test accuracy without noise; best one octave or so below the limit."""
        loss_by_m = 0.015 * abs(math.log2(batch_size / self.best_m))
        # The limit is continuous, the grid is not: the first grid value below it comes out best.
        too_slow = max(0.0, math.log2(self.limit(batch_size) / base_lr))
        return 0.1 + (self.peak - 0.1 - loss_by_m) / (1 + (too_slow / 4) ** 4)


STUDIES = (
    Study(
        "resnet8",
        settings={"norm": "none", "figure": "2"},
        peak=0.84,
        log_base_lr_0=-5.0,
        unlucky={(8, 2.0**-7): 1, (2, 2.0**-6): 1, (128, 2.0**-9): 2},
    ),
    Study("resnet8-bn", settings={"norm": "batch", "figure": "8"}, log_base_lr_0=-3.0, best_m=8),
)


def write_models(
    models_dir: Path, studies: tuple[Study, ...] = STUDIES, dataset: str = "synthetic"
) -> Path:
    """Write every column of every study; return the models directory."""
    for study in studies:
        for batch_size in study.batch_sizes:
            _write_column(models_dir / dataset / study.name / f"m{batch_size}", study, batch_size)
    return models_dir


def _write_column(column: Path, study: Study, batch_size: int) -> None:
    column.mkdir(parents=True)
    dataset = column.parent.parent.name
    histories: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    sizes = study.settings.get("bn_batch_sizes") or [None]
    for index, bn in enumerate(size for size in sizes if (size or 0) <= batch_size):
        for base_lr, seed in itertools.product(study.base_lrs, range(study.seeds)):
            key = f"{dataset}/{study.name}/{batch_size}/{base_lr}/{seed}" + f"/{bn}" * (index > 0)
            digest = hashlib.sha256(key.encode()).hexdigest()
            rows, run = _run(study, batch_size, base_lr, seed, digest)
            histories += rows
            runs.append(run | {"bn_batch_size": bn})
    pd.DataFrame(histories).to_parquet(column / "history.parquet", index=False)
    settings = {
        "model": "resnet8",
        "norm": "none",
        "bn_batch_size": None,
        "augment": False,
        "epochs": study.epochs,
        "weight_decay": 1e-4,
        "milestones": [0.5, 0.75],
        "lr_decay": 0.1,
        "warmup": 0.0,
        "precision": "float32",
        "base_lrs": None,
        "figure": None,
        **study.settings,
    }
    content = {
        "protocol": study.protocol,
        "dataset": {
            "name": dataset,
            "source": "digits",
            "fingerprint": hashlib.sha256(dataset.encode()).hexdigest(),
            "classes": [str(label) for label in range(CLASSES)],
            "channels": 1,
            "height": 8,
            "width": 8,
            "mean": [0.3],
            "std": [0.2],
            "counts": {"train": N_TRAIN, "validation": 128, "test": 256},
        },
        "study": study.name,
        "batch_size": batch_size,
        "settings": settings,
        "runs": runs,
    }
    (column / "runs.json").write_text(json.dumps(content, indent=1))
    seconds = 40.0 / math.sqrt(batch_size)
    timing = {
        "environment": {
            "cpu": "Example CPU",
            "cores": 2,
            "gpu": None,
            "python": "3.11.9",
            "torch": "2.11.0",
            "torchvision": "0.26.0",
            "timm": "1.0.31",
            "smallbatch": "0.1.0",
            "platform": "Linux",
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "git_dirty": False,
        },
        "column": {
            "started": "2026-01-02T03:04:05Z",
            "seconds": seconds * len(runs),
            "images_per_second": 1000.0,
            "workers": 2,
            "engine": "loop",
            "device": "cpu",
            "stage": f"train@{study.name}-{batch_size}",
            "peak_memory_bytes": 10**8,
        },
        "runs": {
            run["run"]: {
                "started": "2026-01-02T03:04:05Z",
                "seconds": seconds,
                "images_per_second": 500.0,
            }
            for run in runs
        },
    }
    (column / "timing.json").write_text(json.dumps(timing, indent=1))


def _run(
    study: Study, batch_size: int, base_lr: float, seed: int, digest: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    per_epoch = N_TRAIN // batch_size
    adamw = study.settings.get("optimizer") == "adamw"
    unlucky = study.unlucky.get((batch_size, base_lr), 0) > seed
    diverged = base_lr > study.limit(batch_size) or unlucky
    # The further beyond the limit, the sooner; just beyond it only after some epochs.
    beyond = math.log2(base_lr / study.limit(batch_size)) if diverged else 0.0
    last = min(study.epochs, max(1, round(3 - beyond))) if diverged else study.epochs
    noise = (int(digest[:4], 16) / 65535 - 0.5) * 0.008
    final = study.accuracy(batch_size, base_lr) + noise
    identity = {
        "run": digest[:16],
        "study": study.name,
        "batch_size": batch_size,
        "base_lr": base_lr,
        "seed": seed,
    }
    rows: list[dict[str, Any]] = []
    for epoch in range(1, last + 1):
        gone = diverged and epoch == last
        learned = 0.1 + (final - 0.1) * (1 - math.exp(-4 * epoch / study.epochs))
        learned = final if epoch > study.epochs - 5 else learned
        rows.append(
            {
                **identity,
                "epoch": epoch,
                "updates": per_epoch * epoch - (per_epoch // 2 if gone else 0),
                "lr": base_lr if adamw else batch_size * base_lr,
                "train_loss": math.nan if gone else -math.log(min(0.99, learned + 0.05)),
                "train_accuracy": math.nan if gone else min(1.0, learned + 0.05),
                "validation_loss": math.nan if gone else 1.1 - learned,
                "validation_accuracy": math.nan if gone else learned - 0.01,
                "test_loss": math.nan if gone else 1.0 - learned,
                "test_accuracy": math.nan if gone else learned,
                "outcome": "diverged" if diverged else "finished",
            }
        )
    values = {
        "train_loss": 0.1,
        "train_accuracy": final + 0.05,
        "test_loss": 1.0 - final,
        "test_accuracy": final,
        "validation_loss": 1.1 - final,
        "validation_accuracy": final - 0.01,
        "population_test_loss": 1.0 - final,
        "population_test_accuracy": final + study.population_gain,
    }
    if study.settings.get("norm", "none") == "none":
        values |= {"population_test_loss": None, "population_test_accuracy": None}
    run = {
        "run": digest[:16],
        "base_lr": base_lr,
        "lr": base_lr if adamw else batch_size * base_lr,
        "seed": seed,
        "outcome": "diverged" if diverged else "finished",
        "diverged_at": rows[-1]["updates"] if diverged else None,
        "updates": per_epoch * study.epochs,
        "parameters": 75290,
        "final": dict.fromkeys(values) if diverged else values,
    }
    return rows, run
