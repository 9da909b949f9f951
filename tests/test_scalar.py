"""The explicit scalar graph against the definitions, on random graphs whose weights multiply exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import networkx
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.errors import BadArgument, GradtraceError, NotANumber, UnknownName
from gradtrace.scalar import (
    BadGraph,
    CycleError,
    ScalarPath,
    TooLarge,
    all_pairs,
    backpropagate,
    best_path,
    crossing,
    forward,
    greedy_path,
    paths,
    pathwise_sum,
)
from gradtrace.semirings.base import AbsSum, Count, Max, Sum

SEMIRINGS = (Sum, AbsSum, Max, Count)
Edges = list[tuple[Any, Any, float]]  # producer, consumer, weight
Walk = tuple[int, ...]  # positions in such a list


def built(edges: Edges, orders: list[int] | None = None, vertices: Iterable[Any] = ()) -> networkx.MultiDiGraph:
    """Make a graph of edges; edge number i gets the key i."""
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(vertices)
    for i, (v, u, weight) in enumerate(edges):
        extra = {"order": (orders[i],)} if orders else {}
        graph.add_edge(v, u, key=i, weight=weight, **extra)
    return graph


def chain(weights: Iterable[float]) -> networkx.MultiDiGraph:
    return built([(i, i + 1, weight) for i, weight in enumerate(weights)])


# ---------------------------------------------------------------- random graphs, and the definitions


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[int], Edges, list[int] | None]:
    """Draw (vertices, producers first; edges; tie ranks or None). The weights and their sums are exact."""
    order = draw(st.permutations(range(draw(st.integers(2, 6)))))
    pairs = [(v, u) for i, v in enumerate(order) for u in order[i + 1 :]]
    weights = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    edges = draw(st.lists(st.tuples(st.sampled_from(pairs), weights), max_size=12))
    ranks = draw(st.none() | st.permutations(range(len(edges))))
    return list(order), [(v, u, weight) for (v, u), weight in edges], ranks


def walks(edges: Edges, source: Any, target: Any) -> Iterator[Walk]:
    """Enumerate the paths that have no edge of weight 0."""
    if source == target:
        yield ()
        return
    for i, (v, u, weight) in enumerate(edges):
        if v == source and weight != 0:
            for rest in walks(edges, u, target):
                yield (i, *rest)


def weight_of(edges: Edges, walk: Walk) -> float:
    return math.prod(edges[i][2] for i in walk)


def aggregated(edges: Edges, source: Any, target: Any) -> dict[str, float]:
    """Aggregate the weights of all paths, from each semiring's definition."""
    weights = [weight_of(edges, walk) for walk in walks(edges, source, target)]
    sizes = [abs(weight) for weight in weights]
    return {"sum": sum(weights), "abssum": sum(sizes), "max": max(sizes, default=0.0), "count": len(weights)}


def tie_ranks(edges: Edges, orders: list[int] | None) -> list[tuple[int, int]]:
    """Rank the edges: by `order`; without one, consumers as first joined, parallel edges together."""
    if orders:
        return [(rank, 0) for rank in orders]
    ends = [(v, u) for v, u, _ in edges]
    return [(ends.index(pair), i) for i, pair in enumerate(ends)]


def numbers(path: ScalarPath | None) -> tuple[Any, ...] | None:
    """Give the edge numbers of a path, which are the keys of its edges."""
    return None if path is None else tuple(key for _, _, key in path.edges)


@given(dags())
def test_backpropagation_aggregates_all_paths(dag):
    vertices, edges, orders = dag
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for semiring in SEMIRINGS:
        g = backpropagate(graph, loss, semiring)
        assert g == {v: aggregated(edges, v, loss)[semiring.name] for v in vertices}
        assert g == {v: pathwise_sum(graph, v, loss, semiring) for v in vertices}


