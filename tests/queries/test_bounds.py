"""Certified gaps: above every path by Power, below by a concrete one."""

from __future__ import annotations

import math

import pytest
import torch
from checks import leaf, recorded
from hypothesis import given, settings
from programs import programs
from test_brute_force import record

import gradtrace
from gradtrace.queries.bounds import Bound
from gradtrace.semirings import Count, Power


@given(programs(exact=False))
@settings(deadline=None, max_examples=60)
def test_the_strongest_path_lies_between(program):
    tape, loss, leaves = record(program)
    trace = tape.trace(loss)
    counts = tape.grad(loss, list(leaves.values()), Count, allow_unused=True)
    for (name, tensor), count in zip(leaves.items(), counts, strict=True):
        strength = trace.strength[name].flatten()
        for flat in range(tensor.numel()):
            if count is None or strength[flat] == -math.inf:
                continue
            index = tuple(int(i) for i in (flat // 2, flat % 2)) if tensor.dim() == 2 else (flat,) * tensor.dim()
            best = trace.path(name, index)
            bound = trace.bound(name, index, p=6, path=best)
            assert bound.holds
            assert bound.lower_log2 == pytest.approx(float(strength[flat]), abs=1e-9)
            assert bound.gap <= math.log2(float(count.flatten()[flat])) / 6 + 1e-9  # Power(p) ≤ N^(1/p) Max


def test_one_path_is_certified_to_be_the_best():
    tape, loss = recorded(lambda x: x.exp().sin().sum(), {"x": leaf(3)})
    bound = tape.trace(loss).bound("x", 1)
    assert (bound.best, bound.holds, bound.path.kind) == (True, True, "greedy")
    assert bound.gap == pytest.approx(0, abs=1e-9)


def test_rounding_of_large_logarithms_is_allowed_for():
    x = torch.tensor([4.020745683687198e-40], dtype=torch.float64, requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        loss = x.pow(2).pow(2).sum()
    trace = tape.trace(loss)
    bound = trace.bound("x", 0, p=6, path=trace.path("x", 0))
    assert bound.holds
    assert bound.best
    assert bound.slack < 1e-11


def test_a_larger_p_is_tighter():
    tape, loss = recorded(lambda x, w: ((x @ w).tanh() @ w).square().sum(), {"x": leaf(2, 3), "w": leaf(3, 3, seed=2)})
    trace = tape.trace(loss)
    best = trace.path("w", (0, 1))
    gaps = [trace.bound("w", (0, 1), p=p, path=best).gap for p in (1, 2, 4, 8, 16)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 4 * gaps[-1] > 0
    norms = [tape.grad(loss, "w", Power(p), log2=True)[0][0, 1].item() for p in (1, 2, 4, 8, 16)]
    assert gaps == pytest.approx([n - best.log2_weight for n in norms], abs=1e-9)


def test_bounds_of_recorded_tensors_and_how_they_print():
    tape, loss = recorded(lambda x: (x * x).sum(), {"x": leaf(2)})
    bound = tape.trace(loss).bound("x", 0, p=2)
    assert bound.gap == pytest.approx(0.5)  # two paths of equal weight: √2
    assert str(bound).endswith("by power:2, 1.41× that")
    assert not bound.best
    assert not Bound(bound.path, 2.0, bound.lower_log2 - 1).holds


def test_in_float32_rounding_is_allowed_for():
    x = torch.tensor([0.3, 0.7, 1.1], requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        h = x
        for _ in range(40):
            h = h.sin()
        loss = h.sum()
    trace = tape.trace(loss)
    for i in range(3):
        bound = trace.bound("x", i)
        assert bound.holds
        assert bound.best
        assert bound.slack < 1e-3


@pytest.mark.parametrize("x", [5.5, 7.0, 7.25, 9.0, 12.0])
def test_where_tanh_is_saturated_every_number_is_the_same(x):
    """1 - y² cancels there: what is rounded once or twice differs in the tenth digit."""
    leaves = {"x": torch.tensor(x, dtype=torch.float64).requires_grad_()}
    tape, loss = recorded(lambda x: torch.tanh(x) * 1, leaves)
    trace = tape.trace(loss)
    assert trace.bound("x", ()).holds
    assert trace.path("x", ()).log2_weight == pytest.approx(float(trace.strength["x"]), rel=0, abs=1e-12)
