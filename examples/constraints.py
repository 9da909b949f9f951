"""Exercise 6: weights under linear equalities, and in a box.

Under equalities A·w = b, either each step is projected to where they hold, or the weights are written w = w0 + N·z, N
spanning what A does not see, and z is free: one more linear layer in the graph. Both end where the equations of
Lagrange say. In a box, a step is taken and then clipped. What the trace shows is why the clipping must not be part of
the graph: from a weight beyond its bound no path leads through the clamp, so that nothing brings it back.

    python examples/constraints.py [PICTURE]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from gradtrace.scalar import Graph, backpropagate, best_path, draw

A = torch.tensor([[1.0, 1, 1, 1], [1, -1, 0, 0]], dtype=torch.float64)  # the weights add up to 1, and w1 = w2
B = torch.tensor([1.0, 0], dtype=torch.float64)
LOW, HIGH = 0.0, 0.5


def data() -> tuple[Tensor, Tensor]:
    """Draw 30 points, whose best free weights keep no constraint."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(30, 4, generator=random, dtype=torch.float64)
    return x, x @ torch.tensor([0.9, 0.2, -0.4, 0.3], dtype=torch.float64)


def gradient(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Give that of the mean squared error."""
    return 2 * x.T @ (x @ w - y) / len(y)


def substituted(x: Tensor, y: Tensor, w0: Tensor, n: Tensor) -> Graph:
    """Give the graph with w = w0 + N·z as one of its layers."""
    g = Graph()
    g.inputs(X=x, y=y, w0=w0, N=n)
    g.parameters(z=[0.0] * n.shape[1])
    g.add("w", lambda w0, n, z: w0 + n @ z, "w0", "N", "z")
    g.add("L", lambda x, w, y: (x @ w - y).square().mean(), "X", "w", "y")
    return g


def boxed(w: list[float], x: Tensor, y: Tensor) -> Graph:
    """Give the graph that clamps its weights itself, of two points."""
    g = Graph()
    g.parameters(v=w)
    g.add("w", lambda v: v.clamp(LOW, HIGH), "v")
    g.add("ô", lambda w: x[:2] @ w, "w")
    g.add("L", lambda o: (o - y[:2]).square().mean(), "ô")
    return g


def main(picture: str | None = None) -> None:
    """Do it in all ways, and compare with the equations of Lagrange and with scipy."""
    x, y = data()
    kkt = torch.cat([torch.cat([2 * x.T @ x / len(y), A.T], 1), torch.cat([A, torch.zeros(2, 2)], 1)])
    exact = torch.linalg.solve(kkt, torch.cat([2 * x.T @ y / len(y), B]))[:4]
    inverse = torch.linalg.pinv(A)
    projection = torch.eye(4, dtype=torch.float64) - inverse @ A  # to the directions in which A·w stays the same
    w = inverse @ B
    for _ in range(300):
        w = w - 0.2 * projection @ gradient(x, y, w)
    assert torch.allclose(A @ w, B)
    assert torch.allclose(w, exact, atol=1e-6)
    n = torch.linalg.svd(A).Vh[2:].T  # an orthonormal basis of the same directions
    g = substituted(x, y, inverse @ B, n)
    for _ in range(300):
        g.forward(z=g["z"].value - 0.2 * g.gradient("L")["z"])
    assert torch.allclose(g["w"].value, exact, atol=1e-6)
    by = g.gradient("L")
    assert by["z"].abs().max() < 1e-6 < by["w"].abs().max()  # the loss still pulls, but only where it must not go
    print("equalities: projected, substituted and Lagrange agree:", [round(v, 4) for v in exact.tolist()])
    print(f"there ∂L/∂z = 0, and ∂L/∂w = {by['w'].norm():.3f} is all across the constraints")

    w = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(300):
        w = (w - 0.2 * gradient(x, y, w)).clamp(LOW, HIGH)
    theirs = lsq_linear(x.numpy(), y.numpy(), bounds=(LOW, HIGH)).x
    assert np.allclose(w.numpy(), theirs, atol=1e-5)
    at_bounds = [i for i, v in enumerate(w.tolist()) if v in (LOW, HIGH)]
    print(f"box: clipped steps find scipy's {[round(v, 4) for v in theirs.tolist()]}; at a bound: {at_bounds}")
    g = boxed([0.7, 0.2, -0.4, 0.3], x, y)
    dead = [i for i in range(4) if best_path(g, f"v[{i}]", "L") is None]
    assert dead == [0, 2]  # both are beyond a bound
    print(f"clamped inside the graph instead: no path leads from weights {dead}, and none will bring them back")
    if picture:
        draw(g, picture, notes=backpropagate(g, "L"), path=best_path(g, "v[1]", "L"), title="A clamp beyond its bounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
