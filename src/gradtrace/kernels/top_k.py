"""The k largest path weights by the compiled kernels: a carrier of values alone.

An element is 1 to k planes of plain numbers, the s-th largest weight of every scalar in the s-th plane; there are only
as many planes as some scalar has paths. Which of equal weights is kept makes no difference to their values, so there
are no backpointers, and candidates that cannot be among the largest are never looked at.

Numbers are float32 in a float32 model: each product rounds there, and nothing else does. An operation that would lose
something to underflow or overflow is done in float64. In float64 products round as the mantissas of `semirings.ranked`
do, so values are the same, bit for bit, save where a norm's own Jacobian is worked out. Where even a float64 would
under- or overflow, `OutOfRange` asks for the carrier that has an exponent for each weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ..jacobians.structure import Contraction, Convolved, Placed, Scatter, Strided
from ..semirings.base import Carrier, Element
from . import native
from .convolutions import as_products
from .memory import Room, zeros
from .reference import by_definition, injective
from .shared_exponent import all_others, broadcast, carefully, comfortable, doubled, wide


def alike(g: Sequence[Tensor]) -> Element:
    """Give planes of one layout."""
    same = isinstance(g, Stack) or all(p.stride() == g[0].stride() for p in g)
    return tuple(g) if same else tuple(p.contiguous() for p in g)


@dataclass(frozen=True)
class Largest(Carrier):
    """The k largest path weights, in float32 if that is the precision of the model (`kind`), as far as it holds them.

    One is made for each pass, whose memory it uses again.
    """

    points = False

    kind: torch.dtype
    k: int
    room: Room = field(default_factory=Room)

    def one(self, like: Tensor) -> Element:
        return (torch.ones_like(like, dtype=self.kind),)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return stack(zeros(like[0].dtype, len(like), *shape))

    def seed(self, g: Element, ids: Tensor) -> Element:
        del ids
        if g[0].dtype is self.kind or self.kind is torch.float64 or not comfortable(g):
            return g
        return tuple(p.to(torch.float32) for p in g)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        shape = broadcast(weight.shape, g[0].shape)

        def run(g: Element, w: Tensor) -> tuple[Element, int]:
            out = self.room(w.dtype, len(g), *shape)
            planes = [p.expand(shape).contiguous() for p in g]
            return stack(out), native.top_weigh(w.expand(shape).contiguous(), planes, out)

        return carefully(run, g, weights=(wide(weight),))

    def _kept(self, g: Element, axes: int = 1) -> int:
        """Count how many entries a merge of the rows of batch × rows × n needs; rows are over some axes."""
        return max(1, native.top_depth(g, self.k, axes))

    def reduce(self, g: Element) -> Element:
        shape, n = g[0].shape[:-1], g[0].shape[-1]
        if g[0].numel() == 0:
            return self.zero(tuple(shape), g[:1])
        rows = alike([p.reshape(prod(shape), n) for p in g])
        keep = self._kept(tuple(p.unsqueeze(0) for p in rows))
        out = self.room(g[0].dtype, keep, prod(shape))
        native.top_reduce([p if 1 in p.stride() else p.contiguous() for p in rows], out)
        return stack(out.reshape(keep, *shape))

    def others(self, g: Element) -> Element:
        return all_others(self, g)

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        if left.shape[-1] > 2:
            return None

        def run(g: Element, *factors: Tensor) -> tuple[Element, int]:
            g = alike(g)
            out = self.room(g[0].dtype, self._kept(g), *g[0].shape)
            return stack(out), native.top_low_rank(g, factors, out)

        return carefully(run, g, weights=tuple(map(wide, (own, *left.unbind(-1), *right.unbind(-1)))))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        shape = g[0].shape[:-1]
        if g[0].numel() == 0:
            return self.zero((*shape, size), g[:1])
        rows = alike([p.reshape(prod(shape), -1) for p in g])
        out = zeros(g[0].dtype, self.k, len(rows[0]), size)
        used = native.top_segment(rows, index.reshape(-1, *rows[0].shape[1:]).squeeze(0), out)
        return stack(out.reshape(-1, *shape, size)[: max(1, used)])

    def plus(self, a: Element, b: Element) -> Element:
        return self._merged(a, b, over=False)

    def plus_over(self, a: Element, b: Element) -> Element:
        return self._merged(a, b, over=True)

    def _merged(self, a: Element, b: Element, *, over: bool) -> Element:
        """Merge two arrays, over the first one if there are planes enough."""
        if a[0].dtype is not b[0].dtype:
            a, b = doubled(a), doubled(b)
        a, b = (tuple(p.contiguous() for p in g) for g in (a, b))
        keep = min(self.k, len(a) + len(b))
        out = a if over and keep == len(a) else stack(self.room(a[0].dtype, keep, *a[0].shape))
        native.top_merge(a, b, out)
        return out

    def along(self, structure: object, g: Element) -> Element | None:
        if isinstance(structure, Convolved):
            return as_products(structure, self, g, 0.0)
        if len(g) > 1 and len(g[0]) == 1 and one_to_one(structure):  # all planes at once, as a batch
            (out,) = by_definition(structure, _Batch(self.kind, self.k, self.room), (together(g).squeeze(1),))
            return stack(out.unsqueeze(1))
        return None

    def contract(self, weight: Tensor, g: Element) -> Element:
        return self.contract_over(weight, g, 1)

    def contract_over(self, weight: Tensor, g: Element, axes: int) -> Element:
        shape = len(weight), prod(g[0].shape[1 : 1 + axes]), weight.shape[1]
        if 0 in (*shape, weight.shape[2]):
            return self.zero(shape, g[:1])
        if shape[2] == 1 and g[0].dim() == 3:  # a block of columns would be wasted on it
            return tuple(p.unsqueeze(-1) for p in self.reduce(self.weigh(weight, g)))

        def run(g: Element, w: Tensor) -> tuple[Element, int]:
            g = alike(g)
            out = self.room(w.dtype, self._kept(g, axes), *shape)
            return stack(out), native.top_product(g, w, out, axes)

        return carefully(run, g, weights=(wide(weight),))

    def plain(self, g: Element) -> Tensor:
        out, missing = together(g).transpose(0, 1), self.k - len(g)
        return out if not missing else torch.cat([out, out.new_zeros(len(out), missing, *out.shape[2:])], 1)


class _Batch(Largest):
    """The same where nothing is merged, so that an element may be one tensor: entries × shape."""

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return (zeros(like[0].dtype, *shape),)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        shape = broadcast(weight.shape, g[0].shape)

        def run(g: Element, w: Tensor) -> tuple[Element, int]:
            out = self.room(w.dtype, *shape)
            planes = g[0].expand(shape).contiguous().unbind(0)
            return (out,), native.top_weigh(w.expand(shape[1:]).contiguous(), planes, out)

        return carefully(run, g, weights=(wide(weight),))


def one_to_one(structure: object) -> bool:
    """Tell whether a structure merges nothing: every scalar of x has at most one edge."""
    match structure:
        case Contraction():
            return set(structure.y) <= set(structure.x)
        case Strided():
            return injective(list(structure.layout.size), list(structure.layout.stride))
        case _:
            return isinstance(structure, (Placed, Scatter))


class Stack(tuple[Tensor, ...]):
    """Planes that lie one after the other: `whole` is entries × batch × shape."""

    whole: Tensor


def stack(whole: Tensor) -> Stack:
    """Give the planes of one array."""
    out = Stack(whole.unbind(0))
    out.whole = whole
    return out


def together(g: Element) -> Tensor:
    """Give entries × batch × shape: a view, where the planes lie in memory as one array's do."""
    if isinstance(g, Stack):
        return g.whole
    first, step = g[0], g[1].storage_offset() - g[0].storage_offset() if len(g) > 1 else 0
    at, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    places = [(p.stride(), p.untyped_storage().data_ptr(), p.storage_offset()) for p in g]
    if places == [(first.stride(), memory, at + s * step) for s in range(len(g))]:
        return first.as_strided((len(g), *first.shape), (step, *first.stride()), at)
    return torch.stack(g)
