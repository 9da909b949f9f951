"""The scalar graph of a tape: a vertex for each number, an edge for each entry of a Jacobian that is not 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Sequence
from itertools import product
from typing import TYPE_CHECKING

import networkx
import torch
from torch import Tensor

from ..errors import NotANumber, NotScalar
from ..recording.components import operator_of, top_level
from ..recording.derivatives import Jacobians, dependence, jacobian, run_again
from ..recording.isolation import alone
from ..recording.record import Again, Call, Value
from .graph import BadGraph, TooLarge, Vertex

if TYPE_CHECKING:
    from ..api import Tape


@alone()
def from_tape(
    tape: Tape,
    loss: Tensor | None,
    max_edges: int = 200_000,
    *,
    values: bool = False,
    keep_zero: bool = False,
    names: bool = False,
) -> networkx.MultiDiGraph:
    """Build the scalar graph of all scalars on a tape from which the loss can be reached; no others are in it.

    Vertices are (value id, flat index), with the attributes `label` and `leaf` (the leaf's name or None), `shape` and
    `index` in its tensor, `components` (module calls, outermost first, and the operator) and `function`. Edges carry
    `weight`, `call` (its index), `argument` (its position) and `order`. The local derivatives are autograd's, of one
    operator call at a time, so nothing here depends on gradtrace's own rules.
    The graph attribute `loss` is the loss vertex.

    Args:
        tape: a small one.
        loss: with one element. Without it (None) all of the tape is in the graph.
        max_edges: how many edges to allow.
        values: give each vertex its forward `value`, where that was not overwritten.
        keep_zero: add edges of weight 0 where there would be one at other numbers (a ReLU that is off), and what leads
            to the loss by them alone. No pass sees them; drawings do.
        names: make names the vertices: "w[0,1]", "mm#3[0,1]" for a result of the tape's call 3.

    Raises:
        NotScalar, TooLarge, BadGraph, NotANumber: as their messages say.
    """
    target = None if loss is None else tape.value_of(loss)
    if target is not None and target.numel != 1:
        raise NotScalar(f"the loss must have one element, it has shape {tuple(target.shape)}")
    reached = {target.id} if target else {y.id for call in tape.calls for y in call.outputs if y is not None}
    calls = [call for call in reversed(tape.calls) if _reaches(call, reached)][::-1]
    count = sum(_size(_sources(call)) * _size(_sinks(call, reached)) for call in calls)
    if count > max_edges:
        raise TooLarge(
            f"the scalar graph may have {count:,} edges, more than max_edges={max_edges:,}; trace a smaller "
            f"model or input, or allow it with from_tape(..., max_edges={count})"
        )
    graph = networkx.MultiDiGraph(components=top_level(tape.record))
    for call in calls:
        _add_call(graph, call, reached, keep_zero=keep_zero)
    if target is not None:
        _add_scalars(graph, target)  # a loss without calls is a vertex, too
        graph.graph["loss"] = (target.id, 0)
        leading = networkx.ancestors(graph, (target.id, 0)) | {(target.id, 0)}
        graph.remove_nodes_from([v for v in graph if v not in leading])  # of a value, only some scalars may lead there
    _refuse_nan(graph, calls)
    if values:
        _add_values(graph, [*tape.leaves.values(), *(y for call in calls for y in call.outputs if y is not None)])
    return _named(graph) if names else graph


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


def _add_call(graph: networkx.MultiDiGraph, call: Call, reached: Container[int], *, keep_zero: bool) -> None:
    """Add the scalars of one call and an edge for every entry of its Jacobians that is not 0."""
    sources, sinks = _sources(call), _sinks(call, reached)
    for value in sources.values():
        _add_scalars(graph, value)
    for value in sinks.values():
        _add_scalars(graph, value)
    arguments, results = run_again(call, sources, sinks)
    for o, y in results.items():
        for flat in y.flatten().isnan().nonzero().flatten().tolist():
            graph.nodes[sinks[o].id, flat]["nan"] = f"{call.where}: result {o}"
    others: Jacobians = dependence(call.run, arguments, sources, sinks) if keep_zero else {}
    for (k, x), (o, y) in product(sources.items(), sinks.items()):
        matrix = jacobian(results[o], arguments[k])  # y × x
        _refuse_draws(call, matrix)
        there = matrix != 0
        if keep_zero and len(others[k, o]):
            there |= others[k, o]
        for i, j in there.nonzero().tolist():
            order = (call.index, k, o, i)
            weight = matrix[i, j].item()
            graph.add_edge((x.id, j), (y.id, i), weight=weight, call=call.index, argument=k, order=order)


def _refuse_draws(call: Call, matrix: Tensor) -> None:
    if matrix.any() and torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ()):
        raise BadGraph(f"{call.where} draws random numbers: run again, it has other derivatives")


def _add_scalars(graph: networkx.MultiDiGraph, value: Value) -> None:
    """Add a vertex for each element, unless the value is in the graph already."""
    if (value.id, 0) in graph:
        return
    call = value.call
    output = next(o for o, y in enumerate(call.outputs) if y is value) if call is not None else 0
    part = f".{output}" if output else ""
    label = value.name or (f"{call.name}#{call.index}{part}" if call is not None else str(value))
    name = value.name or (f"{call.base.strip('_')}#{call.index}{part}" if call is not None else str(value))
    for flat, index in enumerate(product(*map(range, value.shape))):
        place = f"[{','.join(map(str, index))}]" if index else ""
        graph.add_node(
            (value.id, flat),
            label=f"{label}{place}",
            leaf=value.name,
            name=f"{name}{place}",
            shape=value.shape,
            index=index,
            components=_components(call),
            function=call.title if call is not None else None,
        )


def _components(call: Call | None) -> tuple[str, ...]:
    """Name what a result is in: module calls and blocks, outermost first, each call of them, and the operator."""
    if call is None:
        return ()
    calls = [f"{scope.name}:{scope.instance}" for scope in call.scopes]
    return tuple(dict.fromkeys([*(scope.name for scope in call.scopes), *calls, operator_of(call)]))


def _add_values(graph: networkx.MultiDiGraph, values: Sequence[Value]) -> None:
    for value in values:
        if value.data is None and value.depth is None:
            continue  # overwritten, and nothing kept that would tell
        if any((value.id, flat) in graph for flat in range(value.numel)):
            for flat, number in enumerate(Again(value).get().flatten().tolist()):
                if (value.id, flat) in graph:
                    graph.nodes[value.id, flat]["value"] = number


def _named(graph: networkx.MultiDiGraph) -> networkx.MultiDiGraph:
    """Give a copy whose vertices are their names."""
    names: dict[Vertex, str] = {v: data["name"] for v, data in graph.nodes(data=True)}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise BadGraph(f"two vertices would be called {twice[0]}: name the leaves otherwise, in record(names=…)")
    found = networkx.relabel_nodes(graph, names)
    if "loss" in graph.graph:
        found.graph["loss"] = names[graph.graph["loss"]]
    return found
