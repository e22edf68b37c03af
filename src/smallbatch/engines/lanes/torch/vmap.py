"""Any model over K lanes by `torch.vmap`, for models that have no layers over lanes here.

Under vmap a convolution becomes a grouped one. On a CPU that is slower than one plain run after
another; on a GPU it uses more of the processor. Lanes equal plain runs within rounding, but with
another number of lanes a grouped kernel may round differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from smallbatch.engines.lanes.inputs import Shared, seen_by_all
from smallbatch.engines.lanes.weights import LaneWeights, stack_lanes
from smallbatch.errors import UserError


class VmapNet:
    """The network of all lanes, with autograd for the backward pass.

    Args:
        lanes: The weights, stacked with ``all_buffers``.
        model: A plain model of the structure; its own weights are not used.
    """

    def __init__(self, lanes: LaneWeights, model: nn.Module) -> None:
        self.lanes = lanes
        self._model = model.to(lanes.theta.device, lanes.theta.dtype)

    def forward(self, shared: Shared, *, training: bool) -> Tensor:
        """Logits (m, K, classes)."""
        self._model.train(training)
        views = self.lanes.views
        self._parameters = {
            name: view.detach().requires_grad_(training) for name, view in views.items()
        }

        def one_lane(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor
        ) -> Tensor:
            return functional_call(self._model, (parameters, buffers), images)

        pairs = zip(shared.images, shared.lanes, strict=True)
        images = torch.cat([part.expand(count, *part.shape) for part, count in pairs])
        with torch.set_grad_enabled(training), _quiet():
            self._logits = torch.vmap(one_lane)(self._parameters, self.lanes.statistics, images)
        return self._logits.detach().transpose(0, 1)

    def backward(self, g: Tensor) -> None:
        """Write the gradients of the parameters into the lanes; ``g`` is that of the logits."""
        parameters = list(self._parameters.values())
        with _quiet():
            gradients = torch.autograd.grad(self._logits, parameters, g.transpose(0, 1))
        for name, gradient in zip(self._parameters, gradients, strict=True):
            self.lanes.gradients[name].copy_(gradient)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Hide torch's warning about operations that vmap computes in a loop: slow, but right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def vmap_works(model: nn.Module, image: tuple[int, int, int], batch_size: int) -> bool:
    """Whether a model can be computed under vmap; found by an update of two lanes.

    ``image`` is channels, height and width.
    Models with random operations, as dropout, fail: their lanes would share random numbers.
    """
    try:
        lanes, pattern = stack_lanes([lambda: model] * 2, torch.device("cpu"), torch.float32, True)
        net = VmapNet(lanes, pattern)
        images = torch.zeros(batch_size, *image)
        logits = net.forward(seen_by_all(images, 2), training=True)
        net.backward(torch.zeros_like(logits))
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError):
        return False
    return True
