"""Read one column of a structure's Jacobian: all consumers of one scalar of the argument, and the edges to them.

`columns(structure)` gives a function of x_j. What does not depend on j (weights, index tensors) is worked out when it
is first called, and kept as long as the function is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce, singledispatch
from math import prod
from typing import TypeAlias

import numpy as np
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
)
from ..recording.layouts import Layout, Shape, contiguous, positions, unravelled
from .reference import injective

Column: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # rising flat indices of y, weights (None: ones)
Columns: TypeAlias = Callable[[int], Column]
Met: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # which scalar of x, flat index of y, weight: of each edge
_NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


@singledispatch
def columns(structure: object) -> Columns:
    """Give a function from the flat index of x_j to (indices i of y, ∂y_i/∂x_j): all edges, perhaps some that are 0."""
    raise TypeError(f"not a structure: {structure!r}")


@singledispatch
def met_by(structure: object, x: np.ndarray) -> Met:
    """Give all edges to some scalars of the argument, at once."""
    asked, number = np.unique(x, return_inverse=True)
    column = columns(structure)
    found = [column(int(at)) for at in asked]
    every = [(np.full(len(y), n), y, np.ones(len(y)) if w is None else w) for n, (y, w) in enumerate(found)]
    of, places, weights = (np.concatenate(c) for c in zip(*every, strict=True)) if every else _NOTHING
    return _among(of, number, len(asked), places, weights)


def _among(sorted_: np.ndarray, asked: np.ndarray, size: int, places: np.ndarray, weights: np.ndarray | None) -> Met:
    """Repeat what belongs to each number, `sorted_` by it, for all that ask for that one."""
    begin = np.searchsorted(sorted_, np.arange(size + 1))
    count = np.diff(begin)[asked]
    pair = np.repeat(np.arange(len(asked)), count)
    at = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count) + begin[asked][pair]
    return pair, places[at], np.ones(len(at)) if weights is None else weights[at].astype(np.float64)


@met_by.register
def _met_by_readers(s: Gather, x: np.ndarray) -> Met:
    index, (row, column) = _array(s.index().reshape(-1)), np.divmod(x, s.width)
    order = np.argsort(index, kind="stable")
    pair, read, weight = _among(index[order], row, int(row.max(initial=-1)) + 1, order, None)
    return pair, read * s.width + column[pair], weight


@met_by.register
def _met_by_edges(s: Sparse, x: np.ndarray) -> Met:
    (i, j, w), (outer, at, within) = _by_argument(s), np.unravel_index(x, s.x_shape)
    pair, place, weight = _among(j, at, s.x_shape[1], i, w)
    return pair, (outer[pair] * s.y_shape[1] + place) * s.y_shape[2] + within[pair], weight


@met_by.register
def _met_by_two(s: Chain, x: np.ndarray) -> Met:
    (of_x, middle, one) = met_by(s.second, x)
    pair, places, two = met_by(s.first, middle)
    return of_x[pair], places, one[pair] * two


def _array(tensor: Tensor) -> np.ndarray:
    """See a tensor as an array, of float32 where numpy does not know its numbers."""
    tensor = tensor.detach().cpu()
    known = tensor.dtype in (torch.float64, torch.float32) or not tensor.dtype.is_floating_point
    return (tensor if known else tensor.float()).numpy()


def _grid(begin: int, axes: list[tuple[int, int]]) -> np.ndarray:
    """Give begin + Σ i · step for all indices of some axes (size, step), the last one fastest."""
    out = np.array([begin])
    for size, step in axes:
        out = (out[:, None] + np.arange(size) * step).reshape(-1)
    return out


@columns.register
def _contraction(s: Contraction) -> Columns:
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    steps = dict(zip(s.y, contiguous(s.y_shape), strict=True))
    free = [c for c in s.y if c not in s.x]
    known = "".join(c for c in s.w if c in free)  # letters that are left of a weight of which x's are taken
    along, full, every = [(sizes[c], steps[c]) for c in free], [sizes[c] for c in free], slice(None)
    shape = [sizes[c] if c in known else 1 for c in free]
    turned = [known.index(c) for c in free if c in known]

    @cache
    def weight() -> np.ndarray:
        assert s.weight is not None
        return _array(s.weight().reshape([sizes[c] for c in s.w]))

    def column(x: int) -> Column:
        at = dict(zip(s.x, unravelled(x, s.x_shape), strict=True))
        places = _grid(sum([i * steps[c] for c, i in at.items() if c in steps]), along)
        if s.weight is None:
            return places, None
        w = weight()[tuple([at.get(c, every) for c in s.w])]
        if not free:
            return places, w.reshape(1)
        return places, np.broadcast_to(np.transpose(w, turned).reshape(shape), full).reshape(-1)

    return column


def _seen(layout: Layout) -> Callable[[int], np.ndarray]:
    """Give a function that tells which scalars of a layout, by rising flat index, lie at a position."""
    axes = list(zip(layout.size, layout.stride, contiguous(layout.size), strict=True))
    moving = sorted(((step, n, of_y) for n, step, of_y in axes if step), reverse=True)
    again = [(n, of_y) for n, step, of_y in axes if not step]
    if not prod(layout.size) or not injective([n for _, n, _ in moving], [step for step, _, _ in moving]):
        at = positions(layout).flatten().numpy()
        return lambda position: np.flatnonzero(at == position)

    def seen(position: int) -> np.ndarray:
        rest, flat = position - layout.offset, 0
        for step, n, of_y in moving:
            here = min(max(rest // step, 0), n - 1)
            rest, flat = rest - here * step, flat + here * of_y
        return _grid(flat, again) if not rest else np.empty(0, np.int64)

    return seen


@columns.register
def _strided(s: Strided) -> Columns:
    seen = _seen(s.layout)
    return lambda x: (seen(x), None)


@columns.register
def _placed(s: Placed) -> Columns:
    hidden = [_seen(h) for h in s.hidden]

    def column(x: int) -> Column:
        at = unravelled(x, s.layout.size)
        place = s.layout.offset + sum(i * step for i, step in zip(at, s.layout.stride, strict=True))
        gone = any(len(seen(place)) for seen in hidden)
        return np.array([] if gone else [place], np.int64), None

    return column


@columns.register
def _gather(s: Gather) -> Columns:
    index = cache(lambda: _array(s.index().reshape(-1)))

    def column(x: int) -> Column:
        row, at = divmod(x, s.width)
        return np.flatnonzero(index() == row) * s.width + at, None

    return column


@columns.register
def _scatter(s: Scatter) -> Columns:
    index = cache(lambda: _array(s.index().reshape(-1)))

    def column(x: int) -> Column:
        place = index()[x : x + 1].astype(np.int64)
        return place[place >= 0], None

    return column


@columns.register
def _low_rank(s: LowRank) -> Columns:
    steps = contiguous(s.shape)
    kept = [d for d in range(len(s.shape)) if d not in s.dims]
    along = [(s.shape[d], steps[d]) for d in sorted(s.dims)]

    @cache
    def factors() -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        own, left, right = s.factors()
        left, right = ([_array(t.expand(s.shape)) for t in side] for side in (left, right))
        return _array(own.expand(s.shape)), left, right

    def column(x: int) -> Column:
        at = unravelled(x, s.shape)
        row = tuple(slice(None) if d in s.dims else i for d, i in enumerate(at))
        own, left, right = factors()
        pairs = zip(left, right, strict=True)
        weight = reduce(np.add, [a[row].astype(np.float64) * float(b[at]) for a, b in pairs]).reshape(-1)
        places = _grid(sum(at[d] * steps[d] for d in kept), along)
        weight[np.searchsorted(places, x)] = own[at]
        return places, weight

    return column


def _by_argument(s: Sparse) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Give edges in the order of x, and of y among those of one scalar."""
    given_i, given_j, given_w = s.edges()
    i, j, w = _array(given_i), _array(given_j), None if given_w is None else _array(given_w)
    order = np.lexsort((i, j))
    return i[order], j[order], None if w is None else w[order]