@given(dags())
def test_forward_mode_and_all_pairs_agree_with_backpropagation(dag):
    vertices, edges, orders = dag
    graph = built(edges, orders, vertices)
    for semiring in SEMIRINGS:
        pairs = {v: {u: aggregated(edges, v, u)[semiring.name] for u in vertices} for v in vertices}
        assert all_pairs(graph, semiring) == pairs
        assert {v: forward(graph, v, semiring) for v in vertices} == pairs
        assert {u: backpropagate(graph, u, semiring) for u in vertices} == {
            u: {v: pairs[v][u] for v in vertices} for u in vertices
        }


@given(dags())
def test_paths_come_each_once_in_tie_order(dag):
    vertices, edges, orders = dag
    rank = tie_ranks(edges, orders)
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for v in vertices:
        found = list(paths(graph, v, loss))
        assert [numbers(p) for p in found] == sorted(walks(edges, v, loss), key=lambda w: [rank[i] for i in w])
        assert [p.weight for p in found] == [weight_of(edges, numbers(p) or ()) for p in found]
        assert all(p.vertices == (v, *(u for _, u, _ in p.edges)) for p in found)


@settings(max_examples=300)
@given(dags())
def test_best_path_is_the_first_of_the_strongest(dag):
    vertices, edges, orders = dag
    rank = tie_ranks(edges, orders)
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for v in vertices:
        ranked = sorted(walks(edges, v, loss), key=lambda w: (-abs(weight_of(edges, w)), [rank[i] for i in w]))
        best = best_path(graph, v, loss)
        assert numbers(best) == (ranked[0] if ranked else None)
        assert best is None or best.log2_weight == math.log2(abs(weight_of(edges, ranked[0])))


def greedy_by_definition(edges: Edges, rank: list[tuple[int, int]], source: Any, loss: Any) -> Walk | None:
    """Step to the largest |w · ∂ℓ/∂u|, with every derivative a sum over enumerated paths."""
    walk: list[int] = []
    while source != loss:
        terms = [
            (-abs(w * aggregated(edges, u, loss)["sum"]), rank[i], i)
            for i, (v, u, w) in enumerate(edges)
            if v == source
        ]
        size, _, i = min(terms, default=(0, (0, 0), 0))
        if size == 0:
            return None
        walk.append(i)
        source = edges[i][1]
    return tuple(walk)


@settings(max_examples=300)
@given(dags())
def test_greedy_path_follows_the_ordinary_gradient(dag):
    vertices, edges, orders = dag
    graph, rank = built(edges, orders, vertices), tie_ranks(edges, orders)
    for v in vertices:
        expected = greedy_by_definition(edges, rank, v, vertices[-1])
        assert numbers(greedy_path(graph, v, vertices[-1])) == expected


def test_best_and_greedy_differ():
    # towards b two paths cancel down to 1, towards a there is one of weight 3
    graph = built([(0, 1, 1.0), (0, 2, 1.0), (1, 9, 3.0), (2, 3, 5.0), (2, 4, -4.0), (3, 9, 1.0), (4, 9, 1.0)])
    best, greedy = best_path(graph, 0, 9), greedy_path(graph, 0, 9)
    assert best is not None
    assert best.vertices == (0, 2, 3, 9)
    assert best.weight == 5
    assert greedy is not None
    assert greedy.vertices == (0, 1, 9)
    assert greedy.weight == 3


def test_greedy_has_no_path_where_every_gradient_cancels():
    graph = built([(0, 1, 1.0), (1, 2, 1.0), (1, 2, -1.0)])
    assert greedy_path(graph, 0, 2) is None
    assert numbers(greedy_path(graph, 1, 2)) == (1,)  # its own steps still have terms ±1
    assert numbers(best_path(graph, 0, 2)) == (0, 1)


# ---------------------------------------------------------------- size and range


def test_a_chain_of_five_thousand_vertices():
    graph = chain(0.5 if i % 2 else -2.0 for i in range(4999))
    (path,) = paths(graph, 0, 4999)
    assert path == best_path(graph, 0, 4999) == greedy_path(graph, 0, 4999)
    assert path.weight == backpropagate(graph, 4999)[0] == forward(graph, 0)[4999] == 2.0
    assert path.vertices == tuple(range(5000))


