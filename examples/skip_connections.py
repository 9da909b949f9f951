"""Exercise 8: connections between alternate layers, and how much of the gradient takes them.

y = W4·ReLU(W2·x + W3·ReLU(W1·x)). Through splits ∂y/∂x into what comes through the first hidden layer and what goes
around it; both have the closed forms of the exercise. Graded counts layers: the part of the gradient whose paths
cross one of the two products with x, or both. In a vector graph, the skip connection is one more term Jacobianᵀ·Δ.

    python examples/skip_connections.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import gradtrace
from gradtrace import Graded, Through
from gradtrace.scalar import Graph, draw


class Skipping(nn.Module):
    """The exercise's network; `first` is its first hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU())
        self.skip, self.second = nn.Linear(4, 3, bias=False), nn.Linear(5, 3, bias=False)
        self.last = nn.Linear(3, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give y."""
        return self.last(torch.relu(self.skip(x) + self.second(self.first(x))))


def main(picture: str | None = None) -> None:
    """Split the gradient, and compare with the closed forms."""
    torch.manual_seed(6)
    model, x = Skipping().double(), torch.randn(4, dtype=torch.float64, requires_grad=True)
    with gradtrace.record(model, names={"x": x}) as tape:
        y = model(x).sum()
    w1, w2, w3, w4 = model.state_dict().values()
    h1 = torch.relu(w1 @ x)
    by_h2 = w4.T.flatten()
    on = by_h2 * (w2 @ x + w3 @ h1 > 0)  # ∂y/∂(what the second ReLU is given)
    by_h1 = w3.T @ on
    through, around = w1.T @ (by_h1 * (h1 > 0)), w2.T @ on
    assert through.norm() > 0 < around.norm()
    (split,) = tape.grad(y, "x", Through(("first",)))
    assert torch.allclose(split[0, 0], through.detach())
    assert torch.allclose(split[1, 0], around.detach())
    assert torch.allclose(split.sum(0)[0], tape.grad(y, "x")[0])
    norms = (through + around).norm(), through.norm(), around.norm()
    print("∂y/∂x: norm {:.3f}, through the first layer {:.3f}, around it {:.3f}".format(*norms))
    (degrees,) = tape.grad(y, "x", Graded(by=("first", "second")))
    assert torch.allclose(degrees[0], around.detach())  # neither of the two layers
    assert torch.allclose(degrees[2], through.detach())
    table = tape.trace(y).influence(["first", "skip"], of="x")
    print(table)
    g = Graph()
    g.inputs(x=x.detach())
    g.parameters(W1=w1, W2=w2, W3=w3, W4=w4)
    g.add("h1", lambda w, x: torch.relu(w @ x), "W1", "x")
    g.add("h2", lambda w2, x, w3, h1: torch.relu(w2 @ x + w3 @ h1), "W2", "x", "W3", "h1")
    g.add("y", lambda w, h: (w @ h).sum(), "W4", "h2")
    found = g.gradient("y")
    assert torch.allclose(found["h1"], by_h1.detach())
    assert torch.allclose(found["h2"], by_h2)
    assert torch.allclose(found["x"], (through + around).detach())
    print("the vector-centric algorithm gives the same: two edges leave x, and their Jacobians' products are added")
    if picture:
        draw(g.vectors(), picture, title="Exercise 8: the Jacobians of a skip connection")


if __name__ == "__main__":
    main(*sys.argv[1:])
