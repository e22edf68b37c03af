"""The paper's reduced AlexNet: five convs, three pools, two hidden FC layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from smallbatch.config.model_names import validate_norm
from smallbatch.models.head import make_classifier
from smallbatch.models.initialise import he_initialise
from smallbatch.models.norms import NormFactory, norm_factory

CHANNELS = (16, 48, 96, 64, 64)
KERNELS = (5, 3, 3, 3, 3)
POOLED = (True, True, False, False, True)
HIDDEN = 256


def same_max_pool(x: Tensor) -> Tensor:
    """3×3 max pool of stride 2 with TensorFlow's SAME padding: (…, H, W) → (…, ⌈H/2⌉, ⌈W/2⌉).

    SAME pads an odd side by one pixel at both ends, an even side by one pixel at its end only;
    padding is never the maximum. For an even side, ceil mode does this without a padded copy.
    """
    padding = (x.shape[-2] % 2, x.shape[-1] % 2)
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=padding, ceil_mode=True)


class ConvLayer(nn.Module):
    """SAME conv of stride 1 → norm → ReLU, followed by a max pool if ``pooled``."""

    def __init__(
        self, in_chans: int, channels: int, kernel: int, pooled: bool, norm: NormFactory | None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, kernel, padding=kernel // 2, bias=norm is None)
        self.norm = norm(channels) if norm else None
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, channels, H, W), halved (rounding up) if pooled."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        x = x.relu_()
        return same_max_pool(x) if self.pooled else x


class HiddenLayer(nn.Module):
    """FC → norm → ReLU."""

    def __init__(self, in_features: int, features: int, norm: NormFactory | None) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, features, bias=norm is None)
        self.norm = norm(features) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) → (N, features)."""
        x = self.fc(x)
        if self.norm is not None:
            x = self.norm(x)
        return x.relu_()


class AlexNet(nn.Module):
    """Reduced AlexNet without dropout and local response normalisation.

    Args:
        num_classes: Outputs; 0 leaves the classifier out.
        in_chans: Channels of the images.
        img_size: Height and width of the images (one number for squares); fixes the first FC.
        norm: `none`; `batch`, `ghost` and `group` after convs and hidden FC layers (group norm
            then takes 8 features per group); `batch_conv` after the convs only.
        bn_batch_size: Examples per sub-batch of ghost batch norm.
        bn_momentum: Weight of the newest batch in the running statistics.

    Raises:
        UserError: The norm does not exist.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
        norm: str = "none",
        bn_batch_size: int | None = None,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        validate_norm("alexnet", norm, bn_batch_size)
        conv_norm = norm_factory(norm, bn_batch_size, bn_momentum)
        fc_norm = None if norm == "batch_conv" else conv_norm
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = CHANNELS[-1]
        self.head_hidden_size = HIDDEN
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.features = nn.Sequential()
        for channels, kernel, pooled in zip(CHANNELS, KERNELS, POOLED, strict=True):
            self.features.append(ConvLayer(in_chans, channels, kernel, pooled, conv_norm))
            in_chans = channels
        height, width = (-(-side // 2 ** sum(POOLED)) for side in self.img_size)
        self.fc1 = HiddenLayer(self.num_features * height * width, HIDDEN, fc_norm)
        self.fc2 = HiddenLayer(HIDDEN, HIDDEN, fc_norm)
        self.fc = make_classifier(HIDDEN, num_classes)
        he_initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, 64, ⌈H / 8⌉, ⌈W / 8⌉)."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 64, h, w) → (N, num_classes), or (N, 256) with `pre_logits`."""
        x = self.fc2(self.fc1(x.flatten(1)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The FC layer that makes the logits (an identity if there are no classes)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one; see `make_classifier`."""
        self.fc = make_classifier(HIDDEN, num_classes, global_pool).to(self.fc2.fc.weight.device)
        he_initialise(self.fc)
        self.num_classes = num_classes
