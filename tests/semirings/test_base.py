"""Carriers against Python numbers: each reduction by the definition, each fast contraction by the generic one.

Oracle: an element is an exact `Fraction` (or infinity), with its backpointer; ⊕ is written out below. Mantissas are
small integers, so that every sum and product is exact in float64, however far exponents lie apart.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradtrace.errors import NotANumber, UnknownName
from gradtrace.semirings.base import (
    NO_ID,
    SEMIRINGS,
    AbsSum,
    Carrier,
    Count,
    Element,
    Extreme,
    Greedy,
    Max,
    Scaled,
    Sum,
    lifted,
    max_product,
    named,
    normalised,
    pow2,
    tiles,
)

INFINITY = math.inf
Number = Fraction | float  # exact, or infinite


def exact(mantissa: float, exponent: int) -> Number:
    return mantissa if math.isinf(mantissa) else Fraction(mantissa) * Fraction(2) ** (exponent if mantissa else 0)


def numbers(g: Element) -> list[Number]:
    return [exact(m, e) for m, e in zip(g[0].flatten().tolist(), g[1].flatten().tolist(), strict=True)]


def element(values: list[tuple[int | float, int]], shape: tuple[int, ...]) -> Element:
    """Give (mantissa, exponent) planes of value · 2^exponent."""
    value = torch.tensor([v for v, _ in values], dtype=torch.float64).reshape(shape)
    return normalised(value, torch.tensor([e for _, e in values], dtype=torch.int32).reshape(shape))


def strongest(values: list[Number], ids: list[int]) -> tuple[Number, int]:
    """⊕ of Extreme: the largest, and of equals the smallest id; zero has none."""
    best = max(values, default=0)
    return (best, min(i for v, i in zip(values, ids, strict=True) if v == best)) if best else (Fraction(0), NO_ID)


small = st.sampled_from([0, 1, 2, 3, 5, 7, -1, -3])
exponents = st.sampled_from([0, 1, -1, 3, -11, 12])  # sums are exact
far = st.sampled_from([0, 1, -1, 50, -900, 1100, -3000, 100_000, -100_000])
pairs = st.tuples(small, exponents)
far_pairs = st.tuples(small.map(abs), far)
rows_of = lambda items, rows, n: st.lists(items, min_size=rows * n, max_size=rows * n)  # noqa: E731


# ---------------------------------------------------------------- numbers with an exponent


@given(st.floats(allow_nan=False), st.integers(-2000, 2000))
def test_mantissa_and_exponent_are_the_number_exactly(value, exponent):
    mantissa, e = normalised(torch.tensor([value], dtype=torch.float64), exponent)
    if math.isinf(value):
        assert mantissa.item() == value
    else:
        assert numbers((mantissa, e)) == [Fraction(value) * Fraction(2) ** exponent]
        assert value == 0 or 0.5 <= abs(mantissa.item()) < 1


@pytest.mark.parametrize("e", [-1075, -1023, -1022, -1, 0, 1, 1022, 1023])
def test_powers_of_two_are_exact_and_vanish_below_the_normal_range(e):
    assert pow2(torch.tensor([e])).item() == (2.0**e if e > -1023 else 0.0)


def test_lifting_a_nan_is_an_error():
    with pytest.raises(NotANumber, match="local derivative is NaN"):
        lifted(torch.tensor([1.0, math.nan]))
    with pytest.raises(NotANumber):
        Extreme().contract(torch.full((1, 1, 1), math.nan), Extreme().one(torch.ones(1, 1, 1)))
    with pytest.raises(NotANumber):
        Scaled().contract(torch.full((1, 1, 1), math.nan), Scaled().one(torch.ones(1, 1, 1)))


# ---------------------------------------------------------------- Scaled: sums


@given(rows_of(pairs, 2, 4))
@settings(deadline=None)
def test_scaled_adds_up_exactly_where_floats_could(values):
    g = element(values, (2, 4))
    terms = [v * Fraction(2) ** e for v, e in values]
    assert numbers(Scaled().reduce(g)) == [sum(terms[:4]), sum(terms[4:])]
    total = Scaled().plus(tuple(p[0] for p in g), tuple(p[1] for p in g))
    assert numbers(total) == [a + b for a, b in zip(terms[:4], terms[4:], strict=True)]


@given(rows_of(far_pairs, 1, 5))
@settings(deadline=None)
def test_scaled_sums_of_any_exponents_are_right_to_the_last_digits(values):
    (found,) = numbers(Scaled().reduce(element(values, (1, 5))))
    expected = sum(v * Fraction(2) ** e for v, e in values)
    assert abs(found - expected) <= expected * Fraction(1, 2**50)


@given(rows_of(pairs, 1, 4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
@settings(deadline=None)
def test_scaled_segments_and_others(values, index):
    g, terms = element(values, (1, 4)), [v * Fraction(2) ** e for v, e in values]
    segments = numbers(Scaled().segment(g, torch.tensor(index), 3))
    assert segments == [sum(t for t, i in zip(terms, index, strict=True) if i == s) for s in range(3)]
    assert numbers(Scaled().others(g)) == [sum(terms) - t for t in terms]


def test_others_does_not_cancel_what_is_small_beside_what_is_large():
    g = normalised(torch.tensor([[1e300, 1.0, 1e-300]], dtype=torch.float64))
    assert [float(x) for x in numbers(Scaled().others(g))] == [1.0, 1e300, 1e300]
    assert Sum.carrier.others((torch.tensor([[1e300, 1.0, 1e-300]], dtype=torch.float64),))[0][0, 0] == 1.0


# ---------------------------------------------------------------- Extreme: the largest, and where it came from


def extreme(values: list[tuple[int, int]], shape: tuple[int, ...], ids: list[int]) -> Element:
    return (*element(values, shape), torch.tensor(ids).reshape(shape))


def taken(g: Element) -> list[tuple[Number, int]]:
    return list(zip(numbers(g), g[2].flatten().tolist(), strict=True))


ids_of = lambda n: st.permutations(range(10, 10 + n))  # noqa: E731


@given(rows_of(far_pairs, 1, 5), ids_of(5))
@settings(deadline=None)
def test_extreme_takes_the_largest_and_of_ties_the_smallest_id(values, ids):
    g, exacts = extreme(values, (1, 5), ids), [v * Fraction(2) ** e for v, e in values]
    assert taken(Extreme().reduce(g)) == [strongest(exacts, ids)]


@given(rows_of(far_pairs, 1, 5), ids_of(5))
@settings(deadline=None)
def test_extreme_others_is_the_largest_of_all_but_one(values, ids):
    g, exacts = extreme(values, (1, 5), ids), [v * Fraction(2) ** e for v, e in values]
    without = [[x for j, x in enumerate(zip(exacts, ids, strict=True)) if j != i] for i in range(5)]
    assert taken(Extreme().others(g)) == [strongest([v for v, _ in w], [i for _, i in w]) for w in without]


@given(rows_of(far_pairs, 1, 5), ids_of(5), st.lists(st.integers(0, 3), min_size=5, max_size=5))
@settings(deadline=None)
def test_extreme_segments(values, ids, index):
    g, exacts = extreme(values, (1, 5), ids), [v * Fraction(2) ** e for v, e in values]
    members = [[j for j in range(5) if index[j] == s] for s in range(4)]
    expected = [strongest([exacts[j] for j in m], [ids[j] for j in m]) for m in members]
    assert taken(Extreme().segment(g, torch.tensor(index), 4)) == expected


@given(rows_of(far_pairs, 2, 4), ids_of(8))
@settings(deadline=None)
def test_extreme_plus(values, ids):
    a, b = extreme(values[:4], (4,), ids[:4]), extreme(values[4:], (4,), ids[4:])
    x, y = ([v * Fraction(2) ** e for v, e in part] for part in (values[:4], values[4:]))
    expected = [strongest([p, q], [i, j]) for p, q, i, j in zip(x, y, ids[:4], ids[4:], strict=True)]
    found = taken(Extreme().plus(a, b))
    assert [v for v, _ in found] == [v for v, _ in expected]
    assert [i for v, i in found if v] == [i for v, i in expected if v]


def test_infinity_is_the_largest_and_an_absent_edge_stays_absent():
    g = (*normalised(torch.tensor([math.inf, 1e300, 0.0, 2.0], dtype=torch.float64)), torch.arange(4))
    assert taken(Extreme().reduce(g)) == [(INFINITY, 0)]
    weighed = Extreme().weigh(torch.tensor([0.0, math.inf, math.inf, -3.0], dtype=torch.float64), g)
    assert numbers(weighed) == [0, INFINITY, 0, 6]
    assert numbers(Extreme().plus(weighed, tuple(p.flip(0) for p in weighed))) == [6, INFINITY, INFINITY, 6]


# ---------------------------------------------------------------- contractions: generic against fast

CARRIERS: dict[str, Carrier] = {"scaled": Scaled(), "max": Extreme(), "greedy": Greedy()}


@pytest.mark.parametrize("name", CARRIERS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_fast_contractions_do_what_the_generic_one_does(name, data):
    carrier = CARRIERS[name]
    batch, rows, columns, inner = data.draw(st.tuples(*[st.integers(1, 3)] * 3, st.integers(0, 4)))
    count = batch * rows * inner
    wide = data.draw(st.booleans())
    drawn = far_pairs if wide else pairs
    values = data.draw(st.lists(drawn, min_size=count, max_size=count))
    weights = data.draw(st.lists(pairs, min_size=batch * columns * inner, max_size=batch * columns * inner))
    w = torch.tensor([v * 2.0**e for v, e in weights], dtype=torch.float64).reshape(batch, columns, inner)
    mantissa, exponent = element(values, (batch, rows, inner))
    ids = torch.arange(count).reshape(batch, rows, inner)
    g = {
        "scaled": (mantissa, exponent),
        "max": (mantissa.abs(), exponent, ids),
        "greedy": (mantissa, exponent, mantissa.abs(), exponent, ids),
    }[name]
    fast, generic = carrier.contract(w, g), Carrier.contract(carrier, w, g)
    for a, b in zip(_split(fast), _split(generic), strict=True):
        if len(a) == 3:
            assert taken(a) == taken(b)
        elif not wide:
            assert numbers(a) == numbers(b)
        else:
            largest = max((abs(x) for x in numbers(b)), default=0)
            assert all(abs(x - y) <= largest * Fraction(1, 2**45) for x, y in zip(numbers(a), numbers(b), strict=True))


def _split(g: Element) -> list[Element]:
    return [g] if len(g) < 5 else [g[:2], g[2:]]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_extreme_contraction_by_the_definition(data):
    rows, columns, inner = 2, 2, 3
    values = data.draw(rows_of(far_pairs, rows, inner))
    weights = data.draw(rows_of(st.tuples(small, far.filter(lambda e: abs(e) < 1000)), columns, inner))
    w = torch.tensor([v * 2.0**e for v, e in weights], dtype=torch.float64).reshape(1, columns, inner)
    g = extreme(values, (1, rows, inner), list(range(rows * inner)))
    for i, j in itertools.product(range(rows), range(columns)):
        products, ids = [], []
        for k in range(inner):
            v, e = values[i * inner + k]
            wv, we = weights[j * inner + k]
            products.append(v * Fraction(2) ** e * abs(wv) * Fraction(2) ** we)
            ids.append(i * inner + k)
        found = tuple(p[0, i, j] for p in Extreme().contract(w, g))
        assert taken(found) == [strongest(products, ids)]


def test_plain_contractions_are_matrix_products_of_what_is_lifted():
    w, g = torch.tensor([[[1.0, -2.0], [0.0, 3.0]]]), torch.tensor([[[5.0, 7.0]]], dtype=torch.float64)
    assert Sum.carrier.contract(w, (g,))[0].tolist() == [[[-9.0, 21.0]]]
    assert AbsSum.carrier.contract(w, (g,))[0].tolist() == [[[19.0, 21.0]]]
    counted = Count.carrier.contract(w, normalised(g))
    assert Count.carrier.plain(counted).tolist() == [[[12.0, 7.0]]]


@given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6), st.integers(0, 3_000_000))
@settings(deadline=None)
def test_tiles_cover_every_entry_once(batch, rows, columns, inner):
    seen = torch.zeros(batch, rows, columns, dtype=torch.int64)
    for box in tiles(batch, rows, columns, inner):
        seen[box] += 1
    assert (seen == 1).all()


def test_the_smallest_index_of_equal_products_is_taken():
    best, arg = max_product(torch.tensor([[[2.0, 1.0, 4.0]]]), torch.tensor([[[2.0, 4.0, 1.0], [0.0, 0.0, 0.0]]]))
    assert (best.tolist(), arg.tolist()) == ([[[4.0, 0.0]]], [[[0, 0]]])


# ---------------------------------------------------------------- greedy


def test_greedy_starts_again_from_the_ordinary_gradient_at_every_vertex():
    g = Greedy().one(torch.ones(2))
    g = Greedy().weigh(torch.tensor([3.0, -2.0], dtype=torch.float64), Greedy().seed(g, torch.tensor([7, 8])))
    merged = Greedy().reduce(tuple(p[None] for p in g))
    assert Greedy().plain(merged).item() == 1.0
    assert taken(merged[2:]) == [(3, 7)]
    assert taken(Greedy().seed(merged, torch.tensor([9]))[2:]) == [(1, 9)]


# ---------------------------------------------------------------- axioms, on plain numbers

lifts = st.integers(-8, 8).map(float)


@pytest.mark.parametrize("k", SEMIRINGS.values(), ids=SEMIRINGS)
@given(x=lifts, y=lifts, z=lifts)
def test_axioms(k, x, y, z):
    a, b, c = k.lift(x), k.lift(y), k.lift(z)
    assert k.plus(a, b) == k.plus(b, a)
    assert k.plus(k.plus(a, b), c) == k.plus(a, k.plus(b, c))
    assert k.times(a, b) == k.times(b, a)
    assert k.times(k.times(a, b), c) == k.times(a, k.times(b, c))
    assert k.times(a, k.plus(b, c)) == k.plus(k.times(a, b), k.times(a, c))
    assert k.plus(a, k.zero) == a == k.times(a, k.one)
    assert k.times(a, k.zero) == k.zero == k.lift(0.0)


@pytest.mark.parametrize("k", SEMIRINGS.values(), ids=SEMIRINGS)
@given(x=lifts, y=lifts)
@settings(deadline=None)
def test_arrays_do_what_drawndo(k, x, y):
    def lift(value: float) -> Element:
        return k.carrier.weigh(torch.tensor([value], dtype=torch.float64), k.carrier.one(torch.ones(1)))

    def plain(g: Element) -> float:
        return float(k.carrier.plain(g))

    both: Element = tuple(torch.cat(planes)[None] for planes in zip(lift(x), lift(y), strict=True))
    assert plain(lift(x)) == k.lift(x)
    assert plain(k.carrier.plus(lift(x), lift(y))) == k.plus(k.lift(x), k.lift(y)) == plain(k.carrier.reduce(both))
    assert plain(k.carrier.weigh(torch.tensor([x]), lift(y))) == k.times(k.lift(x), k.lift(y))
    empty: Element = tuple(p[:, :0] for p in both)
    assert plain(k.carrier.reduce(empty)) == k.zero


def test_names():
    assert named("max") is Max is named(Max)
    with pytest.raises(UnknownName, match=r"'Max'.*sum, abssum, max, count"):
        named("Max")


@pytest.mark.parametrize("value", [1e-200, 1e200, 5e-324, 0.0, -3.5])
def test_plain_values_come_back(value):
    g = normalised(torch.tensor([value], dtype=torch.float64))
    assert Scaled().plain(g).item() == value


def test_plain_values_out_of_range_are_zero_or_infinite():
    g = element([(3, -2000), (3, 2000), (1, -1074)], (3,))
    plain: Tensor = Scaled().plain(g)
    assert plain.tolist() == [0.0, math.inf, 5e-324]
