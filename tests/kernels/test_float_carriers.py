"""Carriers on plain numbers: each operation against its equation, and where they say that they are too narrow.

The oracles list every edge into a scalar, in float64 in units of the largest: (Σ t^p)^(1/p), and Σ q (h - log2 q).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operands import instruction_set
from numeric_jacobians import LAYOUTS, contractions
from torch import Tensor

from gradtrace.errors import NotANumber
from gradtrace.jacobians.structure import (
    FORMS,
    Closed,
    ClosedRows,
    Constant,
    LowRank,
    Placed,
    Scatter,
    Strided,
    diagonal,
    result_shape,
)
from gradtrace.kernels import float_carriers as plain
from gradtrace.kernels import native, sums
from gradtrace.kernels.float_carriers import Plain, PlainEntropy, PlainNorm
from gradtrace.kernels.reference import by_definition, pull
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.recording.layouts import Layout
from gradtrace.semirings.base import Element

if not native.available():
    pytest.skip("no compiled kernels", allow_module_level=True)

KINDS = [torch.float32, torch.float64]
EXACT = {torch.float32: 2e-6, torch.float64: 1e-12}
POWERS = [1, 2, 4, 8, 16, 64]

calls = st.fixed_dictionaries(
    {
        "isa": st.sampled_from(native.lib.instruction_sets()),
        "seed": st.integers(0, 10_000),
        "kind": st.sampled_from(KINDS),
        "p": st.sampled_from([*POWERS, None]),
        "spread": st.sampled_from([0, 3, 30]),
        "zeros": st.sampled_from([0.0, 0.3, 0.95]),
    }
)
some = settings(deadline=None, max_examples=150)


class Drawn:
    """Operands of one call."""

    def __init__(self, call: dict) -> None:
        self.call, self.kind = call, call["kind"]
        self.random = torch.Generator().manual_seed(call["seed"])

    @property
    def carrier(self) -> Plain:
        p = self.call["p"]
        return PlainEntropy(self.kind) if p is None else PlainNorm(self.kind, p.bit_length() - 1)

    def weights(self, *shape: int) -> Tensor:
        w = torch.randn(shape, generator=self.random, dtype=torch.float64)
        w *= 10.0 ** -torch.randint(0, self.call["spread"] + 1, shape, generator=self.random)
        return w.masked_fill(torch.rand(shape, generator=self.random) < self.call["zeros"], 0).to(self.kind)

    def elements(self, *shape: int) -> Element:
        z = self.weights(*shape).abs()
        return (z,) if self.call["p"] else (z, 9 * torch.rand(shape, generator=self.random, dtype=self.kind))

    def int(self, most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=self.random))


def merged(z: Tensor, h: Tensor | None, p: int | None) -> Element:
    """Merge the last axis by the definition."""
    top = z.amax(-1, keepdim=True).double()
    z = z.double() / torch.where(top > 0, top, 1.0)
    if p is not None:
        return ((z**p).sum(-1) ** (1 / p) * top.squeeze(-1),)
    assert h is not None
    total = z.sum(-1, keepdim=True)
    q = z / torch.where(total > 0, total, 1.0)
    return total.squeeze(-1) * top.squeeze(-1), (q * h.double() - torch.xlogy(q, q) / math.log(2)).sum(-1)


def check(drawn: Drawn, found: Element, wanted: Element, rounding: float = 1.0) -> None:
    exact = EXACT[drawn.kind] * rounding
    assert ((found[0].double() - wanted[0]).abs() <= exact * wanted[0]).all()
    if len(wanted) > 1:
        there = drawn.carrier.plain(found).double()
        assert ((there - wanted[1]).abs() <= 8 * exact * (4 + wanted[1])).all()


def edges(weight: Tensor, g: Element) -> tuple[Tensor, Tensor | None]:
    z = weight.double().abs() * g[0].double()
    return z, g[1].expand(z.shape) if len(g) > 1 else None


@given(calls)
@some
def test_products(call):
    drawn = Drawn(call)
    b, i, j, k = drawn.int(3), drawn.int(20), drawn.int(20), drawn.int(70)
    w, g = drawn.weights(b, j, k), drawn.elements(b, i, k)
    if call["seed"] % 2:  # as a transposed matrix lies
        w = w.transpose(1, 2).contiguous().transpose(1, 2)
    if call["seed"] % 3:
        g = tuple(p.transpose(1, 2).contiguous().transpose(1, 2) for p in g)
    if call["seed"] % 5 == 0:
        g = tuple(p.double() for p in g)
    with instruction_set(call["isa"]):
        found = drawn.carrier.contract(w, g)
    z, h = edges(w.unsqueeze(1), tuple(p.unsqueeze(2) for p in g))
    check(drawn, found, merged(z, h, call["p"]), 4)


AXES = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]  # as memory has them


@given(calls, st.sampled_from(AXES), st.integers(0, 2), st.sampled_from([1, 2]))
@some
def test_sums_along_an_axis(call, memory, rank, threads):
    drawn = Drawn(call)
    shape = [drawn.int(3), drawn.int(150), drawn.int(90)]
    g = drawn.elements(*(shape[d] for d in memory))
    g = tuple(p.permute([memory.index(d) for d in range(3)]) for p in g)
    g = tuple(p[0] if rank == 1 else p[None] if rank == 2 else p for p in g)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with instruction_set(call["isa"]):
            found = drawn.carrier.reduce(g)
    finally:
        torch.set_num_threads(before)
    check(drawn, found, merged(g[0], g[1] if len(g) > 1 else None, call["p"]))


@pytest.mark.parametrize("p", [8, None])
def test_a_sum_of_what_is_infinite_asks_for_exponents(p):
    drawn = Drawn({"seed": 0, "kind": torch.float64, "p": p, "spread": 0, "zeros": 0.0})
    g = drawn.elements(3, 5)
    g[0][1, 2] = math.inf
    with pytest.raises(OutOfRange):
        drawn.carrier.reduce(g)


@given(calls)
@settings(deadline=None, max_examples=20)
def test_products_in_blocks(call):
    drawn, cells = Drawn(call), sums.CELLS
    i, j, k = 300 + drawn.int(300), drawn.int(9), 300 + drawn.int(300)
    w, g = drawn.weights(1, j, k), drawn.elements(1, i, k)
    sums.CELLS = 1 << drawn.int(15)
    try:
        found = drawn.carrier.contract(w, g)
    finally:
        sums.CELLS = cells
    z, h = edges(w.unsqueeze(1), tuple(p.unsqueeze(2) for p in g))
    check(drawn, found, merged(z, h, call["p"]), 8)


@given(calls)
@settings(deadline=None, max_examples=30)
def test_many_entries_whose_powers_underflow(call):
    """A factor whose rows are small where the other's are large: sums far below the product of the largest."""
    drawn = Drawn(call | {"spread": 0})
    w, g = drawn.weights(1, 30, 40), drawn.elements(1, 20, 40)
    w[..., :20] *= 2.0**-40
    g[0][..., 20:] *= 2.0**-40
    many, plain.MANY = plain.MANY, 10 * call["seed"]
    try:
        found = drawn.carrier.contract(w, g)
    finally:
        plain.MANY = many
    z, h = edges(w.unsqueeze(1), tuple(p.unsqueeze(2) for p in g))
    check(drawn, found, merged(z, h, call["p"]), 4)


