"""Pretrained weights: read from a file, put into a model whose head stays as initialised."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from smallbatch import durable
from smallbatch.config.model_files import FROM_TIMM, weights_file
from smallbatch.config.model_names import registered_name
from smallbatch.errors import UserError, first_line
from smallbatch.models.population import batch_norms, keep_in_evaluation
from smallbatch.text import count

_NESTED = ("state_dict", "model")  # where a checkpoint has its weights, as those of timm do
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_pretrained(model: nn.Module, name: str, pretrained: str) -> None:
    """Put pretrained weights into all of a model but its head, see :func:`head_of`.

    Statistics of batch norms come along. They are left out where the model has another norm in
    their place.

    Args:
        model: The model; its head is left as it is, and that of the file ignored.
        name: Its name.
        pretrained: A file relative to the project, or ``timm``.

    Raises:
        UserError: The file is missing or no weights; one of them has another shape, is missing, or
            is none of the model's. The line names the first.
    """
    path = weights_file(name, pretrained)
    head, own = head_of(model, name), model.state_dict()
    found = {key: value for key, value in read_weights(path).items() if not _within(key, head)}
    for key, value in own.items():
        if _within(key, head) or (key not in found and key.endswith("num_batches_tracked")):
            continue
        if key not in found:
            raise UserError(f"pretrained: {path}: has no {key!r}, which {name!r} has")
        if found[key].shape != value.shape:
            raise UserError(
                f"pretrained: {path}: {key}: found shape {tuple(found[key].shape)}, allowed for "
                f"{name!r} and these images: {tuple(value.shape)}"
            )
        _put(found[key], value, f"pretrained: {path}: {key}")
    for key in found:
        layer, _, last = key.rpartition(".")
        if key not in own and not (last in _STATISTICS and f"{layer}.weight" in own):
            raise UserError(f"pretrained: {path}: found {key!r}, which {name!r} does not have")


@torch.no_grad()
def _put(found: Tensor, value: Tensor, where: str) -> None:
    """Copy a tensor of a file, if it has numbers that its place can have."""
    kind = str(found.dtype).removeprefix("torch.")
    plain = found.layout == torch.strided and not found.is_meta and not found.is_quantized
    if not plain or found.is_floating_point() != value.is_floating_point():
        allowed = "floating-point" if value.is_floating_point() else "whole"
        other = "" if plain else "sparse, quantised or without content, "
        raise UserError(f"{where}: found {other}{kind}, allowed: {allowed} numbers")
    value.copy_(found)
    if not value.isfinite().all():
        raise UserError(f"{where}: found numbers that are not finite in single precision")


def freeze_all_but_head(model: nn.Module, name: str, image: tuple[int, ...]) -> None:
    """Train the head only: other parameters are fixed, other batch norms stay in evaluation mode.

    So the features that the head sees depend neither on the batch nor on the training.

    Raises:
        UserError: There is no head, see :func:`head_of`, or the logits do not depend on it.
    """
    head = head_of(model, name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(_within(key, head))
    inside = {id(layer) for path in head for layer in model.get_submodule(path).modules()}
    for layer in list(batch_norms(model)):
        if id(layer) not in inside:
            keep_in_evaluation(layer)
    with torch.enable_grad():
        logits = model.eval()(torch.zeros(1, *image))
    model.train()
    if not logits.requires_grad:
        raise UserError(
            f"freeze: the logits of {name!r} do not depend on {', '.join(head)}, taken for its "
            "head; allowed: a model whose method get_classifier() returns its last layer"
        )


def head_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """The names of the modules that are a model's head.

    That is what its method ``get_classifier`` returns, as timm's models have it. Of a model without
    such a method it is the last of its linear layers and convolutions, in the order in which they
    are assigned.

    Raises:
        UserError: There is none, or no layer with parameters.
    """
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier):
        given = classifier()
        heads = list(given) if isinstance(given, tuple | list) else [given]
    else:
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        heads = [layer for layer in model.modules() if isinstance(layer, kinds)][-1:]
    names = tuple(path for path, layer in model.named_modules()
                  if path and any(layer is it for it in heads)
                  and any(True for _ in layer.parameters()))  # fmt: skip
    if not names:
        raise UserError(
            f"pretrained: {name!r} has no head that could be told; allowed: a model whose method "
            "get_classifier() returns its last layer, or whose last layer is linear"
        )
    own = {id(it) for path in names for it in model.get_submodule(path).parameters()}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not _within(key, names):
            raise UserError(
                f"pretrained: {name!r}: its head {', '.join(names)} shares {key!r} with the rest, "
                "allowed: a head with weights of its own"
            )
    return names


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch state dict, which is read without pickle.

    The ``weights.safetensors`` of a single run is one as well.

    Raises:
        UserError: It is missing, damaged, or neither of the two; or it has several runs.
    """
    try:
        durable.check_regular(path)
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] == b"{" and start[:2] != b"PK":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"pretrained: {path}: no such file") from None
    except OSError as error:
        raise UserError(f"pretrained: {path}: cannot be read: {error.strerror}") from None
    except Exception:  # noqa: BLE001 - whatever it is, it is no such file
        raise UserError(
            f"pretrained: {path}: neither a safetensors file nor a torch state dict that "
            "torch.load reads with weights_only=True"
        ) from None
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(inner := content.get(key), Mapping):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            content = cast("Any", inner)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"pretrained: {path}: has no weights")
    tensors = cast("Mapping[Any, Any]", content)
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"pretrained: {path}: {key!r}: found {type(value).__name__}, allowed: tensors by "
                "name"
            )
    return _of_one_run(dict(tensors), path)


def _of_one_run(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without the run's hash that is before them in files of our own."""
    runs = {key.partition("/")[0] if "/" in key else "" for key in tensors}
    if "" in runs:
        return tensors
    if len(runs) > 1:
        raise UserError(
            f"pretrained: {path}: has the weights of {count(len(runs), 'run')}, allowed: of one, "
            "as `smallbatch run` writes"
        )
    return {key.partition("/")[2]: value for key, value in tensors.items()}


def fetch(model: str) -> None:
    """Fetch the weights that timm has for a model, once; they are then a file like any other.

    Raises:
        UserError: timm has none, or cannot be reached.
    """
    path = weights_file(model, FROM_TIMM)
    if path.exists():
        return
    from huggingface_hub import constants
    from safetensors.torch import save
    from timm import create_model, is_model_pretrained

    name = registered_name(model)
    if not is_model_pretrained(name):
        raise UserError(
            f"pretrained: timm has no weights for {model!r}; allowed: a file of weights"
        )
    if not _reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True  # so that nothing is retried for a minute
    try:
        weights = create_model(name, pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001 - of the network, of the hub, of the file
        raise UserError(
            f"pretrained: timm's weights for {model!r} cannot be fetched "
            f"({first_line(error).partition('. ')[0]}); where there is no network, give the path "
            "of a safetensors file with them"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, save({key: value.contiguous() for key, value in weights.items()}))


def _reachable(url: str) -> bool:
    """Whether the name of a host is known here, or a proxy asked for it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return False
    return True


def _within(key: str, head: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{path}.") for path in head)
