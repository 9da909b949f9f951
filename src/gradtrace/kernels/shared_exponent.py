"""Planes: the values of one tensor under one exponent, and what happens where that is too narrow.

A kernel that would lose something to underflow or overflow runs again in float64; where even that is too narrow,
`OutOfRange` asks for the reference kernels, which have an exponent for each scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.index_maps import Raw, Way
from ..jacobians.structure import Shape
from ..recording.layouts import Layout
from ..semirings.base import Carrier, Element, Extreme, normalised, pow2
from . import reference
from .memory import zeros
from .native import LOST, NAN, Range

LEAST, MOST = 2.0**-20, 2.0**20  # values are brought back to about 1 when their largest leaves this range
TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}
COMFORT = 2.0**60  # numbers further from 1 than this stay in float64


class OutOfRange(Exception):
    """The values of one tensor span more than one exponent can serve."""


@dataclass(eq=False, slots=True)
class Plane:
    """Weights of best paths: data · 2^exponent, batch × shape.

    Attributes:
        data: non-negative, float32 or float64, any strides.
        high, low: bounds of the largest and the smallest non-zero of `data`.
        owned: whether nobody else reads this memory.
        rows: numbers along the first axis of the value, rising, beside which there are zeros alone; None: not known.
    """

    data: Tensor
    exponent: int
    high: float
    low: float
    owned: bool = False
    rows: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Batch × shape."""
        return self.data.shape

    @property
    def dtype(self) -> torch.dtype:
        """The precision of `data`."""
        return self.data.dtype

    def view(self, data: Tensor) -> Plane:
        """Give other scalars of the same range: a view, or some of them."""
        return Plane(data, self.exponent, self.high, self.low)

    def double(self) -> Plane:
        """Give the same in float64."""
        return Plane(self.data.to(torch.float64), self.exponent, self.high, self.low, owned=True)

    @property
    def shift(self) -> int:
        """The power of two that brings the largest value near 1, if it has strayed from there."""
        if LEAST <= self.high <= MOST or self.high == 0 or math.isinf(self.high):
            return 0
        return -math.frexp(self.high)[1]


class Spikes(Plane):
    """Values at a few places, laid out in full only if somebody needs that: what a loss reads of the logits.

    Args:
        places: flat positions, rising; values: of those scalars.
        shape: batch × shape, the batch being 1.
    """

    __slots__ = ("_full", "_shape", "places", "values")

    def __init__(self, places: Tensor, values: Tensor, shape: Shape, like: Plane) -> None:
        self.places, self.values, self._shape, self._full = places, values, torch.Size(shape), None
        self.exponent, self.high, self.low, self.owned = like.exponent, like.high, like.low, False
        self.rows = None

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        if self._full is None:
            flat = self.values.new_zeros(prod(self._shape))
            self._full = flat.index_copy_(0, self.places, self.values).reshape(self._shape)
        return self._full


@dataclass(eq=False, slots=True)
class Pulled:
    """What one edge gives to its argument: values (batch × x), stored winners if there are, the way back.

    Attributes:
        window: says that only those scalars of x are meant; then values and winners have the window's size.
        rows: says that only those rows of x are meant (rising); values and winners are batch × rows × width of one.
    """

    plane: Plane
    raw: Tensor | None
    way: Way
    window: Layout | None = None
    rows: Tensor | None = None

    def laid_out(self, shape: Shape) -> Pulled:
        """Give values and winners for all of x: `shape` is batch × x."""
        if self.window is None and self.rows is None:
            return self
        data, raw = self._spread(self.plane.data, shape), None if self.raw is None else self._spread(self.raw, shape)
        plane = Plane(data, self.plane.exponent, self.plane.high, self.plane.low, owned=True)
        plane.rows = self.rows_of(shape)
        return Pulled(plane, raw, self.way)

    def rows_of(self, shape: Shape) -> Tensor | None:
        """Give `rows` if they are along the first axis of x: `shape` is batch × x."""
        if self.rows is None or len(shape) < 2 or shape[1] * self.plane.shape[2] != prod(shape[1:]):
            return None
        return self.rows

    def _spread(self, some: Tensor, shape: Shape) -> Tensor:
        """Lay what there is among zeros."""
        whole = zeros(some.dtype, *shape)
        if self.window is not None:
            reference.window(whole, self.window).copy_(some)
        elif self.rows is not None:
            whole.view(len(whole), -1, some.shape[2]).index_copy_(1, self.rows, some.expand(len(whole), -1, -1))
        return whole


