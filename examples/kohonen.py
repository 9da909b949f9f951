"""A Kohonen map: its rule is a gradient, its winner is none, and the trace measures the neighbourhood.

Units on a lattice compete for each point; the winner moves towards it, and its neighbours a little less. With the
winners held, the rule is the gradient of Σ h(unit, winner)·|x - w|²/2. Which unit wins is a choice: no path leads
through it. What the trace shows: a point's paths go through all units near its winner, as many in effect as the
neighbourhood is wide. When that has shrunk to nothing, the rule is k-means, which scikit-learn confirms; but on the way
the lattice has unfolded, and units that are neighbours have similar values.

    python examples/kohonen.py [PICTURE]
"""

from __future__ import annotations

import sys

import networkx
import torch
from sklearn.cluster import KMeans
from torch import Tensor

import gradtrace
from gradtrace import Entropy

SIDE = 5


def lattice() -> tuple[networkx.Graph, Tensor]:
    """Give the lattice, and how many steps apart its units are."""
    graph = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(SIDE, SIDE), ordering="sorted")
    apart = dict(networkx.all_pairs_shortest_path_length(graph))
    return graph, torch.tensor([[apart[a][b] for b in graph] for a in graph], dtype=torch.float64)


def loss(x: Tensor, w: Tensor, apart: Tensor, width: float) -> Tensor:
    """Give the error of points; how much of it is each unit's concern falls with its distance from the winner."""
    distances = (x[:, None] - w[None]).square().sum(-1)  # points × units
    winners = distances.argmin(1)
    h = torch.exp(-apart[winners].square() / (2 * width * width))
    return (h * distances).sum() / 2


def unit_counts(x: Tensor, w: Tensor, apart: Tensor, width: float) -> float:
    """Give through how many units, in effect, the paths of a point go: 2^entropy, the mean over points."""
    leaf = x.clone().requires_grad_()
    with gradtrace.record(names={"x": leaf}) as tape:
        value = loss(leaf, w, apart, width)
    (entropy,) = tape.grad(value, "x", Entropy)
    return (2**entropy).mean().item()


def torn(x: Tensor, w: Tensor, graph: networkx.Graph) -> float:
    """Give the share of points whose two nearest units are no neighbours."""
    first, second = torch.cdist(x, w).topk(2, largest=False).indices.unbind(1)
    return sum(not graph.has_edge(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)) / len(x)


def main(picture: str | None = None) -> None:
    """Unfold a lattice over points in a square."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(200, 2, generator=random, dtype=torch.float64)
    w = 0.5 + 0.01 * torch.randn(SIDE * SIDE, 2, generator=random, dtype=torch.float64)
    graph, apart = lattice()
    assert networkx.cycle_basis(graph)  # Table 11.2 says cycles; no value runs around them, and so no path

    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x[:1], leaf, apart, 1.5), leaf)
    winner = int(torch.cdist(x[:1], w).argmin())
    rule = torch.exp(-apart[winner].square() / (2 * 1.5**2))[:, None] * (x[0] - w)
    assert torch.allclose(-gradient, rule)
    print("with the winner held, Kohonen's rule is a step down the gradient")

    for n, width in enumerate(torch.linspace(2.5, 0.25, 40).tolist()):
        h = torch.exp(-apart[torch.cdist(x, w).argmin(1)].square() / (2 * width * width))  # points × units
        w = w + (h.T @ x - h.sum(0)[:, None] * w) / h.sum(0).clamp(min=1e-9)[:, None]  # all points at once
        if n % 13 == 0:
            units = unit_counts(x[:20], w, apart, width)
            share = torn(x, w, graph)
            print(f"width {width:.2f}: a point's paths go through {units:4.1f} units in effect; {share:.0%} torn")
    folded = torn(x, w, graph)
    kmeans = KMeans(SIDE * SIDE, init=w.numpy(), n_init=1, tol=0, max_iter=300)  # type: ignore[arg-type]
    theirs = -kmeans.fit(x.numpy()).score(x.numpy())
    for _ in range(300):
        nearest = torch.nn.functional.one_hot(torch.cdist(x, w).argmin(1), SIDE * SIDE).double()
        w = (nearest.T @ x) / nearest.sum(0)[:, None].clamp(min=1)
    ours = torch.cdist(x, w).amin(1).square().sum().item()
    assert abs(ours - theirs) < 1e-9
    anywhere = x[torch.randperm(200, generator=random)[: SIDE * SIDE]]
    assert folded < 0.2 < torn(x, anywhere, graph)
    print(f"without neighbours it is k-means: error {ours:.4f}, scikit-learn's {theirs:.4f}")
    print(f"torn: {folded:.0%} of the points of the map, {torn(x, anywhere, graph):.0%} where units are put at random")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(*x.T, s=6, color="#9a9a9a")
        for a, b in graph.edges:
            axes.plot(*w[[a, b]].T, color="#1b6ca8", lw=1)
        axes.scatter(*w.T, s=24, color="#d95f02", zorder=3)
        axes.set(title="The lattice, unfolded", aspect="equal")
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
