"""Semirings: what ⊕, ⊗, 0, 1 and the lift λ are, on numbers and on arrays of elements.

A `Semiring` is a small record of five things on plain numbers, which is all that the explicit scalar
graph needs, and a `Carrier`: how an array of its elements is stored and reduced. An array of elements
(`Element`) is a tuple of tensors of one shape, its *planes*:

    Linear     (value,)                   value, added up
    Scaled     (mantissa, exponent)       mantissa · 2^exponent with |mantissa| in [½, 1), added up
    Extreme    (mantissa, exponent, id)   the same, but ⊕ keeps the largest, and the id that came with it

The exponent is a plane of its own because a path multiplies hundreds of small numbers: 1e-2000 has to
come out right, and products of small integers have to stay exact so that ties stay ties, which a
logarithm would break. The id is the backpointer: it says which consumer scalar the winner came from.
Nothing here knows about operators, structures or tapes.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import NotANumber, UnknownName
from . import rows
from .exponents import INFINITE_EXPONENT, ZERO_EXPONENT, Element, aligned, lifted, multiply, normalised, pow2, shifted

NO_ID = torch.iinfo(torch.int64).max  # the backpointer of an element that is zero
BLOCK = 1 << 20  # elements of one broadcast product held at a time
SAFE_SPREAD = 900  # exponents that a float64 product can span without underflow


class Carrier(ABC):
    """Arrays of semiring elements: how they are stored, weighed by edges, and merged.

    `weigh` is ⊗ with lifted edge weights, every other method is some way to apply ⊕. Axes to reduce
    are always the last one.

    Attributes:
        points: whether `seed` needs to be told the ids of consumer scalars.
        additive: whether λ(v + w) ⊗ g = λ(v) ⊗ g ⊕ λ(w) ⊗ g, so that a weight may come in parts.
    """

    points = True
    additive: bool = False

    @abstractmethod
    def one(self, like: Tensor) -> Element:
        """Give ones in the shape and on the device of `like`."""

    @abstractmethod
    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        """Give zeros of a shape, with the planes' dtypes and device of `like`."""

    def along(self, structure: object, g: Element) -> Element | None:
        """Carry g (batch × y) back along a structure, batch × x, if this carrier has a kernel of its own for it."""
        del structure, g
        return None

    @abstractmethod
    def weigh(self, weight: Tensor, g: Element) -> Element:
        """Give λ(weight) ⊗ g, elementwise, broadcasting."""

    @abstractmethod
    def reduce(self, g: Element) -> Element:
        """Merge the last axis: (…, n) → (…). Of equal elements the one with the smallest id wins."""

    @abstractmethod
    def others(self, g: Element) -> Element:
        """Merge, for each position of the last axis, all the *other* positions: (…, n) → (…, n)."""

    @abstractmethod
    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        """Merge by an index map: (…, n) with index (n,) or (…, n) → (…, size)."""

    @abstractmethod
    def plus(self, a: Element, b: Element) -> Element:
        """Merge two arrays of one shape, elementwise."""

    def plus_over(self, a: Element, b: Element) -> Element:
        """Merge two arrays as `plus` does; the first one's memory may be used for the result."""
        return self.plus(a, b)

    @abstractmethod
    def plain(self, g: Element) -> Tensor:
        """Give ordinary numbers: batch × shape, or batch × (what one element consists of) × shape."""

    def log2(self, g: Element) -> Tensor:
        """Give log2 of the ordinary numbers' absolute values, in float64, also of those that no float can hold."""
        return self.plain(g).to(torch.float64).abs().log2()

    def seed(self, g: Element, ids: Tensor) -> Element:
        """Prepare a consumer's elements: its scalars are where backpointers now point."""
        del ids
        return g

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        """Carry g (batch × rows × n) back through small Jacobians, own on the diagonal and left · right beside it.

        Of one rank, or where ranks may be taken one by one, it is O(n) for each row: ⊕ over i≠j of λ(l_i) ⊗ g_i, times
        λ(r_j). None leaves it to the kernel, which writes the Jacobians out: n² for each row.

        Args:
            own: rows × n.
            left, right: rows × n × rank.
            g: batch × rows × n elements.
        """
        if left.shape[-1] != 1 and not self.additive:
            return None
        out = self.weigh(own, g)
        for near, far in zip(left.unbind(-1), right.unbind(-1), strict=True):
            out = self.plus(out, self.weigh(far, self.others(self.weigh(near, g))))
        return out

    def softmax(self, p: Callable[[], Tensor], g: Element, *, log: bool) -> Element | None:
        """Carry g (batch × rows × n) back through a softmax p, or its logarithm; None leaves it to `low_rank`.

        `p` makes rows × n probabilities; under `log` anew each time, so that they may be written to.
        """
        del p, g, log
        return None

    def contract(self, weight: Tensor, g: Element) -> Element:
        """Give out[b,i,j] = ⊕_k λ(weight[b,j,k]) ⊗ g[b,i,k], block by block.

        Args:
            weight: b × j × k edge weights.
            g: b × i × k elements.
        """
        batch, rows, inner = g[0].shape
        out = self.zero((batch, rows, weight.shape[1]), g)
        for b, i, j in tiles(batch, rows, weight.shape[1], inner):
            block = self.weigh(weight[b, None, j], tuple(p[b, i, None] for p in g))  # b × i × j × k
            for plane, part in zip(out, self.reduce(block), strict=True):
                plane[b, i, j] = part
        return out

    def contract_over(self, weight: Tensor, g: Element, axes: int) -> Element:
        """Contract g, batch × i × k, where i is over some axes and k over the others: views, copied only if need be."""
        shape = g[0].shape
        sizes, order = (shape[0], prod(shape[1 : 1 + axes]), prod(shape[1 + axes :])), tuple(range(g[0].dim()))
        if g[0].stride(axes) != 1:
            return self.contract(weight, tuple(p.reshape(sizes) for p in g))
        turned = order[:1] + order[1 + axes :] + order[1 : 1 + axes]  # i runs along memory, as it does in the views
        sizes = sizes[0], sizes[2], sizes[1]
        return self.contract(weight, tuple(p.permute(turned).reshape(sizes).transpose(1, 2) for p in g))


