"""What a scalar graph of a tape has on request: values, names, zeros, components; and passes over a whole tape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from programs import programs
from test_brute_force import record as run
from torch import nn
from torch.nn import functional

from gradtrace import Count, Entropy, Graded, Max, Power, SignedMax, Slice, Sum, Through, TopK, record
from gradtrace.errors import BadArgument, UnknownName
from gradtrace.scalar import BadGraph, all_pairs, backpropagate, forward, from_tape, levels, vertex


def small() -> tuple:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    with record(model) as tape:
        loss = functional.cross_entropy(model(x), torch.tensor([1]))
    return tape, loss, model, x


def test_values_are_those_of_the_forward_pass():
    tape, loss, model, x = small()
    graph = from_tape(tape, loss, values=True, names=True)
    nodes = graph.nodes(data="value")
    assert dict(nodes)["0.weight[1,1]"] == model[0].weight[1, 1].item()
    assert dict(nodes)[graph.graph["loss"]] == loss.item()
    hidden = model[0](x).tolist()[0]
    assert all(dict(nodes)[f"addmm#1[0,{i}]"] == h for i, h in enumerate(hidden) if f"addmm#1[0,{i}]" in graph)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=True))
def test_options_change_no_pass(program):
    tape, loss, leaves = run(program)
    plain = from_tape(tape, loss)
    full = from_tape(tape, loss, values=True, keep_zero=True, names=True)
    names = {v: data["name"] for v, data in plain.nodes(data=True)}
    for semiring in (Sum, Max, Count):
        expected = backpropagate(plain, plain.graph["loss"], semiring)
        found = backpropagate(full, full.graph["loss"], semiring)
        assert {names[v]: g for v, g in expected.items()} == {name: found[name] for name in names.values()}
        assert not any(found[name] for name in set(full) - set(names.values()))
    for name, leaf in leaves.items():
        numbers = [full.nodes[v]["value"] for v in full if "value" in full.nodes[v] and full.nodes[v]["leaf"] == name]
        assert set(numbers) <= set(leaf.flatten().tolist())


def test_a_relu_that_is_off_is_kept_on_request():
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = x.relu().sum()
    assert sorted(from_tape(tape, loss, names=True)) == ["relu#0[0]", "relu#0[1]", "sum#1", "x[0]"]
    graph = from_tape(tape, loss, names=True, keep_zero=True)
    edges = sorted((v, u, w) for v, u, w in graph.edges(data="weight") if u.startswith("relu"))
    assert edges == [("x[0]", "relu#0[0]", 1.0), ("x[1]", "relu#0[1]", 0.0)]  # and none across


def test_a_cross_entropy_keeps_one_class_of_thirty():
    x = torch.randn(1, 30, requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = functional.cross_entropy(x, torch.tensor([7]))
    for keep_zero in (False, True):
        graph = from_tape(tape, loss, names=True, keep_zero=keep_zero)
        assert [v for v in graph if v.startswith("log_softmax")] == ["log_softmax#0[0,7]"]


def test_names_that_collide_are_refused():
    x = torch.tensor(2.0, requires_grad=True)
    with record(names={"sin#0": x}) as tape:
        loss = x.sin()
    assert len(from_tape(tape, loss)) == 2
    with pytest.raises(BadGraph, match="two vertices would be called sin#0: name the leaves otherwise"):
        from_tape(tape, loss, names=True)


def test_vertices_are_found_by_leaf_and_index():
    tape, loss, model, _ = small()
    graph = from_tape(tape, loss)
    g = backpropagate(graph, graph.graph["loss"])
    loss.backward()
    for name, parameter in model.named_parameters():
        for index in torch.cartesian_prod(*map(torch.arange, parameter.shape)).reshape(parameter.numel(), -1).tolist():
            found = g[vertex(graph, name, *index)] if parameter.grad[tuple(index)] != 0 else 0.0
            assert found == pytest.approx(parameter.grad[tuple(index)].item(), rel=1e-12)
    with pytest.raises(UnknownName, match=r"no scalar 0.weight\[9,9\] in the graph; there are 0.weight\[1,0\]"):
        vertex(graph, "0.weight", 9, 9)


@pytest.mark.parametrize(
    "semiring",
    [Sum, Max, Count, Entropy, Power(3), TopK(3), SignedMax, "graded", Graded(1), Graded(by=("0", "2"), semiring=Max),
     Through(), Through(("aten::relu", "0")), Through((Slice("0", axis=1, of=3, index=1),)), Graded(by=("[02]",))],
)  # fmt: skip
def test_every_semiring_has_the_form_that_it_has_on_a_tape(semiring):
    tape, loss, _, _ = small()
    graph = from_tape(tape, loss)
    g = backpropagate(graph, graph.graph["loss"], semiring)
    for name, leaf in tape.leaves.items():
        (expected,) = tape.grad(loss, [name], semiring)
        for flat in range(leaf.numel):
            if (leaf.id, flat) in graph:
                found = torch.tensor(g[leaf.id, flat], dtype=torch.float64)
                wanted = expected.reshape(*expected.shape[: expected.dim() - len(leaf.shape)], -1)[..., flat]
                torch.testing.assert_close(found, wanted.double(), rtol=1e-9, atol=1e-12)


def test_an_attention_head_is_for_the_tape():
    tape, loss, _, _ = small()
    graph = from_tape(tape, loss)
    with pytest.raises(BadArgument, match="numbered axes"):
        backpropagate(graph, graph.graph["loss"], Through((Slice("0", axis="head", of=3, index=0),)))


def test_passes_over_a_whole_tape():
    w = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    with record(names={"w": w}) as tape:
        y = w * w
        y.sum()
        y.prod()
    d = forward(tape, "w[1]")
    assert (d["sum#1"], d["prod#2"], d["mul#0[0]"]) == (6, 24, 0)
    assert all_pairs(tape, "count")["w[0]"] == {
        "w[0]": 1, "w[1]": 0, "mul#0[0]": 2, "mul#0[1]": 0, "sum#1": 2, "prod#2": 2,
    }  # fmt: skip
    assert levels(tape) == [["w[0]", "w[1]"], ["mul#0[0]", "mul#0[1]"], ["sum#1", "prod#2"]]


# ---------------------------------------------------------------- tape.jacobian


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(exact=False))
def test_the_jacobians_of_a_tape_multiply_to_its_gradient(program):
    """Δ(i) = Σ Jacobianᵀ Δ(j), over all calls from the last to the first, is the gradient (11.3.6)."""
    tape, loss, leaves = run(program)
    delta = {tape.value_of(loss).id: torch.ones((), dtype=torch.float64)}
    for call in reversed(tape.calls):
        for o, y in enumerate(call.outputs):
            if y is None or y.id not in delta or not y.dtype.is_floating_point:
                continue
            for k, x in enumerate(call.inputs):
                if x.value is not None and x.value.dtype.is_floating_point:
                    matrix = tape.jacobian(call, k, o).reshape(y.numel, x.value.numel).double()
                    carried = (matrix.mT @ delta[y.id].reshape(-1)).reshape(x.value.shape)
                    delta[x.value.id] = delta.get(x.value.id, 0) + carried
    found = tape.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, leaf), g in zip(leaves.items(), found, strict=True):
        expected = torch.zeros(leaf.shape, dtype=torch.float64) if g is None else g.double()
        none = torch.zeros(leaf.shape, dtype=torch.float64)
        ours = delta.get(tape.leaves[name].id, none) if name in tape.leaves else none
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_number_by_a_number():
    w = torch.tensor(3.0, requires_grad=True)
    with record(names={"w": w}) as tape:
        w.exp()
    assert tape.jacobian(0).shape == ()
    assert tape.jacobian(0) == w.exp()


def test_a_call_is_named_or_numbered_and_others_are_refused():
    w, x = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0, 4.0]])
    with record(names={"w": w}) as tape:
        x @ w
    (call,) = tape.calls
    assert tape.jacobian(call, 1).tolist() == tape.jacobian(call.index, argument=1).tolist() == [[3.0, 4.0]]
    assert tape.jacobian(call, 1).shape == (1, 2)
    with pytest.raises(BadArgument, match="no argument 0 that autograd follows; there are 1"):
        tape.jacobian(call, 0)
    with pytest.raises(BadArgument, match="no result 3 that autograd follows; there are 0"):
        tape.jacobian(call, 1, 3)
    with pytest.raises(BadArgument, match="no call 9 on the tape; there are 1"):
        tape.jacobian(9)
