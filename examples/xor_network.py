"""Koehn's chapter 3: Figures 3.1 and 3.2, and the session that trains the network.

Two sigmoid layers compute something like XOR. The forward values of Figure 3.1 and the gradients of Figure 3.2 are
those of one graph; two steps of training print the numbers of his session. Three things are printed wrong
(docs/errata.md): the gradient of ½(t - y)² by y is y - t, so all signs of Figure 3.2 are reversed; W2 is (5, -5) in
Equation 3.10; and the figure's caption says (0, 1) where its numbers are those of (1, 0).

    python examples/xor_network.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gradtrace.scalar import Graph, draw

X = [[0, 0], [0, 1], [1, 0], [1, 1]]
Y = [0, 1, 1, 0]


def figure(x: list[float], t: float) -> Graph:
    """Write Figure 3.2 down: the nodes of Figure 3.1, and the error."""
    g = Graph()
    g.inputs(x=x, t=t)
    g.parameters(W1=[[3, 4], [2, 3]], b1=[-2, -4], W2=[[5, -5]], b2=[-2])
    g.add("prod1", "@", "W1", "x")
    g.add("sum1", "+", "prod1", "b1")
    g.add("h", "sigmoid", "sum1")
    g.add("prod2", "@", "W2", "h")
    g.add("sum2", "+", "prod2", "b2")
    g.add("y", "sigmoid", "sum2")
    g.add("L2", lambda y, t: ((t - y) ** 2 / 2).sum(), "y", "t")
    return g


def near(found: Tensor, expected: list[float], digits: float = 5e-4) -> bool:
    """Compare with printed numbers."""
    return torch.allclose(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=digits)


def session() -> list[list[float]]:
    """Train as the Theano session does; give predictions and costs of two calls."""
    x, y = torch.tensor(X, dtype=torch.float64), torch.tensor(Y, dtype=torch.float64)
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True)
                  for v in ([[3.0, 2], [4, 3]], [-2.0, -4], [5.0, -5], -2.0)]  # fmt: skip
    found = []
    for _ in range(2):
        w, b, w2, b2 = parameters
        predicted = torch.sigmoid(torch.sigmoid(x @ w + b) @ w2 + b2)
        cost = ((y - predicted) ** 2).mean()
        found.append([*predicted.tolist(), cost.item()])
        for p, d in zip(parameters, torch.autograd.grad(cost, parameters), strict=True):
            p.data -= 0.1 * d
    return found


def main(picture: str | None = None) -> None:
    """Redraw the figures, check their numbers, and run the session."""
    g = figure([1, 0], 1)
    assert near(g["h"].value, [0.731, 0.119])  # Figure 3.1
    assert near(g["y"].value, [0.743])
    d = g.gradient("L2")
    assert near(-d["y"], [0.257])  # what the text prints, with the sign that a gradient has
    assert near(-d["W2"], [0.0360, 0.00587], 5e-5)
    assert near(-d["h"], [0.246, -0.246])
    print(f"y = {g['y'].value.item():.3f}, ∂L2/∂y = {d['y'].item():.3f}; the text has +0.257")
    assert figure([0, 1], 1)["h"].value[0] > 0.88  # the caption's input: other numbers than the figure's
    print("downhill: W2 - 0.1·∂L2/∂W2 has the error", end=" ")
    before, after = g["L2"].value, g.forward(W2=g["W2"].value - 0.1 * d["W2"])["L2"]
    assert after < before
    print(f"{after:.6f} < {before:.6f}; with the printed sign it would grow")
    first, second = session()
    assert near(
        torch.tensor(first, dtype=torch.float64),
        [0.18333462, 0.7425526, 0.7425526, 0.33430961, 0.06948320612438118],
        5e-9,
    )
    assert near(
        torch.tensor(second, dtype=torch.float64),
        [0.18353091, 0.74260499, 0.74321824, 0.33324929, 0.06923193686092949],
        5e-9,
    )
    print(f"the session: cost {first[-1]:.10f}, then {second[-1]:.10f}")
    if picture:
        g = figure([1, 0], 1)
        draw(
            g.vectors(),
            picture,
            notes=g.gradient("L2"),
            title="Figure 3.2 with the right signs: values, and ∂L2 in blue",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
