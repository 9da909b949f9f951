"""Flow against counting the paths of all scalars, one by one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from checks import F64, leaf, recorded
from torch import Tensor, nn

from gradtrace import Trace, component, record
from gradtrace.queries.flow import Asked, flows


@pytest.fixture(scope="module")
def trace() -> Trace:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 3), "skip": nn.Linear(2, 3), "out": nn.Linear(3, 2)}).double()
    x = torch.randn(4, 2, 2, **F64)
    with record(model) as tape:
        loss = model["out"](model["rnn"](x)[0] + model["skip"](x).relu()).square().mean()
    return tape.trace(loss)


def _scalars(trace: Trace, names: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    leaves = [(n, trace.strength[n]) for n in names]
    return [(n, tuple(i)) for n, s in leaves for i in (s > -torch.inf).nonzero().tolist()]


@pytest.mark.parametrize("kind", ["best", "greedy"])
@pytest.mark.parametrize("weighted", [False, True])
def test_flow_through_operators_and_modules_is_the_sum_over_paths(trace, kind, weighted):
    names = ["rnn.weight_hh_l0", "skip.weight", "out.bias"]
    forest = trace.forest(kind)
    calls, links, total = Counter(), Counter(), 0.0
    top = max(float(forest.log2[trace.tape.leaves[n].id].max()) for n in names)
    for name, index in _scalars(trace, names):
        path = trace.path(name, index, kind=kind)
        log2 = float(forest.log2[trace.tape.leaves[name].id][(0, *index)])
        amount = 2.0 ** (log2 - top) if weighted else 1.0
        total += amount
        before = name
        for step in path.steps:
            calls[step.operator, step.module] += amount
            if step.module != before:
                links[before, step.module] += amount
            before = step.module
    flow = trace.flow(names, kind=kind, weighted=weighted)
    found = Counter()
    for row in flow.calls:
        found[row.operator, row.module] += row.paths
        assert row.share == pytest.approx(row.paths / flow.total)
    assert flow.total == pytest.approx(total)
    assert dict(found) == pytest.approx(dict(calls))
    assert {(k.source, k.target): k.paths for k in flow.links} == pytest.approx(dict(links))


@pytest.mark.parametrize("kind", ["best", "greedy"])
def test_what_leaves_the_leaves_arrives_at_the_loss(trace, kind):
    live = sum(int((trace.forest(kind).winners[v.id] != -1).sum()) for v in trace.tape.leaves.values())
    flow = trace.flow(kind=kind)
    assert flow.total == live == flow.calls[-1].paths
    assert flow.calls[-1].operator == "aten.mean.default"
    into, out = Counter(), Counter()
    for link in flow.links:
        out[link.source] += link.paths
        into[link.target] += link.paths
    for module in {r.module for r in flow.calls} - {""}:
        assert out[module] == into[module]  # the loss is computed outside all modules
    assert into[""] - out[""] == live


def test_calls_that_no_path_crosses_are_left_out():
    def program(x: Tensor) -> Tensor:
        with component("weak"):
            a = x * 0.5
        with component("strong"):
            b = x * 2.0
        return (a + b).sum()

    tape, loss = recorded(program, {"x": leaf(3)})
    flow = tape.trace(loss).flow()
    assert [(r.module, r.paths) for r in flow.calls] == [("strong", 3.0), ("", 3.0), ("", 3.0)]
    assert [(k.source, k.target, k.paths) for k in flow.links] == [("x", "strong", 3.0), ("strong", "", 3.0)]


def test_a_flow_prints_and_gives_a_data_frame(trace):
    flow = trace.flow("rnn*")
    head, *lines = str(flow).splitlines()
    assert head.startswith(f"best flow: {flow.total:g} paths")
    assert any("rnn.weight_hh_l0 → rnn" in line for line in lines)
    frame = flow.to_dataframe()
    assert len(frame) == len(flow.calls)
    assert {"call", "operator", "module", "source", "paths", "share"} <= set(frame.columns)


def test_no_paths_at_all():
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1)}).double()
    with record(model) as tape:
        loss = model["used"](torch.ones(1, 1, **F64)).sum()
    for weighted in (False, True):
        flow = tape.trace(loss).flow("idle*", weighted=weighted)
        assert (flow.total, flow.calls, flow.links) == (0.0, (), ())


def test_edges_lead_from_call_to_call(trace):
    flow = trace.flow("rnn.*")
    into, out = Counter(), Counter()
    for edge in flow.edges:
        into[edge.target] += edge.paths
        out[edge.source] += edge.paths
    assert {row.call: row.paths for row in flow.calls} == pytest.approx(dict(into))
    last = max(into)
    assert {call: n for call, n in into.items() if call != last} == pytest.approx(
        {source: n for source, n in out.items() if isinstance(source, int)}
    )
    assert sum(n for source, n in out.items() if isinstance(source, str)) == pytest.approx(flow.total)


def test_flows_computed_together_are_those_computed_alone(trace):
    asked = [Asked("rnn.*"), Asked("skip.*", weighted=True), Asked("*", weighted=True)]
    for found, one in zip(flows(trace.forest(), asked), asked, strict=True):
        alone = trace.flow(one.of, weighted=one.weighted)
        assert found.total == pytest.approx(alone.total)
        assert {(e.source, e.target): e.paths for e in found.edges} == pytest.approx(
            {(e.source, e.target): e.paths for e in alone.edges}
        )


def test_a_unit_is_the_strongest_path(trace):
    assert trace.flow("rnn.*", weighted=True).unit == max(
        float(trace.strength[n].max()) for n in trace.strength if n[:3] == "rnn"
    )
    assert trace.flow("rnn.*").unit == 0


def test_a_path_weaker_than_any_float_beside_parameters_without_one():
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with record(names={"a": a, "b": b}) as tape:
        loss = (a * 1e-200 * 1e-200).sum() + (b * 0).sum()
    forest = tape.trace(loss).forest()
    found = flows(forest, [Asked("*", weighted=True), Asked("a", weighted=True), Asked("b", weighted=True)])
    assert [f.total for f in found] == pytest.approx([2, 2, 0])


def test_a_result_without_scalars_takes_nobody():
    shared = nn.Linear(2, 2).double()
    with record(shared) as tape:
        loss = (shared(torch.ones(3, 2, **F64)).sum() + shared(torch.ones(0, 2, **F64)).sum()).square()
    flow = tape.trace(loss).flow()
    assert flow.total == 6
    assert {(e.source, e.paths) for e in flow.edges if isinstance(e.source, str)} == {("weight", 4), ("bias", 2)}
