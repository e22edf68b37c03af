"""What a run's numbers depend on besides its hash: code, libraries, kernels and hardware.

The modules of the code that matter are found from what the engines import.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from smallbatch import machine
from smallbatch.config.params import StudyConfig
from smallbatch.engines.kinds import Engine, Kernels, serves

PACKAGE = Path(__file__).parents[1]
ENTRY: dict[Engine, tuple[str, ...]] = {
    "loop": ("engines/loop.py",),
    "stacked": ("engines/loop.py", "engines/lanes/__init__.py"),
}
# The engines import these, but they do not change numbers: settings are part of a run's hash, and
# the others only read and write.
NO_NUMBERS = ("config", "records", "errors.py", "durable.py", "private.py", "machine.py", "data")
COMPILED = ("*.cpp", "*.h")
# Variables by which torch and its libraries leave instruction sets out, choose between them, or
# multiply in fewer bits.
_DISPATCH = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA",
             "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE",
             "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE", "CUBLAS_WORKSPACE_CONFIG",
             "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # fmt: skip
_OF_TIMM = "TIMM_"
"""With what the names of timm's variables begin; some choose another model of the same name."""


@cache
def sources(*entries: str) -> tuple[Path, ...]:
    """Files that determine the numbers of some modules, relative to the package.

    These are the modules; all modules of the package that they import, directly or not, also
    inside functions, but not for type checking only; and C++ sources in the same folders. Modules
    in `NO_NUMBERS` are left out.
    """
    found, left = set[Path](), [Path(entry) for entry in entries]
    while left:
        path = left.pop()
        if path in found or path.parts[0] in NO_NUMBERS:
            continue
        found.add(path)
        left += _imported(ast.parse((PACKAGE / path).read_text()).body, path)
        left += [parent / "__init__.py" for parent in path.parents if parent != Path()]
    folders = {path.parent for path in found}
    compiled = [file for folder in folders for kind in COMPILED
                for file in (PACKAGE / folder).glob(kind)]  # fmt: skip
    return tuple(sorted({*found, *(file.relative_to(PACKAGE) for file in compiled)}))


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


@cache
def code_digest(engine: Engine) -> str:
    """Hash of the sources that determine a run's numbers under an engine."""
    digest = hashlib.sha256()
    for path in sources(*ENTRY[engine]):
        digest.update(f"{path}\n".encode() + (PACKAGE / path).read_bytes())
    return digest.hexdigest()


def native_version(
    engine: Engine, device: str, study: StudyConfig, kernels: Kernels | None = None
) -> str | None:
    """The version of the native kernels if they compute a study's lanes; None if others do."""
    from smallbatch.engines.lanes import native

    if engine == "stacked" and kernels is None and serves(study, device) == "native":
        return native.version()
    return None


def made_by_on(
    engine: Engine, device: str, study: StudyConfig, kernels: Kernels | None = None
) -> str:
    """What a run's numbers depend on besides its hash: code, libraries, kernels and hardware."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "numpy")]
    hardware = machine.gpu_name() if device == "cuda" else machine.processor()
    by = native_version(engine, device, study, kernels) or kernels or "torch"
    if kernels == "triton":
        versions.append(f"triton {metadata.version('triton')}")
    return " ".join([code_digest(engine), *versions, device, str(hardware), *_dispatch(), by])


def _dispatch() -> list[str]:
    """Which instruction sets and models torch and timm use here: variables choose some."""
    import torch

    chosen = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name in _DISPATCH or name.startswith(_OF_TIMM)
    ]
    return [torch.backends.cpu.get_cpu_capability(), *chosen]
