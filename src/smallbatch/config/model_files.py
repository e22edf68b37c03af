"""The files of a project that decide a study's model: own modules, pretrained weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch import durable, modules
from smallbatch.config.model_names import own_model, registered_name
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

FETCHED = Path(".smallbatch/pretrained")
FROM_TIMM = "timm"
"""The value of `pretrained` for the weights that timm has for a model."""


def weights_file(model: str, pretrained: str) -> Path:
    """The file of pretrained weights, relative to the project; those of timm once fetched."""
    if pretrained == FROM_TIMM:
        return FETCHED / f"{registered_name(model)}.safetensors"
    return Path(pretrained)


def model_digest(study: StudyConfig) -> str:
    """What decides a study's model besides its settings: digests of source and weights.

    It does not depend on where the files are. Weights of timm that were not fetched yet have
    no digest.

    Returns:
        As `code HEX`, `weights HEX` or both; empty for a model without files of the project's.

    Raises:
        UserError: There are no such weights, or a source is no Python.
    """
    parts: list[str] = []
    if own := own_model(study.model):
        parts.append(f"code {code_digest(own[0])}")
    if study.pretrained:
        file = weights_file(study.model, study.pretrained)
        to_fetch = study.pretrained == FROM_TIMM and not file.exists()
        parts.append(f"weights {FROM_TIMM if to_fetch else _digest(file)}")
    return " ".join(parts)


def code_digest(module: str, project: Path | None = None) -> str:
    """A digest of a module and of all modules of the project that it imports.

    Of an installed module it is that of its name and version.
    """
    files = modules.of_project(module, project or Path.cwd())
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n".encode())
    if not files:
        digest.update(f"{module} {_version(module.partition('.')[0])}".encode())
    return digest.hexdigest()


def model_files(studies: Iterable[Mapping[str, Any]]) -> list[Path]:
    """The project's files that decide models, relative to its folder.

    Weights that timm has are none: their names decide them.

    Args:
        studies: The settings of studies, as a params file has them.

    Raises:
        UserError: A source is no Python.
    """
    project, found = Path.cwd().resolve(), set[str]()
    for study in studies:
        model, weights = study.get("model"), study.get("pretrained")
        if isinstance(model, str) and (own := own_model(model)):
            files = modules.of_project(own[0], project)
            found |= {os.path.relpath(file, project) for file in files.values()}
        if isinstance(weights, str) and weights != FROM_TIMM and Path(weights).is_file():
            found.add(os.path.relpath(weights, project))
    return [Path(file) for file in sorted(found)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any size."""
    durable.check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(weights: Path) -> str:
    try:
        return file_digest(weights)
    except FileNotFoundError:
        raise UserError(
            f"pretrained: found {str(weights)!r}, no such file; allowed: a safetensors file or a "
            f"torch state dict, relative to the project's folder, or {FROM_TIMM}"
        ) from None
    except OSError as error:
        raise UserError(f"pretrained: {weights}: cannot be read: {error.strerror}") from None


@cache
def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [])
    return " ".join(f"{name} {metadata.version(name)}" for name in names)
