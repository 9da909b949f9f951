"""Figure 11.3: a feed-forward network by its units and by its layers; a million paths; and why linear layers are one.

By layers it is one path of Jacobians, by units a path for each choice of one unit in each layer: nine from each of
five inputs here, a million in three layers of 100 units (11.3.3). Without activations the paths from an input to an
output add up to an entry of W2·W1, so that two layers are one matrix. What the trace shows: the nine paths are far from
equal, fewer than nine are there in effect, and one carries most.

    python examples/figure_11_3.py [PICTURE]
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from functools import reduce
from itertools import pairwise

import networkx
import torch
from torch import nn

import gradtrace
from gradtrace import Count
from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table

SIZES = (5, 3, 3, 1)


def graph() -> Graph:
    """Give Figure 11.3: three computational layers, weights of size (outputs × inputs), sigmoids."""
    random = torch.Generator().manual_seed(3)
    g = Graph()
    (at,) = g.inputs(x=torch.randn(SIZES[0], generator=random))
    for p, (m, n) in enumerate(pairwise(SIZES), 1):
        (w,) = g.parameters(**{f"W{p}": torch.randn(n, m, generator=random)})
        last = p == len(SIZES) - 1
        at = g.add("o" if last else f"h{p}", lambda w, h: torch.sigmoid(w @ h), w, at)
    return g


def linear(first: list[list[Fraction]], second: list[list[Fraction]]) -> networkx.MultiDiGraph:
    """Give the units of two layers without activations, weights on the edges."""
    found = networkx.MultiDiGraph()
    for name, matrix in ((("x", "h"), first), (("h", "o"), second)):
        for i, row in enumerate(matrix):
            for j, weight in enumerate(row):
                found.add_edge(f"{name[0]}{j}", f"{name[1]}{i}", weight=weight)
    return found


def main(picture: str | None = None) -> None:
    """Count paths, multiply Jacobians, and make two linear layers one."""
    g = graph()
    chain = [g.jacobians(name)[1] for name in ("o", "h2", "h1")]  # by the layer before, from the last to the first
    by_layers = reduce(torch.matmul, chain).flatten()
    by_units = backpropagate(g, "o[0]")
    assert all(math.isclose(by_units[f"x[{i}]"], d, rel_tol=1e-9) for i, d in enumerate(by_layers.tolist()))
    table = path_table(g, "x[0]", "o[0]")
    assert len(table) == math.prod(SIZES[1:]) == 9
    weight = sum(abs(p.weight) for p in table)
    effective = 2 ** backpropagate(g, "o[0]", "entropy")["x[0]"]
    assert effective < 9
    print(f"by layers one path; by units {len(table)} from each input, {effective:.1f} in effect")
    print(f"the strongest: {' -> '.join(map(str, table[0].vertices))}, {abs(table[0].weight) / weight:.0%} of them all")

    torch.manual_seed(0)
    x = torch.randn(10, requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        loss = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 100))(
            x
        ).sum()
    (count,) = tape.grad(loss, "x", Count)
    assert count.tolist() == [1e6] * 10
    print(f"three layers of 100 units: {int(count[0]):,} paths from each input")

    first = [[Fraction(i * j + i - j, 3) for j in range(4)] for i in range(3)]
    second = [[Fraction(i + j, j + 1) for j in range(3)] for i in range(2)]
    units = linear(first, second)
    for i in range(2):
        for j in range(4):
            entry = sum(second[i][k] * first[k][j] for k in range(3))
            assert backpropagate(units, f"o{i}")[f"x{j}"] == entry  # of W2·W1, exactly
    print("without activations, the paths from x_j to o_i add up to the entry (i, j) of W2·W1: one layer")
    if picture:
        scalars = g.scalars()
        units = scalars.subgraph([v for v, kind in scalars.nodes(data="kind") if kind != "parameter"]).copy()
        draw(units, picture, path=best_path(g, "x[0]", "o[0]"), notes=by_units, title="Figure 11.3(a), by its units")


if __name__ == "__main__":
    main(*sys.argv[1:])