def fits(g: Plane, kind: torch.dtype) -> Plane:
    """Give values in float32 again, where that is the `kind` a pass works in and they have come back into its range."""
    if kind is not torch.float64 and g.dtype is torch.float64 and g.low > 0 and g.high / g.low < 2.0**60:
        data = torch.ldexp(g.data, torch.tensor(g.shift)).to(torch.float32)
        factor = 2.0**g.shift
        return Plane(data, g.exponent - g.shift, g.high * factor, g.low * factor, owned=True, rows=g.rows)
    return g


def precisely(run: Callable[[Plane], tuple[Plane, Any]], g: Plane, *, double: bool = False) -> tuple[Plane, Any]:
    """Run a kernel in the precision of its values, and again in float64 if that was too narrow.

    Raises:
        NotANumber: a weight is NaN.
        OutOfRange: float64 is too narrow as well.
    """
    if double and g.data.dtype is not torch.float64:
        g = g.double()
    plane, more = run(g)
    if kept(plane, g):
        return plane, more
    if g.data.dtype is torch.float64:
        raise OutOfRange
    g = g.double()
    plane, more = run(g)
    if not kept(plane, g):
        raise OutOfRange
    return plane, more


def carefully(run: Callable[..., tuple[Element, int]], *elements: Element, weights: tuple[Tensor, ...] = ()) -> Element:
    """Run what gives flags in the precision of elements and weights, and again in float64 if that was too narrow.

    Raises:
        NotANumber: a weight is NaN.
        OutOfRange: float64 is too narrow as well.
    """
    kinds = [p.dtype for g in (*elements, weights) for p in g]
    if torch.float64 not in kinds:
        out, flags = run(*elements, *weights)
        if not flags:
            return out
    out, flags = run(*map(doubled, elements), *doubled(weights))
    if flags and any(bool(w.isnan().any()) for w in weights):
        raise NotANumber("a local derivative is NaN")
    if flags:
        raise OutOfRange
    return out


def doubled(g: Element) -> Element:
    """Give planes in float64."""
    return tuple(p.to(torch.float64) for p in g)


def comfortable(planes: Element) -> bool:
    """Tell whether no number of some planes, other than 0, is far from 1."""
    for p in planes:
        if p.numel():
            low, high = torch.where(p > 0, p, 1.0).aminmax()
            if not (low > 1 / COMFORT and high < COMFORT):
                return False
    return True


def all_others(carrier: Carrier, g: Element) -> Element:
    """Merge, for each position of the last axis, all others: by Jacobians of ones beside a diagonal of zeros."""
    shape, n = g[0].shape, g[0].shape[-1]
    if g[0].numel() == 0:
        return g
    one = g[0].new_ones(()).expand(prod(shape[:-1]), n, 1)
    out = carrier.low_rank(torch.zeros_like(one[..., 0]), one, one, tuple(p.reshape(1, -1, n) for p in g))
    assert out is not None
    return tuple(p.reshape(shape) for p in out)


def kept(plane: Plane, g: Plane) -> bool:
    """Tell whether a kernel's result has lost nothing to underflow or overflow."""
    return plane.low >= 0 and not (math.isinf(plane.high) and not math.isinf(g.high))


def made(data: Tensor, exponent: int, found: Range) -> Plane:
    """Make a plane of a kernel's result; a negative `low` says that something was lost."""
    if found.flags & NAN:
        raise NotANumber("a local derivative is NaN")
    return Plane(data, exponent, found.high, -1.0 if found.flags & LOST else found.low, owned=True)


def broadcast(a: Shape, b: Shape) -> Shape:
    """Give the shape that two shapes broadcast to; torch's own function takes longer than many a kernel."""
    if a == b:
        return a
    n = max(len(a), len(b))
    pairs = zip((1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b), strict=True)
    return tuple([y if x == 1 else x for x, y in pairs])


