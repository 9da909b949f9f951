"""Carriers of plain numbers: the p-norm and the entropy of path weights without an exponent for each scalar.

They cost about what backpropagation does, and hold as long as every number is within the range of a float. An
operation that would lose something in float32 is done in float64; where that is too narrow, or something is infinite,
`OutOfRange` says that the pass has to be run with exponents (`semirings.power`, `semirings.entropy`). They need the
compiled kernels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.structure import (
    Closed,
    ClosedRows,
    Constant,
    Contraction,
    Convolved,
    LowRank,
    Placed,
    Scatter,
    Strided,
    Weight,
    standard_factors,
)
from ..semirings.base import BLOCK, Carrier, Element
from ..semirings.rows import finite
from . import additive, native, sums
from .convolutions import as_products
from .convolved_sums import convolved
from .grid import grid_of
from .memory import zeros
from .native import LOST
from .shared_exponent import OutOfRange, carefully, comfortable, doubled, wide
from .sums import AGAIN, MANY, UNBOUNDED, Found

LOG2 = math.log(2)


class Merge(NamedTuple):
    """A way to merge: sums and maxima of what belongs together, and each of these back `at` what it was made of."""

    add: Callable[[Tensor], Tensor]
    top: Callable[[Tensor], Tensor]
    at: Callable[[Tensor], Tensor]


def by_index(index: Tensor, shape: tuple[int, ...]) -> Merge:
    """Merge along the last axis by an index map, into arrays of some shape."""
    return Merge(
        lambda t: t.new_zeros(shape).scatter_add_(-1, index, t.contiguous()),
        lambda t: t.new_zeros(shape).scatter_reduce_(-1, index, t.contiguous(), "amax"),
        lambda t: t.gather(-1, index),
    )


def merges_nothing(structure: object) -> bool:
    """Tell whether each scalar of the argument gets what one scalar of the result has, or nothing, by edges of 1."""
    match structure:
        case Contraction(weight=None):
            return set(structure.y) <= set(structure.x)
        case Strided():
            how = additive.shown(structure.layout, structure.x_shape)
            return how.injective and not how.repeated
        case _:
            return isinstance(structure, (Placed, Scatter))


@dataclass(frozen=True)
class Plain(Carrier):
    """Planes (z,) or (z, h), in float32 if that is the precision of the model (`kind`), as far as it holds them."""

    kind: torch.dtype
    points = False

    @property
    @abstractmethod
    def squarings(self) -> int | None:
        """log2 p; None for the entropy."""

    @abstractmethod
    def merged(self, g: Element, by: Merge) -> Element:
        """Merge elements."""

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return tuple(zeros(p.dtype, *shape) for p in like)

    def seed(self, g: Element, ids: Tensor) -> Element:
        del ids
        if g[0].dtype is self.kind or self.kind is torch.float64 or not comfortable(g[:1]):
            return g
        return tuple(p.to(torch.float32) for p in g)

    def along(self, structure: object, g: Element) -> Element | None:
        if isinstance(structure, Contraction):
            return self._contraction(structure, g)
        if isinstance(structure, Convolved):
            found = convolved(structure, g, self.squarings)
            return as_products(structure, self, g, 0.0) if found is None else found
        if isinstance(structure, LowRank):
            return self._standard(structure, g)
        return tuple([additive.pull(structure, p) for p in g]) if merges_nothing(structure) else None

    def _contraction(self, s: Contraction, g: Element) -> Element:
        """Multiply and merge, by the plan of `additive`."""
        batch, weight = g[0].shape[0], s.weight
        if g[0].shape[1:] != s.y_shape:
            g = tuple([p.reshape(batch, *s.y_shape) for p in g])
        if s.y == s.x and (weight is None or s.w == s.y):
            return g if weight is None else self._weighed(weight, g)
        plan = additive.planned(s.y, s.x, "" if weight is None else s.w, s.y_shape, s.x_shape, batch)
        if plan.alone:
            kept = [d for d in range(g[0].dim()) if d not in plan.alone]
            g = self.reduce(tuple([p.permute(*kept, *plan.alone).flatten(len(kept)) for p in g]))
        if weight is None:
            return tuple([plan.alike(p) for p in g])
        w = plan.weights(weight())
        g = tuple([plan.given(p) for p in g])
        if not plan.product:
            out, extra = self.weigh(w, g), len(plan.g_shape) - len(plan.x_shape)
            out = self.reduce(tuple([p.flatten(-extra) for p in out])) if extra else out
            return tuple([p.expand(plan.x_shape) for p in out])
        out = self.contract(w, g)  # shared × rows × columns
        if plan.turned:
            out = tuple([p.transpose(1, 2) for p in out])
        return tuple([plan.laid(p) for p in out])

    def _standard(self, s: LowRank, g: Element) -> Element | None:
        """Go back through a norm, its factors being worked out as rows lie; None where it is another Jacobian."""
        if not isinstance(s.factors, ClosedRows) or s.factors.form != "standard" or 0 in g[0].shape or not s.dims:
            return None
        *given, count = s.factors.of()
        grid, kind = grid_of(s.shape, tuple(s.dims)), g[0].dtype
        factors = [None if t is None else grid.view(t.expand(s.shape)) for t in given]
        seen = [[grid.view(p) for p in plane.reshape(-1, *s.shape)] for plane in g]
        if {t.dtype for t in factors if t is not None} == {kind}:
            out, rows = zip(*[grid.room(len(g[0]), kind) for _ in g], strict=True)
            entries = zip(zip(*seen, strict=True), zip(*rows, strict=True), strict=True)
            if not any(sums.standard(factors, count, z, to, self.squarings) for z, to in entries):
                return out
        rows, n = grid.seen[0], math.prod(grid.seen[1:])
        hat, gamma, scale = [None if t is None else t.reshape(rows, n) for t in factors]
        own, left, right = standard_factors(hat, gamma, scale, count)  # type: ignore[arg-type]
        flat = tuple([torch.stack([p.reshape(rows, n) for p in plane]) for plane in seen])
        return tuple([grid.laid(p) for p in self._rank_two(own, left, right, flat)])

    def weigh(self, weight: Tensor, g: Element) -> Element:
        near = weight.shape in (g[0].shape, g[0].shape[1:])
        shape = g[0].shape if near else torch.broadcast_shapes(weight.shape, g[0].shape)
        (z,) = carefully(lambda g, w: _scaled(g[0], w, shape), g[:1], weights=(wide(weight),))
        return (z, *(p.to(z.dtype).expand(shape) for p in g[1:]))

    def _weighed(self, weight: Weight, g: Element) -> Element:
        """Multiply by a weight of y's shape, in a form that the kernel works out as it goes, if it has one."""
        form, constant, w = "given", 1.0, None
        if isinstance(weight, Constant):
            form, constant = "constant", abs(weight.value)
        elif isinstance(weight, Closed):
            form, w = weight.form, weight.of()
        else:
            w = weight()
        if g[0].dim() <= native.MAX_DIMS and (w is None or w.dtype is g[0].dtype):
            z, found = native.scale(g[0], g[0].shape, form, None if w is None else w.reshape(g[0].shape[1:]), constant)
            if not found.flags and not math.isinf(found.high):
                return z, *g[1:]
        return self.weigh(weight().reshape(g[0].shape[1:]), g)

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        return carefully(lambda g: sums.reduce(g, self.squarings), g)

    def others(self, g: Element) -> Element:
        if g[0].numel() == 0:
            return g
        ones = torch.ones_like(g[0], memory_format=torch.contiguous_format)
        return self._rank_one("given", g, (torch.zeros_like(ones), ones, ones))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        by = by_index(index.expand(g[0].shape), (*g[0].shape[:-1], size))
        return carefully(lambda g: _bounded(self.merged(g, by)), g)

    def plus(self, a: Element, b: Element) -> Element:
        return carefully(lambda a, b: sums.join(a, b, self.squarings), a, b)

    def contract(self, weight: Tensor, g: Element) -> Element:
        shape = *g[0].shape[:2], weight.shape[1]
        if 0 in (*shape, g[0].shape[2]):
            return self.zero(shape, g)
        if shape[1:] == (1, 1):
            return tuple(p.unsqueeze(-1) for p in self.reduce(self.weigh(weight, g)))
        weight = wide(weight)
        if torch.float64 in (weight.dtype, self.kind):
            weight, g = weight.to(torch.float64), doubled(g)
        try:
            return carefully(lambda g: self._product(g, weight), g)
        except OutOfRange:
            if weight.isnan().any():
                raise NotANumber("a local derivative is NaN") from None
            raise

    def _product(self, g: Element, weight: Tensor) -> Found:
        """Multiply; what underflow may have changed is done again in float64, or one entry at a time."""
        out, flags = sums.product(g, weight, self.squarings)
        if not flags & AGAIN or flags & UNBOUNDED:
            return out, flags
        again, k = (out[0] < 0).nonzero(), weight.shape[2]
        if len(again) * k > MANY and weight.dtype is torch.float32:
            found, flags = self._product(doubled(g), weight.double())
            flags |= _lost(found[0], out[0].dtype)
            return tuple(p.to(out[0].dtype) for p in found), flags
        if len(again) * k > MANY:  # most of them have no edges at all
            some = (g[0] != 0).float() @ (weight != 0).float().transpose(1, 2) > 0
            for plane in out:
                plane.masked_fill_((out[0] < 0) & ~some, 0)
            again = (out[0] < 0).nonzero()
        for few in again.split(max(1, BLOCK // k)):
            b, i, j = few.unbind(-1)
            terms = self.weigh(weight[b, j].double(), tuple(p[b, i].double() for p in g))
            found = self.reduce(terms)
            flags |= _lost(found[0], out[0].dtype)
            for plane, values in zip(out, found, strict=True):
                plane[b, i, j] = values.to(plane.dtype)
        return out, flags & ~AGAIN

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        if left.shape[-1] == 1:
            return self._rank_one("given", g, (wide(own), wide(left[..., 0]), wide(right[..., 0])))
        return self._rank_two(own, left.unbind(-1), right.unbind(-1), g) if left.shape[-1] == 2 else None

    def _rank_two(self, own: Tensor, left: Sequence[Tensor], right: Sequence[Tensor], g: Element) -> Element:
        return self._each(lambda g, *f: sums.rank_two(g, f, self.squarings), g, (*map(wide, (own, *left, *right)),))

    def softmax(self, p: Callable[[], Tensor], g: Element, *, log: bool) -> Element | None:
        if not log:
            return self._rank_one("softmax", g, (wide(p()),))
        made = p()
        if len(g[0]) == 1 and made.dtype is g[0].dtype:  # there is no need to keep it
            out, flags = sums.rank_one("log_softmax", tuple(t[0] for t in g), (made,), self.squarings, over=True)
            if not flags:
                return tuple(t[None] for t in out)
            made = p()
        return self._rank_one("log_softmax", g, (wide(made),))

    def _rank_one(self, form: str, g: Element, factors: tuple[Tensor, ...]) -> Element:
        return self._each(lambda g, *f: sums.rank_one(form, g, f, self.squarings), g, factors)

    def _each(self, run: Callable[..., Found], g: Element, factors: tuple[Tensor, ...]) -> Element:
        """Run for each entry of the batch."""
        parts = [carefully(run, tuple(p[b] for p in g), weights=factors) for b in range(len(g[0]))]
        kind = torch.float64 if any(part[0].dtype is torch.float64 for part in parts) else parts[0][0].dtype
        return tuple(
            torch.stack([p.to(kind) for p in planes]) if len(parts) > 1 else planes[0][None]
            for planes in zip(*parts, strict=True)
        )


@dataclass(frozen=True)
class PlainNorm(Plain):
    """(Σ |path weight|^p)^(1/p) for p = 2^squarings."""

    steps: int

    @property
    def squarings(self) -> int:
        return self.steps

    def one(self, like: Tensor) -> Element:
        return (torch.ones_like(like, dtype=self.kind),)

    # What is added up without powers loses nothing, and what became infinite stays so: `plain` looks, once.

    def plus(self, a: Element, b: Element) -> Element:
        return super().plus(a, b) if self.steps else (a[0] + b[0],)

    def plus_over(self, a: Element, b: Element) -> Element:
        return super().plus_over(a, b) if self.steps or a[0].dtype is not b[0].dtype else (a[0].add_(b[0]),)

    def reduce(self, g: Element) -> Element:
        return super().reduce(g) if self.steps else (g[0].sum(-1),)

    def merged(self, g: Element, by: Merge) -> Element:
        if self.steps == 0:
            return (by.add(g[0]),)
        unit = by.top(g[0])
        unit = torch.where(unit > 0, unit, 1.0)
        powers = g[0] / by.at(unit)
        for _ in range(self.steps):
            powers.mul_(powers)
        total = by.add(powers)
        for _ in range(self.steps):
            total.sqrt_()
        return (total.mul_(unit),)

    def plain(self, g: Element) -> Tensor:
        """Give the numbers.

        Raises:
            OutOfRange: one of them is infinite.
        """
        if not self.steps and not finite(g[0]):
            raise OutOfRange
        return g[0]


@dataclass(frozen=True)
class PlainEntropy(Plain):
    """(Σ |path weight|, the entropy of the paths in bits)."""

    @property
    def squarings(self) -> None:
        return None

    def one(self, like: Tensor) -> Element:
        one = torch.ones_like(like, dtype=self.kind)
        return one, torch.zeros_like(one)

    def merged(self, g: Element, by: Merge) -> Element:
        total = by.add(g[0])
        share = g[0] / by.at(torch.where(total > 0, total, 1.0))
        return total, by.add(share * g[1] - torch.xlogy(share, share) / LOG2).clamp_(min=0)

    def plain(self, g: Element) -> Tensor:
        return torch.where(g[0] > 0, g[1], 0.0)


def _bounded(out: Element) -> Found:
    return out, 0 if finite(out[0]) else UNBOUNDED


def _lost(found: Tensor, kind: torch.dtype) -> int:
    """Tell whether numbers are lost in some type."""
    limits = torch.finfo(kind)
    return LOST if bool(((found > 0) & (found < limits.tiny)).any()) or bool((found > limits.max).any()) else 0


def _scaled(g: Tensor, weight: Tensor, shape: torch.Size) -> Found:
    """Give |weight|·g."""
    g, weight = g.expand(shape), weight.expand(shape)
    if len(shape) > 8:
        g, weight = g.reshape(-1), weight.reshape(-1)
    out, found = native.scale(g, g.shape, "given", weight)
    return (out.reshape(shape),), found.flags | (UNBOUNDED if math.isinf(found.high) else 0)
