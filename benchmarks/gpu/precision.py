"""What TF32 and bf16 do to accuracy and speed: the same seeds trained in each."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.gpu.inputs import Settings, make_runs
from smallbatch.training import stacked
from smallbatch.training.resident import Resident
from smallbatch.training.stacked.choice import candidates

# Name: the study's precision and the algorithm, None for the fastest.
WAYS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", "triton-ieee"),
    "float32, three TF32 products": ("float32", "triton-tf32x3"),
    "tf32": ("tf32", None),
    "bf16": ("bf16", None),
}


def train(way: str, data: Resident, m: int, seeds: int, epochs: int) -> dict[str, Any]:
    """Accuracies of ResNet-8 with batch norm at η̃ = 2⁻⁸ after some epochs, and the time taken."""
    precision, name = WAYS[way]
    cuda = data.train.images.is_cuda
    asked: Any = precision
    convs = candidates(asked)[name] if name and cuda else None
    settings = Settings("resnet8", "batch", epochs=epochs, precision=precision)
    start = time.perf_counter()
    results = stacked.train_lanes(make_runs(settings, m, [2.0**-8], seeds), data, convs=convs)
    took = time.perf_counter() - start
    finished = [result for result in results if result.outcome == "finished"]
    accuracies = [result.rows[-1]["test_accuracy"] for result in finished]
    return {
        "accuracies": accuracies,
        "train_losses": [result.rows[-1]["train_loss"] for result in finished],
        "mean": statistics.mean(accuracies) if accuracies else None,
        "standard_error": statistics.stdev(accuracies) / len(accuracies) ** 0.5
        if len(accuracies) > 1
        else None,
        "diverged": len(results) - len(finished),
        "seconds": took,
        "torch": torch.__version__,
    }