def wide(weight: Tensor) -> Tensor:
    """Give weights in float32 or float64."""
    return weight if weight.dtype in TINY else weight.to(torch.float32)


def by_reference(structure: object, g: Plane) -> Pulled:
    """Let the reference kernel do it, and see whether one exponent serves."""
    mantissa, exponent = normalised(g.data.to(torch.float64))
    numel = prod(g.data.shape[1:])
    ids = torch.arange(numel).reshape(1, *g.data.shape[1:]).expand(g.data.shape)
    element: Element = (mantissa, exponent, ids)
    m, e, raw = reference.pull(structure, Extreme(), element)
    live = m > 0
    if not live.any():
        return Pulled(Plane(m.to(g.data.dtype), 0, 0.0, math.inf, owned=True), raw.to(torch.int32), Raw())
    top = int(e[live].max())
    data = m * pow2(e - top)
    low = float(data[live].min())
    if math.isinf(float(data.max())) or low < 2.0**-1000:
        raise OutOfRange
    if g.data.dtype is torch.float32 and low > 2.0**-100:
        data = data.to(torch.float32)
    plane = Plane(data, top + g.exponent, float(data.max()), low, owned=True)
    return Pulled(plane, raw.masked_fill_(~live, -1).to(torch.int32), Raw())


def joined(parts: list[Plane], dim: int) -> tuple[Plane, list[int]]:
    """Put the values of several products side by side, in one unit: (all of them, the size of each)."""
    sizes, exponent, kind = [p.data.shape[dim] for p in parts], parts[0].exponent, parts[0].dtype
    high, low = max([p.high for p in parts]), min([p.low for p in parts])
    alike = {(p.exponent, p.dtype) for p in parts} == {(exponent, kind)}
    if alike and high <= MOST and low >= TINY[kind] * 2.0**30:
        return Plane(torch.cat([p.data for p in parts], dim), exponent, high, low, owned=True), sizes
    exponent = max(p.exponent + (math.frexp(p.high)[1] if p.high > 0 else 0) for p in parts)
    factors = [2.0 ** max(-2000, p.exponent - exponent) if p.high else 1.0 for p in parts]
    high = max(p.high * f for p, f in zip(parts, factors, strict=True))
    low = min(p.low * f for p, f in zip(parts, factors, strict=True))
    kind = torch.float64 if any(p.dtype is torch.float64 for p in parts) else torch.float32
    if low < TINY[kind] * 2.0**30:
        kind = torch.float64
    if low < TINY[kind]:
        raise OutOfRange
    data = torch.cat([p.data.to(kind) for p in parts], dim)
    if any(f != 1 for f in factors):
        each = torch.from_numpy(np.repeat(factors, sizes)).to(kind)
        data.mul_(each if dim == -1 else each.unsqueeze(-1))
    return Plane(data, exponent, high, low, owned=True), sizes


def aligned(a: Plane, b: Plane) -> tuple[float, float, int, bool]:
    """Bring two planes to one exponent: (factor of a, factor of b, exponent, whether it takes float64).

    Raises:
        OutOfRange: not even float64 holds both.
    """
    double = a.data.dtype is torch.float64 or b.data.dtype is torch.float64
    if a.exponent == b.exponent or b.high == 0:
        return 1.0, 1.0, a.exponent, double
    if a.high == 0:
        return 1.0, 1.0, b.exponent, double
    of_a, of_b = a.exponent + math.frexp(a.high)[1], b.exponent + math.frexp(b.high)[1]
    exponent = a.exponent if of_a >= of_b else b.exponent
    if max(abs(a.exponent - exponent), abs(b.exponent - exponent)) > 1000:
        raise OutOfRange
    fa, fb = 2.0 ** (a.exponent - exponent), 2.0 ** (b.exponent - exponent)
    low = min(a.low * fa, b.low * fb)
    if low < TINY[torch.float64]:
        raise OutOfRange
    return fa, fb, exponent, double or low < TINY[torch.float32] or max(a.high * fa, b.high * fb) > 2.0**100
