"""Figure 11.7: x³² in five layers of two products: 32 paths, or 20 edges.

Enumeration multiplies out each of the 2⁵ paths; backpropagation merges what they share, and needs one step for each
edge. With ever more layers the one doubles and the other grows by four edges a layer. All paths weigh the same, x³¹,
so each is 1/32 of the derivative: Max finds x³¹, Count 32, and the entropy is 5 bits.

    python examples/thirty_two_paths.py [PICTURE]
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction

from gradtrace.scalar import Graph, backpropagate, draw, path_table


def graph(layers: int, x: float | Fraction) -> Graph:
    """Give layers of two units, each the product of both units of the layer before."""
    g = Graph()
    before = g.inputs(x=x) * 2
    for i in range(1, layers + 1):
        units = before if i > 1 else before[:1]  # the first layer copies x
        before = [g.add(f"h{i}{j}", "*", *units) for j in (1, 2)]
    g.add("o", "*", *before)
    return g


def main(picture: str | None = None) -> None:
    """Compare the exponential algorithm with the dynamic program."""
    x = Fraction(3, 2)
    g = graph(5, x)
    table, edges = path_table(g, "x", "o"), g.scalars().number_of_edges()
    print(f"{len(table)} paths, each of weight x³¹ = {float(table[0].weight):.4g}; {edges} edges")
    assert {path.weight for path in table} == {x**31}
    assert table.total == backpropagate(g, "o")["x"] == 32 * x**31  # Fractions: exactly
    asked = {name: backpropagate(g, "o", name)["x"] for name in ("max", "count", "entropy")}
    assert asked["max"] == x**31
    assert asked["count"] == 32
    assert math.isclose(asked["entropy"], 5)
    if picture:
        draw(graph(5, 1.1), picture, title="Figure 11.7 at x = 1.1: 32 paths through 20 edges")
    for layers in (5, 10, 20, 40):
        g = graph(layers, Fraction(1))
        paths, edges = backpropagate(g, "o", "count")["x"], g.scalars().number_of_edges()
        assert paths == 2**layers
        print(f"{layers:2} layers: {paths:,} paths to enumerate, {edges} edges to walk")


if __name__ == "__main__":
    main(*sys.argv[1:])