@columns.register
def _sparse(s: Sparse) -> Columns:
    edges = cache(lambda: _by_argument(s))

    def column(x: int) -> Column:
        (_, m, inner), (outer, at, within) = s.y_shape, unravelled(x, s.x_shape)
        i, j, w = edges()
        begin, end = np.searchsorted(j, [at, at + 1])
        return (outer * m + i[begin:end]) * inner + within, None if w is None else w[begin:end]

    return column


@columns.register
def _chain(s: Chain) -> Columns:
    first, second = columns(s.first), columns(s.second)

    def column(x: int) -> Column:
        between, weights = second(x)
        found = [first(int(v)) for v in between]
        if len(found) == 1 and weights is None:
            return found[0]
        factors = np.ones(len(found)) if weights is None else weights.astype(np.float64)
        places = np.concatenate([np.empty(0, np.int64), *(y for y, _ in found)])
        each = [np.full(len(y), f) if w is None else w * f for (y, w), f in zip(found, factors, strict=True)]
        order = np.argsort(places, kind="stable")
        return places[order], np.concatenate([np.empty(0), *each])[order]

    return column


@columns.register
def _convolved(s: Convolved) -> Columns:
    other = cache(lambda: _array(s.other()))

    def column(x: int) -> Column:
        of_y, of_other = (_met if s.to_input else _slid)(s.sizes, unravelled(x, s.x_shape))
        places = np.zeros(1, np.int64)
        for at, step in zip(of_y, contiguous(s.sizes.output), strict=True):
            places = (places[:, None] + at * step).reshape(-1)
        return places, other()[np.ix_(*of_other)].reshape(-1)  # axes that are not in both have one index here

    return column


