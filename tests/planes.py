"""Planes for the compiled kernels to work on, and their results scalar by scalar."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradtrace.backward.backpointers import pick
from gradtrace.kernels.product import Product
from gradtrace.kernels.shared_exponent import Plane, Pulled


def plane(data: Tensor, exponent: int = 0) -> Plane:
    live = data[data > 0]
    low, high = (float(live.min()), float(live.max())) if len(live) else (math.inf, 0.0)
    return Plane(data, exponent, high, low)


def drawn(batch: int, y_shape: tuple[int, ...], seed: int, dtype: torch.dtype, *, permuted: bool = False) -> Tensor:
    """Give values of 0 to 3; permuted, their axes lie in the opposite order in memory."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randint(0, 4, (batch, *y_shape), generator=generator).to(dtype)
    return g.permute(*reversed(range(g.dim()))).contiguous().permute(*reversed(range(g.dim()))) if permuted else g


def read(part: Pulled | Product, x_numel: int, batch: int) -> tuple[Tensor, Tensor]:
    """Give (values, winners) of every scalar: batch × x each; -1 where there is no path."""
    part = part.realise() if isinstance(part, Product) else part
    part = part.laid_out((batch, x_numel))
    data, raw = part.plane.data.to(torch.float64) * 2.0**part.plane.exponent, part.raw
    data = data.reshape(batch, x_numel)
    winners = torch.full((batch, x_numel), -1)
    for row in range(batch):
        live = (data[row] > 0).nonzero().squeeze(-1)
        stored = None if raw is None else pick(raw.reshape(len(raw), x_numel), row, live, (x_numel,))
        winners[row, live] = part.way.flat(live, stored, row)
    return data, winners
