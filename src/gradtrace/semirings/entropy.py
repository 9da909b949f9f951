"""Entropy: is the gradient of a scalar concentrated on one path, or spread over many?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from .base import Element, Scaled, Semiring, aligned, lifted, multiply, narrow, normalised, pow2
from .folding import Folded

FLOW = Scaled(torch.abs)
Pair = tuple[float, float]


@dataclass(frozen=True)
class Spread(Folded):
    """Planes (mantissa, exponent, entropy): the total absolute path weight Z, and the entropy H of the paths in bits.

    The expectation semiring keeps (Z, Σ |w| log2 |w|), and takes H as the small difference of two large numbers.
    Here H itself is kept: merging parts of shares q_i = Z_i / Z gives H = Σ q_i (H_i - log2 q_i), in which no term is
    negative. An edge multiplies Z and leaves H. The entropy of what has no path, or infinite weight, is 0.
    """

    points = False

    def one(self, like: Tensor) -> Element:
        mantissa, exponent = FLOW.one(like)
        return mantissa, exponent, torch.zeros_like(mantissa)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return (*FLOW.zero(shape, like[:2]), like[2].new_zeros(shape))

    def weigh(self, weight: Tensor, g: Element) -> Element:
        mantissa, exponent = multiply(lifted(weight.abs()), g[:2])
        return mantissa, exponent, torch.where(_known(mantissa), g[2], 0.0)

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        values, top = aligned(g[0], g[1])
        total = values.sum(-1, keepdim=True)
        entropy = mixed(values, total, g[2]).sum(-1)
        entropy = torch.where(_known(total.squeeze(-1)), entropy, 0.0)
        return (*normalised(total.squeeze(-1), top.squeeze(-1)), entropy)

    def others(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return g
        values, top = aligned(g[0], g[1])
        if not values.isfinite().all():
            return super().others(g)
        # Σ z (H - log2 z) without one term: no term is negative, and beside the largest z no total is small
        largest = values.argmax(-1, keepdim=True)
        terms = values * g[2] - torch.xlogy(values, values) / LOG2
        total, rest = ((x.sum(-1, keepdim=True) - x).clamp_(min=0) for x in (values, terms))
        entropy = torch.where(total > 0, rest / torch.where(total > 0, total, 1.0) + total.log2(), 0.0).clamp_(min=0)
        out = (*normalised(total, top), entropy)
        zero = self.zero((1,) * g[0].dim(), g)
        without = tuple(p.scatter(-1, largest, z.expand(largest.shape)) for p, z in zip(g, zero, strict=True))
        alone = tuple(p.unsqueeze(-1) for p in self.reduce(without))
        return tuple(p.scatter(-1, largest, a) for p, a in zip(out, alone, strict=True))

    def plus(self, a: Element, b: Element) -> Element:
        return self.reduce(tuple(torch.stack(planes, -1) for planes in zip(a, b, strict=True)))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        mantissa, exponent = FLOW.segment(g[:2], index, size)
        index = index.expand(g[0].shape)
        values = g[0] * pow2(g[1] - exponent.gather(-1, index))
        terms = mixed(values, mantissa.gather(-1, index), g[2])
        entropy = torch.zeros_like(mantissa).scatter_add_(-1, index, terms)
        return mantissa, exponent, torch.where(_known(mantissa), entropy, 0.0)

    def plain(self, g: Element) -> Tensor:
        return g[2]

    def contract(self, weight: Tensor, g: Element) -> Element:
        if g[0].shape[-1] == 0 or not narrow(weight, g[:2]):
            return super().contract(weight, g)
        values, top = aligned(g[0], g[1])  # b × i × k
        w = weight.abs().to(torch.float64)
        unit = w.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)  # b × j × 1
        w, (_, shift) = (w / unit).transpose(-1, -2), torch.frexp(unit)
        total = values @ w
        # Σ q (H - log2 q), q = |w| z / total, and both factors relative to their largest: no large logarithms cancel
        terms = (values * g[2] - torch.xlogy(values, values) / LOG2) @ w - values @ (torch.xlogy(w, w) / LOG2)
        some = _known(total)
        safe = torch.where(some, total, 1.0)
        entropy = torch.where(some, terms / safe + safe.log2(), 0.0).clamp(min=0)
        scale = torch.ldexp(unit, -shift).transpose(-1, -2)
        return (*normalised(total * scale, top + shift.transpose(-1, -2)), entropy)


LOG2 = math.log(2)


def mixed(values: Tensor, total: Tensor, entropy: Tensor) -> Tensor:
    """Give q (H - log2 q) for parts of a total, q being a part's share."""
    share = torch.where(_known(total), values / torch.where(_known(total), total, 1.0), 0.0)
    return share * entropy - torch.xlogy(share, share) / LOG2


def _known(total: Tensor) -> Tensor:
    """Tell where there are paths, none of them infinite: where shares mean something."""
    return (total > 0) & total.isfinite()


def _merge(a: Pair, b: Pair) -> Pair:
    total = a[0] + b[0]
    if total == 0 or math.isinf(total):
        return total, 0.0
    shares = [(z / total, h) for z, h in (a, b) if z > 0]
    return total, sum(q * (h - math.log2(q)) for q, h in shares if q > 0)


def _times(a: Pair, b: Pair) -> Pair:
    if a[0] == 0 or b[0] == 0:
        return 0.0, 0.0
    total = a[0] * b[0]
    return total, 0.0 if math.isinf(total) else a[1] + b[1]


Entropy = Semiring("entropy", (0.0, 0.0), (1.0, 0.0), _merge, _times, lambda w: (abs(w), 0.0), Spread(), itemgetter(1))
"""The entropy of the distribution of paths, in bits: H_v = -Σ q log2 q over the paths, q = |weight| / Σ |weight|.

0 is one path; log2 n is n paths of equal weight, so 2^H is how many paths there are in effect. Paths of opposite sign
do not cancel here: a gradient of 0 can have any entropy. It compares paths, not their strength: a scalar of which
nothing depends but one path of weight 1e-300 has entropy 0, as has one without any path.
On plain numbers an element is the pair (Σ |w|, H), of which H is the answer.
"""
