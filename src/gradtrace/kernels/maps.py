"""Index maps: views, windows, gathers and scatters. Most cost a view and store no winner."""

from __future__ import annotations

import math
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..jacobians.index_maps import Affine, Composed, Sought, Table, Way, identity
from ..jacobians.structure import Contraction, Gather, Placed, Scatter, Shape, Sparse, Strided
from ..recording.layouts import Layout, contiguous, positions
from . import native, reference
from .contraction import contraction, merged
from .product import plan
from .shared_exponent import Plane, Pulled, Spikes, by_reference, made, precisely

EDGES = 1 << 24  # scalars that edges are written out for at a time
FEW = 4  # rows that were read are kept by themselves where not one in so many was


@lru_cache(maxsize=4096)
def turned(layout: Layout, x_shape: Shape) -> tuple[Shape, Affine, bool] | None:
    """See a layout as x with its axes in another order; None if it is not.

    Returns:
        That order's inverse on y's axes, the way, and whether the scalars follow each other in x's own order.
    """
    size, order = layout.size, reference.axes(layout, x_shape)
    if order is None or 0 in size:
        return None
    of_y = contiguous(size)
    real = [d for d in order if size[d] != 1]
    return tuple(order), Affine(tuple(size[d] for d in order), tuple(of_y[d] for d in order)), real == sorted(real)


def strided(s: Strided, g: Plane) -> Pulled:
    """Carry values from a view to what it shows."""
    data, at = g.data, s.layout
    batch, size = data.shape[0], data.shape[1:]
    found = turned(at, s.x_shape)
    if found is not None:
        order, way, as_it_is = found
        if not as_it_is:
            data = data if size == at.size else data.reshape(batch, *at.size)
            data = data.permute(0, *[1 + d for d in order])
            size = data.shape[1:]
        return Pulled(g.view(data if size == s.x_shape else data.reshape(batch, *s.x_shape)), None, way)
    data = data if size == at.size else data.reshape(batch, *at.size)
    through = _through_window(at, s.x_shape)
    if through is not None:
        return Pulled(g.view(data), None, through, at)
    if any(step == 0 and n > 1 for n, step in zip(at.size, at.stride, strict=True)):
        return _expanded(s, g.view(data))
    index = positions(at).flatten()
    return _segments(g.view(data.reshape(batch, -1, 1)), index, prod(s.x_shape), s.x_shape)


@lru_cache(maxsize=4096)
def _through_window(layout: Layout, x_shape: Shape) -> Way | None:
    """Give the way from x to a window of it: by strides where the window is a box of x's own axes.

    None where the window shows some of x several times.
    """
    if not reference.injective(list(layout.size), list(layout.stride)):
        return None
    axes = {step: d for d, step in enumerate(contiguous(x_shape)) if x_shape[d] != 1}
    stride, reach, start, rest = [0] * len(x_shape), [1] * len(x_shape), [], layout.offset
    for n, step, to in zip(layout.size, layout.stride, contiguous(layout.size), strict=True):
        if n != 1 and step in axes:
            stride[axes[step]], reach[axes[step]] = to, n
        elif n != 1:
            return Table(lambda: _inverse(layout, prod(x_shape)))
    for step in contiguous(x_shape):
        first, rest = divmod(rest, step) if step else (0, rest)
        start.append(first)
    if any(first + n > whole for first, n, whole in zip(start, reach, x_shape, strict=True)):  # it wraps around
        return Table(lambda: _inverse(layout, prod(x_shape)))
    return Affine(x_shape, tuple(stride), -sum(first * to for first, to in zip(start, stride, strict=True)))


@lru_cache(maxsize=256)
def _inverse(layout: Layout, numel: int) -> Tensor:
    """Give for each position of x the place in a window that shows it, 0 where none does."""
    out = torch.zeros(numel, dtype=torch.int64)
    at = positions(layout).flatten()
    out[at] = torch.arange(len(at))
    return out


def _expanded(s: Strided, g: Plane) -> Pulled:
    """Take the maximum along axes that repeat, then go on with a view that has none."""
    at, names = s.layout, "abcdefghijklmnopqrstuvwxyz"[: len(s.layout.size)]
    kept = "".join(c for c, n, step in zip(names, at.size, at.stride, strict=True) if step != 0 or n == 1)
    p = plan(names, kept, "", at.size, tuple(n for c, n in zip(names, at.size, strict=True) if c in kept), False)
    plane, raw = merged(p, g)
    left = Layout(tuple(p.shape(kept)), tuple(t for c, t in zip(names, at.stride, strict=True) if c in kept), at.offset)
    rest = strided(Strided(left, s.x_shape), plane)
    if rest.raw is not None:
        return Pulled(rest.plane, rest.raw, Composed(rest.way, p.way, raw))
    return Pulled(rest.plane, None, Composed(rest.way, p.way, raw), rest.window)


