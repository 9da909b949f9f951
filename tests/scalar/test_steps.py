"""Step by step, path by path and level by level, against the definitions, on random graphs."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import networkx
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scalar import aggregated, built, chain, dags, numbers, tie_ranks, walks, weight_of

from gradtrace import record
from gradtrace.errors import BadArgument, UnknownName
from gradtrace.scalar import (
    BadGraph,
    CycleError,
    Graph,
    MaxPlus,
    MinPlus,
    TooLarge,
    all_pairs,
    backpropagate,
    best_path,
    draw,
    forward,
    greedy_path,
    levels,
    path_table,
    paths,
    pathwise_sum,
    plain,
    steps,
    to_dot,
    vertex,
)
from gradtrace.semirings import AbsSum, Count, Entropy, Graded, Max, Power, SignedMax, Sum, Through, TopK, make

relaxed = settings(deadline=None, max_examples=60)
FAMILY = (Sum, AbsSum, Max, Count, Power(2), Entropy, TopK(3), SignedMax, MaxPlus, MinPlus)
# several positive and negative weights, a zero, and as many ties as can be
up_and_down = make(
    "up and down",
    zero=(0.0, 0.0),
    one=(1.0, 0.0),
    plus=lambda a, b: (a[0] + b[0], a[1] + b[1]),
    times=lambda a, b: (a[0] * b[0] + a[1] * b[1], a[0] * b[1] + a[1] * b[0]),
    lift=lambda w: (w.clamp(min=0), (-w).clamp(min=0)),
)


# ---------------------------------------------------------------- steps


@relaxed
@given(dags(), st.sampled_from((*FAMILY, up_and_down)))
def test_steps_are_the_backpropagation_that_they_explain(dag, semiring):
    vertices, edges, orders = dag
    graph, loss = built(edges, orders, vertices), vertices[-1]
    if graph.out_degree(loss) and not graph.in_degree(loss):
        return
    found, g = steps(graph, loss, semiring), backpropagate(graph, loss, semiring)
    assert {v: g[v] for v in g if v not in {s.vertex for s in found}} == {
        v: semiring.plain(semiring.zero) for v in vertices if v not in {s.vertex for s in found}
    }
    elements = {}
    for step in found:
        assert semiring.plain(step.element) == g[step.vertex]
        present = [(i, e) for i, e in enumerate(edges) if e[0] == step.vertex and e[1] in elements]
        if not isinstance(semiring, type(MaxPlus)):
            present = [(i, e) for i, e in present if e[2] != 0]
        rank = tie_ranks(edges, orders)
        assert [edge.key for edge in step.edges] == sorted((i for i, _ in present), key=lambda i: rank[i])
        products = [semiring.times(semiring.lift(e.weight), elements[e.consumer]) for e in step.edges]
        assert list(step.products) == products
        total = semiring.one if step.vertex == loss else semiring.zero
        for product in products:
            total = semiring.plus(total, product)
        assert step.element == total
        elements[step.vertex] = total
    assert found.g == {v: g[v] for v in elements}


@relaxed
@given(dags())
def test_the_winner_is_the_first_edge_of_the_best_path(dag):
    vertices, edges, orders = dag
    graph, loss = built(edges, orders, vertices), vertices[-1]
    if graph.out_degree(loss) and not graph.in_degree(loss):
        return
    for semiring in (Max, MaxPlus, MinPlus):
        for step in steps(graph, loss, semiring):
            best = best_path(graph, step.vertex, loss, semiring)
            first = best.edges[0][2] if best is not None and best.edges else None
            assert (None if step.winner is None else step.edges[step.winner].key) == first
    assert all(step.winner is None for step in steps(graph, loss) if len(step.edges) > 1 and step.element)


def test_the_table_of_a_dynamic_program():
    graph = built([("x", "y", 2.0), ("x", "z", -3.0), ("y", "o", 0.5), ("z", "o", 0.25)])
    assert str(steps(graph, "o", "max")).splitlines() == [
        "step  vertex  g     merged from",
        "1     o       1     1",
        "2     y       0.5   0.5·g(o) = 0.5",
        "3     z       0.25  0.25·g(o) = 0.25",
        "4     x       1     2·g(y) = 1 *, 3·g(z) = 0.75",
    ]


# ---------------------------------------------------------------- paths


@relaxed
@given(dags())
def test_the_path_table_is_the_enumeration_strongest_first(dag):
    vertices, edges, orders = dag
    rank = tie_ranks(edges, orders)
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for v in vertices:
        ranked = sorted(walks(edges, v, loss), key=lambda w: (-abs(weight_of(edges, w)), [rank[i] for i in w]))
        found = path_table(graph, v, loss)
        assert [numbers(p) for p in found] == ranked
        assert found.total == aggregated(edges, v, loss)["sum"] == backpropagate(graph, loss)[v]
        assert sorted(map(numbers, found)) == sorted(map(numbers, paths(graph, v, loss)))


def test_a_printed_path_table():
    graph = built([("x", "y", 3.0), ("x", "y", -4.0), ("y", "o", 0.5)])
    assert str(path_table(graph, "x", "o")).splitlines() == [
        "path         factors   weight",
        "x -> y -> o  -4 · 0.5  -2",
        "x -> y -> o  3 · 0.5   1.5",
        "2 paths      sum       -0.5",
    ]


def test_a_printed_table_of_lengths():
    graph = built([("a", "b", 3.0), ("b", "c", 4.0), ("a", "d", 8.0), ("d", "c", 0.0)])
    assert str(path_table(graph, "a", "c", semiring="max-plus")).splitlines() == [
        "path         lengths  sum",
        "a -> d -> c  8 + 0    8",
        "a -> b -> c  3 + 4    7",
        "2 paths      max      8",
    ]
    assert path_table(graph, "a", "c", semiring=MinPlus).total == 7
    with pytest.raises(BadArgument, match=r"compares lengths \(max-plus, min-plus\): ask pathwise_sum for entropy"):
        path_table(graph, "a", "c", semiring="entropy")


def test_too_many_paths_are_refused():
    graph = built([(i, i + 1, 1.0) for i in range(10) for _ in range(2)])
    with pytest.raises(TooLarge, match=r"max_paths=1,000 paths from 0 to 10.*'count'"):
        path_table(graph, 0, 10, max_paths=1000)
    assert len(path_table(graph, 0, 10, max_paths=2**10)) == 2**10


def test_paths_beyond_a_floats_range_are_sorted():
    weak = [(("w", i), ("w", i + 1), 1e-200) for i in range(10)]
    strong = [(("s", i), ("s", i + 1), 1.5e-200) for i in range(10)]
    ends = [(0, ("w", 0), 1.0), (0, ("s", 0), 1.0), (("w", 10), 1, 1.0), (("s", 10), 1, 1.0)]
    assert path_table(built(weak + strong + ends), 0, 1)[0].vertices[1] == ("s", 0)


# ---------------------------------------------------------------- lengths


def lengths(edges, source, target) -> list[float]:
    """Of all paths, edges of length 0 being edges."""
    if source == target:
        return [0.0]
    return [w + rest for v, u, w in edges if v == source for rest in lengths(edges, u, target)]


@relaxed
@given(dags())
def test_the_longest_and_the_shortest_path(dag):
    vertices, edges, orders = dag
    graph = built(edges, orders, vertices)
    for semiring, extreme, none in ((MaxPlus, max, -math.inf), (MinPlus, min, math.inf)):
        pairs = {v: {u: extreme(lengths(edges, v, u), default=none) for u in vertices} for v in vertices}
        assert all_pairs(graph, semiring) == pairs
        assert backpropagate(graph, vertices[-1], semiring.name) == {v: pairs[v][vertices[-1]] for v in vertices}
        for v in vertices:
            assert forward(graph, v, semiring) == pairs[v]
            best = best_path(graph, v, vertices[-1], semiring)
            assert (none if best is None else best.length) == pairs[v][vertices[-1]]
            assert pathwise_sum(graph, v, vertices[-1], semiring) == pairs[v][vertices[-1]]
            table = path_table(graph, v, vertices[-1], semiring=semiring)
            expected = sorted(lengths(edges, v, vertices[-1]), reverse=semiring is MaxPlus)
            assert [path.length for path in table] == expected
            assert table.total == pairs[v][vertices[-1]]


def test_networkx_finds_the_same_lengths():
    graph = networkx.MultiDiGraph()
    for v, u in combinations(range(9), 2):
        graph.add_edge(v, u, weight=float((v * 7 + u * 5) % 11))
    found = backpropagate(graph, 8, "min-plus")
    assert found == {v: networkx.shortest_path_length(graph, v, 8, weight="weight") for v in graph}
    assert best_path(graph, 0, 8, "max-plus").length == networkx.dag_longest_path_length(graph)  # type: ignore[union-attr]


def test_only_what_chooses_a_path_has_a_best_one():
    with pytest.raises(BadArgument, match="⊕ of abssum chooses none"):
        best_path(chain([1.0]), 0, 1, "abssum")


# ---------------------------------------------------------------- exact numbers


fractions = st.builds(Fraction, st.integers(-6, 6), st.integers(1, 6))


@relaxed
@given(dags(), st.lists(fractions, min_size=12, max_size=12))
def test_fractions_stay_exact(dag, weights):
    vertices, edges, orders = dag
    rational = [(v, u, w) for (v, u, _), w in zip(edges, weights, strict=False)]
    graph, loss = built(rational, orders, vertices), vertices[-1]
    for v in vertices:
        found = [math.prod((rational[i][2] for i in w), start=Fraction(1)) for w in walks(rational, v, loss)]
        assert backpropagate(graph, loss)[v] == sum(found)
        assert backpropagate(graph, loss, "max")[v] == max(map(abs, found), default=0)
        assert backpropagate(graph, loss, "abssum")[v] == forward(graph, v, "abssum")[loss] == sum(map(abs, found))
        assert backpropagate(graph, loss, "count")[v] == len(found)
        assert path_table(graph, v, loss).total == sum(found)
        best, greedy = best_path(graph, v, loss), greedy_path(graph, v, loss)
        assert best is None or abs(best.weight) == max(map(abs, found))
        assert greedy is None or greedy.weight in found
        if v != loss and found:
            assert isinstance(backpropagate(graph, loss)[v], (Fraction, int))
            entropy = backpropagate(graph, loss, "entropy")[v]
            shares = [float(abs(f) / sum(map(abs, found))) for f in found]
            assert entropy == pytest.approx(-sum(s * math.log2(s) for s in shares), abs=1e-9)


def test_a_third_of_three_thirds_ties_exactly():
    edges = [("x", "a", Fraction(1, 3)), ("a", "o", Fraction(3)), ("x", "b", Fraction(1, 10)), ("b", "o", Fraction(10))]
    path = best_path(built(edges), "x", "o")
    assert path is not None
    assert path.vertices == ("x", "a", "o")
    assert path.weight == 1
    assert path.log2_weight == 0


def test_whole_numbers_among_floats_are_floats():
    graph = built([("x", "y", 3), ("y", "z", 0.5)])
    assert isinstance(backpropagate(graph, "z")["x"], float)
    assert backpropagate(built([("x", "y", 10**400)]), "y")["x"] == 10**400


def test_symbols_stay_symbols():
    a, b, c = sympy.symbols("a b c")
    graph = built([("x", "y", a), ("x", "z", b), ("y", "o", c), ("z", "o", 2)])
    assert sympy.simplify(backpropagate(graph, "o")["x"] - (a * c + 2 * b)) == 0
    assert sympy.simplify(path_table(graph, "x", "o").total - (a * c + 2 * b)) == 0
    assert backpropagate(graph, "o", "count")["x"] == 2
    assert backpropagate(graph, "o", "abssum")["x"] == abs(a) * abs(c) + 2 * abs(b)
    for call in (best_path, greedy_path):
        with pytest.raises(BadArgument, match="depends on the symbols"):
            call(graph, "x", "o")
    with pytest.raises(BadArgument, match="is larger depends on their symbols"):
        backpropagate(graph, "o", "max")
    with pytest.raises(BadGraph, match="entropy takes numbers"):
        backpropagate(graph, "o", "entropy")
    with pytest.raises(BadArgument, match=r"log2 of a\*c depends"):
        _ = next(iter(paths(graph, "x", "o"))).log2_weight


# ---------------------------------------------------------------- levels


@relaxed
@given(dags())
def test_levels_are_lengths_of_the_longest_paths(dag):
    vertices, edges, orders = dag
    graph = built(edges, orders, vertices)

    def depth(v) -> int:
        return max((1 + depth(p) for p, u, _ in edges if u == v), default=0)

    found = levels(graph)
    assert {v: n for n, level in enumerate(found) for v in level} == {v: depth(v) for v in vertices}


def test_a_cycle_has_no_levels():
    with pytest.raises(CycleError, match=r"a -> b -> a|b -> a -> b"):
        levels(built([("a", "b", 1.0), ("b", "a", 1.0)]))


# ---------------------------------------------------------------- components


@st.composite
def components(draw: st.DrawFn) -> tuple:
    vertices, edges, orders = draw(dags())
    inside = {v: draw(st.sets(st.sampled_from("ABC"))) for v in vertices}
    return vertices, edges, orders, inside


@relaxed
@given(components(), st.sampled_from((Sum, AbsSum, Max, Count)), st.none() | st.integers(0, 3))
def test_graded_and_through_split_by_what_paths_cross(drawn, semiring, most):
    vertices, edges, orders, inside = drawn
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for v in vertices:
        graph.nodes[v]["components"] = tuple(sorted(inside[v]))
    there = sorted(set().union(*inside.values()))
    if not there:
        return
    graded = backpropagate(graph, loss, Graded(most, tuple(there), semiring))
    through = backpropagate(graph, loss, Through(tuple(there), semiring))
    levels_of = len(there) if most is None else most
    merge = {"sum": sum, "abssum": sum, "max": lambda found: max(found, default=0.0), "count": len}[semiring.name]
    for v in vertices:
        crossed = [
            (set(inside[v]).union(*(inside[edges[i][1]] for i in walk)), weight_of(edges, walk))
            for walk in walks(edges, v, loss)
        ]
        sized = [(c, w if semiring is Sum else abs(w)) for c, w in crossed]
        assert graded[v] == tuple(
            merge([w for c, w in sized if min(len(c), levels_of + 1) == n]) for n in range(levels_of + 2)
        )
        assert through[v] == (
            tuple(merge([w for c, w in sized if name in c]) for name in there),
            tuple(merge([w for c, w in sized if name not in c]) for name in there),
        )


@relaxed
@given(components(), st.sampled_from((Sum, AbsSum, Max, Count, Entropy, TopK(2))), st.none() | st.integers(0, 3))
def test_steps_tell_components_apart_as_backpropagation_does(drawn, semiring, most):
    vertices, edges, orders, inside = drawn
    graph, loss = built(edges, orders, vertices), vertices[-1]
    for v in vertices:
        graph.nodes[v]["components"] = tuple(sorted(inside[v]))
    there = tuple(sorted(set().union(*inside.values())))
    if not there or (graph.out_degree(loss) and not graph.in_degree(loss)):
        return
    for asked in (Graded(most, there, semiring), Through(there, semiring)):
        found, g = steps(graph, loss, asked), backpropagate(graph, loss, asked)
        assert found.g == {v: g[v] for v in found.g}
        assert all(is_zero(g[v]) for v in set(g) - set(found.g))
        for step in found:
            assert all(crossed >= inside[step.vertex] for crossed in step.element)
            assert set().union(*step.products) <= set(step.element)


def is_zero(g) -> bool:
    """Whether all that is in nested tuples is 0."""
    return all(map(is_zero, g)) if isinstance(g, tuple) else g == 0


def test_tables_of_other_semirings_say_what_was_multiplied_or_added():
    graph = built([("x", "y", 3.0), ("x", "y", -4.0), ("y", "o", 2.0)])
    said = {k: str(steps(graph, "o", k)).splitlines()[1:] for k in ("count", "max-plus")}
    assert [line.split(maxsplit=2)[2] for line in said["count"]] == [
        "1  1", "1  1·g(o) = 1", "2  1·g(y) = 1, 1·g(y) = 1",
    ]  # fmt: skip
    assert [line.split(maxsplit=2)[2] for line in said["max-plus"]] == [
        "0  0", "2  2 + g(o) = 2", "5  3 + g(y) = 5 *, -4 + g(y) = -2",
    ]  # fmt: skip
    graph.nodes["y"]["components"] = ("relu",)
    assert str(steps(graph, "o", Through(("relu",)))).splitlines() == [
        "step  vertex  g           merged from",
        "1     o       {}: 1       {}: 1",
        "2     y       {relu}: 2   2·g(o) = {relu}: 2",
        "3     x       {relu}: -2  3·g(y) = {relu}: 6, -4·g(y) = {relu}: -8",
    ]


def test_unknown_components_are_listed():
    graph = chain([1.0])
    graph.nodes[0]["components"] = ("left",)
    assert backpropagate(graph, 1, "through")[0] == ((1.0,), (0.0,))
    assert backpropagate(graph, 1, Through(semiring="max")) == backpropagate(graph, 1, Through(semiring=Max))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no vertex None among the 2 of the graph"):
        backpropagate(graph, None)
    with pytest.raises(UnknownName, match="no vertex is in right; there are left"):
        backpropagate(graph, 1, Through(("right",)))


# ---------------------------------------------------------------- what to do


def test_edges_the_wrong_way_round():
    graph = built([("y", "x", 2.0), ("o", "y", 3.0)])
    for call in (best_path, greedy_path, path_table, pathwise_sum):
        with pytest.raises(BadGraph, match=r"the other way: edges run from the producer.*graph.reverse\(\)"):
            call(graph, "x", "o")
    with pytest.raises(BadGraph, match=r"no edge comes to 'o'.*graph.reverse\(\)"):
        steps(graph, "o")
    assert path_table(graph.reverse(), "x", "o").total == 6


def test_other_graphs_say_how_to_make_one():
    with pytest.raises(BadGraph, match=r"got DiGraph, which has no parallel edges.*networkx.MultiDiGraph\(graph\)"):
        levels(networkx.DiGraph([("a", "b")]))  # pyright: ignore[reportArgumentType]
    for other in (networkx.MultiGraph([("a", "b")]), networkx.DiGraph([("a", "b")])):
        for call in (lambda g: backpropagate(g, "b"), draw, to_dot, plain, lambda g: vertex(g, "a")):
            with pytest.raises(BadGraph, match=r"has no directions: add each edge|networkx.MultiDiGraph\(graph\)"):
                call(other)


def test_nodes_are_vertices_and_vectors_say_which_they_have():
    g = Graph()
    (x,), (w,) = g.inputs(x=2.0), g.parameters(W=[[1.0, 2.0]])
    loss = g.add("loss", lambda w, x: (w * x).sum(), w, x)
    assert backpropagate(g, loss) == backpropagate(g, "loss") == steps(g, loss).g
    assert forward(g, x) == forward(g, "x")
    assert path_table(g, x, loss) == path_table(g, "x", "loss") == tuple(paths(g, x, loss))
    assert best_path(g, x, loss) == best_path(g, "x", "loss") == greedy_path(g, x, loss)
    assert pathwise_sum(g, x, loss) == 3
    assert vertex(g, "W", 0, 1) == "W[0,1]"
    with pytest.raises(UnknownName, match=r"W is 2 numbers here, each a vertex of its own: 'W\[0,0\]', 'W\[0,1\]'"):
        best_path(g, w, loss)


def test_a_graph_of_vectors_says_where_the_numbers_are():
    g = Graph()
    g.inputs(x=[1.0, 2.0])
    g.add("loss", "sum", "x")
    with pytest.raises(BadGraph, match=r"edge x -> loss has a Jacobian: ask the `Graph` itself, or its scalars\(\)"):
        path_table(g.vectors(), "x", "loss")


def test_all_passes_take_a_tape():
    w = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    with record(names={"w": w}) as tape:
        (w * w).sum()
    assert backpropagate(tape, "sum#1")["w[1]"] == steps(tape, "sum#1").g["w[1]"] == 6
    assert path_table(tape, "w[1]", "sum#1").total == pathwise_sum(tape, "w[1]", "sum#1") == 6
    assert best_path(tape, "w[1]", "sum#1") == greedy_path(tape, "w[1]", "sum#1") == next(paths(tape, "w[1]", "sum#1"))
    assert '"w[1]" -> "mul#0[1]"' in to_dot(tape)
    assert set(plain(tape)) == set(backpropagate(tape, "sum#1"))


def test_a_relu_that_is_off_has_its_level():
    g = Graph()
    (x,) = g.inputs(x=-1.0)
    g.add("loss", "square", g.add("r", "relu", x))
    assert levels(g) == [["x"], ["r"], ["loss"]]
    leaf = torch.tensor(-1.0, requires_grad=True)
    with record(names={"x": leaf}) as tape:
        leaf.relu().square()
    assert levels(tape) == [["x"], ["relu#0"], ["pow#1"]]


def test_names_of_lengths_are_listed():
    with pytest.raises(UnknownName, match=r"topk:K.*; of lengths, max-plus or min-plus"):
        best_path(chain([1.0]), 0, 1, "longest")
