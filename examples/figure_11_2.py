"""Figure 11.2 and exercise 23: linear regression as a graph, with its weights made nodes.

The figure has weights on its edges. The exercise makes nodes of them: w1 … w5 beside x1 … x5, five products, and their
sum. Then a derivative by a weight is one from node to node like any other, along a single path: 2(ô - o)·x_i. Steps for
one training point after another end at the least squares solution. What the trace shows: where a feature is 0 no path
leads from its weight, and that weight learns nothing from this point.

    python examples/figure_11_2.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

import numpy as np

from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table, steps

D = 5


def graph() -> Graph:
    """Write the unweighted graph down."""
    g = Graph()
    for i in range(1, D + 1):
        g.inputs(**{f"x{i}": 1.0})
        g.parameters(**{f"w{i}": 0.1})
        g.add(f"p{i}", "*", f"w{i}", f"x{i}")
    g.inputs(o=0.0)
    g.add("ô", "+", *(f"p{i}" for i in range(1, D + 1)))
    g.add("L", lambda o, predicted: (o - predicted) ** 2, "o", "ô")
    return g


def main(picture: str | None = None) -> None:
    """Differentiate, and learn from twelve points."""
    random = np.random.default_rng(0)
    x, true = random.normal(size=(12, D)), np.array([1.0, -2, 0.5, 3, -1])
    x[::2, 4] = 0  # every second point lacks the fifth feature
    o = x @ true

    g = graph()
    g.forward(o=o[0], **{f"x{i + 1}": v for i, v in enumerate(x[0])})
    found = backpropagate(g, "L")
    for i in range(1, D):
        assert math.isclose(found[f"w{i}"], 2 * (g["ô"].value - o[0]) * x[0, i - 1])
        assert len(path_table(g, f"w{i}", "L")) == 1
    assert best_path(g, "w5", "L") is None
    print(f"{len(steps(g, 'L'))} of {len(g.nodes)} nodes reach the loss: x5 is 0, so no path leads from w5")
    if picture:
        draw(g, picture, notes=found, path=best_path(g, "w1", "L"), title="Figure 11.2 with its weights as nodes")

    for _ in range(20):
        for row, target in zip(x, o, strict=True):
            g.forward(o=target, **{f"x{i + 1}": v for i, v in enumerate(row)})
            by = backpropagate(g, "L")
            rate = 1 / (2 * float(row @ row))  # the step after which this point is predicted exactly
            g.forward(**{f"w{i}": g[f"w{i}"].value - rate * by[f"w{i}"] for i in range(1, D + 1)})
    learned = np.array([g[f"w{i}"].value for i in range(1, D + 1)])
    exact = np.linalg.lstsq(x, o, rcond=None)[0]
    assert np.allclose(learned, exact, atol=1e-3)
    print("learned point by point:", " ".join(f"{w:.3f}" for w in learned))
    print("numpy's least squares: ", " ".join(f"{w:.3f}" for w in exact))


if __name__ == "__main__":
    main(*sys.argv[1:])
