"""The published numbers: worked examples of the source texts, by hand-built graph and by recorded code.

Each example is computed three ways, none of which knows of the others: from the closed form, on a scalar
graph whose local derivatives are written here by hand, and from PyTorch code that was recorded.
The recorded code is then asked by `tape.grad`, by `tape.trace`, and through `from_tape`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, exp, log, sin, sqrt, tanh
from typing import Any

import networkx
import pytest
import torch
from torch import Tensor

from gradtrace import record
from gradtrace.scalar import all_pairs, backpropagate, best_path, crossing, from_tape, greedy_path, paths
from gradtrace.semirings.base import AbsSum, Count, Max, Semiring, Sum

SEMIRINGS = (Sum, AbsSum, Max, Count)
Terms = Sequence[float]  # the weights of all paths from one leaf scalar to the loss


def aggregate(semiring: Semiring, weights: Terms) -> float:
    """Aggregate path weights as the semiring's definition says. Weights of 0 are no paths."""
    sizes = [abs(w) for w in weights if w != 0]
    results = {"sum": sum(weights), "abssum": sum(sizes), "max": max(sizes, default=0.0), "count": len(sizes)}
    return results[semiring.name]


def close(expected: Any) -> Any:
    """Allow some twenty roundings of a float64."""
    return pytest.approx(expected, rel=4e-15, abs=0)


def close_log2(expected: Any) -> Any:
    """Allow as many in a logarithm."""
    return pytest.approx(expected, rel=0, abs=1e-14)


def aggregated(semiring: Semiring, weights: Terms) -> Any:
    """Allow the same in each term: in a sum where paths cancel, more than in the result."""
    tolerance = 4e-15 * aggregate(AbsSum, weights) if semiring is Sum else 0
    return pytest.approx(aggregate(semiring, weights), rel=4e-15, abs=tolerance)


def by_hand(*edges: tuple[Any, Any, float]) -> networkx.MultiDiGraph:
    graph = networkx.MultiDiGraph()
    for v, u, weight in edges:
        graph.add_edge(v, u, weight=weight)
    return graph


def check_graph(graph: networkx.MultiDiGraph, loss: Any, expected: dict[Any, Terms]) -> None:
    """Check a scalar graph against the weights of all paths from some of its vertices."""
    for vertex, weights in expected.items():
        found = sorted(path.weight for path in paths(graph, vertex, loss))
        assert found == close(sorted(w for w in weights if w != 0))
        for semiring in SEMIRINGS:
            assert backpropagate(graph, loss, semiring)[vertex] == aggregated(semiring, weights)


@dataclass(frozen=True)
class Recorded:
    """PyTorch code that was recorded, with its leaves by name."""

    tape: Any
    loss: Tensor
    leaves: dict[str, Tensor]

    def check(self, expected: Mapping[str, Sequence[Terms]]) -> None:
        """Check all that a tape can say against the weights of all paths from every scalar of some leaves."""
        tensors = [self.leaves[name] for name in expected]
        for semiring in SEMIRINGS:
            results = self.tape.grad(self.loss, tensors, semiring=semiring)
            for (name, terms), result in zip(expected.items(), results, strict=True):
                assert result.shape == self.leaves[name].shape
                assert result.flatten().tolist() == [aggregated(semiring, weights) for weights in terms]
        self._check_trace(expected)
        self._check_scalar_graph(expected)

    def _check_trace(self, expected: Mapping[str, Sequence[Terms]]) -> None:
        trace = self.tape.trace(self.loss)
        for name, terms in expected.items():
            assert trace.strength[name].dtype == torch.float64
            assert trace.strength[name].shape == self.leaves[name].shape
            strongest = [aggregate(Max, weights) for weights in terms]
            logs = [math.log2(w) if w else -math.inf for w in strongest]
            assert trace.strength[name].flatten().tolist() == close_log2(logs)
            for i, size in enumerate(strongest):
                if size:
                    index = torch.unravel_index(torch.tensor(i), self.leaves[name].shape)
                    path = trace.path(name, tuple(int(n) for n in index))
                    assert path.log2_weight == close_log2(logs[i])
                    assert abs(path.weight) == close(size)
                    assert math.prod(step.derivative for step in path.steps) == close(path.weight)

    def _check_scalar_graph(self, expected: Mapping[str, Sequence[Terms]]) -> None:
        graph = from_tape(self.tape, self.loss)
        for name, terms in expected.items():
            value = self.tape.value_of(self.leaves[name])
            weights = {(value.id, i): t for i, t in enumerate(terms) if (value.id, i) in graph}
            check_graph(graph, graph.graph["loss"], weights)
            dead = [t for i, t in enumerate(terms) if (value.id, i) not in graph]
            assert not any(w for t in dead for w in t)  # what leads nowhere is no vertex


