"""The names of the paper's four models in timm's registry; does not import timm, which is slow."""

from collections.abc import Callable
from functools import partial

from torch import nn

from smallbatch.models.alexnet import AlexNet
from smallbatch.models.resnet import ResNet

PAPER_MODELS: dict[str, Callable[..., nn.Module]] = {
    "smallbatch_resnet8": partial(ResNet, blocks_per_stage=1),
    "smallbatch_resnet20": partial(ResNet, blocks_per_stage=3),
    "smallbatch_resnet32": partial(ResNet, blocks_per_stage=5),
    "smallbatch_alexnet": AlexNet,
}
