"""The claim on memory, which is about measurements of machines, not about accuracies."""

from __future__ import annotations

import json
from functools import partial

import numpy as np

from smallbatch.analysis.claim import Claim, Part
from smallbatch.analysis.claims_stability import RANGE_FIGURES
from smallbatch.analysis.comparisons import mean_above
from smallbatch.analysis.evidence import Evidence, UndecidableError


def _memory_grows(evidence: Evidence) -> list[Part]:
    memory = evidence.memory
    spans: dict[str, tuple[float, float]] = {}  # of each study, octaves of m and of memory
    for (study, _), column in memory.groupby(["study", "environment"]) if len(memory) else ():
        evidence.refuse_mixed(str(study))
        octaves = np.log2(column[["batch_size", "peak_memory_bytes"]].to_numpy(dtype=float))
        span, growth = (octaves[-1] - octaves[0]).tolist()
        # Of the environments in which a study was trained, that with the widest range of m.
        if span > spans.get(str(study), (0.0, 0.0))[0]:
            spans[str(study)] = span, growth
    if not spans:
        raise UndecidableError(
            "no study has two batch sizes that the loop engine trained on one machine "
            "(stacked lanes fill the memory they are given)"
        )
    growths = np.array([[growth for _, growth in spans.values()]])
    on_cpu = any(json.loads(str(text)).get("device") != "cuda" for text in memory["environment"])

    doubt = (
        "a process's peak on a CPU holds interpreter, images and evaluation as well, which may "
        "outweigh the batch"
    )
    return [
        Part(
            "studies",
            growths.shape[1],
            partial(mean_above, [growths], [np.zeros_like(growths)]),
            in_doubt_below=doubt if on_cpu else "",
        )
    ]


CLAIMS = (
    Claim(
        name="memory-grows",
        figure="text",
        statement="Memory grows with m",
        criterion="log₂ of the ratio of peak memory at the largest m to that at the smallest, "
        "among the columns of a study that trained one run at a time in one environment (of "
        "several, that with the widest range of m): its mean over studies is above 0. Here n and "
        "the bounds are over studies, not seeds. "
        "Of a GPU it is the memory allocated; of a CPU the process's, which contradicts nothing.",
        unit="octaves",
        studies=RANGE_FIGURES,
        parts=_memory_grows,
        any_study=True,
    ),
)
