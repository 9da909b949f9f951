"""Layouts: where the scalars of a tensor lie in a flat row of memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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


class Side(NamedTuple):
    """What a box shows along one axis of a tensor: `size` places from `start` on, as its own axis `axis`, if any."""

    start: int
    size: int
    axis: int | None


@lru_cache(maxsize=4096)
def box(at: Layout, shape: Shape) -> tuple[Side, ...] | None:
    """See a window onto a tensor as a box of the tensor's own axes, in any order; None where it is not one."""
    if 0 in shape or 0 in at.size:
        return None
    steps, axes = contiguous(shape), {}
    known = {step: d for d, step in enumerate(steps) if shape[d] != 1}
    for axis, (n, step) in enumerate(zip(at.size, at.stride, strict=True)):
        if n == 1:
            continue
        if step not in known or known[step] in axes:
            return None
        axes[known[step]] = axis
    out, rest = [], at.offset
    for d, (n, step) in enumerate(zip(shape, steps, strict=True)):
        start, rest = divmod(rest, step)
        size = at.size[axes[d]] if d in axes else 1
        if start + size > n:  # it wraps around
            return None
        out.append(Side(start, size, axes.get(d)))
    return tuple(out)


def unravelled(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Give the index of a scalar in a shape."""
    out = []
    for n in reversed(shape):
        flat, at = divmod(flat, n)
        out.append(at)
    return tuple(out[::-1])
