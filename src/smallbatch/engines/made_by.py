"""What a run's numbers depend on besides its hash: code, libraries, kernels and hardware.

The modules of the code that matter are found from what the engines import.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from importlib import metadata
from pathlib import Path

from smallbatch import machine, modules
from smallbatch.config.study import StudyConfig
from smallbatch.engines.kinds import Engine, Kernels, serves

ENTRY: dict[Engine, tuple[str, ...]] = {
    "loop": ("engines/loop.py",),
    "stacked": ("engines/loop.py", "engines/lanes/__init__.py"),
}
# The engines import these, but they do not change numbers: settings are part of a run's hash, and
# the others only read and write.
NO_NUMBERS = ("config", "records", "errors.py", "durable.py", "private.py", "machine.py", "data")
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

    That is what :func:`smallbatch.modules.sources` finds, without what is in `NO_NUMBERS`.
    """
    return modules.sources(*entries, leave_out=NO_NUMBERS)


@cache
def code_digest(engine: Engine) -> str:
    """Hash of the sources that determine a run's numbers under an engine."""
    digest = hashlib.sha256()
    for path in sources(*ENTRY[engine]):
        digest.update(f"{path}\n".encode() + (modules.PACKAGE / path).read_bytes())
    return digest.hexdigest()


def native_version(
    engine: Engine, device: str, study: StudyConfig, kernels: Kernels | None = None
) -> str | None:
    """The version of the native kernels if they compute a study's lanes; None if others do."""
    from smallbatch.engines.lanes import native

    if engine == "stacked" and kernels is None and serves(study, device) == "native":
        return native.version(study)
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
