"""Random networks, grown by a vertex-replacement grammar; a seed decides everything about one.

    S → X      X → diamond(X, X)  with probability p      X → layer  otherwise

A diamond sends its input into two parallel X and joins (adds) their results. p is 0.99 for the first X, and for
those of a diamond half of what it was for the X that became it, so a network stays finite. A layer is a weight
matrix followed by tanh; a join projects both sides to one width. Widths are drawn uniformly from [10, 500].

The size of the scalar graph is computed from the shapes: such a graph has millions of edges and is never built.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .seeds import derived_seed

WIDTHS = (10, 500)
FIRST = 0.99
BRANCHES = 2


@dataclass(frozen=True)
class Step:
    """One vertex of a network: a layer with one source, or a join with two.

    Attributes:
        sources: numbers of earlier vertices; 0 is the input, and step n makes vertex n + 1.
        width: of what it gives.
    """

    sources: tuple[int, ...]
    width: int

    @property
    def join(self) -> bool:
        """Whether it adds up two projections."""
        return len(self.sources) > 1


@dataclass(frozen=True)
class Architecture:
    """A network as plain data; its last step gives the output."""

    seed: int
    inputs: int
    steps: tuple[Step, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every vertex, the input first."""
        return (self.inputs, *(step.width for step in self.steps))

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the weights, sources × width, in the order of the steps."""
        return [(self.widths[source], step.width) for step in self.steps for source in step.sources]

    def size(self, batch: int) -> tuple[int, int]:
        """Count vertices and edges of the scalar graph of a forward pass, up to the output.

        Vertices are the scalars of the weights and of all results; the input is data, so nothing leads there.

        >>> Architecture(0, 3, (Step((0,), 2),)).size(batch=5)  # 3 · 2 weights, a product and its tanh
        (26, 40)
        """
        vertices = edges = 0
        for step in self.steps:
            scalars = batch * step.width
            for source in step.sources:
                given = self.widths[source]
                vertices += given * step.width + scalars  # a weight matrix, and the product with it
                edges += scalars * given * (1 if source == 0 else 2)  # to the weights, and to what it multiplies
            vertices += scalars
            edges += scalars * len(step.sources)  # tanh has one argument, a sum two
        return vertices, edges


def grow(seed: int, *, widths: tuple[int, int] = WIDTHS, first: float = FIRST) -> Architecture:
    """Draw an architecture.

    Args:
        seed: decides it.
        widths: smallest and largest width.
        first: the probability p with which the first vertex is replaced.
    """
    draw = random.Random(derived_seed(seed, "architecture"))
    inputs, steps = draw.randint(*widths), list[Step]()
    finished: list[int] = []  # vertices that wait for their join
    work: list[tuple[int, float] | None] = [(0, first)]  # an expandable vertex (its source, p), or a join
    while work:
        item = work.pop()
        if item is not None and draw.random() < item[1]:
            source, p = item
            work += [None, *[(source, p / BRANCHES)] * BRANCHES]
            continue
        sources = tuple(finished[-BRANCHES:]) if item is None else (item[0],)
        if item is None:
            del finished[-BRANCHES:]
        steps.append(Step(sources, draw.randint(*widths)))
        finished.append(len(steps))
    return Architecture(seed, inputs, tuple(steps))


class RandomNetwork(nn.Module):
    """The network of an architecture: batch × inputs → batch × width of the last step."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        generator = torch.Generator().manual_seed(derived_seed(architecture.seed, "weights"))
        # sources × width, so that a layer is one product and no transposition
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(shape[0]))
            for shape in architecture.matrices
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the vertices in the order of the steps."""
        values, weights = [x], iter(self.weights)
        for step in self.architecture.steps:
            products = [values[source] @ next(weights) for source in step.sources]
            values.append(products[0] + products[1] if step.join else products[0].tanh())
        return values[-1]
