"""What (max, ×) does to each structure, by the compiled kernels.

The same contract as `reference.pull`, for one semiring: values of a result go in, values and winners of an argument
come out. Values of one tensor share one exponent (`Plane`); a kernel that would lose something to underflow runs again
in float64, and where even that is too narrow `OutOfRange` asks for the reference kernels, which have an exponent for
each scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import NotANumber
from ..semiring import Element, Extreme, normalised, pow2
from ..structure import (
    FORMS,
    Chain,
    Closed,
    ClosedRows,
    Constant,
    Contraction,
    Convolved,
    Gather,
    Layout,
    LowRank,
    Placed,
    Scatter,
    Shape,
    Strided,
    positions,
)
from ..ways import Affine, Composed, Raw, Shared, Sought, Table, Way, contiguous, identity
from . import native, reference
from .native import LOST, NAN, Range

EDGE = 20  # values are brought back to about 1 when their largest leaves 2^±20
TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}


class OutOfRange(Exception):
    """The values of one tensor span more than one exponent can serve."""


@dataclass(eq=False, slots=True)
class Plane:
    """Weights of best paths: data · 2^exponent, batch × shape.

    Attributes:
        data: non-negative, float32 or float64, any strides.
        high, low: bounds of the largest and the smallest non-zero of `data`.
        owned: whether nobody else reads this memory.
    """

    data: Tensor
    exponent: int
    high: float
    low: float
    owned: bool = False

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
        if 2.0**-EDGE <= self.high <= 2.0**EDGE or self.high == 0 or math.isinf(self.high):
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

    `window` says that only those scalars of x are meant; then values and winners have the window's size.
    """

    plane: Plane
    raw: Tensor | None
    way: Way
    window: Layout | None = None


def fits(g: Plane, kind: torch.dtype) -> Plane:
    """Give values in float32 again, where that is the `kind` a pass works in and they have come back into its range."""
    if kind is not torch.float64 and g.dtype is torch.float64 and g.low > 0 and g.high / g.low < 2.0**60:
        data = torch.ldexp(g.data, torch.tensor(g.shift)).to(torch.float32)
        factor = 2.0**g.shift
        return Plane(data, g.exponent - g.shift, g.high * factor, g.low * factor, owned=True)
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
    if _kept(plane, g):
        return plane, more
    if g.data.dtype is torch.float64:
        raise OutOfRange
    g = g.double()
    plane, more = run(g)
    if not _kept(plane, g):
        raise OutOfRange
    return plane, more


def _kept(plane: Plane, g: Plane) -> bool:
    return plane.low >= 0 and not (math.isinf(plane.high) and not math.isinf(g.high))


def made(data: Tensor, exponent: int, found: Range) -> Plane:
    """Make a plane of a kernel's result; a negative `low` says that something was lost."""
    if found.flags & NAN:
        raise NotANumber("a local derivative is NaN")
    return Plane(data, exponent, found.high, -1.0 if found.flags & LOST else found.low, owned=True)


def wide(weight: Tensor) -> Tensor:
    """Give weights in float32 or float64."""
    return weight if weight.dtype in TINY else weight.to(torch.float32)


@singledispatch
def pull(structure: object, g: Plane) -> Pulled | Product:
    """Carry the values of a result (batch × y, any strides) back to one argument, along a structure."""
    return _by_reference(structure, g)


def _by_reference(structure: object, g: Plane) -> Pulled:
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


