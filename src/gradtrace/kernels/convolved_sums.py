"""Convolutions of positive numbers: p-norms and entropies of what they merge, by PyTorch's own convolutions.

A convolution is linear in each of its two operands, so that Σ (|w| g)^p is one of powers, and
Σ |w| g (h - log2 |w| g) is two: of g (h - log2 g) with |w|, and of g with -|w| log2 |w|. Operands are
taken in units of a power of two, with room above for what underflows below; where that may still
count, the same is done in float64.
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.structure import Convolved
from ..semirings.base import Element
from .additive import convolution
from .shared_exponent import OutOfRange, wide


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
    (z, of_z), (w, of_w) = _scaled(g[0], room), _scaled(other, room)
    total = convolution(s, _raised(z, squarings), _raised(w, squarings))
    # what underflowed is less than rounding of such a total
    bad = total <= most * kind.tiny / kind.eps
    if bool(bad.any()) and _lost(s, z, w, bad, power):
        return None
    out = total
    for _ in range(squarings or 0):
        out = out.sqrt()
    unit, low, high = of_z + of_w, float(torch.where(total > 0, out, torch.inf).min()), float(out.max())
    half, rest = 2.0 ** (unit // 2), 2.0 ** (unit - unit // 2)
    if not (low * half * rest >= kind.tiny and high * half * rest <= kind.max):
        return None
    out = out * half * rest
    if squarings is not None:
        return (out,)
    mixed = convolution(s, z * g[1].reshape(z.shape) + _surprise(z), w) + convolution(s, z, _surprise(w))
    return out, torch.where(total > 0, mixed / total + total.log2(), 0.0).clamp_(min=0)


def _scaled(x: Tensor, room: int) -> tuple[Tensor, int]:
    """Bring the largest near 2^room: (x / 2^e, e).

    Raises:
        NotANumber, OutOfRange: it is NaN, or infinite.
    """
    most = float(x.max())
    if math.isnan(most):
        raise NotANumber("a local derivative is NaN")
    if math.isinf(most):
        raise OutOfRange
    e = max(-_limit(x), min(_limit(x), math.frexp(most)[1] - room)) if most else 0
    return x * 2.0**-e, e


def _limit(x: Tensor) -> int:
    """Give the largest exponent of which both signs are normal numbers."""
    return int(-math.log2(torch.finfo(x.dtype).tiny))


def _raised(x: Tensor, squarings: int | None) -> Tensor:
    for _ in range(squarings or 0):
        x = x * x
    return x


def _surprise(x: Tensor) -> Tensor:
    """Give -x log2 x."""
    return torch.xlogy(x, x).mul_(-1 / math.log(2))


def _lost(s: Convolved, z: Tensor, w: Tensor, bad: Tensor, power: int) -> bool:
    """Tell whether a total that underflow may have changed has any edges."""
    low, of_w = (float(torch.where(x > 0, x, torch.inf).min()) for x in (z, w))
    if min(low, of_w, low * of_w) >= torch.finfo(z.dtype).tiny ** (1 / power) * 2:
        return False
    some = convolution(s, (z > 0).to(torch.float32), (w > 0).to(torch.float32)) > 0
    return bool((bad & some).any())