def pulled(drawn: Drawn, factors: Callable, g: Element, dims: tuple[int, ...] = (1,)) -> Element:
    shape = tuple(g[0].shape[1:])
    with instruction_set(drawn.call["isa"]):
        return pull(LowRank(shape, dims, factors), drawn.carrier, g)


def along_rows(drawn: Drawn, jacobian: Tensor, g: Element) -> Element:
    """Merge over i of rows × i × j."""
    z, h = edges(jacobian.transpose(1, 2), tuple(p.unsqueeze(2) for p in g))
    return merged(z, h, drawn.call["p"])


@given(calls)
@some
def test_softmax_and_its_logarithm(call):
    drawn = Drawn(call)
    rows, n = drawn.int(4), drawn.int(600)
    p = torch.randn(rows, n, generator=drawn.random, dtype=drawn.kind).mul(3).softmax(-1)
    g = drawn.elements(1, rows, n)
    if call["seed"] % 2:  # what a loss reads
        g[0][..., torch.arange(n) != call["seed"] % n] = 0
    eye, q = torch.eye(n, dtype=torch.float64), p.double()
    log = eye - q.unsqueeze(1)
    with instruction_set(call["isa"]):
        for form, jacobian in (("log_softmax", log), ("softmax", q.unsqueeze(2) * log)):
            found = pulled(drawn, ClosedRows(form, lambda: (p.clone(),)), g)
            check(drawn, found, along_rows(drawn, jacobian, g), 8 + 4 * (drawn.kind is torch.float32))


