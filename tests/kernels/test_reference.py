"""Every structure's kernel, under every carrier, against loops over a Jacobian written out from the definition.

Weights and elements are small integers, zeros and ties among them, so that everything is exact.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_jacobians import LAYOUTS, contractions, integers, jacobian, low_rank_factors, seeds, strongest

from gradtrace.jacobians.structure import (
    Chain,
    Contraction,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sparse,
    Strided,
    Structure,
    diagonal,
    reduction,
)
from gradtrace.kernels import native, reference
from gradtrace.kernels.counting import COUNTING
from gradtrace.kernels.gradient import gradient
from gradtrace.kernels.reference import pull
from gradtrace.kernels.signed import Ends
from gradtrace.kernels.top_k import Largest
from gradtrace.recording.layouts import Layout
from gradtrace.semirings.base import NO_ID, AbsSum, Carrier, Count, Element, Extreme, Greedy, Scaled, Sum, normalised

BATCH = 2


# ---------------------------------------------------------------- what each carrier should give


def check(s: Structure, y_shape: tuple[int, ...], x_numel: int, seed: int) -> None:
    j = {at: w for at, w in jacobian(s).items() if w != 0}
    generator = torch.Generator().manual_seed(seed)
    g = torch.randint(-3, 4, (BATCH, *y_shape), generator=generator).double()
    ids = torch.arange(100, 100 + g[0].numel()).reshape(1, *y_shape).expand(g.shape)
    for b in range(BATCH):
        values = g[b].flatten().tolist()
        into = [[(i, w) for (i, k), w in sorted(j.items()) if k == x] for x in range(x_numel)]
        sums = [sum(w * values[i] for i, w in edges) for edges in into]
        best = [strongest([(abs(w * values[i]), 100 + i) for i, w in edges]) for edges in into]
        assert _plain(s, Sum.carrier, (g,), b) == sums
        assert _plain(s, gradient(torch.float64), (g,), b) == sums
        assert _plain(s, gradient(torch.float32), (g.float(),), b) == sums
        assert _plain(s, AbsSum.carrier, (g.abs(),), b) == [sum(abs(w * values[i]) for i, w in e) for e in into]
        assert _plain(s, Count.carrier, normalised(g.abs()), b) == [sum(abs(values[i]) for i, _ in e) for e in into]
        assert _plain(s, COUNTING, (g.abs(),), b) == [sum(abs(values[i]) for i, _ in e) for e in into]
        assert _plain(s, Scaled(), normalised(g), b) == sums
        assert _winners(s, Extreme(), (*normalised(g.abs()), ids), b) == best
        greedy = (*normalised(g), *normalised(g.abs()), ids)
        assert _plain(s, Greedy(), greedy, b) == sums
        assert _winners(s, Greedy(), greedy, b) == best
    if native.available():
        check_lists(s, y_shape, j, x_numel, seed)
        check_ends(s, y_shape, j, x_numel, seed)


def check_lists(
    s: Structure, y_shape: tuple[int, ...], j: dict[tuple[int, int], float], x_numel: int, seed: int
) -> None:
    """The k largest of all products of an edge and one of several weights, for k below and above their number."""
    generator = torch.Generator().manual_seed(seed)
    lists = torch.randint(0, 4, (2, BATCH, *y_shape), generator=generator).double().sort(0, descending=True).values
    for b, k, kind in ((0, 3, torch.float64), (1, 12, torch.float64), (0, 5, torch.float32)):  # these numbers are exact
        values = lists[:, b].reshape(2, -1).tolist()
        found = sorted(((x, abs(w) * v[i]) for (i, x), w in j.items() for v in values), reverse=True)
        want = [([p for at, p in found if at == x] + [0.0] * k)[:k] for x in range(x_numel)]
        carrier = Largest(kind, k)
        out = carrier.plain(pull(s, carrier, tuple(lists.to(kind))))[b]
        assert out.reshape(k, -1).t().tolist() == want


def check_ends(
    s: Structure, y_shape: tuple[int, ...], j: dict[tuple[int, int], float], x_numel: int, seed: int
) -> None:
    """The largest and the smallest of all products of an edge and either end, as signed numbers."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.randint(-3, 4, (2, BATCH, *y_shape), generator=generator).double().sort(0).values
    low, high = (p.masked_fill((low == 0) | (high == 0), math.nan) for p in (low, high))  # no path has a weight of 0
    for b, kind in ((0, torch.float64), (1, torch.float32)):
        ends = list(zip(high[b].flatten().tolist(), low[b].flatten().tolist(), strict=True))
        found = [(x, w * end) for (i, x), w in j.items() for end in ends[i] if not math.isnan(end)]
        want = [[p for at, p in found if at == x] or [0.0] for x in range(x_numel)]
        carrier = Ends(kind)
        out = carrier.plain(pull(s, carrier, (high.to(kind), low.to(kind))))[b]
        assert out.reshape(2, -1).t().tolist() == [[max(some), min(some)] for some in want]