def tiles(batch: int, rows: int, columns: int, inner: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut batch × rows × columns into boxes of at most about BLOCK / inner entries."""
    room = max(1, BLOCK // max(1, inner))
    width = min(columns, room)
    height = min(rows, max(1, room // max(1, width)))
    depth = min(batch, max(1, room // max(1, width * height)))
    if 0 in (batch, rows, columns):
        return
    for b in range(0, batch, depth):
        for i in range(0, rows, height):
            for j in range(0, columns, width):
                yield slice(b, b + depth), slice(i, i + height), slice(j, j + width)


def as_is(weight: Tensor) -> Tensor:
    """Lift a weight to itself."""
    return weight


def nonzero(weight: Tensor) -> Tensor:
    """Lift a weight to 1, or to 0 if it is 0."""
    if weight.isnan().any():
        raise NotANumber("a local derivative is NaN")
    return (weight != 0).to(torch.float64)


@dataclass(frozen=True)
class Linear(Carrier):
    """Plain values that are added up, in float64 unless another `kind` is asked for. `transform` is λ on tensors."""

    transform: Callable[[Tensor], Tensor]
    kind: torch.dtype = torch.float64
    points = False

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether values keep their sign."""
        return self.transform is as_is

    def one(self, like: Tensor) -> Element:
        return (torch.ones_like(like, dtype=self.kind),)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return (like[0].new_zeros(shape),)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        w = self.transform(weight).to(self.kind)
        product = w * g[0]
        if not rows.finite(product):  # an absent edge is absent even beside an infinite gradient
            product = torch.where((w == 0) | (g[0] == 0), 0.0, product)
        return (product,)

    def reduce(self, g: Element) -> Element:
        return (g[0].sum(-1),)

    def others(self, g: Element) -> Element:
        return (rows.others(g[0]),)

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        out = g[0].new_zeros(*g[0].shape[:-1], size)
        return (out.scatter_add_(-1, index.expand(g[0].shape), g[0].contiguous()),)

    def plus(self, a: Element, b: Element) -> Element:
        return (a[0] + b[0],)

    def plain(self, g: Element) -> Tensor:
        return g[0]

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        if left.shape[-1] == 1:
            return super().low_rank(own, left, right, g)
        if not rows.finite(left, right, *g):  # parts of a weight that is 0 are not
            return None
        if self.additive:
            return super().low_rank(own, left, right, g)
        found = Scaled(self.transform).low_rank(own, left, right, normalised(g[0].double()))
        return None if found is None else (shifted(*found).to(self.kind),)

    def contract(self, weight: Tensor, g: Element) -> Element:
        w = self.transform(weight).to(self.kind)
        product = torch.matmul(g[0], w.transpose(-1, -2))
        return (product,) if rows.finite(product) else super().contract(weight, g)


def narrow(weight: Tensor, g: Element) -> bool:
    """Tell whether every product, in units of its row's largest, is a normal float64."""
    size = weight.abs()
    high = size.amax() if size.numel() else size.new_zeros(())
    if high.isnan():
        raise NotANumber("a local derivative is NaN")
    small = torch.where(size > 0, size, torch.inf).amin() if size.numel() else high
    lowest = torch.where(g[0] != 0, g[1], INFINITE_EXPONENT).amin(-1)
    spread = (g[1].amax(-1) - lowest).amax() if lowest.numel() else torch.zeros(())
    bound = 2.0 ** (1000 - SAFE_SPREAD)
    return bool(high < bound and (high == 0 or small > 1 / bound) and spread < SAFE_SPREAD)


@dataclass(frozen=True)
class Scaled(Carrier):
    """Signed values that are added up, with an exponent each, so that nothing underflows. `transform` is λ."""

    transform: Callable[[Tensor], Tensor] = as_is
    points = False

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether values keep their sign."""
        return self.transform is as_is

    def one(self, like: Tensor) -> Element:
        return normalised(torch.ones_like(like, dtype=torch.float64))

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return like[0].new_zeros(shape), like[1].new_full(shape, ZERO_EXPONENT)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return multiply(lifted(self.transform(weight)), g)

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        values, top = aligned(g[0], g[1])
        return normalised(values.sum(-1), top.squeeze(-1))

    def others(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return g
        values, top = aligned(g[0], g[1])
        found = normalised(rows.others(values), top)
        # beside the largest the others may be nothing; what it leaves is merged in its own units
        largest = values.abs().argmax(-1, keepdim=True)
        zero = self.zero((1,) * g[0].dim(), g)
        without = tuple(p.scatter(-1, largest, z.expand(largest.shape)) for p, z in zip(g, zero, strict=True))
        rest = (p.unsqueeze(-1) for p in self.reduce(without))
        return tuple(p.scatter(-1, largest, r) for p, r in zip(found, rest, strict=True))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        index = index.expand(g[0].shape)
        top = g[1].new_full((*g[0].shape[:-1], size), ZERO_EXPONENT).scatter_reduce(-1, index, g[1], "amax")
        values = g[0] * pow2(g[1] - top.gather(-1, index))
        return normalised(torch.zeros_like(top, dtype=values.dtype).scatter_add_(-1, index, values), top)

    def plus(self, a: Element, b: Element) -> Element:
        return self.reduce(tuple(torch.stack(planes, -1) for planes in zip(a, b, strict=True)))

    def plain(self, g: Element) -> Tensor:
        return shifted(g[0], g[1])

    def log2(self, g: Element) -> Tensor:
        return g[0].abs().log2() + g[1]

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        merge = {torch.abs: rows.absolute, nonzero: rows.present}.get(self.transform)
        if merge is None or left.shape[-1] != 2 or not rows.finite(left, right, g[0]):
            return super().low_rank(own, left, right, g)
        return self.plus(self.weigh(own, g), rows.some_at_a_time(merge, self, left.double(), right.double(), g))

    def contract(self, weight: Tensor, g: Element) -> Element:
        w = self.transform(weight)
        if g[0].shape[-1] == 0 or not narrow(w, g):
            return super().contract(weight, g)
        values, top = aligned(g[0], g[1])
        return normalised(torch.matmul(values, w.to(torch.float64).transpose(-1, -2)), top)


@dataclass(frozen=True)
class Extreme(Carrier):
    """Absolute values of which the largest is kept, with the id of the consumer scalar it came from."""

    def one(self, like: Tensor) -> Element:
        mantissa, exponent = normalised(torch.ones_like(like, dtype=torch.float64))
        return mantissa, exponent, torch.full_like(exponent, NO_ID, dtype=torch.int64)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        exponent = like[1].new_full(shape, ZERO_EXPONENT)
        return like[0].new_zeros(shape), exponent, like[2].new_full(shape, NO_ID)

    def seed(self, g: Element, ids: Tensor) -> Element:
        return g[0], g[1], ids.expand(g[0].shape)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        mantissa, exponent = multiply(lifted(weight.abs()), g)
        return mantissa, exponent, g[2].expand(mantissa.shape)

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        values, top = aligned(g[0], g[1])
        best = values.amax(-1, keepdim=True)
        ids = g[2].masked_fill((values < best) | (values == 0), NO_ID).amin(-1)
        return best.squeeze(-1), top.squeeze(-1), ids

    def others(self, g: Element) -> Element:
        # all other positions' maximum is the row's maximum, except at the winner: there it is the second
        best = tuple(p.unsqueeze(-1) for p in self.reduce(g))
        at_best = g[2] == best[2]
        rest = tuple(torch.where(at_best, z, p) for z, p in zip(self.zero((1,), g), g, strict=True))
        second = tuple(p.unsqueeze(-1) for p in self.reduce(rest))
        return tuple(torch.where(at_best, s, b) for s, b in zip(second, best, strict=True))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        index = index.expand(g[0].shape)
        shape = (*g[0].shape[:-1], size)
        top = g[1].new_full(shape, ZERO_EXPONENT).scatter_reduce(-1, index, g[1].contiguous(), "amax")
        values = g[0] * pow2(g[1] - top.gather(-1, index))
        best = values.new_zeros(shape).scatter_reduce(-1, index, values, "amax")
        lost = (values < best.gather(-1, index)) | (values == 0)
        ids = g[2].new_full(shape, NO_ID).scatter_reduce(-1, index, g[2].masked_fill(lost, NO_ID), "amin")
        return best, top, ids

    def plus(self, a: Element, b: Element) -> Element:
        relative = b[0] * pow2(b[1] - a[1])  # b in units of a's exponent; order survives the clamping
        take_b = (relative > a[0]) | ((relative == a[0]) & (b[2] < a[2]))
        return tuple(torch.where(take_b, q, p) for p, q in zip(a, b, strict=True))

    def plain(self, g: Element) -> Tensor:
        return Scaled().plain(g)

    def log2(self, g: Element) -> Tensor:
        return Scaled().log2(g)

    def contract(self, weight: Tensor, g: Element) -> Element:
        if g[0].shape[-1] == 0 or not narrow(weight, g):
            return super().contract(weight, g)
        values, top = aligned(g[0], g[1])  # a linear product cannot underflow now
        best, arg = max_product(values, weight.abs().to(torch.float64))
        mantissa, exponent = normalised(best, top)
        ids = g[2].expand(g[0].shape).gather(-1, arg)
        return mantissa, exponent, ids.masked_fill_(mantissa == 0, NO_ID)


def max_product(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Give max_k a[b,i,k]·w[b,j,k] and the smallest k that reaches it, for non-negative a and w."""
    batch, rows, inner = a.shape
    best = a.new_empty(batch, rows, w.shape[1])
    arg = torch.empty_like(best, dtype=torch.int64)
    for b, i, j in tiles(batch, rows, w.shape[1], inner):
        block = a[b, i, None] * w[b, None, j]
        winner = block.argmax(-1, keepdim=True)  # max(-1) would wake all threads for a dozen numbers
        best[b, i, j], arg[b, i, j] = block.gather(-1, winner).squeeze(-1), winner.squeeze(-1)
    return best, arg


@dataclass(frozen=True)
class Greedy(Carrier):
    """The ordinary gradient, and beside it the consumer scalar with the largest |w · g_u|.

    The planes are those of `Scaled` followed by those of `Extreme`. Not a semiring: at every vertex the
    second part starts again from the first (Algorithm 1 steps to argmax |w(u, v) g_u| with the *ordinary*
    gradient g_u).
    """

    def one(self, like: Tensor) -> Element:
        return (*Scaled().one(like), *Extreme().one(like))

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return (*Scaled().zero(shape, like[:2]), *Extreme().zero(shape, like[2:]))

    def seed(self, g: Element, ids: Tensor) -> Element:
        return g[0], g[1], g[0].abs(), g[1], ids.expand(g[0].shape)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return (*Scaled().weigh(weight, g[:2]), *Extreme().weigh(weight, g[2:]))

    def reduce(self, g: Element) -> Element:
        return (*Scaled().reduce(g[:2]), *Extreme().reduce(g[2:]))

    def others(self, g: Element) -> Element:
        return (*Scaled().others(g[:2]), *Extreme().others(g[2:]))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        return (*Scaled().segment(g[:2], index, size), *Extreme().segment(g[2:], index, size))

    def plus(self, a: Element, b: Element) -> Element:
        return (*Scaled().plus(a[:2], b[:2]), *Extreme().plus(a[2:], b[2:]))

    def plain(self, g: Element) -> Tensor:
        return Scaled().plain(g)

    def contract(self, weight: Tensor, g: Element) -> Element:
        return (*Scaled().contract(weight, g[:2]), *Extreme().contract(weight, g[2:]))


def itself(element: Any) -> Any:
    """Give what is given."""
    return element


@dataclass(frozen=True)
class Semiring:
    """A commutative semiring (K, ⊕, ⊗, 0, 1) with a lift λ from edge weights, on plain numbers.

    Backpropagation under it is g_ℓ = 1, g_v = ⊕ over edges (u, v, k) of λ(w(u, v, k)) ⊗ g_u.
    `carrier` does the same on arrays. An element is a float, or whatever `plus` and `times` work on; `plain` is what
    it comes to, as the carrier's `plain` is of arrays.

    >>> Max.plus(2.0, Max.times(Max.lift(-3.0), Max.one))
    3.0
    """

    name: str
    zero: Any
    one: Any
    plus: Callable[[Any, Any], Any]
    times: Callable[[Any, Any], Any]
    lift: Callable[[float], Any]
    carrier: Carrier
    plain: Callable[[Any], Any] = itself


Sum = Semiring("sum", 0.0, 1.0, operator.add, operator.mul, float, Linear(as_is))
"""The gradient: g_v = Σ w g_u = ∂ℓ/∂v."""

AbsSum = Semiring("abssum", 0.0, 1.0, operator.add, operator.mul, abs, Linear(torch.abs))
"""The total absolute path weight: g_v = Σ |w| g_u."""

Max = Semiring("max", 0.0, 1.0, max, operator.mul, abs, Extreme())
"""The weight of the strongest path: g_v = max |w| g_u, with backpointers."""

Count = Semiring("count", 0.0, 1.0, operator.add, operator.mul, lambda w: float(w != 0), Scaled(nonzero))
"""The number of paths of non-zero weight: g_v = Σ g_u. Exact up to 2^53; where no float can hold it, take the log2."""

SEMIRINGS = {s.name: s for s in (Sum, AbsSum, Max, Count)}


def named(semiring: Semiring | str) -> Semiring:
    """Give a semiring itself, or the one of that name; an unknown name lists the valid ones."""
    if isinstance(semiring, Semiring):
        return semiring
    if semiring not in SEMIRINGS:
        raise UnknownName(f"unknown semiring {semiring!r}; one of {', '.join(SEMIRINGS)}")
    return SEMIRINGS[semiring]
