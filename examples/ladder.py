"""Exercises 4, 17 and 18: f(f(f(f(x)))), a ladder with 0.3 on every edge, and one of sines and cosines.

The closed form of exercise 4 fills a page, as does that of Figure 11.5: its length doubles with every layer. The graph
gets two vertices more. With the same derivative on every
edge a path's weight is a power, so the derivative counts paths: with n layers 2ⁿ of them, n + 1 edges each. In the
ladder of sines and cosines the paths have both signs: the gradient is a small part of what its paths carry.

    python examples/ladder.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

import networkx
import sympy
import torch

from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table, pathwise_sum


def iterated(x: float, times: int) -> Graph:
    """Give f(f(…f(x)…)) with f(x) = sin(x) + cos(x)."""
    g = Graph()
    (at,) = g.inputs(x=x)
    for n in range(1, times + 1):
        at = g.add(f"f{n}", "+", g.add(f"sin{n}", "sin", at), g.add(f"cos{n}", "cos", at))
    return g


def closed_form(layers: int) -> int:
    """Give the length of Figure 11.5's closed form, in operations: F = sin(x + y), G = cos(x + y)."""
    x, y = sympy.symbols("x y")
    for _ in range(layers):
        x, y = sympy.sin(x + y), sympy.cos(x + y)
    return int(sympy.count_ops(x + y))


def constant(layers: int, derivative: float) -> networkx.MultiDiGraph:
    """Give the ladder of Figure 11.8 with one derivative on every edge."""
    graph, before = networkx.MultiDiGraph(), ["x"]
    for i in range(layers):
        units = [f"{i}{j}" for j in "ab"]
        graph.add_weighted_edges_from([(v, u, derivative) for v in before for u in units])
        before = units
    graph.add_weighted_edges_from([(v, "o", derivative) for v in before])
    return graph


def waves(x: float, layers: int) -> Graph:
    """Give the ladder of exercise 18: sin(x + y) above, cos(x + y) below, and the product of the last two."""
    g = Graph()
    before = g.inputs(x=x)
    for i in range(1, layers + 1):
        before = [
            g.add(f"sin{i}", lambda *xs: torch.stack(xs).sum().sin(), *before),
            g.add(f"cos{i}", lambda *xs: torch.stack(xs).sum().cos(), *before),
        ]
    g.add("o", "*", *before)
    return g


def main(picture: str | None = None) -> None:
    """Do the three exercises, each in both ways."""
    lengths = [closed_form(n) for n in range(1, 6)]
    assert lengths == [2 ** (n + 2) - 3 for n in range(1, 6)]
    print(f"Figure 11.5 in closed form, 1 to 5 layers: {lengths} operations; each layer of the graph has two vertices")
    g = iterated(math.pi / 3, 4)
    y = x = torch.tensor(math.pi / 3, dtype=torch.float64, requires_grad=True)
    for _ in range(4):
        y = y.sin() + y.cos()
    (expected,) = torch.autograd.grad(y, x)
    found = backpropagate(g, "f4")["x"]
    assert math.isclose(found, expected.item(), rel_tol=1e-12)
    print(f"exercise 4: ∂f⁴/∂x = {found:.6f}, of {len(path_table(g, 'x', 'f4'))} paths; the strongest:")
    print("   ", " -> ".join(map(str, path_table(g, "x", "f4")[0].vertices)))
    for layers in (2, 5):
        graph = constant(layers, 0.3)
        by_hand = 2**layers * 0.3 ** (layers + 1)
        assert math.isclose(backpropagate(graph, "o")["x"], by_hand)
        assert math.isclose(pathwise_sum(graph, "x", "o"), by_hand)
        print(f"exercise 17, {layers} layers: 2^{layers} · 0.3^{layers + 1} = {by_hand:.6g}")
    g = waves(1.0, 5)
    total, flow = backpropagate(g, "o")["x"], backpropagate(g, "o", "abssum")["x"]
    assert math.isclose(total, path_table(g, "x", "o").total, rel_tol=1e-9)
    h = 1e-6
    numeric = (waves(1 + h, 5)["o"].value - waves(1 - h, 5)["o"].value) / (2 * h)
    assert math.isclose(total, numeric, rel_tol=1e-5)
    print(f"exercise 18, 5 layers: ∂o/∂x = {total:.6g}, what is left of paths that carry {flow:.4g}")
    if picture:
        draw(g, picture, path=best_path(g, "x", "o"), notes=backpropagate(g, "o"), title="Exercise 18 at x = 1")


if __name__ == "__main__":
    main(*sys.argv[1:])
