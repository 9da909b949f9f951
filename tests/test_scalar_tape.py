"""The scalar graph of a tape: what is a vertex, what is an edge, and that autograd agrees."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gradtrace import record
from gradtrace.errors import NotANumber, NotOnTape, NotScalar
from gradtrace.scalar import BadGraph, TooLarge, backpropagate, from_tape
from gradtrace.semirings.base import Count, Sum


def leaf(*values: float) -> torch.Tensor:
    """Make a vector, or of one value a scalar."""
    data = torch.tensor(values, dtype=torch.float64)
    return (data if len(values) > 1 else data.squeeze(0)).requires_grad_()


def gradients(tape, loss, tensor, semiring=Sum) -> list[float]:
    """Backpropagate through the scalar graph and read off a leaf; what is not in the graph has zero."""
    graph = from_tape(tape, loss)
    g = backpropagate(graph, graph.graph["loss"], semiring)
    value = tape.value_of(tensor)
    return [g.get((value.id, i), semiring.zero) for i in range(value.numel)]


def test_a_product_with_itself_has_two_edges_and_a_power_one():
    x = leaf(3.0)
    with record(names={"x": x}) as tape:
        square, power = x * x, x.pow(2)
    for loss, weights in ((square, [3, 3]), (power, [6])):
        edges = list(from_tape(tape, loss).edges(data=True))
        assert [data["weight"] for _, _, data in edges] == weights
        assert [data["argument"] for _, _, data in edges] == list(range(len(weights)))
        assert {(v, u) for v, u, _ in edges} == {((tape.value_of(x).id, 0), (tape.value_of(loss).id, 0))}


def test_attributes_of_vertices_and_edges():
    w, x = leaf(2.0, 3.0), torch.tensor([[1.0, 0.0], [5.0, 7.0]], dtype=torch.float64)
    with record(names={"w": w}) as tape:
        loss = torch.mv(x, w).sum()
    graph = from_tape(tape, loss)
    assert graph.graph["loss"] == (tape.value_of(loss).id, 0)
    labels = [data["label"] for _, data in graph.nodes(data=True)]
    assert labels == ["w[0]", "w[1]", "aten.mv.default#0[0]", "aten.mv.default#0[1]", "aten.sum.default#1"]
    assert [data["leaf"] for _, data in graph.nodes(data=True)] == ["w", "w", None, None, None]
    # w is argument 1 of mv, and w[1] has no edge to row 0, where its factor is 0
    assert [(v[1], u[1], data["weight"], data["order"]) for v, u, data in graph.edges(data=True)] == [
        (0, 0, 1.0, (0, 1, 0, 0)),
        (0, 1, 5.0, (0, 1, 0, 1)),
        (1, 1, 7.0, (0, 1, 0, 1)),
        (0, 0, 1.0, (1, 0, 0, 0)),
        (1, 0, 1.0, (1, 0, 0, 0)),
    ]


def test_an_operator_is_the_unit():
    x = leaf(0.5, -1.0, 2.0)
    with record(names={"x": x}) as tape:
        loss = functional.log_softmax(x, 0)[1]
    graph = from_tape(tape, loss)
    p = torch.softmax(x.detach(), 0)
    weights = {v[1]: data["weight"] for v, u, data in graph.edges(data=True) if graph.nodes[v]["leaf"] and u[1] == 1}
    assert weights == pytest.approx({0: -float(p[0]), 1: 1 - float(p[1]), 2: -float(p[2])}, rel=1e-14)


def test_a_small_network_has_autograds_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    ).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    with record(model) as tape:
        loss = functional.cross_entropy(model(x), torch.tensor([2, 0]))
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert gradients(tape, loss, parameter) == pytest.approx(
            parameter.grad.flatten().tolist(), rel=1e-12, abs=1e-15
        )


def test_several_results_views_and_writes():
    x = leaf(1.0, -4.0, 2.0, 3.0)
    with record(names={"x": x}) as tape:
        top, low = x.view(2, 2).t().unbind(0)  # (1, 2), (-4, 3)
        y = top * low
        y[0] += 3 * x[3]
        y.mul_(y.detach() * 0.5).exp_()
        loss = y.max() - torch.stack([low, top]).amin(0).sum()
    loss.backward()
    assert x.grad is not None
    assert gradients(tape, loss, x) == pytest.approx(x.grad.tolist(), rel=1e-14)


def test_what_autograd_cuts_is_cut():
    x = leaf(2.0)
    with record(names={"x": x}) as tape:
        with torch.no_grad():
            constant = x * 7
        loss = x * x.detach() * constant
    assert gradients(tape, loss, x) == [28.0]
    assert gradients(tape, loss, x, Count) == [1]


def test_only_what_reaches_the_loss_is_in_the_graph():
    x, y = leaf(2.0), leaf(3.0)
    with record(names={"x": x, "y": y}) as tape:
        loss = x.exp()
        loss.sin()
        y.cos()
    graph = from_tape(tape, loss)
    assert [data["label"] for _, data in graph.nodes(data=True)] == ["x", "aten.exp.default#0"]


def test_every_vertex_of_the_graph_leads_to_the_loss():
    """Of the values on the way, many scalars may lead nowhere: all classes but one, what is multiplied by 0."""
    w = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with record(names={"w": w}) as tape:
        scores = w @ torch.tensor([1.0, 0.0], dtype=torch.float64)
        loss = functional.cross_entropy(scores[None], torch.tensor([3])) + scores.relu()[:2].sum()
    graph = from_tape(tape, loss)
    assert [v for v in graph if graph.out_degree(v) == 0] == [graph.graph["loss"]]
    assert {i for v, i in graph if v == tape.value_of(w).id} == {0, 2, 4, 6, 8, 10}  # the others are multiplied by 0
    assert backpropagate(graph, graph.graph["loss"], "count")[tape.value_of(w).id, 4] == 1


def test_a_leaf_can_be_the_loss():
    x = leaf(2.0)
    with record(names={"x": x}) as tape:
        x.sin()
    graph = from_tape(tape, x)
    assert list(graph) == [graph.graph["loss"]]
    assert gradients(tape, x, x) == [1]


def test_a_shared_leaf_has_edges_at_every_step():
    w = leaf(1.5)
    with record(names={"w": w}) as tape:
        h = w * 2
        for _ in range(4):
            h = torch.tanh(w * h)
    graph = from_tape(tape, h)
    assert graph.out_degree((tape.value_of(w).id, 0)) == 5
    assert gradients(tape, h, w, Count) == [5]


def test_too_large_a_graph_is_refused_before_it_is_built():
    x = leaf(*[1.0] * 30)
    with record(names={"x": x}) as tape:
        loss = torch.outer(x, x).sum()
    with pytest.raises(TooLarge, match=r"may have [\d,]+ edges, more than max_edges=1,000;.*max_edges=\d+\)"):
        from_tape(tape, loss, max_edges=1000)


def test_a_tape_refuses_other_losses():
    x = leaf(1.0, 2.0)
    with record(names={"x": x}) as tape:
        y = x.exp()
    with pytest.raises(NotScalar, match=r"shape \(2,\)"):
        from_tape(tape, y)
    with pytest.raises(NotOnTape):
        from_tape(tape, leaf(1.0).sin())


def test_nan_is_an_error_that_names_the_operator():
    x, y = leaf(-1.0), leaf(0.0)
    with record(names={"x": x, "y": y}) as tape:
        value, derivative = x.sqrt(), torch.hypot(y, y)
    with pytest.raises(NotANumber, match=r"aten.sqrt.*result 0 is NaN"):
        from_tape(tape, value)
    with pytest.raises(NotANumber, match=r"aten.hypot.*derivative by argument 0 is NaN"):
        from_tape(tape, derivative)


def test_random_operators_are_refused():
    x = leaf(-1.0, -2.0)
    with record(names={"x": x}) as tape:
        loss = functional.rrelu(x, training=True).sum()
    with pytest.raises(BadGraph, match=r"aten.rrelu_with_noise.*random"):
        from_tape(tape, loss)


def test_running_statistics_are_left_alone():
    model = torch.nn.BatchNorm1d(2).double()
    with record(model) as tape:
        loss = model(torch.arange(8.0, dtype=torch.float64).view(4, 2)).pow(3).sum()
    before = [buffer.clone() for buffer in model.buffers()]
    from_tape(tape, loss)
    assert all(map(torch.equal, before, model.buffers()))


def test_dropout_is_a_constant_mask():
    x = leaf(*[1.0] * 20)
    with record(names={"x": x}) as tape:
        loss = functional.dropout(x, 0.5).sum()
    loss.backward()
    assert x.grad is not None
    assert gradients(tape, loss, x) == x.grad.tolist()


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x.t().as_strided((4,), (1,), 1),
        lambda x: x.t().unflatten(0, (1, 3))[0, 1],
        lambda x: x[:, 1].view(3, 1),
        lambda x: x.expand(2, 3, 3).reshape(18),
        lambda x: x.flatten().unfold(0, 3, 2),
    ],
)
def test_views_of_views(code):
    x = torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3).requires_grad_()
    with record(names={"x": x}) as tape:
        y = code(x)
        loss = (y * torch.arange(1.0, y.numel() + 1, dtype=torch.float64).view(y.shape)).sum()
    loss.backward()
    assert x.grad is not None
    assert gradients(tape, loss, x) == x.grad.flatten().tolist()


def _negate_diagonal(y):
    y.diagonal().mul_(-3)


def _double_a_column(y):
    y.t()[1].mul_(2)


def _copy_a_row(y):
    y[0].copy_(y[2])


def _zero_a_corner(y):
    y[1:, 1:].zero_()


@pytest.mark.parametrize("write", [_negate_diagonal, _double_a_column, _copy_a_row, _zero_a_corner])
def test_writes_through_views(write):
    x = torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3).requires_grad_()
    with record(names={"x": x}) as tape:
        y = x * 2
        write(y)
        loss = (y * torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3)).sum()
    loss.backward()
    assert x.grad is not None
    assert gradients(tape, loss, x) == x.grad.flatten().tolist()
