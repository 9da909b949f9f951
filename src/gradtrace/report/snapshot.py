"""What a report shows of one trace, as plain data: the graph, and the flows, influence and paths of one moment.

The graph is that of the recording and stays the same from one training step to the next; a snapshot holds what
changes. Numbers mean what `Trace.flow`, `Trace.influence` and `Trace.path` say; nothing is computed anew here.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from math import fsum
from pathlib import Path
from typing import Any, Protocol

from ..backward.certificate import Certificate
from ..errors import BadArgument
from ..queries.arguments import components_of, kinds_of, whole
from ..queries.findings import Finding, dead_shares, earliest
from ..queries.flow import Asked, Flow, flows
from ..queries.flow import merged as merged_flows
from ..queries.forest import KINDS, Forest
from ..queries.group_names import group_named
from ..queries.influence import influences
from ..queries.join_rows import Branch, Grid, Join
from ..queries.join_text import labels_of
from ..queries.joins import JoinTable, Places
from ..queries.strongest import Strengths, of_all_strengths
from ..queries.summaries import Answerable
from ..queries.summary import summarise, tables_of
from ..queries.tables import InfluenceTable
from ..queries.tables import merged as merged_tables
from ..queries.zeros import briefly
from ..recording.components import Component, matches, name_of, operators, select_leaves
from ..recording.record import Call, Record, Value
from ..semirings import Family, named
from .branches import Scalar, branches
from .tokens import Texts, Tokens
from .tree import Node, Tree, call_tree, cut, open_at_first, parameter_tree

MOST_GROUPS = 16
MOST_COMPONENTS = 40
ALL = "*"
MOST_STEPS = 40_000  # of all kinds of paths: 1.5 MB of the 2 MB that a page may take for them
MOST_OWN = 24_000  # ribbons of single examples' flows: 0.25 MB; the groups that have no room show the flow of all


class Traced(Answerable, Protocol):
    """The part of a `Trace` that a report reads."""

    loss: float
    certificate: Certificate | None
    origin: dict[str, Any] | None

    @property
    def fallbacks(self) -> dict[str, int]:
        """Operators that the fallback serves, with their numbers of calls."""
        ...

    def forest(self, kind: str = ..., *, per_example: bool = ...) -> Forest:
        """Give the winners of a pass."""
        ...

    def influence(
        self, components: Any = ..., of: Any = ..., *, per_example: bool | None = ..., kind: str = ...
    ) -> InfluenceTable:
        """Tabulate what the traces of a group of parameters cross."""
        ...

    def joins(
        self, of: str | Sequence[str] = ..., *, kind: str = ..., per_example: bool | None = ..., signed: bool = ...
    ) -> JoinTable:
        """Tabulate the places where branches come together again."""
        ...


@dataclass(frozen=True)
class Question:
    """What a snapshot holds.

    Attributes:
        groups: parameter groups by the name that they show, each a glob or several; None for some that suit.
        components: what influence is asked of; None for those that the picture shows at first.
        kinds: "best", "greedy".
        paths: the k strongest of all, for each kind.
        each: how many of the strongest of each parameter, besides; these are what a search finds.
        tokens: the text of each example, batch × time.
        semirings: what else to ask of every parameter; the page shows `Entropy`, `Graded` and `Power`.
        per_example: trace each example on its own; by default if the recording knows the examples.
        joins: how many joins of a group, those that most paths come to; with 0 nobody looks for what stands out.
        cover: how many scalars more, of all parameters and of all strengths, as far as there is room.
        examples: up to how many examples have their own shares, and their own strongest paths; with more of them in the
            batch none has.
        signed: tell of each branch its part of the gradient, too, at the joins of the earliest parameters; takes a walk
            or more for each of them.
    """

    groups: Mapping[str, str | Sequence[str]] | None = None
    components: Sequence[Component] | None = None
    kinds: Sequence[str] = KINDS
    paths: int = 20
    each: int = 2
    tokens: Texts | None = None
    only: tuple[str, ...] = field(default=("*",))
    semirings: Sequence[Family | str] | str = ()
    per_example: bool | None = None
    joins: int = 300
    cover: int = 1000
    examples: int = 16
    signed: bool = False

    def __post_init__(self) -> None:
        if self.tokens is not None and not all(isinstance(t, (list, tuple)) for t in self.tokens):
            raise BadArgument("tokens must be lists of words, one for each example")
        if self.tokens is not None and len({len(t) for t in self.tokens}) > 1:
            raise BadArgument("tokens must be lists of equal length, one for each example")
        object.__setattr__(self, "kinds", kinds_of(self.kinds))
        object.__setattr__(self, "components", components_of(self.components))
        object.__setattr__(self, "paths", whole("paths", self.paths, 0))
        object.__setattr__(self, "each", whole("each", self.each, 0))
        for name in ("joins", "cover", "examples"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        if self.groups is not None and not isinstance(self.groups, Mapping):
            raise BadArgument(f"groups must give globs over parameters by name, not {type(self.groups).__name__}")
        if isinstance(self.semirings, str):
            object.__setattr__(self, "semirings", (self.semirings,))
        for semiring in self.semirings:
            named(semiring)


def question_of(fields: Mapping[str, Any]) -> Question:
    """Make a question of its fields by name.

    Raises:
        BadArgument: it has no such field; the message lists those that it has.
    """
    known = list(Question.__dataclass_fields__)
    strange = [name for name in fields if name not in known]
    if strange:
        raise BadArgument(f"a report does not know {', '.join(strange)}; it takes {', '.join(known)}")
    return Question(**fields)


def graph_of(trace: Traced) -> dict[str, Any]:
    """Describe the recording: operator calls that lead to the loss, parameters, and how both fold."""
    record = trace.tape.record
    calls, leaves = record.before(trace.root), list(record.leaves.values())
    links = [*dict.fromkeys(links_between(calls))]
    tree = call_tree(calls, links)
    shown = {source: short_source(source) for source in {c.source for c in calls}}
    return {
        "calls": {
            "number": [c.index for c in calls],
            "operator": [c.name for c in calls],
            "module": [c.module for c in calls],
            "source": [shown[c.source] for c in calls],
        },
        "parameters": {
            "name": [str(v.name) for v in leaves],
            "shape": [list(v.shape) for v in leaves],
            "also": dict(record.aliases),  # of shared ones, by a further name the first
        },
        "modules": tree.columns(),
        "groups": parameter_tree(leaves).columns(),
        "links": {"source": [a for a, _ in links], "target": [b for _, b in links]},
    }


def links_between(calls: Sequence[Call]) -> list[tuple[int, int]]:
    """Give which call's results go into which."""
    return [
        (i.value.call.index, call.index)
        for call in calls
        for i in call.inputs
        if i.value is not None and i.value.call is not None
    ]


