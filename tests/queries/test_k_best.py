"""k best paths and signed extremes: what `Trace` offers of them."""

from __future__ import annotations

import pytest
import torch
from checks import leaf, recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import programs
from test_brute_force import Oracle, record, weight
from torch import nn

import gradtrace
from gradtrace import Trace
from gradtrace.errors import UnknownName
from gradtrace.kernels import native
from gradtrace.queries.k_best import Ranking
from gradtrace.queries.paths import NoPath


@pytest.fixture(scope="module")
def trace() -> Trace:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    with gradtrace.record(model) as tape:
        loss = torch.softmax(model(x), 1).square().sum()
    return tape.trace(loss)


def test_the_first_of_k_is_the_best_path(trace):
    first, *rest = trace.paths("0.weight", (1, 2), k=5)
    assert str(first) == str(trace.path("0.weight", (1, 2)))
    weights = [first.log2_weight, *(p.log2_weight for p in rest)]
    assert weights == sorted(weights, reverse=True)
    assert len({str(p) for p in [first, *rest]}) == 5


def test_the_best_of_a_whole_group(trace):
    found = trace.paths("0.*", k=6)
    every = [p for name in ("0.weight", "0.bias") for at in indices(trace, name) for p in trace.paths(name, at, k=6)]
    assert [p.log2_weight for p in found] == sorted((p.log2_weight for p in every), reverse=True)[:6]
    assert found[0].log2_weight == pytest.approx(max(float(trace.strength[n].max()) for n in ("0.weight", "0.bias")))
    assert {p.start for p in found} <= {"0.weight", "0.bias"}
    assert [str(p) for p in trace.paths("0.*", k=2)] == [str(p) for p in found[:2]]


def indices(trace: Trace, name: str) -> list[tuple[int, ...]]:
    shape = trace.tape.leaves[name].shape
    return [
        tuple(int(i) for i in torch.unravel_index(torch.tensor(f), shape)) for f in range(torch.Size(shape).numel())
    ]


def test_fewer_where_there_are_fewer():
    tape, loss = recorded(lambda x: (x[0] * x[0]) + 0 * x[1], {"x": leaf(2)})
    trace = tape.trace(loss)
    assert len(trace.paths("x", 0, k=10)) == 2  # x·x has two edges
    assert trace.paths("x", 1, k=10) == []
    assert len(trace.paths(k=10)) == 2


def test_paths_of_a_recorded_tensor():
    x = leaf(3)
    with gradtrace.record(names={"x": x}) as tape:
        h = x.exp()
        loss = (h * h.sum()).sum()
    trace = tape.trace(loss)
    assert len(trace.paths(h, 0, k=10)) == 4  # h·Σh: as the factor, and through the sum, for each of three
    assert len(trace.paths(h, k=5)) == 5


def test_an_index_needs_one_parameter(trace):
    with pytest.raises(UnknownName, match="an index needs one parameter"):
        trace.paths(["0.weight"], (0, 0))
    with pytest.raises(UnknownName, match="has shape"):
        trace.paths("0.weight", (9, 9))


def test_extremes_are_paths_of_either_sign(trace):
    most, least = trace.extremes("0.weight", (1, 2))
    both = trace.paths("0.weight", (1, 2), k=100)
    assert most.weight == pytest.approx(max(p.weight for p in both))
    assert least.weight == pytest.approx(min(p.weight for p in both))
    assert most.kind == "extreme"


def test_no_extremes_without_a_path():
    tape, loss = recorded(lambda x: x[0] * 2, {"x": leaf(2)})
    with pytest.raises(NoPath):
        tape.trace(loss).extremes("x", 1)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=True), st.integers(1, 12), st.sampled_from(["native", "reference"]))
