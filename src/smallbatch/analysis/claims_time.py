"""Claims on the course and the length of training (paper, Figs. 4, 17 and 18)."""

from __future__ import annotations

import numpy as np

from smallbatch.analysis.claim import Claim, Part, edge_doubt, listed_sizes, missing_inside
from smallbatch.analysis.convergence import PAPER_BASE_LR, PAPER_FIGURE
from smallbatch.analysis.evidence import Evidence, UndecidableError, common_batch_sizes
from smallbatch.analysis.seeds import Floats, Picks

ALIKE = 0.03  # largest mean distance of two accuracy curves that are alike
_EDGE = "Undecided if a best η̃ of what loses is on the edge of the grid."
SMALL, LARGE = 16, 64  # m up to SMALL is "small", m from LARGE on is "large"


def _curves(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, curves = evidence.curves(PAPER_FIGURE, PAPER_BASE_LR)
    alike = (m >= 4) & (m <= 64)
    if alike.sum() < 2:
        raise UndecidableError("fewer than two batch sizes in 4 … 64")
    return m, curves, alike


def _curves_alike(evidence: Evidence) -> list[Part]:
    m, curves, alike = _curves(evidence)

    def effect(picks: Picks) -> Floats:
        medians = np.median(curves[alike][:, picks], axis=2)  # (B, R, E)
        distances = np.abs(medians[:, None] - medians[None]).mean(axis=-1)
        return ALIKE - distances.max(axis=(0, 1))

    missing = missing_inside(4, 64, m.tolist(), "m =")
    return [Part(f"m = {listed_sizes(m[alike])}", curves.shape[1], effect, "", missing)]


def _curves_worse_beyond(evidence: Evidence) -> list[Part]:
    m, curves, alike = _curves(evidence)
    beyond = m > 64
    if not beyond.any():
        raise UndecidableError("no batch size beyond 64")

    def effect(picks: Picks) -> Floats:
        medians = np.median(curves[:, picks], axis=2).mean(axis=-1)  # (B, R)
        return medians[alike].mean(axis=0) - medians[beyond].max(axis=0)

    return [Part(f"m = {listed_sizes(m[beyond])}", curves.shape[1], effect)]


def _longer(evidence: Evidence, which: str) -> list[Part]:
    m, (long, short) = common_batch_sizes(*evidence.arrays("18", "17", about="epochs"))
    small, large = m <= SMALL, m >= LARGE
    if not small.any() or not large.any():
        raise UndecidableError(f"needs batch sizes up to {SMALL} and from {LARGE} on")

    def effect(picks: Picks) -> Floats:
        best = long.best(picks)
        gain = best - short.best(picks)
        return {
            "helps": gain.mean(axis=0),
            "large most": gain[large].mean(axis=0) - gain[small].mean(axis=0),
            "gap": best[small].max(axis=0) - best[large].max(axis=0),
        }[which]

    everywhere = np.ones_like(small)
    losers = {
        "helps": ([(short, everywhere)], [(long, everywhere)]),
        "large most": ([(short, large), (long, small)], [(long, large), (short, small)]),
        "gap": ([(long, large)], [(long, small)]),
    }[which]
    doubts = (edge_doubt(*sides) for sides in losers)
    return [Part(f"{long.name} against {short.name}", len(long.seeds), effect, "", *doubts)]


CLAIMS = (
    Claim(
        name="curves-alike-4-to-64",
        figure="4",
        statement="At η̃ = 2⁻⁸ the curves of 4 ≤ m ≤ 64 are alike",
        criterion="Over all pairs of these m, the curves of test accuracy by epoch (median over "
        f"seeds) are on average over the epochs less than {100 * ALIKE:g} percentage points "
        "apart; the effect is that minus the largest distance. A diverged run counts as chance. "
        "For support all of these must have been run.",
        unit="accuracy",
        studies=("7",),
        parts=_curves_alike,
    ),
    Claim(
        name="curves-worse-beyond-64",
        figure="4",
        statement="At η̃ = 2⁻⁸ the curves of m > 64 are worse",
        criterion="Test accuracy averaged over the epochs (median over seeds) is on average over "
        "4 ≤ m ≤ 64 above that of every m > 64. A diverged run counts as chance.",
        unit="accuracy",
        studies=("7",),
        parts=_curves_worse_beyond,
    ),
    Claim(
        name="longer-training-helps",
        figure="17/18",
        statement="Longer training helps",
        criterion="The best accuracy after the longest training (Fig. 18) minus that after the "
        f"shortest (Fig. 17), averaged over all m run in both, is above 0. {_EDGE}",
        unit="accuracy",
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "helps"),
    ),
    Claim(
        name="longer-training-helps-large-m-most",
        figure="17/18",
        statement="Longer training helps large m most",
        criterion=f"That gain averaged over m ≥ {LARGE} exceeds the one averaged over m ≤ {SMALL}. "
        + _EDGE,
        unit="accuracy",
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "large most"),
    ),
    Claim(
        name="longer-training-does-not-close-the-gap",
        figure="17/18",
        statement="Large m stays below small m however long the training",
        criterion=f"After the longest training (Fig. 18) the best accuracy at m ≤ {SMALL} exceeds "
        f"that at m ≥ {LARGE}. {_EDGE}",
        unit="accuracy",
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "gap"),
    ),
)
