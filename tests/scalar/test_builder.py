"""Graphs of node functions: values and derivatives against PyTorch, sympy, and what the texts print."""

from __future__ import annotations

from fractions import Fraction

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.errors import BadArgument, UnknownName
from gradtrace.scalar import Graph, backpropagate, path_table

numbers = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 3))


def figure_11_9(**leaves) -> Graph:
    """Aggarwal's ten nodes, with the loss of 11.3.5.1."""
    g = Graph()
    g.inputs(y1=leaves["y1"], y2=leaves["y2"], y3=leaves["y3"])
    g.parameters(w2=leaves["w2"], w3=leaves["w3"])
    g.add("y4", "*", "y1", "y2")
    g.add("y5", "*", "y1", "y2", "y3")
    g.add("y6", lambda y2, y3, w2, w3: w2 * y2 + w3 * y3, "y2", "y3", "w2", "w3")
    g.add("y7", "sin", "y4")
    g.add("y8", "cos", "y5")
    g.add("y9", "sin", "y6")
    g.add("y10", "*", "y7", "y8", "y9")
    return g


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(("y1", "y2", "y3", "w2", "w3"), numbers)))
def test_both_ways_of_differentiating_are_autograds(leaves):
    g = figure_11_9(**leaves)
    given_ = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in leaves.items()}
    y1, y2, y3, w2, w3 = (given_[name] for name in ("y1", "y2", "y3", "w2", "w3"))
    y10 = (y1 * y2).sin() * (y1 * y2 * y3).cos() * (w2 * y2 + w3 * y3).sin()
    y10.backward()
    expected = {name: leaf.grad.item() for name, leaf in given_.items()}  # type: ignore[union-attr]
    assert g["y10"].value == pytest.approx(y10.item(), abs=1e-12)
    for found in (g.gradient("y10"), backpropagate(g, "y10")):
        assert {name: found[name] for name in leaves} == pytest.approx(expected, abs=1e-12)


def test_exercise_16_in_symbols():
    y = sympy.symbols("y1 y2 y3 w2 w3")
    g = figure_11_9(**{str(s): s for s in y})
    for symbol in y:
        expected = sympy.diff(g["y10"].value, symbol)
        assert sympy.simplify(path_table(g, str(symbol), "y10").total - expected) == 0
        assert sympy.simplify(backpropagate(g, "y10")[str(symbol)] - expected) == 0
        assert sympy.simplify(g.gradient("y10")[str(symbol)] - expected) == 0


def test_fractions_are_differentiated_exactly():
    g = Graph()
    a, b = g.inputs(a=Fraction(1, 3), b=Fraction(2, 7))
    g.add("o", lambda a, b: (a + b) ** 2 / b, a, b)
    total = Fraction(1, 3) + Fraction(2, 7)
    by_b = 2 * total / b.value - total**2 / b.value**2
    assert (g.gradient("o")["a"], backpropagate(g, "o")["b"]) == (2 * total / b.value, by_b)
    assert isinstance(g.gradient("o")["b"], Fraction)


def layers(kind: str, seed: int) -> tuple[dict, float]:
    """One two-layer network as a graph of pre-activations, of post-activations, or of both (11.4)."""
    draw = torch.Generator().manual_seed(seed)
    w1, w2, x = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((3, 2), (1, 3), (2,)))
    g = Graph()
    g.inputs(x=x)
    g.parameters(W1=w1, W2=w2)
    if kind == "post":
        g.add("h", lambda w, x: torch.tanh(w @ x), "W1", "x")
        g.add("o", lambda w, h: torch.sigmoid(w @ h), "W2", "h")
    elif kind == "pre":
        g.add("a", "@", "W1", "x")
        g.add("b", lambda w, a: w @ torch.tanh(a), "W2", "a")
        g.add("o", "sigmoid", "b")
    else:
        g.add("a", "@", "W1", "x")
        g.add("h", "tanh", "a")
        g.add("b", "@", "W2", "h")
        g.add("o", "sigmoid", "b")
    loss = g.add("loss", lambda o: -o.log().sum(), "o")
    return {name: g.gradient(loss)[name] for name in ("x", "W1", "W2")}, loss.value


