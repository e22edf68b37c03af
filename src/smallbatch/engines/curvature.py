"""Noise and curvature of the loss at a run's final weights, from gradients of a few batches."""

from __future__ import annotations

import math
import random
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from smallbatch.engines.loop import initial_model
from smallbatch.engines.resident import load_resident
from smallbatch.errors import Stopped, Stopping
from smallbatch.machine import free_memory
from smallbatch.protocol.stream import PAD, Examples

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    import numpy.typing as npt
    from torch import Tensor, nn

    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.resident import Resident
    from smallbatch.protocol.run import Run

SHARP_BATCHES = 16  # batches whose curvature is measured, with three gradients each
EXAMPLES = 4096  # the noise is measured over at least so many; its precision depends on their sum
# Of |θ|, to both sides. With ReLUs the gradient jumps where a unit turns on: over a shorter step a
# batch sees few such jumps, each as a spike, and a longer one misses the curvature here.
STEP = 2.0**-13
PROBE = 32  # examples at most of a first gradient, which tells how much time and memory one takes
MEMORY_SHARE = 0.5  # of the free memory, that a gradient may take


def measure_curvature(
    run: Run,
    dataset: Dataset,
    weights: Mapping[str, Tensor],
    *,
    seconds: float,
    device: str = "cpu",
) -> tuple[float | None, float | None]:
    """Measure the gradient noise scale and the batch sharpness at a run's final weights.

    Both are of the mean cross-entropy of batches of the run's m, in training mode and in float64,
    without weight decay, over the parameters that the run trains. Each batch is drawn anew from the
    training set, without repeats within it, with crops and flips if the run has them; batches and
    dropout follow from the run's seed. g_1, …, g_k are the gradients of k batches, k at least 16
    and k·m at least 4096, unless the time ends before.

    - The gradient noise scale is tr(Σ)/|G|², with Σ the covariance of one example's gradient and G
      the mean gradient (McCandlish et al. 2018, eq. 2.8). Both are estimated without bias from
      |g|² at the batch sizes m, a mean over the batches, and k·m, of their mean gradient (appendix
      A.1). Of a training set of n, tr(Σ) is then multiplied by (n − 1)/(n − m), as a batch has no
      example twice. Under batch norm an example's gradient is what it adds to that of a batch of m.
    - The batch sharpness is the mean of g·Hg/|g|² over the first 16 batches, with H the Hessian of
      the same batch's loss (Andreyev & Beneventano 2024). Hg is the difference of the gradients at
      θ ± ε·g, divided by 2ε, with ε = 2⁻¹³·|θ|/|g| and the same random numbers on both sides.

    Args:
        run: The run.
        dataset: The prepared data.
        weights: The run's final state dict, as `RunResult.weights`; it is not changed.
        seconds: The time there is. A batch is begun only if it should end within it, judged by the
            time that the one before took, the first by that of a gradient of at most 32 examples.
        device: Where it is computed: ``cpu`` or ``cuda``.

    Returns:
        The gradient noise scale, in examples, and the batch sharpness, to be compared with 2/η. The
        former is None with fewer than two batches, with m = n, or if |G|² is estimated at 0 or
        below: G then cannot be told from noise. The latter is None without a batch. Both are None
        for weights that are not finite, and for a model that fails, as in float64, or needs more
        memory than there is.
    """
    end = time.monotonic() + seconds
    place = torch.device(device)
    try:
        with _generators_kept(place):
            return _measure(run, dataset, weights, place, end)
    except (Stopped, Stopping):
        raise
    except (Exception, SystemExit):  # noqa: BLE001 - nothing depends on it, whatever an own model does
        return None, None


def _measure(
    run: Run, dataset: Dataset, weights: Mapping[str, Tensor], device: torch.device, end: float
) -> tuple[float | None, float | None]:
    m, n = run.batch_size, len(dataset.train_labels)
    # The weights hold the pretrained ones as well.
    model = initial_model(run, _batch(run, dataset, np.arange(1), device), weights=False)
    model.load_state_dict(weights)
    gradients = _Gradients(model.to(device, torch.float64))
    batches = _batches(run, dataset, device)
    images, labels = next(batches)
    probe = min(m, PROBE)
    began = time.monotonic()
    saved = gradients.bytes_saved(images[:probe], labels[:probe])
    rate = (time.monotonic() - began) / probe  # seconds an example takes in a gradient
    if device.type == "cpu" and saved * m / probe > MEMORY_SHARE * free_memory():
        return None, None
    total, squares, sharpness = torch.zeros_like(gradients.theta), 0.0, list[float]()
    k = 0
    while k < SHARP_BATCHES or k * m < EXAMPLES:
        sharp = k < SHARP_BATCHES
        examples = m * (3 if sharp else 1)
        began = time.monotonic()
        if began + rate * examples > end:
            break
        images, labels = next(batches)
        gradient = gradients.at(gradients.theta, images, labels, seed=k)
        total += gradient
        squares += float(gradient @ gradient)
        if sharp:
            sharpness.append(gradients.curvature(gradient, images, labels, seed=k))
        k += 1
        rate = (time.monotonic() - began) / examples
    noise = _noise_scale(m, n, k, squares / k, float(total @ total) / k**2) if k > 1 else None
    mean = sum(sharpness) / len(sharpness) if sharpness else math.nan
    return noise, mean if math.isfinite(mean) else None