def test_the_strongest_of_all_leaves_as_by_enumeration(program, k, kernels):
    """In the order of weights, then of leaves, of their scalars, and of edges, where numbers are exact."""
    tape, loss, _ = record(program)
    oracle = Oracle(tape, loss)
    leaves = list(tape.leaves.values())
    every = [
        (-weight(route), n, flat, [e.order for e in route])
        for n, value in enumerate(leaves)
        for flat in range(value.numel)
        for route in oracle.routes((value.id, flat))
    ]
    with native.using(kernels):
        trace = tape.trace(loss)
        ranking = Ranking(tape.record, trace.root, "best")
        found = ranking.strongest(trace.forest(), leaves, k)
    chosen = sorted(every)[:k]
    assert [(p.start, p.index) for p in found] == [(str(leaves[n]), at(leaves[n], flat)) for _, n, flat, _ in chosen]
    calls = [tuple(tape.calls[call].name for call, *_ in route) for *_, route in chosen]
    assert [tuple(s.operator for s in p.steps) for p in found] == calls
    assert [abs(p.weight) for p in found] == [-w for w, *_ in chosen]


def at(value, flat: int) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), value.shape)) if value.shape else ()


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_beyond_the_range_of_a_float(kernels):
    def tiny(x):
        for _ in range(40):
            x = x * 1e-30 + x * -1e-31
        return x.sum()

    tape, loss = recorded(tiny, {"x": leaf(2)})
    with native.using(kernels):
        trace = tape.trace(loss)
        first, second = trace.paths("x", 0, k=2)
        most, least = trace.extremes("x", 0)
    bits = torch.tensor([1e-30, 1e-31], dtype=torch.float64).log2().tolist()
    assert first.log2_weight == pytest.approx(40 * bits[0])
    assert second.log2_weight == pytest.approx(39 * bits[0] + bits[1])
    assert most.log2_weight == pytest.approx(first.log2_weight)
    assert least.log2_weight == pytest.approx(second.log2_weight)


def test_in_float32_the_order_is_that_of_exact_products():
    """Weights that float32 cannot tell apart, or rounds the wrong way, are compared as they are."""
    x = torch.tensor([1.0], requires_grad=True)
    a, b, c = (torch.tensor(v) for v in (1 + 2.0**-23, 1 + 2.0**-22, 1 + 3 * 2.0**-23))
    with gradtrace.record(names={"x": x}) as tape:
        loss = (x * a * a * a + x * c + x * a * b).sum()  # (1+e)³, 1+3e, (1+e)(1+2e): one number in float32
    found = tape.trace(loss).paths("x", 0, k=3)
    assert [sum(s.operator == "aten.mul.Tensor" for s in p.steps) for p in found] == [3, 2, 1]
    exact = [p.weight for p in found]
    assert exact == sorted(exact, reverse=True)
    assert len(set(exact)) == 3


def test_many_equally_strong_paths_come_in_the_order_of_edges():
    x = leaf(1)
    with gradtrace.record(names={"x": x}) as tape:
        h = x.expand(300)
        for _ in range(30):
            h = h + h  # 300 · 2^30 paths of weight 1
        loss = h.sum()
    found = tape.trace(loss).paths("x", 0, k=5)
    assert {p.weight for p in found} == {1.0}
    assert [p.steps[0].index for p in found] == [(0,)] * 5
    arguments = [[s.argument for s in p.steps if s.operator == "aten.add.Tensor"] for p in found]
    assert arguments == [[0] * 30, [0] * 29 + [1], [0] * 28 + [1, 0], [0] * 28 + [1, 1], [0] * 27 + [1, 0, 0]]


def test_a_pass_serves_what_it_has_seen():
    """One scalar's paths look at what its value leads to alone, and the pass over that is kept."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with gradtrace.record(model) as tape:
        loss = model(torch.randn(2, 3)).exp().sum()
    ranking = tape.trace(loss)._rankings["best"]
    last, first = (tape.find(name) for name in ("2.bias", "0.bias"))
    ranking.paths(last, 0, 2)
    few = ranking.levels
    ranking.paths(first, 0, 2)
    most = ranking.levels
    assert set(few) < set(most)
    ranking.paths(last, 0, 2)
    assert ranking.levels is most
    assert not {v.id for v in tape.leaves.values()} & set(most)