# ---------------------------------------------------------------- contractions


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How a contraction is a product, a maximum along axes, a pointwise product, or a view.

    Letters of y by what becomes of them: `both` (in x and w), `rows` (in x only), `merged` (not in x); `columns` are
    those that w brings to x.
    """

    kind: str
    y: str
    w: str
    x: str
    both: str
    rows: str
    columns: str
    merged: str
    size: dict[str, int]
    way: Affine

    def shape(self, letters: str) -> list[int]:
        return [self.size[c] for c in letters]

    def count(self, letters: str) -> int:
        return prod(self.size[c] for c in letters)


@lru_cache(maxsize=4096)
def plan(y: str, x: str, w: str, y_shape: Shape, x_shape: Shape, weighted: bool) -> Plan:
    """Sort the letters of a contraction."""
    size = dict(zip(y + x, y_shape + x_shape, strict=True))
    merged = "".join(c for c in y if c not in x)
    inner = [c for c in merged if c in w]
    both = "".join(c for c in y if c in x and c in w)
    rows = "".join(c for c in y if c in x and c not in w)
    columns = "".join(c for c in w if c in x and c not in y)
    if not merged:
        kind = "scale" if weighted else "view"
    elif weighted and inner:
        kind = "product" if prod(size[c] for c in rows + columns) > 1 else "reduce"
    else:
        kind = "first"  # a maximum first, then what is pointwise
    of_y = dict(zip(y, contiguous(y_shape), strict=True))
    stride = tuple(of_y.get(c, 0) for c in x)
    step, table = _winners_of(merged, of_y, size)
    return Plan(kind, y, w, x, both, rows, columns, merged, size, Affine(x_shape, stride, 0, step, table))


def _winners_of(merged: str, of_y: dict[str, int], size: dict[str, int]) -> tuple[int, Callable[[], Tensor] | None]:
    """Say what the number of a scalar among the merged ones adds to its flat position."""
    if not merged:
        return 0, None
    for outer, inner in zip(merged, merged[1:], strict=False):
        if of_y[outer] != of_y[inner] * size[inner]:
            layout = Layout(tuple(size[c] for c in merged), tuple(of_y[c] for c in merged), 0)
            return 0, lambda: positions(layout).flatten()
    return of_y[merged[-1]], None


def _again(g: Plane, data: Tensor) -> Plane:
    return Plane(data, g.exponent, g.high, g.low)


def _spread(data: Tensor, have: str, p: Plan) -> Tensor:
    """Give axes batch, x to data with axes batch, `have` (a subset of x)."""
    if have == p.x:
        return data
    order = [1 + have.index(c) for c in p.x if c in have]
    shape = [p.size[c] if c in have else 1 for c in p.x]
    batch = data.shape[0]
    return data.permute(0, *order).reshape(batch, *shape).expand(batch, *p.shape(p.x))


def _scaled(p: Plan, weight: Any, g: Plane, have: str) -> Plane:
    """Multiply by a weight with letters among x's."""
    data = _spread(g.data, have, p)
    if type(weight) is Constant:
        return _times(data, g, "constant", None, weight.value)
    form, w = (weight.form, weight.of()) if type(weight) is Closed else ("given", weight())
    if p.w != p.x:
        order = [p.w.index(c) for c in p.x if c in p.w]
        w = w.reshape(p.shape(p.w)).permute(order).reshape([p.size[c] if c in p.w else 1 for c in p.x])
    elif w.shape != data.shape[1:]:
        w = w.reshape(p.shape(p.w))
    return _times(data, g, form, wide(w), 1.0)


def _times(data: Tensor, g: Plane, form: str, w: Tensor | None, constant: float) -> Plane:
    double = w is not None and w.dtype is torch.float64
    shift = g.shift

    def run(g: Plane) -> tuple[Plane, None]:
        there = data if data.dtype is g.data.dtype else data.to(g.data.dtype)
        if w is None or w.dtype is there.dtype:
            out, found = native.scale(there, data.shape, form, w, constant, 2.0**shift)
        else:  # a weight is what it is in its own precision
            factor = (w if form == "given" else FORMS[form](w)).to(there.dtype)
            out, found = native.scale(there, data.shape, "given", factor, constant, 2.0**shift)
        return made(out, g.exponent - shift, found), None

    return precisely(run, g, double=double)[0]