@pytest.mark.parametrize("rank", [1, 2])
@given(call=calls, kind=st.sampled_from(["any", "norm", "one", "long norm"]))
@some
def test_jacobians_of_low_rank(rank, call, kind):
    drawn = Drawn(call)
    rows, n = drawn.int(4), drawn.int(80) + (250 if kind == "long norm" else 0)
    own, left, right = drawn.weights(rows, n), drawn.weights(rows, n, rank), drawn.weights(rows, n, rank)
    if kind.endswith("norm") and rank == 2:
        left[..., 0], right[..., 0], right[..., 1] = 1, 1, left[..., 1]
    g = drawn.elements(1, rows, n)
    if kind == "one":
        g[0][..., 1:] = 0
    jacobian = torch.einsum("rik,rjk->rij", left.double(), right.double())
    size = torch.einsum("rik,rjk->rij", left.double().abs(), right.double().abs())
    for m, straight in ((jacobian, own.double()), (size, own.double().abs())):
        m.diagonal(0, 1, 2).copy_(straight)
    found = pulled(drawn, lambda: (own, left.unbind(-1), right.unbind(-1)), g)
    wanted = along_rows(drawn, jacobian, g)
    if rank == 1:
        check(drawn, found, wanted, 4)
        return
    # edge weights l·r may cancel, to about the rounding of their parts
    rounding = 8 * EXACT[drawn.kind] * along_rows(drawn, size, g)[0]
    assert ((found[0].double() - wanted[0]).abs() <= 4 * EXACT[drawn.kind] * wanted[0] + rounding).all()
    if len(g) > 1:
        kept = rounding < 1e-3 * wanted[0]
        slack = 64 * EXACT[drawn.kind] * (4 + wanted[1]) + 64 * (rounding / wanted[0].clamp(min=1e-300)) * 60
        assert ((found[1].double() - wanted[1]).abs() <= slack)[kept].all()


DIRECTIONS = ["any", "norm", "alike", "opposite", "integers", "one"]


@given(call=calls, n=st.integers(150, 400), kind=st.sampled_from(DIRECTIONS))
@settings(deadline=None, max_examples=100)
def test_absolute_sums_along_rows_that_are_sorted(call, n, kind):
    assert_absolute_sums(call, n, kind)


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("n", [600, 2048, 2049])  # places of 12 bits, and of more
def test_absolute_sums_along_long_rows(n, precision, kind):
    call = {"isa": native.lib.instruction_set(), "seed": n, "kind": precision, "p": 1, "spread": 3, "zeros": 0.3}
    assert_absolute_sums(call, n, kind)


