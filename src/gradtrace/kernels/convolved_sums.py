"""Convolutions of positive numbers: p-norms and entropies of what they merge, by PyTorch's own convolutions.

A convolution is linear in each of its two operands, so that Σ (|w| g)^p is one of powers, and
Σ |w| g (h - log2 |w| g) is two: of g (h - log2 g) with |w|, and of g with -|w| log2 |w|. Operands are
taken in units of a power of two, with room above for what underflows below; where that may still
count, the same is done in float64.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.structure import Convolved
from ..semirings.base import Element
from .additive import convolution
from .shared_exponent import OutOfRange, wide
from .sums import Factor, plainly, settled


def convolved(s: Convolved, g: Element, squarings: int | None) -> Element | None:
    """Merge along a convolution: p = 2^squarings, or the entropy beside the total.

    Returns:
        None where numbers span more than one unit of float64 can serve.

    Raises:
        NotANumber: a weight is NaN.
        OutOfRange: something is infinite.
    """
    other = wide(s.other()).abs()
    double = torch.float64 in (other.dtype, g[0].dtype)
    if squarings == 0 and other.dtype is g[0].dtype:
        simple = plainly(convolution(s, g[0], other), terms(s))
        if simple is not None:
            return (simple,)
    for kind in (torch.float64,) if double else (torch.float32, torch.float64):
        found = _in_units(s, tuple(p.to(kind) for p in g), other.to(kind), squarings)
        if found is not None:
            return found
    return None


def terms(s: Convolved) -> int:
    """Give how many edges a scalar of the argument may have at most."""
    sizes = s.sizes
    if not s.to_input:
        return sizes.output[0] * prod((sizes.input if sizes.transposed else sizes.output)[2:])
    return sizes.output[1] // sizes.groups * prod(sizes.kernel[2:])


def _in_units(s: Convolved, g: Element, other: Tensor, squarings: int | None) -> Element | None:
    """Convolve in the precision of the operands; None where that is too narrow."""
    kind, most, power = torch.finfo(g[0].dtype), terms(s), 2 ** (squarings or 0)
    reach = -math.log2(kind.tiny) - 2 - math.log2(most)
    room = 0 if squarings is None else max(0, int(reach / (2 * power)))
    (of_z, z), (of_w, w) = _scaled(g, room, squarings), _scaled((other,), room, squarings)
    total = convolution(s, z[0], w[0])
    least = most * kind.tiny / kind.eps  # what underflowed is less than rounding of what is above
    if squarings is not None and (quick := _settled(total, of_z, of_w, squarings, least)) is not None:
        return (quick,)
    low, high = (float(x) for x in total.aminmax())
    if not high < math.inf:
        raise NotANumber("a local derivative is NaN") if other.isnan().any() else OutOfRange
    some = low > 0
    if low <= least:
        bad = total <= least
        if bool(bad.any()) and _lost(s, g[0] * 2.0**-of_z, other * 2.0**-of_w, bad, power):
            return None
        low = float(torch.where(total > 0, total, torch.inf).min())
    unit = of_z + of_w
    half, rest = 2.0 ** (unit // 2), 2.0 ** (unit - unit // 2)
    if not (low ** (1 / power) * half * rest >= kind.tiny and high ** (1 / power) * half * rest <= kind.max):
        return None
    out = total if squarings is not None else total.clone()
    for _ in range(squarings or 0):
        out.sqrt_()
    for factor in (half, rest) if abs(unit) > _limit(out) else (2.0**unit,):
        out.mul_(factor)
    if squarings is not None:
        return (out,)
    mixed = (convolution(s, z[1], w[0]) + convolution(s, z[0], w[1])).div_(total).add_(total.log2()).clamp_(min=0)
    return out, mixed if some else torch.where(total > 0, mixed, 0.0)


def _settled(total: Tensor, of_z: int, of_w: int, squarings: int, least: float) -> Tensor | None:
    """Take roots, and units away; None where underflow may count, or something is infinite."""
    rows = total.reshape(1, -1, total.shape[-1])
    out = torch.empty_like(rows)
    units = [torch.full((n,), e, dtype=torch.int32) for n, e in zip(rows.shape[1:], (of_z, of_w), strict=True)]
    return None if settled((rows,), units, squarings, least, (out,)) else out.reshape(total.shape)


def _scaled(x: Element, room: int, squarings: int | None) -> tuple[int, tuple[Tensor, ...]]:
    """Give e, and what `Factor.prepared` makes of numbers in units of 2^e, the largest of which is near 2^room."""
    planes = [p.reshape(1, prod(p.shape[:2]), -1).contiguous() for p in x]  # rows enough for several threads
    factor = Factor.of(planes[0], planes[1] if len(planes) > 1 else None, room)
    most = int(factor.exponent.max())
    e = most if most >= -_limit(planes[0]) - room else 0  # of zeros
    factor = replace(factor, scale=torch.full_like(factor.scale, 2.0**-e))
    return e, tuple([p.reshape(x[0].shape) for p in factor.prepared(squarings, x[0].dtype)])


def _limit(x: Tensor) -> int:
    """Give the largest exponent of which both signs are normal numbers."""
    return int(-math.log2(torch.finfo(x.dtype).tiny))


def _lost(s: Convolved, z: Tensor, w: Tensor, bad: Tensor, power: int) -> bool:
    """Tell whether a total that underflow may have changed has any edges."""
    low, of_w = (float(torch.where(x > 0, x, torch.inf).min()) for x in (z, w))
    if min(low, of_w, low * of_w) >= torch.finfo(z.dtype).tiny ** (1 / power) * 2:
        return False
    some = convolution(s, (z > 0).to(torch.float32), (w > 0).to(torch.float32)) > 0
    return bool((bad & some).any())
