"""Folding operator calls by module: unbroken stretches, longest-path layers, and what to do with cycles."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.report.tree import MOST_CHILDREN, call_tree, cut, open_at_first, parameter_tree


def calls(*scopes: str) -> list:
    """Calls number 0, 1, …, each with the module calls around it as "outer/inner"."""
    return [
        SimpleNamespace(index=i, name=f"aten.op{i}.default", scopes=tuple(s.split("/")) if s else ())
        for i, s in enumerate(scopes)
    ]


def chain(n: int) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(n - 1)]


def outline(tree, number=0):
    node = tree.nodes[number]
    return [outline(tree, c) for c in node.children] if node.children else node.item


def test_runs_between_children_keep_apart():
    tree = call_tree(calls("block", "block/a", "block/a", "block", "block", "block/b", "block"), chain(7))
    (block,) = tree.nodes[0].children
    kinds = [tree.nodes[c].kind for c in tree.nodes[block].children]
    assert kinds == ["operator", "module", "operators", "module", "operator"]
    assert outline(tree) == [[0, [1, 2], [3, 4], 5, 6]] or outline(tree) == [[0, [1, 2], [3, 4], [5], 6]]


def test_strands_of_a_run_that_have_nothing_in_common_stand_side_by_side():
    # what adds up the first expert's result, and what picks the second's input, are between the two calls of experts
    found = call_tree(calls("", "a", "", "", "b", ""), [(0, 1), (1, 2), (2, 5), (0, 3), (3, 4), (4, 5)])
    layers = {found.nodes[n].name: found.nodes[n].layer for n in found.nodes[0].children if found.nodes[n].item != 0}
    assert layers["a"] == layers["op3"] == 1
    assert layers["b"] == 2
    assert found.items(0) == [0, 1, 2, 3, 4, 5]
    unbroken = call_tree(calls("a", "", "", "b"), [(0, 1), (1, 2), (2, 3)])
    assert len(unbroken.nodes[0].children) == 3


def test_layers_are_longest_paths_among_siblings():
    # a → b → d and a → c → d and a → d
    tree = call_tree(calls("a", "b", "c", "d"), [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)])
    assert {tree.nodes[n].name: tree.nodes[n].layer for n in tree.nodes[0].children} == {"a": 0, "b": 1, "c": 1, "d": 2}


def test_a_cycle_is_condensed_to_one_node_that_does_not_open():
    tree = call_tree(calls("a", "b", "a", "b", "c"), chain(5))
    top = [tree.nodes[n] for n in tree.nodes[0].children]
    assert [(n.kind, n.layer) for n in top] == [("condensed", 0), ("module", 1)]
    assert tree.nodes[0].children[0] not in open_at_first(tree)
    assert tree.items(tree.nodes[0].children[0]) == [0, 2, 1, 3]


def test_many_children_are_gathered_in_stretches():
    tree = call_tree(calls(*["rnn"] * 500), chain(500))
    assert all(len(n.children) <= MOST_CHILDREN for n in tree.nodes)
    assert tree.items(0) == list(range(500))


def test_parameters_fold_by_the_parts_of_their_names():
    leaves = [SimpleNamespace(name=n) for n in ("net.h.0.w", "net.h.0.b", "net.h.1.w", "net.h.1.b", "out.w")]
    tree = parameter_tree(leaves)  # type: ignore[arg-type]
    shown = [tree.nodes[n] for n in tree.nodes[0].children]
    assert [n.name for n in shown] == ["net.h", "out.w"]
    assert [tree.nodes[n].label for n in shown[0].children] if shown[0].children else True
    assert sorted(tree.items(0)) == [0, 1, 2, 3, 4]


names = st.sampled_from(["a", "b", "c"])
nested = st.lists(st.lists(names, max_size=3).map("/".join), min_size=1, max_size=30)


@given(nested, st.data())
def test_any_cut_of_any_recording_has_no_cycles_and_every_call_once(scopes, data):
    recorded = calls(*scopes)
    pairs = st.tuples(*[st.integers(0, len(recorded) - 1)] * 2).filter(lambda p: p[0] < p[1])
    links = data.draw(st.lists(pairs, max_size=40)) if len(recorded) > 1 else []
    tree = call_tree(recorded, links)
    folders = [i for i, n in enumerate(tree.nodes) if n.children and n.kind != "condensed"]
    opened = {0, *data.draw(st.lists(st.sampled_from(folders), max_size=6))}
    shown = cut(tree, opened)
    inside = [item for n in shown for item in tree.items(n)]
    assert sorted(inside) == list(range(len(recorded)))
    home = {item: n for n in shown for item in tree.items(n)}
    graph = nx.DiGraph((home[a], home[b]) for a, b in links if home[a] != home[b])
    assert nx.is_directed_acyclic_graph(graph)
    for a, b in links:
        x, y = tree.above(tree.of_item[a]), tree.above(tree.of_item[b])
        part = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), None)
        if part is not None and not any(tree.nodes[n].kind == "condensed" for n in x[:part]):
            assert tree.nodes[x[part]].layer < tree.nodes[y[part]].layer


def test_columns_put_parents_before_children():
    columns = call_tree(calls("a", "a/b", "a/b", "c"), chain(4)).columns()
    assert all(parent < n for n, parent in enumerate(columns["parent"]))
    assert columns["open"][0] == 0


@pytest.mark.parametrize("most", [2, 8, 24])
def test_what_is_open_at_first_stays_small(most):
    tree = call_tree(calls(*[f"net/h.{i}/{part}" for i in range(12) for part in ("attn", "mlp")]), chain(24))
    assert len(cut(tree, open_at_first(tree, most))) <= max(most, 1)
