"""Competitors without a state: attention, convolution, a perceptron."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head self-attention to the words so far, with sinusoidal positions (Vaswani et al., 2017)."""

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = max(n for n in range(1, heads + 1) if hidden % n == 0)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: x and the result are batch × time × hidden."""
        return self.attend(x, self.qkv, self.out)

    def attend(self, x: Tensor, qkv: Callable[[Tensor], Tensor], out: Callable[[Tensor], Tensor]) -> Tensor:
        """Do so with these maps."""
        batch, time, hidden = x.shape
        mixed = qkv(x + positions(time, hidden))
        # batch × time × (3 · heads · width) → three of batch × heads × time × width
        q, k, v = mixed.reshape(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out(attended.transpose(1, 2).reshape(batch, time, hidden))


def positions(time: int, hidden: int) -> Tensor:
    """Give sin and cos of each position at wavelengths from 2π to 20,000π: time × hidden."""
    rate = torch.exp(torch.arange(0, hidden, 2) * (-torch.tensor(10_000.0).log() / hidden))
    angle = torch.arange(time)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :hidden]


class SkippedAttention(CausalAttention):
    """The same, with a connection that skips it: x + attention(x)."""

    def attend(self, x: Tensor, qkv: Callable[[Tensor], Tensor], out: Callable[[Tensor], Tensor]) -> Tensor:
        """Attend and add."""
        return x + super().attend(x, qkv, out)


class CausalConvolution(nn.Module):
    """Two convolutions over the last steps, four taps each, the second of every fourth step: together they see 16."""

    def __init__(self, hidden: int, taps: int = 4) -> None:
        super().__init__()
        self.taps = taps
        self.near = nn.Conv1d(hidden, hidden, taps)
        self.far = nn.Conv1d(hidden, hidden, taps, dilation=taps)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: x and the result are batch × time × hidden."""
        near = self.near(F.pad(x.transpose(1, 2), (self.taps - 1, 0))).relu()  # batch × hidden × time
        return self.far(F.pad(near, (self.taps * (self.taps - 1), 0))).transpose(1, 2)


class Perceptron(nn.Sequential):
    """A multi-layer perceptron of one hidden layer, at each step for itself: no step knows of another."""

    def __init__(self, hidden: int, factor: int = 2) -> None:
        super().__init__(nn.Linear(hidden, factor * hidden), nn.ReLU(), nn.Linear(factor * hidden, hidden))
