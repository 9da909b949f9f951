"""The strongest path of either sign by the compiled kernels: a carrier of values alone.

An element is two planes of plain numbers, the largest and the smallest path weight of every scalar as signed numbers,
both NaN where there is no path. Which of equal weights is kept makes no difference to their values, so there are no
backpointers.

Numbers are float32 in a float32 model: each product rounds there, and nothing else does. An operation that would lose
something to underflow or overflow is done in float64. In float64 products round as the mantissas of `semirings.ranked`
do, so values are the same, bit for bit, save where a norm's own Jacobian is worked out. Where even a float64 would
under- or overflow, or something is infinite, `OutOfRange` asks for the carrier that has an exponent for each weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..jacobians.structure import Convolved
from ..semirings.base import Carrier, Element
from .convolutions import as_products
from .memory import empty
from .native import lib
from .shared_exponent import all_others, broadcast, carefully, comfortable, doubled, wide

Found: TypeAlias = tuple[Element, int]


@dataclass(frozen=True)
class Ends(Carrier):
    """The largest and the smallest path weight, in float32 if that is the model's precision (`kind`) and holds them."""

    points = False

    kind: torch.dtype

    def one(self, like: Tensor) -> Element:
        return torch.ones_like(like, dtype=self.kind), torch.ones_like(like, dtype=self.kind)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return tuple(empty(like[0].dtype, *shape).fill_(math.nan) for _ in like)

    def seed(self, g: Element, ids: Tensor) -> Element:
        del ids
        if g[0].dtype is self.kind or self.kind is torch.float64 or not comfortable(_sizes(g)):
            return g
        return tuple(p.to(torch.float32) for p in g)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        shape = broadcast(weight.shape, g[0].shape)

        def run(g: Element, w: Tensor) -> tuple[Element, int]:
            return scale(w.expand(shape).contiguous(), tuple(p.expand(shape).contiguous() for p in g))

        return carefully(run, g, weights=(wide(weight),))

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        high, low = _filled(g)
        return _settled(high.amax(-1), low.amin(-1))

    def others(self, g: Element) -> Element:
        return all_others(self, g)

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        high, low = (p.contiguous() for p in _filled(g))
        shape, index = (*high.shape[:-1], size), index.expand(high.shape)
        top = high.new_full(shape, -math.inf).scatter_reduce_(-1, index, high, "amax")
        return _settled(top, low.new_full(shape, math.inf).scatter_reduce_(-1, index, low, "amin"))

    def plus(self, a: Element, b: Element) -> Element:
        a, b = _alike(a, b)
        return torch.fmax(a[0], b[0]), torch.fmin(a[1], b[1])

    def plus_over(self, a: Element, b: Element) -> Element:
        if a[0].dtype is not b[0].dtype:
            return self.plus(a, b)
        return torch.fmax(a[0], b[0], out=a[0]), torch.fmin(a[1], b[1], out=a[1])

    def contract(self, weight: Tensor, g: Element) -> Element:
        batch, rows, inner = g[0].shape
        shape = batch, rows, weight.shape[1]
        if 0 in (*shape, inner):
            return self.zero(shape, g)
        if shape[1:] == (1, 1):
            return tuple(p.unsqueeze(-1) for p in self.reduce(self.weigh(weight, g)))

        return carefully(product, g, weights=(wide(weight),))

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        if left.shape[-1] > 2:
            return None

        return carefully(low_rank, g, weights=tuple(map(wide, (own, *left.unbind(-1), *right.unbind(-1)))))

    def along(self, structure: object, g: Element) -> Element | None:
        return as_products(structure, self, g, math.nan) if isinstance(structure, Convolved) else None

    def plain(self, g: Element) -> Tensor:
        return torch.stack(g, 1).nan_to_num_(0.0)


def product(g: Element, w: Tensor) -> Found:
    """Give the ends of w[b,j,k]·g[b,i,k] over k, b × i × j, and flags."""
    g, (batch, m, k), n = _laid(g), g[0].shape, w.shape[1]
    out = _room(w.dtype, (batch, m, n))
    where = _at(g), list(g[0].stride()), w.data_ptr(), list(w.stride()), _at(out)
    return out, lib.signed_product(_double(w), batch, m, n, k, *where, torch.get_num_threads())


def low_rank(g: Element, *factors: Tensor) -> Found:
    """Carry batch × rows × n back by Jacobians of one row each, and give flags.

    Args:
        factors: own, then the left and the right ones, one or two each, rows × n.
    """
    g, out = _laid(g), _room(g[0].dtype, tuple(g[0].shape))
    strides = [[0, *t.stride()] for t in factors]
    given = _at(g), list(g[0].stride()), _at(factors), strides
    return out, lib.signed_low_rank(_double(out[0]), *g[0].shape, *given, _at(out), torch.get_num_threads())


def scale(w: Tensor, g: Element) -> Found:
    """Give the ends of w·g, all contiguous and of one shape, and flags."""
    out = _room(w.dtype, tuple(w.shape))
    return out, lib.signed_scale(_double(w), w.numel(), w.data_ptr(), _at(g), _at(out), torch.get_num_threads())


def _at(planes: Sequence[Tensor]) -> list[int]:
    return [p.data_ptr() for p in planes]


def _double(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float64


def _room(kind: torch.dtype, shape: tuple[int, ...]) -> Element:
    return empty(kind, *shape), empty(kind, *shape)


def _laid(g: Element) -> Element:
    """Give planes of one layout."""
    return g if g[0].stride() == g[1].stride() else tuple(p.contiguous() for p in g)


def _alike(a: Element, b: Element) -> tuple[Element, Element]:
    return (a, b) if a[0].dtype is b[0].dtype else (doubled(a), doubled(b))


def _filled(g: Element) -> Element:
    """Give numbers that no path's loses to, where there is no path."""
    return g[0].nan_to_num(-math.inf, math.inf, -math.inf), g[1].nan_to_num(math.inf, math.inf, -math.inf)


def _settled(high: Tensor, low: Tensor) -> Element:
    return high.masked_fill_(high == -math.inf, math.nan), low.masked_fill_(low == math.inf, math.nan)


def _sizes(g: Element) -> Element:
    """Give absolute numbers, 0 where there is no path."""
    return tuple(p.abs().nan_to_num_(0.0) for p in g)
