"""What nodes may say, checked in one place: a node's fault must not become its keeper's."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from smallbatch.pipeline.cluster.board import State, Status

_MOST = 2**50  # of any number: bytes, attempts

_Number = Annotated[int, Field(ge=0, le=_MOST)]
_Text = Annotated[str, StringConstraints(max_length=2000)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class _Letter(_Model):
    key: str
    of: tuple[_Number, _Number]


class Sign(_Letter):
    """A node lives."""

    kind: Literal["sign"]


class Piece(_Letter):
    """A piece of a file; the last one has the digest of all."""

    kind: Literal["file"]
    name: str
    offset: _Number
    size: _Number
    sha256: _Digest | None = None


class More(_Letter):
    """What was added to a file of the board."""

    kind: Literal["more"]
    name: Literal["events.jsonl", "log"]  # `journal.EVENTS`, and what the worker says


class Kept(_Letter):
    """The names of all files that the node has."""

    kind: Literal["kept"]
    names: frozenset[str]


class _State(_Model):
    number: _Number
    attempt: _Number
    status: Status
    node: _Text
    device: _Text
    message: _Text
    started: _Text
    told: _Text
    runs_done: _Number
    share: float = Field(ge=0)
    images_per_second: float | None = Field(ge=0)


class News(_Letter):
    """How far the node is."""

    kind: Literal["state"]
    state: _State

    def as_state(self) -> State:
        """As the board has it."""
        return replace(State(**dict(self.state)), share=min(self.state.share, 1.0))


class End(_Model):
    """How a node's attempt ended.

    Attributes:
        exit: The worker's exit status; a word where it was ended.
        said: Its last line.
        files: Digests of all that it left, by name.
    """

    exit: int | str
    said: str
    files: dict[str, _Digest]


Letter = Sign | Piece | More | Kept | News
_LETTER: TypeAdapter[Letter] = TypeAdapter(Annotated[Letter, Field(discriminator="kind")])


def sender(text: str) -> tuple[str, tuple[int, int]] | None:
    """The key, submission and attempt that a letter is of; None where it is of none."""
    try:
        found = _Letter.model_validate_json(text)
    except ValidationError:
        return None
    return found.key, found.of


def read(text: str) -> Letter:
    """A letter.

    Raises:
        ValueError: It is none; the reason in one line.
    """
    try:
        return _LETTER.validate_json(text)
    except ValidationError as error:
        raise _wrong("a message", error) from None


def read_end(text: object) -> End:
    """How an attempt ended.

    Raises:
        ValueError: That does not say; the reason in one line.
    """
    if not isinstance(text, str):
        raise ValueError(f"its end cannot be read: found {type(text).__name__}, allowed: JSON")
    try:
        return End.model_validate_json(text)
    except ValidationError as error:
        raise _wrong("its end", error) from None


def _wrong(what: str, error: ValidationError) -> ValueError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(it)[:40] for it in first["loc"])
    return ValueError(f"{what} cannot be read: {place or 'JSON'}: {first['msg'][:200]}")
