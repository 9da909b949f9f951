"""Axioms, on samples with negatives, zeros, infinities and ties; and what is said of a semiring that isn't one."""

from __future__ import annotations

import math
import operator
from itertools import pairwise

import pytest
import torch
from checks import leaf, recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.semirings import BrokenAxiom, Entropy, Power, SignedMax, TopK, check_axioms, make
from gradtrace.semirings.base import AbsSum, Count, Max, Semiring, Sum
from gradtrace.semirings.graded import polynomial

INF = math.inf
weights = st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.25, 3.0, -7.0, 1e-3, 100.0])
with_infinity = weights | st.sampled_from([INF, -INF])
FAMILY = {
    "entropy": lambda k: Entropy,
    "signedmax": lambda k: SignedMax,
    "topk": TopK,
    "power": lambda k: Power(k + 0.5),
    "count": lambda k: Count,
    "abssum": lambda k: AbsSum,
    "max": lambda k: Max,
    "sum": lambda k: Sum,
    "polynomial": lambda k: polynomial(Sum, k),
    "polynomial of max": lambda k: polynomial(Max, k),
}
FINITE_ONLY = {"sum", "abssum", "max", "polynomial", "polynomial of max"}  # there 0 · ∞ is Python's NaN


@pytest.mark.parametrize("name", FAMILY)
@given(data=st.data(), k=st.integers(1, 4))
@settings(deadline=None, max_examples=200)
def test_axioms_hold(name, data, k):
    semiring = FAMILY[name](k)
    pool = weights if name in FINITE_ONLY else with_infinity
    samples = data.draw(st.lists(pool, min_size=1, max_size=3))
    lifts = [semiring.lift(w) for w in samples]
    more = [semiring.plus(semiring.times(a, b), b) for a, b in pairwise(lifts)]
    if name.startswith("polynomial"):
        z = (semiring.lift(0.0)[0], *[semiring.lift(1.0)[0]] * (len(semiring.zero) - 1))
        more.append(semiring.times(z, lifts[0]))
    check_axioms(semiring, samples, more)


@given(st.lists(with_infinity, min_size=1, max_size=5), st.integers(1, 5))
def test_top_k_of_infinities_and_ties(samples, k):
    semiring, found = TopK(k), ()
    for w in samples:
        found = semiring.plus(found, semiring.lift(w))
    assert found == tuple(sorted((abs(w) for w in samples if w), reverse=True)[:k])


BROKEN = {
    "zero is neutral": {"zero": 1.0},
    "one is neutral": {"one": 2.0},
    "zero annihilates": {"times": operator.add, "one": 0.0},
    "⊕ is commutative": {"plus": lambda a, b: a if a else b},
    "⊗ is commutative": {"times": lambda a, b: 0.0 if a * b == 0 else a if b == 1 else b if a == 1 else a},
    "⊕ is associative": {"plus": lambda a, b: a + b if 0 in (a, b) else (a + b) / 2},
    "⊗ is associative": {"times": lambda a, b: a * b if {a, b} & {0, 1} else (a * b) ** 2 + 1},
    "⊗ distributes over ⊕": {"plus": lambda a, b: a + b + a * b},
    "an absent edge lifts to zero": {"lift": lambda w: w * w + (w == 0)},
    "the weight 1 lifts to one": {"lift": lambda w: 2 * w},
    "λ is multiplicative": {"plus": max, "times": min, "one": INF, "lift": lambda w: INF if w == 1 else abs(w)},
}


@pytest.mark.parametrize("axiom", BROKEN)
def test_a_broken_axiom_is_named_with_numbers_on_which_it_fails(axiom):
    parts = {"zero": 0.0, "one": 1.0, "plus": operator.add, "times": operator.mul, "lift": float, **BROKEN[axiom]}
    broken = Semiring("mine", **parts, carrier=Sum.carrier)
    with pytest.raises(BrokenAxiom, match=rf"^mine breaks an axiom, {axiom}.*is not"):
        check_axioms(broken)


def test_nan_equals_nothing():
    nan = Semiring("mine", 0.0, 1.0, lambda a, b: math.nan, operator.mul, float, Sum.carrier)
    with pytest.raises(BrokenAxiom, match="nan is not"):
        check_axioms(nan)


# ---------------------------------------------------------------- one's own


def test_ones_own_semiring_is_served_by_every_kernel():
    weakest = make(
        "weakest",
        zero=INF,
        one=1.0,
        plus=torch.minimum,
        times=torch.mul,
        lift=lambda w: torch.where(w == 0, INF, w.abs()),
    )
    x = leaf(2, 3)
    w = leaf(4, 3, seed=1)
    tape, loss = recorded(lambda x, w: (torch.softmax(x @ w.t(), 1) * 2).square().sum(), {"x": x, "w": w})
    (found,) = tape.grad(loss, "w", weakest)
    p, one = torch.softmax(x @ w.t(), 1).detach(), torch.eye(4)
    for i in range(4):
        for j in range(3):
            paths = [
                abs(x[b, j].detach() * (p[b, u] * (one[u, i] - p[b, i])) * 2 * (2 * 2 * p[b, u])).item()
                for b in range(2)
                for u in range(4)
            ]
            assert found[i, j].item() == pytest.approx(min(paths), rel=1e-9)


def test_elements_of_several_parts():
    up_and_down = make(
        "up and down",
        zero=(0.0, 0.0),
        one=(1.0, 0.0),
        plus=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        times=lambda a, b: (a[0] * b[0] + a[1] * b[1], a[0] * b[1] + a[1] * b[0]),
        lift=lambda w: (w.clamp(min=0), (-w).clamp(min=0)),
    )
    tape, loss = recorded(lambda x, w: torch.tanh(x @ w).prod(1).sum(), {"x": leaf(2, 3), "w": leaf(3, 4, seed=1)})
    ((up, down), (gradient,), (flow,)) = (*tape.grad(loss, "w", up_and_down), *tape.grad(loss, "w", [Sum, AbsSum]))
    assert torch.allclose(up - down, gradient)
    assert torch.allclose(up + down, flow)


def test_making_one_that_is_none_says_which_axiom_fails():
    with pytest.raises(BrokenAxiom, match="bottleneck breaks an axiom, the weight 1 lifts to one"):
        make("bottleneck", zero=0.0, one=INF, plus=torch.maximum, times=torch.minimum, lift=torch.abs)
