"""The model that `mlflow.pyfunc.load_model` returns: raw pixels in, class probabilities out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from smallbatch.config.study import Precision

BATCH = 256
"""Images in one forward pass; does not affect results, as the model is in evaluation mode."""


class LoadableModel:
    """A trained model with its normalisation.

    Attributes:
        network: The torch model in evaluation mode: normalised images in, logits out.
        classes: The names of the classes, in the order of the outputs.
    """

    def __init__(self, directory: Path):
        import torch
        from safetensors.torch import load_file

        from smallbatch.models import build_model

        facts: dict[str, Any] = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        code = directory / "code"
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.network: torch.nn.Module = build_model(
            facts["model"],
            facts["norm"],
            num_classes=len(self.classes),
            in_chans=facts["channels"],
            image_size=(facts["height"], facts["width"]),
            seed=0,
            batch_size=facts["batch_size"],
            bn_batch_size=facts["bn_batch_size"],
            # Without the source, as of an installed module, it is looked for as `import` does.
            project=code if code.is_dir() else None,
        )
        self.network.load_state_dict(load_file(directory / "weights.safetensors"))
        self.network.eval()
        self._precision: Precision = facts.get("precision", "float32")  # older models lack it
        self._mean = torch.tensor(facts["mean"]).view(1, -1, 1, 1)
        std = torch.tensor(facts["std"]).view(1, -1, 1, 1)
        self._std = torch.where(std > 0, std, 1.0)  # as in training, for constant channels

    def predict(
        self,
        images: npt.NDArray[np.uint8],
        params: dict[str, Any] | None = None,  # noqa: ARG002 - part of MLflow's interface
    ) -> npt.NDArray[np.float32]:
        """Class probabilities, computed in the precision that the model was evaluated in.

        Args:
            images: uint8 pixels (N, C, H, W).
            params: Unused.

        Returns:
            float32 (N, classes), rows summing to 1.
        """
        import torch

        from smallbatch.engines.loop import arithmetic

        with torch.inference_mode(), arithmetic(self._precision, torch.device("cpu")):
            parts = [
                torch.softmax(self.network(self.normalise(batch)).float(), dim=1)
                for batch in torch.from_numpy(images.copy()).split(BATCH)
            ]
        return torch.cat(parts).numpy()

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise as in training: (pixels / 255 − mean) / std, per channel."""
        return (images.float() / 255 - self._mean) / self._std


def _load_pyfunc(path: str) -> LoadableModel:  # pyright: ignore[reportUnusedFunction]
    """Called by MLflow: the model in the directory `path`."""
    return LoadableModel(Path(path))
