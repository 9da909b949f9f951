"""Passes over a graph: backwards and forwards under any semiring, step by step, and the schedule of a parallel machine.

Nothing here is fast. Plain `Sum`, `AbsSum` and `Max` numbers are Python floats, which underflow below 1e-308.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx

from ..semirings import Graded, Semiring, Sum, Through
from .arithmetic import Arithmetic, Lengths, fitting, of_graphs, of_numbers
from .builder import Graph, Node, vertex_of
from .gradings import Split, split
from .graph import (
    Outgoing,
    ScalarEdge,
    Vertex,
    consumers_first,
    is_symbolic,
    read,
    refuse_others,
    refuse_reversed,
    sorted_by,
    towards,
)
from .tables import table, written
from .tapes import from_tape

if TYPE_CHECKING:
    from ..api import Tape

    Source: TypeAlias = networkx.MultiDiGraph | Graph | Tape
Asked: TypeAlias = Semiring | Graded | Through | Lengths | str


def multigraph(graph: Source, *, keep_zero: bool = False) -> networkx.MultiDiGraph:
    """Give the scalar graph of a `Graph`, or of all of a tape, whose vertices are then names; other things as they are.

    >>> list(multigraph(Graph().inputs(x=2.0)[0].graph))
    ['x']
    """
    if isinstance(graph, Graph):
        return graph.scalars(keep_zero=keep_zero)
    if hasattr(graph, "calls"):
        return from_tape(graph, None, names=True, keep_zero=keep_zero)  # type: ignore[arg-type]
    return graph  # type: ignore[return-value]


# ---------------------------------------------------------------- backwards


def backpropagate(graph: Source, loss: Node | Vertex, semiring: Asked = Sum) -> dict[Vertex, Any]:
    """Compute g for every vertex: g_ℓ = 1, g_v = ⊕ over edges (v → u) of λ(w) ⊗ g_u.

    Under Sum this is ∂ℓ/∂v. Vertices that do not reach the loss get the semiring's zero. Where an element consists of
    several numbers (TopK, SignedMax, Graded, Through), they come in the order in which `tape.grad` gives them.
    """
    graph, loss = multigraph(graph), vertex_of(loss)
    outgoing, k = _prepared(graph, loss, semiring)
    found = elements(outgoing, loss, k)
    return {v: k.plain(found.get(v, k.zero)) for v in graph}


def _prepared(graph: networkx.MultiDiGraph, loss: Vertex, semiring: Asked) -> tuple[Outgoing, Any]:
    """Give the edges that lead to the loss, and what merges along them."""
    k = of_graphs(semiring)
    outgoing = towards(graph, loss, zeros=isinstance(k, Lengths))
    return outgoing, split(graph, loss, k, outgoing) if isinstance(k, (Graded, Through)) else fitting(k, outgoing)


def elements(outgoing: Outgoing, loss: Vertex, k: Any) -> dict[Vertex, Any]:
    """Do what `backpropagate` says, with k a semiring of any numbers."""
    return {step.vertex: step.element for step in _steps(outgoing, loss, k)}


@dataclass(frozen=True)
class Step:
    """One step of a reverse pass: what came to a vertex over its edges, and what it was merged to.

    Attributes:
        edges: those that leave the vertex, in tie order.
        products: λ(w) ⊗ g_u along each of them; of `Graded` and `Through`, for each set of components that is crossed.
        element: ⊕ of the products.
        winner: which of them it is, where ⊕ chooses one (Max): the first of equals; None where it merges all.
    """

    vertex: Vertex
    edges: tuple[ScalarEdge, ...]
    products: tuple[Any, ...]
    element: Any
    winner: int | None


class Steps(tuple[Step, ...]):
    """The steps of a reverse pass, in the order of processing; printed, the table of the dynamic program.

    Attributes:
        semiring: what merged, and multiplied; of `Graded` and `Through`, for each set of components.
    """

    semiring: Any

    @property
    def g(self) -> dict[Vertex, Any]:
        """Give what `backpropagate` gives, of the vertices that reach the loss."""
        return {step.vertex: self.semiring.plain(step.element) for step in self}

    def __str__(self) -> str:
        rows = [(str(i), written(s.vertex), written(s.element), self._merged(s)) for i, s in enumerate(self, 1)]
        return table(("step", "vertex", "g", "merged from"), rows)

    def _merged(self, step: Step) -> str:
        """Write the products of a step, the one that won with a star."""
        best = step.winner if len(step.edges) > 1 else None
        sign = " + " if isinstance(self.semiring, Lengths) else "·"
        terms = [
            f"{written(self._factor(edge))}{sign}g({written(edge.consumer)}) = {written(product)}"
            f"{' *' if i == best else ''}"
            for i, (edge, product) in enumerate(zip(step.edges, step.products, strict=True))
        ]
        return ", ".join(terms) or written(self.semiring.one)

    def _factor(self, edge: ScalarEdge) -> Any:
        """Give λ(w), where it is a number."""
        base = self.semiring.base if isinstance(self.semiring, Split) else self.semiring
        lifted = base.lift(edge.weight)
        return lifted if isinstance(lifted, Real) or is_symbolic(lifted) else edge.weight


def steps(graph: Source, loss: Node | Vertex, semiring: Asked = Sum) -> Steps:
    """Backpropagate step by step: `backpropagate`, with all that it merged on the way.

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=3.0), graph.add_edge("x", "y", weight=-4.0)
    >>> print(steps(graph, "y", "max"))
    step  vertex  g  merged from
    1     y       1  1
    2     x       4  3·g(y) = 3, 4·g(y) = 4 *

    Raises:
        BadGraph: edges leave the loss, and none comes to it.
    """
    graph, loss = multigraph(graph), vertex_of(loss)
    outgoing, k = _prepared(graph, loss, semiring)
    refuse_reversed(graph, loss)
    found = Steps(_steps(outgoing, loss, k))
    found.semiring = k
    return found


def _steps(outgoing: Outgoing, loss: Vertex, k: Any) -> Iterator[Step]:
    g: dict[Vertex, Any] = {}
    for v, edges in outgoing.items():  # consumers first
        products = tuple(_along(k, edge, g[edge.consumer]) for edge in edges)
        g[v] = k.one if v == loss else k.zero
        for product in products:
            g[v] = k.plus(g[v], product)
        chosen = products and g[v] != k.zero and k.plus(g[v], g[v]) == g[v]
        yield Step(v, tuple(edges), products, g[v], products.index(g[v]) if chosen and g[v] in products else None)


def _along(k: Any, edge: ScalarEdge, element: Any) -> Any:
    return k.along(edge, element) if isinstance(k, Split) else k.times(k.lift(edge.weight), element)


# ---------------------------------------------------------------- forwards


def forward(graph: Source, source: Node | Vertex, semiring: Arithmetic | str = Sum) -> dict[Vertex, Any]:
    """Compute d for every vertex: d_source = 1, d_u = ⊕ over edges (v → u) of d_v ⊗ λ(w).

    Under Sum this is forward-mode differentiation: d_u = ∂u/∂source. On a tape, vertices are named: "w[0,1]".
    """
    k, source = of_numbers(semiring), vertex_of(source)
    outgoing = read(multigraph(graph), source, zeros=isinstance(k, Lengths))
    return _forward_pass(outgoing, consumers_first(outgoing)[::-1], source, fitting(k, outgoing))


def _forward_pass(outgoing: Outgoing, producers_first: list[Vertex], source: Vertex, k: Any) -> dict[Vertex, Any]:
    d = {source: k.one}
    for v in producers_first:
        if v in d:  # the source reaches it
            for edge in outgoing[v]:
                d[edge.consumer] = k.plus(d.get(edge.consumer, k.zero), k.times(d[v], k.lift(edge.weight)))
    return {v: k.plain(d.get(v, k.zero)) for v in outgoing}


def all_pairs(graph: Source, semiring: Arithmetic | str = Sum) -> dict[Vertex, dict[Vertex, Any]]:
    """Compute result[source][target] for all pairs of vertices, a forward pass from each: O(V·(V + E))."""
    k = of_numbers(semiring)
    outgoing = read(multigraph(graph), zeros=isinstance(k, Lengths))
    order, k = consumers_first(outgoing)[::-1], fitting(k, outgoing)
    return {source: _forward_pass(outgoing, order, source, k) for source in outgoing}


def levels(graph: Source) -> list[list[Vertex]]:
    """Sort the vertices into levels by Kahn's algorithm: all of one level can be computed at the same time.

    A vertex's level is the length of the longest path to it. Edges of weight 0 count: values flow along them.

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=2.0), graph.add_edge("w", "y", weight=3.0)
    >>> _ = graph.add_edge("y", "z", weight=1.0)
    >>> levels(graph)
    [['x', 'w'], ['y'], ['z']]
    """
    found = multigraph(graph, keep_zero=True)
    refuse_others(found)
    sorted_by({v: list(found.successors(v)) for v in found})  # shows a cycle, where there is one
    return list(networkx.topological_generations(found))
