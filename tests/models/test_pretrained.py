"""Pretrained weights: all but the head comes from the file, or one line says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smallbatch.errors import UserError
from smallbatch.models import build_model, has_batch_norm, recompute_population_statistics
from smallbatch.models.pretrained import head_of, read_weights
from tests.own_model import write_net

MODELS = [("resnet8", "batch", "fc"), ("test_resnet", "batch", "fc"),
          ("nets.mine:Net", "batch", "fc"), ("alexnet", "none", "fc"),
          ("test_vit", "batch", "head")]  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_net(tmp_path))


def build(model: str, norm: str = "batch", classes: int = 3, **changes: Any) -> nn.Module:
    arguments: dict[str, Any] = {"in_chans": 3, "image_size": 32, "seed": 0, "batch_size": 8}
    return build_model(model, norm, num_classes=classes, **arguments | changes)


def weights_of(model: str, norm: str = "batch", **changes: Any) -> dict[str, Tensor]:
    """Weights that no seed gives, with statistics, and a head for five classes."""
    torch.manual_seed(9)
    state = build(model, norm, 5, **changes).state_dict()
    return {key: torch.rand(value.shape) + 1 if value.is_floating_point() else value + 3
            for key, value in state.items()}  # fmt: skip


@pytest.mark.parametrize(("model", "norm", "head"), MODELS)
def test_all_but_the_head_comes_from_the_file(model: str, norm: str, head: str) -> None:
    weights = weights_of(model, norm)
    save_file(weights, "w.safetensors")
    for seed in (0, 1):
        plain = build(model, norm, seed=seed).state_dict()
        loaded = build(model, norm, seed=seed, pretrained="w.safetensors").state_dict()
        for key, value in loaded.items():
            expected = plain if key.startswith(f"{head}.") else weights
            assert torch.equal(value, expected[key]), key


def test_checkpoints_of_torch_are_read_too() -> None:
    weights = weights_of("resnet8")
    save_file(weights, "w.safetensors")
    expected = build("resnet8", pretrained="w.safetensors").state_dict()
    for i, content in enumerate((weights, {"state_dict": weights, "epoch": 3}, {"model": weights})):
        torch.save(content, f"{i}.pt")
        found = build("resnet8", pretrained=f"{i}.pt").state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_replaced_norms_have_the_files_weights() -> None:
    weights = weights_of("test_resnet")
    save_file(weights, "w.safetensors")
    ghost = build("test_resnet", "ghost", bn_batch_size=4, pretrained="w.safetensors").state_dict()
    group = build("test_resnet", "group", pretrained="w.safetensors").state_dict()
    assert torch.equal(ghost["bn1.running_mean"], weights["bn1.running_mean"])
    assert torch.equal(group["bn1.weight"], weights["bn1.weight"])
    weights = weights_of("resnet8")
    save_file(weights, "w.safetensors")
    group = build("resnet8", "group", pretrained="w.safetensors").state_dict()
    assert not any("running" in key for key in group)
    assert all(torch.equal(value, weights[key]) for key, value in group.items() if "fc." not in key)


def damaged(kind: str) -> dict[str, Tensor]:
    weights = weights_of("resnet8")
    first = next(iter(weights))
    if kind == "shape":
        return weights_of("resnet8", in_chans=1)
    if kind == "missing":
        del weights[first]
    else:
        weights["more.weight"] = torch.zeros(2)
    return weights


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("shape", r"conv1\.weight: found shape \(16, 1, 3, 3\), allowed for 'resnet8' and .*"),
        ("missing", r"has no 'conv1\.weight', which 'resnet8' has$"),
        ("more", r"found 'more\.weight', which 'resnet8' does not have$"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_one_line(kind: str, line: str) -> None:
    save_file(damaged(kind), "w.safetensors")
    with pytest.raises(UserError, match=rf"^pretrained: w\.safetensors.*{line}"):
        build("resnet8", pretrained="w.safetensors")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda it: it.mul(torch.nan), "found numbers that are not finite in single precision"),
        (lambda it: it.double().add(1e300), "found numbers that are not finite"),
        (lambda it: it.to(torch.int8), "found int8, allowed: floating-point numbers"),
        (lambda it: it.to(torch.complex64), "found complex64, allowed: floating-point numbers"),
        (lambda it: it.to_sparse(), "found sparse, quantised or without content, float32"),
        (lambda it: it.to("meta"), "found sparse, quantised or without content, float32"),
    ],
)
def test_other_numbers_are_one_line(change: Callable[[Tensor], Tensor], line: str) -> None:
    weights = weights_of("resnet8")
    first = next(iter(weights))
    torch.save({**weights, first: change(weights[first])}, "w.pt")
    with pytest.raises(UserError, match=rf"^pretrained: w\.pt: {first}: {line}"):
        build("resnet8", pretrained="w.pt")


class Evil:
    def __reduce__(self) -> Any:
        return (Path("touched").touch, ())


def test_no_pickle_is_run_and_no_other_file_taken() -> None:
    torch.save({"a": Evil()}, "evil.pt")
    Path("text.pt").write_text("no weights")
    Path("short.pt").write_bytes(b"")
    torch.save({"a": 3}, "number.pt")
    for name in ("evil.pt", "text.pt", "short.pt"):
        with pytest.raises(
            UserError, match=rf"^pretrained: {name}: neither a safetensors file nor"
        ):
            build("resnet8", pretrained=name)
    with pytest.raises(UserError, match="'a': found int, allowed: tensors by name"):
        build("resnet8", pretrained="number.pt")
    with pytest.raises(UserError, match=r"^pretrained: gone\.pt: no such file$"):
        build("resnet8", pretrained="gone.pt")
    assert not Path("touched").exists()


def test_the_head_is_told_by_timms_method_or_is_the_last_layer() -> None:
    assert head_of(build("test_vit"), "test_vit") == ("head",)
    assert head_of(build("nets.mine:Net"), "nets.mine:Net") == ("fc",)
    distilled: Any = nn.ModuleDict(
        {"a": nn.Linear(2, 3), "b": nn.Linear(2, 3), "c": nn.Linear(2, 2)}
    )
    distilled.get_classifier = lambda: (distilled["a"], distilled["b"])
    assert head_of(distilled, "x") == ("a", "b")
    with pytest.raises(UserError, match="has no head that could be told"):
        head_of(nn.Sequential(nn.ReLU()), "x")


@pytest.mark.parametrize(("model", "norm", "head"), MODELS)
def test_a_frozen_model_trains_its_head_only(model: str, norm: str, head: str) -> None:
    save_file(weights_of(model, norm), "w.safetensors")
    built = build(model, norm, pretrained="w.safetensors", freeze="head only").train()
    trained = {key for key, value in built.named_parameters() if value.requires_grad}
    assert trained == {f"{head}.weight", f"{head}.bias"}
    before = {key: value.clone() for key, value in built.state_dict().items()}
    images = torch.rand(4, 3, 32, 32)
    logits = built(images)
    assert not has_batch_norm(built)
    recompute_population_statistics(built, images)
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    torch.testing.assert_close(  # of an example alone
        logits[:1], built(images[:1]), rtol=1e-4, atol=1e-4
    )


def test_the_weights_of_one_run_as_we_keep_them_are_taken(tmp_path: Path) -> None:
    own = {"0a1b/fc.weight": torch.ones(2, 3), "0a1b/fc.bias": torch.zeros(2)}
    save_file(own, tmp_path / "one.safetensors")
    assert set(read_weights(tmp_path / "one.safetensors")) == {"fc.weight", "fc.bias"}
    save_file({**own, "2c3d/fc.bias": torch.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="has the weights of 2 runs, allowed: of one"):
        read_weights(tmp_path / "two.safetensors")
