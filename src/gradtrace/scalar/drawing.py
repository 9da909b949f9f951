"""Pictures of a graph: values on its vertices, derivatives on its edges, one path lit.

`draw` needs matplotlib (`pip install gradtrace[draw]`), and is readable up to about 60 vertices. `to_dot` writes for
Graphviz; `plain` is a copy that networkx can write as GraphML or GEXF.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx

from ..errors import BadArgument
from .graph import BadGraph, Vertex, is_symbolic, refuse_others
from .layout import Layout, layout
from .passes import multigraph
from .paths import ScalarPath
from .tables import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .passes import Source

# in inches
COLUMN_GAP, ROW_GAP, LETTER, LINE, MARGIN = 1.0, 0.22, 0.084, 0.16, 0.2
LIT, INK, PALE, FILL = "#d95f02", "#333333", "#9a9a9a", {"input": "#e8f1fa", "parameter": "#fdf3dc"}
STYLES: tuple[dict[str, Any], ...] = ({"weight": "bold"}, {}, {"color": "#1b6ca8", "style": "italic"})  # line by line
WIDE = 32  # letters that a vector or matrix has, if it is written out
SAME = (-0.16, 0.16)  # between which parallel edges are bent


@dataclass(frozen=True)
class Text:
    """What is written about a vertex, line by line, and about an edge."""

    vertices: Mapping[Vertex, tuple[str, ...]]
    edges: Mapping[tuple[Vertex, Vertex, Hashable], str]


def texts(graph: networkx.MultiDiGraph, notes: Mapping[Any, Any] | None = None) -> Text:
    """Say what a drawing says: of a vertex its name and function, its value, a note; of an edge its derivative."""
    notes = notes or {}
    vertices = {}
    for v, data in graph.nodes(data=True):
        name = str(v) if isinstance(v, str) or "name" not in data else data["name"]
        function = data.get("function")
        lines = [f"{name}  {function}" if function and function not in name else name]
        if data.get("value") is not None:
            lines.append(_value(data["value"]))
        if v in notes:
            lines.append(written(notes[v]) if not hasattr(notes[v], "tolist") else _value(notes[v]))
        vertices[v] = tuple(lines)
    edges = {(v, u, k): data["label"] if "label" in data else _value(data.get("weight"))
             for v, u, k, data in graph.edges(keys=True, data=True)}  # fmt: skip
    return Text(vertices, edges)


def _value(value: Any) -> str:
    """Write a number, a vector or matrix of a few, or the shape of a larger one."""
    numbers = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(numbers, list):
        return written(numbers)
    rows = numbers if numbers and isinstance(numbers[0], list) else [numbers]
    said = "; ".join(" ".join(map(written, row)) for row in rows)
    return said if len(said) <= WIDE else "×".join(map(str, value.shape))


def draw(
    graph: Source,
    file: str | File | None = None,
    *,
    path: ScalarPath | None = None,
    notes: Mapping[Any, Any] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a graph, layers from left to right, with values on its vertices and derivatives on its edges.

    Args:
        graph: a scalar graph, or a `Graph`, which is written out first; `graph.vectors()` has a vertex for each node.
        file: where to save it: .png, .svg or .pdf.
        path: one to light up.
        notes: what to write on vertices below their values: `backpropagate(…)`, say.
        title: above it.

    Returns:
        the matplotlib figure. Every text in it has the vertex, or edge, as its gid.

    Raises:
        BadArgument: matplotlib is not installed, or cannot write this file; or `path` is none.
        BadGraph: the graph has no vertex, or is none of these.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadArgument("draw needs matplotlib: pip install 'gradtrace[draw]'; to_dot needs nothing") from None
    graph = _whole(graph)
    lit = _edges(path)
    said, placed = texts(graph, notes), layout(graph)
    size = {v: (LETTER * max(map(len, t)) + 0.14, LINE * len(t) + 0.1) for v, t in said.vertices.items()}
    across = _across(placed, said, size)
    down = max((h for _, h in size.values()), default=0.0) + ROW_GAP
    at = {v: (across[n], -down * y) for v, (n, y) in placed.at.items()}
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    _fit(figure, axes, at, size, title)
    routes = {pair: [(across[n], -down * y) for n, y in route] for pair, route in placed.routes.items()}
    _draw_edges(axes, graph, said, routes, {v: w for v, (w, _) in size.items()}, lit)
    on_path = set(path.vertices) if path else set()
    for v, lines in said.vertices.items():
        kind = graph.nodes[v].get("kind", "parameter" if graph.nodes[v].get("leaf") else "")
        _draw_vertex(axes, v, lines, at[v], size[v], kind, lit=v in on_path)
    if file is not None:
        save(figure, file)
    vars(figure)["_repr_svg_"] = partial(_svg, figure)  # so that a notebook shows it, whatever else it has set up
    return figure


def _svg(figure: Figure) -> str:
    picture = StringIO()
    figure.savefig(picture, format="svg")
    return picture.getvalue()


def _whole(graph: Source) -> networkx.MultiDiGraph:
    """Write a `Graph` out, with the edges that have weight 0: where they are missing, something seems unconnected."""
    found = multigraph(graph, keep_zero=True)
    refuse_others(found)
    if not found:
        raise BadGraph("the graph has no vertex yet: there is nothing to draw")
    return found


def _edges(path: ScalarPath | None) -> set:
    if path is not None and not isinstance(path, ScalarPath):
        raise BadArgument(f"a path is what best_path, greedy_path and paths give, not a {type(path).__name__}")
    return set(path.edges) if path else set()


def _across(placed: Layout, said: Text, size: Mapping[Vertex, tuple[float, float]]) -> dict[int, float]:
    """Give where each column has its middle: wide enough for its vertices, and far enough apart for edges' texts."""
    found, x = {}, 0.0
    for n in sorted({n for n, _ in placed.at.values()}):
        width = max(size[v][0] for v, (m, _) in placed.at.items() if m == n)
        label = max((len(text) for (v, _, _), text in said.edges.items() if placed.at[v][0] == n), default=0)
        found[n] = x + width / 2
        x += width + max(COLUMN_GAP, LETTER * label + 0.5)
    return found


