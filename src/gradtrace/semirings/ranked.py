"""Carriers of several paths at a time, each with a backpointer: TopK and SignedMax.

An element is a list of *entries* of four planes each: mantissa, exponent, id and entry. An entry is one path's weight;
its backpointer is (id, entry): the consumer scalar that the path goes on through, and which of that scalar's own
entries goes on from there. An entry without a path has mantissa 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..errors import BadArgument
from .base import NO_ID, ZERO_EXPONENT, Element, Extreme, Scaled, Semiring, aligned, lifted, multiply, narrow, tiles
from .folding import Folded, each

WIDTH = 4  # planes of an entry
FLIP = 1 << 30  # beyond every exponent


def entries(g: Element) -> list[Element]:
    """Cut an element into its entries."""
    return [g[i : i + WIDTH] for i in range(0, len(g), WIDTH)]


def joined(found: Sequence[Element]) -> Element:
    """Put entries together."""
    return tuple(plane for entry in found for plane in entry)


class Ranked(Folded):
    """What is common to carriers of entries: all but ⊕ and the number of entries."""

    def no_path(self, shape: tuple[int, ...], like: Element) -> Element:
        """Give an entry that has no path."""
        exponent = like[1].new_full(shape, ZERO_EXPONENT)
        return like[0].new_zeros(shape), exponent, like[2].new_full(shape, NO_ID), like[3].new_zeros(shape)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return joined([self.no_path(shape, like) for _ in entries(like)])  # kernels write into it: none shares memory

    def seed(self, g: Element, ids: Tensor) -> Element:
        return joined([(m, e, ids.expand(m.shape), torch.full_like(n, i)) for i, (m, e, _, n) in enumerate(entries(g))])

    def weigh(self, weight: Tensor, g: Element) -> Element:
        factor = lifted(weight.abs())
        return joined([_weighed(factor, entry) for entry in entries(g)])

    def plain(self, g: Element) -> Tensor:
        return torch.stack([Scaled().plain(entry) for entry in entries(g)], 1)

    def log2(self, g: Element) -> Tensor:
        return torch.stack([Scaled().log2(entry) for entry in entries(g)], 1)


def _first(like: Tensor) -> Element:
    mantissa, exponent, ids = Extreme().one(like)
    return mantissa, exponent, ids, torch.zeros_like(exponent, dtype=torch.int16)


def _weighed(factor: tuple[Tensor, Tensor], entry: Element) -> Element:
    mantissa, exponent = multiply(factor, entry[:2])
    shape = mantissa.shape
    return mantissa, exponent, entry[2].expand(shape), entry[3].expand(shape)


# ---------------------------------------------------------------- the k strongest


def order(m: Tensor, e: Tensor, ids: Tensor) -> Tensor:
    """Give the order along the last axis: strongest first, of equals the smallest id, then the earlier place."""
    found = ids.argsort(dim=-1, stable=True)
    for key in (m, e):
        found = found.gather(-1, key.gather(-1, found).argsort(dim=-1, stable=True, descending=True))
    return found


def select(g: Element, at: Tensor) -> Element:
    """Gather places of the last axis."""
    return each(lambda p: p.gather(-1, at), g)


@dataclass(frozen=True)
class Strongest(Ranked):
    """The k strongest paths, strongest first; of equals the one that the definition of Max prefers."""

    k: int

    def one(self, like: Tensor) -> Element:
        first = _first(like)
        return first + self.no_path(tuple(like.shape), first) * (self.k - 1)

    def _best(self, candidates: Element) -> Element:
        """Take the k strongest of … × candidates, as entries."""
        found = select(candidates, order(*candidates[:3])[..., : self.k])
        columns = [each(lambda p: p.select(-1, i), found) for i in range(found[0].shape[-1])]  # noqa: B023
        blank = self.no_path(tuple(found[0].shape[:-1]), found)
        return joined(columns + [blank] * (self.k - len(columns)))

    def plus(self, a: Element, b: Element) -> Element:
        both = entries(a) + entries(b)
        return self._best(tuple(torch.stack(planes, -1) for planes in zip(*both, strict=True)))

    def reduce(self, g: Element) -> Element:
        n = g[0].shape[-1]
        if n == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        at = order(*g[:3])[..., : self.k]
        return self._best(self._short([select(entry, at) for entry in entries(g)]))

    def _short(self, lists: Sequence[Element]) -> Element:
        """Join what can be among the k strongest of some lists: … × lists, which are in the order of their heads.

        Before entry s of list r come the s before it and the heads of the r lists before it, so r + s < k.
        """
        kept = [each(lambda p: p[..., : self.k - s], entry) for s, entry in enumerate(lists)]  # noqa: B023
        return tuple(torch.cat(planes, -1) for planes in zip(*kept, strict=True))

    def contract(self, weight: Tensor, g: Element) -> Element:
        heads = g[:2]
        if g[0].shape[-1] == 0 or not narrow(weight, heads):
            return super().contract(weight, g)
        values, _ = aligned(*heads)
        size = weight.abs().to(torch.float64)
        batch, rows, inner = values.shape
        out = self.zero((batch, rows, weight.shape[1]), g)
        lists = entries(each(lambda p: p.expand(values.shape), g))
        for b, i, j in tiles(batch, rows, weight.shape[1], inner):
            products = values[b, i, None] * size[b, None, j]  # b × i × j × inner
            at = leading(products, lists[0][2][b, i, None], self.k)
            factor = lifted(size[b, None, j].expand(products.shape).gather(-1, at))
            found = []
            for entry in lists:
                picked = each(lambda p: p[b, i, None].expand(products.shape).gather(-1, at), entry)  # noqa: B023
                found.append(_weighed(factor, picked))
            for plane, part in zip(out, self._best(self._short(found)), strict=True):
                plane[b, i, j] = part
        return out


def leading(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """Give the places of the k largest values of the last axis, in order; of equals the smallest id."""
    n = values.shape[-1]
    k = min(k, n)
    top, at = values.topk(k, -1)
    last = top[..., -1:]
    crowded = (values >= last).sum(-1) > k  # more than k reach the last place: topk takes any of them
    tied = (top[..., 1:] == top[..., :-1]) & (top[..., 1:] > 0)
    if (crowded & (last.squeeze(-1) > 0)).any() or tied.any():
        by_id = ids.expand(values.shape).argsort(dim=-1, stable=True)
        found = values.gather(-1, by_id).argsort(dim=-1, stable=True, descending=True)[..., :k]
        at = by_id.gather(-1, found)
    return at


def TopK(k: int) -> Semiring:  # noqa: N802 - a family of semirings, named as its members are
    """Give the semiring of the k strongest paths: g_v = the k largest of |w| g_u, over all edges and all k of each u.

    `trace.paths(parameter, index, k=10)` finds the paths themselves. TopK(1) is Max. The paths are distinct, but often
    differ in one edge only: k strongest paths are not k independent explanations, and together they may carry little of
    the gradient. On plain numbers an element is a tuple of at most k weights, and comes
    to k of them, the rest 0.

    >>> TopK(2).plus((3.0, 1.0), (2.0,))
    (3.0, 2.0)
    """
    if not (isinstance(k, int) and 1 <= k <= 1024):
        raise BadArgument(f"TopK(k) needs a whole number k from 1 to 1024, not {k!r}")

    def top(weights: list[float]) -> tuple[float, ...]:
        return tuple(sorted(weights, reverse=True)[:k])

    return Semiring(
        f"topk:{k}",
        (),
        (1.0,),
        lambda a, b: top([*a, *b]),
        lambda a, b: top([x * y for x in a for y in b]),
        lambda w: (abs(w),) if w else (),
        Strongest(k),
        lambda weights: weights + (0.0,) * (k - len(weights)),
    )


# ---------------------------------------------------------------- the most positive and the most negative


@dataclass(frozen=True)
class Extremes(Ranked):
    """Two entries: the most positive path weight, and the most negative one times -1, so that both are maxima.

    An edge of negative weight swaps them, before anything is merged.
    """

    def one(self, like: Tensor) -> Element:
        mantissa, *rest = _first(like)
        return (mantissa, *rest, -mantissa, *rest)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        high, low = entries(super().weigh(weight, g))
        negative = (weight < 0).expand(high[0].shape)
        swapped = joined([low, high])
        return each(lambda p, q: torch.where(negative, q, p), joined([high, low]), swapped)

    def plus(self, a: Element, b: Element) -> Element:
        out = []
        for p, q in zip(entries(a), entries(b), strict=True):
            second = _above(q, p)
            out.append(each(lambda x, y: torch.where(second, y, x), p, q))  # noqa: B023
        return joined(out)

    def plain(self, g: Element) -> Tensor:
        high, low = (Scaled().plain(entry) for entry in entries(g))
        return torch.stack([high, -low], 1)


def _above(p: Element, q: Element) -> Tensor:
    """Tell where p is the larger as a signed number, or is preferred among equals; no path is below all."""
    a, b = _height(p), _height(q)
    equal = (a == b) & (p[0] == q[0])
    return (a > b) | ((a == b) & (p[0] > q[0])) | (equal & (p[2] < q[2]))


def _height(entry: Element) -> Tensor:
    """Give a key of the sign and the exponent; numbers of one key compare by their mantissas."""
    exponent = entry[1].to(torch.int64)
    below = torch.where(entry[0] < 0, -exponent - FLIP, -4 * FLIP)
    return torch.where(entry[0] > 0, exponent + FLIP, below)


NOTHING = (-math.inf, math.inf)  # (most positive, most negative) of no path at all
Interval = tuple[float, float]


def _hull(a: Interval, b: Interval) -> Interval:
    return max(a[0], b[0]), min(a[1], b[1])


def _products(a: Interval, b: Interval) -> Interval:
    if NOTHING in (a, b):
        return NOTHING
    found = [(x * y, x * y) for x in a for y in b]
    return reduce(_hull, found)


def _ends(found: Interval) -> Interval:
    return (0.0, 0.0) if found == NOTHING else found


SignedMax = Semiring(
    "signedmax", NOTHING, (1.0, 1.0), _hull, _products, lambda w: (w, w) if w else NOTHING, Extremes(), _ends
)
"""The most positive and the most negative path weight: g_v = (max, min) over the edges of w times either end of g_u's.

An edge of negative weight swaps the two before the merge: edges [1, -1] into (1, 1) and (1, -10) give (10, -1).
Where all paths have one sign, the weaker end is the path nearest to 0; a result of 0 is no path at all. It does not
tell how much of either sign there is: one strong path up may face a thousand weak ones down.
On plain numbers an element is the pair (max, min), and (-inf, inf) where there is no path, which comes to (0, 0).
"""
