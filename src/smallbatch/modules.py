"""Which files of this package, or of a project, decide what others do: found from their imports."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from smallbatch.errors import UserError

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


def of_project(module: str, project: Path) -> dict[str, Path]:
    """The files of a project that decide what one of its modules does, by the modules' names.

    These are the module; the packages that it lies in; and all other modules below the project's
    folder that it imports, directly or not, also inside functions. What is installed is none of the
    project, wherever it lies. A module that is not the project's gives none.

    Args:
        module: The module's name, as `import` takes it.
        project: The project's folder.

    Raises:
        UserError: One of the files is no Python.
    """
    project = project.resolve()
    found, left, seen = dict[str, Path](), [module], set[str]()
    with in_front(project):
        while left:
            name = left.pop()
            if name in seen:
                continue
            seen.add(name)
            if (file := _in_project(name, project)) is None:
                continue
            found[name] = file
            parts = name.split(".")
            left += [".".join(parts[:i]) for i in range(1, len(parts))]
            package = parts if file.name == "__init__.py" else parts[:-1]
            try:
                body = ast.parse(file.read_bytes()).body
            except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
                number = error.lineno if isinstance(error, SyntaxError) else None
                line = f" line {number}:" if number else ""
                raise UserError(f"{file.relative_to(project)}:{line} no Python: {error}") from None
            left += _imported(body, package)
    return dict(sorted(found.items()))


def as_paths(files: dict[str, Path]) -> dict[str, Path]:
    """The files of modules by the paths below a folder from which they can be imported."""
    found: dict[str, Path] = {}
    for name, file in files.items():
        path = name.replace(".", "/")
        package = file.name == "__init__.py"
        found[f"{path}/__init__.py" if package else f"{path}.py"] = file
    return found


@contextmanager
def in_front(folder: Path) -> Generator[None, None, None]:
    """Let `import` look into a folder before all others."""
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def _in_project(module: str, project: Path) -> Path | None:
    """The file of a module, if it lies below the project's folder and is not installed there."""
    first, *rest = module.split(".")
    if not first or (spec := _spec(first)) is None:
        return None
    if rest or spec.submodule_search_locations:
        paths = [Path(it, *rest) for it in spec.submodule_search_locations or ()]
        files = [file for path in paths
                 for file in (path / "__init__.py", path.with_suffix(".py"))]  # fmt: skip
    else:
        files = [Path(spec.origin or "")]
    for file in files:
        if file.suffix != ".py" or not file.is_file():
            continue
        file = file.absolute()
        if not file.is_relative_to(project):  # else a link in the project is the project's
            file = file.resolve()
        inside = file.relative_to(project).parts if file.is_relative_to(project) else ()
        installed = any(it == "site-packages" or it.startswith(".") for it in inside)
        return file if inside and not installed else None
    return None


def _spec(module: str) -> ModuleSpec | None:
    """Where `import` would find a top-level module, whatever was imported before."""
    for finder in sys.meta_path:
        if (spec := finder.find_spec(module, None)) is not None:
            return spec
    return None


@cache
def _imports(path: Path, package: Path) -> tuple[Path, ...]:
    body = ast.parse((package / path).read_text()).body
    files = map(_file_of, _imported(body, [PACKAGE.name, *path.parent.parts]))
    return tuple(file for file in files if file is not None)


def _imported(nodes: Iterable[ast.stmt], package: list[str]) -> Iterator[str]:
    """Names that may be those of modules which statements import when they run.

    Args:
        nodes: The statements of a module.
        package: The parts of its package's name.
    """
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imported(node.orelse, package)
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom):
                above = package[: len(package) - inner.level + 1] if inner.level else []
                module = ".".join([*above, *([inner.module] if inner.module else [])])
                yield module
                yield from (f"{module}.{name.name}" for name in inner.names)
            elif isinstance(inner, ast.Import):
                yield from (name.name for name in inner.names)


def _file_of(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != PACKAGE.name or not rest:
        return None
    path = Path(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (PACKAGE / file).is_file():
            return file
    return None
