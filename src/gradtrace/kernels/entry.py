"""Read one entry of a structure's Jacobian, ∂y_i/∂x_j, where it stands: no operator runs, and nothing is pulled.

Only where two structures follow each other, i's row is carried back through the first: x_j may be met by many ways, of
which one is a way to i.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from ..jacobians.structure import (
    Chain,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sliding,
    Sparse,
    Strided,
    result_shape,
)
from ..recording.layouts import Layout, Shape, positions
from ..semirings.base import Sum
from .reference import pull

Index = tuple[int, ...]


@singledispatch
def entry(structure: object, y: int, x: int) -> float:
    """Give ∂(scalar y of the result)/∂(scalar x of the argument); 0 where there is no edge.

    Args:
        structure: how the result depends on the argument.
        y, x: flat indices.
    """
    raise TypeError(f"not a structure: {structure!r}")


def unravelled(flat: int, shape: Shape) -> Index:
    """Give the index of a scalar in a shape."""
    out = []
    for n in reversed(shape):
        flat, at = divmod(flat, n)
        out.append(at)
    return tuple(out[::-1])


def _read(weight: Tensor, at: Index) -> float:
    return float(weight[at])


@entry.register
def _contraction(s: Contraction, y: int, x: int) -> float:
    at = dict(zip(s.y, unravelled(y, s.y_shape), strict=True))
    of_x = dict(zip(s.x, unravelled(x, s.x_shape), strict=True))
    if any(at.get(c, n) != n for c, n in of_x.items()):
        return 0.0
    if s.weight is None:
        return 1.0
    at |= of_x
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    row = getattr(s.weight, "row", None)  # a Jacobian of which one row is cheaper than all
    if row is not None:
        return float(row(at[s.w[0]])[at[s.w[1]]])
    return _read(s.weight().reshape([sizes[c] for c in s.w]), tuple(at[c] for c in s.w))


def _place(layout: Layout, at: Index) -> int:
    return layout.offset + sum(i * step for i, step in zip(at, layout.stride, strict=True))


@entry.register
def _strided(s: Strided, y: int, x: int) -> float:
    return float(_place(s.layout, unravelled(y, s.layout.size)) == x)


@entry.register
def _placed(s: Placed, y: int, x: int) -> float:
    here = _place(s.layout, unravelled(x, s.layout.size)) == y
    return float(here and not any(bool((positions(hidden) == y).any()) for hidden in s.hidden))


@entry.register
def _gather(s: Gather, y: int, x: int) -> float:
    row, column = divmod(y, s.width)
    return float(divmod(x, s.width) == (int(s.index().reshape(-1)[row]), column))


@entry.register
def _scatter(s: Scatter, y: int, x: int) -> float:
    return float(int(s.index().reshape(-1)[x]) == y)


@entry.register
def _low_rank(s: LowRank, y: int, x: int) -> float:
    i, j = unravelled(y, s.shape), unravelled(x, s.shape)
    if any(a != b for d, (a, b) in enumerate(zip(i, j, strict=True)) if d not in s.dims):
        return 0.0
    own, left, right = s.factors()
    if i == j:
        return _read(own.expand(s.shape), i)
    return sum(_read(a.expand(s.shape), i) * _read(b.expand(s.shape), j) for a, b in zip(left, right, strict=True))


@entry.register
def _sparse(s: Sparse, y: int, x: int) -> float:
    (outer, i, inner), (of_x, j, of_inner) = unravelled(y, s.y_shape), unravelled(x, s.x_shape)
    if (outer, inner) != (of_x, of_inner):
        return 0.0
    rows, columns, w = s.edges()
    here = (rows == i) & (columns == j)
    return float(here.sum() if w is None else w[here].sum())


@entry.register
def _chain(s: Chain, y: int, x: int) -> float:
    row = torch.zeros(1, *result_shape(s.first), dtype=torch.float64)
    row.view(-1)[y] = 1
    return float(pull(s, Sum.carrier, (row,))[0].reshape(-1)[x])


@entry.register
def _convolved(s: Convolved, y: int, x: int) -> float:
    """Along each axis, small · stride + offset · dilation - padding = large; y is the large side if transposed."""
    of_y, of_x = unravelled(y, s.sizes.output), unravelled(x, s.x_shape)
    if not s.to_input:
        met = _met(s.sizes, of_y, of_x)
    else:
        met = _between(s.sizes, *((of_x, of_y) if s.sizes.transposed else (of_y, of_x)))
    other = s.sizes.kernel if s.to_input else s.sizes.input
    there = met is not None and all(0 <= i < n for i, n in zip(met, other, strict=True))
    return _read(s.other(), met) if there and met is not None else 0.0


def _between(sizes: Sliding, small: Index, large: Index) -> Index | None:
    """Give the kernel's index between scalars of both sides, perhaps outside the kernel; None if there is none."""
    if small[0] != large[0]:
        return None
    channel = large[1] - _first_channel(sizes, small[1])
    steps = zip(small[2:], large[2:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
    return small[1], channel, *(_whole(q + pad - p * step, apart) for p, q, step, pad, apart in steps)


def _met(sizes: Sliding, y: Index, kernel: Index) -> Index | None:
    """Give the index of the input that a scalar of the kernel meets on its way to y, perhaps outside the input."""
    channel, axes = _first_channel(sizes, kernel[0]) + kernel[1], list(zip(y[2:], kernel[2:], strict=True))
    geometry = list(zip(axes, sizes.stride, sizes.padding, sizes.dilation, strict=True))
    if sizes.transposed:
        small = (_whole(q + pad - k * apart, step) for (q, k), step, pad, apart in geometry)
        return (y[0], kernel[0], *small) if y[1] == channel else None
    large = (p * step + k * apart - pad for (p, k), step, pad, apart in geometry)
    return (y[0], channel, *large) if y[1] == kernel[0] else None


def _first_channel(sizes: Sliding, small: int) -> int:
    """Give the first channel of the large side in the group of one of the small side's."""
    return small // (sizes.kernel[0] // sizes.groups) * sizes.kernel[1]


def _whole(distance: int, step: int) -> int:
    """Divide; -1 where it does not come out even."""
    return distance // step if distance % step == 0 else -1
