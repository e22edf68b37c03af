"""Recomputed batch-norm statistics against NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smallbatch.models import build_model, has_batch_norm, recompute_population_statistics
from smallbatch.models.norms import BatchNorm, GhostBatchNorm


class TwoLayers(nn.Module):
    """norm → 1×1 conv → relu → norm, small enough to write down."""

    def __init__(self, ghost: bool) -> None:
        super().__init__()
        self.norm1 = GhostBatchNorm(2, 2) if ghost else BatchNorm(2)
        self.conv = nn.Conv2d(2, 3, 1, bias=False)
        self.norm2 = GhostBatchNorm(3, 2) if ghost else BatchNorm(3)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.drop(self.conv(self.norm1(x))).relu_())


@pytest.mark.parametrize("ghost", [False, True])
def test_statistics_are_numpys_layer_after_layer(ghost: bool) -> None:
    torch.manual_seed(0)
    model = TwoLayers(ghost).double()
    model.norm1.weight.data = torch.tensor([0.5, -2.0], dtype=torch.double)
    x = torch.randn(10, 2, 3, 3, dtype=torch.double) * 4 + 1
    model.norm2(torch.randn(4, 3, 3, 3, dtype=torch.double))  # an average to be replaced
    model.norm1.get_buffer("running_var").fill_(torch.nan)

    recompute_population_statistics(model, x)

    a = x.numpy()
    mean1, var1 = a.mean((0, 2, 3)), a.var((0, 2, 3))
    y = (a - mean1[:, None, None]) / np.sqrt(var1[:, None, None] + 1e-5)
    y = y * np.array([0.5, -2.0])[:, None, None]
    z = np.einsum("oc,nchw->nohw", model.conv.weight.detach().numpy()[:, :, 0, 0], y)
    z = np.maximum(z, 0)
    np.testing.assert_allclose(model.norm1.get_buffer("running_mean"), mean1, atol=1e-12)
    np.testing.assert_allclose(model.norm1.get_buffer("running_var"), var1, atol=1e-12)
    np.testing.assert_allclose(
        model.norm2.get_buffer("running_mean"), z.mean((0, 2, 3)), atol=1e-12
    )
    np.testing.assert_allclose(model.norm2.get_buffer("running_var"), z.var((0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("model", ["resnet20", "alexnet", "resnet18", "mobilenetv3_small_050"])
def test_evaluation_on_the_population_is_its_training_mode_forward(model: str) -> None:
    built = build_model(
        model, "batch", num_classes=4, in_chans=1, image_size=16, seed=0, batch_size=8
    ).double()
    images = torch.randn(12, 1, 16, 16, dtype=torch.double)
    recompute_population_statistics(built, images)
    assert all(module.training for module in built.modules())
    evaluated = built.eval()(images)
    torch.testing.assert_close(evaluated, built.train()(images))


def test_ghost_and_plain_agree_and_modes_are_kept() -> None:
    images = torch.randn(9, 1, 8, 8)
    states: list[dict[str, Tensor]] = []
    for norm, size in (("batch", None), ("ghost", 2)):
        model = build_model(
            "resnet8",
            norm,
            num_classes=4,
            in_chans=1,
            image_size=8,
            seed=0,
            batch_size=4,
            bn_batch_size=size,
        )
        model.eval()
        model.get_submodule("norm1").train()
        recompute_population_statistics(model, images)
        assert [name for name, m in model.named_modules() if m.training] == ["norm1"]
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_models_without_batch_norm_are_left_alone() -> None:
    for norm in ("none", "group"):
        model = build_model(
            "resnet8", norm, num_classes=4, in_chans=1, image_size=8, seed=0, batch_size=1
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert not has_batch_norm(model)
        recompute_population_statistics(model, torch.randn(3, 1, 8, 8))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_failed_pass_leaves_no_hooks_and_no_changed_modes() -> None:
    model = TwoLayers(ghost=False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recompute_population_statistics(model, torch.randn(1, 2, 1, 1))
    assert all(module.training for module in model.modules())
    model.eval()
    model(torch.randn(1, 2, 1, 1))
