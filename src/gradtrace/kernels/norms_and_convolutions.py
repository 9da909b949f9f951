"""Rows: structures of low rank along some axes (softmax, layer norm), and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..jacobians.index_maps import Affine, Shared
from ..jacobians.structure import ClosedRows, Convolved, LowRank, Shape
from ..recording.layouts import contiguous
from . import native
from .grid import grid_of
from .native import Range
from .product import winners_of
from .shared_exponent import Plane, Pulled, Spikes, by_reference, kept, made, precisely, wide


def low_rank(s: LowRank, g: Plane) -> Pulled:
    """Carry values along rows whose scalars are all connected."""
    if 0 in s.shape or not s.dims:
        return by_reference(s, g)
    if isinstance(g, Spikes):
        found = _spiked(s, g)
        if found is not None:
            return found
    closed, factors, count = _factors(s)
    if closed == "":
        return by_reference(s, g)
    grid, kinds = grid_of(s.shape, tuple(s.dims)), {t.dtype for t in factors if t is not None}
    data, shift = g.data if g.data.shape[1:] == s.shape else g.data.reshape(len(g.data), *s.shape), g.shift
    rows_of_g = grid.each(data)

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = of = g.data.dtype
        form, parts = closed, factors
        if closed == "standard" and kinds == {torch.float32}:
            of = torch.float32  # which the kernel takes as they are
        elif factors[0].dtype is not kind:
            form, parts = _open(s)
        seen = [None if t is None else grid.view(t.to(of).expand(s.shape)) for t in parts]
        out, rows_of_out = grid.room(len(rows_of_g), kind)
        # these winners are a third of what a trace of a convolutional network keeps
        small = form == "standard" and grid.seen[1] * grid.seen[2] <= native.SHORT
        arg, rows_of_arg = grid.room(len(rows_of_g), torch.int16 if small else torch.int32)
        ranges = [
            native.low_rank(form, x.to(kind), seen, count, y, z, 2.0**shift)
            for x, y, z in zip(rows_of_g, rows_of_out, rows_of_arg, strict=True)
        ]
        return made(out, g.exponent - shift, native.together(ranges)), arg

    plane, raw = precisely(run, g, double=torch.float64 in kinds)
    return Pulled(plane, raw, _row_way(s.shape, tuple(s.dims)))


def _spiked(s: LowRank, g: Spikes) -> Pulled | None:
    """Carry at most one value a row through a log-softmax: everything in its row has won through it."""
    width, rows = s.shape[-1], g.places // s.shape[-1]
    y = _logarithms(s, g)
    if y is None or bool((rows[1:] == rows[:-1]).any()):
        return None
    values, place = y.new_zeros(len(y), 1), torch.zeros(len(y), dtype=torch.int64)
    values[rows, 0], place[rows] = g.values * 2.0**g.shift, g.places
    targets = (place % width).unsqueeze(1)
    own = (1 - y.gather(1, targets).exp()) * values
    out, found = native.scale(values, y.shape, "exp", y)
    out.scatter_(1, targets, own)
    low = min(found.low, float(torch.where(own > 0, own, math.inf).min()))
    found = Range(max(found.high, float(own.max())), low, found.flags)
    plane = made(out.reshape(1, *s.shape), g.exponent - g.shift, found)
    return Pulled(plane, None, Shared(place, width)) if kept(plane, g) else None


def _logarithms(s: LowRank, g: Spikes) -> Tensor | None:
    """Give a log-softmax along the last axis (rows × width), in g's precision; else None."""
    factors = s.factors
    if not isinstance(factors, ClosedRows) or factors.log is None or tuple(s.dims) != (len(s.shape) - 1,):
        return None
    y = factors.log()
    return y.reshape(-1, s.shape[-1]) if y.dtype is g.dtype and y.is_contiguous() else None


def _factors(s: LowRank) -> tuple[str, list[Any], int]:
    """Give the factors as a kernel takes them: (their form, they, the count of a mean); "" if no kernel does."""
    if isinstance(s.factors, ClosedRows):
        arguments = s.factors.of()
        return s.factors.form, list(arguments[:3]), arguments[3] if s.factors.form == "standard" else 0
    return *_open(s), 0


def _open(s: LowRank) -> tuple[str, list[Any]]:
    """Give the factors as tensors in their own precision, whatever form they have."""
    found = s.factors()
    own, left, right = wide(found[0]), [wide(t) for t in found[1]], [wide(t) for t in found[2]]
    if len(left) == 1:
        return "one", [own, left[0], right[0]]
    return ("two", [own, *left, right[1]]) if len(left) == 2 and _is_one(right[0]) else ("", [])


def _is_one(t: Tensor) -> bool:
    return all(step == 0 or n == 1 for step, n in zip(t.stride(), t.shape, strict=True)) and bool(
        (t.flatten()[:1] == 1).all()
    )


@lru_cache(maxsize=1024)
def _row_way(shape: Shape, dims: tuple[int, ...]) -> Affine:
    """The winner is a position along the axes `dims`; along the others it is the scalar's own."""
    of_y = contiguous(shape)
    stride = tuple(0 if d in dims else of_y[d] for d in range(len(shape)))
    step, table = winners_of(
        "".join(chr(97 + d) for d in dims),
        {chr(97 + d): of_y[d] for d in range(len(shape))},
        {chr(97 + d): shape[d] for d in range(len(shape))},
    )
    return Affine(shape, stride, 0, step, table)


def convolved(s: Convolved, g: Plane) -> Pulled:
    """Carry values along a convolution, one batch entry at a time."""
    other, shift = wide(s.other()), g.shift
    data = g.data.reshape(len(g.data), *s.sizes.output)

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = g.data.dtype
        parts = [native.convolved(x.to(kind), other.to(kind), s.sizes, 2.0**shift, to_input=s.to_input) for x in data]
        outs, args, ranges = zip(*parts, strict=True)
        return made(_stacked(outs), g.exponent - shift, native.together(ranges)), _stacked(args)

    plane, raw = precisely(run, g, double=other.dtype is torch.float64)
    one_example = prod(s.sizes.output[1:]) if s.to_input else 0
    return Pulled(plane, raw, Affine(s.x_shape, (one_example, *[0] * (len(s.x_shape) - 1)), 0, 1))


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Put a batch axis in front, by a copy only where there are several."""
    return torch.stack(tuple(parts)) if len(parts) > 1 else parts[0][None]
