"""Table 11.2 as a program: kinds of computational graphs, and how many paths a gradient has in each.

A row is a model. Of each, a small one is built here, learns by the row's own method, and is looked at: whether its
graph has cycles, what values its nodes take, whether it computes the same twice. What the trace adds is a column: how
many paths lead from the weights to what is minimised, by Count. Where the method is gradient descent there are some; a
Hopfield network's binary units and a Boltzmann machine's samples leave none, and that is why their rules are Hebbian.
The probability that a machine assigns, summed over its states, has paths again.

    python examples/table_11_2.py [PICTURE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import networkx
import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

import gradtrace
from gradtrace import Count
from gradtrace.scalar import draw

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=RANDOM, dtype=torch.float64)
Y = torch.where(X[:, 0] + 0.3 * X[:, 1] > 0, 1.0, -1.0).double()
BITS = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.float64)
ALL = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)

Units = dict[str, list[str]]  # of each unit, those whose values it is computed from


@dataclass(frozen=True)
class Row:
    """A model: who listens to whom, how it computes its nodes' values, what it minimises, and a step of learning."""

    units: Units
    values: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]
    start: Tensor
    learn: Callable[[Tensor], Tensor] | None = None  # gradient descent where there is none


def layers(*sizes: int) -> Units:
    """Let each unit of a layer listen to all of the layer before."""
    names = [[f"{layer}.{i}" for i in range(size)] for layer, size in enumerate(sizes)]
    return {u: before for before, layer in zip([[], *names], names, strict=False) for u in layer}


def among(graph: networkx.Graph) -> Units:
    """Let units listen to their neighbours."""
    return {str(u): [str(v) for v in graph[u]] for u in graph}


def hebb(w: Tensor) -> Tensor:
    """Take a step of the Hebbian rule."""
    s = 2 * BITS - 1
    return w + 0.1 * (s.T @ s / len(s)).fill_diagonal_(0)


def settled(w: Tensor) -> Tensor:
    """Set a Hopfield network's units, starting from the patterns with one unit flipped."""
    s = 2 * BITS - 1
    s[:, 0] *= -1
    for _ in range(3):
        for unit in range(4):
            s[:, unit] = torch.where(s @ w[unit] >= 0, 1.0, -1.0)
    return s


def unnormalised(w: Tensor, s: Tensor) -> Tensor:
    """Give a Boltzmann machine's log-probabilities, up to a constant."""
    return ((s @ w) * s).sum(-1) / 2


def sampled(w: Tensor, sweeps: int = 5, count: int = 400) -> Tensor:
    """Draw a Boltzmann machine's states by Gibbs sampling."""
    s = torch.bernoulli(torch.full((count, 4), 0.5, dtype=torch.float64))
    for _ in range(sweeps):
        for unit in range(4):
            s[:, unit] = torch.bernoulli(torch.sigmoid(s @ w[unit]))
    return s


def contrast(w: Tensor) -> Tensor:
    """Take a step by the correlations of the data less those of samples."""
    s = sampled(w)
    return w + 0.3 * (BITS.T @ BITS / len(BITS) - s.T @ s / len(s)).fill_diagonal_(0)


def likelihood(w: Tensor) -> Tensor:
    """Give the mean negative log-likelihood of the data, by enumeration."""
    return unnormalised(w, ALL).logsumexp(0) - unnormalised(w, BITS).mean()


def naive_bayes(w: Tensor) -> Tensor:
    """Give the negative log-likelihood of a cause of two states, and four bits that depend on it."""
    cause, bits = torch.log_softmax(w[:, 0], 0), w[:, 1:]
    return -(cause + (BITS[:, None] * bits - softplus(bits)).sum(-1)).logsumexp(1).mean()


def drawn(w: Tensor) -> Tensor:
    """Sample a cause, and its bits."""
    cause = torch.bernoulli(torch.softmax(w[:, 0], 0)[1].expand(50)).long()
    return torch.bernoulli(torch.sigmoid(w[cause, 1:]))


def kohonen(w: Tensor) -> Tensor:
    """Give the error of a map of four units in a row."""
    d = (X[:, None] - w).square().sum(-1)
    apart = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    return ((-apart[d.argmin(1)].square().double()).exp() * d).sum(1).mean()


def weights(*shape: int) -> Tensor:
    """Draw where learning starts."""
    return 0.3 * torch.randn(*shape, generator=RANDOM, dtype=torch.float64)


def factors(w: Tensor) -> Tensor:
    """Give the error of a factorisation of the data, rows first."""
    return (X - w[:20] @ w[20:].T).square().mean()


def network(w: Tensor) -> Tensor:
    """Give the scores of two layers."""
    return torch.tanh(X @ w[:, :3].T) @ w[:, 3]