@pytest.mark.parametrize("seed", range(3))
def test_three_choices_of_variables_give_one_answer(seed):
    first, loss = layers("decoupled", seed)
    for kind in ("pre", "post"):
        found, value = layers(kind, seed)
        assert value == pytest.approx(loss, rel=1e-14)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, first[name], rtol=1e-12, atol=1e-14)


def test_transfer_functions():
    """Map, reduce and linear (Pingali): a diagonal Jacobian, one row of ones or an indicator, and the matrix itself."""
    g = Graph()
    g.inputs(x=[3.0, -1.0, 2.0])
    g.parameters(W=[[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
    (mapped,) = g.jacobians(g.add("m", "square", "x"))
    assert mapped.tolist() == [[6, 0, 0], [0, -2, 0], [0, 0, 4]]
    assert g.jacobians(g.add("s", "sum", "x"))[0].tolist() == [[1, 1, 1]]
    assert g.jacobians(g.add("t", "max", "x"))[0].tolist() == [[1, 0, 0]]
    by_w, by_x = g.jacobians(g.add("l", "@", "W", "x"))
    assert by_x.tolist() == g["W"].value.tolist()
    assert by_w.tolist() == [[3, -1, 2, 0, 0, 0], [0, 0, 0, 3, -1, 2]]
    labels = {(v, u): label for v, u, label in g.vectors().edges(data="label")}  # pyright: ignore[reportGeneralTypeIssues]
    assert labels["x", "l"] == "2×3"


def test_a_vector_graph_written_out_is_the_same_function():
    g = Graph()
    g.inputs(x=[0.3, -0.8])
    g.parameters(W=[[1.0, 2.0], [0.5, -1.0]])
    g.add("h", "relu", g.add("a", "@", "W", "x"))
    g.add("loss", lambda h: (h * h).sum(), "h")
    vectors, scalars = g.gradient("loss"), backpropagate(g, "loss")
    assert [scalars[f"W[{i},{j}]"] for i in range(2) for j in range(2)] == vectors["W"].flatten().tolist()
    assert [scalars[f"x[{i}]"] for i in range(2)] == vectors["x"].tolist()
    assert not g.scalars().has_edge("a[0]", "h[0]")  # x·W₀ < 0: it is off
    kept = g.scalars(keep_zero=True)
    assert kept["a[0]"]["h[0]"][0]["weight"] == 0
    assert not kept.has_edge("a[0]", "h[1]")
    assert backpropagate(kept, "loss") == scalars


def test_derivatives_given_by_hand():
    g = Graph()
    x, w = g.inputs(x=2.0), g.parameters(w=[1.0, 3.0])
    y = g.add("y", lambda x, w: (w * x).exp().sum(), *x, *w, derivatives=lambda x, w: (7.0, [1.0, 2.0]))
    assert g.gradient(y)["x"] == 7
    assert g.gradient(y)["w"].tolist() == [1, 2]
    z = g.add("z", lambda x: x * x, *x, derivatives=lambda x: 2 * x)
    assert g.gradient(z)["x"] == 4
    wrong = g.add("wrong", "sum", *w, derivatives=lambda w: [1.0])
    with pytest.raises(BadArgument, match="derivative of wrong by w needs 1 × 2 numbers, it has 1"):
        g.gradient(wrong)


def test_forward_computes_again():
    g = Graph()
    x, w = g.inputs(x=2.0), g.parameters(w=3.0)
    y = g.add("y", "*", *x, *w, *w)
    assert y.value == 18
    assert g.gradient(y) == {"x": 9, "w": 12, "y": 1}
    assert g.forward(w=5)["y"] == 50
    assert y.value == 50
    with pytest.raises(BadArgument, match="y is computed"):
        g.forward(y=1.0)


def test_a_forward_pass_that_fails_changes_nothing():
    g = Graph()
    (x,), (w,) = g.inputs(x=[1.0, 2.0]), g.parameters(w=[[1.0, 2.0]])
    g.add("y", "@", w, x)
    with pytest.raises(BadArgument, match=r"y = @\(w, x\) cannot be computed: size mismatch"):
        g.forward(w=[[1.0]], x=[1.0, 2.0, 3.0])
    assert (x.value.tolist(), w.value.tolist(), g["y"].value.tolist()) == ([1, 2], [[1, 2]], [5])


def test_whole_numbers_are_exact_among_fractions_and_floats_to_torch():
    g = Graph()
    g.inputs(a=Fraction(1, 3), b=2)
    g.add("o", "*", "a", "b", "b")
    assert g["o"].value == Fraction(4, 3)
    assert (g.gradient("o"), backpropagate(g, "o")["b"]) == ({"a": 4, "b": Fraction(4, 3), "o": 1}, Fraction(4, 3))
    assert all(isinstance(d, (int, Fraction)) for d in g.gradient("o").values())
    g = Graph()
    g.inputs(x=2)
    g.add("o", "exp", "x")
    assert g["x"].value == 2
    assert g.gradient("o")["x"] == g["o"].value == pytest.approx(7.38905609893065)
    assert g.gradient("x")["x"] == 1


def test_a_clamp_beyond_its_narrow_bounds_is_kept_on_request():
    g = Graph()
    g.parameters(v=[0.7, 0.2])
    g.add("w", lambda v: v.clamp(0, 0.5), "v")
    g.add("loss", "sum", "w")
    assert g.scalars(keep_zero=True)["v[0]"]["w[0]"][0]["weight"] == 0
    assert not g.scalars(keep_zero=True).has_edge("v[0]", "w[1]")


def test_links_and_kinds():
    g = Graph()
    (x,), (w,) = g.inputs(x=2.0), g.parameters(w=3.0)
    y = g.add("y", "*", x, w)
    z = g.add("z", "*", y, y)
    assert (y.inputs, y.consumers, z.inputs, x.kind, w.kind) == ((x, w), [z], (y, y), "input", "parameter")
    assert g.scalars().number_of_edges("y", "z") == 2
    assert g.scalars().nodes["w"] == {"value": 3.0, "kind": "parameter", "function": "", "node": "w"}


def test_a_graph_is_printed_as_its_nodes():
    g = Graph()
    g.inputs(x=[1, 0.5])
    g.parameters(w=Fraction(1, 3))
    g.add("h", "sigmoid", "x")
    g.add("L", lambda h: h.sum(), "h")
    assert str(g).splitlines() == [
        "node  function   of  value",
        "x     input          [1, 0.5]",
        "w     parameter      1/3",
        "h     sigmoid    x   [0.7311, 0.6225]",
        "L     f          h   1.354",
    ]
    assert repr(g["h"]) == "h = [0.7311, 0.6225]"


def test_what_is_refused():
    g = Graph()
    (x,) = g.inputs(x=[1.0, 2.0])
    with pytest.raises(BadArgument, match="a node 'x' already"):
        g.add("x", "sin", x)
    with pytest.raises(UnknownName, match="no node 'u' in the graph; there are x"):
        g.add("y", "sin", "u")
    with pytest.raises(BadArgument, match="no function 'sine'"):
        g.add("y", "sine", x)
    with pytest.raises(BadArgument, match=r"y = sin\(x, x\) cannot be computed: sin\(\) takes 1 positional"):
        g.add("y", "sin", x, x)
    with pytest.raises(BadArgument, match=r"y = f\(x\) cannot be computed: 'no such key'"):
        g.add("y", lambda x: {}["no such key"], x)
    for wrong in ("2", None, [[1.0, 2.0], [3.0]], 1 + 2j):
        for give in (lambda v: g.inputs(u=v), lambda v: g.forward(x=v)):
            with pytest.raises(BadArgument, match="a value is a number, an exact one, or lists of numbers, not"):
                give(wrong)
    assert list(g.nodes) == ["x"]  # what failed left nothing behind
    short = g.add("short", "*", x, x, derivatives=lambda a, b: (b,))
    with pytest.raises(BadArgument, match="short has 2 inputs, its derivatives gave 1"):
        g.jacobians(short)
    with pytest.raises(BadArgument, match="node of another graph"):
        Graph().add("y", "sin", x)
    with pytest.raises(BadArgument, match="x has 2 numbers; a loss has one: add its sum"):
        g.gradient("x")
    h = Graph()
    h.inputs(s=sympy.Symbol("s"))
    with pytest.raises(BadArgument, match="sympy has no function 'relu'"):
        h.add("y", "relu", "s")
