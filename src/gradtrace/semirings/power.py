"""Power(p): the p-norm of the path weights, between the total of them all and the largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from ..errors import BadArgument, NotANumber
from .base import BLOCK, INFINITE_EXPONENT, ZERO_EXPONENT, Carrier, Element, Linear, Scaled, Semiring, multiply
from .base import pow2 as wide_pow2
from .rows import term_by_term

FLOW = Scaled(torch.abs)


def raised(x: Tensor, p: float) -> Tensor:
    """Give x^p for x ≥ 0, by repeated squaring where p is a whole number."""
    if p != int(p) or p > 1024:
        return x.pow(p)
    out, n = None, int(p)
    if n & (n - 1) == 0 and n > 1:  # squares only: in one piece of memory
        out = x * x
        for _ in range(n.bit_length() - 2):
            out.mul_(out)
        return out
    while n:
        if n & 1:
            out = x if out is None else out * x
        n >>= 1
        x = x * x if n else x
    assert out is not None
    return out


def root(x: Tensor, p: float) -> Tensor:
    """Turn x ≥ 0 into x^(1/p), in place where p is a power of two, by square roots."""
    steps = math.log2(p)
    if steps != int(steps):
        return x.pow(1 / p)
    for _ in range(int(steps)):
        x.sqrt_()
    return x


def pow2(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Give 2^exponent, exactly; 0 below the normal range. May overwrite the exponents."""
    if dtype == torch.float64:
        return wide_pow2(exponent)
    return exponent.clamp_(-127, 127).add_(127).bitwise_left_shift_(23).view(torch.float32)


def aligned(g: Element) -> tuple[Tensor, Tensor]:
    """Bring the last axis to its largest exponent: (values relative to it, that exponent with size 1)."""
    top = g[1].amax(-1, keepdim=True)
    return pow2(g[1] - top, g[0].dtype).mul_(g[0]), top


def normalised(value: Tensor, exponent: Tensor | int = 0) -> Element:
    """Split value · 2^exponent into a mantissa in [½, 1) and an int32 exponent; as `base.normalised`, in place."""
    mantissa, shift = torch.frexp(value)
    shift += exponent
    shift.masked_fill_(mantissa == 0, ZERO_EXPONENT)
    if mantissa.amax() == math.inf if mantissa.numel() else False:
        shift.masked_fill_(mantissa.isinf(), INFINITE_EXPONENT)
    return mantissa, shift


