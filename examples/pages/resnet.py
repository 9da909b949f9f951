"""A residual network of eight blocks in four stages, as ResNet-18, with fewer channels.

What an expert expects: the paths of the stem take the skips. Three blocks halve the image and have a 1 × 1
convolution instead of a skip: there is no way around, and paths divide between it and the two 3 × 3 convolutions.

    gradtrace trace examples/pages/resnet.py:build
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions, and a skip around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        wider = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = wider if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of it."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """A stem, four stages of two blocks, a classifier."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for n, (a, b) in enumerate(pairwise(sizes), 1):
            setattr(self, f"layer{n}", nn.Sequential(Block(a, b, 1 + (n > 1)), Block(b, b, 1)))
        self.fc = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, batch × 3 × height × width."""
        x = self.bn1(self.conv1(x)).relu()
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
        return self.fc(x.mean((2, 3)))


def build() -> tuple[nn.Module, list[Any], Any]:
    """Give the model, a batch of images with classes, and the loss."""
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    return ResNet().eval(), [batch], lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