def _noise_scale(m: int, n: int, k: int, small: float, big: float) -> float | None:
    """tr(Σ)/|G|² from mean |g|² at the batch sizes m and k·m (McCandlish et al. 2018, A.1)."""
    squared_mean = (k * m * big - m * small) / (k * m - m)
    trace = (small - big) / (1 / m - 1 / (k * m))
    if not squared_mean > 0 or m == n:
        return None
    noise = trace * (n - 1) / (n - m) / squared_mean
    return noise if math.isfinite(noise) else None


class _Gradients:
    """Gradients of a model's loss, each as if it were the first that the model computes.

    Attributes:
        theta: The trained parameters, (P,).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained = [it for it in model.parameters() if it.requires_grad]
        self.theta = parameters_to_vector(self._trained).detach().clone()
        # Statistics move in a forward pass, and in some models of the user's own they matter.
        self._buffers = {name: value.clone() for name, value in model.named_buffers()}

    def at(self, theta: Tensor, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """The gradient of a batch's mean loss at some weights, (P,), with dropout of a seed."""
        vector_to_parameters(theta, self._trained)
        for name, value in self._model.named_buffers():
            value.copy_(self._buffers[name])
        # By torch.manual_seed a GPU would be seeded as well, later if it is not in use yet.
        torch.default_generator.manual_seed(seed)
        if theta.is_cuda:
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - that of a model of the user's own
        random.seed(seed)
        loss = cross_entropy(self._model(images.clone()), labels)  # it may work in place
        found = torch.autograd.grad(loss, self._trained, materialize_grads=True)
        return torch.cat([it.reshape(-1) for it in found])

    def curvature(self, gradient: Tensor, images: Tensor, labels: Tensor, *, seed: int) -> float:
        """g·Hg/|g|² of the batch that g is the gradient of."""
        step = STEP * self.theta.norm() / gradient.norm()
        ahead = self.at(self.theta + step * gradient, images, labels, seed=seed)
        behind = self.at(self.theta - step * gradient, images, labels, seed=seed)
        return float(gradient @ (ahead - behind) / (2 * step * (gradient @ gradient)))

    def bytes_saved(self, images: Tensor, labels: Tensor) -> int:
        """What a gradient keeps in memory from its forward for its backward pass, in bytes."""
        ours = {it.data_ptr() for it in self._model.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in ours:
                found[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            float(self.at(self.theta, images, labels, seed=0).sum())  # waits for the device
        return sum(found.values())


def _batches(run: Run, dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: normalised images (m, C, H, W), float64, and labels (m,)."""
    draw, m, n = np.random.default_rng(run.seed), run.batch_size, len(dataset.train_labels)
    while True:
        data = _batch(run, dataset, draw.choice(n, m, replace=False), device)
        top, left = draw.integers(0, 2 * PAD + 1, size=(2, m))
        yield data.batch(data.place(Examples(np.arange(m), top, left, draw.random(m) < 0.5)))


def _batch(
    run: Run, dataset: Dataset, rows: npt.NDArray[np.int64], device: torch.device
) -> Resident:
    """Some rows of the training set alone, so that not all need memory."""
    part = replace(
        dataset,
        train_images=dataset.train_images[rows],
        train_labels=dataset.train_labels[rows],
        test_images=dataset.test_images[:1],
        test_labels=dataset.test_labels[:1],
        validation_images=None,
        validation_labels=None,
    )
    return load_resident(part, augment=run.settings.augment, device=device, dtype=torch.float64)


@contextmanager
def _generators_kept(device: torch.device) -> Generator[None, None, None]:
    """Leave the global generators of random numbers as they were."""
    python: Any = random.getstate()
    numpy: Any = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
