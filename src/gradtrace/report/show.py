"""`gradtrace show`: the figures of a report as tables, and what changed as sparklines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..queries.summaries import lines
from .fold import label_of, links_at
from .terminal import chains, outcomes, plain
from .words import percent

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], low: float | None = None, high: float | None = None) -> str:
    """Draw numbers as bars, from the lowest to the highest; a gap where there is none.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    known = [v for v in values if v is not None]
    if not known:
        return " " * len(values)
    low, high = min(known) if low is None else low, max(known) if high is None else high
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(
        " " if v is None else BARS[max(0, min(len(BARS) - 1, math.floor((v - low) / step + 0.5)))] for v in values
    )


def show(document: Mapping[str, Any], console: Console, most: int = 12) -> None:
    """Print a report's document: what the page shows, in the same order."""
    plain(console, document["title"])
    for sentence in document["headline"]:
        plain(console, sentence)
    last = document["snapshots"][-1]
    at = "" if last["step"] is None else f" at step {last['step']}"
    for flow in last["flows"][:4]:
        plain(console, f"\nFlow from {flow['of']}, {flow['kind']} paths{at}: most used ways between components")
        console.print(_flow(document["graph"], flow, most))
    plain(console, f"\nInfluence{at}")
    console.print(_influence(last["influence"]))
    for kind, paths in last["paths"].items():
        plain(console, f"\nStrongest of the {kind} paths{at}")
        console.print(_paths(document["graph"], paths, most))
    for answer in document.get("semirings", []):
        batch = f"batch {answer['batch']}, " if document["semirings"][-1]["batch"] else ""
        plain(console, f"\n{batch}" + "\n".join(lines(answer)))
    if len(document["snapshots"]) > 1:
        first = document["snapshots"][0]["step"]
        plain(console, f"\nTraining, steps {first} to {last['step']}")
        console.print(_timeline(document))
    if document.get("ablation"):
        plain(console, "\nAblation")
        console.print(outcomes(document["ablation"]))
        if cumulative := document["ablation"].get("cumulative"):
            console.print(chains(cumulative))
            plain(console, cumulative["sentence"])
        plain(console, document["agreement"]["sentence"])
    plain(console, "\nProvenance")
    console.print(_provenance(document["provenance"]))


def _table(*headings: str, text: int = 1) -> Table:
    """Make a table whose first columns are text and the others numbers; names are never markup."""
    table = Table()
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < text else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _flow(graph: Mapping[str, Any], flow: Mapping[str, Any], most: int) -> Table:
    table = _table("from", "to", "paths", "share", "of weight", text=2)
    links = sorted(links_at(graph, flow).items(), key=lambda link: -link[1][0])
    for (source, target), (paths, weight) in links[:most]:
        shares = percent(paths / flow["total"]), percent(weight / flow["weight"] if flow["weight"] else None)
        _add(table, label_of(graph, source), label_of(graph, target), f"{paths:,g}", *shares)
    return table


def _influence(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("parameters", "traces", "component", "share", "weighted", "dead", "examples", text=3)
    for row in rows:
        inside = f"{row['component']}{' (parameters inside)' if row['inside'] else ''}"
        inside += "" if row.get("seen", True) else " (not seen)"
        shares = [percent(row[key]) for key in ("share", "weighted_share", "dead_share")]
        _add(table, row["of"], row["kind"], inside, *shares, str(row["examples"]))
    return table


def _paths(graph: Mapping[str, Any], paths: Mapping[str, Any], most: int) -> Table:
    table = _table("parameter", "index", "crosses", "log2 weight", text=3)
    starts = paths["starts"]
    if not starts:
        return table
    modules = dict(zip(graph["calls"]["number"], graph["calls"]["module"], strict=True))
    columns = zip(*(starts[key] for key in ("leaf", "index", "first", "log2")), strict=True)
    once: dict[tuple[int, ...], tuple[Any, ...]] = {}  # a scalar may be there in several examples, the strongest first
    for row in columns:
        once.setdefault((row[0], *row[1]), row)
    for leaf, index, first, log2 in [*once.values()][:most]:
        crossed, at = [], first
        while at >= 0:
            crossed.append(modules[paths["steps"]["call"][at]])
            at = paths["steps"]["next"][at]
        names = " → ".join(dict.fromkeys(name for name in crossed if name))
        _add(table, graph["parameters"]["name"][leaf], str(index), names, "–" if log2 is None else f"{log2:.2f}")
    return table


def _timeline(document: Mapping[str, Any]) -> Table:
    table = _table("figure", "", "first", "last", text=2)
    snapshots = document["snapshots"]
    for row in snapshots[0]["influence"]:
        same = [_same(s["influence"], row)["share"] for s in snapshots]
        ends = percent(same[0]), percent(same[-1])
        _add(table, f"{row['component']}, share of {row['kind']} paths", sparkline(same, 0.0, 1.0), *ends)
    measured = "held-out" if document["kind"] == "compete" else "training"
    for run in document.get("training", []):
        losses = [e["loss"] for e in run["evaluations"]]
        if losses:
            ends = ("–" if loss is None else f"{loss:.3f}" for loss in (losses[0], losses[-1]))
            _add(table, f"{measured} loss, {run['name']}", sparkline(losses), *ends)
    return table


def _same(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    keys = ("of", "kind", "component")
    return next(r for r in rows if all(r[k] == wanted[k] for k in keys))


def _provenance(sections: Sequence[Sequence[Any]]) -> Table:
    table = _table("", "", "", text=3)
    for name, entries in sections:
        for i, (key, value) in enumerate(entries):
            _add(table, "" if i else name, key, value)
    return table
