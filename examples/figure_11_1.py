"""Figure 11.1: a graph of three inputs and two weights, and learning w3.

Aggarwal changes w3 from 7 to -1 by inspection, so that the output falls from 227.1 to 75.7, nearer to the observed
100, and says that inspection will not do for millions of weights. Here gradient descent does it for one: the gradient
comes from the same graph, and ends where the output is 100. What the trace shows: all of x1's strongest path goes
through exp, which is where the output is steep, and the weight that is learned is not on it.

    python examples/figure_11_1.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

from gradtrace.scalar import Graph, backpropagate, best_path, draw


def graph() -> Graph:
    """Write the figure down."""
    g = Graph()
    g.inputs(x1=2, x2=2, x3=1)
    g.parameters(w2=1, w3=7)
    g.add("x1·x2", "*", "x1", "x2")
    g.add("x1·x2·x3", "*", "x1", "x2", "x3")
    g.add("sum", lambda x2, x3, w2, w3: w2 * x2 + w3 * x3, "x2", "x3", "w2", "w3")
    g.add("ln", "log", "x1·x2")
    g.add("exp", "exp", "x1·x2·x3")
    g.add("root", "sqrt", "sum")
    g.add("o", "*", "ln", "exp", "root")
    return g


def main(picture: str | None = None) -> None:
    """Compute, adjust by hand, learn."""
    g = graph()
    assert math.isclose(g["o"].value, math.log(4) * math.exp(4) * 3)  # 227.1 in the figure
    print(f"w3 = 7    o = {g['o'].value:.1f}, the figure's 227.1")
    path = best_path(g, "x1", "o")
    assert path is not None
    by = backpropagate(g, "o")
    print(f"the strongest path from x1: {' -> '.join(map(str, path.vertices))}, {path.weight:.1f} of {by['x1']:.1f}")
    if picture:
        draw(
            g,
            picture,
            notes=backpropagate(g, "o"),
            path=path,
            title="Figure 11.1: values, ∂o (blue), x1's strongest path",
        )
    assert math.isclose(g.forward(w3=-1)["o"], math.log(4) * math.exp(4))  # 75.7 in the text
    print(f"w3 = -1   o = {g['o'].value:.1f}, the text's 75.7")
    loss = g.add("loss", lambda o: (o - 100) ** 2 / 2, "o")
    for _ in range(200):
        g.forward(w3=g["w3"].value - 1e-3 * g.gradient(loss)["w3"])
    exact = (100 / (math.log(4) * math.exp(4))) ** 2 - 2  # where √(2 + w3) makes it 100
    assert math.isclose(g["w3"].value, exact, rel_tol=1e-9)
    print(f"learned   w3 = {g['w3'].value:.4f}, o = {g['o'].value:.4f}; in closed form w3 = {exact:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
