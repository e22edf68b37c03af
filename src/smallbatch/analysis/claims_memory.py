"""The claim on the memory of an update, which `smallbatch measure` counts without runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import Claim, Part
from smallbatch.analysis.claims_stability import RANGE_FIGURES
from smallbatch.analysis.comparisons import mean_above
from smallbatch.analysis.evidence import Evidence, UndecidableError

if TYPE_CHECKING:
    import pandas as pd


def _memory_grows(evidence: Evidence) -> list[Part]:
    memory, runs = evidence.memory, evidence.runs
    memory = memory[(memory["engine"] == "loop") & memory["study"].isin(evidence.as_the_papers)]
    for study in memory["study"].unique():
        evidence.refuse_mixed(str(study))
    # Studies that train the same network, such as for other epochs, have the same memory: one of
    # them is one observation, that with the widest range of m.
    networks: dict[tuple[str, str], tuple[float, float]] = {}
    for study, own in memory.groupby("study"):
        octaves = _octaves(evidence, str(study), own)
        trained = runs[runs["study"] == study].sort_values("batch_size").iloc[0]
        network = (str(trained["model"]), str(trained["norm"]))
        networks[network] = max(networks.get(network, (0.0, 0.0)), octaves)
    found = np.array([octaves for octaves in networks.values() if octaves[0] > 0])
    if not len(found):
        raise UndecidableError(
            "of no study the memory was measured at two batch sizes that were run; run smallbatch "
            "measure"
        )
    of_m, growths = found[:, 0], found[None, :, 1]
    grown = f"grows by {_span(growths[0])} octaves over {_span(of_m)} of m"
    return [
        Part(
            f"networks: {grown}",
            len(found),
            partial(mean_above, [growths], [np.zeros_like(growths)]),
            limit=f"{grown}: what does not grow is weights, gradient and moments",
        )
    ]


def _octaves(evidence: Evidence, study: str, rows: pd.DataFrame) -> tuple[float, float]:
    """From the smallest to the largest batch size that a study ran: octaves of m, and of memory.

    Raises:
        UndecidableError: Something else was measured than was trained, or not at these batch sizes,
            or on several devices.
    """
    evidence.refuse_other_measured(study, rows)
    runs = evidence.runs
    run = runs.loc[runs["study"] == study, "batch_size"]
    ends = sorted({int(run.min()), int(run.max())})
    measured = set(rows["batch_size"])
    if missing := [str(m) for m in ends if m not in measured]:
        raise UndecidableError(
            f"{study}: its memory was not measured at m = {' and '.join(missing)}; run smallbatch "
            "measure"
        )
    rows = rows[rows["batch_size"].isin(ends)].sort_values("batch_size")
    if rows["device"].nunique() > 1:
        raise UndecidableError(f"{study}: measured on several devices; run smallbatch measure")
    octaves = np.log2(rows[["batch_size", "bytes"]].to_numpy(dtype=float))
    of_m, growth = (octaves[-1] - octaves[0]).tolist()
    return of_m, growth


def _span(values: np.ndarray) -> str:
    """Octaves from the fewest to the most, as text."""
    low, high = (f"{value:.1f}".removesuffix(".0") for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


CLAIMS = (
    Claim(
        name="memory-grows",
        figure="text",
        statement="Memory grows with m",
        criterion="log₂ of the ratio of the bytes that one update of one run needs at the largest "
        "m run to those at the smallest: its mean over networks (model and norm; of several "
        "studies of one that with the widest range of m) is above 0. `smallbatch measure` counts "
        "these bytes anew at every m, for the engine `loop` and a batch as a whole: on a CPU "
        "weights, gradient, moments, images, labels and all that the forward pass leaves for the "
        "backward pass; on a GPU the peak of the allocator over an update. Here n and the bounds "
        "are over networks, not seeds. That a batch needs memory is nearly a matter of definition; "
        "how many octaves remain beside what does not grow is what the number says.",
        unit="octaves",
        studies=RANGE_FIGURES,
        parts=_memory_grows,
        any_study=True,
        measurement="memory",
    ),
)
