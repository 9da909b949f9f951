"""Competitors without a state of their own: attention."""

from __future__ import annotations

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
        batch, time, hidden = x.shape
        mixed = self.qkv(x + positions(time, hidden))
        # batch × time × (3 · heads · width) → three of batch × heads × time × width
        q, k, v = mixed.reshape(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).reshape(batch, time, hidden))


def positions(time: int, hidden: int) -> Tensor:
    """Give sin and cos of each position at wavelengths from 2π to 20,000π: time × hidden."""
    rate = torch.exp(torch.arange(0, hidden, 2) * (-torch.tensor(10_000.0).log() / hidden))
    angle = torch.arange(time)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :hidden]
