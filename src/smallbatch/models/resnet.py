"""The CIFAR ResNets of He et al. 2016, §4.2: depth 6n + 2, option-A shortcuts."""

import torch.nn.functional as F
from torch import Tensor, nn

from smallbatch.config.model_names import validate_norm
from smallbatch.models.head import make_classifier
from smallbatch.models.initialise import he_initialise
from smallbatch.models.norms import NormFactory, norm_factory

WIDTHS = (16, 32, 64)


def _conv3x3(in_chans: int, channels: int, stride: int, norm: NormFactory | None) -> nn.Conv2d:
    """A 3×3 convolution, with a bias only where no normalisation follows."""
    return nn.Conv2d(in_chans, channels, 3, stride, padding=1, bias=norm is None)


class BasicBlock(nn.Module):
    """conv → norm → ReLU → conv → norm, plus the shortcut, then ReLU.

    The shortcut is option A, which has no parameters: if the shape changes, it takes every
    `stride`-th pixel and appends channels of zeros.
    """

    def __init__(self, in_chans: int, channels: int, stride: int, norm: NormFactory | None) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels - in_chans
        self.conv1 = _conv3x3(in_chans, channels, stride, norm)
        self.norm1 = norm(channels) if norm else None
        self.conv2 = _conv3x3(channels, channels, 1, norm)
        self.norm2 = norm(channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = self.conv1(x)
        if self.norm1 is not None:
            y = self.norm1(y)
        y = self.conv2(y.relu_())
        if self.norm2 is not None:
            y = self.norm2(y)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return y.add_(x).relu_()


class ResNet(nn.Module):
    """CIFAR ResNet: a 3×3 conv, three stages of n blocks, global average pool, FC.

    Args:
        blocks_per_stage: n, for depth 6n + 2.
        num_classes: Outputs; 0 leaves the classifier out.
        in_chans: Channels of the images, which may have any height and width.
        norm: `none`, `batch`, `ghost` or `group`, after every conv.
        bn_batch_size: Examples per sub-batch of ghost batch norm.
        bn_momentum: Weight of the newest batch in the running statistics.

    Raises:
        UserError: The norm does not exist, or not for ResNets.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        in_chans: int = 3,
        norm: str = "batch",
        bn_batch_size: int | None = None,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        validate_norm(f"resnet{6 * blocks_per_stage + 2}", norm, bn_batch_size)
        make_norm = norm_factory(norm, bn_batch_size, bn_momentum)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = WIDTHS[-1]
        self.conv1 = _conv3x3(in_chans, WIDTHS[0], 1, make_norm)
        self.norm1 = make_norm(WIDTHS[0]) if make_norm else None
        self.blocks = nn.Sequential()
        channels = WIDTHS[0]
        for width in WIDTHS:
            for _ in range(blocks_per_stage):
                stride = 1 if width == channels else 2
                self.blocks.append(BasicBlock(channels, width, stride, make_norm))
                channels = width
        self.fc = make_classifier(self.num_features, num_classes)
        he_initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, 64, ⌈H / 4⌉, ⌈W / 4⌉)."""
        x = self.conv1(x)
        if self.norm1 is not None:
            x = self.norm1(x)
        return self.blocks(x.relu_())

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 64, h, w) → (N, num_classes), or (N, 64) with `pre_logits`."""
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The FC layer that makes the logits (an identity if there are no classes)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one; see `make_classifier`."""
        self.fc = make_classifier(self.num_features, num_classes, global_pool).to(
            self.conv1.weight.device
        )
        he_initialise(self.fc)
        self.num_classes = num_classes
