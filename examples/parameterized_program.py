"""Pingali's running example: a parameterized program, its training loop, and weights that are shared.

R(P, Q) has three weights, and two paths lead from W0 to R. One backward pass for each training sample gives all three
derivatives, and a scaled sum of them a step. Weight sharing needs no new rule: when W1 and W2 are one weight, two
edges leave it, and its derivative is the sum over both; the trace says which of the two uses it owes its strongest
gradient to.

    python examples/parameterized_program.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch

from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table


def program(*, shared: bool) -> Graph:
    """Write R(P, Q) down, and the squared error of one sample."""
    g = Graph()
    g.inputs(P=0.5, Q=0.2, t=0.0)
    g.parameters(W0=0.3, **({"W": 0.8} if shared else {"W1": 0.8, "W2": -0.5}))
    g.add("A", "*", "W0", "P")
    g.add("B", lambda a, q: torch.tanh(a + q), "A", "Q")
    g.add("C", "*", "W" if shared else "W1", "B")
    g.add("D", "*", "W" if shared else "W2", "B")
    g.add("E", "sin", "C")
    g.add("F", "exp", "D")
    g.add("R", "*", "E", "F")
    g.add("loss", lambda t, r: (t - r) ** 2, "t", "R")
    return g


def train(g: Graph, samples: list[tuple[float, float, float]], epochs: int, rate: float) -> list[float]:
    """Do his loop: forward and backward for each sample, add up, scale, step; give the losses."""
    weights = [name for name, node in g.nodes.items() if node.kind == "parameter"]
    losses = []
    for _ in range(epochs):
        total, gradient = 0.0, dict.fromkeys(weights, 0.0)
        for p, q, t in samples:
            total += g.forward(P=p, Q=q, t=t)["loss"]
            by_r = g.gradient("R")
            for name in weights:
                gradient[name] += (t - g["R"].value) * by_r[name]
        losses.append(total / len(samples))
        g.forward(**{name: g[name].value + rate * 2 / len(samples) * gradient[name] for name in weights})
    return losses


def main(picture: str | None = None) -> None:
    """Follow both paths of W0, train, and share a weight."""
    g = program(shared=False)
    table = path_table(g, "W0", "R")
    print(table)
    assert len(table) == 2
    assert abs(table.total - g.gradient("R")["W0"]) < 1e-12
    teacher = program(shared=False)
    teacher.forward(W0=0.7, W1=1.1, W2=-0.2)
    samples = [(p / 4, q / 4, teacher.forward(P=p / 4, Q=q / 4)["R"]) for p in range(-3, 4, 2) for q in range(-3, 4, 2)]
    losses = train(g, samples, epochs=40, rate=0.4)
    print(f"training: loss {losses[0]:.4f} -> {losses[-1]:.6f}")
    assert losses[-1] < losses[0] / 20
    g = program(shared=True)
    by_both = g.gradient("R")["W"]
    x = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(g["B"].value, dtype=torch.float64)
    (expected,) = torch.autograd.grad((x * b).sin() * (x * b).exp(), x)
    assert abs(by_both - expected.item()) < 1e-12
    path = best_path(g, "W", "R")
    assert path is not None
    print(f"shared: ∂R/∂W = {by_both:.4f} over two uses, the stronger through {path.vertices[1]}")
    if picture:
        draw(g, picture, notes=backpropagate(g, "R"), path=path, title="R(P, Q) with one weight used twice")


if __name__ == "__main__":
    main(*sys.argv[1:])
