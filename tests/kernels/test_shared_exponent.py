"""Planes: one exponent for all values, and float64 where float32 is too narrow."""

from __future__ import annotations

import math

import pytest
import torch
from planes import plane

from gradtrace.kernels.shared_exponent import OutOfRange, Plane, aligned, fits, precisely


def test_precisely_runs_again_in_float64_before_it_gives_up():
    seen = []

    def run(g: Plane) -> tuple[Plane, None]:
        seen.append(g.dtype)
        return Plane(g.data, 0, 1.0, -1.0 if g.dtype is torch.float32 or len(seen) > 2 else 1.0), None

    g = plane(torch.ones(1, 2))
    assert precisely(run, g)[0].dtype is torch.float64
    assert seen == [torch.float32, torch.float64]
    with pytest.raises(OutOfRange):
        precisely(run, g)


def test_what_has_come_back_into_range_is_float32_again():
    g = plane(torch.tensor([[2.0**-200, 2.0**-190]], dtype=torch.float64), 7)
    back = fits(g, torch.float32)
    assert back.dtype is torch.float32
    assert (back.data.double() * 2.0**back.exponent).tolist() == (g.data * 2.0**7).tolist()
    assert (back.low, back.high) == (float(back.data.min()), float(back.data.max()))
    assert fits(g, torch.float64) is g
    wide = plane(torch.tensor([[2.0**-200, 1.0]], dtype=torch.float64))
    assert fits(wide, torch.float32) is wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_shift_brings_what_has_strayed_near_1(dtype):
    for value, shift in ((1.0, 0), (2.0**20, 0), (2.0**21, -22), (2.0**-30, 29), (0.0, 0)):
        assert plane(torch.tensor([[value]], dtype=dtype)).shift == shift
    assert Plane(torch.ones(1, 1), 0, math.inf, 1.0).shift == 0


def test_two_planes_are_brought_to_the_larger_ones_unit():
    a, b = plane(torch.tensor([[3.0]]), 5), plane(torch.tensor([[1.0]]), -5)
    assert aligned(a, b) == (1.0, 2.0**-10, 5, False)
    assert aligned(b, a) == (2.0**-10, 1.0, 5, False)
    nothing = plane(torch.zeros(1, 1), 900)
    assert aligned(a, nothing) == (1.0, 1.0, 5, False)
    assert aligned(nothing, b) == (1.0, 1.0, -5, False)
    assert aligned(a, plane(torch.tensor([[1.0]]), -200))[3]  # needs float64
    with pytest.raises(OutOfRange):
        aligned(a, plane(torch.tensor([[1.0]]), -1200))
