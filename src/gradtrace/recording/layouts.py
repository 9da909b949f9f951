"""Layouts: where the scalars of a tensor lie in a flat row of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]


class Layout(NamedTuple):
    """Where the scalars of a tensor lie in a flat row of memory."""

    size: Shape
    stride: Shape
    offset: int


def contiguous(shape: Sequence[int]) -> Shape:
    """Give the strides of a contiguous tensor."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def positions(layout: Layout, device: torch.device | str = "cpu") -> Tensor:
    """Give the flat position of each scalar of a layout."""
    out = torch.full((), layout.offset, dtype=torch.int64, device=device)
    for n, step in zip(layout.size, layout.stride, strict=True):
        out = out.unsqueeze(-1) + step * torch.arange(n, device=device)
    return out