def _merged(p: Plan, g: Plane) -> tuple[Plane, Tensor]:
    """Take the maximum along the merged axes: batch × (the other letters of y)."""
    kept = [c for c in p.y if c not in p.merged]
    blocks = _blocks(p, g.data)
    shift = g.shift

    def run(g: Plane) -> tuple[Plane, Tensor]:
        there = blocks if blocks.dtype is g.data.dtype else blocks.to(g.data.dtype)
        out, arg, found = native.reduce_max(there, None, 2.0**shift)
        shape = (g.data.shape[0], *p.shape("".join(kept)))
        return made(out.reshape(shape), g.exponent - shift, found), arg.reshape(shape)

    return precisely(run, g)


def _blocks(p: Plan, data: Tensor) -> Tensor:
    """View batch × y as outer × merged × inner, the merged axes together."""
    batch = data.shape[0]
    start = p.y.find(p.merged)
    if start >= 0:
        outer, inner = p.count(p.y[:start]), p.count(p.y[start + len(p.merged) :])
        return data.reshape(batch * outer, p.count(p.merged), inner)
    kept = [1 + i for i, c in enumerate(p.y) if c not in p.merged]
    gone = [1 + i for i, c in enumerate(p.y) if c in p.merged]
    return data.permute(0, *kept, *gone).reshape(-1, p.count(p.merged), 1)


def _reduced(p: Plan, weight: Any, g: Plane) -> Pulled:
    """Take the maximum of weighted values along axes that the weight has, where nothing else is new."""
    w = wide(weight())
    beyond = [i for i, c in enumerate(p.w) if c not in p.y]  # of size 1 here
    w = w.reshape(p.shape(p.w)).permute([p.w.index(c) for c in p.y if c in p.w] + beyond)
    w = w.reshape([p.size[c] if c in p.w else 1 for c in p.y]).unsqueeze(0).expand(g.data.shape)
    values, weights, shift = _blocks(p, g.data), _blocks(p, w), g.shift
    left = "".join(c for c in p.y if c not in p.merged)

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = g.data.dtype
        out, arg, found = native.reduce_max(values.to(kind), weights.to(kind), 2.0**shift)
        shape = (g.data.shape[0], *p.shape(left))
        return made(out.reshape(shape), g.exponent - shift, found), arg.reshape(shape)

    plane, raw = precisely(run, g, double=w.dtype is torch.float64)
    plane.data = _spread(plane.data, left, p)
    return Pulled(plane, _spread(raw, left, p), p.way)


