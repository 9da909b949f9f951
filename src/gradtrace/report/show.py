"""`gradtrace show`: the figures of a report as tables, and what changed as sparklines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ..queries.group_names import listed
from .fold import label_of, links_at
from .tables import put
from .terminal import ENDS, chains, outcomes, plain, said, show_answer
from .words import percent

BARS = "▁▂▃▄▅▆▇█"
LINES = 48  # two screens of a small terminal
FEW, ALL = 5, 12  # rows of a table


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


@dataclass(frozen=True)
class Part:
    """A part of what is shown.

    Attributes:
        rank: the lower, the sooner it finds room.
        draw: prints it.
    """

    name: str
    rank: int
    draw: Callable[[Console], None]


def show(document: Mapping[str, Any], console: Console, *, whole: bool = False) -> None:
    """Print a report's document, what was found last, so that it stays on the screen.

    Args:
        whole: print all that the page shows; else what two screens hold.
    """
    said(console, document["title"])
    parts = [part for part in _parts(document, ALL if whole else FEW, whole=whole) if part is not None]
    verdict = Part("what was found", 0, lambda out: _found(document, out))
    texts = {part.name: _drawn(part, console) for part in [*parts, verdict]}
    kept, room = {verdict.name}, LINES - 2 - texts[verdict.name].count("\n")
    for part in sorted(parts, key=lambda part: part.rank):
        if whole or texts[part.name].count("\n") <= room:
            kept.add(part.name)
            room -= texts[part.name].count("\n")
    for part in [*parts, verdict]:
        if part.name in kept:
            part.draw(console)
    if left := [part.name for part in parts if part.name not in kept]:
        said(console, f"--all shows the rest: {listed(left)} as well, and longer tables")
    elif not whole:
        said(console, "--all shows longer tables")


def _drawn(part: Part, console: Console) -> str:
    with console.capture() as taken:
        part.draw(console)
    return taken.get()


def _parts(document: Mapping[str, Any], most: int, *, whole: bool) -> list[Part | None]:
    """List what there is, in the order of the page."""
    last, graph = document["snapshots"][-1], document["graph"]
    kind, ablation = next(iter(last["paths"]), "best"), document.get("ablation")
    tables = [
        t for t in last.get("joins") or [] if t["grids"] and (whole or (t["table"], t["kind"]) == ("early", kind))
    ]
    several = len(document["snapshots"]) > 1
    return [
        Part("joins", 3, lambda out: _joins(tables, most, out)) if tables else None,
        Part("flow", 7, lambda out: _flows(graph, _living(last["flows"])[: 4 if whole else 1], most, out)),
        Part("influence", 2, lambda out: _influence(last["influence"], most, out, whole=whole)),
        Part("strongest paths", 5, lambda out: _all_paths(graph, last["paths"], most, out, whole=whole)),
        Part("semirings", 4, lambda out: _answers(document["semirings"], most, out, whole=whole))
        if document.get("semirings")
        else None,
        Part("training", 3, lambda out: _training(document, out)) if several else None,
        Part("ablation", 1, lambda out: _ablation(document, out)) if ablation else None,
        Part("provenance", 9, lambda out: _provenance(document["provenance"], out)) if whole else None,
    ]


def _found(document: Mapping[str, Any], console: Console) -> None:
    step = document["snapshots"][-1]["step"]
    plain(console, "\nWhat was found" + ("" if step is None or document["kind"] != "compete" else " in training"))
    for sentence in document["headline"]:
        said(console, sentence, "- ")


def _joins(tables: Sequence[Mapping[str, Any]], most: int, console: Console) -> None:
    for table in tables:
        names = table["of"]
        of = f"all {table['of_all']} parameters" if len(names) == table["of_all"] else listed(names)
        said(console, f"\nJoins, {table['kind']} paths from {of}: by which branch they come")
        grids = sorted(table["grids"], key=lambda g: -sum(j["share"] or 0 for j in g["joins"]))
        for grid in grids[: max(1, most // 4)]:
            rows = [
                [label, percent(join["share"]), *(_share(join["branches"].get(b)) for b in grid["branches"])]
                for label, join in zip(grid["labels"], grid["joins"], strict=True)
            ]
            put(console, [grid["operator"], "paths", *grid["branches"]], rows[:most])
            _rest(console, len(rows) - most)


def _share(branch: Sequence[float] | None) -> str:
    return "" if branch is None else percent(branch[1])


def _rest(console: Console, more: int) -> None:
    if more > 0:
        plain(console, f"and {more} more")


def _living(flows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Leave out the groups without a path, if others have one."""
    return [flow for flow in flows if flow["total"]] or flows