ROWS = {
    "SVM": Row(layers(3, 1), lambda w: X @ w, lambda w: relu(1 - Y * (X @ w)).mean(), weights(3)),
    "logistic regression": Row(layers(3, 1), lambda w: X @ w, lambda w: softplus(-Y * (X @ w)).mean(), weights(3)),
    "linear regression": Row(layers(3, 1), lambda w: X @ w, lambda w: (X @ w - Y).square().mean(), weights(3)),
    "SVD": Row(layers(3, 1, 3), lambda w: X @ w, lambda w: (X - (X @ w)[:, None] * w).square().mean(), weights(3)),
    "matrix factorisation": Row(layers(20, 2, 3), lambda w: w[:20], factors, weights(23, 2)),
    "feed-forward network": Row(layers(3, 4, 1), network, lambda w: (network(w) - Y).square().mean(), weights(4, 4)),
    "Kohonen map": Row(among(networkx.path_graph(4)), lambda w: X @ w.T, kohonen, weights(4, 3)),
    "Hopfield network": Row(
        among(networkx.complete_graph(4)), settled, lambda w: (settled(w) != 2 * BITS - 1).double().mean(),
        torch.zeros(4, 4, dtype=torch.float64), hebb,
    ),
    "Boltzmann machine": Row(
        among(networkx.complete_graph(4)), sampled, likelihood, torch.zeros(4, 4, dtype=torch.float64), contrast
    ),
    "graphical model": Row(layers(1, 4), drawn, naive_bayes, weights(2, 5)),
}  # fmt: skip
# the table's columns; of a graphical model the text says "varies", and this one is directed
EXPECTED = dict.fromkeys(list(ROWS)[:6], ("no", "continuous", "deterministic")) | {
    "Kohonen map": ("yes", "continuous", "deterministic"),
    "Hopfield network": ("yes", "discrete", "deterministic"),
    "Boltzmann machine": ("yes", "discrete", "probabilistic"),
    "graphical model": ("no", "discrete", "probabilistic"),
}


def looked_at(row: Row) -> tuple[str, str, str]:
    """Find the columns of the table by looking."""
    graph = networkx.DiGraph([(v, u) for u, heard in row.units.items() for v in heard])
    acyclic = networkx.is_directed_acyclic_graph(graph)
    first, second = row.values(row.start), row.values(row.start)
    return (
        "no" if acyclic else "yes",
        "discrete" if len(first.unique()) <= 2 else "continuous",
        "deterministic" if torch.equal(first, second) else "probabilistic",
    )


def count_paths(function: Callable[[Tensor], Tensor], start: Tensor) -> int:
    """Count the paths that lead from the weights."""
    w = start.clone().requires_grad_()
    with gradtrace.record(names={"w": w}) as tape:
        value = function(w).sum()
    if not value.requires_grad:
        return 0
    (count,) = tape.grad(value, ["w"], Count, allow_unused=True)
    return 0 if count is None else int(count.sum())


def learned(row: Row, steps: int = 40) -> tuple[float, float]:
    """Learn by the row's method; give the loss before and after."""
    w = row.start.clone()
    for _ in range(steps):
        if row.learn is not None:
            w = row.learn(w)
            continue
        leaf = w.clone().requires_grad_()
        w = w - 0.2 * torch.autograd.grad(row.loss(leaf), leaf)[0]
    return row.loss(row.start).item(), row.loss(w).item()


def main(picture: str | None = None) -> None:
    """Print the table, with the column of paths."""
    torch.manual_seed(0)  # for samples
    print(f"{'model':20}  cycles  variables   function       method            paths  loss")
    for name, row in ROWS.items():
        cycles, variables, function = looked_at(row)
        assert (cycles, variables, function) == EXPECTED[name]
        paths = count_paths(row.loss if row.learn is None else row.values, row.start)
        assert (paths > 0) == (row.learn is None)
        before, after = learned(row)
        assert after < before
        method = "gradient descent" if row.learn is None else "Hebbian" if name[0] == "H" else "sampling, Hebbian"
        print(
            f"{name:20}  {cycles:6}  {variables:10}  {function:13}  {method:17}{paths:6}  {before:.2f} -> {after:.2f}"
        )
    paths = count_paths(likelihood, ROWS["Boltzmann machine"].start)
    assert paths > 0
    print(
        f"through the Boltzmann machine's probabilities, summed over its 16 states, {paths} paths lead: `boltzmann.py`"
    )
    if picture:
        graph = networkx.MultiDiGraph()
        graph.add_weighted_edges_from(
            [(v, u, 1.0) for u, heard in ROWS["feed-forward network"].units.items() for v in heard]
        )
        draw(graph, picture, title="The row of most programs: a feed-forward network")


if __name__ == "__main__":
    main(*sys.argv[1:])