def _draw_vertex(
    axes: Axes, v: Vertex, lines: tuple[str, ...], at: tuple[float, float], size: tuple[float, float], kind: str,
    *, lit: bool,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = at, size
    corner, colour = (x - width / 2, y - height / 2), LIT if lit else INK
    shape = f"round,pad=0,rounding_size={min(0.08, height / 4)}"
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=FILL.get(kind, "white"), ec=colour,
                                  lw=2 if lit else 0.8, zorder=3))  # fmt: skip
    top = y + LINE * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        style = STYLES[number] if number < len(STYLES) else {}
        axes.text(
            x, top - LINE * number, line, ha="center", va="center_baseline", fontsize=9, zorder=4, gid=str(v), **style
        )


def save(figure: Figure, file: str | File) -> None:
    """Save a figure; an SVG comes out the same every time."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "gradtrace"}):
        metadata = {"Date": None} if str(file).endswith(".svg") else None
        try:
            figure.savefig(file, dpi=110, metadata=metadata)
        except (OSError, ValueError) as error:
            raise BadArgument(f"cannot draw to {file}: {error}") from None


def _fit(
    figure: Figure, axes: Axes, at: Mapping[Vertex, tuple[float, float]], size: Mapping, title: str | None
) -> None:
    """Make one unit an inch, and the figure as large as what is in it."""
    left, right = (f(x + s * size[v][0] / 2 for v, (x, _) in at.items()) for f, s in ((min, -1), (max, 1)))
    beyond = max(0.0, LETTER * len(title or "") - (right - left)) / 2  # a title is wider than a small graph
    left, right = left - beyond, right + beyond
    low, high = (f(y + s * size[v][1] / 2 for v, (_, y) in at.items()) for f, s in ((min, -1), (max, 1)))
    low, high = low - MARGIN, high + MARGIN + (0.3 if title else 0)
    axes.set(xlim=(left - MARGIN, right + MARGIN), ylim=(low, high))
    figure.set_size_inches(right - left + 2 * MARGIN, high - low)
    axes.axis("off")
    if title:
        axes.text((left + right) / 2, high - 0.2, title, ha="center", va="center", fontsize=10)


def _draw_edges(axes: Axes, graph: Any, said: Text, routes: Mapping, width: Mapping[Vertex, float], lit: set) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    arriving: dict[Vertex, int] = dict.fromkeys(graph, 0)
    taken: list[Box] = []
    for (v, u), route in routes.items():
        keys = list(graph[v][u])
        for number, key in enumerate(keys):
            bend = 0.0 if len(keys) == 1 else SAME[0] + (SAME[1] - SAME[0]) * number / (len(keys) - 1)
            points = _curve(route, width[v] / 2, width[u] / 2, bend)
            on, zero = (v, u, key) in lit, graph.edges[v, u, key].get("weight") == 0
            line = Path(points, [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1))
            axes.add_patch(
                FancyArrowPatch(
                    path=line, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=LIT if on else PALE,
                    lw=2.2 if on else 0.9, linestyle=":" if zero else "-", zorder=2 if on else 1,
                )
            )  # fmt: skip
            text, share = said.edges[v, u, key], graph.in_degree(u)
            first = 0.5 if share == 1 else 0.28 + 0.44 * arriving[u] / (share - 1)
            arriving[u] += 1
            place = _free(points[:4], first, len(text), taken)
            axes.text(*place, text, ha="center", va="center", fontsize=7.5, gid=f"{v} -> {u} {key}",
                      color=LIT if on else INK, zorder=2.5,
                      bbox={"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none", "alpha": 0.85})  # fmt: skip


Box: TypeAlias = tuple[float, float, float]  # middle, and half the width, of a text; all are of one height


def _free(points: list[tuple[float, float]], first: float, letters: int, taken: list[Box]) -> tuple[float, float]:
    """Give a place along a curve where no other text is, the nearest to the first; that one where there is none."""
    half = 0.033 * letters + 0.03
    for t in sorted((n / 50 for n in range(10, 41)), key=lambda t: abs(t - first)):
        x, y = _on_curve(points, t)
        if all(abs(x - x2) >= half + half2 or abs(y - y2) >= 0.13 for x2, y2, half2 in taken):
            break
    else:
        x, y = _on_curve(points, first)
    taken.append((x, y, half))
    return x, y


def _curve(route: list[tuple[float, float]], before: float, after: float, bend: float) -> list[tuple[float, float]]:
    """Give cubic Bézier points through a route, from the border of one vertex to that of another."""
    ends = [(route[0][0] + before, route[0][1]), *route[1:-1], (route[-1][0] - after, route[-1][1])]
    points = [ends[0]]
    for (x, y), (x2, y2) in pairwise(ends):
        middle = (x + x2) / 2
        points += [(middle, y + 1.33 * bend), (middle, y2 + 1.33 * bend), (x2, y2)]
    return points


def _on_curve(points: list[tuple[float, float]], t: float) -> tuple[float, float]:
    s = 1 - t
    weights = (s**3, 3 * s * s * t, 3 * s * t * t, t**3)
    return sum(w * x for w, (x, _) in zip(weights, points, strict=True)), sum(
        w * y for w, (_, y) in zip(weights, points, strict=True)
    )


# ---------------------------------------------------------------- for other programs


def to_dot(graph: Source, *, path: ScalarPath | None = None, notes: Mapping[Any, Any] | None = None) -> str:
    """Write a graph for Graphviz, with what `draw` would show.

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=3.0)
    >>> print(to_dot(graph))
    digraph {
      rankdir=LR
      node [shape=box style=rounded]
      "x" [label="x"]
      "y" [label="y"]
      "x" -> "y" [label="3"]
    }
    """
    graph = _whole(graph)
    said, lit = texts(graph, notes), _edges(path)
    on_path = set(path.vertices) if path else set()
    lines = ["digraph {", "  rankdir=LR", "  node [shape=box style=rounded]"]
    for v, parts in said.vertices.items():
        lines.append(f"  {_quoted(str(v))} [label={_quoted(chr(10).join(parts))}{_lit(v in on_path)}]")
    for (v, u, key), label in said.edges.items():
        dotted = " style=dotted" if graph.edges[v, u, key].get("weight") == 0 else ""
        lines.append(
            f"  {_quoted(str(v))} -> {_quoted(str(u))} [label={_quoted(label)}{_lit((v, u, key) in lit)}{dotted}]"
        )
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _lit(on: bool) -> str:
    return f' color="{LIT}" penwidth=2' if on else ""


def plain(graph: Source) -> networkx.MultiDiGraph:
    """Give a copy that `networkx.write_graphml` and `write_gexf` can write: names, numbers and texts only.

    >>> import io
    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge(("w", 0), "y", weight=3.0, order=(1, 0))
    >>> networkx.write_graphml(plain(graph), io.BytesIO())
    """
    graph = multigraph(graph)
    refuse_others(graph)
    found = networkx.MultiDiGraph()
    for v, data in graph.nodes(data=True):
        found.add_node(str(v), **_plain(data))
    for v, u, data in graph.edges(data=True):
        found.add_edge(str(v), str(u), **_plain(data))
    return found


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keep numbers; write other things, exact numbers among them, as texts; leave out what there is not."""
    out = {}
    for name, value in data.items():
        if isinstance(value, (bool, int, float, str)):
            out[name] = value
        elif value is not None:
            out[name] = _value(value) if hasattr(value, "tolist") or is_symbolic(value) else str(value)
    return out
