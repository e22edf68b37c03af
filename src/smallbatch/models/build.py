"""Builds the model of a run, initialised from its seed alone."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallbatch.config.model_names import own_model, registered_name, validate_model
from smallbatch.errors import UserError
from smallbatch.models.initialise import he_initialise
from smallbatch.models.norms import BatchNorm, GhostBatchNorm, bn_momentum, group_norm, sum_exactly
from smallbatch.models.own import build_own
from smallbatch.models.paper import PAPER_MODELS
from smallbatch.models.population import batch_norms, has_batch_norm
from smallbatch.models.pretrained import freeze_all_but_head, load_pretrained


def build_model(
    model: str,
    norm: str = "none",
    *,
    num_classes: int,
    in_chans: int,
    image_size: int | tuple[int, int],
    seed: int,
    batch_size: int,
    bn_batch_size: int | None = None,
    pretrained: str | None = None,
    freeze: str | None = None,
    project: Path | None = None,
) -> nn.Module:
    """Build a model for one run, on the CPU, in float32 and training mode.

    The paper's models get He initialisation; their weights depend only on the seed, not on the
    norm. Every other model keeps its own initialisation, drawn from the seed. For such a model the
    norm `batch` means the model's own normalisation, whatever it is; `none` is allowed if
    it has no batch norm; `ghost` and `group` replace each plain batch norm.

    torch's global random state is left unchanged.

    Args:
        model: `resnet8`, `resnet20`, `resnet32`, `alexnet`, the name of a timm model, or
            `package.module:factory` for one of the user's own.
        norm: `none`, `batch`, `batch_conv` (alexnet only), `ghost` or `group`.
        num_classes: Outputs.
        in_chans: Channels of the images.
        image_size: Height and width of the images; one number for squares.
        seed: Seed of the initial weights.
        batch_size: Examples per weight update (m), which sets the running statistics' momentum.
        bn_batch_size: Examples per sub-batch of ghost batch norm, 2 to `batch_size`.
        pretrained: Weights of all but the head; see `pretrained.load_pretrained`.
        freeze: `head only`: only the head is trained; see `pretrained.freeze_all_but_head`.
        project: The folder of own modules; by default the current one.

    Raises:
        UserError: As `validate_model`; or the model cannot be built for such images or norm, or the
            weights do not fit it.
    """
    validate_model(model, norm, batch_size=batch_size, bn_batch_size=bn_batch_size)
    name = registered_name(model)
    side = (image_size, image_size) if isinstance(image_size, int) else image_size
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    momentum = bn_momentum(batch_size)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs.
        torch.default_generator.manual_seed(seed)
        if name in PAPER_MODELS:
            shape |= {"norm": norm, "bn_batch_size": bn_batch_size, "bn_momentum": momentum}
            if name == "smallbatch_alexnet":
                shape["img_size"] = side
            built = PAPER_MODELS[name](**shape)
            he_initialise(built, torch.Generator().manual_seed(seed))
        elif own_model(name):
            built = build_own(name, side, shape, project)
        else:
            built = _build_timm(name, side, shape)
    if pretrained:
        load_pretrained(built, model, pretrained)
    if name not in PAPER_MODELS:
        _apply_norm(built, name, norm, bn_batch_size)
        for layer in batch_norms(built):
            layer.momentum = momentum
            if not isinstance(layer, BatchNorm):
                layer.register_forward_pre_hook(sum_exactly)
    if freeze:
        freeze_all_but_head(built, model, (in_chans, *side))
    return built


def _build_timm(name: str, side: tuple[int, int], shape: dict[str, Any]) -> nn.Module:
    """Build one of timm's own models and try it on a blank image.

    Raises:
        UserError: It cannot be built for such images, or fails on one.
    """
    import timm

    try:
        try:
            # Some models take one number only.
            size = side[0] if side[0] == side[1] else side
            built = timm.create_model(name, img_size=size, **shape)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            built = timm.create_model(name, **shape)
        with torch.no_grad():
            built.eval()(torch.zeros(1, shape["in_chans"], *side))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model: timm's {name!r} does not take images of "
            f"{shape['in_chans']}×{side[0]}×{side[1]} (channels × height × width): {reason}"
        ) from error
    return built.train()


def _apply_norm(model: nn.Module, name: str, norm: str, bn_batch_size: int | None) -> None:
    """Give a model that is none of the paper's the requested norm.

    Raises:
        UserError: The model has batch norm but must have none; or its norm must be replaced, but it
            has no batch norm, or one that is fused with an activation.
    """
    if norm == "batch" or (norm == "none" and not has_batch_norm(model)):
        return
    plain = {path: layer for path, layer in model.named_modules() if type(layer) is nn.BatchNorm2d}
    if norm == "none":
        raise UserError(
            f"norm: 'none' is not possible for {_named(name)}, which is defined with batch norm; "
            f"allowed: batch{', ghost, group' if plain else ''}"
        )
    if not plain or len(plain) != sum(1 for _ in batch_norms(model)):
        raise UserError(
            f"norm: {norm!r} is not possible for {_named(name)}, which has no plain batch norm "
            f"to replace; allowed: {'batch' if has_batch_norm(model) else 'none, batch'}"
        )
    for path, layer in plain.items():
        parent, _, child = path.rpartition(".")
        model.get_submodule(parent).register_module(child, _replacement(layer, bn_batch_size))


def _named(name: str) -> str:
    return repr(name) if own_model(name) else f"timm's {name!r}"


def _replacement(layer: nn.BatchNorm2d, bn_batch_size: int | None) -> nn.Module:
    """A ghost batch norm, or a group norm if there is no sub-batch size, with the same weights."""
    if bn_batch_size is None:
        new: nn.Module = group_norm(layer.num_features)
    else:
        new = GhostBatchNorm(layer.num_features, bn_batch_size, layer.eps)
    state = layer.state_dict()
    new.load_state_dict({key: state[key] for key in new.state_dict()})
    return new
