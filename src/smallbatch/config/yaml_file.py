"""YAML read from a file: plain data, or one line that says in which line what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallbatch import durable
from smallbatch.errors import UserError, first_line

MOST_BYTES = 200_000
"""Of a file; the largest sensible grids take a tenth of that."""
MOST_DEEP = 30  # levels of lists and mappings


def read(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: There is none.
        UserError: It cannot be read, or is no YAML.
    """
    return parse(text_of(path), str(path))


def text_of(path: Path) -> str:
    """The text of a file; nothing is waited for, as a pipe would have it.

    Raises:
        FileNotFoundError: There is none.
        UserError: It cannot be read, is too large, or no UTF-8.
    """
    try:
        content = durable.read(path, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{path}: too large, allowed: at most {MOST_BYTES:,} bytes")
        return content.decode()
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: not valid YAML: a byte that is no UTF-8") from None
    except (OSError, ValueError) as error:  # a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None


def parse(text: str, origin: str) -> Any:
    """The content of a text in YAML 1.2; ``origin`` names it in errors.

    Raises:
        UserError: It is no YAML, or has tags or values that cannot be read.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.composer import Composer
    from ruamel.yaml.constructor import ConstructorError, SafeConstructor
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    class ShallowComposer(Composer):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.depth == MOST_DEEP:
                mark = self.parser.peek_event().start_mark
                raise MarkedYAMLError(problem="it is nested too deeply", problem_mark=mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    class Constructor(SafeConstructor):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            with _at(node):
                return super().construct_object(node, deep)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            with _at(node):
                return super().construct_mapping(node, deep)

    @contextmanager
    def _at(node: Any) -> Generator[None, None, None]:
        try:
            yield
        except YAMLError:
            raise
        except Exception as error:  # what a tag does with a value that does not fit it
            what = f"{_shown(node)} cannot be read ({first_line(error)})"
            raise ConstructorError(problem=what, problem_mark=node.start_mark) from error

    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = ShallowComposer, Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anchors that are used again, as YAML allows
            return yaml.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        what = " ".join(str(getattr(error, "problem", None) or first_line(error)).split())[:300]
        raise UserError(f"{origin}:{where} not valid YAML: {what}") from None
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise UserError(f"{origin}: not valid YAML: {first_line(error)}") from None


def _shown(node: Any) -> str:
    value = node.value if isinstance(node.value, str) else "…"
    return f"{node.tag.rpartition(':')[2]} {value[:40]!r}"
