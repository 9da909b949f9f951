"""`Graded` and `Through` on a scalar graph: elements split by which components a path crosses, as the definition reads.

A vertex's attribute `components` names those that it is in, outermost first; on a graph of a tape they are its module
calls and operator. Every vertex keeps an element for each set of components that some path from it crosses, so this
is exponential in their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import networkx

from ..errors import BadArgument, UnknownName
from ..recording.components import Component, Slice
from ..semirings import Graded, Through
from .arithmetic import fitting
from .graph import Vertex, some_of, towards

Crossed = frozenset[int]  # which of the components a path crosses, by number


def split(graph: networkx.MultiDiGraph, loss: Vertex, k: Graded | Through) -> dict[Vertex, Any]:
    """Backpropagate, and keep paths apart by the components that they cross: see `passes.backpropagate`.

    Returns:
        for each vertex, of `Graded` the elements by degree; of `Through` (through each component, around each).
    """
    outgoing = towards(graph, loss)
    base = fitting(k.semiring, outgoing)
    components = _resolved(graph, k.by if isinstance(k, Graded) else k.components)
    inside = {v: frozenset(i for i, c in enumerate(components) if _is_in(graph, v, c)) for v in graph}
    g: dict[Vertex, dict[Crossed, Any]] = {loss: {inside[loss]: base.one}}
    for v, edges in outgoing.items():  # consumers first
        parts = g.setdefault(v, {})
        for edge in edges:
            for crossed, element in g[edge.consumer].items():
                product = base.times(base.lift(edge.weight), element)
                parts[crossed | inside[v]] = base.plus(parts.get(crossed | inside[v], base.zero), product)

    def merged(v: Vertex, wanted: Any) -> Any:
        total = base.zero
        for crossed, element in g.get(v, {}).items():
            total = base.plus(total, element) if wanted(crossed) else total
        return base.plain(total)

    if isinstance(k, Through):
        numbers = range(len(components))
        return {
            v: (
                tuple(merged(v, lambda crossed, i=i: i in crossed) for i in numbers),
                tuple(merged(v, lambda crossed, i=i: i not in crossed) for i in numbers),
            )
            for v in graph
        }
    most = len(components) if k.max_degree is None else k.max_degree
    return {
        v: tuple(merged(v, lambda crossed, n=n: min(len(crossed), most + 1) == n) for n in range(most + 2))
        for v in graph
    }


def _resolved(graph: networkx.MultiDiGraph, asked: Sequence[Component] | None) -> list[Component]:
    """Give the components that are meant: the outermost ones where none is named."""
    there = {v: data.get("components", ()) for v, data in graph.nodes(data=True)}
    if asked is None:
        outermost = graph.graph.get("components") or dict.fromkeys(names[0] for names in there.values() if names)
        if not outermost:
            raise BadArgument("no vertex has the attribute `components`: the names of those it is in, outermost first")
        return list(outermost)
    for component in asked:
        if not any(_is_in(graph, v, component) for v in graph):
            known = dict.fromkeys(name for names in there.values() for name in names)
            raise UnknownName(f"no vertex is in {component}; there are {some_of(known)}")
    return list(dict.fromkeys(asked))


def _is_in(graph: networkx.MultiDiGraph, v: Vertex, component: Component) -> bool:
    data = graph.nodes[v]
    names = data.get("components", ())
    if not isinstance(component, Slice):
        return component in names or any(fnmatchcase(n, component) for n in names if ":" not in n)
    if isinstance(component.axis, str) or component.index is None:
        raise BadArgument(
            f"a scalar graph has numbered axes: name the axis and the index of {component}, or ask the tape"
        )
    shape, index, axis = data.get("shape", ()), data.get("index", ()), component.axis
    there = -len(shape) <= axis < len(shape) and shape[axis] == component.of
    named = data.get("leaf") == component.module or (names and _is_in(graph, v, component.module))
    return bool(named) and there and index[axis] == component.index
