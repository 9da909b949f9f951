"""Numbers of paths by sums, against the reference carrier: whole numbers, so that everything is exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_jacobians import convolutions, integers, recorded_convolution, seeds

import gradtrace
from gradtrace.errors import NotANumber
from gradtrace.jacobians.structure import ClosedRows, Constant, Contraction, LowRank, Sparse, Structure, diagonal
from gradtrace.kernels import counting, native
from gradtrace.kernels.counting import COUNTING
from gradtrace.kernels.reference import pull
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.semirings.base import Count, normalised

some = settings(deadline=None, max_examples=60)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def assert_like_the_reference(s: Structure, g: torch.Tensor) -> None:
    found = counting.pull(s, g)
    assert torch.equal(found, Count.carrier.plain(pull(s, Count.carrier, normalised(g))))


@given(convolutions(), st.booleans(), st.booleans(), st.integers(1, 2), seeds)
@settings(deadline=None, max_examples=120)
def test_convolutions(sizes, to_input, absent, batch, seed):
    """All weights there, or only some."""
    s = recorded_convolution(sizes, to_input, seed, *([integers] if absent else []))
    assert_like_the_reference(s, numbers(seed + 2, batch, *sizes.output))


@given(st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]), seeds)
@some
def test_norms_over_places_of_which_some_may_meet(n, kind, seed):
    hat = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)).to(kind)
    if seed % 2 and n > 1:
        hat[1, n // 2], hat[1, 0] = 2.0, -0.5  # 1 + x̂_i x̂_j = 0
    for gamma in (None, torch.tensor(0.0, dtype=kind).expand(1, n)):
        rows = ClosedRows("standard", lambda gamma=gamma: (hat, gamma, torch.ones(3, 1, dtype=kind), 4))
        assert_like_the_reference(LowRank((3, n), (1,), rows), numbers(seed, 2, 3, n))


def test_two_directions_at_right_angles_are_found_and_others_are_not_taken_for_them():
    def rows(*hats: float) -> LowRank:
        hat = torch.tensor([hats]).double()
        return LowRank((1, len(hats)), (1,), ClosedRows("standard", lambda: (hat, None, torch.ones(1, 1).double(), 4)))

    for hats, meet in (((2.0, 1.0, -0.5), True), ((2.0, 1.0, -0.5000001), False), ((0.0, 5.0, 1.0), False)):
        s = rows(*hats)
        _, left, right = s.factors()
        assert bool(counting._meeting(s, left, right) & native.MEET) is meet
        assert_like_the_reference(s, numbers(1, 1, 1, len(hats)))


FEW = [0.0, 1.0, -2.0, 0.5, 3.0, math.inf, math.nan]


@given(st.integers(1, 70), st.sampled_from([torch.float32, torch.float64]), st.integers(2, len(FEW)), seeds)
@some
def test_which_products_of_two_sides_may_vanish(n, kind, many, seed):
    """Flags for all pairs of a row: lines and perpendiculars that meet, sides that are 0, numbers that are none."""
    random = torch.Generator().manual_seed(seed)
    sides = torch.tensor(FEW[:many])[torch.randint(many, (4, 2, 1, n), generator=random)].double()
    if seed % 3:  # what meets now does so by accident
        sides = sides + 1e-3 * torch.rand(sides.shape, generator=random, dtype=torch.float64)
    a, b, c, d = sides = sides.to(kind)
    flags = native.meeting([a, b], [c, d])
    x, y, z, w = (t.double().unsqueeze(axis) for t, axis in ((a, -1), (b, -1), (c, -2), (d, -2)))
    some_side = ((x != 0) | (y != 0)) & ((z != 0) | (w != 0))
    size = (x * z).abs() + (y * w).abs()
    there = some_side & ((x * z + y * w).abs() <= 1e-15 * size)
    surely_not = (x * z + y * w).abs() > 1e-12 * size
    none = sides.isnan().any(0)
    assert bool(flags & native.NAN) == bool(none.any())
    if not none.any() and not sides.isinf().any():
        assert bool(flags & native.ABSENT) == bool((((a == 0) & (b == 0)) | ((c == 0) & (d == 0))).any())
        assert not there.any() or flags & native.MEET
        assert not flags & native.MEET or not (surely_not | ~some_side).all()


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4), st.booleans(), seeds)
@some
def test_softmaxes_some_of_whose_probabilities_are_0_or_1(p, log, seed):
    given_ = torch.tensor([p, p[::-1]])
    s = LowRank((2, 4), (1,), ClosedRows("log_softmax" if log else "softmax", lambda: (given_,)))
    assert_like_the_reference(s, numbers(seed, 2, 2, 4))


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_weight(value):
    weight = Constant(value, (2, 3), torch.float32, torch.device("cpu"))
    assert_like_the_reference(diagonal((2, 3), (3,), weight), numbers(1, 2, 2, 3))


def test_more_than_can_be_told_apart_are_still_right_to_rounding():
    """2^60 paths beside one: a difference of sums would leave nothing of that."""
    s = LowRank((3,), (0,), lambda: (torch.zeros(3), (torch.ones(3),), (torch.ones(3),)))
    found = counting.pull(s, torch.tensor([[2.0**60, 1.0, 2.0]]).double())
    assert found[0, 0] == 3


def test_more_than_a_float64_holds_is_out_of_range():
    with pytest.raises(OutOfRange):
        COUNTING.plain((torch.tensor([math.inf, 1.0]),))


def test_a_tape_with_more_paths_than_a_float64_holds_gives_their_logarithm():
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with gradtrace.record() as tape:
        y = x
        for _ in range(1100):
            y = (y + y) / 2
    assert tape.grad(y, [x], Count, log2=True)[0] == 1100


@pytest.mark.parametrize(
    "structure",
    [
        diagonal((2,), (2,), lambda: torch.tensor([1.0, math.nan])),
        Contraction("i", "k", (2,), (1,), "ki", lambda: torch.tensor([[math.nan, 0.0]])),
        Sparse(lambda: (torch.tensor([0]), torch.tensor([0]), torch.tensor([math.nan])), (1, 2, 1), (1, 1, 1)),
        LowRank((2,), (0,), lambda: (torch.ones(2), (torch.full((2,), math.nan),) * 2, (torch.ones(2),) * 2)),
        LowRank((2,), (0,), lambda: (torch.ones(2), (torch.full((2,), math.nan),), (torch.ones(2),))),
    ],
)
def test_a_derivative_that_is_no_number_is_an_error(structure):
    with pytest.raises(NotANumber):
        counting.pull(structure, torch.ones(1, 2).double())