@pytest.mark.parametrize("factor", [1e-200, 1e200, 5e-324])
def test_hundreds_of_factors_stay_in_range(factor):
    weak = [(("weak", i), ("weak", i + 1), factor) for i in range(700)]
    strong = [(("strong", i), ("strong", i + 1), factor) for i in range(700)]
    ends = [
        (0, ("weak", 0), 1.0),
        (0, ("strong", 0), 1.125),
        (("weak", 700), 1, 1.0),
        (("strong", 700), 1, -1.0),
    ]
    graph = built(weak + strong + ends)
    for path in (best_path(graph, 0, 1), greedy_path(graph, 0, 1)):
        assert path is not None
        assert ("strong", 3) in path.vertices
        assert path.log2_weight == pytest.approx(700 * math.log2(factor) + math.log2(1.125), rel=1e-13)
        assert path.weight == (0 if factor < 1 else -math.inf)


def test_an_intermediate_underflow_does_not_spoil_the_weight():
    (path,) = paths(chain([1e-300, 1e300, 1e300, 1e-300, 1e-300]), 0, 5)
    assert path.weight == pytest.approx(1e-300, rel=1e-15, abs=0)


def test_deep_ties_are_ties():
    # equal products of powers of two, in different order, far below the smallest float
    up = [2.0**-900, 2.0**-700, 2.0**300]
    edges = [(0, "a0", 1.0), (0, "b0", 1.0)]
    for name, weights in (("a", up), ("b", up[::-1])):
        edges += [(f"{name}{i}", f"{name}{i + 1}", w) for i, w in enumerate(weights)]
        edges.append((f"{name}3", "loss", 1.0))
    for orders, winner in ((list(range(10)), "a0"), (list(range(10))[::-1], "b0")):
        graph = built(edges, orders)
        for path in (best_path(graph, 0, "loss"), greedy_path(graph, 0, "loss")):
            assert path is not None
            assert path.vertices[1] == winner
            assert path.log2_weight == -1300


def test_an_infinite_weight_is_the_strongest():
    graph = built([(0, 1, math.inf), (0, 1, 1e308), (1, 2, 1e-308)])
    path = best_path(graph, 0, 2)
    assert numbers(path) == (0, 2)
    assert path is not None
    assert path.weight == path.log2_weight == math.inf


def test_opposite_infinities_have_no_greedy_path():
    graph = built([(0, 1, 1.0), (0, 2, 1.0), (1, 2, math.inf), (1, 2, -math.inf)])
    with pytest.raises(NotANumber, match="opposite sign"):
        greedy_path(graph, 0, 2)


# ---------------------------------------------------------------- small graphs and errors


def test_parallel_edges_are_distinct():
    square, power = built([("x", "y", 3.0), ("x", "y", 3.0)]), built([("x", "y", 6.0)])
    assert [backpropagate(square, "y", s)["x"] for s in SEMIRINGS] == [6, 6, 3, 2]
    assert [backpropagate(power, "y", s)["x"] for s in SEMIRINGS] == [6, 6, 6, 1]


def test_the_path_from_the_loss_to_itself_is_empty():
    graph = chain([2.0])
    (path,) = paths(graph, 1, 1)
    assert path == best_path(graph, 1, 1) == greedy_path(graph, 1, 1) == ScalarPath((1,), (), ())
    assert (path.weight, path.log2_weight) == (1, 0)


def test_a_vertex_that_does_not_reach_the_loss():
    graph = built([(0, 1, 1.0), (0, 2, 0.0)])
    assert best_path(graph, 0, 2) is None
    assert greedy_path(graph, 0, 2) is None
    assert list(paths(graph, 0, 2)) == []
    assert backpropagate(graph, 2, Max) == {0: 0, 1: 0, 2: 1}


def test_crossing():
    (path,) = paths(chain([1.0, 1.0]), 0, 2)
    assert crossing(path, {1, 7})
    assert crossing(path, {2})
    assert not crossing(path, {7})


