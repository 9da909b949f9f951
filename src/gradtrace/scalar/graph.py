"""What a scalar graph is: vertices, edges with a local derivative each, and how one is read.

Weights are floats, or exact: whole numbers and Fractions where no weight is a float, and sympy expressions.
"""

from __future__ import annotations

import graphlib
import math
import sys
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from numbers import Integral, Rational, Real
from typing import Any, TypeAlias

import networkx

from ..errors import GradtraceError, NotANumber, UnknownName

Vertex: TypeAlias = Hashable
Number: TypeAlias = Any  # a float, an int, a Fraction, or a sympy expression


class BadGraph(GradtraceError):
    """A scalar graph that is not a `MultiDiGraph` with a number on every edge."""


class CycleError(BadGraph):
    """A scalar graph with a cycle; the message shows it."""


class TooLarge(GradtraceError):
    """A scalar graph with more edges, or more paths, than was allowed."""


@dataclass(frozen=True, slots=True)
class ScalarEdge:
    """One use of a producer by a consumer, with the local derivative as its weight."""

    producer: Vertex
    consumer: Vertex
    key: Hashable
    weight: Number


Outgoing: TypeAlias = dict[Vertex, list[ScalarEdge]]  # the edges that leave each vertex, in tie order


# ---------------------------------------------------------------- numbers


def is_symbolic(weight: object) -> bool:
    """Tell whether a weight is a sympy expression, without importing sympy: who has one has imported it."""
    sympy = sys.modules.get("sympy")
    return sympy is not None and isinstance(weight, sympy.Expr)


def is_exact(outgoing: Outgoing) -> bool:
    """Tell whether arithmetic with the weights of some edges has no rounding. Without any edge it says no."""
    edges = list(chain.from_iterable(outgoing.values()))
    return (bool(edges) and not any(isinstance(edge.weight, float) for edge in edges)) or has_symbols(outgoing)


def has_symbols(outgoing: Outgoing) -> bool:
    """Tell whether some weight is a sympy expression."""
    return any(is_symbolic(edge.weight) for edges in outgoing.values() for edge in edges)


def _weight(v: Vertex, u: Vertex, key: Hashable, data: dict) -> Number:
    weight = data.get("weight")
    if is_symbolic(weight):
        return weight
    if "jacobian" in data:
        raise BadGraph(f"edge {v} -> {u} has a Jacobian: ask the `Graph` itself, or its scalars(), for numbers")
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise BadGraph(f"edge {v} -> {u} (key {key}) needs a number as its weight, got {weight!r}")
    if isinstance(weight, Rational):
        return int(weight) if isinstance(weight, Integral) else Fraction(weight)
    if math.isnan(weight):
        raise NotANumber(f"the weight of edge {v} -> {u} (key {key}) is NaN")
    return float(weight)


# ---------------------------------------------------------------- reading a graph


def read(graph: networkx.MultiDiGraph, *wanted: Vertex, zeros: bool = False) -> Outgoing:
    """List the edges that leave each vertex, in tie order; check that the wanted vertices exist.

    Args:
        graph: what is read.
        wanted: vertices that have to be there.
        zeros: whether an edge of weight 0 is one: it is where weights are lengths, and is not where they multiply.
    """
    refuse_others(graph)
    for vertex in wanted:
        if vertex not in graph:
            raise UnknownName(_missing(graph, vertex))
    outgoing = {vertex: _edges_from(graph, vertex, zeros) for vertex in graph}
    return outgoing if is_exact(outgoing) else _rounded(outgoing)


def _missing(graph: networkx.MultiDiGraph, vertex: Vertex) -> str:
    """Say that there is no such vertex: those of a vector have indices."""
    inside = [v for v, data in graph.nodes(data=True) if vertex in (data.get("node", v), data.get("leaf", v))]
    inside = [] if vertex is None else inside
    if inside:
        return f"{vertex} is {len(inside)} numbers here, each a vertex of its own: {_some(inside)}"
    return f"no vertex {vertex!r} among the {len(graph)} of the graph: {_some(graph)}"


def _some(vertices: Collection[Vertex]) -> str:
    return ", ".join(map(repr, islice(vertices, 8))) + (", …" if len(vertices) > 8 else "")


