"""The gradient of a batch in parts, for batches that do not fit into memory as a whole.

An update takes the sum of its examples' gradients (paper, eq. 5), and a sum may be taken in parts:
micro-batches, one after another, before the one update. That is the undivided update but for the
order of the additions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from smallbatch.errors import UserError
from smallbatch.models.norms import GhostBatchNorm
from smallbatch.models.population import (
    moving_batch_norms,
    needs_whole_batch,
    together_in_parts,
)

if TYPE_CHECKING:
    from smallbatch.config.study import Precision

WAY_OUT = "norm ghost with a bn_batch_size"


class GradientSum:
    """Adds the gradient of a batch's summed loss to the weights' gradients.

    Under ghost batch norm a step moves the running statistics once, whatever its parts: each part
    moves them with the weight that gives the average over all sub-batches in the end.

    Args:
        model: The model, in training mode.
        precision: Of the study; under bf16 the loss is computed in float32.
        size: Most examples at a time; None: all. Of ghost batch norm a multiple of its sub-batch.

    Raises:
        UserError: The model's batch norm takes its statistics from the whole batch, or from parts
            that would be divided.
    """

    def __init__(self, model: nn.Module, precision: Precision, size: int | None = None) -> None:
        if size is not None and needs_whole_batch(model):
            raise UserError(
                f"compute.micro_batch: found {size}, but the model's batch norm takes its "
                f"statistics from the whole batch; allowed: auto, or {WAY_OUT}"
            )
        self._model, self._half, self.size = model, precision == "bf16", size
        self._ghosts = [it for it in moving_batch_norms(model) if isinstance(it, GhostBatchNorm)]
        together = together_in_parts(model)
        if size is not None and size % together:
            raise UserError(
                f"compute.micro_batch: found {size}, but the model's ghost batch norm takes its "
                f"statistics from {together} examples; allowed: auto, or a multiple of {together}"
            )
        self._momenta = [layer.momentum or 0.0 for layer in self._ghosts]

    def add(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient of a batch; does not wait for the device.

        Args:
            images: (m, C, H, W), normalised.
            labels: (m,).

        Returns:
            The summed loss in nats, and the number of right answers, () each.
        """
        m, size = len(labels), self.size
        if size is None or m <= size:
            return self._add(images, labels)
        losses, correct = list[Tensor](), list[Tensor]()
        for first in range(0, m, size):
            part = slice(first, min(first + size, m))
            self._weigh(part.stop - part.start, part.stop, m)
            # A copy, as a model may work in place, which the other parts must not see.
            loss, right = self._add(images[part].clone(), labels[part])
            losses.append(loss)
            correct.append(right)
        self._weigh(m, m, m)
        return sum(losses[1:], losses[0]), sum(correct[1:], correct[0])

    def _add(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._model(images)
        loss = cross_entropy(logits.float() if self._half else logits, labels, reduction="sum")
        loss.backward()
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def _weigh(self, examples: int, seen: int, m: int) -> None:
        """Set the momentum of a part, whose last example is the ``seen``-th of m.

        With momentum p, a step is r ← (1 − p)·r + p·Σ n_i·s_i/m over the statistics s_i of parts of
        n_i examples. Parts one after another make it with p·n_i/m / (1 − p·(m − seen)/m): then r is
        always the average of what there is so far, with these weights.
        """
        for layer, p in zip(self._ghosts, self._momenta, strict=True):
            layer.momentum = p * examples / m / (1 - p * (m - seen) / m)