Sides: TypeAlias = tuple[list[np.ndarray], list[np.ndarray]]  # by axis, rising indices of y, and of the other argument


def _met(sizes: Sliding, x: Shape) -> Sides:
    """Give what a scalar of the input meets: along each axis, small · stride + offset · dilation - padding = large."""
    (batch, channel, *places), group = x, x[1] // (sizes.input[1] // sizes.groups)
    of_y, of_kernel = [], []
    for d, at in enumerate(places):
        k = np.arange(sizes.kernel[2 + d])
        if sizes.transposed:
            y = at * sizes.stride[d] + k * sizes.dilation[d] - sizes.padding[d]
        else:
            k = k[::-1]
            y, apart = np.divmod(at + sizes.padding[d] - k * sizes.dilation[d], sizes.stride[d])
            y = np.where(apart == 0, y, -1)
        live = (y >= 0) & (y < sizes.output[2 + d])
        of_y.append(y[live])
        of_kernel.append(k[live])
    each = sizes.output[1] // sizes.groups
    out = np.arange(each)
    one = np.array([channel]) if sizes.transposed else out + group * each
    two = out if sizes.transposed else np.array([channel - group * sizes.kernel[1]])
    return [np.array([batch]), out + group * each, *of_y], [one, two, *of_kernel]


def _slid(sizes: Sliding, w: Shape) -> Sides:
    """Give what one scalar of the kernel meets, wherever it slides to."""
    (first, second, *places), group = w, w[0] // (sizes.kernel[0] // sizes.groups)
    of_y, of_x = [], []
    for d, at in enumerate(places):
        small = np.arange((sizes.input if sizes.transposed else sizes.output)[2 + d])
        large = small * sizes.stride[d] + at * sizes.dilation[d] - sizes.padding[d]
        live = (large >= 0) & (large < (sizes.output if sizes.transposed else sizes.input)[2 + d])
        y, x = (large, small) if sizes.transposed else (small, large)
        of_y.append(y[live])
        of_x.append(x[live])
    beside = np.array([group * sizes.kernel[1] + second])
    y, x = (beside, np.array([first])) if sizes.transposed else (np.array([first]), beside)
    examples = np.arange(sizes.input[0])
    return [examples, y, *of_y], [examples, x, *of_x]
