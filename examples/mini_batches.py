"""Exercise 3: batches as matrices, and what a batch averages away.

With a column for each training instance, Z' = W·Z is one product of matrices, so is G = Wᵀ·G', and ∂L/∂W = G'·Zᵀ adds
up the outer products of all instances. What the trace shows: under Count an entry of W has one path for each instance
in which its hidden unit is on. Under Sum these paths cancel, the more the larger the batch, where nothing is left to
learn: what is left of all that they carry falls as 1/√B. That is the noise which a batch averages away.

    python examples/mini_batches.py [PICTURE]
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

import gradtrace
from gradtrace import AbsSum, Count, Sum

D, H = 6, 5


def draw_data(w: Tensor, u: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw inputs, a column each, and as labels what the network says of them, with noise: it has nothing to learn."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(D, size, generator=random, dtype=torch.float64)
    noise = torch.randn(size, generator=random, dtype=torch.float64)
    return z, u @ torch.relu(w.detach() @ z) + noise


def network(w: Tensor, u: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give the mean loss of a batch, and its hidden units."""
    hidden = torch.relu(w @ z)
    return (u @ hidden - y).square().mean(), hidden


def by_matrices(w: Tensor, u: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Backpropagate a batch by products of matrices alone."""
    hidden = torch.relu(w @ z)
    g_out = 2 * (u @ hidden - y)[None] / len(y)  # 1 × batch
    g_hidden = (u[None].T @ g_out) * (hidden > 0)  # hidden × batch
    return g_hidden @ z.T


def main(picture: str | None = None) -> None:
    """Compare matrices with one instance after another; count paths; see them cancel."""
    random = torch.Generator().manual_seed(1)
    w = torch.randn(H, D, generator=random, dtype=torch.float64).requires_grad_()
    u = torch.randn(H, generator=random, dtype=torch.float64)
    z, y = draw_data(w, u, 32, 0)
    with gradtrace.record(names={"W": w}) as tape:
        loss, hidden = network(w, u, z, y)
    (total,), (count,) = tape.grad(loss, "W", [Sum, Count])
    one_by_one = [by_matrices(w.detach(), u, z[:, [i]], y[[i]]) for i in range(32)]
    assert torch.allclose(torch.stack(one_by_one).mean(0), by_matrices(w.detach(), u, z, y))
    assert torch.allclose(by_matrices(w.detach(), u, z, y), total)
    assert torch.equal(count, (hidden > 0).sum(1, keepdim=True).expand(H, D).double())
    print("one product of matrices is 32 products of vectors, added up; paths for each hidden unit:")
    print("   ", [int(c) for c in count[:, 0]], "of 32: the instances in which it is on")

    sizes, left = (1, 4, 16, 64, 256), []
    for size in sizes:
        shares = []
        for seed in range(1, 9):
            with gradtrace.record(names={"W": w}) as tape:
                loss, _ = network(w, u, *draw_data(w, u, size, seed))
            net, flow = tape.grad(loss, "W", Sum), tape.grad(loss, "W", AbsSum)
            shares.append((net[0].abs().sum() / flow[0].sum()).item())
        left.append(sum(shares) / len(shares))
        print(f"batches of {size:3}: {left[-1]:4.0%} of what the paths carry is left in the gradient")
    assert math.isclose(left[0], 1)  # one instance: one path for each weight
    assert left == sorted(left, reverse=True)
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.loglog(sizes, left, "o-", color="#d95f02", label="|sum| / sum of absolutes")
        axes.loglog(sizes, [size**-0.5 for size in sizes], ":", color="#333333", label="1/√B")
        axes.set(xlabel="batch size B", title="What is left of a batch's paths")
        axes.legend(fontsize=8)
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
