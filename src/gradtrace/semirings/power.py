"""Power(p): the p-norm of the path weights, between the total of them all and the largest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GradtraceError
from ..semiring import Carrier, Element, Linear, Scaled, Semiring, aligned, lifted, multiply, normalised, pow2

FLOW = Scaled(torch.abs)


def raised(x: Tensor, p: float) -> Tensor:
    """Give x^p for x ≥ 0, by repeated squaring where p is a whole number."""
    if p != int(p) or p > 1024:
        return x.pow(p)
    out, n = None, int(p)
    while n:
        if n & 1:
            out = x if out is None else out * x
        n >>= 1
        x = x * x if n else x
    assert out is not None
    return out


def root(x: Tensor, p: float) -> Tensor:
    """Give x^(1/p) for x ≥ 0, by square roots where p is a power of two."""
    steps = math.log2(p)
    if steps != int(steps):
        return x.pow(1 / p)
    for _ in range(int(steps)):
        x = x.sqrt()
    return x


@dataclass(frozen=True)
class Norm(Carrier):
    """Planes (mantissa, exponent) of (Σ |path weight|^p)^(1/p).

    The root is kept, not the power, so exponents stay those of path weights, and an edge only multiplies.
    In every merge the largest term is 1 before it is raised, so what underflows is too small to count.
    """

    p: float

    def one(self, like: Tensor) -> Element:
        return FLOW.one(like)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return FLOW.zero(shape, like)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return multiply(lifted(weight.abs()), g)

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        values, top = aligned(g[0], g[1])
        return normalised(root(raised(values, self.p).sum(-1), self.p), top.squeeze(-1))

    def others(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return g
        values, top = aligned(g[0], g[1])
        largest = values.argmax(-1, keepdim=True)
        at = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, largest, value=True)
        powers = raised(values, self.p)
        # beside the largest a difference loses one bit at most; the largest is left out of a merge of its own
        rest = normalised(root((powers.sum(-1, keepdim=True) - powers).clamp_(min=0), self.p), top)
        infinite = powers.isinf()
        if infinite.any():  # ∞ - ∞
            (apart,) = Linear(torch.abs).others((powers,))
            rest = normalised(root(apart, self.p), top)
        zero = self.zero((1,), g)
        without = self.reduce(tuple(torch.where(at, z, p) for z, p in zip(zero, g, strict=True)))
        return tuple(torch.where(at, w.unsqueeze(-1), r) for w, r in zip(without, rest, strict=True))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        index = index.expand(g[0].shape)
        shape = (*g[0].shape[:-1], size)
        top = self.zero(shape, g)[1].scatter_reduce(-1, index, g[1].contiguous(), "amax")
        values = g[0] * pow2(g[1] - top.gather(-1, index))
        total = values.new_zeros(shape).scatter_add_(-1, index, raised(values, self.p))
        return normalised(root(total, self.p), top)

    def plus(self, a: Element, b: Element) -> Element:
        return self.reduce(tuple(torch.stack(planes, -1) for planes in zip(a, b, strict=True)))

    def plain(self, g: Element) -> Tensor:
        return FLOW.plain(g)

    def log2(self, g: Element) -> Tensor:
        return FLOW.log2(g)

    def contract(self, weight: Tensor, g: Element) -> Element:
        return super().contract(weight, g)


def Power(p: float) -> Semiring:  # noqa: N802 - a family of semirings, named as its members are
    """Give the semiring (Σ |path weight|^p)^(1/p), p ≥ 1: g_v = (Σ (|w| g_u)^p)^(1/p).

    p = 1 is AbsSum; as p grows it falls towards Max, which it never goes below: with N paths
    Max ≤ Power(p) ≤ N^(1/p) Max. So it is an upper bound on the weight of every path, known without looking for one,
    and the weight of any concrete path says how far off the strongest can be at most (`gradtrace.semirings.gap`).
    It names no path, and it is no gradient: nothing cancels.

    >>> Power(2).plus(3.0, 4.0)
    5.0
    """
    if not 1 <= p < math.inf:
        raise GradtraceError(f"Power(p) needs a p from 1 up to, not including, infinity (that is Max), not {p}")
    name = f"power:{p:g}"
    return Semiring(name, 0.0, 1.0, lambda a, b: _norm(a, b, p), _times, abs, Norm(float(p)))


def _norm(a: float, b: float, p: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == 0 or math.isinf(high) else high * (1 + (low / high) ** p) ** (1 / p)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b
