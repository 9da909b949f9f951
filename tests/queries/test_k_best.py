"""k best paths and signed extremes: what `Trace` offers of them."""

from __future__ import annotations

import pytest
import torch
from checks import leaf, recorded
from torch import nn

import gradtrace
from gradtrace import Trace
from gradtrace.errors import UnknownName
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
