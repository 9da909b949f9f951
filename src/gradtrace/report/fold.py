"""The flow at the cut that a report shows first, in Python: for the terminal, and to compare the page with.

It is the same fold that web/src/cut.ts does for any cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

LOSS = "loss"


def shown_for(tree: Mapping[str, Any], opened: Iterable[int]) -> list[int]:
    """Give for each node the one that shows in its place; parents come before their children."""
    is_open, unfolded, shown = set(opened), [], []
    for n, parent in enumerate(tree["parent"]):
        visible = parent < 0 or unfolded[parent]
        unfolded.append(visible and n in is_open)
        shown.append(n if visible else shown[parent])
    return shown


def links_at(
    graph: Mapping[str, Any], flow: Mapping[str, Any], opened: Iterable[int] | None = None
) -> dict[tuple[str, str], tuple[float, float]]:
    """Give (paths, weight) from node to node: "m3" is module node 3, "p2" parameter node 2, and "loss"."""
    modules, groups = graph["modules"], graph["groups"]
    at_module = shown_for(modules, modules["open"] if opened is None else opened)
    at_group = shown_for(groups, groups["open"])
    of_call = {item: n for n, item in enumerate(modules["item"]) if item >= 0}
    of_leaf = {item: n for n, item in enumerate(groups["item"]) if item >= 0}

    def name(end: int) -> str:
        return f"p{at_group[of_leaf[-1 - end]]}" if end < 0 else f"m{at_module[of_call[end]]}"

    found: dict[tuple[str, str], tuple[float, float]] = {}
    columns = (flow[key] for key in ("source", "target", "paths", "weights"))
    for source, target, paths, weight in zip(*columns, strict=True):
        ends = name(source), name(target)
        if ends[0] != ends[1]:
            before = found.get(ends, (0.0, 0.0))
            found[ends] = before[0] + paths, before[1] + weight
    if flow["total"]:
        found[name(graph["calls"]["number"][-1]), LOSS] = flow["total"], flow["weight"]
    return found


def label_of(graph: Mapping[str, Any], end: str) -> str:
    """Give the name of a node of `links_at`."""
    if end == LOSS:
        return LOSS
    tree = graph["modules" if end[0] == "m" else "groups"]
    n = int(end[1:])
    return tree["label"][n] if tree["kind"][n] in ("operator", "operators") else tree["name"][n] or tree["label"][n]
