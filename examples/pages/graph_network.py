"""A graph network of four GraphSAGE layers, and a classifier that reads all of them.

What an expert expects: a layer joins a vertex's own state with the mean of its neighbours', which is divided by their
number. So paths take the vertex's own state far more often than the neighbours'. The classifier reads every layer:
the first one's result has a short way, by which most of the first parameters' paths go.

    gradtrace trace examples/pages/graph_network.py:build
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """A vertex's own state, and the mean of its neighbours'."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.own, self.neighbours = nn.Linear(size, size), nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Give vertices × size; edges are 2 × edges, from and to."""
        source, target = edges
        count = torch.zeros(len(x)).index_add(0, target, torch.ones(len(target))).clamp(min=1)
        summed = torch.zeros_like(x).index_add(0, target, x[source])
        return (self.own(x) + self.neighbours(summed / count[:, None])).relu()


class GraphNetwork(nn.Module):
    """An embedding of vertices' features, layers, and a classifier of vertices that reads all layers."""

    def __init__(self, features: int = 12, size: int = 16, layers: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(features, size)
        self.layers = nn.ModuleList(Layer(size) for _ in range(layers))
        self.classify = nn.Linear(size * (layers + 1), classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Classify vertices."""
        found = [self.embed(x).relu()]
        for layer in self.layers:
            found.append(layer(found[-1], edges))
        return self.classify(torch.cat(found, 1))


def build() -> tuple[nn.Module, list[Any], Any]:
    """Give the model, one graph of 40 vertices and 160 edges, and the loss."""
    torch.manual_seed(0)
    batch = torch.randn(40, 12), torch.randint(40, (2, 160)), torch.randint(3, (40,))
    return GraphNetwork(), [batch], lambda model, batch: F.cross_entropy(model(batch[0], batch[1]), batch[2])
