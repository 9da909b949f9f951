"""The explicit scalar graph: every definition of gradtrace written out on single numbers.

A graph is a `networkx.MultiDiGraph`. An edge runs in the direction of the data, from the producer v to
the consumer u, and its attribute `weight` is the local derivative ∂u/∂v, a number. Parallel edges are
distinct; an edge of weight exactly 0 is absent. Graphs come from a tape (`from_tape`) or from your hands:

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=3.0)  # y = x·x at x = 3, first argument
    >>> _ = graph.add_edge("x", "y", weight=3.0)  # second argument
    >>> backpropagate(graph, "y", Sum)["x"]
    6.0

Ties between the edges that leave a vertex go to the smallest `order`, an optional edge attribute; edges
without one come last, in the order in which networkx lists them (consumer by consumer as first joined,
parallel edges together).

This is the reference that the tensor engine is tested against, and it is for small graphs: it holds one
Python object for each edge. Nothing here is fast. Plain `Sum`, `AbsSum` and `Max` numbers are Python floats,
which underflow below 1e-308; paths carry their weight as a log2 as well, which does not.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from numbers import Real
from typing import TYPE_CHECKING, Any

import networkx
import torch
from torch import Tensor

from .errors import GradtraceError, NotANumber, NotScalar, UnknownName
from .recording.isolation import alone
from .semirings import named
from .semirings.base import Semiring, Sum
from .semirings.wide import Wide, WideMax, WideSemiring, WideSum

if TYPE_CHECKING:
    from .api import Tape
    from .recording.record import Call, Input, Value

Vertex = Hashable


class BadGraph(GradtraceError):
    """A scalar graph that is not a `MultiDiGraph` with a number on every edge."""


class CycleError(BadGraph):
    """A scalar graph with a cycle; the message shows it."""


class TooLarge(GradtraceError):
    """A tape whose scalar graph has more edges than was allowed."""


@dataclass(frozen=True, slots=True)
class ScalarEdge:
    """One use of a producer by a consumer, with the local derivative as its weight."""

    producer: Vertex
    consumer: Vertex
    key: Hashable
    weight: float


Outgoing = dict[Vertex, list[ScalarEdge]]  # the edges that leave each vertex, in tie order


# ---------------------------------------------------------------- reading a graph


def _outgoing(graph: networkx.MultiDiGraph, *wanted: Vertex) -> Outgoing:
    """List the present edges that leave each vertex, in tie order; check that the wanted vertices exist."""
    if not isinstance(graph, networkx.MultiDiGraph):
        raise BadGraph(f"expected a networkx.MultiDiGraph, got {type(graph).__name__}")
    for vertex in wanted:
        if vertex not in graph:
            some = ", ".join(map(repr, islice(graph, 8))) + (", …" if len(graph) > 8 else "")
            raise UnknownName(f"no vertex {vertex!r} among the {len(graph)} of the graph: {some}")
    return {vertex: _edges_from(graph, vertex) for vertex in graph}


def _edges_from(graph: networkx.MultiDiGraph, vertex: Vertex) -> list[ScalarEdge]:
    found = list(graph.out_edges(vertex, keys=True, data=True))
    try:
        found.sort(key=lambda edge: (edge[3].get("order") is None, edge[3].get("order") or ()))
    except TypeError as error:
        raise BadGraph(f"the orders of the edges leaving {vertex} cannot be compared: {error}") from None
    edges = [ScalarEdge(v, u, key, _weight(v, u, key, data)) for v, u, key, data in found]
    return [edge for edge in edges if edge.weight != 0]


def _weight(v: Vertex, u: Vertex, key: Hashable, data: dict) -> float:
    weight = data.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise BadGraph(f"edge {v} -> {u} (key {key}) needs a number as its weight, got {weight!r}")
    if math.isnan(weight):
        raise NotANumber(f"the weight of edge {v} -> {u} (key {key}) is NaN")
    return float(weight)


def _consumers_first(outgoing: Outgoing) -> list[Vertex]:
    """Sort the vertices so that each comes after all its consumers: reverse topological order."""
    consumers = {vertex: [edge.consumer for edge in edges] for vertex, edges in outgoing.items()}
    try:
        return list(graphlib.TopologicalSorter(consumers).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(str(vertex) for vertex in reversed(error.args[1]))
        raise CycleError(f"a computation graph has no cycles, this one has {cycle}") from None


def _towards(graph: networkx.MultiDiGraph, loss: Vertex, *wanted: Vertex) -> Outgoing:
    """Keep the vertices that reach the loss and the edges between them, consumers first."""
    outgoing = _outgoing(graph, loss, *wanted)
    kept: Outgoing = {loss: []}
    for vertex in _consumers_first(outgoing):
        edges = [edge for edge in outgoing[vertex] if edge.consumer in kept]
        if edges:
            kept[vertex] = edges
    return kept


# ---------------------------------------------------------------- derivatives under any semiring


def backpropagate(graph: networkx.MultiDiGraph, loss: Vertex, semiring: Semiring | str = Sum) -> dict[Vertex, float]:
    """Compute g for every vertex: g_ℓ = 1, g_v = ⊕ over edges (v → u) of λ(w) ⊗ g_u.

    Under Sum this is ∂ℓ/∂v. Vertices that do not reach the loss get the semiring's zero.
    """
    k = _of_numbers(semiring)
    return dict.fromkeys(graph, k.zero) | _reverse_pass(_towards(graph, loss), loss, k)


def _of_numbers(semiring: Semiring | str) -> Semiring:
    """Give a semiring itself, or the one of that name.

    Raises:
        UnknownName: there is none, or it asks about components, which a scalar graph has none of.
    """
    found = named(semiring)
    if not isinstance(found, Semiring):
        raise UnknownName(f"{found.name!r} tells components apart, and a scalar graph has none: name another semiring")
    return found


def _reverse_pass(outgoing: Outgoing, loss: Vertex, k: Any) -> dict[Vertex, Any]:
    """Do what `backpropagate` says, with k a `Semiring` or a `WideSemiring`."""
    g = dict.fromkeys(outgoing, k.zero)
    g[loss] = k.one
    for v, edges in outgoing.items():  # consumers first
        for edge in edges:
            g[v] = k.plus(g[v], k.times(k.lift(edge.weight), g[edge.consumer]))
    return g


def forward(graph: networkx.MultiDiGraph, source: Vertex, semiring: Semiring | str = Sum) -> dict[Vertex, float]:
    """Compute d for every vertex: d_source = 1, d_u = ⊕ over edges (v → u) of d_v ⊗ λ(w).

    Under Sum this is forward-mode differentiation: d_u = ∂u/∂source.
    """
    outgoing = _outgoing(graph, source)
    return _forward_pass(outgoing, _consumers_first(outgoing)[::-1], source, _of_numbers(semiring))


def _forward_pass(
    outgoing: Outgoing, producers_first: list[Vertex], source: Vertex, k: Semiring
) -> dict[Vertex, float]:
    zero: float = k.zero
    d = {source: k.one}
    for v in producers_first:
        if v in d:  # the source reaches it
            for edge in outgoing[v]:
                d[edge.consumer] = k.plus(d.get(edge.consumer, k.zero), k.times(d[v], k.lift(edge.weight)))
    return dict.fromkeys(outgoing, zero) | d


def all_pairs(graph: networkx.MultiDiGraph, semiring: Semiring | str = Sum) -> dict[Vertex, dict[Vertex, float]]:
    """Compute result[source][target] for all pairs of vertices, a forward pass from each: O(V·(V + E))."""
    outgoing, k = _outgoing(graph), _of_numbers(semiring)
    order = _consumers_first(outgoing)[::-1]
    return {source: _forward_pass(outgoing, order, source, k) for source in outgoing}


# ---------------------------------------------------------------- paths


@dataclass(frozen=True)
class ScalarPath:
    """A path from a leaf to the loss: its vertices, its edges (producer, consumer, key) and their weights."""

    vertices: tuple[Vertex, ...]
    edges: tuple[tuple[Vertex, Vertex, Hashable], ...]
    weights: tuple[float, ...]

    @property
    def weight(self) -> float:
        """Multiply the edge weights, with their signs; beyond the range of a float this is 0 or ±inf."""
        return float(self._product())

    @property
    def log2_weight(self) -> float:
        """Give log2 of the absolute weight, which no length of path can bring out of range."""
        return self._product().log2

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


def paths(graph: networkx.MultiDiGraph, source: Vertex, target: Vertex) -> Iterator[ScalarPath]:
    """Enumerate all paths from source to target in tie order. Their number is exponential in the depth."""
    return _walks(_towards(graph, target, source), source, target)


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


def pathwise_sum(graph: networkx.MultiDiGraph, source: Vertex, target: Vertex, semiring: Semiring | str = Sum) -> float:
    """Aggregate over all paths: ⊕ over paths of the ⊗ of their lifted weights. Takes exponential time.

    The pathwise aggregation lemma says that this equals what `backpropagate` finds in linear time.
    """
    k = _of_numbers(semiring)
    total = k.zero
    for path in paths(graph, source, target):
        term = k.one
        for weight in reversed(path.weights):
            term = k.times(k.lift(weight), term)
        total = k.plus(total, term)
    return total


def crossing(path: ScalarPath, component: Container[Vertex]) -> bool:
    """Tell whether a path crosses a component: whether one of its vertices is in that set."""
    return any(vertex in component for vertex in path.vertices)


# ---------------------------------------------------------------- the two traces


def best_path(graph: networkx.MultiDiGraph, source: Vertex, loss: Vertex) -> ScalarPath | None:
    """Find the strongest path from source to loss, or None: by g'_v = max |w| g'_u."""
    return _follow(_towards(graph, loss, source), source, loss, WideMax)


def greedy_path(graph: networkx.MultiDiGraph, source: Vertex, loss: Vertex) -> ScalarPath | None:
    """Step from source to argmax over u of |w(u, v) · g_u|, g the ordinary gradient, until the loss.

    Algorithm 1 of the gradient-tracing chapter. None where no step has a gradient: where every w · g_u is 0.
    """
    return _follow(_towards(graph, loss, source), source, loss, WideSum)


def _follow(outgoing: Outgoing, source: Vertex, loss: Vertex, k: WideSemiring) -> ScalarPath | None:
    g = _reverse_pass(outgoing, loss, k)
    walk: list[ScalarEdge] = []
    vertex = source
    while vertex != loss:
        edges = outgoing.get(vertex, [])
        terms = [k.times(k.lift(edge.weight), g[edge.consumer]) for edge in edges]
        if not any(term.mantissa for term in terms):
            return None
        strongest = max(range(len(edges)), key=lambda i: terms[i].magnitude)  # of equals the first
        walk.append(edges[strongest])
        vertex = edges[strongest].consumer
    return _path(source, walk)


# ---------------------------------------------------------------- from a tape


@alone()
def from_tape(tape: Tape, loss: Tensor, max_edges: int = 200_000) -> networkx.MultiDiGraph:
    """Build the scalar graph of all scalars on a tape from which the loss can be reached; no others are in it.

    Vertices are (value id, flat index), with the attributes `label` and `leaf` (the leaf's name or None).
    Edges carry `weight`, `call` (its index), `argument` (its position) and `order`. The local derivatives are
    autograd's, of one operator call at a time, so nothing here depends on gradtrace's own rules.
    The graph attribute `loss` is the loss vertex.
    """
    target = tape.value_of(loss)
    if target.numel != 1:
        raise NotScalar(f"the loss must have one element, it has shape {tuple(target.shape)}")
    reached = {target.id}
    calls = [call for call in reversed(tape.calls) if _reaches(call, reached)][::-1]
    count = sum(_size(_sources(call)) * _size(_sinks(call, reached)) for call in calls)
    if count > max_edges:
        raise TooLarge(
            f"the scalar graph may have {count:,} edges, more than max_edges={max_edges:,}; trace a smaller "
            f"model or input, or allow it with from_tape(..., max_edges={count})"
        )
    graph = networkx.MultiDiGraph(loss=(target.id, 0))
    for call in calls:
        _add_call(graph, call, reached)
    _add_scalars(graph, target, str(target))  # a loss without calls is a vertex, too
    leading = networkx.ancestors(graph, (target.id, 0)) | {(target.id, 0)}
    graph.remove_nodes_from([v for v in graph if v not in leading])  # of a value, only some scalars may lead there
    _refuse_nan(graph, calls)
    return graph


def _refuse_nan(graph: networkx.MultiDiGraph, calls: Sequence[Call]) -> None:
    """Refuse NaN among the numbers that lead to the loss; memory that is overwritten later may hold anything."""
    for _, where in graph.nodes(data="nan"):
        if where is not None:
            raise NotANumber(f"{where} is NaN")
    where = {call.index: call.where for call in calls}
    for _, _, edge in graph.edges(data=True):
        if math.isnan(edge["weight"]):
            raise NotANumber(f"{where[edge['call']]}: a derivative by argument {edge['argument']} is NaN")


def _size(values: dict[int, Value]) -> int:
    return sum(value.numel for value in values.values())


def _reaches(call: Call, reached: set[int]) -> bool:
    """Tell whether a value reached so far comes from this call; if so, its inputs are reached as well."""
    if not _sinks(call, reached):
        return False
    reached.update(value.id for value in _sources(call).values())
    return True


def _sources(call: Call) -> dict[int, Value]:
    """Give the inputs that the call can be differentiated by, with their argument positions."""
    return {k: x.value for k, x in enumerate(call.inputs) if x.value is not None and _is_real(x.value, call)}


def _sinks(call: Call, reached: Container[int]) -> dict[int, Value]:
    """Give the outputs through which the call reaches the loss, with their output numbers."""
    return {o: y for o, y in enumerate(call.outputs) if y is not None and y.id in reached and _is_real(y, call)}


def _is_real(value: Value, call: Call) -> bool:
    if value.differentiable and value.dtype.is_complex:
        raise BadGraph(f"{call.where} is complex; the scalar graph is of real numbers")
    return value.differentiable and value.dtype.is_floating_point


def _add_call(graph: networkx.MultiDiGraph, call: Call, reached: Container[int]) -> None:
    """Add the scalars of one call and an edge for every entry of its Jacobians that is not 0."""
    sources, sinks = _sources(call), _sinks(call, reached)
    for value in sources.values():
        _add_scalars(graph, value, str(value))
    for o, value in sinks.items():
        _add_scalars(graph, value, f"{call.name}#{call.index}" + (f".{o}" if o else ""))
    arguments, results = _run_again(call, sources, sinks)
    for o, y in results.items():
        for flat in y.flatten().isnan().nonzero().flatten().tolist():
            graph.nodes[sinks[o].id, flat]["nan"] = f"{call.where}: result {o}"
    for (k, x), (o, y) in product(sources.items(), sinks.items()):
        jacobian = _jacobian(results[o], arguments[k])  # y × x
        _refuse_draws(call, jacobian)
        for i, j in jacobian.nonzero().tolist():
            order = (call.index, k, o, i)
            weight = jacobian[i, j].item()
            graph.add_edge((x.id, j), (y.id, i), weight=weight, call=call.index, argument=k, order=order)


def _refuse_draws(call: Call, jacobian: Tensor) -> None:
    if jacobian.any() and torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ()):
        raise BadGraph(f"{call.where} draws random numbers: run again, it has other derivatives")


def _add_scalars(graph: networkx.MultiDiGraph, value: Value, name: str) -> None:
    """Add a vertex for each element, unless the value is in the graph already."""
    if (value.id, 0) in graph:
        return
    for flat, index in enumerate(product(*(range(size) for size in value.shape))):
        label = f"{name}[{','.join(map(str, index))}]" if index else name
        graph.add_node((value.id, flat), label=label, leaf=value.name)


def _run_again(call: Call, sources: Container[int], sinks: Iterable[int]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Run the operator on leaves of its own, one for each argument: x·x has two derivatives."""
    arguments = [_fresh(x, k in sources) for k, x in enumerate(call.inputs)]
    with torch.enable_grad():
        outputs = call.run(arguments)
    return arguments, {o: y for o in sinks if (y := outputs[o]) is not None}


def _fresh(x: Input, differentiable: bool) -> Tensor:
    data = x.tensor().detach()
    return data.requires_grad_() if differentiable else data.clone()  # batch norm writes to its running mean


def _jacobian(y: Tensor, x: Tensor) -> Tensor:
    """Differentiate y by x: a matrix ∂y_i/∂x_j, from one backward call for each element of y."""
    rows = x.new_zeros(y.numel(), x.numel())
    if not y.requires_grad:
        return rows
    for i in range(y.numel()):
        one_hot = torch.zeros(y.numel(), dtype=y.dtype, device=y.device)
        one_hot[i] = 1
        (row,) = torch.autograd.grad(y, x, one_hot.view(y.shape), retain_graph=True, allow_unused=True)
        if row is not None:
            rows[i] = row.to_dense().reshape(-1)
    return rows