def _flows(graph: Mapping[str, Any], flows: Sequence[Mapping[str, Any]], most: int, console: Console) -> None:
    for flow in flows:
        said(console, f"\nFlow from {flow['of']}, {flow['kind']} paths: most used ways between components")
        links = sorted(links_at(graph, flow).items(), key=lambda link: -link[1][0])
        rows = []
        for (source, target), (paths, weight) in links[:most]:
            shares = percent(paths / flow["total"]), percent(weight / flow["weight"] if flow["weight"] else None)
            rows.append([label_of(graph, source), label_of(graph, target), f"{paths:,g}", *shares])
        put(console, ["from", "to", "paths", "share", "of weight"], rows, text=2)


def _influence(rows: Sequence[Mapping[str, Any]], most: int, console: Console, *, whole: bool) -> None:
    groups = list(dict.fromkeys(row["of"] for row in rows))
    living = list(dict.fromkeys(row["of"] for row in rows if row["dead_share"] != 1)) or groups
    for of in groups if whole else living[:1]:
        said(console, f"\nInfluence on {of}: whose parameters these are is marked with *")
        own = [row for row in rows if row["of"] == of]
        cells = [
            [
                row["component"] + ("*" if row["inside"] else "") + ("" if row.get("seen", True) else " (not seen)"),
                row["kind"],
                *(percent(row[key]) for key in ("share", "weighted_share", "dead_share")),
                str(row["examples"]),
            ]
            for row in own
        ]
        headings = ["component", "traces", "share", "weighted", "dead", "examples"]
        put(console, headings, cells if whole else cells[: 2 * most], text=2)
        _rest(console, 0 if whole else len(cells) - 2 * most)


def _all_paths(graph: Mapping[str, Any], kinds: Mapping[str, Any], most: int, console: Console, *, whole: bool) -> None:
    for kind, paths in [*kinds.items()][: None if whole else 1]:
        plain(console, f"\nStrongest of the {kind} paths")
        put(console, ["parameter", "index", "crosses", "log2 weight"], _paths(graph, paths, most), text=3)


def _paths(graph: Mapping[str, Any], paths: Mapping[str, Any], most: int) -> list[list[str]]:
    starts = paths["starts"]
    if not starts:
        return []
    modules = dict(zip(graph["calls"]["number"], graph["calls"]["module"], strict=True))
    rows = []
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
        name = graph["parameters"]["name"][leaf]
        rows.append([name, str(index), names, "–" if log2 is None else f"{log2:.2f}"])
    return rows


def _answers(answers: Sequence[Mapping[str, Any]], most: int, console: Console, *, whole: bool) -> None:
    for answer in answers if whole else [a for a in answers if a["batch"] == 0]:
        show_answer(answer, console, most, batches=answers[-1]["batch"] + 1, layers=not whole)


def _training(document: Mapping[str, Any], console: Console) -> None:
    first, last = (document["snapshots"][i]["step"] for i in (0, -1))
    plain(console, f"\nTraining, steps {first} to {last}")
    put(console, ["figure", "", "first", "last"], _timeline(document), text=2)


def _ablation(document: Mapping[str, Any], console: Console) -> None:
    said(console, f"\nAblation: {ENDS['score' in document['ablation']['full']]}")
    put(console, *outcomes(document["ablation"]))
    if cumulative := document["ablation"].get("cumulative"):
        put(console, *chains(cumulative))
    said(console, document["agreement"]["sentence"])


def _timeline(document: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    snapshots = document["snapshots"]
    for row in snapshots[0]["influence"]:
        same = [_same(s["influence"], row)["share"] for s in snapshots]
        ends = percent(same[0]), percent(same[-1])
        rows.append([f"{row['component']}, share of {row['kind']} paths", sparkline(same, 0.0, 1.0), *ends])
    measured = "held-out" if document["kind"] == "compete" else "training"
    for run in document.get("training", []):
        losses = [e["loss"] for e in run["evaluations"]]
        if losses:
            ends = ("–" if loss is None else f"{loss:.3f}" for loss in (losses[0], losses[-1]))
            rows.append([f"{measured} loss, {run['name']}", sparkline(losses), *ends])
    return rows


def _same(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    keys = ("of", "kind", "component")
    return next(r for r in rows if all(r[k] == wanted[k] for k in keys))


def _provenance(sections: Sequence[Sequence[Any]], console: Console) -> None:
    plain(console, "\nProvenance")
    rows = [["" if i else name, key, value] for name, entries in sections for i, (key, value) in enumerate(entries)]
    put(console, ["", "", ""], rows, text=3)