@dataclass(eq=False)
class Product:
    """A (max, ×) product, or a maximum, that has not been computed: whoever needs it may put several into one.

    Attributes:
        a: b × i × k values; w: b × j × k weights. Without weights a is 1 × k × i, and k is merged.
        order: axes of x (with the batch in front) among (both, batch, rows, columns), sizes `full`.
    """

    plan: Plan
    batch: int
    a: Plane
    w: Tensor | None
    turn: tuple[int, ...] | None = None  # the axes of x as a view of it has them
    split: bool = False  # whether x's first axis is the batch of examples
    _found: Pulled | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What two products have in common that can be put into one."""
        p = self.plan
        sizes = tuple(p.size[c] for c in p.x)
        outer = self.a.data.shape[2:] if self.w is None else (*self.w.shape[:2], *self.a.data.shape[:2])
        return p.x, p.both, p.rows, p.columns, sizes, self.batch, self.turn, self.split, self.w is None, outer

    @property
    def shape(self) -> Shape:
        """The shape of x, without the batch."""
        p = self.plan
        sizes = [p.size[c] for c in (p.x[1:] if self.split else p.x)]
        return tuple(sizes if self.turn is None else [sizes[d] for d in self.turn])

    def turned(self, order: tuple[int, ...]) -> Product:
        """Give the same product, of which x has its axes in another order."""
        # both orders count x's own axes; a split product has the examples in front
        turn = order if self.turn is None else tuple(self.turn[d] for d in order)
        return Product(self.plan, self.batch, self.a, self.w, turn, self.split)

    def realise(self, prepared: Any = None) -> Pulled:
        """Compute it, once."""
        if self._found is None:
            plane, raw = multiply(self.a, self.w, prepared)
            self._found = Pulled(self.placed(plane), self.arranged(raw), self.plan.way)
        return self._found

    def placed(self, plane: Plane) -> Plane:
        """Give values of b × i × j their axes batch × x."""
        return Plane(self.arranged(plane.data), plane.exponent, plane.high, plane.low, owned=True)

    def arranged(self, data: Tensor) -> Tensor:
        p = self.plan
        have = p.both + "0" + p.rows + p.columns
        data = data.reshape([self.batch if c == "0" else p.size[c] for c in have]).movedim(len(p.both), 0)
        data = _spread(data, p.both + p.rows + p.columns, p)
        data = data.squeeze(0) if self.split else data
        return data if self.turn is None else data.permute(0, *[1 + d for d in self.turn])


def _product(p: Plan, weight: Any, g: Plane) -> Product:
    """Bring a contraction into the form of a batched product."""
    batch = g.data.shape[0]
    at = {c: 1 + i for i, c in enumerate(p.y)}
    data = g.data.permute([at[c] for c in p.both] + [0] + [at[c] for c in p.rows] + [at[c] for c in p.merged]).reshape(
        p.count(p.both), batch * p.count(p.rows), p.count(p.merged)
    )
    w = wide(weight()).reshape(p.shape(p.w))
    lacking = [c for c in p.merged if c not in p.w]
    names = p.w + "".join(lacking)
    for _ in lacking:
        w = w.unsqueeze(-1)
    w = w.permute([names.index(c) for c in p.both + p.columns + p.merged])
    w = w.expand([p.size[c] for c in p.both + p.columns + p.merged])
    w = w.reshape(p.count(p.both), p.count(p.columns), p.count(p.merged))
    return Product(p, batch, _again(g, data), w)


def multiply(a: Plane, w: Tensor | None, prepared: Any = None) -> tuple[Plane, Tensor]:
    """Run the product kernel: b × i × k values, b × j × k weights; without weights, 1 × k × i values."""
    if a.shift:
        factor = 2.0**a.shift
        a = Plane(a.data * factor, a.exponent - a.shift, a.high * factor, a.low * factor)

    def run(a: Plane) -> tuple[Plane, Tensor]:
        if w is None:
            out, arg, found = native.reduce_max(a.data)
            return made(out, a.exponent, found), arg
        same = w.dtype is a.data.dtype
        out, arg, found = native.max_product(a.data, w if same else w.to(a.data.dtype), prepared if same else None)
        return made(out, a.exponent, found), arg

    return precisely(run, a, double=w is not None and w.dtype is torch.float64)


@pull.register
def _contraction(s: Contraction, g: Plane) -> Pulled | Product:
    p = plan(s.y, s.x, s.w if s.weight is not None else "", s.y_shape, s.x_shape, s.weight is not None)
    batch = g.shape[0]
    if 0 in s.y_shape or 0 in s.x_shape:
        return _by_reference(s, g)
    if g.data.shape[1:] != s.y_shape:
        g = _again(g, g.data.reshape(batch, *s.y_shape))
    if p.kind == "scale":
        return Pulled(_scaled(p, s.weight, g, p.y), None, p.way)
    if p.kind == "view":
        return Pulled(g.view(_spread(g.data, p.y, p)), None, p.way)
    if p.kind == "product":
        return _product(p, s.weight, g)
    if p.kind == "reduce":
        return _reduced(p, s.weight, g)
    if s.weight is None and batch == 1 and p.y.startswith(p.merged):
        data = g.data.reshape(1, p.count(p.merged), p.count(p.y[len(p.merged) :]))
        return Product(p, batch, _again(g, data), None)
    plane, raw = _merged(p, g)
    left = "".join(c for c in p.y if c not in p.merged)
    plane = plane.view(_spread(plane.data, left, p)) if s.weight is None else _scaled(p, s.weight, plane, left)
    return Pulled(plane, _spread(raw, left, p), p.way)


# ---------------------------------------------------------------- index maps


@lru_cache(maxsize=4096)
def turned(layout: Layout, x_shape: Shape) -> tuple[Shape, Affine] | None:
    """See a layout as x with its axes in another order: (that order's inverse on y's axes, the way); None if not."""
    size, stride = layout.size, layout.stride
    if layout.offset or prod(size) != prod(x_shape) or 0 in size:
        return None
    order = sorted(range(len(size)), key=lambda d: (-stride[d], size[d] != 1))
    real = [d for d in order if size[d] != 1]
    if [stride[d] for d in real] != list(contiguous([size[d] for d in real])):
        return None
    order = real + [d for d in order if size[d] == 1]
    of_y = contiguous(size)
    return tuple(order), Affine(tuple(size[d] for d in order), tuple(of_y[d] for d in order))


@pull.register
def _strided(s: Strided, g: Plane) -> Pulled:
    batch, at = g.data.shape[0], s.layout
    data = g.data if g.data.shape[1:] == at.size else g.data.reshape(batch, *at.size)
    found = turned(at, s.x_shape)
    if found is not None:
        order, way = found
        return Pulled(g.view(data.permute(0, *[1 + d for d in order]).reshape(batch, *s.x_shape)), None, way)
    if any(step == 0 and n > 1 for n, step in zip(at.size, at.stride, strict=True)):
        return _expanded(s, _again(g, data))
    if not reference._injective(list(at.size), list(at.stride)):
        index = positions(at).flatten()
        return _segments(_again(g, data.reshape(batch, -1, 1)), index, prod(s.x_shape), s.x_shape)
    return Pulled(g.view(data), None, _through_window(at, s.x_shape), at)


@lru_cache(maxsize=4096)
def _through_window(layout: Layout, x_shape: Shape) -> Way:
    """Give the way from x to a window of it: by strides where the window is a box of x's own axes."""
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
    plane, raw = _merged(p, g)
    left = Layout(tuple(p.shape(kept)), tuple(t for c, t in zip(names, at.stride, strict=True) if c in kept), at.offset)
    rest = _strided(Strided(left, s.x_shape), plane)
    if rest.raw is not None:
        return Pulled(rest.plane, rest.raw, Composed(rest.way, p.way, raw))
    return Pulled(rest.plane, None, Composed(rest.way, p.way, raw), rest.window)


