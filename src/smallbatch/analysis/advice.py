"""What `smallbatch advise` has found, as plain data: `advice.json` holds it, the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Fate = Literal["behind", "diverged", "not trained on", "finished"]
"""How a candidate's race ended: stopped at a rung, a seed diverged, no time left, or at the end."""


@dataclass(frozen=True)
class Stage:
    """A candidate at one rung.

    Attributes:
        share: The rung, as a share of the training, 0..1.
        accuracy: Its mean validation accuracy over the seeds, 0..1; None if a seed diverged.
        error: The standard error of that mean, from the seeds; None likewise.
    """

    share: float
    accuracy: float | None
    error: float | None


@dataclass(frozen=True)
class Raced:
    """A cell that took part in the race.

    Attributes:
        batch_size: m.
        base_lr: η̃; under AdamW η.
        lr: η of the mean gradient.
        stages: Where it stood at each rung that it came to, ascending; at least one.
        fate: How its race ended.
        tied: Whether it is the recommended cell, or cannot be told from it.
        seconds: Of one whole training alone on a core of this machine, or on its GPU.
        curve: Validation accuracy after each epoch of its longest trainings, mean over the seeds.
    """

    batch_size: int
    base_lr: float
    lr: float
    stages: tuple[Stage, ...]
    fate: Fate
    tied: bool
    seconds: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Range:
    """One batch size: what was found about its learning rates and its cost.

    Attributes:
        batch_size: m.
        lowest: The lowest η̃ (AdamW: η) tried.
        edge: The highest up to which all that were tried survived with every seed; None if not
            even the lowest did.
        breaks: The lowest at which a seed diverged; None if none did, then the edge is not known.
        best: That of the highest validation accuracy at the last rung this batch size came to.
        headroom: log₂ of edge / best, octaves; None without an edge or a best.
        survived: (η̃, how many seeds survived), ascending, of all that were tried, in search of the
            edge, in the race or in the final; where in several, that of which most diverged. In the
            final there are more seeds: as many as diverged there are left out of these.
        seeds: How many seeds each was tried with.
        updates: The fewest updates that one of those up to the edge was tried for.
        images_per_second: Of all lanes together.
        memory_bytes: Of one lane, as estimated; None if that is not known.
    """

    batch_size: int
    lowest: float
    edge: float | None
    breaks: float | None
    best: float | None
    headroom: float | None
    survived: tuple[tuple[float, int], ...]
    seeds: int
    updates: int
    images_per_second: float
    memory_bytes: int | None


@dataclass(frozen=True)
class Final:
    """The two best, trained anew with seeds that had no part in choosing them.

    Attributes:
        rival: The other cell: batch size, η̃ (AdamW: η).
        seeds: The fresh seeds.
        accuracies: Test accuracies of the recommended cell, by seed, 0..1.
        rival_accuracies: Those of the other.
        difference: Mean of the recommended cell's less the other's.
        low, high: The 95 % paired t-interval of that over seeds, on these test images; what other
            images would change is not in it. None with fewer than two seeds.
        overturned: Whether the race had the other one first.
    """

    rival: tuple[int, float]
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    rival_accuracies: tuple[float, ...]
    difference: float
    low: float | None
    high: float | None
    overturned: bool


@dataclass(frozen=True)
class Recommended:
    """The cell to train with.

    Attributes:
        batch_size: m.
        base_lr: η̃ = η/m; under AdamW η.
        lr: η of the mean gradient, as PyTorch's optimisers take it.
        code: PyTorch code to paste: the optimiser, the schedule and the data loader's batch size.
        accuracy: Mean test accuracy, of the fresh seeds if there are any, 0..1.
        low, high: What the size of the test set leaves open: Wilson's 95 % interval of that.
        n_test: Images of the test set.
        beyond_chance: Whether that can be told from naming the most frequent class.
        on: What chose it: "final", "race" (its last rung, no final) or "bracket" (no race).
    """

    batch_size: int
    base_lr: float
    lr: float
    code: str
    accuracy: float
    low: float
    high: float
    n_test: int
    beyond_chance: bool
    on: Literal["final", "race", "bracket"]


@dataclass(frozen=True)
class Fit:
    """Least squares of log η̃ = log η̃₀ - log(1 + m/m*) over the best η̃ of each m."""

    base_lr_0: float
    m_star: float
    rms_octaves: float


@dataclass(frozen=True)
class Diagnostics:
    """Measured beside the answer; nothing is decided by them. None: not measured.

    Attributes:
        noise_scale: Gradient noise scale tr(Σ)/|G|², in examples (McCandlish et al. 2018, eq. 2.8),
            at the end of a recommended training.
        sharpness: Batch sharpness E[g·Hg/|g|²] there, by differences of gradients at the
            recommended m (Andreyev & Beneventano 2024); training by plain SGD settles near 2/η.
        two_over_lr: 2/η.
        fit: How the best η̃ falls with m.
    """

    noise_scale: float | None = None
    sharpness: float | None = None
    two_over_lr: float | None = None
    fit: Fit | None = None


@dataclass(frozen=True)
class Advice:
    """All that was found.

    Attributes:
        dataset: The name of the data set.
        n_train, n_validation, n_test: Images of its splits, as they were used.
        n_available: Training and validation images that the source has.
        classes: The number of classes.
        model, norm, optimizer, schedule: The settings' names.
        epochs: Of one whole training.
        target: What was asked for: the highest accuracy, or the shortest training among those that
            cannot be told from it.
        budget: As it was given, such as `20m`.
        seconds: Spent until this was written, over all attempts.
        images: Training images seen by all runs.
        device, processor: Where it was measured.
        recommended: None if nothing could be trained.
        final: None if there was no time for it, or no second candidate.
        raced: Every candidate, best first.
        ranges: Every batch size, ascending.
        tied_batch_sizes: The m of the tied cells, ascending.
        warnings: What limits this answer, in sentences.
        larger_budget: What a larger budget could still change, in sentences.
        untested: What was not tested, in sentences.
        diagnostics: Measured beside it.
        image_shape: Channels, height and width, as they were trained on.
        settings: Of the trainings, as params.yaml has them, without defaults.
    """

    dataset: str
    n_train: int
    n_validation: int
    n_test: int
    n_available: int
    classes: int
    model: str
    norm: str
    optimizer: str
    schedule: str
    epochs: int
    target: Literal["accuracy", "time"]
    budget: str
    seconds: float
    images: int
    device: str
    processor: str
    recommended: Recommended | None
    final: Final | None
    raced: tuple[Raced, ...]
    ranges: tuple[Range, ...]
    tied_batch_sizes: tuple[int, ...]
    warnings: tuple[str, ...]
    larger_budget: tuple[str, ...]
    untested: tuple[str, ...]
    diagnostics: Diagnostics
    image_shape: tuple[int, int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
