"""Rows of low rank against their Jacobians written out: signed sums, absolute sums and numbers of edges.

Oracle: Σ over i of λ(J_ij) g_i with J's entries as Fractions of the factors, so nothing rounds and nothing underflows.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from checks import leaf, recorded, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import AbsSum, Sum, record
from gradtrace.kernels import reference
from gradtrace.semirings import Graded, Power, Semiring, Through
from gradtrace.semirings.base import Carrier, Count, Element, Scaled, normalised
from gradtrace.semirings.rows import RUN, others
from gradtrace.semirings.states import States

UNIT = Fraction(1, 2**52)
some = settings(deadline=None, max_examples=60)

numbers = st.one_of(st.integers(-2, 2).map(float), st.floats(-4, 4, allow_subnormal=False))
exponents = st.sampled_from([0, 0, 0, 1, -30, -900, 2000])


Row = tuple[Tensor, Tensor, Tensor, Element]  # own, left and right (1 × n and 1 × n × 2), g (1 × 1 × n)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    n = draw(st.integers(1, 9))
    own, mantissa = (torch.tensor([[draw(numbers) for _ in range(n)]]).double() for _ in range(2))
    left, right = (torch.tensor([[[draw(numbers) for _ in range(2)] for _ in range(n)]]).double() for _ in range(2))
    return own, left, right, normalised(mantissa[None], torch.tensor([[[draw(exponents) for _ in range(n)]]]))


def fractions(g: Element) -> list[Fraction]:
    both = zip(*(p.flatten().tolist() for p in g), strict=True)
    return [Fraction(m) * Fraction(2) ** (e if m else 0) for m, e in both]


def exact(row: Row) -> tuple[list[list[Fraction]], list[list[Fraction]], list[Fraction]]:
    """Give the Jacobian (J[i][j]), what its entries amount to before their ranks cancel, and g."""
    own, left, right = (t[0].tolist() for t in row[:3])
    n = range(len(own))
    parts = [[[Fraction(left[i][r]) * Fraction(right[j][r]) for r in range(2)] for j in n] for i in n]
    for i in n:
        parts[i][i] = [Fraction(own[i])]
    entries, sizes = ([[sum(map(f, p), Fraction(0)) for p in line] for line in parts] for f in (Fraction, abs))
    return entries, sizes, fractions(row[3])


def found(carrier: Carrier, row: Row) -> list[Fraction]:
    out = carrier.low_rank(*row)
    assert out is not None
    return fractions(out)


def positive(row: Row) -> Row:
    return (*row[:3], (row[3][0].abs(), row[3][1]))


@given(rows())
@some
def test_signed_sums_are_right_to_rounding_of_their_terms(row):
    j, sizes, g = exact(row)
    for x, value in enumerate(found(Scaled(), row)):
        wanted = sum(j[i][x] * g[i] for i in range(len(g)))
        assert abs(value - wanted) <= 20 * UNIT * sum(sizes[i][x] * abs(g[i]) for i in range(len(g)))


@given(rows())
@some
def test_absolute_sums_are_right_to_rounding_of_a_weight(row):
    """A weight that is a difference of two products is rounded as they are, and no more is lost by adding up."""
    j, sizes, g = exact(positive(row))
    for x, value in enumerate(found(Scaled(torch.abs), positive(row))):
        wanted = sum(abs(j[i][x]) * g[i] for i in range(len(g)))
        terms = sum(sizes[i][x] * g[i] for i in range(len(g)))
        assert abs(value - wanted) <= 10_000 * UNIT * wanted + 4 * UNIT * terms


@given(rows())
@some
def test_numbers_of_edges_leave_out_those_whose_weight_vanishes(row):
    own, left, right, g = row
    row = own, left.round(), right.round(), normalised(torch.ones_like(g[0]))  # products of integers vanish exactly
    j, _, _ = exact(row)
    assert found(Count.carrier, row) == [sum(j[i][x] != 0 for i in range(len(j))) for x in range(len(j))]


@given(rows())
@some
def test_plain_sums_are_those_with_exponents(row):
    own, left, right, (mantissa, _) = row
    for carrier, wide, g in ((Sum.carrier, Scaled(), mantissa), (AbsSum.carrier, Scaled(torch.abs), mantissa.abs())):
        plain, other = carrier.low_rank(own, left, right, (g,)), wide.low_rank(own, left, right, normalised(g))
        assert plain is not None
        assert other is not None
        torch.testing.assert_close(plain[0], Scaled().plain(other), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [0, 1, 2, RUN, RUN + 1, 3 * RUN - 1, RUN * RUN + 5])
def test_all_others_in_runs_of_any_length(n):
    t = torch.randint(-9, 9, (2, n), generator=torch.Generator().manual_seed(n)).double()
    assert torch.equal(others(t), t.sum(-1, keepdim=True) - t)  # integers are exact


def test_all_others_beside_something_infinite():
    t = torch.arange(1.0, 100.0)
    t[70] = math.inf
    assert others(t)[70] == t[:70].sum() + t[71:].sum()
    assert (others(t).isinf().nonzero().flatten() == torch.tensor([i for i in range(99) if i != 70])).all()


def test_beside_the_largest_of_all_others_what_is_far_smaller_is_not_lost():
    g = normalised(torch.ones(1, 3).double(), torch.tensor([[0, -3000, -3001]]))
    rest = Scaled().others(g)
    assert (rest[0][0, 0].item(), rest[1][0, 0].item()) == (0.75, -2999)


@pytest.mark.parametrize("carrier", [Sum.carrier, AbsSum.carrier], ids=["signed", "absolute"])
def test_an_infinite_gradient_leaves_a_weight_of_two_parts_to_the_kernel(carrier):
    """1·1 + 1·(-1) is no edge; its two parts would be, and ∞ - ∞ is no number."""
    left, right = torch.ones(1, 2, 2).double(), torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]).double()
    g = (torch.tensor([[[math.inf, 1.0]]]).double(),)
    assert carrier.low_rank(torch.ones(1, 2).double(), left, right, g) is None


def test_an_absent_edge_is_absent_beside_an_infinite_gradient_in_a_product():
    weight = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]).double()
    assert Sum.carrier.contract(weight, (torch.tensor([[[math.inf, 3.0]]]).double(),))[0].tolist() == [
        [[6.0, math.inf]]
    ]


# ---------------------------------------------------------------- in a model


def normalised_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2), nn.Tanh())
    return model.double(), torch.randn(3, 2, 4, 4).double()


LINEAR = [Sum, AbsSum, Count, Power(1), Power(4), Graded(), Graded(semiring=AbsSum), Graded(semiring=Count), Through()]


@pytest.mark.parametrize("semiring", LINEAR, ids=lambda k: k.name if isinstance(k, Semiring) else repr(k)[:30])
def test_a_norm_over_many_places_is_not_written_out(semiring, monkeypatch):
    model, x = normalised_images()
    with record(model) as tape:
        loss = model(x).square().sum()
    wanted = tape.grad(loss, list(tape.leaves), semiring, allow_unused=True)
    monkeypatch.setattr(reference, "_dense_rows", None)
    found = tape.grad(loss, list(tape.leaves), semiring, allow_unused=True)
    assert all((a is None) is (b is None) or torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("semiring", [Sum, AbsSum, Count])
def test_norms_of_many_places_are_what_their_jacobians_say(semiring):
    """More places than are added up in one run, some of them alike."""
    x, c = leaf(150, 2), torch.linspace(0.5, 2, 300).double().reshape(150, 2)
    with torch.no_grad():
        x[40:80] = x[0]
    program = lambda x: nn.functional.batch_norm(x, None, None, training=True)  # noqa: E731
    tape, loss = recorded(lambda x: (program(x) * c).sum(), {"x": x})
    j = torch.autograd.functional.jacobian(program, x).reshape(300, 300) * c.reshape(-1, 1)
    wanted = {"sum": j.sum(0), "abssum": j.abs().sum(0), "count": (j != 0).sum(0).double()}[semiring.name]
    torch.testing.assert_close(run(tape, loss, {"x": x}, semiring)["x"].flatten(), wanted, rtol=1e-9, atol=1e-11)


def test_states_side_by_side_go_through_rows_as_each_alone():
    states = States(Scaled(torch.abs), 3)
    generator = torch.Generator().manual_seed(1)
    own, left, right = (torch.randn(s, generator=generator).double() for s in ((2, 5), (2, 5, 2), (2, 5, 2)))
    parts = [normalised(torch.rand(1, 2, 5, generator=generator).double()) for _ in range(3)]
    together = states.low_rank(own, left, right, tuple(p for part in parts for p in part))
    assert together is not None
    for found_, part in zip(states.parts(together), parts, strict=True):
        alone = states.base.low_rank(own, left, right, part)
        assert alone is not None
        assert all(torch.equal(a, b) for a, b in zip(found_, alone, strict=True))
