"""Params for a folder of images: a sensible grid, and what the images themselves tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from smallbatch.config import yaml_file
from smallbatch.config.params import parse_params
from smallbatch.errors import UserError

BATCH_SIZES = (4, 16, 64)
LARGEST = 64
"""Pixels of a side that images are resized to, where they are larger."""
VALIDATION = 0.1
_LOOKED_AT = 200  # images, evenly over the folder

_TEXT = """\
# {model} on the images of {source}
#
# What to choose: docs/own-images.md of smallbatch.
dataset:
  name: {name}
  source: image_folder
  path: {path}
{size}\
  validation_fraction: {validation}  # of the training images: m and η̃ are chosen on these

grid:
  studies: [{study}]
  dependent: []
  batch_sizes: [{batch_sizes}]
  base_lrs: [2^-12, 2^-10, 2^-8, 2^-6, 2^-4]  # η̃, the learning rate of one image: η = m·η̃
  seeds: 3

advise:
  studies: []

studies:
  {study}:
    model: {model}
    norm: {norm}
    augment: true  # shifts and mirrors; not where a mirror image means something else
    epochs: {epochs}
    weight_decay: 0.0001

compute:
  device: auto
  engine: auto
  workers: auto
"""


def params_for(
    images: Path,
    model: str,
    *,
    norm: str = "batch",
    batch_sizes: Sequence[int] = (),
    epochs: int = 30,
    project: Path,
) -> str:
    """The text of a params.yaml for a folder of images.

    Args:
        images: The folder, with ``train/<class>/*`` and ``test/<class>/*``.
        model: Any timm model, or one of the paper's.
        norm: The norm of its layers.
        batch_sizes: Those of the grid; by default such as the training images allow.
        epochs: Of a run.
        project: The folder of the project; images below it are named relative to it.

    Raises:
        UserError: The folder is not laid out so, or a setting is not allowed.
    """
    from smallbatch.data.image_folder import open_image_folder

    source = open_image_folder(images, None)
    training = len(source.train.labels)
    kept = training - round(VALIDATION * training)
    images, project = images.resolve(), project.resolve()
    below = images.is_relative_to(project)
    path = str(images.relative_to(project) if below else images)
    text = _TEXT.format(
        source=_in_comment(images.name),
        name=_name(images.name, "images"),
        path=_quoted(path),
        size=_size_line(images),
        validation=VALIDATION,
        study=_name(model, "study"),
        model=model if re.fullmatch(r"[\w.-]+", model) else _quoted(model),
        norm=_quoted(norm),
        batch_sizes=", ".join(
            map(str, batch_sizes or [m for m in BATCH_SIZES if m <= kept] or [kept])
        ),
        epochs=epochs,
    )
    params = parse_params(yaml_file.parse(text, "smallbatch init"), "smallbatch init")
    if max(params.grid.batch_sizes) > kept:
        raise UserError(
            f"--batch-sizes: found {max(params.grid.batch_sizes)}, allowed: at most the {kept} "
            f"training images of {images} that are left after validation"
        )
    return text


def _size_line(images: Path) -> str:
    """The key `image_size`, unless all images that are looked at are small and of one shape."""
    sizes = _sizes(images)
    (width, height), *others = sizes
    smallest = min(map(min, sizes))
    if not others and max(width, height) <= LARGEST:
        note = f"all images are {width}×{height}, as far as looked at"
        size = f"image_size: {width}  # {note}" if width == height else f"# {note}"
        return f"  {size}\n"
    size = max(8, min(LARGEST, smallest))
    return f"  image_size: {size}  # pixels: every image is resized to such a square\n"


def _sizes(images: Path) -> list[tuple[int, int]]:
    """The different sizes of images below a folder, in pixels (width, height)."""
    from PIL import Image

    from smallbatch.data.files import below
    from smallbatch.data.image_folder import SUFFIXES

    files = [Path(entry.path) for entry in below(images)
             if not entry.is_dir() and Path(entry.name).suffix.lower() in SUFFIXES]  # fmt: skip
    found = set[tuple[int, int]]()
    for file in files[:: max(1, len(files) // _LOOKED_AT)]:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
                found.add(image.size)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: not an image that can be read ({error})") from None
    return sorted(found)


def _name(text: str, default: str) -> str:
    """A name as params.yaml allows it, of folders and experiments."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:64] or default


def _quoted(text: str) -> str:
    """A text as YAML, in quotes where they are needed."""
    import json

    return text if re.fullmatch(r"[A-Za-z/][\w/.-]*", text) else json.dumps(text)


def _in_comment(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