def test_numbers_of_other_types_are_weights():
    graph = networkx.MultiDiGraph()
    graph.add_edge("x", "y", weight=3)
    graph.add_edge("y", "z", weight=numpy.float32(0.5))
    assert backpropagate(graph, "z")["x"] == 1.5


@pytest.mark.parametrize("start", range(3))
def test_a_cycle_is_shown(start):
    names = "abcabc"[start : start + 3]
    graph = built([("x", "a", 1.0)] + [(v, u, 1.0) for v, u in zip(names, names[1:] + names[0], strict=True)])
    for call in (lambda: backpropagate(graph, "x"), lambda: all_pairs(graph), lambda: paths(graph, "x", "a")):
        with pytest.raises(CycleError, match=r"a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c"):
            call()


def test_a_loop_is_a_cycle_and_an_absent_edge_closes_none():
    with pytest.raises(CycleError, match="7 -> 7"):
        forward(built([(7, 7, 1.0)]), 7)
    assert backpropagate(built([(1, 2, 5.0), (2, 1, 0.0)]), 2)[1] == 5


@pytest.mark.parametrize("attributes", [{}, {"weight": None}, {"weight": "3"}, {"weight": True}, {"weight": 1j}])
def test_an_edge_needs_a_number(attributes):
    graph = networkx.MultiDiGraph()
    graph.add_edge("left", "right", **attributes)
    with pytest.raises(BadGraph, match="edge left -> right"):
        backpropagate(graph, "right")


def test_nan_names_the_edge():
    with pytest.raises(NotANumber, match=r"edge 0 -> 1 \(key 0\)"):
        best_path(chain([math.nan]), 0, 1)


def test_unknown_vertices_are_named_and_some_known_ones_listed():
    graph = chain([1.0] * 20)
    for call in (
        lambda: backpropagate(graph, "loss"),
        lambda: forward(graph, "loss"),
        lambda: best_path(graph, "loss", 20),
        lambda: greedy_path(graph, 0, "loss"),
        lambda: paths(graph, 0, "loss"),
    ):
        with pytest.raises(UnknownName, match="'loss' among the 21 of the graph: 0, 1, 2, 3, 4, 5, 6, 7, …"):
            call()


@pytest.mark.parametrize("semiring", [Sum, AbsSum, Max, Count])
def test_semirings_go_by_their_names(semiring):
    graph, name = chain([2.0, -3.0]), semiring.name
    assert backpropagate(graph, 2, name) == backpropagate(graph, 2, semiring)
    assert forward(graph, 0, name) == forward(graph, 0, semiring)
    assert all_pairs(graph, name) == all_pairs(graph, semiring)
    assert pathwise_sum(graph, 0, 2, name) == pathwise_sum(graph, 0, 2, semiring)
    assert backpropagate(graph, 2, "topk:2")[0] == (6.0, 0.0)


@pytest.mark.parametrize(("name", "said"), [("maximum", "abssum"), ("power:0", "p from 1")])
def test_other_names_are_refused(name, said):
    for call in (backpropagate, forward):
        with pytest.raises(UnknownName, match=said):
            call(chain([1.0]), 0, name)


def test_only_backpropagation_tells_components_apart():
    with pytest.raises(UnknownName, match="tells components apart"):
        forward(chain([1.0]), 0, "graded:2")
    with pytest.raises(BadArgument, match="attribute `components`"):
        backpropagate(chain([1.0]), 1, "graded:2")


def test_other_graphs_and_orders_are_refused():
    with pytest.raises(BadGraph, match="MultiDiGraph, got DiGraph"):
        backpropagate(networkx.DiGraph(), 0)  # pyright: ignore[reportArgumentType]
    graph = networkx.MultiDiGraph()
    graph.add_edge(0, 1, weight=1.0, order=(0,))
    graph.add_edge(0, 1, weight=1.0, order=("a",))
    with pytest.raises(BadGraph, match="edges leaving 0"):
        best_path(graph, 0, 1)
    assert all(issubclass(error, GradtraceError) for error in (BadGraph, CycleError, TooLarge))
