"""Floats that cannot underflow: the numbers in which the explicit scalar graph compares paths.

A path multiplies hundreds of small factors. A `Wide` rounds as a float does, so that equal products stay
equal, but its exponent is an integer of any size. (A logarithm would not underflow either, but rounding
would break ties.) `WideSum` and `WideMax` are the semirings Sum and Max on such numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import NotANumber


@dataclass(frozen=True, slots=True)
class Wide:
    """mantissa · 2^exponent with |mantissa| in [½, 1), or a mantissa of 0 or ±inf."""

    mantissa: float
    exponent: int

    @property
    def magnitude(self) -> tuple[float, float]:
        """Give a key that sorts by absolute value."""
        size = abs(self.mantissa)
        if math.isnan(size):
            raise NotANumber("infinite gradients of opposite sign meet: their sum is NaN")
        if size == 0 or size == math.inf:
            return (math.inf if size else -math.inf), size
        return self.exponent, size

    @property
    def log2(self) -> float:
        """Give log2 of the absolute value; -inf for 0."""
        return math.log2(abs(self.mantissa)) + self.exponent if self.mantissa else -math.inf

    def __float__(self) -> float:
        """Round to a float: 0 or ±inf beyond its range."""
        try:
            return math.ldexp(self.mantissa, self.exponent)
        except OverflowError:
            return math.copysign(math.inf, self.mantissa)


def wide(value: float, exponent: int = 0) -> Wide:
    """Split value · 2^exponent.

    >>> wide(6.0)
    Wide(mantissa=0.75, exponent=3)
    """
    mantissa, shift = math.frexp(value)
    return Wide(mantissa, exponent + shift)


def plus(a: Wide, b: Wide) -> Wide:
    """Add, rounding as floats do."""
    if a.mantissa == 0 or b.mantissa == 0:
        return b if a.mantissa == 0 else a
    top = max(a.exponent, b.exponent)
    return wide(math.ldexp(a.mantissa, a.exponent - top) + math.ldexp(b.mantissa, b.exponent - top), top)


def times(a: Wide, b: Wide) -> Wide:
    """Multiply, rounding as floats do; 0 times infinity is 0: what has no gradient passes none on."""
    if a.mantissa == 0 or b.mantissa == 0:
        return Wide(0.0, 0)
    return wide(a.mantissa * b.mantissa, a.exponent + b.exponent)


def larger(a: Wide, b: Wide) -> Wide:
    """Give the larger in absolute value; the first of equals."""
    return b if b.magnitude > a.magnitude else a


@dataclass(frozen=True)
class WideSemiring:
    """The five things that a pass over a graph needs of a semiring: 0, 1, ⊕, ⊗ and the lift λ."""

    plus: Callable[[Wide, Wide], Wide]
    lift: Callable[[float], Wide]
    times: Callable[[Wide, Wide], Wide] = times
    zero: Wide = Wide(0.0, 0)
    one: Wide = Wide(0.5, 1)


WideSum = WideSemiring(plus, wide)
WideMax = WideSemiring(larger, lambda weight: wide(abs(weight)))
