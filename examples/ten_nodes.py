"""Figures 11.9 and 11.10: ten nodes in numbers and in symbols, their weights as nodes, and exercises 14 to 16.

The derivatives of the text take half a page in symbols. Here both algorithms give them, as sympy expressions; the
loss log(y10²) makes node-to-node derivatives loss-to-weight ones; one forward pass from y2 is exercise 14, and all
pairs are exercise 15: 12 passes, where one backward pass was enough for the loss.

    python examples/ten_nodes.py [PICTURE]
"""

from __future__ import annotations

import math
import sys
from typing import Any

import sympy

from gradtrace.scalar import Graph, all_pairs, backpropagate, best_path, draw, forward, levels, path_table


def graph(**leaves: Any) -> Graph:
    """Write the figure down: y(i) is the variable of node i."""
    g = Graph()
    g.inputs(**{name: leaves[name] for name in ("y1", "y2", "y3")})
    g.parameters(w2=leaves["w2"], w3=leaves["w3"])
    g.add("y4", "*", "y1", "y2")
    g.add("y5", "*", "y1", "y2", "y3")
    g.add("y6", lambda y2, y3, w2, w3: w2 * y2 + w3 * y3, "y2", "y3", "w2", "w3")
    g.add("y7", "sin", "y4")
    g.add("y8", "cos", "y5")
    g.add("y9", "sin", "y6")
    g.add("y10", "*", "y7", "y8", "y9")
    g.add("L", lambda y10: (y10 * y10).log() if hasattr(y10, "log") else sympy.log(y10**2), "y10")
    return g


def main(picture: str | None = None) -> None:
    """Differentiate in symbols, put numbers in, and compare with the closed forms of the text."""
    symbols = sympy.symbols("y1 y2 y3 w2 w3")
    g = graph(**{str(s): s for s in symbols})
    derivatives = {s: backpropagate(g, "y10")[str(s)] for s in symbols}
    for s in symbols:
        assert sympy.simplify(derivatives[s] - path_table(g, str(s), "y10").total) == 0  # exercise 16
        assert sympy.simplify(derivatives[s] - sympy.diff(g["y10"].value, s)) == 0
    print(f"∂y10/∂y1 = {derivatives[symbols[0]]}")
    numbers = {"y1": 0.5, "y2": 0.8, "y3": 1.2, "w2": 0.3, "w3": -0.4}
    g = graph(**numbers)
    y = {name: node.value for name, node in g.nodes.items()}
    by_w2 = 2 / y["y10"] * y["y7"] * y["y8"] * math.cos(y["y6"]) * y["y2"]  # 11.3.5.1
    found = backpropagate(g, "L")
    assert math.isclose(found["w2"], by_w2)
    assert math.isclose(found["w2"], found["y6"] * y["y2"])  # Δ(6) · ∂y(6)/∂w2
    assert math.isclose(found["w3"], by_w2 / y["y2"] * y["y3"])
    print(f"∂L/∂w2 = {found['w2']:.6f}, ∂L/∂w3 = {found['w3']:.6f}, as in 11.3.5.1")
    assert math.isclose(forward(g, "y2")["y10"], derivatives[symbols[1]].subs(numbers))  # exercise 14
    pairs = all_pairs(g)  # exercise 15
    assert all(math.isclose(pairs[v]["L"], found[v]) for v in pairs)
    dependent = sum(d != 0 for row in pairs.values() for d in row.values())
    print(f"{len(pairs)} vertices, {dependent} pairs of which one depends on the other")
    print("level by level:", " | ".join(" ".join(map(str, level)) for level in levels(g)))
    if picture:
        draw(
            g,
            picture,
            notes=found,
            path=best_path(g, "y2", "L"),
            title="Figure 11.10: values, ∂L (blue), y2's strongest path",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
