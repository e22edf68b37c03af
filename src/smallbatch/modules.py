"""Which files of this package decide what others do: found from what they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
BESIDE = ("*.cpp", "*.h", "*.j2", "*.css", "*.js")
"""What modules read or compile without importing it."""


@cache
def sources(*entries: str, leave_out: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Files that decide what some modules do, relative to the package.

    These are the modules; all modules of the package that they import, directly or not, also
    inside functions, but not for type checking only; and other sources in the same folders.

    Args:
        entries: The modules' files.
        leave_out: Files and folders that do not count, nor what only they import.
    """
    found, left = set[Path](), [Path(entry) for entry in entries]
    while left:
        path = left.pop()
        if path in found or any(path.is_relative_to(other) for other in leave_out):
            continue
        found.add(path)
        left += _imports(path, PACKAGE)
        left += [parent / "__init__.py" for parent in path.parents if parent != Path()]
    folders = {path.parent for path in found if path.parent != Path()}
    beside = [file for folder in folders for kind in BESIDE
              for file in (PACKAGE / folder).glob(kind)]  # fmt: skip
    return tuple(sorted({*found, *(file.relative_to(PACKAGE) for file in beside)}))


def digest(path: Path) -> str:
    """SHA-256 of a file, given relative to the package."""
    return hashlib.sha256((PACKAGE / path).read_bytes()).hexdigest()


@cache
def _imports(path: Path, package: Path) -> tuple[Path, ...]:
    return tuple(_imported(ast.parse((package / path).read_text()).body, path))


def _imported(nodes: Iterable[ast.stmt], of: Path) -> Iterator[Path]:
    """Modules of the package that these statements of a module (`of`) import when they run."""
    package = [PACKAGE.name, *of.parent.parts]
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        for inner in ast.walk(node):
            names: list[str] = []
            if isinstance(inner, ast.ImportFrom):
                above = package[: len(package) - inner.level + 1] if inner.level else []
                module = ".".join([*above, *([inner.module] if inner.module else [])])
                names = [module, *(f"{module}.{name.name}" for name in inner.names)]
            elif isinstance(inner, ast.Import):
                names = [name.name for name in inner.names]
            for name in names:
                if (path := _file_of(name)) is not None:
                    yield path


def _file_of(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != PACKAGE.name or not rest:
        return None
    path = Path(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (PACKAGE / file).is_file():
            return file
    return None
