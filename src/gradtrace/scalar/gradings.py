"""`Graded` and `Through` on a scalar graph: elements split by which components a path crosses, as the definition reads.

A vertex's attribute `components` names those that it is in, outermost first; on a graph of a tape they are its module
calls and operator. Every vertex keeps an element for each set of components that some path from it crosses, so this
is exponential in their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, TypeAlias

import networkx

from ..errors import BadArgument, UnknownName
from ..recording.components import Component, Slice
from ..semirings import Graded, Through
from .arithmetic import Arithmetic, fitting
from .graph import Outgoing, ScalarEdge, Vertex, some_of

Crossed: TypeAlias = frozenset[Component]  # which of the components a path crosses
Parts: TypeAlias = dict[Crossed, Any]  # the element of the paths that cross just these


@dataclass(frozen=True)
class Split:
    """What is carried back for `Graded` and `Through`: one element for each set of components that paths cross.

    Attributes:
        asked: what the elements are put together to at the end.
        base: the semiring of the elements.
        components: those that are told apart.
        inside: the components that each vertex is in.
        one: what the loss starts with.
    """

    asked: Graded | Through
    base: Arithmetic
    components: Sequence[Component]
    inside: Mapping[Vertex, Crossed]
    one: Parts

    @property
    def zero(self) -> Parts:
        """Give what no path brings."""
        return {}

    def along(self, edge: ScalarEdge, parts: Parts) -> Parts:
        """Take parts along an edge, into what its producer is in."""
        found: Parts = {}
        for crossed, element in parts.items():
            term = {crossed | self.inside[edge.producer]: self.base.times(self.base.lift(edge.weight), element)}
            found = self.plus(found, term)
        return found

    def plus(self, a: Parts, b: Parts) -> Parts:
        """Merge parts, those of the same components with each other."""
        return a | {crossed: self.base.plus(a.get(crossed, self.base.zero), element) for crossed, element in b.items()}

    def plain(self, parts: Parts) -> tuple:
        """Give of `Graded` the elements by degree; of `Through` (through each component, around each)."""
        if isinstance(self.asked, Through):
            through = tuple(self._merged(parts, lambda crossed, c=c: c in crossed) for c in self.components)
            return through, tuple(self._merged(parts, lambda crossed, c=c: c not in crossed) for c in self.components)
        most = len(self.components) if self.asked.max_degree is None else self.asked.max_degree
        degrees = range(most + 2)
        return tuple(self._merged(parts, lambda crossed, n=n: min(len(crossed), most + 1) == n) for n in degrees)

    def _merged(self, parts: Parts, wanted: Callable[[Crossed], bool]) -> Any:
        kept = (element for crossed, element in parts.items() if wanted(crossed))
        return self.base.plain(reduce(self.base.plus, kept, self.base.zero))


def split(graph: networkx.MultiDiGraph, loss: Vertex, asked: Graded | Through, outgoing: Outgoing) -> Split:
    """Say what `Graded` and `Through` carry back on this graph."""
    components = _resolved(graph, asked.by if isinstance(asked, Graded) else asked.components)
    inside = {v: frozenset(c for c in components if _is_in(graph, v, c)) for v in graph}
    base = fitting(asked.semiring, outgoing)
    return Split(asked, base, components, inside, {inside[loss]: base.one})


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
