"""Paths one by one: all of them, the strongest, the greediest, the longest and the shortest.

Paths carry their weight as a log2 as well, which no length of path brings out of range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import networkx

from ..errors import BadArgument
from ..semirings import Max, Sum
from ..semirings.base import itself
from ..semirings.wide import Wide, WideMax, WideSum
from .arithmetic import Arithmetic, Lengths, MaxPlus, MinPlus, fitting, of_numbers
from .builder import Node, vertex_of
from .graph import BadGraph, Number, Outgoing, ScalarEdge, TooLarge, Vertex, has_symbols, is_exact, is_symbolic, towards
from .passes import elements, multigraph
from .tables import table, written

if TYPE_CHECKING:
    from .passes import Source

magnitude = attrgetter("magnitude")  # of a `Wide`


@dataclass(frozen=True)
class ScalarPath:
    """A path from a leaf to the loss: its vertices, its edges (producer, consumer, key) and their weights."""

    vertices: tuple[Vertex, ...]
    edges: tuple[tuple[Vertex, Vertex, Hashable], ...]
    weights: tuple[Number, ...]

    @property
    def weight(self) -> Number:
        """Multiply the edge weights, with their signs; beyond the range of a float this is 0 or ±inf.

        Whole numbers, Fractions and symbols are multiplied exactly.
        """
        return math.prod(reversed(self.weights)) if self._exact else float(self._product())

    @property
    def log2_weight(self) -> float:
        """Give log2 of the absolute weight, which no length of path can bring out of range."""
        if not self._exact:
            return self._product().log2
        product = self.weight
        if is_symbolic(product) and not product.is_number:
            raise BadArgument(f"log2 of {product} depends on its symbols: substitute numbers")
        size = abs(Fraction(product) if not is_symbolic(product) else Fraction(float(product)))
        return math.log2(size.numerator) - math.log2(size.denominator) if size else -math.inf

    @property
    def length(self) -> Number:
        """Add up the edge weights: what `MaxPlus` and `MinPlus` call the length of a path."""
        return sum(self.weights)

    @property
    def _exact(self) -> bool:
        symbols = any(map(is_symbolic, self.weights))
        return bool(self.weights) and (symbols or not any(isinstance(w, float) for w in self.weights))

    def _product(self) -> Wide:
        result = WideSum.one
        for weight in reversed(self.weights):  # from the loss to the leaf, as backpropagation multiplies
            result = WideSum.times(WideSum.lift(weight), result)
        return result


def _path(source: Vertex, edges: Sequence[ScalarEdge]) -> ScalarPath:
    return ScalarPath(
        vertices=(source, *(edge.consumer for edge in edges)),
        edges=tuple((edge.producer, edge.consumer, edge.key) for edge in edges),
        weights=tuple(edge.weight for edge in edges),
    )


def _between(graph: Source, source: Any, target: Any, *, zeros: bool = False) -> tuple[Outgoing, Vertex, Vertex]:
    """Read what leads to the target; a target from which paths lead to the source is the wrong way round."""
    found, source, target = multigraph(graph), vertex_of(source), vertex_of(target)
    outgoing = towards(found, target, source, zeros=zeros)
    if source not in outgoing and networkx.has_path(found, target, source):
        raise BadGraph(
            f"no path leads from {source!r} to {target!r}, but one does the other way: edges run from the producer of "
            "a number to its consumer, so paths end in the loss; swap the two, or turn the edges by graph.reverse()"
        )
    return outgoing, source, target


# ---------------------------------------------------------------- all of them


def paths(graph: Source, source: Node | Vertex, target: Node | Vertex) -> Iterator[ScalarPath]:
    """Enumerate all paths from source to target in tie order. Their number is exponential in the depth."""
    return _walks(*_between(graph, source, target))


def _walks(outgoing: Outgoing, source: Vertex, target: Vertex) -> Iterator[ScalarPath]:
    if source == target:
        yield _path(source, ())
        return
    walk: list[ScalarEdge] = []
    choices = [iter(outgoing.get(source, ()))]  # at each vertex of the walk, the edges not yet tried
    while choices:
        edge = next(choices[-1], None)
        if edge is None:
            choices.pop()
            del walk[-1:]
        elif edge.consumer == target:
            yield _path(source, (*walk, edge))
        else:
            walk.append(edge)
            choices.append(iter(outgoing[edge.consumer]))


def pathwise_sum(graph: Source, source: Node | Vertex, target: Node | Vertex, semiring: Arithmetic | str = Sum) -> Any:
    """Aggregate over all paths: ⊕ over paths of the ⊗ of their lifted weights. Takes exponential time.

    The pathwise aggregation lemma says that this equals what `backpropagate` finds in linear time.
    """
    k = of_numbers(semiring)
    outgoing, source, target = _between(graph, source, target, zeros=isinstance(k, Lengths))
    k = fitting(k, outgoing)
    total = k.zero
    for path in _walks(outgoing, source, target):
        term = k.one
        for weight in reversed(path.weights):
            term = k.times(k.lift(weight), term)
        total = k.plus(total, term)
    return k.plain(total)


class PathTable(tuple[ScalarPath, ...]):
    """All paths from one vertex to another, strongest first; printed, with the factors and the weight of each.

    Attributes:
        lengths: `MaxPlus` or `MinPlus` where weights are lengths, which are added along a path; otherwise None.
    """

    lengths: Lengths | None = None

    @property
    def total(self) -> Number:
        """Add up the weights: the derivative, by the pathwise aggregation lemma. Of lengths, give the extreme one."""
        if self.lengths:
            return reduce(self.lengths.plus, (path.length for path in self), self.lengths.zero)
        return sum(path.weight for path in self)

    def __str__(self) -> str:
        said = f"{len(self)} path{'' if len(self) == 1 else 's'}"
        if self.lengths:
            rows = [(p.vertices, " + ".join(map(written, p.weights)) or "0", p.length) for p in self]
            heads, merged = ("path", "lengths", "sum"), self.lengths.name.removesuffix("-plus")
        else:
            rows = [(p.vertices, " · ".join(map(written, p.weights)) or "1", p.weight) for p in self]
            heads, merged = ("path", "factors", "weight"), "sum"
        lines = [(" -> ".join(map(written, vertices)), factors, written(number)) for vertices, factors, number in rows]
        return table(heads, [*lines, (said, merged, written(self.total))])


def path_table(
    graph: Source,
    source: Node | Vertex,
    target: Node | Vertex,
    max_paths: int = 10_000,
    semiring: Arithmetic | str = Sum,
) -> PathTable:
    """List every path with its factors and its weight, strongest first, and equals in tie order.

    Paths of symbols are in tie order: which is stronger depends on their values. Under `MaxPlus` and `MinPlus` weights
    are lengths: the longest path, or the shortest, comes first.

    Raises:
        TooLarge: there are more than `max_paths`.
        BadArgument: of another semiring.

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=3.0), graph.add_edge("x", "y", weight=-4.0)
    >>> print(path_table(graph, "x", "y"))
    path     factors  weight
    x -> y   -4       -4
    x -> y   3        3
    2 paths  sum      -1
    """
    k = of_numbers(semiring)
    if k is not Sum and not isinstance(k, Lengths):
        raise BadArgument(
            f"a table adds weights up, or compares lengths (max-plus, min-plus): ask pathwise_sum for {k.name}"
        )
    outgoing, source, target = _between(graph, source, target, zeros=isinstance(k, Lengths))
    found = tuple(islice(_walks(outgoing, source, target), max_paths + 1))
    if len(found) > max_paths:
        raise TooLarge(
            f"there are more than max_paths={max_paths:,} paths from {source} to {target}: backpropagate(…, 'count') "
            "counts them, 'topk:10' finds the strongest"
        )
    if isinstance(k, Lengths):
        made = PathTable(sorted(found, key=attrgetter("length"), reverse=k is MaxPlus))
        made.lengths = k
        return made
    if any(is_symbolic(weight) for path in found for weight in path.weights):
        return PathTable(found)
    return PathTable(sorted(found, key=_size, reverse=True))


def _size(path: ScalarPath) -> Any:
    """Give what sorts paths by absolute weight."""
    exact = path.weights and not any(isinstance(w, float) for w in path.weights)
    return (1, abs(path.weight)) if exact else path._product().magnitude


def crossing(path: ScalarPath, component: Container[Vertex]) -> bool:
    """Tell whether a path crosses a component: whether one of its vertices is in that set."""
    return any(vertex in component for vertex in path.vertices)


# ---------------------------------------------------------------- one of them


def best_path(
    graph: Source, source: Node | Vertex, loss: Node | Vertex, semiring: Arithmetic | str = Max
) -> ScalarPath | None:
    """Find the strongest path from source to loss, or None: by g'_v = max |w| g'_u.

    Under `MaxPlus` the longest, under `MinPlus` the shortest, edges having their weights as lengths.

    Raises:
        BadArgument: of another semiring; ⊕ has to choose a path.
    """
    k = of_numbers(semiring)
    outgoing, source, loss = _between(graph, source, loss, zeros=isinstance(k, Lengths))
    if k is MaxPlus or k is MinPlus:
        return _follow(outgoing, source, loss, k, itself if k is MaxPlus else lambda length: -length)
    if k is not Max:
        raise BadArgument(f"a best path is one under max, max-plus or min-plus: ⊕ of {k.name} chooses none")
    if has_symbols(outgoing):
        raise BadArgument("which path is the strongest depends on the symbols: substitute numbers, or ask path_table")
    if is_exact(outgoing):
        return _follow(outgoing, source, loss, fitting(k, outgoing), itself)
    return _follow(outgoing, source, loss, WideMax, magnitude)


def greedy_path(graph: Source, source: Node | Vertex, loss: Node | Vertex) -> ScalarPath | None:
    """Step from source to argmax over u of |w(u, v) · g_u|, g the ordinary gradient, until the loss.

    Algorithm 1 of the gradient-tracing chapter. None where no step has a gradient: where every w · g_u is 0.
    """
    outgoing, source, loss = _between(graph, source, loss)
    if has_symbols(outgoing):
        raise BadArgument("which step is the largest depends on the symbols: substitute numbers, or ask path_table")
    if is_exact(outgoing):
        return _follow(outgoing, source, loss, fitting(Sum, outgoing), abs)
    return _follow(outgoing, source, loss, WideSum, magnitude)


def _follow(outgoing: Outgoing, source: Vertex, loss: Vertex, k: Any, size: Callable[[Any], Any]) -> ScalarPath | None:
    """Step to the largest product, of equals the first, until the loss; None where every product is 0."""
    g = elements(outgoing, loss, k)
    walk: list[ScalarEdge] = []
    vertex = source
    while vertex != loss:
        edges = outgoing.get(vertex, [])
        terms = [k.times(k.lift(edge.weight), g[edge.consumer]) for edge in edges]
        if all(term == k.zero for term in terms):
            return None
        strongest = max(range(len(edges)), key=lambda i: size(terms[i]))  # of equals the first
        walk.append(edges[strongest])
        vertex = edges[strongest].consumer
    return _path(source, walk)
