"""Where a drawing has its vertices: layers from left to right, few crossings, edges straight where they can be.

Sugiyama's method in small: layers by Kahn's algorithm, with leaves moved next to their first consumer; a *bend* in
every layer that an edge passes; orders by the mean place of the neighbours, sweep after sweep, of which the one with
the fewest crossings is kept; and heights as near to the neighbours' as the distances allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple, TypeAlias

import networkx

from .graph import Vertex
from .passes import levels

SWEEPS = 12
ROOM_OF_BEND = 0.5  # of what a vertex has


class Bend(NamedTuple):
    """Where an edge passes a layer."""

    producer: Vertex
    consumer: Vertex
    layer: int


Pair: TypeAlias = tuple[Vertex, Vertex]


@dataclass(frozen=True)
class Layout:
    """Places: columns from 0 at the left, heights in units of the distance between two vertices.

    Attributes:
        at: (column, height) of each vertex.
        routes: for each pair of vertices with an edge, the places that it passes, its ends included.
    """

    at: Mapping[Vertex, tuple[int, float]]
    routes: Mapping[Pair, tuple[tuple[int, float], ...]]


def layout(graph: networkx.MultiDiGraph) -> Layout:
    """Lay a graph out."""
    column = _columns(graph)
    pairs = list(dict.fromkeys((v, u) for v, u, _ in graph.edges(keys=True)))
    chains = {(v, u): [v, *(Bend(v, u, n) for n in range(column[v] + 1, column[u])), u] for v, u in pairs}
    layers: list[list[Vertex]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for v, n in column.items():
        layers[n].append(v)
    for chain in chains.values():
        for bend in chain[1:-1]:
            assert isinstance(bend, Bend)
            layers[bend.layer].append(bend)
    left: dict[Vertex, list[Vertex]] = {v: [] for layer in layers for v in layer}
    right: dict[Vertex, list[Vertex]] = {v: [] for v in left}
    for chain in chains.values():
        for a, b in pairwise(chain):
            right[a].append(b)
            left[b].append(a)
    height = _heights(_ordered(layers, left, right), left, right)
    at = {v: (n, height[v]) for n, layer in enumerate(layers) for v in layer}
    routes = {pair: tuple(at[v] for v in chain) for pair, chain in chains.items()}
    return Layout({v: place for v, place in at.items() if not isinstance(v, Bend)}, routes)


def _columns(graph: networkx.MultiDiGraph) -> dict[Vertex, int]:
    """Give each vertex its level, and leaves, with what is read off one alone, a place next to their first consumer."""
    found = levels(graph)
    column = {v: n for n, level in enumerate(found) for v in level}
    loose: set[Vertex] = set()
    for v in column:
        before = list(graph.predecessors(v))
        if not before or (len(before) == 1 and before[0] in loose and graph.out_degree(before[0]) == 1):
            loose.add(v)
    for level in reversed(found):
        for v in level:
            after = [column[u] for u in graph.successors(v)]
            if v in loose and after:
                column[v] = min(after) - 1
    return {v: column[v] for v in graph}


Neighbours: TypeAlias = Mapping[Vertex, Sequence[Vertex]]


def _ordered(layers: list[list[Vertex]], left: Neighbours, right: Neighbours) -> list[list[Vertex]]:
    best, fewest = layers, _crossings(layers, right)
    for sweep in range(SWEEPS):
        layers = [list(layer) for layer in layers]
        near = left if sweep % 2 == 0 else right
        numbers = range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers)))
        place = {v: i for layer in layers for i, v in enumerate(layer)}
        for n in numbers:
            layers[n].sort(key=lambda v: sum(place[u] for u in near[v]) / len(near[v]) if near[v] else place[v])
            place |= {v: i for i, v in enumerate(layers[n])}
        count = _crossings(layers, right)
        if count < fewest:
            best, fewest = layers, count
    return best


def _crossings(layers: list[list[Vertex]], right: Neighbours) -> int:
    total = 0
    for layer, following in pairwise(layers):
        place = {v: i for i, v in enumerate(following)}
        ends = [(i, place[u]) for i, v in enumerate(layer) for u in right[v] if u in place]
        total += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(ends, 2))
    return total


def _heights(layers: list[list[Vertex]], left: Neighbours, right: Neighbours) -> dict[Vertex, float]:
    height: dict[Vertex, float] = {}
    for layer in layers:
        gaps = _gaps(layer)
        height |= {v: gap - gaps[-1] / 2 for v, gap in zip(layer, gaps, strict=True)}
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            wanted = [_mean([height[u] for u in [*left[v], *right[v]]], height[v]) for v in layer]
            gaps = _gaps(layer)
            moved = _increasing([w - gap for w, gap in zip(wanted, gaps, strict=True)])
            height |= {v: m + gap for v, m, gap in zip(layer, moved, gaps, strict=True)}
    return height


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise


def _gaps(layer: Sequence[Vertex]) -> list[float]:
    """Give how far from its first each vertex of a layer has to be at least."""
    room = [ROOM_OF_BEND if isinstance(v, Bend) else 1.0 for v in layer]
    gaps = [0.0]
    for a, b in pairwise(room):
        gaps.append(gaps[-1] + (a + b) / 2)
    return gaps[: len(layer)]


def _increasing(wanted: Sequence[float]) -> list[float]:
    """Give the nearest numbers, by squares, that never fall: pool adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for number in wanted:
        blocks.append((number, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return [mean for mean, count in blocks for _ in range(count)]
