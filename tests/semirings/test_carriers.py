"""Arrays of elements against the semirings on plain numbers: every way to merge, by folding the definition.

Oracle: the `Semiring` record's own ⊕ and ⊗ on Python numbers, one element at a time (they are tested against the
enumeration of paths and the axioms); and that scaling by powers of two moves exponents and nothing else.
"""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.errors import GradtraceError, NotANumber, UnknownName
from gradtrace.jacobians.structure import LowRank
from gradtrace.kernels.reference import pull
from gradtrace.semirings import Entropy, Graded, Power, SignedMax, Through, TopK, make, named
from gradtrace.semirings.base import AbsSum, Count, Element, Max, Semiring, Sum
from gradtrace.semirings.ranked import Ranked
from gradtrace.semirings.together import Together

SUMS = make("sums", zero=0.0, one=1.0, plus=torch.add, times=torch.mul, lift=lambda w: w)  # folded, not reduced
FAMILY: dict[str, Semiring] = {
    k.name: k for k in (Entropy, SignedMax, TopK(1), TopK(3), Power(1), Power(2), Power(3.5), Power(8), Count, SUMS)
}
every = pytest.mark.parametrize("name", FAMILY)
values = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 0.5, -0.125, 7.0])


def elements(k: Semiring, rows: list[list[tuple[float, float]]]) -> tuple[Element, list[list]]:
    """Make an array of rows of elements λ(x) ⊕ λ(y), and the same as numbers; ids run on."""
    x, y = (torch.tensor([[pair[i] for pair in row] for row in rows], dtype=torch.float64) for i in (0, 1))
    one = k.carrier.one(torch.ones_like(x))
    ids = torch.arange(2 * x.numel()).reshape(2, *x.shape)
    parts = [k.carrier.weigh(w, k.carrier.seed(one, i)) for w, i in zip((x, y), ids, strict=True)]
    g = k.carrier.plus(*parts)
    if isinstance(k.carrier, Ranked):  # as the consumers' elements come: with ids of their own
        g = k.carrier.seed(g, ids[0])
    return g, [[k.plus(k.lift(a), k.lift(b)) for a, b in row] for row in rows]


def plain(k: Semiring, g: Element) -> list:
    """Give … × parts, flat: what `plain` shows of each element."""
    out = k.carrier.plain(tuple(p.reshape(1, -1) for p in g))
    return out.reshape(-1, g[0].numel()).t().tolist()


def shown(k: Semiring, element) -> list[float]:
    """What `plain` shows of one element."""
    if k is Entropy:
        return [element[1]]
    if k.name.startswith("topk"):
        return [*element, *[0.0] * (int(k.name[5:]) - len(element))]
    if k is SignedMax:
        return [0.0, 0.0] if element == k.zero else list(element)
    return [element]


def assert_same(k: Semiring, found: Element, expected: list) -> None:
    want = [pytest.approx(shown(k, e), rel=1e-9, abs=1e-9) for e in expected]
    assert plain(k, found) == want


rows_of_pairs = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.tuples(values, values), min_size=n, max_size=n), min_size=1, max_size=3)
)


@every
@given(rows=rows_of_pairs)
@settings(deadline=None, max_examples=60)
def test_reduce_and_others(name, rows):
    k = FAMILY[name]
    g, numbers = elements(k, rows)
    assert_same(k, k.carrier.reduce(g), [reduce(k.plus, row, k.zero) for row in numbers])
    rest = [reduce(k.plus, row[:i] + row[i + 1 :], k.zero) for row in numbers for i in range(len(row))]
    assert_same(k, k.carrier.others(g), rest)


@every
@given(rows=rows_of_pairs, data=st.data())
@settings(deadline=None, max_examples=60)
def test_segments(name, rows, data):
    k, n = FAMILY[name], len(rows[0])
    g, numbers = elements(k, rows)
    index = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    expected = [
        reduce(k.plus, [e for e, i in zip(row, index, strict=True) if i == s], k.zero)
        for row in numbers
        for s in range(4)
    ]
    assert_same(k, k.carrier.segment(g, torch.tensor(index), 4), expected)
    one_by_one = torch.tensor(index).expand(len(rows), n).clone()
    assert_same(k, k.carrier.segment(g, one_by_one, 4), expected)


@every
@given(rows=rows_of_pairs, data=st.data(), wide=st.booleans())
@settings(deadline=None, max_examples=60)
def test_contractions(name, rows, data, wide):
    k, n = FAMILY[name], len(rows[0])
    g, numbers = elements(k, rows)
    w = data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=2, max_size=2))
    far = 2.0**-600 if wide else 1.0  # beyond what a plain product can span
    weight = torch.tensor([w], dtype=torch.float64)
    weight[0, 1] *= far
    out = k.carrier.contract(weight, tuple(p[None] for p in g))
    lifted = [[k.lift(x * (far if j else 1.0)) for x in row] for j, row in enumerate(w)]
    for i, row in enumerate(numbers):
        for j, factors in enumerate(lifted):
            want = reduce(k.plus, [k.times(a, b) for a, b in zip(factors, row, strict=True)], k.zero)
            scale = far if j and k not in (Entropy, Count) else 1.0
            found = plain(k, tuple(p[0, i, j].reshape(1, 1) for p in out))[0]
            assert [v / scale for v in found] == pytest.approx([v / scale for v in shown(k, want)], rel=1e-9, abs=1e-9)


