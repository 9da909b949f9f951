"""A U-Net of three levels.

What an expert expects: three concatenations join what was kept at a level with what comes up from below. The outermost
skip is the short way from the first convolution to the output, so the paths of the first level cross it, and
few go down; those that go down meet the next skip.

    gradtrace trace examples/pages/unet.py:build
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    """Three levels down, three up, with a skip at each."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in pairwise([1, *sizes]))
        self.bottom = _convolutions(sizes[-1], 8 * width)
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in sizes)
        self.up = nn.ModuleList(_convolutions(2 * n, n) for n in sizes)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Give a logit for each pixel of batch × 1 × height × width."""
        kept = []
        for down in self.down:
            kept.append(down(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for level in reversed(range(3)):
            x = self.up[level](torch.cat([kept[level], self.rise[level](x)], 1))
        return self.out(x)


def build() -> tuple[nn.Module, list[Any], Any]:
    """Give the model, a batch of images with masks, and the loss."""
    torch.manual_seed(0)
    image = torch.randn(2, 1, 16, 16)
    batch = image, (F.avg_pool2d(image, 5, 1, 2) > 0).float()
    return UNet(), [batch], lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])