@dataclass(frozen=True)
class Norm(Carrier):
    """Planes (mantissa, exponent) of (Σ |path weight|^p)^(1/p).

    The root is kept, not the power, so exponents stay those of path weights, and an edge only multiplies. In
    every merge the largest term is 1 before it is raised, so what underflows is too small to count; a matrix
    product has no such term in every entry, so the entries in which underflow might count are done again.
    Mantissas are float64 for a model in float64, and float32 otherwise: all terms are positive, so each call adds
    about 1e-7 of relative error, and the root divides what it finds by p.
    """

    p: float
    points = False

    def one(self, like: Tensor) -> Element:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return normalised(torch.ones_like(like, dtype=dtype))

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return FLOW.zero(shape, like)

    def weigh(self, weight: Tensor, g: Element) -> Element:
        w = sizes(weight, g[0].dtype)
        low, high = (1e-30, 1e30) if w.dtype == torch.float32 else (1e-290, 1e290)
        if bool(((w < low) & (w > 0)).any()) or not bool((w < high).all()):
            return multiply(normalised(w), g)
        product = w * g[0]  # beside an infinite mantissa 0 has to stay 0
        if product.isnan().any():
            product.nan_to_num_(nan=0.0, posinf=math.inf)
        return normalised(product, g[1])

    def reduce(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return self.zero(tuple(g[0].shape[:-1]), g)
        values, top = aligned(g)
        return normalised(root(raised(values, self.p).sum(-1), self.p), top.squeeze(-1))

    def others(self, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return g
        values, top = aligned(g)
        largest = values.argmax(-1, keepdim=True)
        powers = raised(values, self.p)
        # beside the largest a difference loses one bit at most; the largest is left out of a merge of its own
        rest = powers.sum(-1, keepdim=True) - powers
        if rest.isnan().any():  # ∞ - ∞
            (rest,) = Linear(torch.abs).others((powers,))
        out = normalised(root(rest.clamp_(min=0), self.p), top)
        zero = self.zero((1,) * g[0].dim(), g)
        without = tuple(p.scatter(-1, largest, z.expand(largest.shape)) for p, z in zip(g, zero, strict=True))
        alone = tuple(p.unsqueeze(-1) for p in self.reduce(without))
        return tuple(p.scatter(-1, largest, a) for p, a in zip(out, alone, strict=True))

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        index = index.expand(g[0].shape)
        shape = (*g[0].shape[:-1], size)
        top = self.zero(shape, g)[1].scatter_reduce(-1, index, g[1].contiguous(), "amax")
        values = g[0] * pow2(g[1] - top.gather(-1, index), g[0].dtype)
        total = values.new_zeros(shape).scatter_add_(-1, index, raised(values, self.p))
        return normalised(root(total, self.p), top)

    def plus(self, a: Element, b: Element) -> Element:
        top = torch.maximum(a[1], b[1])
        powers = [raised(m * pow2(e - top, m.dtype), self.p) for m, e in (a, b)]
        return normalised(root(powers[0] + powers[1], self.p), top)

    def plain(self, g: Element) -> Tensor:
        return FLOW.plain(g)

    def log2(self, g: Element) -> Tensor:
        return g[0].to(torch.float64).log2() + g[1]

    def contract(self, weight: Tensor, g: Element) -> Element:
        if g[0].shape[-1] == 0:
            return super().contract(weight, g)
        values, top = aligned(g)  # b × i × k, at most 1
        w = sizes(weight, values.dtype)
        unit = torch.frexp(w.amax(-1, keepdim=True))[1].clamp_(-100, 100)  # b × j × 1
        total = raised(values, self.p) @ raised(w * pow2(-unit, w.dtype), self.p).transpose(-1, -2)
        # a row or a column of nothing gives nothing; elsewhere terms may have underflowed
        some = (values.amax(-1, keepdim=True) > 0) & (w.amax(-1, keepdim=True) > 0).transpose(-1, -2)
        redo = (some & ~(total > least(total.dtype) * w.shape[-1])) | total.isinf()
        out = normalised(root(total, self.p), top + unit.transpose(-1, -2))
        self._again(out, redo, lambda b, i, j: self.weigh(weight[b, j], tuple(p[b, i] for p in g)), w.shape[-1])
        return out

    def _again(self, out: Element, redo: Tensor, terms: Callable[..., Element], size: int) -> None:
        """Merge the terms of some entries of an array one entry at a time; `terms` gives entries × size."""
        for some in redo.nonzero().split(max(1, BLOCK // max(1, size))):
            at = some.unbind(-1)
            for plane, values in zip(out, self.reduce(terms(*at)), strict=True):
                plane[at] = values

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        """Go back through a softmax (rank 1) or a layer norm (rank 2) without writing its Jacobian out.

        For even p, Σ_i g_i^p (l_i · r_j)^p is a polynomial in r_j: O(n p) for each row, not n². Its terms can
        cancel, where l_i · r_j is near 0 for all i that matter: those entries are done again.
        """
        if left.shape[-1] == 1:
            return self._rank_one(own, left[..., 0], right[..., 0], g)
        if self.p == 1:
            found = FLOW.low_rank(own, left, right, (g[0].double(), g[1]))
            return None if found is None else normalised(found[0].to(g[0].dtype), found[1])
        p = int(self.p)
        if left.shape[-1] != 2 or p != self.p or p % 2 or p > 16:
            return None
        values, top = aligned(g)
        powers = raised(values.double(), p)  # batch × rows × n
        unit, reach = (w.double().abs().amax(d, keepdim=True) for w, d in ((left, (-1, -2)), (right, -1)))
        some = (powers.amax(-1, keepdim=True) > 0) & (unit > 0).squeeze(-1) & (reach > 0).squeeze(-1)
        unit, reach = (torch.where(x > 0, x, 1.0) for x in (unit, reach))
        ways = torch.tensor([comb(p, k) for k in range(p + 1)], dtype=torch.float64)
        of_left = _monomials(left.double() / unit, p) * ways  # rows × n × (p + 1)
        of_right = _monomials(right.double() / reach, p)
        total, size = (
            torch.einsum("rjk,brk->brj", r, torch.einsum("bri,rik->brk", powers, s))
            for r, s in ((of_right, of_left), (of_right.abs(), of_left.abs()))
        )
        total = total - powers * (of_left * of_right).sum(-1)
        scale, shift = normalised((unit * reach).squeeze(-1))
        rest = normalised((root(total.clamp(min=0), p) * scale).to(values.dtype), top + shift)
        noise = 1e-6 if values.dtype == torch.float64 else 1e-9
        redo = some & ((total <= noise * size) | (size < 1e-250) | ~total.isfinite())
        return self.plus(self.weigh(own, g), term_by_term(self, rest, redo, left, right, g))

    def _rank_one(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        """Σ_{i≠j} (l_i g_i)^p is the row's sum without one term; None where plain numbers would underflow."""
        values, top = aligned(g)
        near, far, straight = (sizes(w, values.dtype) for w in (left, right, own))
        if not all(moderate(x) for x in (values, near, far, straight)):
            return None
        near = near * values
        unit = near.amax(-1, keepdim=True)
        unit = torch.where(unit > 0, unit, 1.0)
        powers = raised(near.div_(unit), self.p)
        largest = powers.argmax(-1, keepdim=True)
        rest = powers.sum(-1, keepdim=True) - powers
        # what the largest leaves is merged by itself: a difference would cancel
        without = near.scatter(-1, largest, 0.0)
        second = without.amax(-1, keepdim=True)
        tail = raised(without.div_(torch.where(second > 0, second, 1.0)), self.p).sum(-1, keepdim=True)
        beside = root(rest.clamp_(min=0), self.p)
        beside.scatter_(-1, largest, root(tail, self.p) * second)
        beside.mul_(unit).mul_(far)
        straight = straight * values
        high = torch.maximum(beside, straight)
        low = torch.minimum(beside, straight).div_(high).nan_to_num_(nan=0.0)
        return normalised(root(raised(low, self.p).add_(1), self.p).mul_(high), top)


def moderate(x: Tensor) -> bool:
    """Tell whether products of a few of these numbers stay within their type's range."""
    reach = 2.0**-40 if x.dtype == torch.float32 else 2.0**-250
    return bool((x < 1 / reach).all()) and not bool(((x < reach) & (x > 0)).any())


def _monomials(x: Tensor, p: int) -> Tensor:
    """Give x_0^(p-k) x_1^k for k = 0 … p, x being … × 2."""
    powers = torch.arange(p + 1)
    return x[..., :1] ** (p - powers) * x[..., 1:] ** powers


def sizes(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Give absolute edge weights; a NaN is an error."""
    if weight.isnan().any():
        raise NotANumber("a local derivative is NaN")
    return weight.abs().to(dtype)


def least(dtype: torch.dtype) -> float:
    """Give what a sum has to be above so that a term that underflowed is less than rounding."""
    kind = torch.finfo(dtype)
    return kind.tiny / kind.eps


def Power(p: float) -> Semiring:  # noqa: N802 - a family of semirings, named as its members are
    """Give the semiring (Σ |path weight|^p)^(1/p), p ≥ 1: g_v = (Σ (|w| g_u)^p)^(1/p).

    p = 1 is AbsSum; as p grows it falls towards Max, which it never goes below: with N paths
    Max ≤ Power(p) ≤ N^(1/p) Max. So it is an upper bound on the weight of every path, known without looking for one,
    and the weight of any concrete path says how far off the strongest can be at most (`gradtrace.semirings.gap`).
    It names no path, and it is no gradient: nothing cancels.

    >>> Power(2).plus(3.0, 4.0)
    5.0
    """
    if not isinstance(p, (int, float)) or not 1 <= p < math.inf:
        raise BadArgument(f"Power(p) needs a p from 1 up to, not including, infinity (that is Max), not {p!r}")
    name = f"power:{p:g}"
    return Semiring(name, 0.0, 1.0, lambda a, b: _norm(a, b, p), _times, abs, Norm(float(p)))


def _norm(a: float, b: float, p: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == 0 or math.isinf(high) else high * (1 + (low / high) ** p) ** (1 / p)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b
