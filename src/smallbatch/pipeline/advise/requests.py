"""Makes requests: from the command's options, or from a study of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.params import load_params, parse_study
from smallbatch.config.values import UpTo
from smallbatch.errors import UserError
from smallbatch.pipeline.advise.request import Request, parse_budget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smallbatch.config.dataset import DatasetConfig

LEAST_EPOCHS = 2
"""Of a training: a race needs a rung before its end."""

_OWN = ("data", "budget", "batch_sizes", "target", "epochs", "image_size", "device")
"""Options that are no settings of a study."""


def of_options(params_file: Path, options: Mapping[str, Any]) -> Request:
    """The request that options make.

    Args:
        params_file: Its data set may be named by the option ``data``.
        options: By name; those of a study as in params.yaml.

    Raises:
        UserError: One is wrong.
    """
    settings = {key: value for key, value in options.items()
                if key not in _OWN and value is not None}  # fmt: skip
    # Under AdamW a study has its learning rates in `lrs`; which are tried, the advice finds.
    study = parse_study({**settings, "epochs": options["epochs"] or 2}, "advise")
    return Request(
        dataset=_dataset(params_file, options["data"], options["image_size"]),
        study=study,
        budget=parse_budget(options["budget"]),
        batch_sizes=tuple(sorted(set(options["batch_sizes"] or ()))),
        epochs=options["epochs"],
        target=options["target"],
        device=options["device"],
    )


def of_study(params_file: Path, name: str) -> Request:
    """The request that a study of params.yaml makes with the section `advise`.

    Raises:
        UserError: There is no such study or section.
    """
    params = load_params(params_file)
    if name not in params.advise.studies:
        found = ", ".join(params.advise.studies) or "none is listed"
        raise UserError(f"{params_file}: advise.studies: found {name!r}, allowed: {found}")
    study = params.studies[name]
    for key, found, allowed in (
        (
            "epochs",
            study.epochs if study.epochs < LEAST_EPOCHS else None,
            f"{LEAST_EPOCHS} or more",
        ),
        ("budget", study.budget if study.budget != "epochs" else None, "epochs"),
        ("bn_batch_sizes", study.bn_batch_sizes, "one bn_batch_size"),
        (
            "bn_batch_size",
            f"up to {most}" if isinstance(most := study.bn_batch_size, UpTo) else None,
            "a number",
        ),
    ):
        if found is not None:
            raise UserError(
                f"{params_file}: studies.{name}.{key}: found {found!r}, allowed where it is under "
                f"advise.studies: {allowed}"
            )
    return Request(
        dataset=params.dataset,
        study=study,
        budget=parse_budget(params.advise.budget),
        batch_sizes=tuple(sorted(params.advise.batch_sizes or ())),
        epochs=study.epochs,
        target=params.advise.target,
        device=params.compute.device,
    )


def _dataset(params_file: Path, text: str, image_size: int | None) -> DatasetConfig:
    from smallbatch.data.guess import dataset_of

    if params_file.exists() and (params := load_params(params_file)).dataset.name == text:
        return params.dataset
    return dataset_of(text, image_size=image_size)