def short_source(source: str) -> str:
    """Write a source line without the folders that only this machine has.

    >>> short_source("train.py:7")
    'train.py:7'
    """
    file, _, line = source.rpartition(":")
    path = Path(file)
    homes = [Path(p) for p in sys.path if p and path.is_absolute() and path.is_relative_to(p)]
    if not homes:
        return f"{path.name}:{line}" if file else source
    return f"{path.relative_to(max(homes, key=lambda p: len(p.parts))).as_posix()}:{line}"


@dataclass(frozen=True)
class Taken:
    """What a trace says at one moment, before it is written as a snapshot.

    Attributes:
        groups: names of the parameter groups.
        leaves: names of all leaves, by which flows count them.
        tables: by kind, a table of each group.
        flows: by kind, the flow of each group, counted and weighted.
        paths: by kind, as columns.
        joined: what stands out and the joins, and what is said of each example: of one process's examples only.
    """

    loss: float
    groups: tuple[str, ...]
    leaves: tuple[str, ...]
    tables: dict[str, list[InfluenceTable]]
    flows: dict[str, list[tuple[Flow, Flow]]]
    paths: dict[str, Any]
    joined: dict[str, Any] = field(default_factory=dict)


def snapshot(trace: Traced, question: Question) -> dict[str, Any]:
    """Take down flows, influence and paths of a trace."""
    return written(take(trace, question))


