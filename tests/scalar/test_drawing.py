"""What is in a drawing: vertices, edges, texts, and which of them are lit; where they are, only roughly."""

from __future__ import annotations

import re
from itertools import combinations

import networkx
import pytest
import torch
from hypothesis import given, settings
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from test_scalar import built, dags

from gradtrace import record
from gradtrace.errors import BadArgument
from gradtrace.scalar import BadGraph, Graph, backpropagate, best_path, draw, plain, to_dot
from gradtrace.scalar.drawing import FILL, LIT, texts
from gradtrace.scalar.layout import layout


def network() -> Graph:
    g = Graph()
    g.inputs(x=[2.0, 0.0])
    g.parameters(w=3.0)
    g.add("h", "*", "x", "w")
    g.add("r", "relu", "h")
    g.add("loss", lambda r, w: r.sum() * w, "r", "w")
    return g


def by_gid(figure) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in figure.axes[0].texts:
        found.setdefault(text.get_gid(), []).append(text.get_text())
    return found


def test_a_figure_says_what_the_graph_says():
    g = network()
    graph = g.scalars(keep_zero=True)
    found = by_gid(draw(g, notes=backpropagate(g, "loss"), title="a title"))
    assert found.pop(None) == ["a title"]
    assert found["x[0]"] == ["x[0]", "2", "9"]
    assert found["h[1]"] == ["h[1]  *", "0", "0"]
    assert found["loss"] == ["loss  f", "18", "1"]
    edges = {gid: said for gid, said in found.items() if "->" in gid}
    assert edges == {f"{v} -> {u} {k}": [f"{w:g}"] for v, u, k, w in graph.edges(keys=True, data="weight")}
    assert edges["h[1] -> r[1] 0"] == ["0"]  # off, and drawn all the same
    assert set(found) - set(edges) == set(graph)


def test_one_path_is_lit():
    g = network()
    path = best_path(g, "x[0]", "loss")
    assert path is not None
    figure = draw(g, path=path)
    lit = [t.get_gid() for t in figure.axes[0].texts if to_hex(t.get_color()) == LIT]
    assert sorted(lit) == sorted(f"{v} -> {u} {k}" for v, u, k in path.edges)
    lines = [p for p in figure.axes[0].patches if type(p).__name__ == "FancyArrowPatch"]
    assert sum(to_hex(p.get_edgecolor()) == LIT for p in lines) == len(path.edges)
    boxes = [p for p in figure.axes[0].patches if type(p).__name__ == "FancyBboxPatch"]
    assert sum(to_hex(p.get_edgecolor()) == LIT for p in boxes) == len(path.vertices)


