"""The engines by name, and what computes the lanes of the stacked one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from smallbatch.config.model_names import ALIASES

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

Engine = Literal["loop", "stacked"]


# The kernels of the stacked engine other than the native ones: torch's grouped convolutions,
# torch's matrix products on unrolled input (for float64, which only tests use), and Triton's.
Kernels = Literal["grouped", "unrolled", "triton"]


GPU_KERNELS: tuple[Kernels, ...] = ("grouped", "triton")


def has_layers(model: str) -> bool:
    """Whether the stacked engine has layers for a model, as it has for the paper's models."""
    return model in ALIASES or model in ALIASES.values()


def serves(study: StudyConfig, device: str) -> Literal["native", "layers", "vmap"] | None:
    """How the stacked engine computes a study's lanes on a device.

    Returns:
        ``native``: by the kernels in C++; ``layers``: by layers over K lanes, with torch or Triton;
        ``vmap``: by `torch.vmap`, if the model goes through it, which has to be tried; None: not at
        all, as bf16 but for models with stacked layers on a GPU.
    """
    from smallbatch.engines.lanes import native

    if study.freeze:  # the layers over lanes train all weights
        return None if study.precision == "bf16" else "vmap"
    if native.takes(study, device):
        return "native"
    if study.precision == "bf16" and not (device == "cuda" and has_layers(study.model)):
        return None
    return "layers" if has_layers(study.model) else "vmap"