@every
def test_nothing_merged_is_zero(name):
    k = FAMILY[name]
    g, _ = elements(k, [[(1.0, 2.0)], [(1.0, -2.0)]])
    empty = tuple(p[:, :0] for p in g)
    assert_same(k, k.carrier.reduce(empty), [k.zero, k.zero])
    assert k.carrier.others(empty)[0].shape == (2, 0)
    assert_same(k, k.carrier.segment(empty, torch.zeros(0, dtype=torch.int64), 2), [k.zero] * 4)


@every
@given(rows=rows_of_pairs, shift=st.sampled_from([-3000, -1100, 1100, 100_000]))
@settings(deadline=None, max_examples=40)
def test_scaling_moves_exponents_only(name, rows, shift):
    k = FAMILY[name]
    if k is SUMS:
        pytest.skip("plain float64")
    g, _ = elements(k, rows)
    far = tuple(torch.where(p <= -(1 << 29), p, p + shift) if p.dtype == torch.int32 else p for p in g)
    for merge in (k.carrier.reduce, k.carrier.others):
        near_, far_ = k.carrier.log2(merge(g)), k.carrier.log2(merge(far))
        expected = near_ if k is Entropy else near_ + shift
        assert torch.allclose(far_, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, k in FAMILY.items() if k is not SUMS])
def test_a_nan_is_an_error(name):
    carrier = FAMILY[name].carrier
    one = carrier.one(torch.ones(1, 1, 1))
    for merge in (carrier.weigh, carrier.contract):
        with pytest.raises(NotANumber):
            merge(torch.full((1, 1, 1), math.nan), one)


@every
def test_an_absent_edge_is_absent_even_beside_infinity(name):
    k = FAMILY[name]
    one = k.carrier.one(torch.ones(1, 2))
    infinite = k.carrier.weigh(torch.tensor([[math.inf, 1.0]]), one)
    out = k.carrier.weigh(torch.tensor([[0.0, 0.0]], dtype=torch.float64), infinite)
    assert_same(k, out, [k.zero, k.zero])
    assert not any(p.isnan().any() for p in k.carrier.reduce(infinite) if p.is_floating_point())


@pytest.mark.parametrize("p", [1, 2, 8, 8.5])
def test_powers_of_far_apart_numbers_leave_no_one_out(p):
    """Next to 1, the p-th power of 1e-200 is nothing; without the 1, it is everything."""
    carrier = Power(p).carrier
    g = carrier.weigh(torch.tensor([[1.0, 1e-200, 1e-300]], dtype=torch.float64), carrier.one(torch.ones(1, 3)))
    assert carrier.plain(carrier.others(g)).tolist()[0] == pytest.approx([1e-200, 1.0, 1.0], rel=1e-12)
    assert carrier.plain(carrier.reduce(g)).tolist() == [1.0]


def p_norms(jacobian: torch.Tensor, g: torch.Tensor, p: float) -> torch.Tensor:
    """(Σ_i |J_ij g_i|^p)^(1/p), each column in units of its largest term; rows × i × j."""
    terms = (jacobian * g.unsqueeze(-1)).abs().double()
    top = terms.amax(1, keepdim=True).clamp(min=1e-300)
    return top.squeeze(1) * ((terms / top) ** p).sum(1) ** (1 / p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, 3.5, 8, 16])
@pytest.mark.parametrize("rank", [1, 2, 3])
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["any", "norm", "cancelling", "far", "one"]))
@settings(deadline=None, max_examples=25)
def test_jacobians_of_low_rank(dtype, p, rank, seed, kind):
    """A layer norm's has entries 1 + x_i x_j, which vanish; a softmax's may be far apart."""
    random = torch.Generator().manual_seed(seed)
    own, g = (torch.randn(2, 6, generator=random, dtype=dtype) for _ in range(2))
    left, right = (torch.randn(2, 6, rank, generator=random, dtype=dtype) for _ in range(2))
    if kind in ("norm", "cancelling") and rank == 2:
        left[..., 0] = right[..., 0] = 1
        right[..., 1] = -1 / left[..., 1] if kind == "cancelling" else left[..., 1]
    if kind == "far":
        right *= 10.0 ** -torch.randint(0, 30, right.shape, generator=random)
        g *= 10.0 ** -torch.randint(0, 30, g.shape, generator=random)
    if kind == "one":
        g *= torch.eye(6, dtype=dtype)[:2]
    jacobian = torch.einsum("rik,rjk->rij", left, right)
    jacobian.diagonal(0, 1, 2).copy_(own)
    carrier = Power(p).carrier
    one = carrier.one(torch.ones(1, 2, 6, dtype=dtype))
    out = pull(LowRank((2, 6), (1,), lambda: (own, left.unbind(-1), right.unbind(-1))), carrier, carrier.weigh(g, one))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9
    expected = p_norms(jacobian, g, p)
    rounding = tolerance * (left.abs().amax() * right.abs().amax(-1) * g.abs().amax()).double()
    assert ((carrier.plain(out)[0] - expected).abs() <= tolerance * expected + rounding * (rank > 1)).all()
    assert out[0].dtype == dtype


