"""Products: contractions sorted into batched (max, ×) products, which wait until somebody needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..jacobians.index_maps import Affine
from ..jacobians.structure import Shape
from ..recording.layouts import Layout, contiguous, positions
from . import native
from .shared_exponent import Plane, Pulled, made, precisely, wide


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How a contraction is a product, a maximum along axes, a pointwise product, or a view.

    Letters of y by what becomes of them: `both` (in x and w), `rows` (in x only), `merged` (not in x); `columns` are
    those that w brings to x.

    Attributes:
        y_order: of the axes batch, y in a product's values: both, batch, rows, merged.
        in_order: whether that is how they lie.
        have: letters of a product, in its order, of `sizes`.
        w_order: of w's axes, behind which are those that it `lacks`, in a product's weights: both, columns, merged.
        counts: of the scalars that both, rows, columns and merged span.
        kin: what plans have in common whose products can be put into one.
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
    y_order: tuple[int, ...]
    in_order: bool
    w_shape: Shape
    w_order: tuple[int, ...]
    lacks: int
    counts: tuple[int, int, int, int]
    kin: tuple[Any, ...]
    have: str
    sizes: Shape

    def shape(self, letters: str) -> list[int]:
        """Give the sizes of some letters."""
        return [self.size[c] for c in letters]

    def count(self, letters: str) -> int:
        """Give how many scalars they span."""
        return prod_of(letters, self.size)


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
    step, table = winners_of(merged, of_y, size)
    at = {c: 1 + i for i, c in enumerate(y)}
    y_order = (*(at[c] for c in both), 0, *(at[c] for c in rows), *(at[c] for c in merged))
    lacking = [c for c in merged if c not in w]
    w_order = tuple((w + "".join(lacking)).index(c) for c in both + columns + merged)
    counts = prod_of(both, size), prod_of(rows, size), prod_of(columns, size), prod_of(merged, size)
    way, kin = Affine(x_shape, stride, 0, step, table), (x, both, rows, columns, x_shape)
    orders = y_order, y_order == tuple(range(len(y_order))), tuple(size[c] for c in w), w_order
    have = both + rows + columns
    had = have, tuple(size[c] for c in have)
    return Plan(kind, y, w, x, both, rows, columns, merged, size, way, *orders, len(lacking), counts, kin, *had)


def prod_of(letters: str, size: dict[str, int]) -> int:
    """Give how many scalars some letters span."""
    return prod(size[c] for c in letters)


def winners_of(merged: str, of_y: dict[str, int], size: dict[str, int]) -> tuple[int, Callable[[], Tensor] | None]:
    """Say what the number of a scalar among the merged ones adds to its flat position."""
    if not merged:
        return 0, None
    if all(of_y[outer] == of_y[inner] * size[inner] for outer, inner in pairwise(merged)):
        return of_y[merged[-1]], None
    layout = Layout(tuple(size[c] for c in merged), tuple(of_y[c] for c in merged), 0)
    return 0, lambda: positions(layout).flatten()


def spread(data: Tensor, have: str, p: Plan) -> Tensor:
    """Give axes batch, x to data with axes batch, `have` (a subset of x)."""
    if have == p.x:
        return data
    data = data.permute(0, *[1 + have.index(c) for c in p.x if c in have])
    if len(have) == len(p.x):
        return data
    batch = data.shape[0]
    return data.reshape(batch, *[p.size[c] if c in have else 1 for c in p.x]).expand(batch, *p.way.shape)


@dataclass(eq=False)
class Product:
    """A (max, ×) product, or a maximum, that has not been computed: whoever needs it may put several into one.

    Attributes:
        a: b × i × k values; w: b × j × k weights. Without weights a is 1 × k × i, and k is merged.
        turn: the axes of x as a view of it has them; None for its own order.
        split: whether x's first axis is the batch of examples.
    """

    plan: Plan
    batch: int
    a: Plane
    w: Tensor | None
    turn: tuple[int, ...] | None = None
    split: bool = False
    _found: Pulled | None = None

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What two products have in common that can be put into one."""
        outer = self.a.data.shape[2:] if self.w is None else (*self.w.shape[:2], *self.a.data.shape[:2])
        return self.plan.kin, self.batch, self.turn, self.split, self.w is None, outer

    @property
    def shape(self) -> Shape:
        """The shape of x, without the batch."""
        sizes = self.plan.way.shape[self.split :]
        return sizes if self.turn is None else tuple([sizes[d] for d in self.turn])

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
        """Give winners, or values, of b × i × j the axes batch × x."""
        p, batch = self.plan, self.batch
        shape, outer = (batch, *p.sizes), len(p.both)
        if outer and batch > 1:
            data = data.reshape(*p.sizes[:outer], batch, *p.sizes[outer:]).movedim(outer, 0)
        elif data.shape != shape:  # a batch of one is in front wherever it was
            data = data.reshape(shape)
        data = spread(data, p.have, p)
        data = data.squeeze(0) if self.split else data
        return data if self.turn is None else data.permute(0, *[1 + d for d in self.turn])


def product(p: Plan, weight: Any, g: Plane) -> Product:
    """Bring a contraction into the form of a batched product."""
    batch, (both, rows, columns, merged) = g.data.shape[0], p.counts
    data = g.data if p.in_order else g.data.permute(p.y_order)
    if data.shape != (both, batch * rows, merged):
        data = data.reshape(both, batch * rows, merged)
    w = wide(weight())
    w = w if w.shape == p.w_shape else w.reshape(p.w_shape)
    if p.lacks:
        w = w[(..., *[None] * p.lacks)].permute(p.w_order).expand(p.shape(p.both + p.columns + p.merged))
    else:
        w = w.permute(p.w_order)
    if w.shape != (both, columns, merged):
        w = w.reshape(both, columns, merged)
    return Product(p, batch, g.view(data), w)


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