def placed(s: Placed, g: Plane) -> Pulled:
    """Carry values to what was written into a tensor."""
    batch = g.data.shape[0]
    flat = g.data.reshape(batch, -1)
    flat = flat.clone() if s.hidden else flat.contiguous()
    for hidden in s.hidden:
        reference.window(flat, hidden).zero_()
    way = Affine(s.layout.size, s.layout.stride, s.layout.offset)
    return Pulled(g.view(reference.window(flat, s.layout)), None, way)


def gather(s: Gather, g: Plane) -> Pulled:
    """Carry values to the rows that were read."""
    batch, numel = g.data.shape[0], prod(s.x_shape)
    size = numel // s.width if s.width else 0
    index = s.index().reshape(-1).to(torch.int64).contiguous()
    data = g.data.reshape(batch, len(index), s.width)
    numbers = index.numpy()  # of few numbers, which an index often is, numpy makes less ado
    live = np.flatnonzero(numbers >= 0)
    read = numbers[live]
    if FEW * len(read) >= size and len(read):  # perhaps most rows were read, some of them twice
        often = np.bincount(read, minlength=size)
        if FEW * np.count_nonzero(often) >= size and often.max() > 1:
            return _segments(g.view(data), index, size, s.x_shape)
    if not len(read) or not numel:
        return _none(data, (batch, *s.x_shape))
    order = read.argsort(kind="stable")
    read, order = read[order], torch.from_numpy(live[order])
    fresh = np.append(True, read[1:] != read[:-1])
    rows = torch.from_numpy(read[fresh])
    if len(rows) == len(read):  # no row is read twice
        way = Sought(rows, order, s.width)
        if batch == s.width == 1:
            return Pulled(Spikes(rows, data.reshape(-1)[order], (1, *s.x_shape), g), None, way)
        found = Pulled(g.view(data[:, order]), None, way, rows=rows)
        return found if FEW * len(rows) < size else found.laid_out((batch, *s.x_shape))
    among = torch.full_like(index, -1)
    among[order] = torch.from_numpy(fresh.cumsum() - 1)
    found = _segments(g.view(data), among, len(rows), (len(rows), s.width))
    return Pulled(found.plane, found.raw, Affine((size, s.width), (0, 1), 0, s.width), rows=rows)


def _none(like: Tensor, shape: Shape) -> Pulled:
    """Give zeros (batch × x): nothing comes back."""
    return Pulled(Plane(like.new_zeros(shape), 0, 0.0, math.inf, owned=True), None, identity(shape[1:]))


def _segments(g: Plane, index: Tensor, size: int, x_shape: Shape) -> Pulled:
    """Merge rows (batch × rows × width) by the index of each."""
    batch, _, width = g.data.shape
    shift = g.shift

    def run(g: Plane) -> tuple[Plane, Tensor]:
        out, arg, found = native.segment_max(g.data, index, size, 2.0**shift)
        return made(out.reshape(batch, *x_shape), g.exponent - shift, found), arg.reshape(batch, *x_shape)

    plane, raw = precisely(run, g)
    return Pulled(plane, raw, Affine((size, width), (0, 1), 0, width))


def sparse(s: Sparse, g: Plane) -> Pulled:
    """Carry values along a list of edges: what each of them brings is written out, and the largest is taken."""
    batch, (outer, m, inner), n = g.data.shape[0], s.y_shape, s.x_shape[1]
    i, j, w = s.edges()
    size = batch * outer * inner
    if 0 in (size, m, n, len(i)) or size * len(i) > EDGES:
        return by_reference(s, g)
    i, j = i.to(torch.int64), j.to(torch.int64)
    if bool((i[1:] < i[:-1]).any()):  # of equal values the first is taken, which is to be the first in y
        order = i.argsort(stable=True)
        i, j, w = i[order], j[order], None if w is None else w[order]
    plane, many = g.view(g.data.reshape(batch * outer, m, inner).index_select(1, i)), (len(i), inner)
    if w is not None:
        plane = contraction(Contraction("ei", "ei", many, many, "e", lambda: w), plane).plane  # type: ignore[union-attr]
    found = _segments(plane, j.contiguous(), n, (n, inner))
    assert found.raw is not None
    shape = batch, *s.x_shape
    way = Affine(s.x_shape, (m * inner, 0, 1), 0, 0, lambda: i * inner)
    return Pulled(found.plane.view(found.plane.data.reshape(shape)), found.raw.reshape(shape), way)


def scatter(s: Scatter, g: Plane) -> Pulled:
    """Carry values to scalars that each went to one place."""
    batch, index = g.data.shape[0], s.index().reshape(-1)
    flat, live = g.data.reshape(batch, -1), index.clamp(min=0)
    if flat.shape[1] == 0:
        return _none(flat, (batch, *s.x_shape))
    data = flat.index_select(1, live).masked_fill_(index < 0, 0)
    return Pulled(g.view(data.reshape(batch, *s.x_shape)), None, Table(lambda: live))