@pytest.mark.parametrize("p", [1, 2, 3.5, 8, 16])
@given(seed=st.integers(0, 10_000), spread=st.integers(0, 30), zeros=st.booleans())
@settings(deadline=None, max_examples=40)
def test_matrix_products_of_powers_in_float32(p, seed, spread, zeros):
    """Where all products of a row and a column are small, their powers underflow: those entries are done again."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(1, 4, 9, generator=random) * 10.0 ** -torch.randint(0, spread + 1, (1, 4, 9), generator=random)
    g = torch.randn(1, 5, 9, generator=random) * 10.0 ** -torch.randint(0, spread + 1, (1, 5, 9), generator=random)
    if zeros:
        w[:, :, 1:5], g[:, :, 5:] = 0, 0
    carrier = Power(p).carrier
    out = carrier.contract(w, carrier.weigh(g, carrier.one(torch.ones(1, 5, 9))))
    found = carrier.plain(out)[0]
    for i in range(5):
        exact = p_norms((w[0].double() * g[0, i].double()).t()[None], torch.ones(1, 9), p)[0]
        assert torch.allclose(found[i], exact, rtol=1e-4, atol=0)


def test_entropy_without_the_cancellation_of_large_logarithms():
    carrier = Entropy.carrier
    g = carrier.one(torch.ones(1, 8))
    for _ in range(40):
        g = carrier.weigh(torch.full((1, 8), 1e-290, dtype=torch.float64), g)
    assert carrier.plain(carrier.reduce(g)).tolist() == [pytest.approx(3.0, abs=1e-14)]
    assert carrier.plain(g).tolist() == [[0.0] * 8]


def test_counts_beyond_a_float():
    g = Count.carrier.one(torch.ones(1, 2))
    for _ in range(2000):
        total = Count.carrier.reduce(g)
        g = tuple(p.unsqueeze(-1).expand(1, 2) for p in total)
    assert Count.carrier.log2(g).tolist() == [[2000.0, 2000.0]]
    assert Count.carrier.plain(g).tolist() == [[math.inf, math.inf]]


def test_a_negative_edge_swaps_before_the_merge():
    """Edges [1, -1] into pairs (1, 1) and (1, -10) give (10, -1)."""
    first, second = SignedMax.times((1.0, 1.0), (1.0, 1.0)), SignedMax.times((-1.0, -1.0), (1.0, -10.0))
    assert SignedMax.plus(first, second) == (10, -1)
    carrier = SignedMax.carrier
    pairs = carrier.plus(
        carrier.one(torch.ones(1, 2)), carrier.weigh(torch.tensor([[1.0, -10.0]]), carrier.one(torch.ones(1, 2)))
    )
    assert carrier.plain(pairs).tolist() == [[[1, 1], [1, -10]]]
    out = carrier.contract(torch.tensor([[[1.0, -1.0]]]), tuple(p[None] for p in pairs))
    assert carrier.plain(tuple(p[0] for p in out)).flatten().tolist() == [10, -1]


def test_several_carriers_keep_to_their_own_planes():
    both = Together((Sum.carrier, Entropy.carrier, Max.carrier))
    g = both.reduce(both.weigh(torch.tensor([[2.0, -3.0]]), both.one(torch.ones(1, 2))))
    assert [c.plain(own).item() for c, own in both.parts(g)] == [
        -1.0,
        pytest.approx(-0.4 * math.log2(0.4) - 0.6 * math.log2(0.6)),
        3.0,
    ]
    assert both.plain(g).item() == -1.0


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sum", Sum),
        ("entropy", Entropy),
        ("signedmax", SignedMax),
        ("through", Through()),
        ("graded", Graded()),
        ("graded:3", Graded(3)),
        ("graded:abssum", Graded(None, semiring=AbsSum)),
        ("graded:2:max", Graded(2, semiring=Max)),
    ],
)
def test_names(name, found):
    assert named(name) == found == named(found)


@pytest.mark.parametrize("name", ["power:8", "power:2.5", "topk:3"])
def test_names_with_numbers_are_those_of_what_they_give(name):
    assert named(name).name == name


@pytest.mark.parametrize(
    "name", ["Max", "", "power", "power:x", "power:0.5", "topk:0", "graded:-1", "graded:1:x", "sum:2", 3]
)
def test_unknown_names_list_those_that_exist(name):
    with pytest.raises(UnknownName, match=r"sum, abssum, max, count, entropy, signedmax|needs a"):
        named(name)


def test_parameters_out_of_range():
    for wrong in (lambda: TopK(0), lambda: TopK(2.0), lambda: Power(0.9), lambda: Power(math.inf), lambda: Graded(-1)):  # type: ignore[arg-type]
        with pytest.raises(GradtraceError, match="needs"):
            wrong()
