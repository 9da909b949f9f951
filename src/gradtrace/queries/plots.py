"""Tables as matplotlib draws them; each gives the axes that it drew on. They need `pip install 'gradtrace[draw]'`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BadArgument
from .group_names import group_named
from .join_text import cell, labels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .flow import Flow
    from .influence import InfluenceTable
    from .joins import JoinTable

MOST_LINKS = 20
COLOURS = "cividis"


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Give the axes that were given, or new ones.

    Raises:
        BadArgument: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        raise BadArgument("plot needs matplotlib: pip install 'gradtrace[draw]'") from None
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def plot_influence(table: InfluenceTable, ax: Axes | None = None) -> Axes:
    """Draw a bar for each component, and a thinner one of its weighted share."""
    rows = [r for r in table.rows if not math.isnan(r.share)]
    rows.sort(key=lambda r: r.share)
    ax = axes(ax, 6.4, 0.7 + 0.32 * len(rows))
    names, at = [r.component for r in rows], range(len(rows))
    ax.barh(at, [r.share for r in rows], 0.7, label="paths", color="#0b5fa5")
    ax.barh(at, [r.weighted_share for r in rows], 0.25, label="by weight", color="#e69f00")
    ax.set_yticks(at, names)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"share of the {table.kind} paths from {group_named(table.of, table.of_all)}")
    ax.legend(loc="lower right")
    return ax


def plot_joins(table: JoinTable, ax: Axes | None = None, pattern: str | None = None) -> Axes:
    """Draw one grid: layers down, branches across.

    Args:
        pattern: of which grid; by default the one to which most paths come.

    Raises:
        BadArgument: the table has no such grid; the message lists those that it has.
    """
    grids = [g for g in table.grids() if pattern in (None, g.pattern)]
    if not grids:
        there = ", ".join(dict.fromkeys(repr(g.pattern) for g in table.grids())) or "none"
        raise BadArgument(f"no joins at {pattern!r}; there are {there}")
    grid = max(grids, key=lambda g: sum(j.paths for j in g.joins))
    shares, labels = grid.shares(), labels_of(grid.joins)
    ax = axes(ax, 2.4 + 0.9 * len(grid.branches), 1.2 + 0.3 * len(labels))
    ax.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(grid.branches)), grid.branches, rotation=30, ha="right")
    ax.set_yticks(range(len(labels)), labels)
    for (row, column), share in _numbered(shares):
        if not math.isnan(share):
            ax.text(column, row, cell(share), ha="center", va="center", color="black" if share > 0.5 else "white")
    ax.set_title(
        f"{grid.operator} in {grid.pattern}: % of the paths that had a choice" if grid.pattern else grid.operator
    )
    return ax


def _numbered(shares: Any) -> list[tuple[tuple[int, int], float]]:
    return [((r, c), float(share)) for r, row in enumerate(shares) for c, share in enumerate(row)]


def plot_flow(flow: Flow, ax: Axes | None = None) -> Axes:
    """Draw a bar for each of the links between modules that most paths take."""
    links = sorted(flow.links, key=lambda link: -link.paths)[:MOST_LINKS][::-1]
    ax = axes(ax, 7.2, 0.7 + 0.28 * len(links))
    names = [f"{link.source or '(top)'} → {link.target or '(top)'}" for link in links]
    at = range(len(links))
    ax.barh(at, [link.paths / (flow.total or 1) for link in links], 0.7, color="#0b5fa5")
    ax.set_yticks(at, names)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"share of the {flow.kind} paths")
    return ax


def plot_history(traces: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw the share of each component over the steps of a training, for the first group of parameters."""
    ax = axes(ax, 6.4, 4.0)
    rows = traces[0]["influence"] if traces else []
    first = [(r["of"], r["kind"]) for r in rows[:1]]
    for row in rows:
        if (row["of"], row["kind"]) not in first:
            continue
        key = tuple(row[k] for k in ("of", "kind", "component"))
        points = [
            (t["step"], r["share"])
            for t in traces
            for r in t["influence"]
            if tuple(r[k] for k in ("of", "kind", "component")) == key and r["share"] is not None
        ]
        ax.plot([step for step, _ in points], [share for _, share in points], marker="o", label=row["component"])
    ax.set_ylim(0, 1)
    ax.set_xlabel("step")
    ax.set_ylabel("share of the paths" + "".join(f" from {of} ({kind})" for of, kind in first))
    if rows:
        ax.legend()
    return ax
