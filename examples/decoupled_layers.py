"""Section 11.4.3 and exercise 13: linear and activation layers apart, and three choices of variables.

A network of two layers is a graph of four vectors when its activations are layers of their own. Pre-activation values
alone, or post-activation values alone, are other graphs of the same function: the gradients of the weights are the
same in all three. What the trace shows: the third hidden unit is off, so no path leads through it, and its row of W
is dead.

    python examples/decoupled_layers.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from gradtrace.scalar import Graph, backpropagate, best_path, draw

W = [[2.0, -2, 0], [-1, 5, -1], [0, 3, -2]]


def graph(kind: str) -> Graph:
    """Give Figure 11.15 with vectors of one kind, or decoupled."""
    g = Graph()
    g.inputs(x=[2, 1, 2])
    g.parameters(W=W, W2=[[-1, 1, -3]])
    if kind == "post-activation":
        g.add("h2", lambda w, x: torch.relu(w @ x), "W", "x")
        g.add("o", lambda w, h: torch.sigmoid(w @ h), "W2", "h2")
    elif kind == "pre-activation":
        g.add("h1", "@", "W", "x")
        g.add("h3", lambda w, h: w @ torch.relu(h), "W2", "h1")
        g.add("o", "sigmoid", "h3")
    else:
        g.add("h1", "@", "W", "x")
        g.add("h2", "relu", "h1")
        g.add("h3", "@", "W2", "h2")
        g.add("o", "sigmoid", "h3")
    g.add("L", lambda o: -o.log().sum(), "o")
    return g


def rounded(t: Tensor) -> list:
    """Give numbers with two decimals, as the text does."""
    return [[round(v, 2) + 0.0 for v in row] for row in t.tolist()]


def main(picture: str | None = None) -> None:
    """Go forward and back, and compare with the text's matrices."""
    g = graph("decoupled")
    o, d = g["o"].value.item(), g.gradient("L")
    assert math.isclose(o, 1 / (1 + math.e))
    assert math.isclose(d["h3"].item(), o - 1)  # Equation 11.18
    print(f"o = {o:.2f}, L = {g['L'].value:.1f}, g3 = {d['h3'].item():.2f}, g1 = {rounded(d['h1'][None])[0]}")
    assert rounded(d["W"]) == [[1.46, 0.73, 1.46], [-1.46, -0.73, -1.46], [0, 0, 0]]  # M
    assert rounded(d["W2"]) == [[-1.46, -0.73, 0]]  # M2
    for kind in ("pre-activation", "post-activation"):
        other = graph(kind).gradient("L")
        assert all(torch.allclose(other[name], d[name]) for name in ("W", "W2", "x"))
    print("M  =", rounded(d["W"]), "from all three graphs")
    assert best_path(g, "W[2,0]", "L") is None
    print("no path leads from W's third row: its unit is off")
    # exercise 13; the text has h1 = (2, -1, 3), which no ReLU gives: with 0 for -1 its numbers come out
    h1, h2 = torch.tensor([2.0, 0, 3]), torch.tensor([0.2, 0.5, 0.3])
    through_relu = torch.tensor([-2.0, 1, 4]) * (h1 > 0)
    through_sigmoid = torch.tensor([1.0, 3, -2]) * h2 * (1 - h2)
    assert torch.allclose(through_relu, torch.tensor([-2.0, 0, 4]))
    assert torch.allclose(through_sigmoid, torch.tensor([0.16, 0.75, -0.42]))
    print("exercise 13: W1ᵀ", through_relu.tolist(), "+ W2ᵀ", [round(v, 2) for v in through_sigmoid.tolist()])
    if picture:
        draw(g, picture, notes=backpropagate(g, "L"), path=best_path(g, "x[1]", "L"), title="Figure 11.15, written out")


if __name__ == "__main__":
    main(*sys.argv[1:])