def test_files_come_out_the_same_every_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw(network(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw(network(), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


@given(dags())
@settings(deadline=None, max_examples=50)
def test_layers_go_left_to_right_and_nothing_overlaps(dag):
    vertices, edges, orders = dag
    placed = layout(built(edges, orders, vertices))
    assert set(placed.at) == set(vertices)
    assert all(placed.at[v][0] < placed.at[u][0] for v, u, _ in edges)
    assert set(placed.routes) == {(v, u) for v, u, _ in edges}
    for (v, u), route in placed.routes.items():
        assert [n for n, _ in route] == list(range(placed.at[v][0], placed.at[u][0] + 1))
        assert (route[0], route[-1]) == (placed.at[v], placed.at[u])
    for a, b in combinations(placed.at.values(), 2):
        assert a[0] != b[0] or abs(a[1] - b[1]) > 0.999


def test_a_ladder_is_drawn_without_crossings():
    """Two lines that only their order in the graph has crossed."""
    graph = built([("a", "d", 1.0), ("b", "c", 1.0), ("c", "e", 1.0), ("d", "f", 1.0)], vertices="abcdef")
    at = layout(graph).at
    assert (at["a"][1] < at["b"][1]) == (at["d"][1] < at["c"][1]) == (at["f"][1] < at["e"][1])
    assert at["a"][1] == at["d"][1] == at["f"][1]  # and straight


def test_parameters_stand_beside_what_uses_them():
    graph = built([("x", "a", 1.0), ("a", "b", 1.0), ("b", "c", 1.0), ("w", "c", 1.0)])
    assert {v: n for v, (n, _) in layout(graph).at.items()} == {"x": 0, "a": 1, "b": 2, "c": 3, "w": 2}


def test_vectors_have_jacobians_on_their_edges():
    g = network()
    found = by_gid(draw(g.vectors()))
    assert found["x -> h 0"] == ["2×2"]
    assert found["x"] == ["x", "2 0"]


@settings(deadline=None, max_examples=50)
@given(dags())
def test_dot_has_every_vertex_and_edge(dag):
    vertices, edges, orders = dag
    text = to_dot(built(edges, orders, vertices))
    assert re.findall(r'^  "(\d)" \[label="(\d)"\]$', text, re.MULTILINE) == [(str(v), str(v)) for v in vertices]
    found = re.findall(r'^  "(\d)" -> "(\d)" \[label="([^"]*)"', text, re.MULTILINE)
    assert sorted(found) == sorted((str(v), str(u), f"{w:g}") for v, u, w in edges)


def test_dot_quotes_and_lights():
    graph = built([('say "x"', "y\\z", 2.0)])
    text = to_dot(graph, path=best_path(graph, 'say "x"', "y\\z"))
    assert r'"say \"x\"" -> "y\\z" [label="2" color="#d95f02" penwidth=2]' in text


@pytest.mark.parametrize("form", ["graphml", "gexf"])
def test_networkx_writes_and_reads_what_is_plain(form, tmp_path):
    graph = network().scalars()
    graph.nodes["w"]["nothing"] = None
    getattr(networkx, f"write_{form}")(plain(graph), tmp_path / f"g.{form}")
    read = getattr(networkx, f"read_{form}")(tmp_path / f"g.{form}")
    assert set(read) == set(graph)
    weights = sorted((v, u, w) for v, u, w in read.edges(data="weight"))
    assert weights == sorted((v, u, w) for v, u, w in graph.edges(data="weight"))
    assert all(read.nodes[v]["value"] == graph.nodes[v]["value"] for v in graph)


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(BadArgument, match=r"cannot draw to .*a\.xyz: Format 'xyz' is not supported"):
        draw(network(), tmp_path / "a.xyz")
    with pytest.raises(BadArgument, match=r"cannot draw to .*: .*No such file or directory"):
        draw(network(), tmp_path / "none" / "a.png")
    for drawn in (draw, to_dot):
        with pytest.raises(BadArgument, match="a path is what best_path, greedy_path and paths give, not a tuple"):
            drawn(network(), path=("x[0]", "loss"))
    with pytest.raises(BadGraph, match="no vertex yet"):
        draw(Graph())


def test_a_long_title_is_in_the_picture():
    figure = draw(network(), title="a title that is rather longer than the small graph below it is wide " * 2)
    title = next(t for t in figure.axes[0].texts if t.get_gid() is None)
    box = title.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_leaves_of_a_tape_have_the_colour_of_parameters():
    w = torch.tensor(2.0, requires_grad=True)
    with record(names={"w": w}) as tape:
        w.exp()
    boxes = [p for p in draw(tape).axes[0].patches if type(p).__name__ == "FancyBboxPatch"]
    assert [to_hex(p.get_facecolor()) for p in boxes] == [FILL["parameter"], "#ffffff"]


def test_a_vector_is_written_as_its_numbers():
    assert texts(network().vectors()).vertices["h"] == ("h  *", "6 0")
    g = Graph()
    g.inputs(x=[1.0, 2.0])
    g.parameters(W=[[0.5, 1.0]] * 7)
    g.add("y", "@", "W", "x")
    assert texts(g.vectors(), notes={"W": g["W"].value}).vertices["W"] == ("W", "7×2", "7×2")  # too many to write
    assert texts(g.vectors()).vertices["y"] == ("y  @", "2.5 2.5 2.5 2.5 2.5 2.5 2.5")


def test_a_notebook_shows_a_drawing_by_itself():
    g = Graph()
    g.inputs(x=1.0)
    g.add("y", "exp", "x")
    shown = draw(g)._repr_svg_()  # type: ignore[attr-defined]
    assert shown.lstrip().startswith("<?xml")
    assert "<!-- y  exp -->" in shown
