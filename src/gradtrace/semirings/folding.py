"""Any carrier from its ⊕ of two arrays: reductions, leave-one-out merges and index maps by folding.

A semiring is served by every kernel as soon as `one`, `zero`, `weigh`, `plus` and `plain` are written; a carrier that
can do better overrides a method. Folding is O(n) applications of ⊕ to n elements, in O(log n) steps of whole arrays.
`make` does it for a semiring of one's own, from functions on tensors. The order in which elements meet is not
defined, so ⊕ has to be associative and commutative, which `axioms` checks on samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from .axioms import check_axioms
from .base import Carrier, Element, Semiring


def each(f: Callable[..., Tensor], *elements: Element) -> Element:
    """Apply a function plane by plane."""
    return tuple(f(*planes) for planes in zip(*elements, strict=True))


class Folded(Carrier):
    """A carrier whose merges are made of `plus`."""

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        while (n := g[0].shape[-1]) > 1:
            half = n // 2
            merged = self.plus(each(lambda p: p[..., :half], g), each(lambda p: p[..., half : 2 * half], g))  # noqa: B023
            g = merged if n % 2 == 0 else each(lambda m, p: torch.cat([m, p[..., -1:]], -1), merged, g)
        return each(lambda p: p.squeeze(-1), g)

    def others(self, g: Element) -> Element:
        levels = [g]  # each merges pairs of the one before
        while levels[-1][0].shape[-1] > 1:
            left, right = self._pairs(levels[-1])
            levels.append(self.plus(left, right))
        rest = self.zero(tuple(levels[-1][0].shape), g)  # the only one has no others
        for level in levels[-2::-1]:
            left, right = self._pairs(level)  # the other of its pair, and all that its pair leaves out
            both = each(lambda a, b: torch.stack([a, b], -1), self.plus(rest, right), self.plus(rest, left))
            rest = each(lambda p: p.flatten(-2)[..., : level[0].shape[-1]], both)  # noqa: B023
        return rest

    def _pairs(self, g: Element) -> tuple[Element, Element]:
        """Give the even and the odd positions, the last odd one being zero where there is none."""
        if g[0].shape[-1] % 2:
            zero = self.zero((*g[0].shape[:-1], 1), g)
            g = each(lambda p, z: torch.cat([p, z], -1), g, zero)
        return each(lambda p: p[..., ::2], g), each(lambda p: p[..., 1::2], g)

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        shape = g[0].shape
        rows = prod(shape[:-1])
        row = size * torch.arange(rows, device=index.device).unsqueeze(-1)
        at, order = (index.expand(shape).reshape(rows, shape[-1]) + row).flatten().sort(stable=True)
        flat = each(lambda p: p.reshape(-1)[order], g)
        while (joined := at[1:] == at[:-1]).any():
            flat, at = self._halved(flat, at, joined)
        out = self.zero((rows * size,), g)
        for plane, values in zip(out, flat, strict=True):
            plane[at] = values
        return each(lambda p: p.reshape(*shape[:-1], size), out)

    def _halved(self, flat: Element, at: Tensor, joined: Tensor) -> tuple[Element, Tensor]:
        """Merge neighbours of one segment, two by two; `joined` tells which are of the segment before them."""
        places = torch.arange(len(at), device=at.device)
        edge = torch.ones(1, dtype=torch.bool, device=at.device)
        start = torch.where(torch.cat([edge, ~joined]), places, 0).cummax(0).values
        kept = ((places - start) % 2 == 0).nonzero().squeeze(-1)
        paired = torch.cat([joined, ~edge])[kept]
        left = kept[paired]
        merged = self.plus(each(lambda p: p[left], flat), each(lambda p: p[left + 1], flat))
        out = each(lambda p: p[kept], flat)
        for plane, values in zip(out, merged, strict=True):
            plane[paired] = values
        return out, at[kept]

    def plus(self, a: Element, b: Element) -> Element:
        """Merge two arrays of one shape, elementwise."""
        raise NotImplementedError


@dataclass(frozen=True)
class Made(Folded):
    """The carrier of a semiring of one's own: float64 planes, and functions on tuples of them."""

    zeros: tuple[float, ...]
    ones: tuple[float, ...]
    merge: Callable[[Element, Element], Element]
    product: Callable[[Element, Element], Element]
    lift: Callable[[Tensor], Element]

    def one(self, like: Tensor) -> Element:
        return tuple(torch.full_like(like, v, dtype=torch.float64) for v in self.ones)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return tuple(p.new_full(shape, v) for p, v in zip(like, self.zeros, strict=True))

    def weigh(self, weight: Tensor, g: Element) -> Element:
        out = self.product(self.lift(weight.to(torch.float64)), g)
        absent = (weight == 0).expand(out[0].shape)  # also beside infinity
        return tuple(torch.where(absent, v, p) for p, v in zip(out, self.zeros, strict=True))

    def plus(self, a: Element, b: Element) -> Element:
        return self.merge(a, b)

    def plain(self, g: Element) -> Tensor:
        return g[0] if len(g) == 1 else torch.stack(g, 1)


def make(
    name: str,
    *,
    zero: float | tuple[float, ...],
    one: float | tuple[float, ...],
    plus: Callable[..., Any],
    times: Callable[..., Any],
    lift: Callable[[Tensor], Any],
) -> Semiring:
    """Make a semiring from functions on tensors, after checking its axioms on samples.

    Args:
        zero, one: the numbers that an element of ⊕'s and ⊗'s neutral element consists of: one, or several.
        plus, times: ⊕ and ⊗, elementwise on float64 tensors, or on tuples of tensors where elements have several parts.
        lift: λ, from a tensor of edge weights.

    Raises:
        BrokenAxiom: an axiom fails on a sample; the message names it and shows the numbers.

    >>> weakest = make("weakest", zero=torch.inf, one=1.0, plus=torch.minimum, times=torch.mul,
    ...                lift=lambda w: torch.where(w == 0, torch.inf, w.abs()))
    >>> weakest.plus(2.0, weakest.times(weakest.lift(-3.0), weakest.one))
    2.0
    """
    single = not isinstance(zero, tuple)

    def tensors(element: Any) -> Any:
        parts = tuple(torch.as_tensor(v, dtype=torch.float64) for v in ((element,) if single else element))
        return parts[0] if single else parts

    def planes(found: Any) -> Element:
        return (found,) if single else tuple(found)

    def number(found: Any) -> Any:
        return float(found) if single else tuple(float(p) for p in found)

    def times_or_zero(a: Any, b: Any) -> Any:
        return zero if zero in (a, b) else number(times(tensors(a), tensors(b)))

    carrier = Made(
        (zero,) if single else zero,  # type: ignore[arg-type]
        (one,) if single else one,  # type: ignore[arg-type]
        lambda a, b: planes(plus(a[0], b[0]) if single else plus(a, b)),
        lambda a, b: planes(times(a[0], b[0]) if single else times(a, b)),
        lambda w: planes(lift(w)),
    )
    made = Semiring(
        name,
        zero,
        one,
        lambda a, b: number(plus(tensors(a), tensors(b))),
        times_or_zero,
        lambda w: number(lift(torch.tensor(w, dtype=torch.float64))),
        carrier,
    )
    check_axioms(made)
    return made
