"""The settings of a data set."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from smallbatch.config.values import MOST, Fraction, Name

Storage = Literal["auto", "pixels", "encoded"]
Source = Literal["digits", "cifar10", "cifar100", "parquet", "image_folder"]
BUILT_IN = ("digits", "cifar10", "cifar100")
"""The sources that need no settings; each is also the name of its data set."""

MEGAPIXELS = 179  # of the largest image that is decoded, if params.yaml says nothing else
MOST_PIXELS = 2**32
"""Bytes of pixels, three channels, of a data set that is kept as pixels if params.yaml says nothing
else."""
_CAME_LATER = ("test_fraction", "storage", "short_side", "test_labels")


class Strict(BaseModel):
    """Settings as they are written, none but those that are known; they do not change."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetConfig(Strict):
    """The source of the images, and which of them are used.

    ``subset`` and ``test_subset`` are numbers of examples, balanced over the classes;
    ``validation_fraction`` is the part of the remaining training examples that becomes the
    validation split; ``image_size`` is in pixels (square), and a larger image than
    ``max_megapixels`` is refused. ``test_split`` names the split of the source on which runs are
    tested, where it has several; where it has none, ``test_fraction`` of its images are held out
    for one, before all else. ``scale`` is a label: how far a profile was shrunk.

    ``storage`` is how prepared images are kept: as ``pixels``, or ``encoded`` as JPEG, of a short
    side of at most ``short_side`` pixels, of which training makes crops of ``image_size``; ``auto``
    keeps them encoded where their pixels would exceed ``MOST_PIXELS``. ``test_labels`` is a file,
    relative to ``path``, with the labels of a test split that is a folder without classes.
    """

    name: Name
    source: Source
    path: str | None = None
    image_column: str = "img"
    label_column: str = "label"
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    max_megapixels: Annotated[int, Field(ge=1, le=10_000)] = MEGAPIXELS
    test_split: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = None
    subset: Annotated[int, Field(ge=2, le=MOST)] | None = None
    test_subset: Annotated[int, Field(ge=1, le=MOST)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    scale: Name | None = None
    test_fraction: Fraction | None = None
    storage: Storage = "auto"
    short_side: Annotated[int, Field(ge=4, le=8192)] | None = None
    test_labels: Annotated[str, Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _as_before_test_fraction(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All keys, but those that came later only if they are set: digests of the others stay."""
        written = write(self)
        for key in _CAME_LATER:
            if getattr(self, key) == type(self).model_fields[key].default:
                written.pop(key, None)
        return written