def _plain(s: Structure, carrier: Carrier, g: Element, b: int) -> list[float]:
    out = pull(s, carrier, g)
    assert all(p.shape[0] == BATCH for p in out)
    return carrier.plain(out)[b].flatten().tolist()


def _winners(s: Structure, carrier: Extreme | Greedy, g: Element, b: int) -> list[tuple[float, int]]:
    mantissa, exponent, ids = pull(s, carrier, g)[-3:]
    values = torch.ldexp(mantissa[b], exponent[b]).flatten().tolist()
    return [(v, i if v else NO_ID) for v, i in zip(values, ids[b].flatten().tolist(), strict=True)]


# ---------------------------------------------------------------- structures


@given(contractions(), seeds)
@settings(deadline=None, max_examples=250)
def test_contractions(s, seed):
    check(s, s.y_shape, torch.Size(s.x_shape).numel(), seed)


EINSUMS = ["ik,kj->ij", "bik,bkj->bij", "ik,k->i", "k,k->", "i,j->ij", "bik,bkj->ij", "bhqd,bhkd->bhqk"]


@pytest.mark.parametrize("equation", EINSUMS)
def test_both_arguments_of_a_product(equation):
    sizes = dict(zip("bhijkdq", (2, 2, 2, 3, 4, 2, 3), strict=True))
    (a, b), y = equation.split("->")[0].split(","), equation.split("->")[1]
    shapes = {ls: tuple(sizes[c] for c in ls) for ls in (a, b, y)}
    for x, w in ((a, b), (b, a)):
        weight = integers(shapes[w], 1)
        s = Contraction(y, x, shapes[y], shapes[x], w, lambda weight=weight: weight)
        check(s, shapes[y], weight.new_zeros(shapes[x]).numel(), 2)


@given(
    st.sampled_from([((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((2, 3), (2, 1)), ((2, 3), ()), ((), ())]),
    seeds,
)
@settings(deadline=None)
def test_diagonals_with_broadcasting(shapes, seed):
    y, x = shapes
    check(diagonal(y, x, lambda: integers(y, seed)), y, torch.Size(x).numel(), seed)
    check(diagonal(y, x, None), y, torch.Size(x).numel(), seed)


@pytest.mark.parametrize("dims", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_reductions(dims):
    shape = (2, 3, 2)
    kept = tuple(n for d, n in enumerate(shape) if d not in dims)
    check(reduction(shape, dims, lambda: integers(shape, 3)), kept, 12, 4)
    check(reduction(shape, dims, None), kept, 12, 4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_strided(name):
    check(Strided(LAYOUTS[name], (3, 4)), LAYOUTS[name].size, 12, 5)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=3), st.integers(0, 5), seeds)
@settings(deadline=None, max_examples=150)
def test_windows_of_all_kinds(axes, offset, seed):
    size, stride = [n for n, _ in axes], [step for _, step in axes]
    while offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= 12:
        stride[stride.index(max(stride))] -= 1
    check(Strided(Layout(tuple(size), tuple(stride), offset), (3, 4)), tuple(size), 12, seed)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("expanded", "repeated-and-kept", "overlapping")])
def test_placed_and_hidden(name):
    layout = LAYOUTS[name]
    for hidden in ((), (Layout((4,), (1,), 4),), (Layout((3,), (4,), 2), Layout((), (), 0))):
        check(Placed(layout, (3, 4), hidden), (3, 4), torch.Size(layout.size).numel(), 6)


@given(st.lists(st.integers(-1, 5), min_size=8, max_size=8), seeds)
@settings(deadline=None)
def test_gathers_merge_what_was_read_twice(index, seed):
    check(Gather(lambda: torch.tensor(index).reshape(2, 4), (2, 4), (3, 2)), (2, 4), 6, seed)
    check(Gather(lambda: torch.tensor(index), (8, 3), (6, 3), 3), (8, 3), 18, seed)


@given(st.permutations(range(-2, 6)), seeds)
@settings(deadline=None)
def test_scatters_leave_out_what_goes_nowhere(index, seed):
    at = torch.tensor(index).clamp(min=-1).reshape(4, 2)
    check(Scatter(lambda: at, (2, 3), (4, 2)), (2, 3), 8, seed)