def take(trace: Traced, question: Question) -> Taken:
    """Ask for flows, influence and paths of a trace."""
    record = trace.tape.record
    apart = is_apart(record, question)
    groups = question.groups or _from_the_earliest(trace.forest(question.kinds[0], per_example=apart))
    components = list(question.components or default_components(trace))
    forests = {kind: trace.forest(kind, per_example=apart) for kind in question.kinds}
    tables = {kind: influences(forest, components, [*groups.values()]) for kind, forest in forests.items()}
    examples = range(_examples(next(iter(forests.values())), question))
    joined, tabled = (
        _joined(trace, forests, [*groups.values()], question, bool(examples)) if question.joins else ({}, [])
    )
    flowing = {kind: flows_of(forest, groups, by_example=bool(examples)) for kind, forest in forests.items()}
    if examples:
        own = _own_flows(flowing, len(examples))
        joined["examples"] = [_of_example(n, tables, tabled, question) | {"flows": own[n]} for n in examples]
    guide = forests.get("best") or forests[question.kinds[0]]  # strongest is what best paths are
    starts = starts_of(guide, question, groups)  # for every kind the same scalars
    return Taken(
        trace.loss,
        tuple(groups),
        tuple(record.leaves),
        tables,
        flowing,
        {kind: paths_of(f, starts, question.tokens, MOST_STEPS // len(forests)) for kind, f in forests.items()},
        joined,
    )


def _examples(forest: Forest, question: Question) -> int:
    """Give how many examples have figures of their own: none, where there are too many or one alone."""
    count = forest.labels.count if forest.labels is not None else 1
    return count if question.joins and 1 < count <= question.examples else 0


def together(parts: Sequence[Taken], flowing: Sequence[Taken], ranks: int) -> Taken:
    """Add up what was taken of different examples: paths are those of the first, and the loss is averaged over ranks.

    Args:
        ranks: how many there are, those without examples too.
        flowing: those among the parts whose programs took the first one's way, so that flows can be added.
    """
    first = parts[0]
    tables = {
        k: [merged_tables(same) for same in zip(*(p.tables[k] for p in parts), strict=True)] for k in first.tables
    }
    flows = {
        kind: [
            (merged_flows([plain for plain, _ in same]), merged_flows([heavy for _, heavy in same]))
            for same in zip(*(p.flows[kind] for p in flowing), strict=True)
        ]
        for kind in first.flows
    }
    return replace(first, loss=fsum(p.loss for p in parts) / ranks, tables=tables, flows=flows, joined={})


def written(taken: Taken) -> dict[str, Any]:
    """Write down what was taken as a report reads it."""
    number = {name: -1 - i for i, name in enumerate(taken.leaves)}
    return {
        "loss": taken.loss,
        "influence": [
            {"of": group, "kind": kind} | asdict(row)
            for n, group in enumerate(taken.groups)
            for kind in taken.tables
            for row in taken.tables[kind][n].rows
        ],
        "flows": [
            {"of": group, "kind": kind} | _columns(plain, heavy, number)
            for kind in taken.flows
            for group, (plain, heavy) in zip(taken.groups, taken.flows[kind], strict=True)
        ],
        "paths": taken.paths,
        "connected": sorted({briefly(at) for tables in taken.tables.values() for t in tables for at in t.connected}),
    } | taken.joined


def _joined(
    trace: Traced,
    forests: Mapping[str, Forest],
    groups: Sequence[str | Sequence[str]],
    question: Question,
    by_example: bool,
) -> tuple[dict[str, Any], list[JoinTable]]:
    """Give what stands out, by the first kind of trace, and the joins that it is read off, written and as they are."""
    whole = any(ALL in ([of] if isinstance(of, str) else of) for of in groups)
    of = None if whole else groups[0]  # what is said of all parameters is said from the earliest on
    places = Places(trace.tape.record, trace.root)
    first, *others = forests.values()
    said = summarise(first, trace.loss, of, places, by_example=by_example)
    pairs = [(said.early, said.whole), *(tables_of(f, of, places, by_example=by_example)[1:] for f in others)]
    tables = [named for pair in pairs for named in zip(("early", "all"), pair, strict=True)]
    kept = [_foremost(table, question.joins) for _, table in tables]
    if question.signed:
        apart = is_apart(trace.tape.record, question)
        measured = trace.joins(said.early.of, kind=said.early.kind, per_example=apart, signed=True)
        kept = [_with_parts(k, measured) if k.of == measured.of else k for k in kept]
    return {
        "findings": [_finding(f) for f in said.findings],
        "joins": [_joins(name, whole, shown) for (name, whole), shown in zip(tables, kept, strict=True)],
    }, kept


def _finding(finding: Finding) -> dict[str, Any]:
    keys = ("kind", "text", "figure", "paths", "strength")
    return {key: getattr(finding, key) for key in keys} | {"cells": [asdict(c) for c in finding.cells]}


def _with_parts(table: JoinTable, measured: JoinTable) -> JoinTable:
    """Put into a table what parts of the gradient another one of the same parameters measured."""
    known = {(join.call, join.operator): join.branches for join in measured.rows}
    rows = []
    for join in table.rows:
        found = known.get((join.call, join.operator), join.branches)
        branches = (replace(own, along=part.along) for own, part in zip(join.branches, found, strict=True))
        rows.append(replace(join, branches=tuple(branches)))
    return replace(table, rows=tuple(rows))


def _foremost(table: JoinTable, most: int) -> JoinTable:
    """Keep the joins to which most paths come."""
    kept = {id(join) for join in sorted(table.rows, key=lambda join: -join.paths)[:most]}
    return replace(table, rows=tuple(join for join in table.rows if id(join) in kept))


def _joins(name: str, whole: JoinTable, shown: JoinTable) -> dict[str, Any]:
    """Give a table of joins as grids, in which branches of layers that repeat have one name."""
    sources = {source: short_source(source) for source in {join.source for join in shown.rows}}
    return {
        "table": name,
        "of": list(whole.of),
        "of_all": whole.of_all,
        "kind": whole.kind,
        "paths": whole.paths,
        "left_out": len(whole.rows) - len(shown.rows),
        "grids": [
            {
                "pattern": grid.pattern,
                "operator": grid.title,
                "modules": any(join.modules for join in grid.joins),
                "branches": list(grid.branches),
                "labels": labels_of(grid.joins),
                "joins": [
                    {
                        "call": join.call,
                        "fork": join.fork,
                        "source": sources[join.source],
                        "paths": join.paths,
                        "share": join.share,
                        "branches": {b.name: _figures(b) for b in join.branches},
                    }
                    for join in grid.joins
                ],
            }
            for grid in shown.grids()
        ],
    }


def _figures(branch: Branch) -> list[Any]:
    own = [branch.paths, branch.share, branch.weighted_share]
    return own if math.isnan(branch.along) else [*own, _share(branch.along)]


def _of_example(
    number: int,
    tables: Mapping[str, Sequence[InfluenceTable]],
    joined: Sequence[JoinTable],
    question: Question,
) -> dict[str, Any]:
    """Give one example's numbers in the order in which those of all stand: shares of influence, and of joins."""
    groups = range(len(next(iter(tables.values()))))
    rows = [row for n in groups for kind in tables for row in tables[kind][n].by_example[number]]
    return {
        "tokens": next(iter([*(question.tokens or ())][number : number + 1]), None),
        "influence": [[*map(_share, (r.share, r.weighted_share, r.dead_share))] for r in rows],
        "joins": [_came(table, number) for table in joined],
    }


def _own_flows(flowing: Mapping[str, Sequence[tuple[Flow, Flow]]], examples: int) -> list[list[dict[str, Any]]]:
    """Give by example its flows in the order in which those of all stand: along their ribbons, while there is room."""
    out: list[list[dict[str, Any]]] = [[] for _ in range(examples)]
    room = MOST_OWN
    for plain, heavy in (pair for pairs in flowing.values() for pair in pairs):
        room -= len(plain.edges) * examples
        at = {(e.source, e.target): n for n, e in enumerate(heavy.edges)}
        places = [at.get((e.source, e.target), -1) for e in plain.edges]
        for own, count, weight in zip(out, plain.by_example, heavy.by_example, strict=True):
            found: dict[str, Any] = {"total": count.total, "weight": weight.total}
            if room >= 0:
                weights = [0.0 if n < 0 else weight.along[n] for n in places]
                found["paths"] = [*map(_whole, count.along)]
                found["weights"] = [_whole(float(f"{w:.4g}")) for w in weights]
            own.append(found)
    return out


def _came(table: JoinTable, number: int) -> list[list[list[Any]]]:
    """Give by grid and join the paths of an example that come by each branch of the grid that is there."""
    by_call = {(join.call, join.operator): join.by_example[number] for join in table.rows}
    return [[_row(grid, join, by_call[join.call, join.operator]) for join in grid.joins] for grid in table.grids()]


def _row(grid: Grid, join: Join, own: Sequence[Branch]) -> list[list[Any]]:
    of = dict(zip((b.name for b in join.branches), own, strict=True))
    return [[_whole(b.paths), _share(b.share), _share(b.weighted_share)] for n in grid.branches if (b := of.get(n))]


def _share(number: float) -> float | None:
    return None if number != number else float(f"{number:.4g}")


def is_apart(record: Record, question: Question) -> bool:
    """Tell whether each example is traced on its own."""
    return record.examples is not None if question.per_example is None else question.per_example


def flows_of(
    forest: Forest, groups: Mapping[str, str | Sequence[str]], *, by_example: bool = False
) -> list[tuple[Flow, Flow]]:
    """Give the flow of each group, counted and weighted."""
    asked = [Asked(of, weighted) for of in groups.values() for weighted in (False, True)]
    found = flows(forest, asked, by_example=by_example)
    return [*zip(found[::2], found[1::2], strict=True)]


def _columns(plain: Flow, heavy: Flow, number: Mapping[str, int]) -> dict[str, Any]:
    """Write a flow as columns: `source` is a call's number, or -1 - that of a parameter."""
    weights = {(e.source, e.target): e.paths for e in heavy.edges}
    return {
        "total": plain.total,
        "weight": heavy.total,
        "unit_log2": heavy.unit,
        "source": [number[e.source] if isinstance(e.source, str) else e.source for e in plain.edges],
        "target": [e.target for e in plain.edges],
        "paths": [_whole(e.paths) for e in plain.edges],
        "weights": [_rounded(weights.get((e.source, e.target), 0.0)) for e in plain.edges],
    }


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _rounded(number: float) -> float:
    """Keep ten digits: a hundredth of the bytes of a report are worth more than the rest."""
    return float(f"{number:.10g}")


def starts_of(guide: Forest, question: Question, groups: Mapping[str, str | Sequence[str]]) -> list[Scalar]:
    """Choose the scalars whose paths are shown: the strongest first, then others of all strengths."""
    leaves, strengths = select_leaves(guide.record, question.only), Strengths(guide)
    ids = {leaf.id for leaf in leaves}
    members = [[v for v in select_leaves(guide.record, of) if v.id in ids] for of in groups.values()]

    def strongest(among: Sequence[Value], k: int, example: int | None = None) -> list[Scalar]:
        return [(among[n], flat, example) for _, n, flat in strengths.strongest(among, k, example)]

    found = strongest(leaves, question.paths)
    found += [start for leaf in leaves for start in strongest([leaf], question.each)]
    for example in range(_examples(guide, question)):
        found += strongest(leaves, question.paths, example)
        found += [start for own in members for start in strongest(own, question.each, example)]
    share = question.cover // max(1, len(leaves))
    spread = [[(leaf, at, None) for at in of_all_strengths(guide, leaf, share)] for leaf in leaves]
    found += [one for rank in zip_longest(*spread) for one in rank if one is not None]
    return list(dict.fromkeys(found))


def paths_of(forest: Forest, starts: Sequence[Scalar], texts: Texts | None, most: int) -> dict[str, Any]:
    """Give the paths of some scalars, the first ones first, of no more than about so many steps."""
    found = branches(forest, starts, most)
    paths = sorted(found.paths, key=lambda p: -p["log2"])
    columns = list(paths[0]) if paths else []
    steps = found.columns(None if texts is None else Tokens(texts))
    return {"steps": steps, "starts": {name: [p[name] for p in paths] for name in columns}}


def default_groups(record: Record) -> dict[str, str | Sequence[str]]:
    """Group parameters by the parts into which their names fall, in the order in which the program uses them.

    All of them together come last, since most of their paths have little to choose from, or first where no names fall
    into parts.
    """
    leaves = list(record.leaves.values())
    tree = parameter_tree(leaves)
    shown = cut(tree, open_at_first(tree, MOST_GROUPS))
    used: dict[int, int] = {}
    for call in record.calls:
        for given in call.inputs:
            if given.value is not None:
                used.setdefault(given.value.id, call.index)
    groups: dict[str, str | Sequence[str]] = {}
    if 1 < len(shown) <= MOST_GROUPS:
        first = {n: min(used.get(leaves[i].id, len(record.calls)) for i in tree.items(n)) for n in shown}
        for number in sorted(shown, key=first.__getitem__):
            groups[tree.nodes[number].name] = [str(leaves[i].name) for i in tree.items(number)]
    everything = {"all parameters": "*"}
    return groups | everything if any(tree.nodes[n].kind == "parameters" for n in shown) else everything | groups


def _from_the_earliest(forest: Forest) -> dict[str, str | Sequence[str]]:
    """Put in front of the groups the parameters of which the headline speaks, where they are none of the groups."""
    names, groups = earliest(forest, dead_shares(forest)), default_groups(forest.record)
    members = [{str(v.name) for v in select_leaves(forest.record, of)} for of in groups.values()]
    if set(names) in members:
        return groups
    return {group_named(names, len(forest.record.leaves), shorten=True): names} | groups


def default_components(trace: Traced) -> list[str]:
    """Choose the modules that the picture shows at first, and what repeats inside them, as globs; or the operators."""
    calls = trace.tape.record.before(trace.root)
    tree = call_tree(calls, links_between(calls))
    shown = [tree.nodes[n] for n in cut(tree, open_at_first(tree))]
    names = list(dict.fromkeys(re.sub(r":\d+$", "", n.name) for n in shown if _of_a_module(tree, n)))
    inside = {s.name for c in calls for s in c.scopes if any(s.name.startswith(f"{n}.") for n in names)}
    patterns = [re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in sorted(inside) if re.search(r"\.\d+\.", name)]
    repeated = [p for p in dict.fromkeys(patterns) if patterns.count(p) > 1 and p.count(".") <= _depth(patterns)]
    found = [n for n in [*names, *repeated] if any(matches(c, name_of(n)) for c in calls)]
    return (found or operators(calls))[:MOST_COMPONENTS]


def _of_a_module(tree: Tree, node: Node) -> bool:
    """Tell whether a node is a module, or some of the steps of one, such as a recurrent layer."""
    return node.kind == "module" or (node.kind == "stretch" and bool(node.name) and not tree.holds(node, "module"))


def _depth(patterns: Sequence[str]) -> int:
    return min((p.count(".") for p in patterns), default=0)
