"""What `smallbatch advise` does, from the request to the answer."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from smallbatch.config.params import ComputeConfig
from smallbatch.errors import UserError
from smallbatch.pipeline.advise.catch_up import MIRROR_S, NICENESS, catch_up, complete
from smallbatch.pipeline.advise.ledger import Ledger
from smallbatch.pipeline.advise.request import BATCH_SIZES
from smallbatch.pipeline.advise.size import (
    CANDIDATES,
    SEEDS,
    VALIDATION,
    Size,
    Work,
    choose_size,
    least_size,
)
from smallbatch.speed.share import LEAST, taken
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from smallbatch.analysis.advice import Advice, Diagnostics
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.split import Source
    from smallbatch.execution.watch import Watch
    from smallbatch.pipeline.advise.request import Request
    from smallbatch.pipeline.advise.session import Session
    from smallbatch.pipeline.advise.trials import Trainer

FULL = 0.85
"""The share of the budget that is planned for; the rest is for what takes longer than planned."""
_LEAST_OF_A_CLASS = 8  # taken for a training, where there are as many
_LEAST_IN_TRAINING = 5  # in the source: one of them is for validation
_LEAST_SECONDS = 10  # for any training, beside what is kept for the answer
_UNEVEN = 1.5  # times as many images of one class as of another
_CURVATURE_S = 10.0


Code: TypeAlias = "Callable[[StudyConfig, int, float, int], str]"
"""Writes PyTorch code to paste from the settings, m, η and the number of training images."""


def advise(
    request: Request,
    say: Callable[[str], object],
    code: Code,
    write: Callable[[Advice], object],
) -> Advice:
    """Find a batch size and a learning rate.

    Args:
        request: What the user asks for.
        say: Takes a line for each step.
        code: Writes the code that the answer has.
        write: Takes the answer as soon as it is there, while MLflow is still being completed.

    Raises:
        UserError: The images, the model or a setting is wrong, or the budget is too small for one
            rung of the race.
        Stopped: By a signal; the same request then goes on.
    """
    from smallbatch.config.model_files import FROM_TIMM
    from smallbatch.data.sources import label_file, source_files
    from smallbatch.execution.watch import Watch
    from smallbatch.models.pretrained import fetch
    from smallbatch.pipeline.advise.trials import FOLDER
    from smallbatch.pipeline.single import listing_of

    with Watch() as signals:
        if request.study.pretrained == FROM_TIMM:
            fetch(request.study.model)
        files = [find(request.dataset, Path("data")) for find in (source_files, label_file)]
        images = str(listing_of(*files))
        ledger = Ledger(FOLDER / f"{request.key(images)}.ledger", request.budget)
        if (answer := ledger.answer) is not None:
            say("answered before; delete .smallbatch/advise to begin anew")
            write(answer)
            catch_up(ledger, say)
            return answer
        return _Advising(request, ledger, signals, say, code).run(write)


class _Advising:
    def __init__(
        self,
        request: Request,
        ledger: Ledger,
        signals: Watch,
        say: Callable[[str], object],
        code: Code,
    ) -> None:
        self._request, self._ledger, self._signals = request, ledger, signals
        self._say, self._code = say, code
        self._compute = ComputeConfig(device=request.device)

    def run(self, write: Callable[[Advice], object]) -> Advice:
        from smallbatch.data.prepared import load_prepared
        from smallbatch.pipeline.advise.calibrate import Speed, calibrate
        from smallbatch.pipeline.advise.session import Session, run
        from smallbatch.pipeline.advise.trials import Trainer
        from smallbatch.pipeline.single import prepared_for_itself
        from smallbatch.tracking import LiveMirror
        from smallbatch.tracking.uri import VARIABLE, TrackingUri

        request, ledger = self._request, self._ledger
        if os.environ.get(VARIABLE):
            TrackingUri.parse()  # so that a mistake in it is told now
        source, image = self._source()
        available = min(request.dataset.subset or math.inf, len(source.train.labels))
        tests = min(request.dataset.test_subset or math.inf, len(source.test.labels))
        available, tests = int(available), int(tests)
        sizes = self._batch_sizes(available)
        self._refuse_tiny(sizes, available, tests, len(source.classes))
        self._say(f"calibrate  m = {', '.join(map(str, sizes))}, about {2 * len(sizes)} s")
        told = ledger.decide(
            "speeds",
            lambda: {
                str(m): asdict(speed)
                for m, speed in calibrate(
                    request.study, image, len(source.classes), sizes, self._compute
                ).items()
            },
        )
        self._signals.check()
        speeds = {int(m): Speed(**speed) for m, speed in told.items()}
        for m, speed in speeds.items():
            self._say(f"  m={m}: {speed.images_per_second:,.0f} images/s{_memory(speed)}")
        share = min(speed.share for speed in speeds.values())
        if share < LEAST and not ledger.by_images:
            self._say(f"  {taken(share)} meanwhile; without them, trainings might be larger")
        size = self._size(speeds, available, tests, max(sizes), len(source.classes))
        self._say(
            f"a training: {size.epochs} epochs of {size.n_train:,} images, judged by "
            f"{size.n_validation:,} others; a test set of {size.test_images:,}"
        )
        config = request.dataset.model_copy(
            update={
                "subset": _part(size.images, len(source.train.labels)),
                "test_subset": _part(size.test_images, len(source.test.labels)),
                "validation_fraction": VALIDATION,
            }
        )
        data = load_prepared(prepared_for_itself(config, self._say))
        labels = data.test_labels
        chance = float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
        mirror = LiveMirror(niceness=NICENESS)
        try:
            trainer = Trainer(
                self._name(), request.study, data, speeds, ledger, self._compute, self._signals,
                mirror,
            )  # fmt: skip
            session = Session(request, size, speeds, chance)
            session.uneven = size.images < available and _is_uneven(source)
            run(session, trainer, ledger, self._say)
            advice = self._conclude(session, trainer, available)
            write(advice)
            ledger.end(advice, trainer.logged)
        except BaseException:
            mirror.abort()
            raise
        if trainer.logged:
            # It has begun with all of them; of the last is asked once more, to wait for the answer.
            timeout_s = max(1.0, min(MIRROR_S, ledger.until_end - 1.0))
            complete(mirror, trainer.logged[-1:], timeout_s, ledger)
        return advice

    def _source(self) -> tuple[Source, tuple[int, int, int]]:
        """The opened source, and channels, height and width of its images."""
        from smallbatch.data.sources import open_source

        source = open_source(self._request.dataset, Path("data"))
        for split in (source.train, source.test):
            counts = np.bincount(split.labels, minlength=len(source.classes))
            least = _LEAST_IN_TRAINING if split is source.train else 1
            if counts.min() < least:
                raise UserError(
                    f"{split.where}: found {count(int(counts.min()), 'image')} of class "
                    f"{source.classes[int(counts.argmin())]!r}, allowed: {least} or more, as a "
                    "part is kept for choosing"
                )
        shape = source.train.read(np.arange(1)).shape[1:]
        return source, (int(shape[0]), int(shape[1]), int(shape[2]))

    def _batch_sizes(self, available: int) -> list[int]:
        from smallbatch.config.model_names import validate_model

        request = self._request
        most = Size(available, 0, 2).n_train
        if request.batch_sizes and max(request.batch_sizes) > most:
            raise UserError(
                f"batch sizes: found {max(request.batch_sizes)}, allowed: at most the {most} "
                "training images that are left after validation"
            )
        sizes = request.batch_sizes or tuple(m for m in BATCH_SIZES if m <= most / 2) or (most,)
        if not request.batch_sizes and len(sizes) < len(BATCH_SIZES):
            self._say(
                f"m = {', '.join(str(m) for m in BATCH_SIZES if m not in sizes)} left out: too "
                f"large for {count(most, 'training image')}"
            )
        for m in sizes:
            validate_model(
                request.study.model, request.study.norm, batch_size=m,
                bn_batch_size=request.study.bn_batch_size,
            )  # fmt: skip
        return sorted(set(sizes))

    def _refuse_tiny(self, sizes: list[int], available: int, tests: int, classes: int) -> None:
        """Refuse a budget that is too small, as far as that shows before anything is measured."""
        if self._ledger.by_images:
            self._size(dict.fromkeys(sizes), available, tests, max(sizes), classes)
        elif self._ledger.left < _LEAST_SECONDS and not self._ledger.has_begun:
            least = self._ledger.seconds + self._ledger.spare + _LEAST_SECONDS
            raise UserError(
                f"budget: found {self._request.budget.text}, which is too small to train anything; "
                f"needed: {round(2 * least)}s or more"
            )

    def _size(
        self, speeds: dict[int, Any], available: int, tests: int, most: int, classes: int
    ) -> Size:
        """The size of a training, by which all steps fit into the budget.

        Raises:
            UserError: None does; what would be needed.
        """
        from smallbatch.pipeline.advise.trials import cost_of

        ledger, epochs = self._ledger, self._request.epochs

        def cost(m: int, runs: int, work: Work) -> float:
            return runs * work.trained if ledger.by_images else cost_of(speeds, m, runs, work)

        least = min(available, max(_LEAST_OF_A_CLASS * classes, int(most / (1 - VALIDATION)) + 2))
        budget = FULL * ledger.left

        def choose() -> dict[str, int]:
            found = choose_size(
                available, tests, least, epochs,
                lambda size: size.whole_cost(list(speeds), cost) <= budget,
            )  # fmt: skip
            if found is None:
                found = least_size(available, tests, least, epochs)
                rung = sum(cost(m, SEEDS * CANDIDATES, found.work(found.rungs[0])) for m in speeds)
                if rung > budget:
                    raise UserError(self._too_little(found.whole_cost(list(speeds), cost)))
            return asdict(found)

        return Size(**ledger.decide("size", choose))

    def _too_little(self, needed: float) -> str:
        budget, ledger = self._request.budget, self._ledger
        if ledger.by_images:
            enough = f"images={needed / FULL:.2g}"
        else:
            seconds = needed / FULL + ledger.spare + ledger.seconds
            enough = f"{max(1, round(seconds / 60 + 0.5))}m"
        return (
            f"budget: found {budget.text}, which is too small for the first rung of a race; needed "
            f"for {self._request.study.model} on these images: about {enough}, or fewer or smaller "
            "batch sizes"
        )

    def _name(self) -> str:
        study = self._request.study
        name = f"advise-{study.model}-{study.norm}-{study.optimizer}"
        return name.lower().replace(":", "-").replace("/", "-")

    def _conclude(self, session: Session, trainer: Trainer, available: int) -> Advice:
        from smallbatch import machine
        from smallbatch.pipeline.advise.conclude import conclude
        from smallbatch.placement.placement import resolve_device

        study, ledger = self._request.study, self._ledger
        device = resolve_device(self._request.device)
        return conclude(
            session,
            trainer.data.meta,
            available=available,
            seconds=ledger.seconds,
            images=ledger.images,
            device=device,
            processor=machine.gpu_name() or machine.cpu_model()
            if device == "cuda"
            else machine.cpu_model(),
            code=lambda m, lr: self._code(
                study.model_copy(update={"epochs": session.size.epochs}),
                m,
                lr,
                session.size.n_train,
            ),
            diagnostics=self._diagnostics(session, trainer),
        )

    def _diagnostics(self, session: Session, trainer: Trainer) -> Diagnostics:
        """Measured beside the answer, as far as there is time."""
        from smallbatch.analysis.advice import Diagnostics
        from smallbatch.analysis.lr_fit import fit_best
        from smallbatch.engines.curvature import measure_curvature
        from smallbatch.pipeline.advise.conclude import best_rates, best_trial

        fit = None
        if self._request.study.optimizer != "adamw":  # whose η is no sum over examples
            rates = best_rates(session)
            fit = fit_best(list(rates), list(rates.values()))
        found = best_trial(session)
        seconds = min(_CURVATURE_S, self._ledger.until_end - self._ledger.spare)
        kept = trainer.kept(*found, session.size.epochs) if found else None
        if kept is None or seconds < 1:
            return Diagnostics(fit=fit)
        run, weights = kept
        noise_scale, sharpness = measure_curvature(run, trainer.data, weights, seconds=seconds)
        return Diagnostics(noise_scale, sharpness, 2 / run.lr, fit)


def _is_uneven(source: Source) -> bool:
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    return bool(counts.max() > _UNEVEN * counts.min())


def _part(images: int, of: int) -> int | None:
    """A subset as settings name it: None for all."""
    return None if images == of else images


def _memory(speed: Any) -> str:
    if speed.memory_bytes is None:
        return ""
    return f", {speed.memory_bytes / 2**20:,.0f} MiB a lane"
