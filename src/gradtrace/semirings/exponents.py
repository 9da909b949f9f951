"""Numbers with an exponent of their own: mantissa · 2^exponent, in two tensors, a range that no path leaves.

Mantissas are float64 with |mantissa| in [½, 1), exponents are int32. 0 has an exponent below all others.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import NotANumber

Element: TypeAlias = tuple[Tensor, ...]

ZERO_EXPONENT = -(1 << 29)  # of mantissa 0: below every exponent that a product can reach
INFINITE_EXPONENT = 1 << 27  # of mantissa inf


def pow2(exponent: Tensor) -> Tensor:
    """Give 2^exponent in float64, exactly; below 2^-1022 it is 0, above it stays at 2^1023."""
    return ((exponent.clamp(-1023, 1023).to(torch.int64) + 1023) << 52).view(torch.float64)


def normalised(value: Tensor, exponent: Tensor | int = 0) -> tuple[Tensor, Tensor]:
    """Split value · 2^exponent into a mantissa with |m| in [½, 1) and an int32 exponent."""
    mantissa, shift = torch.frexp(value)
    total = shift + exponent
    total = total.masked_fill(mantissa == 0, ZERO_EXPONENT)
    return mantissa, total.masked_fill_(mantissa.isinf(), INFINITE_EXPONENT).to(torch.int32)


def lifted(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split edge weights into float64 mantissa and exponent; a NaN is an error."""
    if weight.isnan().any():
        raise NotANumber("a local derivative is NaN")
    return normalised(weight.to(torch.float64))


def aligned(mantissa: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the last axis to its largest exponent: (values relative to it, that exponent with size 1)."""
    top = exponent.amax(-1, keepdim=True)
    return mantissa * pow2(exponent - top), top


def multiply(a: Element, b: Element) -> tuple[Tensor, Tensor]:
    """Multiply two (mantissa, exponent) pairs; zero times infinity is zero: an absent edge is absent."""
    product = a[0] * b[0]
    return normalised(torch.nan_to_num(product, nan=0.0, posinf=torch.inf, neginf=-torch.inf), a[1] + b[1])


def shifted(value: Tensor, exponent: Tensor) -> Tensor:
    """Give value · 2^exponent as an ordinary number: 0 or infinite where no float64 holds it."""
    return value * pow2(exponent // 2) * pow2(exponent - exponent // 2)