def assert_absolute_sums(call, n, kind):
    """Directions in any order, in a bundle too narrow for a float, back and forth, or the same ones many times."""
    drawn = Drawn({**call, "p": 1})
    own, left, right = drawn.weights(2, n), drawn.weights(2, n, 2), drawn.weights(2, n, 2)
    if kind == "norm":
        left[..., 0], right[..., 0], right[..., 1] = 1, 1, left[..., 1]
    elif kind == "alike":
        left = torch.tensor([1.0, -1.0]) + 1e-9 * left.double()
        right = torch.ones(2) + 1e-9 * right.double()
    elif kind == "opposite":
        left[..., 1], right[..., 1] = left[..., 0] * -2, right[..., 0] * 0.5
    elif kind == "integers":
        left, right = (t.sign() * (t.abs() > 0.3) for t in (left, right))
    left, right = left.to(drawn.kind), right.to(drawn.kind)
    g = drawn.elements(1, 2, n)
    if kind == "one":
        g[0][..., 1:] = 0
    jacobian = torch.einsum("rik,rjk->rij", left.double(), right.double())
    size = torch.einsum("rik,rjk->rij", left.double().abs(), right.double().abs())
    for m, straight in ((jacobian, own.double()), (size, own.double().abs())):
        m.diagonal(0, 1, 2).copy_(straight)
    found = pulled(drawn, lambda: (own, left.unbind(-1), right.unbind(-1)), g)
    wanted = along_rows(drawn, jacobian, g)
    # edge weights l·r may cancel, to about the rounding of float64; what is left, by a few digits more
    rounding = 1e-15 * n * along_rows(drawn, size, g)[0]
    exact = EXACT[drawn.kind] if drawn.kind is torch.float32 else 1e-11
    assert ((found[0].double() - wanted[0]).abs() <= 4 * exact * wanted[0] + rounding).all()


@given(
    call=calls,
    where=st.sampled_from(
        [((4, 6), (1,)), ((2, 3, 4), (1, 2)), ((6,), (0,)), ((4, 3, 5), (0, 2)), ((2, 3, 2, 40), (2, 3))]
    ),
    affine=st.booleans(),
    batch=st.integers(1, 2),
)
@some
def test_norms_are_what_their_factors_written_out_are(call, where, affine, batch):
    drawn, (shape, dims) = Drawn(call), where
    hat, gamma = drawn.weights(*shape), drawn.weights(*shape) if affine else None
    scale = drawn.weights(*[1 if d in dims else n for d, n in enumerate(shape)]).abs() + 0.1
    closed = ClosedRows("standard", lambda: (hat, gamma, scale, math.prod(shape[d] for d in dims)))
    g = drawn.elements(batch, *shape)
    found, wanted = pulled(drawn, closed, g, dims), pulled(drawn, lambda: closed(), g, dims)
    for one, other in ((found[0], wanted[0]), (drawn.carrier.plain(found), drawn.carrier.plain(wanted))):
        assert one.shape == other.shape
        assert torch.allclose(one.double(), other.double(), rtol=1e2 * EXACT[drawn.kind], atol=1e-30)


@given(calls)
@some
def test_merges(call):
    drawn = Drawn(call)
    rows, n, size = drawn.int(4), drawn.int(300), drawn.int(5)
    g, other = drawn.elements(rows, n), drawn.elements(rows, n)
    index = torch.randint(size, (n,), generator=drawn.random)
    with instruction_set(call["isa"]):
        both = drawn.carrier.plus(g, other)
        reduced, segments, others = (
            drawn.carrier.reduce(g),
            drawn.carrier.segment(g, index, size),
            drawn.carrier.others(g),
        )
    h = g[-1] if call["p"] is None else None
    pair = merged(
        torch.stack([g[0], other[0]], -1), torch.stack([h, other[1]], -1) if h is not None else None, call["p"]
    )
    check(drawn, both, pair)
    check(drawn, reduced, merged(g[0], h, call["p"]), 4)
    for s in range(size):
        part = tuple(p[..., s] for p in segments)
        check(drawn, part, merged(torch.where(index == s, g[0], 0), h, call["p"]), 4)
    left_out = torch.where(torch.eye(n, dtype=torch.bool), 0, g[0].unsqueeze(1))
    check(drawn, others, merged(left_out, None if h is None else h.unsqueeze(1).expand(left_out.shape), call["p"]), 8)


@pytest.mark.parametrize("p", [None, 8])
def test_what_float32_would_lose_is_kept_in_float64_and_comes_back(p):
    drawn = Drawn({"kind": torch.float32, "p": p, "seed": 0, "spread": 0, "zeros": 0.0})
    carrier, g = drawn.carrier, drawn.elements(1, 4)
    low = carrier.weigh(torch.full((1, 4), 1e-30), carrier.weigh(torch.full((1, 4), 1e-30), g))
    assert low[0].dtype is torch.float64
    assert torch.allclose(low[0], g[0].double() * 1e-60, rtol=1e-6, atol=0)
    back = carrier.weigh(torch.full((1, 4), 1e30), carrier.weigh(torch.full((1, 4), 1e30), low))
    back = carrier.seed(back, torch.empty(0, dtype=torch.int64))
    assert back[0].dtype is torch.float32
    assert torch.allclose(back[0], g[0], rtol=1e-5)


