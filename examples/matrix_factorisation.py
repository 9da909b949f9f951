"""Exercises 19 and 20: an autoencoder without activations is a matrix factorisation; grown unit by unit, it is the SVD.

The hidden layer's weights and the output's are the factors. Their product is the best approximation of rank k, which
is numpy's truncated SVD, though the factors are no orthonormal basis. Adding one hidden unit at a time, with those
before it held still and its weights tied, finds the singular vectors one after the other. With tied weights the one
matrix is used twice, and Through says how much of its gradient comes from either use: at the optimum each vanishes by
itself.

    python examples/matrix_factorisation.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import gradtrace
from gradtrace import Through
from gradtrace.scalar import Graph, draw


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Minimise by L-BFGS."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]


def encode(data: Tensor, w: Tensor) -> Tensor:
    """Give the error of an autoencoder whose decoder is its encoder, transposed."""
    with gradtrace.component("encoder"):
        hidden = data @ w
    with gradtrace.component("decoder"):
        back = hidden @ w.T
    return (data - back).square().sum()


def main(picture: str | None = None) -> None:
    """Factorise a matrix of 12 × 6 both ways, and compare with numpy."""
    draw_from = torch.Generator().manual_seed(2)
    data = torch.randn(12, 6, generator=draw_from, dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0, 2.0, 1.2, 0.6, 0.3, 0.2], dtype=torch.float64)
    )
    _, s, vt = np.linalg.svd(data.numpy(), full_matrices=False)
    rank = 2
    best = float((s[rank:] ** 2).sum())

    into, out = (0.3 * torch.randn(6, rank, generator=draw_from, dtype=torch.float64) for _ in range(2))
    into, out = into.requires_grad_(), out.requires_grad_()
    minimise(lambda: (data - data @ into @ out.T).square().sum(), [into, out])
    error = (data - data @ into @ out.T).square().sum().item()
    assert abs(error - best) < 1e-6 * best
    subspace = torch.linalg.qr(out.detach()).Q
    overlap = torch.linalg.svdvals(subspace.T @ torch.from_numpy(vt[:rank].T))
    assert torch.allclose(overlap, torch.ones(rank, dtype=torch.float64), atol=1e-5)
    gram = (out.T @ out).detach()
    print(f"exercise 19: error {error:.6f}, the truncated SVD's {best:.6f}; out's columns: product {gram[0, 1]:.2f}")

    found: list[Tensor] = []
    rest = data.clone()
    for k in range(rank):
        w = (0.3 * torch.randn(6, 1, generator=draw_from, dtype=torch.float64)).requires_grad_()
        minimise(lambda: encode(rest, w), [w])  # noqa: B023
        found.append(w.detach().flatten())
        rest = rest - rest @ w.detach() @ w.detach().T
        cosine = abs(float(found[-1] @ torch.from_numpy(vt[k])))
        assert abs(cosine - 1) < 1e-5
        print(f"exercise 20: unit {k + 1} is singular vector {k + 1}: cosine {cosine:.6f}")
    basis = torch.stack(found)
    assert torch.allclose(basis @ basis.T, torch.eye(rank, dtype=torch.float64), atol=1e-5)

    anywhere = torch.randn(6, rank, generator=draw_from, dtype=torch.float64)
    for said, start in (("at random", anywhere), ("at the optimum", basis.T)):
        w = start.clone().requires_grad_()
        with gradtrace.record(names={"w": w}) as tape:
            loss = encode(data, w)
        ((encoding, decoding),) = tape.grad(loss, "w", Through(("encoder",)))  # the decoder's use goes around
        assert torch.allclose(encoding + decoding, torch.autograd.grad(loss, w)[0])
        norms = encoding.norm().item(), decoding.norm().item()
        print(f"tied weights, {said}: gradient {norms[0]:.3f} by encoding, {norms[1]:.3f} by decoding")
        assert said == "at random" or max(norms) < 1e-2  # each by itself
    if picture:
        g = Graph()
        g.inputs(x=data[0])
        g.parameters(W=w.detach())
        g.add("hidden", lambda w, x: w.T @ x, "W", "x")
        g.add("back", "@", "W", "hidden")
        g.add("error", lambda x, b: (x - b).square().sum(), "x", "back")
        draw(g.vectors(), picture, title="A tied autoencoder: one matrix, used twice")


if __name__ == "__main__":
    main(*sys.argv[1:])
