"""Table 11.1 as a program: each function's forward and backward step, against autograd and against the paths.

A layer's backward step is Jacobianᵀ·g. Each row of the table says what that comes to; here each is computed three
times: by the row, by PyTorch, and as the sum over the paths of the scalar graph. At 0, and at ±1, the two corners of
ReLU and hard tanh, the text of 11.4.1 and the table differ, and PyTorch takes the table's side for ReLU
(docs/errata.md).

    python examples/table_11_1.py [PICTURE]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from gradtrace.scalar import Graph, backpropagate, draw

W = torch.tensor([[1.0, -2, 0.5], [0, 3, -1]], dtype=torch.float64)
Z = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64)

Backward = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (z_i, z_{i+1}, g_{i+1})
ROWS: dict[str, tuple[Callable[[Tensor], Tensor], Backward]] = {
    "linear": (lambda z: W @ z, lambda z, y, g: W.T @ g),
    "sigmoid": (torch.sigmoid, lambda z, y, g: g * y * (1 - y)),
    "tanh": (torch.tanh, lambda z, y, g: g * (1 - y * y)),
    "ReLU": (torch.relu, lambda z, y, g: g * (z > 0)),
    "hard tanh": (torch.nn.functional.hardtanh, lambda z, y, g: g * (z.abs() <= 1)),
    "max": (lambda z: z.max()[None], lambda z, y, g: g * (z == z.max())),
    "sum": (lambda z: z.sum()[None], lambda z, y, g: g.expand(len(z))),  # Pingali's reduce; his map is the rows above
    "min": (lambda z: z.min()[None], lambda z, y, g: g * (z == z.min())),
    "arbitrary": (lambda z: torch.stack([z[0] * z[1], z[2].exp()]), lambda z, y, g: jacobian(z).T @ g),
}


def jacobian(z: Tensor) -> Tensor:
    """Give that of the arbitrary function, by hand."""
    a, b, c = z.tolist()
    return torch.tensor([[b, a, 0], [0, 0, torch.tensor(c, dtype=z.dtype).exp()]], dtype=z.dtype)


def derivative(function: Callable[[Tensor], Tensor], at: float) -> float:
    """Differentiate at one number."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(x), x)[0].item()


def main(picture: str | None = None) -> None:
    """Go through the rows."""
    for name, (function, backward) in ROWS.items():
        z = Z.clone().requires_grad_()
        y = function(z)
        g = torch.linspace(-1.0, 2.0, len(y), dtype=torch.float64)
        (expected,) = torch.autograd.grad(y, z, g)
        by_row = backward(Z, y.detach(), g)
        graph = Graph()
        graph.inputs(z=Z)
        graph.add("y", function, "z")
        graph.add("loss", lambda y, g=g: (y * g).sum(), "y")
        by_paths = backpropagate(graph, "loss")
        assert torch.allclose(by_row, expected)
        assert torch.allclose(torch.tensor([by_paths[f"z[{i}]"] for i in range(3)], dtype=Z.dtype), expected)
        print(f"{name:10} g_i = {[round(v, 4) + 0.0 for v in by_row.tolist()]}")
        if picture and name == "linear":
            draw(graph, picture, notes=by_paths, title="A linear layer: Wᵀg, path by path")
    for v in (-2.0, 0.3, 1.5):  # Equations 11.12 and 11.13, 11.15 and 11.16: by the input, and by the output
        s, t, e = 1 / (1 + math.exp(-v)), math.tanh(v), math.exp(2 * v)
        assert math.isclose(derivative(torch.sigmoid, v), math.exp(-v) / (1 + math.exp(-v)) ** 2)
        assert math.isclose(derivative(torch.sigmoid, v), s * (1 - s))
        assert math.isclose(derivative(torch.tanh, v), 4 * e / (e + 1) ** 2)
        assert math.isclose(derivative(torch.tanh, v), 1 - t * t)
    at_0 = derivative(torch.relu, 0.0)
    at_1 = derivative(torch.nn.functional.hardtanh, 1.0)
    assert (at_0, at_1) == (0.0, 0.0)
    print(f"at the corners PyTorch has ReLU'(0) = {at_0:g} and hard tanh'(1) = {at_1:g}; the text has 1 and 1")


if __name__ == "__main__":
    main(*sys.argv[1:])
