"""Numbers of any exponent against Python's floats, where those suffice, and exact fractions, where not."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.errors import NotANumber
from gradtrace.semirings.wide import Wide, WideMax, WideSum, larger, plus, times, wide

floats = st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100)


def exact(x: Wide) -> Fraction:
    return Fraction(x.mantissa) * Fraction(2) ** x.exponent


@given(floats, floats)
def test_arithmetic_rounds_as_floats_do(a, b):
    assert float(wide(a)) == a
    assert float(plus(wide(a), wide(b))) == a + b
    assert float(times(wide(a), wide(b))) == a * b
    assert float(larger(wide(a), wide(b))) == (b if abs(b) > abs(a) else a)


@given(st.integers(-(2**26), 2**26), st.integers(-5000, 5000), st.integers(-(2**26), 2**26), st.integers(0, 25))
def test_small_integers_are_exact_at_any_exponent(a, exponent, b, shift):
    x, y = wide(float(a), exponent), wide(float(b), exponent + shift)
    assert exact(plus(x, y)) == exact(x) + exact(y)
    assert exact(times(x, y)) == exact(x) * exact(y)
    assert (x.magnitude > y.magnitude) == (abs(exact(x)) > abs(exact(y)))


def test_numbers_beyond_the_range_of_floats():
    tiny, huge = wide(3.0, -9000), wide(-3.0, 9000)
    assert (float(tiny), float(huge)) == (0.0, -math.inf)
    assert tiny.log2 == math.log2(3) - 9000
    assert times(tiny, huge) == wide(-9.0)
    assert plus(tiny, huge) == huge
    assert wide(0.0).log2 == -math.inf


def test_infinity_is_largest_zero_smallest_and_nan_no_number():
    infinite, zero = wide(math.inf), wide(0.0)
    assert sorted([infinite, wide(-1.0, 99), zero, wide(1.0)], key=lambda x: x.magnitude) == [
        zero,
        wide(1.0),
        wide(-1.0, 99),
        infinite,
    ]
    assert times(infinite, wide(2.0)).magnitude == infinite.magnitude
    assert times(infinite, zero) == zero
    with pytest.raises(NotANumber):
        _ = plus(infinite, wide(-math.inf)).magnitude


def test_the_two_semirings():
    assert (WideSum.lift(-3.0), WideMax.lift(-3.0)) == (wide(-3.0), wide(3.0))
    for k in (WideSum, WideMax):
        x = k.lift(5.0)
        assert k.plus(k.zero, x) == k.times(k.one, x) == x
