"""The claim on memory, which is about measurements of machines, not about accuracies."""

from __future__ import annotations

import json

import numpy as np

from smallbatch.analysis.claim import Claim, Part
from smallbatch.analysis.claims_stability import RANGE_FIGURES
from smallbatch.analysis.evidence import Evidence, UndecidableError
from smallbatch.analysis.seeds import Floats, Picks


def _memory_grows(evidence: Evidence) -> list[Part]:
    memory = evidence.memory
    ratios: list[float] = []
    for (study, _), column in memory.groupby(["study", "environment"]) if len(memory) else ():
        if len(column) > 1:
            evidence.refuse_mixed(str(study))
            peaks = column["peak_memory_bytes"].to_numpy(dtype=float)
            ratios.append(float(np.log2(peaks[-1] / peaks[0])))
    if not ratios:
        raise UndecidableError(
            "no study has two batch sizes that the loop engine trained on one machine "
            "(stacked lanes fill the memory they are given)"
        )
    values = np.array(ratios)
    on_cpu = any(json.loads(str(text)).get("device") != "cuda" for text in memory["environment"])

    def effect(picks: Picks) -> Floats:
        return np.median(values[picks], axis=-1)

    doubt = (
        "a process's peak on a CPU holds interpreter, images and evaluation as well, which may "
        "outweigh the batch"
    )
    return [Part("studies", len(values), effect, in_doubt_below=doubt if on_cpu else "")]


CLAIMS = (
    Claim(
        name="memory-grows",
        figure="text",
        statement="Memory grows with m",
        criterion="log₂ of the ratio of peak memory at the largest m to that at the smallest, "
        "among the columns of a study that trained one run at a time on one machine: its median "
        "over studies is above 0. Here n and the interval are over studies, not seeds. "
        "Of a GPU it is the memory allocated; of a CPU the process's, which contradicts nothing.",
        unit="octaves",
        studies=RANGE_FIGURES,
        parts=_memory_grows,
        any_study=True,
    ),
)
