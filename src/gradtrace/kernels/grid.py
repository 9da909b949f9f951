"""Tensors as rows × n1 × n2: how kernels take what is connected along some axes, wherever these lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..jacobians.structure import Shape
from .memory import empty


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """A tensor as rows × n1 × n2: the axes `order`, those along which scalars are connected last."""

    shape: Shape
    order: tuple[int, ...]
    seen: Shape
    in_order: bool

    def view(self, t: Tensor) -> Tensor:
        """See a tensor of `shape` as rows × n1 × n2."""
        return (t if self.in_order else t.permute(self.order)).reshape(self.seen)

    def each(self, t: Tensor) -> list[Tensor]:
        """See the parts of batch × `shape` so."""
        return [t.reshape(self.seen)] if self.in_order and len(t) == 1 else [self.view(x) for x in t]

    def room(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Make a tensor batch × shape, and the views of its parts through which rows are written."""
        out = empty(dtype, batch, *self.shape)
        if self.in_order:
            return out, self.each(out)
        try:
            return out, [x.permute(self.order).view(self.seen) for x in out]
        except RuntimeError:  # not to be seen so without a copy: lay it out as the rows have it
            rows = empty(dtype, batch, *self.seen)
            return self.laid(rows), list(rows)

    def laid(self, rows: Tensor) -> Tensor:
        """See batch × rows × … as batch × shape."""
        ordered = rows.reshape(len(rows), *[self.shape[d] for d in self.order])
        return ordered.permute(0, *[1 + self.order.index(d) for d in range(len(self.shape))])


@lru_cache(maxsize=1024)
def grid_of(shape: Shape, dims: tuple[int, ...]) -> Grid:
    """See a tensor as rows along which scalars are connected."""
    kept = [d for d in range(len(shape)) if d not in dims]
    rows, first = prod(shape[d] for d in kept), shape[dims[0]] if len(dims) > 1 else 1
    order, seen = (*kept, *dims), (rows, first, prod(shape) // max(1, rows * first))
    return Grid(shape, order, seen, order == tuple(range(len(shape))))