def recorded(code: Callable[..., Tensor], **leaves: Any) -> Recorded:
    """Run code on float64 leaves under a recording."""
    tensors = {name: torch.tensor(data, dtype=torch.float64).requires_grad_() for name, data in leaves.items()}
    with record(names=tensors) as tape:
        loss = code(**tensors)
    return Recorded(tape, loss, tensors)


# ---------------------------------------------------------------- 1: ln · exp · sqrt with two weighted edges

WEIGHTED = [((1.0, 7.0), 227.06732255557685), ((1.0, -1.0), 75.68910751852562)]


def weighted_edges(x1: Tensor, x2: Tensor, x3: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return torch.log(x1 * x2) * torch.exp(x1 * x2 * x3) * torch.sqrt(w2 * x2 + w3 * x3)


def weighted_paths(w2: float, w3: float) -> dict[str, list[Terms]]:
    """Give ∂f along each path at (2, 2, 1): through ln, through exp, through sqrt."""
    x1, x2, x3 = 2.0, 2.0, 1.0
    a, b, s = log(x1 * x2), exp(x1 * x2 * x3), w2 * x2 + w3 * x3
    through_ln, through_exp, through_sqrt = b * sqrt(s) / (x1 * x2), a * b * sqrt(s), a * b / (2 * sqrt(s))
    return {
        "x1": [[through_ln * x2, through_exp * x2 * x3]],
        "x2": [[through_ln * x1, through_exp * x1 * x3, through_sqrt * w2]],
        "x3": [[through_exp * x1 * x2, through_sqrt * w3]],
        "w2": [[through_sqrt * x2]],
        "w3": [[through_sqrt * x3]],
    }


@pytest.mark.parametrize(("weights", "value"), WEIGHTED)
def test_weighted_edges_by_hand(weights, value):
    w2, w3 = weights
    a, b, c = log(4), exp(4), sqrt(2 * w2 + w3)
    assert a * b * c == close(value)
    graph = by_hand(
        ("x1", "p", 2.0), ("x2", "p", 2.0), ("p", "ln", 1 / 4), ("ln", "f", b * c),
        ("x1", "q", 2.0), ("x2", "q", 2.0), ("x3", "q", 4.0), ("q", "exp", b), ("exp", "f", a * c),
        ("x2", "s", w2), ("w2", "s", 2.0), ("x3", "s", w3), ("w3", "s", 1.0), ("s", "sqrt", 1 / (2 * c)),
        ("sqrt", "f", a * b),
    )  # fmt: skip
    check_graph(graph, "f", {name: terms[0] for name, terms in weighted_paths(w2, w3).items()})


@pytest.mark.parametrize(("weights", "value"), WEIGHTED)
def test_weighted_edges_recorded(weights, value):
    run = recorded(weighted_edges, x1=2.0, x2=2.0, x3=1.0, w2=weights[0], w3=weights[1])
    assert run.loss.item() == close(value)
    run.check(weighted_paths(*weights))


# ---------------------------------------------------------------- 2: sin(x²) + cos(x²)

POINTS = [0.3, 0.7, 1.9, -2.5]


@pytest.mark.parametrize("x", POINTS)
def test_two_paths_by_hand(x):
    graph = by_hand(
        ("x", "y", 2 * x), ("y", "sin", cos(x * x)), ("y", "cos", -sin(x * x)),
        ("sin", "o", 1.0), ("cos", "o", 1.0),
    )  # fmt: skip
    check_graph(graph, "o", {"x": [2 * x * cos(x * x), -2 * x * sin(x * x)]})
    winner = "sin" if abs(cos(x * x)) > abs(sin(x * x)) else "cos"
    for path in (best_path(graph, "x", "o"), greedy_path(graph, "x", "o")):
        assert path is not None
        assert crossing(path, {winner})


@pytest.mark.parametrize("x", POINTS)
def test_two_paths_recorded(x):
    def code(x: Tensor) -> Tensor:
        y = x**2
        return torch.sin(y) + torch.cos(y)

    recorded(code, x=x).check({"x": [[2 * x * cos(x * x), -2 * x * sin(x * x)]]})


# ---------------------------------------------------------------- 3: 2⁵ paths of weight x³¹


@pytest.mark.parametrize("x", [2.0, 0.5, -1.0, 1.1])
def test_thirty_two_paths_by_hand(x):
    edges: list[tuple[Any, Any, float]] = [("x", (1, 1), 1.0), ("x", (1, 2), 1.0)]
    for i in range(2, 6):
        other = x ** (2 ** (i - 2))  # the other factor, h(i-1, ·)
        edges += [((i - 1, k), (i, j), other) for j in (1, 2) for k in (1, 2)]
    edges += [((5, 1), "o", x**16), ((5, 2), "o", x**16)]
    check_graph(by_hand(*edges), "o", {"x": [x**31] * 32})


@pytest.mark.parametrize("x", [2.0, 0.5, -1.0, 1.1])
def test_thirty_two_paths_recorded(x):
    def code(x: Tensor) -> Tensor:
        h = (x.clone(), x.clone())
        for _ in range(4):
            h = (h[0] * h[1], h[0] * h[1])
        return h[0] * h[1]

    run = recorded(code, x=x)
    assert run.loss.item() == close(x**32)
    run.check({"x": [[x**31] * 32]})


def test_thirty_two_paths_are_exact_at_two():
    h = x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    with record(names={"x": x}) as tape:
        for _ in range(5):
            h = h * h  # one unit a layer, used twice: as many paths
    run = Recorded(tape, h, {"x": x})
    run.check({"x": [[2.0**31] * 32]})
    results = {s.name: run.tape.grad(h, [x], semiring=s)[0].item() for s in SEMIRINGS}
    assert results == {"sum": 32 * 2**31, "abssum": 32 * 2**31, "max": 2**31, "count": 32}
    assert tape.trace(h).strength["x"].item() == 31


# ---------------------------------------------------------------- 4: ten nodes, and a loss on the last


def ten_nodes(y1: float, y2: float, y3: float, w2: float, w3: float) -> dict[int, float]:
    y = {1: y1, 2: y2, 3: y3, 4: y1 * y2, 5: y1 * y2 * y3, 6: w2 * y2 + w3 * y3}
    y |= {7: sin(y[4]), 8: cos(y[5]), 9: sin(y[6])}
    return y | {10: y[7] * y[8] * y[9]}


TEN = [(0.4, 1.3, 0.8, 0.9, -0.5), (1.0, 2.0, -0.7, 0.3, 1.1), (-1.2, 0.6, 1.5, -2.0, 0.25)]


def ten_paths(w2: float, w3: float, y: dict[int, float]) -> dict[Any, Terms]:
    """Give the terms of the closed forms S(i, 10), one for each path."""
    to4, to5, to6 = y[8] * y[9] * cos(y[4]), -y[7] * y[9] * sin(y[5]), y[7] * y[8] * cos(y[6])
    return {
        10: [1.0],
        9: [y[7] * y[8]],
        8: [y[7] * y[9]],
        7: [y[8] * y[9]],
        6: [to6],
        5: [to5],
        4: [to4],
        3: [to5 * y[1] * y[2], to6 * w3],
        2: [to4 * y[1], to5 * y[1] * y[3], to6 * w2],
        1: [to4 * y[2], to5 * y[2] * y[3]],
        "w2": [to6 * y[2]],
        "w3": [to6 * y[3]],
    }


def ten_graph(w2: float, w3: float, y: dict[int, float]) -> networkx.MultiDiGraph:
    return by_hand(
        (1, 4, y[2]), (2, 4, y[1]), (1, 5, y[2] * y[3]), (2, 5, y[1] * y[3]), (3, 5, y[1] * y[2]),
        (2, 6, w2), (3, 6, w3), ("w2", 6, y[2]), ("w3", 6, y[3]),
        (4, 7, cos(y[4])), (5, 8, -sin(y[5])), (6, 9, cos(y[6])),
        (7, 10, y[8] * y[9]), (8, 10, y[7] * y[9]), (9, 10, y[7] * y[8]),
        (10, "L", 2 / y[10]),
    )  # fmt: skip


@pytest.mark.parametrize("inputs", TEN)
def test_ten_nodes_by_hand(inputs):
    y, (w2, w3) = ten_nodes(*inputs), inputs[3:]
    graph, expected = ten_graph(w2, w3, y), ten_paths(w2, w3, y)
    check_graph(graph, 10, expected)
    check_graph(graph, "L", {v: [2 / y[10] * w for w in weights] for v, weights in expected.items()})
    pairs = all_pairs(graph)
    assert {v: pairs[v][10] for v in expected} == {v: aggregated(Sum, terms) for v, terms in expected.items()}
    assert pairs[2][8] == close(-sin(y[5]) * y[1] * y[3])
    assert pairs[1][9] == 0


@pytest.mark.parametrize("inputs", TEN)
def test_ten_nodes_recorded(inputs):
    def code(y1: Tensor, y2: Tensor, y3: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        y4, y5, y6 = y1 * y2, y1 * y2 * y3, w2 * y2 + w3 * y3
        y10 = torch.sin(y4) * torch.cos(y5) * torch.sin(y6)
        return torch.log(y10**2)

    names = ("y1", "y2", "y3", "w2", "w3")
    run = recorded(code, **dict(zip(names, inputs, strict=True)))
    y, (w2, w3) = ten_nodes(*inputs), inputs[3:]
    assert run.loss.item() == close(log(y[10] ** 2))
    terms = ten_paths(w2, w3, y)
    by_name = dict(zip(names, (1, 2, 3, "w2", "w3"), strict=True))
    run.check({name: [[2 / y[10] * w for w in terms[node]]] for name, node in by_name.items()})
    # the two loss-to-weight derivatives, in the closed form that the text gives
    dw2, dw3 = run.tape.grad(run.loss, [run.leaves["w2"], run.leaves["w3"]], semiring=Sum)
    assert dw2.item() == close(2 / y[10] * y[7] * y[8] * cos(y[6]) * y[2])
    assert dw3.item() == close(2 / y[10] * y[7] * y[8] * cos(y[6]) * y[3])


# ---------------------------------------------------------------- 5: decoupled layers, −log sigmoid

W = [[2.0, -2.0, 0.0], [-1.0, 5.0, -1.0], [0.0, 3.0, -2.0]]
W2 = [-1.0, 1.0, -3.0]
X = [2.0, 1.0, 2.0]
H2 = [2.0, 1.0, 0.0]
G3 = 1 / (1 + exp(1)) - 1  # o − 1 with o = σ(−1)
G1 = [-G3, G3, 0.0]  # W2ᵀ g3 where the hidden unit is positive


def decoupled_paths() -> dict[str, list[Terms]]:
    return {
        "w": [[G1[i] * X[j]] for i in range(3) for j in range(3)],
        "w2": [[G3 * h] for h in H2],
        "x": [[W[i][j] * G1[i] for i in range(3)] for j in range(3)],
    }


def test_decoupled_layers_by_hand():
    o = 1 / (1 + exp(1))
    graph = by_hand(("h3", "o", o * (1 - o)), ("o", "L", -1 / o))
    for i in range(3):
        graph.add_edge(("h1", i), ("h2", i), weight=float(H2[i] > 0))
        graph.add_edge(("h2", i), "h3", weight=W2[i])
        graph.add_edge(("w2", i), "h3", weight=H2[i])
        for j in range(3):
            graph.add_edge(("w", 3 * i + j), ("h1", i), weight=X[j])
            graph.add_edge(("x", j), ("h1", i), weight=W[i][j])
    assert backpropagate(graph, "L")["h3"] == close(G3)
    check_graph(graph, "L", {(n, i): t for n, terms in decoupled_paths().items() for i, t in enumerate(terms)})


def test_decoupled_layers_recorded():
    seen = {}

    def code(w: Tensor, w2: Tensor, x: Tensor) -> Tensor:
        seen["h1"] = w @ x
        seen["o"] = torch.sigmoid(w2 @ torch.relu(seen["h1"]))
        return -torch.log(seen["o"])

    run = recorded(code, w=W, w2=W2, x=X)
    assert seen["h1"].tolist() == [2, 1, -1]
    assert f"{seen['o'].item():.5f}".startswith("0.2689")
    run.check(decoupled_paths())
    m, m2 = run.tape.grad(run.loss, [run.leaves["w"], run.leaves["w2"]], semiring=Sum)
    assert m.mul(100).round().tolist() == [[146, 73, 146], [-146, -73, -146], [0, 0, 0]]
    assert m2.mul(100).round().tolist() == [-146, -73, 0]


# ---------------------------------------------------------------- 6: the XOR network, one training step

INPUTS, TARGETS = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
XOR: dict[str, Any] = {"w": [[3.0, 2.0], [4.0, 3.0]], "b": [-2.0, -4.0], "w2": [5.0, -5.0], "b2": -2.0}
BEFORE = [0.18333462, 0.7425526, 0.7425526, 0.33430961], 0.06948320612438118
AFTER = [0.18353091, 0.74260499, 0.74321824, 0.33324929], 0.06923193686092949


def printed(predictions: Sequence[float], cost: float) -> Any:
    """Expect numbers to be those that were printed with 8 decimals, and a cost with all of its digits."""
    return pytest.approx(predictions, rel=0, abs=5.0001e-9), close(cost)


def xor_forward(w: Any, b: Any, w2: Any, b2: Any) -> tuple[list[list[float]], list[float], float]:
    """Compute hidden layer, predictions and cost with plain Python numbers."""

    def sigmoid(s: float) -> float:
        return 1 / (1 + exp(-s))

    hidden = [[sigmoid(x[0] * w[0][j] + x[1] * w[1][j] + b[j]) for j in (0, 1)] for x in INPUTS]
    y = [sigmoid(h[0] * w2[0] + h[1] * w2[1] + b2) for h in hidden]
    return hidden, y, sum((t - p) ** 2 for t, p in zip(TARGETS, y, strict=True)) / 4


def xor_graph() -> networkx.MultiDiGraph:
    """Draw all four examples; the parameters are leaves that they share."""
    hidden, y, _ = xor_forward(**XOR)
    graph = networkx.MultiDiGraph()
    for e, (x, h, p, target) in enumerate(zip(INPUTS, hidden, y, TARGETS, strict=True)):
        graph.add_edge(("y", e), "cost", weight=(p - target) / 2)
        graph.add_edge(("t", e), ("y", e), weight=p * (1 - p))
        graph.add_edge(("b2", 0), ("t", e), weight=1.0)
        for j in (0, 1):
            graph.add_edge(("w2", j), ("t", e), weight=h[j])
            graph.add_edge(("h", e, j), ("t", e), weight=XOR["w2"][j])
            graph.add_edge(("s", e, j), ("h", e, j), weight=h[j] * (1 - h[j]))
            graph.add_edge(("b", j), ("s", e, j), weight=1.0)
            for i in (0, 1):
                graph.add_edge(("w", 2 * i + j), ("s", e, j), weight=float(x[i]))
    return graph


def xor_paths() -> dict[str, list[Terms]]:
    """Give one path for each parameter and example: h and y by the chain rule."""
    hidden, y, _ = xor_forward(**XOR)
    out = [(p - t) / 2 * p * (1 - p) for p, t in zip(y, TARGETS, strict=True)]
    unit = [[out[e] * XOR["w2"][j] * h[j] * (1 - h[j]) for j in (0, 1)] for e, h in enumerate(hidden)]
    return {
        "w": [[unit[e][j] * INPUTS[e][i] for e in range(4)] for i in (0, 1) for j in (0, 1)],
        "b": [[unit[e][j] for e in range(4)] for j in (0, 1)],
        "w2": [[out[e] * hidden[e][j] for e in range(4)] for j in (0, 1)],
        "b2": [out],
    }


def test_xor_by_hand():
    _, y, cost = xor_forward(**XOR)
    assert (y, cost) == printed(*BEFORE)
    graph, terms = xor_graph(), xor_paths()
    check_graph(graph, "cost", {(name, i): t for name, rows in terms.items() for i, t in enumerate(rows)})
    g = backpropagate(graph, "cost")
    w, b, w2 = XOR["w"], XOR["b"], XOR["w2"]
    _, y, cost = xor_forward(
        w=[[w[i][j] - 0.1 * g["w", 2 * i + j] for j in (0, 1)] for i in (0, 1)],
        b=[b[j] - 0.1 * g["b", j] for j in (0, 1)],
        w2=[w2[j] - 0.1 * g["w2", j] for j in (0, 1)],
        b2=XOR["b2"] - 0.1 * g["b2", 0],
    )
    assert (y, cost) == printed(*AFTER)


def test_xor_recorded():
    x, target = torch.tensor(INPUTS, dtype=torch.float64), torch.tensor(TARGETS, dtype=torch.float64)

    def network(w: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return torch.sigmoid(torch.sigmoid(x @ w + b) @ w2 + b2)

    def code(**parameters: Tensor) -> Tensor:
        return ((target - network(**parameters)) ** 2).mean()

    run = recorded(code, **XOR)
    assert (network(**run.leaves).tolist(), run.loss.item()) == printed(*BEFORE)
    run.check(xor_paths())
    gradients = run.tape.grad(run.loss, list(run.leaves.values()), semiring=Sum)
    stepped = {n: p.detach() - 0.1 * g for (n, p), g in zip(run.leaves.items(), gradients, strict=True)}
    assert (network(**stepped).tolist(), code(**stepped).item()) == printed(*AFTER)


# ---------------------------------------------------------------- 7: a parameterised program

P, Q = 0.75, -1.25
PROGRAMS = [((0.9, 1.5, 0.4), "E"), ((0.9, 1.5, 3.0), "F"), ((-1.3, 0.2, -2.0), "F")]


def program_paths(w0: float, w1: float, w2: float) -> dict[str, list[Terms]]:
    """Give the path derivatives for f0 = sin(A + Q), f1 = tanh, f2 = exp, f3 = E·F."""
    a = w0 * P
    b = sin(a + Q)
    e, f = tanh(w1 * b), exp(w2 * b)
    through_e, through_f = f * (1 - e * e), e * f  # ∂R/∂C and ∂R/∂D
    return {
        "w0": [[P * cos(a + Q) * w1 * through_e, P * cos(a + Q) * w2 * through_f]],
        "w1": [[b * through_e]],
        "w2": [[b * through_f]],
    }


@pytest.mark.parametrize(("w", "stronger"), PROGRAMS)
def test_program_by_hand(w, stronger):
    w0, w1, w2 = w
    b = sin(w0 * P + Q)
    e, f = tanh(w1 * b), exp(w2 * b)
    graph = by_hand(
        ("w0", "A", P), ("A", "B", cos(w0 * P + Q)),
        ("B", "C", w1), ("w1", "C", b), ("B", "D", w2), ("w2", "D", b),
        ("C", "E", 1 - e * e), ("D", "F", f), ("E", "R", f), ("F", "R", e),
    )  # fmt: skip
    check_graph(graph, "R", {name: terms[0] for name, terms in program_paths(*w).items()})
    path = best_path(graph, "w0", "R")
    assert path is not None
    assert crossing(path, {stronger})
    assert not crossing(path, {"E", "F"} - {stronger})


@pytest.mark.parametrize(("w", "stronger"), PROGRAMS)
def test_program_recorded(w, stronger):
    def code(w0: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        b = torch.sin(w0 * P + Q)
        e, f = torch.tanh(w1 * b), torch.exp(w2 * b)
        return e * f

    run = recorded(code, w0=w[0], w1=w[1], w2=w[2])
    run.check(program_paths(*w))
    through_e, through_f = program_paths(*w)["w0"][0]
    assert (abs(through_e) > abs(through_f)) == (stronger == "E")