def refuse_others(graph: object) -> None:
    """Refuse what is no MultiDiGraph, and say how to make one."""
    if isinstance(graph, networkx.MultiDiGraph):
        return
    said = f"expected a networkx.MultiDiGraph, got {type(graph).__name__}"
    if isinstance(graph, networkx.DiGraph):
        said += ", which has no parallel edges (x·x has two from x): networkx.MultiDiGraph(graph) makes one of it"
    elif isinstance(graph, networkx.Graph):
        said += ", which has no directions: add each edge to a MultiDiGraph, from a number's producer to its consumer"
    raise BadGraph(said)


def _edges_from(graph: networkx.MultiDiGraph, vertex: Vertex, zeros: bool) -> list[ScalarEdge]:
    found = list(graph.out_edges(vertex, keys=True, data=True))
    try:
        found.sort(key=lambda edge: (edge[3].get("order") is None, edge[3].get("order") or ()))
    except TypeError as error:
        raise BadGraph(f"the orders of the edges leaving {vertex} cannot be compared: {error}") from None
    edges = [ScalarEdge(v, u, key, _weight(v, u, key, data)) for v, u, key, data in found]
    return edges if zeros else [edge for edge in edges if edge.weight != 0]


def _rounded(outgoing: Outgoing) -> Outgoing:
    """Make floats of whole numbers and Fractions that stand among floats."""
    return {v: [replace(edge, weight=float(edge.weight)) for edge in edges] for v, edges in outgoing.items()}


def consumers_first(outgoing: Outgoing) -> list[Vertex]:
    """Sort the vertices so that each comes after all its consumers: reverse topological order."""
    return sorted_by({vertex: [edge.consumer for edge in edges] for vertex, edges in outgoing.items()})


def sorted_by(consumers: Mapping[Vertex, Iterable[Vertex]]) -> list[Vertex]:
    """Sort topologically, consumers first.

    Raises:
        CycleError: there is a cycle; the message shows it.
    """
    try:
        return list(graphlib.TopologicalSorter(consumers).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(str(vertex) for vertex in reversed(error.args[1]))
        raise CycleError(f"a computation graph has no cycles, this one has {cycle}") from None


def towards(graph: networkx.MultiDiGraph, loss: Vertex, *wanted: Vertex, zeros: bool = False) -> Outgoing:
    """Keep the vertices that reach the loss and the edges between them, consumers first."""
    outgoing = read(graph, loss, *wanted, zeros=zeros)
    kept: Outgoing = {loss: []}
    for vertex in consumers_first(outgoing):
        edges = [edge for edge in outgoing[vertex] if edge.consumer in kept]
        if edges:
            kept[vertex] = edges
    return kept


def refuse_reversed(graph: networkx.MultiDiGraph, loss: Vertex) -> None:
    """Refuse a loss from which edges go out and to which none comes: they were drawn the wrong way round."""
    if graph.out_degree(loss) and not graph.in_degree(loss):
        raise BadGraph(
            f"no edge comes to {loss!r}, and {graph.out_degree(loss)} leave it: edges run from the producer of a "
            "number to its consumer, so all paths end in the loss; graph.reverse() turns them round"
        )


def vertex(graph: networkx.MultiDiGraph, name: str, *index: int) -> Vertex:
    """Find the vertex of one scalar of a leaf, or of another tensor, in a graph made by `from_tape`.

    >>> graph = networkx.MultiDiGraph()
    >>> graph.add_node((7, 1), label="w[0,1]")
    >>> vertex(graph, "w", 0, 1)
    (7, 1)

    Raises:
        UnknownName: there is none; the message lists some of those that are there.
    """
    graph = getattr(graph, "scalars", lambda: graph)()  # of a `Graph`
    refuse_others(graph)
    wanted = f"{name}[{','.join(map(str, index))}]" if index else name
    labels = {data.get("label", v): v for v, data in graph.nodes(data=True)}
    if wanted not in labels:
        raise UnknownName(f"no scalar {wanted} in the graph; there are {some_of(labels)}")
    return labels[wanted]


def some_of(names: Iterable[object]) -> str:
    """Name the first few."""
    first = list(islice(map(str, names), 9))
    return ", ".join(first[:8]) + (", …" if len(first) > 8 else "")