@pytest.mark.parametrize("p", [None, 1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_beyond_float64_is_out_of_range_and_a_nan_an_error(p, kind):
    drawn = Drawn({"kind": kind, "p": p, "seed": 0, "spread": 0, "zeros": 0.0})
    carrier, g = drawn.carrier, drawn.elements(1, 2, 4)
    far = tuple(t.double() for t in g)
    for factor in (1e-200, 1e200, math.inf):
        weight = torch.full((1, 3, 4), factor, dtype=torch.float64)
        for once in (lambda w, h: carrier.weigh(w[:, :2], h), carrier.contract):
            with pytest.raises(OutOfRange):
                once(weight, (far[0] * min(factor, 1e200), *far[1:]))
    nan = torch.full((1, 3, 4), math.nan, dtype=kind)
    own, pair = nan[0, :2].clone(), nan[0, :2].unsqueeze(-1)
    for wrong in (
        lambda: carrier.weigh(nan[:, :2], g),
        lambda: carrier.contract(nan, g),
        lambda: carrier.low_rank(own, pair, pair, g),
        lambda: carrier.low_rank(own, pair.expand(2, 4, 2), pair.expand(2, 4, 2), g),
        lambda: carrier.low_rank(torch.ones(2, 4), torch.ones(2, 4, 2), pair.expand(2, 4, 2), g),
        lambda: carrier.softmax(lambda: own, g, log=True),
    ):
        with pytest.raises(NotANumber):
            wrong()


@pytest.mark.parametrize("p", [None, 8])
def test_edges_of_weight_zero_are_absent(p):
    drawn = Drawn({"kind": torch.float32, "p": p, "seed": 1, "spread": 0, "zeros": 0.0})
    carrier, g = drawn.carrier, drawn.elements(1, 2, 4)
    none = carrier.contract(torch.zeros(1, 3, 4), g)
    assert all(not t.any() for t in none)
    assert not carrier.plain(carrier.weigh(torch.zeros(1, 2, 4), g)).any()
    assert all(t.shape == (1, 2, 0) for t in carrier.contract(torch.zeros(1, 0, 4), g))
    assert all(
        not t.any() and t.shape == (1, 2, 3)
        for t in carrier.contract(torch.zeros(1, 3, 0), tuple(t[..., :0] for t in g))
    )


@given(
    st.one_of(
        contractions(),
        st.sampled_from(sorted(LAYOUTS)).map(lambda name: Strided(LAYOUTS[name], (3, 4))),
        st.sampled_from([(), (Layout((3,), (4,), 2),)]).map(lambda h: Placed(Layout((4, 3), (1, 4), 0), (3, 4), h)),
        st.permutations(range(-2, 6)).map(lambda at: Scatter(lambda: torch.tensor(at).clamp(min=-1), (2, 3), (4, 2))),
        st.sampled_from([0.0, -1.5]).map(
            lambda v: diagonal((2, 3), (2, 3), Constant(v, (2, 3), torch.float32, torch.device("cpu")))
        ),
        st.sampled_from(sorted(FORMS)).map(
            lambda form: diagonal((2, 3), (2, 3), Closed(form, lambda: torch.linspace(0, 1, 6).reshape(2, 3)))
        ),
    ),
    calls,
)
@settings(deadline=None, max_examples=200)
def test_structures_that_merge_nothing_have_short_ways(s, call):
    drawn = Drawn({**call, "spread": 0})
    g = drawn.elements(2, *result_shape(s))
    found, wanted = pull(s, drawn.carrier, g), by_definition(s, drawn.carrier, g)
    for mine, theirs in zip(found, wanted, strict=True):
        some = wanted[0] > 0
        torch.testing.assert_close(mine[some], theirs[some], rtol=8 * EXACT[drawn.kind], atol=1e-5)
    assert torch.equal(found[0] > 0, wanted[0] > 0)
