"""What a run's numbers depend on besides its hash: code, libraries, kernels and hardware.

The modules of the code that matter are found from what the engines import.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Self

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
# Variables by which torch and its libraries leave instruction sets out or choose between them.
_DISPATCH = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA",
             "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE",
             "CUBLAS_WORKSPACE_CONFIG")  # fmt: skip
# Those by which they multiply in fewer bits.
_FEWER_BITS = ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE",
               "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # fmt: skip
_OF_TIMM = "TIMM_"
"""With what the names of timm's variables begin; some choose another model of the same name."""
_LIBRARIES = ("torch", "timm", "numpy")
_PARTS, _RANKS = "micro_batch=", "ranks="
_NOT_NATIVE = ("torch", "grouped", "unrolled", "triton")  # kernels; the native ones are hex digits


@cache
def sources(*entries: str) -> tuple[Path, ...]:
    """Files that determine the numbers of some modules, relative to the package.

    That is what :func:`smallbatch.modules.sources` finds, without what is in `NO_NUMBERS`.
    """
    return modules.sources(*entries, leave_out=NO_NUMBERS)


def _of_streamed() -> dict[str, str]:
    """What decoded images depend on: torchvision, and the code that decodes and crops."""
    code = _digest(("engines/streamed.py",))[:12]
    return {"torchvision": _release(metadata.version("torchvision")), "decoding": code}


@cache
def code_digest(engine: Engine) -> str:
    """Hash of the sources that determine a run's numbers under an engine."""
    return _digest(ENTRY[engine])


@cache
def _digest(entries: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sources(*entries):
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
    engine: Engine,
    device: str,
    study: StudyConfig,
    kernels: Kernels | None = None,
    micro_batch: int | None = None,
    *,
    streamed: bool = False,
    ranks: int = 1,
) -> str:
    """What a run's numbers depend on besides its hash: code, libraries, kernels and hardware.

    Args:
        engine: The engine.
        device: ``cpu`` or ``cuda``.
        study: The run's settings.
        kernels: Of stacked lanes on a GPU.
        micro_batch: The parts in which a batch was computed; None: as a whole.
        streamed: Whether its images are decoded while it trains.
        ranks: The number of processes that train it together.
    """
    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    if streamed:
        versions += [f"{name} {version}" for name, version in _of_streamed().items()]
    hardware = machine.gpu_name() if device == "cuda" else machine.processor()
    by = native_version(engine, device, study, kernels) or kernels or "torch"
    if kernels == "triton":
        versions.append(f"triton {metadata.version('triton')}")
    parts = [] if micro_batch is None else [f"{_PARTS}{micro_batch}"]
    parts += [f"{_RANKS}{ranks}"] * (ranks > 1)
    told = [code_digest(engine), *versions, device, str(hardware), *_dispatch(), *parts, by]
    return " ".join(told)


def _dispatch() -> list[str]:
    """Which instruction sets and models torch and timm use here: variables choose some."""
    import torch

    chosen = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name in (*_DISPATCH, *_FEWER_BITS) or name.startswith(_OF_TIMM)
    ]
    return [torch.backends.cpu.get_cpu_capability(), *chosen]


@dataclass(frozen=True)
class Maker:
    """What :func:`made_by_on` says, taken apart; records hold it as text.

    Attributes:
        code: The digest of the engine's code.
        versions: Of the libraries, by name; of torch without the build, such as ``+cu128``.
        choices: Variables that choose another model or fewer bits, as ``NAME=value``.
        device: ``cpu`` or ``cuda``.
        hardware: The GPU's name or the processor's digest, the CPU's instruction sets, and
            variables that choose between these.
        kernels: What computed: ``native``, ``torch``, ``grouped``, ``unrolled`` or ``triton``.
        micro_batch: Most examples of a batch at a time; None: all.
        ranks: The number of processes that trained it together.
    """

    code: str
    versions: dict[str, str]
    choices: frozenset[str]
    device: str
    hardware: str
    kernels: str
    micro_batch: int | None = None
    ranks: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take apart what a record says.

        Raises:
            ValueError: It is nothing that `made_by_on` gives.
        """
        code, *words = text.split(" ")
        at = next((i for i, word in enumerate(words) if word in ("cpu", "cuda")), len(words))
        if at % 2 or at + 2 > len(words):
            raise ValueError(f"made by: found {text!r}, allowed: code, versions, device, kernels")
        versions = dict(zip(words[:at:2], words[1:at:2], strict=True))
        *rest, by = words[at + 1 :]
        choices = frozenset(filter(_is_a_choice, rest))
        parts, ranks = ([it for it in rest if it.startswith(key)] for key in (_PARTS, _RANKS))
        apart = {*choices, *parts, *ranks}
        return cls(
            code=code,
            versions={name: _release(version) for name, version in versions.items()},
            choices=choices,
            device=words[at],
            hardware=" ".join(word for word in rest if word not in apart),
            kernels=by if by in _NOT_NATIVE else "native",
            micro_batch=int(parts[0].removeprefix(_PARTS)) if parts else None,
            ranks=int(ranks[0].removeprefix(_RANKS)) if ranks else 1,
        )


def versions_here() -> dict[str, str]:
    """The versions of the libraries on which numbers depend, as `Maker` has them."""
    names = [*_LIBRARIES]
    with suppress(metadata.PackageNotFoundError):
        metadata.version("triton")
        names.append("triton")
    return {name: _release(metadata.version(name)) for name in names} | _of_streamed()


def choices_here() -> frozenset[str]:
    """The variables that choose another model or fewer bits, as `Maker` has them."""
    words = (f"{name}={value}" for name, value in os.environ.items())
    return frozenset(filter(_is_a_choice, words))


def _is_a_choice(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and (name in _FEWER_BITS or name.startswith(_OF_TIMM))


def _release(version: str) -> str:
    """A version without its local part, which in torch's names the build for a CPU or a GPU."""
    return version.partition("+")[0]
