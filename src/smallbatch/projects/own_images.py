"""Params for a folder of images: a sensible grid, and what the images themselves tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from smallbatch.config import yaml_file
from smallbatch.config.params import parse_params
from smallbatch.config.values import as_name
from smallbatch.errors import UserError

BATCH_SIZES = (4, 16, 64)
VALIDATION = 0.1
HELD_OUT = 0.25
"""Of the images, for the test split, where there is none."""

_TEXT = """\
# {model} on the images of {source}
#
# What to choose: docs/own-images.md of smallbatch.
dataset:
  name: {name}
  source: image_folder
  path: {path}
{size}\
{held_out}\
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
        images: The folder, with ``train/<class>/*`` and ``test/<class>/*``, or with ``<class>/*``.
        model: Any timm model, or one of the paper's.
        norm: The norm of its layers.
        batch_sizes: Those of the grid; by default such as the training images allow.
        epochs: Of a run.
        project: The folder of the project; images below it are named relative to it.

    Raises:
        UserError: The folder is not laid out so, or a setting is not allowed.
    """
    from smallbatch.data.image_folder import open_image_folder

    one_split = _has_one_split(images)
    source = open_image_folder(images, None, test_fraction=HELD_OUT if one_split else None)
    training = len(source.train.labels)
    kept = training - round(VALIDATION * training)
    images, project = images.resolve(), project.resolve()
    below = images.is_relative_to(project)
    path = str(images.relative_to(project) if below else images)
    text = _TEXT.format(
        source=_in_comment(images.name),
        name=as_name(images.name, "images"),
        path=_quoted(path),
        size=_size_line(images),
        held_out=f"  test_fraction: {HELD_OUT}  # held out, as there is no test split\n"
        if one_split
        else "",
        validation=VALIDATION,
        study=as_name(model, "study"),
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


def _has_one_split(images: Path) -> bool:
    from smallbatch.data.choice import has_test
    from smallbatch.data.image_folder import splits_in

    try:
        return images.is_dir() and not has_test(splits_in(images))
    except OSError:
        return False  # opening it tells what is wrong


def _size_line(images: Path) -> str:
    """The key `image_size`, unless all images that are looked at are small and of one shape."""
    from smallbatch.data.sizes import are_alike, side, sizes_below

    sizes = sizes_below(images)
    size = side(sizes)
    if are_alike(sizes):
        width, height = sizes[0]
        note = f"all images are {width}×{height}, as far as looked at"
        return f"  # {note}\n" if size is None else f"  image_size: {size}  # {note}\n"
    return f"  image_size: {size}  # pixels: every image is resized to such a square\n"


def _quoted(text: str) -> str:
    """A text as YAML, in quotes where they are needed."""
    import json

    return text if re.fullmatch(r"[A-Za-z/][\w/.-]*", text) else json.dumps(text)


def _in_comment(text: str) -> str:
    return "".join(character for character in text if character.isprintable())