@given(
    st.sampled_from([((3,), (0,)), ((2, 3), (1,)), ((2, 3), (0,)), ((2, 2, 3), (0, 2)), ((2, 3), (0, 1)), ((), ())]),
    st.integers(1, 3),
    seeds,
)
@settings(deadline=None, max_examples=60)
def test_low_rank(where, rank, seed):
    shape, dims = where
    factors = low_rank_factors(shape, rank, seed)
    check(LowRank(shape, dims, lambda: factors), shape, torch.Size(shape).numel(), seed)


def test_low_rank_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(reference, "ROWS", 20)
    shape = (5, 3)
    factors = low_rank_factors(shape, 2, 1)
    check(LowRank(shape, (1,), lambda: factors), shape, 15, 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=8, unique=True), st.booleans(), seeds)
@settings(deadline=None)
def test_sparse(pairs, weighted, seed):
    i, j = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in range(2))
    w = integers((len(pairs),), seed) if weighted else None
    check(Sparse(lambda: (i, j, w), (2, 4, 2), (2, 3, 2)), (2, 4, 2), 12, seed)


def test_chains_of_two_index_maps_and_a_weight():
    read = Gather(lambda: torch.tensor([2, 0, -1, 2]), (4,), (3,))
    scale = diagonal((4,), (4,), lambda: torch.tensor([2.0, 0.0, 5.0, -3.0], dtype=torch.float64))
    check(Chain(scale, read), (4,), 3, 7)
    check(Chain(scale, Chain(Strided(Layout((4,), (1,), 0), (4,)), read)), (4,), 3, 8)


def _far_structures(seed: int) -> list[tuple[Structure, tuple[int, ...], int]]:
    """One of each kind of merge: (structure, shape of y, scalars of x)."""
    low = [low_rank_factors((2, 3), rank, seed) for rank in (1, 2)]
    weight = integers((3, 2), seed)
    return [
        (LowRank((2, 3), (1,), lambda: low[0]), (2, 3), 6),
        (LowRank((2, 3), (1,), lambda: low[1]), (2, 3), 6),
        (Contraction("ij", "ik", (2, 3), (2, 2), "jk", lambda: weight), (2, 3), 4),
        (diagonal((2, 3), (3,), lambda: integers((2, 3), seed)), (2, 3), 3),
        (Gather(lambda: torch.tensor([[0, 1, 0], [1, 1, -1]]), (2, 3), (2,)), (2, 3), 2),
        (Strided(Layout((2, 3), (0, 1), 0), (3,)), (2, 3), 3),
        (Strided(Layout((2, 3), (1, 1), 0), (4,)), (2, 3), 4),
    ]


@pytest.mark.parametrize("which", range(7))
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, -1, 60, -1000, -5000, 4000])), min_size=6, max_size=6),
    seeds,
)
@settings(deadline=None, max_examples=40)
def test_elements_of_any_exponent_are_compared_exactly(which, values, seed):
    s, y_shape, x_numel = _far_structures(seed)[which]
    j = {at: w for at, w in jacobian(s).items() if w != 0}
    mantissa = torch.tensor([v for v, _ in values], dtype=torch.float64).reshape(1, *y_shape)
    exponent = torch.tensor([e for _, e in values], dtype=torch.int32).reshape(1, *y_shape)
    exacts = [v * Fraction(2) ** e for v, e in values]
    g = (*normalised(mantissa, exponent), torch.arange(6).reshape(1, *y_shape))
    found_m, found_e, found_i = (p.flatten().tolist() for p in pull(s, Extreme(), g))
    for x in range(x_numel):
        into = [(abs(Fraction(w)) * exacts[i], i) for (i, k), w in sorted(j.items()) if k == x]
        value, winner = strongest(into)
        assert Fraction(found_m[x]) * (Fraction(2) ** found_e[x] if found_m[x] else 1) == value
        assert not value or found_i[x] == winner


def test_something_else_is_no_structure():
    with pytest.raises(TypeError, match="not a structure"):
        pull(object(), Sum.carrier, (torch.ones(1, 2),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_dtype(dtype):
    weight = integers((2, 3), 1).to(dtype)
    s = Contraction("ij", "ik", (2, 2), (2, 3), "jk", lambda: weight)
    check(s, (2, 2), 6, 2)
    check(Contraction("ab", "ab", (2, 3), (2, 3), "ab", lambda: weight), (2, 3), 6, 3)


def test_of_equal_products_over_several_merged_axes_the_first_in_ys_order_wins():
    """The letters that the weight has and those it has not are merged in one go, or ties would fall wrongly."""
    weight = torch.tensor([2.0, -2.0], dtype=torch.float64)
    s = Contraction("ab", "", (2, 2), (), "b", lambda: weight)
    g = (*normalised(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)), torch.arange(4).reshape(1, 2, 2))
    assert pull(s, Extreme(), g)[2].tolist() == [1]
