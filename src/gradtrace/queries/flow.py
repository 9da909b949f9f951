"""Flow: how many traces run through every operator call, and from call to call and module to module.

Each leaf scalar sends one unit, or its path weight, along its trace. The counts say where paths go, not how much of
the gradient does: many weak paths count as much as many strong ones unless weighted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..recording.components import select_leaves
from .consumers import Consumers, Hop
from .forest import Forest
from .units import Given, Stream, given_by

if TYPE_CHECKING:
    import pandas

MOST_MEMORY = 1 << 28  # bytes for the units of flows that are computed together


@dataclass(frozen=True)
class FlowRow:
    """How many traces run through one operator call."""

    call: int
    operator: str
    module: str
    source: str
    paths: float
    share: float


@dataclass(frozen=True)
class FlowEdge:
    """How many traces step from one operator call, or leaf, to the next.

    Attributes:
        source: the index of a call, or the name of a leaf; `target`: the index of a call.
    """

    source: int | str
    target: int
    paths: float


@dataclass(frozen=True)
class Link:
    """How many traces step from one module call (or leaf) to another."""

    source: str
    target: str
    paths: float


@dataclass(frozen=True)
class Flow:
    """One unit (or the path weight) from every leaf scalar, pushed along its trace.

    Attributes:
        calls: units through each operator call, in recording order.
        links: units from one module call, or leaf, into another.
        total: all units that reach the loss.
        edges: units from one operator call, or leaf, into the next.
        unit: log2 of the weight that one unit stands for; 0 where every path counts as one.
    """

    kind: str
    total: float
    calls: tuple[FlowRow, ...]
    links: tuple[Link, ...]
    edges: tuple[FlowEdge, ...] = ()
    unit: float = 0.0

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row an operator call, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.calls])

    def __str__(self) -> str:
        lines = [f"{self.kind} flow: {self.total:g} paths; most used links between modules"]
        most = sorted(self.links, key=lambda k: -k.paths)[:20]
        whole = self.total or 1
        lines += [f"  {k.paths / whole:>7.1%}  {k.source or '(top)'} → {k.target or '(top)'}" for k in most]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Asked:
    """Which flow is wanted: from which leaves, one unit each or their weight."""

    of: str | Sequence[str] = "*"
    weighted: bool = False


def flow(forest: Forest, of: str | Sequence[str] = "*", *, weighted: bool = False) -> Flow:
    """Push one unit, or with `weighted` the path weight over the largest, from every leaf scalar to the loss."""
    return flows(forest, [Asked(of, weighted)])[0]


def flows(forest: Forest, asked: Sequence[Asked]) -> list[Flow]:
    """Compute several flows, as many in one pass as memory allows."""
    consumers = Consumers(forest)
    made = sum(forest.batch(v) * v.numel for c in forest.record.calls for v in c.outputs if v is not None)
    sent = sum(forest.batch(v) * v.numel for v in forest.record.leaves.values())
    at_once = max(1, MOST_MEMORY // (8 * max(1, min(made, sent))))  # units are at one place at a time
    parts = (asked[i : i + at_once] for i in range(0, len(asked), at_once))
    return [found for part in parts for found in _pass(consumers, part)]


def _pass(consumers: Consumers, asked: Sequence[Asked]) -> list[Flow]:
    forest = consumers.forest
    groups = [{v.id: v for v in select_leaves(forest.record, a.of)} for a in asked]
    leaves = {i: v for group in groups for i, v in group.items()}
    given = {i: found for i, v in leaves.items() if v is not forest.loss and (found := given_by(forest, v)) is not None}
    units = [_unit(given, group) if a.weighted else None for a, group in zip(asked, groups, strict=True)]
    stream = Stream(consumers, len(asked))
    for i, one in given.items():
        stream.leave(leaves[i], one, [(n, units[n]) for n, group in enumerate(groups) if i in group])
    for call in forest.record.calls:
        for value in call.outputs:
            if value is not None and value is not forest.loss:
                stream.send_on(value)
    order = {str(v.name): n - len(leaves) for n, v in enumerate(leaves.values())}
    edges = sorted(stream.edges.items(), key=lambda e: (order.get(str(e[0][0]), e[0][0]), e[0][1]))
    return [_flow(forest, [(k, float(n[i])) for k, n in edges if n[i]], unit or 0.0) for i, unit in enumerate(units)]


def _unit(given: Mapping[int, Given], leaves: Iterable[int]) -> float | None:
    """Give log2 of the largest weight, in which the others are counted; None where nothing has a path."""
    top = max((given[i].top for i in leaves if i in given), default=-math.inf)
    return top if top > -math.inf else None


def _flow(forest: Forest, along: Sequence[tuple[Hop, float]], unit: float) -> Flow:
    """Add up what went through each call, and between modules."""
    calls, through = forest.record.calls, [0.0] * len(forest.record.calls)
    links: dict[tuple[str, str], float] = {}
    for (source, target), paths in along:
        through[target] += paths
        ends = source if isinstance(source, str) else calls[source].module, calls[target].module
        if ends[0] != ends[1]:
            links[ends] = links.get(ends, 0.0) + paths
    made = forest.loss.call
    total = through[made.index] if made is not None else 0.0
    rows = tuple(
        FlowRow(c.index, c.name, c.module, c.source, n, n / total if total else 0.0)
        for c, n in zip(calls, through, strict=True)
        if n
    )
    edges = tuple(FlowEdge(*ends, paths) for ends, paths in along)
    return Flow(forest.kind, total, rows, tuple(Link(s, t, n) for (s, t), n in links.items()), edges, unit)
