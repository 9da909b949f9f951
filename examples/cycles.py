"""Section 11.5 and exercise 7: cycles and contradictions, and what is left to do.

Two nodes, each the other plus 1: no values satisfy both, and the dynamic program has no node to begin with, since
none has all its consumers done. gradtrace says so and shows the cycle. Such a graph has a best fit at most, or is run
by updates until nothing changes, as a Hopfield network is (`hopfield.py`). Unrolled in time it is acyclic, and can be
traced: one weight, used at every step.

    python examples/cycles.py [PICTURE]
"""

from __future__ import annotations

import sys

import networkx
import torch

from gradtrace.scalar import CycleError, Graph, backpropagate, best_path, draw


def main(picture: str | None = None) -> None:
    """Meet a contradiction, and unroll a cycle."""
    graph = networkx.MultiDiGraph()
    graph.add_weighted_edges_from([("x", "y", 1.0), ("y", "x", 1.0)])
    try:
        backpropagate(graph, "y")
    except CycleError as error:
        print("exercise 7:", error.said)
    x, y = torch.zeros(2, dtype=torch.float64)
    for _ in range(2000):  # the best fit of x = y + 1 and y = x + 1, by gradient descent on both squares
        x, y = x - 0.01 * 4 * (x - y), y - 0.01 * 4 * (y - x)
    residual = ((x - y - 1) ** 2 + (y - x - 1) ** 2).item()
    assert abs(residual - 2) < 1e-9  # (d - 1)² + (d + 1)² is never below 2
    print(f"x = y + 1 and y = x + 1: the best fit leaves a squared error of {residual:.1f}")

    g = Graph()  # the same two-node cycle with a contraction, unrolled
    g.inputs(x0=0.3)
    g.parameters(w=0.8)
    at = g["x0"]
    for t in range(1, 5):
        at = g.add(f"x{t}", lambda w, x: torch.tanh(w * x + 0.1), "w", at)
    by_w = backpropagate(g, "x4")["w"]
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    v = torch.tensor(0.3, dtype=torch.float64)
    for _ in range(4):
        v = torch.tanh(w * v + 0.1)
    assert abs(by_w - torch.autograd.grad(v, w)[0].item()) < 1e-12
    path = best_path(g, "w", "x4")
    assert path is not None
    print(f"unrolled: ∂x4/∂w = {by_w:.4f}, a sum over 4 uses of w; the strongest is in {path.vertices[1]}")
    if picture:
        title = "A cycle unrolled: one weight, used at every step"
        draw(g, picture, path=path, notes=backpropagate(g, "x4"), title=title)


if __name__ == "__main__":
    main(*sys.argv[1:])
