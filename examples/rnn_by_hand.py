"""Exercises 9 to 12: a recurrent network by hand, and where its printed recurrences are off by one.

h_p = tanh(W·h_{p-1} + V·x_p). Going back from h_p to h_{p-1} multiplies by Wᵀ·Δ_p, the derivative of the tanh that
made h_p; the text prints Δ_{p-1}, with which the sum is not the gradient. What the trace shows: W is shared by all
six steps, and each of its entries owes its strongest path to one use: it enters at that step and leaves by one of the
outputs, so that most paths cross one step or two of the six.

    python examples/rnn_by_hand.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor

import gradtrace
from gradtrace.scalar import Graph, draw

T, M, D, K = 6, 4, 3, 2  # steps, hidden units, inputs, outputs


def total(terms: Iterable[Tensor]) -> Tensor:
    """Add matrices up."""
    return torch.stack(list(terms)).sum(0)


def main(picture: str | None = None) -> None:
    """Derive all gradients by the recurrences, with the right Δ and with the printed one."""
    draw_from = torch.Generator().manual_seed(1)
    u, w, v = (0.8 * torch.randn(s, generator=draw_from, dtype=torch.float64) for s in ((K, M), (M, M), (M, D)))
    xs = torch.randn(T, D, generator=draw_from, dtype=torch.float64)
    leaves = {"U": u.requires_grad_(), "W": w.requires_grad_(), "V": v.requires_grad_()}
    h = [torch.zeros(M, dtype=torch.float64)]
    with gradtrace.record(names=leaves) as tape:
        for x in xs:
            with gradtrace.component("step"):
                h.append(torch.tanh(w @ h[-1] + v @ x))
        losses = [(u @ state).square().sum() for state in h[1:]]
        loss = torch.stack(losses).sum()
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), retain_graph=True), strict=True))

    with torch.no_grad():
        by_output = [2 * u @ state for state in h[1:]]  # ∂L/∂o_p
        delta = [torch.diag(1 - state * state) for state in h]  # Δ_p

        def recurrence(shift: int) -> dict[str, torch.Tensor]:
            """Exercises 11 and 12; shift 0 has Δ_p, shift 1 the printed Δ_{p-1}."""
            by_h = [torch.zeros(M, dtype=torch.float64)] * (T + 1)
            by_h[T] = u.T @ by_output[-1]
            for p in range(T, 1, -1):
                by_h[p - 1] = w.T @ delta[p - shift] @ by_h[p] + u.T @ by_output[p - 2]
            return {
                "U": total(torch.outer(by_output[p - 1], h[p]) for p in range(1, T + 1)),
                "W": total(torch.outer(delta[p - shift] @ by_h[p], h[p - 1]) for p in range(2, T + 1)),
                "V": total(torch.outer(delta[p] @ by_h[p], xs[p - 1]) for p in range(1, T + 1)),
            }  # fmt: skip

        right, printed = recurrence(0), recurrence(1)
    for name, gradient in expected.items():
        assert torch.allclose(right[name], gradient)
        off = (printed[name] - gradient).norm() / gradient.norm()
        assert name == "U" or off > 0.05
        print(f"∂L/∂{name}: {tuple(gradient.shape)}, Δ_p is right; the printed Δ_(p-1) is off by {off:.0%}")
    ranks = {name: int(torch.linalg.matrix_rank(g)) for name, g in expected.items()}
    assert ranks == {"U": min(K, T), "W": min(M, T - 1), "V": min(M, D)}  # T - 1, or T, products of rank one added up
    table = tape.trace(loss).influence([f"step:{p}" for p in range(1, T + 1)], of="W")
    print(table)
    if picture:
        g = Graph()
        g.inputs(h0=h[0])
        g.parameters(W=w.detach(), V=v.detach(), U=u.detach())
        at = g["h0"]
        for p, x in enumerate(xs[:3], 1):
            g.inputs(**{f"x{p}": x})
            at = g.add(f"h{p}", lambda w, h, v, x: torch.tanh(w @ h + v @ x), "W", at, "V", f"x{p}")
        g.add("o", "@", "U", at)
        draw(g.vectors(), picture, title="Three steps of the recurrent network, with the shapes of the Jacobians")


if __name__ == "__main__":
    main(*sys.argv[1:])