@pull.register
def _placed(s: Placed, g: Plane) -> Pulled:
    batch = g.data.shape[0]
    flat = g.data.reshape(batch, -1)
    flat = flat.clone() if s.hidden else flat.contiguous()
    for hidden in s.hidden:
        reference.window(flat, hidden).zero_()
    way = Affine(s.layout.size, s.layout.stride, s.layout.offset)
    return Pulled(g.view(reference.window(flat, s.layout)), None, way)


@pull.register
def _gather(s: Gather, g: Plane) -> Pulled:
    batch, numel = g.data.shape[0], prod(s.x_shape)
    index = s.index().reshape(-1).to(torch.int64).contiguous()
    data = g.data.reshape(batch, len(index), s.width)
    live = (index >= 0).nonzero().squeeze(-1)
    rows, order = index[live].sort()
    if len(rows) and bool((rows[1:] > rows[:-1]).all()):  # no row is read twice
        way = Sought(rows, live[order], s.width)
        if batch == s.width == 1:
            return Pulled(Spikes(rows, data.reshape(-1)[way.order], (1, *s.x_shape), g), None, way)
        out = data.new_zeros(batch, numel // s.width, s.width).index_copy_(1, rows, data[:, way.order])
        return Pulled(Plane(out.reshape(batch, *s.x_shape), g.exponent, g.high, g.low, owned=True), None, way)
    return _segments(_again(g, data), index, numel // s.width if s.width else 0, s.x_shape)


def _segments(g: Plane, index: Tensor, size: int, x_shape: Shape) -> Pulled:
    """Merge rows (batch × rows × width) by the index of each."""
    batch, _, width = g.data.shape
    shift = g.shift

    def run(g: Plane) -> tuple[Plane, Tensor]:
        out, arg, found = native.segment_max(g.data, index, size, 2.0**shift)
        return made(out.reshape(batch, *x_shape), g.exponent - shift, found), arg.reshape(batch, *x_shape)

    plane, raw = precisely(run, g)
    return Pulled(plane, raw, Affine((size, width), (0, 1), 0, width))


@pull.register
def _scatter(s: Scatter, g: Plane) -> Pulled:
    batch, index = g.data.shape[0], s.index().reshape(-1)
    flat, live = g.data.reshape(batch, -1), index.clamp(min=0)
    if flat.shape[1] == 0:
        return Pulled(Plane(flat.new_zeros(batch, *s.x_shape), 0, 0.0, math.inf, owned=True), None, identity(s.x_shape))
    data = flat.index_select(1, live).masked_fill_(index < 0, 0)
    return Pulled(_again(g, data.reshape(batch, *s.x_shape)), None, Table(lambda: live))


@pull.register
def _chain(s: Chain, g: Plane) -> Pulled:
    first = pull(s.first, g)
    first = first.realise() if isinstance(first, Product) else first
    if first.window is not None:
        return _by_reference(s, g)
    second = pull(s.second, first.plane)
    second = second.realise() if isinstance(second, Product) else second
    return Pulled(second.plane, second.raw, Composed(second.way, first.way, first.raw), second.window)


@pull.register
def _convolved(s: Convolved, g: Plane) -> Pulled:
    other, shift = wide(s.other()), g.shift
    data = g.data.reshape(len(g.data), *s.sizes.output)

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = g.data.dtype
        parts = [native.convolved(x.to(kind), other.to(kind), s.sizes, 2.0**shift, to_input=s.to_input) for x in data]
        out, arg = (torch.stack([part[i] for part in parts]) if len(parts) > 1 else parts[0][i][None] for i in (0, 1))
        return made(out, g.exponent - shift, native.together([part[2] for part in parts])), arg

    plane, raw = precisely(run, g, double=other.dtype is torch.float64)
    one_example = prod(s.sizes.output[1:]) if s.to_input else 0
    return Pulled(plane, raw, Affine(s.x_shape, (one_example, *[0] * (len(s.x_shape) - 1)), 0, 1))


# ---------------------------------------------------------------- rows


@pull.register
def _low_rank(s: LowRank, g: Plane) -> Pulled:
    if 0 in s.shape or not s.dims:
        return _by_reference(s, g)
    if isinstance(g, Spikes):
        found = _spiked(s, g)
        if found is not None:
            return found
    closed, factors, count = _factors(s)
    if closed == "":
        return _by_reference(s, g)
    grid = _grid(s.shape, tuple(s.dims))
    data, shift = g.data.reshape(g.data.shape[0], *s.shape), g.shift

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = g.data.dtype
        form, parts = (closed, factors) if factors[0].dtype is kind else _open(s)
        seen = [None if t is None else grid.view(t.to(kind).expand(s.shape)) for t in parts]
        out, rows_of_out = grid.room(data.shape[0], kind)
        arg, rows_of_arg = grid.room(data.shape[0], torch.int32)
        ranges = [
            native.low_rank(form, grid.view(x.to(kind)), seen, count, y, z, 2.0**shift)
            for x, y, z in zip(data, rows_of_out, rows_of_arg, strict=True)
        ]
        return made(out, g.exponent - shift, native.together(ranges)), arg

    double = any(t is not None and t.dtype is torch.float64 for t in factors)
    plane, raw = precisely(run, g, double=double)
    return Pulled(plane, raw, _row_way(s.shape, tuple(s.dims)))


def _spiked(s: LowRank, g: Spikes) -> Pulled | None:
    """Carry at most one value a row through a log-softmax: everything in its row has won through it."""
    width, rows = s.shape[-1], g.places // s.shape[-1]
    form = s.factors.form if type(s.factors) is ClosedRows else ""
    if form != "log_softmax" or tuple(s.dims) != (len(s.shape) - 1,) or bool((rows[1:] == rows[:-1]).any()):
        return None
    assert isinstance(s.factors, ClosedRows)
    (p,) = s.factors.of()
    if p.dtype is not g.dtype or not p.is_contiguous():
        return None
    p = p.reshape(-1, width)
    values, place = p.new_zeros(len(p), 1), torch.zeros(len(p), dtype=torch.int64)
    values[rows, 0], place[rows] = g.values * 2.0**g.shift, g.places
    targets = (place % width).unsqueeze(1)
    own = (1 - p.gather(1, targets)) * values
    out, found = native.scale(values, p.shape, "given", p, out=p)  # p was made for this
    out.scatter_(1, targets, own)
    low = min(found.low, float(torch.where(own > 0, own, math.inf).min()))
    found = Range(max(found.high, float(own.max())), low, found.flags)
    plane = made(out.reshape(1, *s.shape), g.exponent - g.shift, found)
    return Pulled(plane, None, Shared(place, width)) if _kept(plane, g) else None


def _factors(s: LowRank) -> tuple[str, list[Any], int]:
    """Give the factors as a kernel takes them: (their form, they, the count of a mean); "" if no kernel does."""
    if type(s.factors) is ClosedRows:
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


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """A tensor as rows × n1 × n2: the axes `order`, those along which scalars are connected last."""

    shape: Shape
    order: tuple[int, ...]
    seen: Shape

    def view(self, t: Tensor) -> Tensor:
        return t.permute(self.order).reshape(self.seen)

    def room(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Make a tensor batch × shape, and the views of its parts through which rows are written."""
        out = torch.empty((batch, *self.shape), dtype=dtype)
        try:
            return out, [x.permute(self.order).view(self.seen) for x in out]
        except RuntimeError:  # not to be seen so without a copy: lay it out as the rows have it
            rows = torch.empty((batch, *self.seen), dtype=dtype)
            ordered = rows.view(batch, *[self.shape[d] for d in self.order])
            back = [0] + [1 + self.order.index(d) for d in range(len(self.shape))]
            return ordered.permute(back), list(rows)


@lru_cache(maxsize=1024)
def _grid(shape: Shape, dims: tuple[int, ...]) -> Grid:
    kept = [d for d in range(len(shape)) if d not in dims]
    rows, first = prod(shape[d] for d in kept), shape[dims[0]] if len(dims) > 1 else 1
    return Grid(shape, (*kept, *dims), (rows, first, prod(shape) // max(1, rows * first)))


def _is_one(t: Tensor) -> bool:
    return all(step == 0 or n == 1 for step, n in zip(t.stride(), t.shape, strict=True)) and bool(
        (t.flatten()[:1] == 1).all()
    )


@lru_cache(maxsize=1024)
def _row_way(shape: Shape, dims: tuple[int, ...]) -> Affine:
    """The winner is a position along the axes `dims`; along the others it is the scalar's own."""
    of_y = contiguous(shape)
    stride = tuple(0 if d in dims else of_y[d] for d in range(len(shape)))
    step, table = _winners_of(
        "".join(chr(97 + d) for d in dims),
        {chr(97 + d): of_y[d] for d in range(len(shape))},
        {chr(97 + d): shape[d] for d in range(len(shape))},
    )
    return Affine(shape, stride, 0, step, table)
