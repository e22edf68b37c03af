"""One plain PyTorch training run, as a user would write it: what the engines are compared with.

A script of its own, `python textbook.py --data images.npz --batch-size 8 ...`: a timm model, a
DataLoader with torchvision's v2 transforms, `torch.optim.SGD`, torch's default threads. It trains
until it has been timed for long enough and prints one line of JSON. With `--requests` it does so
for each line that it reads: a JSON list of options. It is not part of the package's engines and
imports nothing of it, but for models that timm itself has not, and to answer requests.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import IO, Any, cast

import numpy as np
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

DEPTHS = {"resnet8": 1, "resnet20": 3, "resnet32": 5}


class OptionA(nn.Module):
    """A shortcut without parameters: every second pixel, and zeros in the new channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 2C, H/2, W/2)."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def cifar_resnet(blocks: int, norm_layer: Any, in_chans: int, classes: int) -> nn.Module:
    """The CIFAR ResNet of depth 6n + 2, from timm's parts."""
    model: Any = ResNet(
        cast("Any", BasicBlock),
        (blocks, blocks, blocks),
        channels=(16, 32, 64),
        num_classes=classes,
        in_chans=in_chans,
        stem_type="deep",
        stem_width=8,
        zero_init_last=False,
        norm_layer=norm_layer,
    )
    model.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
    model.maxpool = model.layer4 = nn.Identity()
    for stage in (model.layer2, model.layer3):
        stage[0].downsample = OptionA()
    return model


def build(
    options: argparse.Namespace, in_chans: int, side: tuple[int, int], classes: int
) -> nn.Module:
    """The model, from timm's parts if possible, otherwise as this package builds it."""
    layers: dict[str, Any] = {"batch": nn.BatchNorm2d, "none": nn.Identity}
    if options.model in DEPTHS and options.norm in layers:
        return cifar_resnet(DEPTHS[options.model], layers[options.norm], in_chans, classes)
    from smallbatch.models import build_model

    return build_model(
        options.model, options.norm, num_classes=classes, in_chans=in_chans, image_size=side,
        seed=0, batch_size=options.batch_size, bn_batch_size=options.bn_batch_size,
    )  # fmt: skip


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory in the form of torchvision's data sets: uint8 (N, H, W, C)."""

    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def make_loader(arrays: Any, options: argparse.Namespace) -> DataLoader[Any]:
    """Batches, in a new order every epoch."""
    images, labels = arrays["images"], arrays["labels"]
    pixels = images[:4096].reshape(-1, images.shape[-1]) / 255
    augment = [v2.RandomCrop(images.shape[1:3], padding=4), v2.RandomHorizontalFlip()]
    transform = v2.Compose(
        [
            v2.ToImage(),
            *(augment if options.augment else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(pixels.mean(0).tolist(), pixels.std(0).tolist()),
        ]
    )
    return DataLoader(
        Images(images, labels, transform),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=options.device == "cuda",
    )


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimiser as its name is usually meant."""
    if options.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=1e-4)
    return torch.optim.SGD(
        model.parameters(),
        lr=options.lr,
        weight_decay=1e-4,
        momentum=0.0 if options.optimizer == "sgd" else 0.9,
        nesterov=options.optimizer == "nesterov",
    )


def train(model: nn.Module, loader: DataLoader[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train; the time is taken from update ``--warm-up`` on, for at least ``--seconds``."""
    device = torch.device(options.device)
    model.to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = make_optimizer(model, options)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    updates, start = 0, 0.0
    while True:
        for inputs, targets in loader:
            if updates == options.warm_up:
                synchronize(device)
                start = time.perf_counter()
            images = inputs.to(device, non_blocking=True)
            labels = targets.to(device, non_blocking=True)
            logits = model(images)
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            updates += 1
            if updates > options.warm_up and time.perf_counter() - start >= options.seconds:
                synchronize(device)
                seconds = time.perf_counter() - start
                seen = updates * options.batch_size
                return {
                    "images": seen - options.warm_up * options.batch_size,
                    "seconds": seconds,
                    "loss": loss_sum.item() / seen,
                    "accuracy": correct.item() / seen,
                }


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def answer(words: list[str], out: IO[str]) -> None:
    """Train by options and write the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="npz of images (N, H, W, C) and labels (N,)")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--bn-batch-size", type=int)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warm-up", type=int, default=5, help="updates before the clock starts")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(words)
    torch.backends.cudnn.benchmark = True
    arrays = np.load(options.data)
    _, height, width, channels = arrays["images"].shape
    classes = int(arrays["labels"].max()) + 1
    model = build(options, channels, (height, width), classes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = train(model, make_loader(arrays, options), options)
    found = result | {"parameters": parameters, "threads": torch.get_num_threads()}
    print(json.dumps(found), file=out, flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is measured next needs the memory


def main() -> None:
    """Train once, or once for each request."""
    from smallbatch.speed.bench.serve import serve

    serve(answer)


if __name__ == "__main__":
    main()
