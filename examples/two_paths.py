"""Figures 11.4 and 11.6: one path, a product of local derivatives; two paths, a sum of two products.

cos(x²) has one path, and so has the sigmoid of a sigmoid, whose closed form is awkward already (Equation 11.1).
o = sin(x²) + cos(x²) has two: their sum is the derivative, 2x·cos(x²) - 2x·sin(x²). Where x² = π/4 they cancel: the
gradient is 0, and yet two paths of weight ±1.25 lead there. Max, AbsSum and the entropy see them.

    python examples/two_paths.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table


def main(picture: str | None = None) -> None:
    """Follow one path, and two: at x = 1, and where they cancel."""
    one = Graph()
    one.inputs(x=1.0)
    one.add("cos", "cos", one.add("g", "square", "x"))
    one.add("f", "sigmoid", one.add("s", "sigmoid", "x"))
    assert math.isclose(backpropagate(one, "cos")["x"], -2 * math.sin(1))
    s = 1 / (1 + math.exp(-1))
    f = 1 / (1 + math.exp(-s))
    assert math.isclose(backpropagate(one, "f")["x"], f * (1 - f) * s * (1 - s))  # Equation 11.13, twice
    assert len(path_table(one, "x", "cos")) == len(path_table(one, "x", "f")) == 1
    g = Graph()
    g.inputs(x=1.0)
    g.add("x²", "square", "x")
    g.add("sin", "sin", "x²")
    g.add("cos", "cos", "x²")
    g.add("o", "+", "sin", "cos")
    table = path_table(g, "x", "o")
    print(table)
    assert {p.vertices[2]: p.weight for p in table} == {"sin": 2 * math.cos(1), "cos": -2 * math.sin(1)}
    assert math.isclose(table.total, 2 * math.cos(1) - 2 * math.sin(1))
    if picture:
        draw(g, picture, path=best_path(g, "x", "o"), notes=backpropagate(g, "o"), title="Figure 11.6 at x = 1")
    g.forward(x=math.sqrt(math.pi / 4))
    found = {name: backpropagate(g, "o", name)["x"] for name in ("sum", "abssum", "max", "entropy")}
    print(f"at x² = π/4: {', '.join(f'{name} {value:.4f}' for name, value in found.items())} bits")
    assert abs(found["sum"]) < 1e-12
    assert math.isclose(found["entropy"], 1.0)  # two paths of equal strength


if __name__ == "__main__":
    main(*sys.argv[1:])
