"""Read entries of a structure's Jacobian, ∂y_i/∂x_j, where they stand: no operator runs, and nothing is pulled."""

from __future__ import annotations

from functools import singledispatch
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..jacobians.structure import (
    FORMS,
    ROWS,
    Chain,
    Closed,
    ClosedRows,
    Contraction,
    Convolved,
    Factors,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sliding,
    Sparse,
    Strided,
)
from ..recording.layouts import Layout, Shape, positions
from .column import met_by

MIDDLES = 1 << 21  # scalars between two structures that are looked at together
Index: TypeAlias = tuple[np.ndarray, ...]  # of some scalars: the coordinates along each axis


@singledispatch
def entries(structure: object, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Give ∂(scalar y of the result)/∂(scalar x of the argument), for pairs of them; 0 where there is no edge.

    Args:
        structure: how the result depends on the argument.
        y, x: flat indices, equally many.
    """
    raise TypeError(f"not a structure: {structure!r}")


def indices(flat: np.ndarray, shape: Shape) -> Index:
    """Give the indices of scalars in a shape."""
    return np.unravel_index(flat, shape) if shape else ()


def _read(weight: Tensor, at: Index) -> np.ndarray:
    """Read some scalars of a tensor."""
    return _taken(weight, at).to(torch.float64).numpy()


def _taken(tensor: Tensor, at: Index) -> Tensor:
    return tensor.detach()[tuple(map(torch.from_numpy, at))]


def _numbers(found: Tensor | np.ndarray, like: np.ndarray) -> np.ndarray:
    """Give one number for each pair."""
    return np.broadcast_to(found, like.shape).astype(np.float64)


@entries.register
def _contraction(s: Contraction, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    at = dict(zip(s.y, indices(y, s.y_shape), strict=True))
    of_x = dict(zip(s.x, indices(x, s.x_shape), strict=True))
    here = np.ones(y.shape, bool)
    for c, n in of_x.items():
        here &= at.get(c, n) == n
    if s.weight is None:
        return here.astype(np.float64)
    at |= of_x
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    row = getattr(s.weight, "row", None)  # a Jacobian of which one row is cheaper than all
    out = np.zeros(y.shape)
    if row is not None:
        rows, columns = at[s.w[0]], at[s.w[1]]
        for number in np.unique(rows[here]).tolist():
            which = np.flatnonzero(here & (rows == number))
            out[which] = _read(row(number), (columns[which],))
        return out
    closed = s.weight if isinstance(s.weight, Closed) else None  # which is worked out where it is read
    weight = (s.weight() if closed is None else closed.of()).reshape([sizes[c] for c in s.w])
    taken = _taken(weight, tuple(at[c] for c in s.w))
    return np.where(here, _numbers(_double(taken if closed is None else FORMS[closed.form](taken)), y), 0.0)


def _place(layout: Layout, at: Index, like: np.ndarray) -> np.ndarray:
    out = np.full(like.shape, layout.offset)
    for i, step in zip(at, layout.stride, strict=True):
        out += i * step
    return out


@entries.register
def _strided(s: Strided, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (_place(s.layout, indices(y, s.layout.size), y) == x).astype(np.float64)


@entries.register
def _placed(s: Placed, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    here = _place(s.layout, indices(x, s.layout.size), x) == y
    for hidden in s.hidden:
        here &= ~np.isin(y, positions(hidden).numpy())
    return here.astype(np.float64)


@entries.register
def _gather(s: Gather, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    (row, column), (read, of_x) = divmod(y, s.width), divmod(x, s.width)
    rows = _taken(s.index().reshape(-1), (row,)).numpy()
    return ((rows == read) & (column == of_x)).astype(np.float64)


@entries.register
def _scatter(s: Scatter, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (_taken(s.index().reshape(-1), (x,)).numpy() == y).astype(np.float64)


@entries.register
def _low_rank(s: LowRank, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    i, j = indices(y, s.shape), indices(x, s.shape)
    met = np.ones(y.shape, bool)
    for d, (a, b) in enumerate(zip(i, j, strict=True)):
        if d not in s.dims:
            met &= a == b
    (own, left, _), (*_, right) = _factors_at(s, i), _factors_at(s, j)
    product = sum(_numbers(a, y) * _numbers(b, y) for a, b in zip(left, right, strict=True))
    return np.where(y == x, _numbers(own, y), np.where(met, product, 0.0))


def _factors_at(s: LowRank, at: Index) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Give the factors at some scalars; those in a closed form are worked out there alone."""

    def taken(given: Tensor) -> Tensor:
        return _taken(given.expand(s.shape), at)

    closed = s.factors
    if isinstance(closed, ClosedRows):
        given = (taken(closed.log()).exp(),) if closed.log is not None else closed.of()
        if closed.log is None:
            given = tuple(taken(g) if isinstance(g, Tensor) else g for g in given)
        found: Factors = ROWS[closed.form](*given)
        own, left, right = found
    else:
        own, left, right = closed()
        own, left, right = taken(own), tuple(map(taken, left)), tuple(map(taken, right))
    return _double(own), [_double(f) for f in left], [_double(f) for f in right]


def _double(given: Tensor) -> np.ndarray:
    return given.to(torch.float64).numpy()


@entries.register
def _sparse(s: Sparse, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    (outer, i, inner), (of_x, j, of_inner) = indices(y, s.y_shape), indices(x, s.x_shape)
    rows, columns, w = s.edges()
    size = s.x_shape[1]
    asked, number = np.unique(i * size + j, return_inverse=True)
    edges = (rows * size + columns).numpy()
    place = np.searchsorted(asked, edges).clip(max=max(len(asked) - 1, 0))
    found = np.flatnonzero(asked[place] == edges) if len(asked) else place[:0]
    out = np.zeros(len(asked))
    np.add.at(out, place[found], 1.0 if w is None else _read(w, (found,)))
    return np.where((outer == of_x) & (inner == of_inner), out[number], 0.0)


@entries.register
def _chain(s: Chain, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Add up over the virtual scalars that x is met by, of which one is on a way to y; so many of them at a time."""
    out, begin, step = np.zeros(len(x)), 0, 64
    while begin < len(x):
        some = slice(begin, begin + step)
        pair, middle, weight = met_by(s.second, x[some])
        out[some] = np.bincount(pair, entries(s.first, y[some][pair], middle) * weight, len(x[some]))
        begin, step = begin + step, max(1, MIDDLES * step // max(1, len(pair)))
    return out


@entries.register
def _convolved(s: Convolved, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Along each axis, small · stride + offset · dilation - padding = large; y is the large side if transposed."""
    of_y, of_x = indices(y, s.sizes.output), indices(x, s.x_shape)
    if not s.to_input:
        there, met = _met(s.sizes, of_y, of_x)
    else:
        there, met = _between(s.sizes, *((of_x, of_y) if s.sizes.transposed else (of_y, of_x)))
    other = s.sizes.kernel if s.to_input else s.sizes.input
    for i, n in zip(met, other, strict=True):
        there = there & (i >= 0) & (i < n)
    out = np.zeros(y.shape)
    out[there] = _read(s.other(), tuple(i[there] for i in met))
    return out


def _between(sizes: Sliding, small: Index, large: Index) -> tuple[np.ndarray, Index]:
    """Give whether scalars of both sides may meet, and at which index of the kernel, perhaps outside of it."""
    channel = large[1] - _first_channel(sizes, small[1])
    steps = zip(small[2:], large[2:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
    return small[0] == large[0], (small[1], channel, *(_whole(q + pad - p * step, n) for p, q, step, pad, n in steps))


def _met(sizes: Sliding, y: Index, kernel: Index) -> tuple[np.ndarray, Index]:
    """Give whether a scalar of the kernel may be on a way to y, and where it meets the input, perhaps outside of it."""
    channel, axes = _first_channel(sizes, kernel[0]) + kernel[1], list(zip(y[2:], kernel[2:], strict=True))
    geometry = list(zip(axes, sizes.stride, sizes.padding, sizes.dilation, strict=True))
    if sizes.transposed:
        small = (_whole(q + pad - k * apart, step) for (q, k), step, pad, apart in geometry)
        return y[1] == channel, (y[0], kernel[0], *small)
    large = (p * step + k * apart - pad for (p, k), step, pad, apart in geometry)
    return y[1] == kernel[0], (y[0], channel, *large)


def _first_channel(sizes: Sliding, small: np.ndarray) -> np.ndarray:
    """Give the first channel of the large side in the group of one of the small side's."""
    return small // (sizes.kernel[0] // sizes.groups) * sizes.kernel[1]


def _whole(distance: np.ndarray, step: int) -> np.ndarray:
    """Divide; -1 where it does not come out even."""
    return np.where(distance % step == 0, distance // step, -1)
