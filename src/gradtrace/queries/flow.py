"""Flow: how many traces run through every operator call, and from call to call and module to module.

Each leaf scalar sends one unit, or its path weight, along its trace. The counts say where paths go, not how much of
the gradient does: many weak paths count as much as many strong ones unless weighted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backward.walk import EDGE_BITS
from ..recording.components import select_leaves
from ..recording.record import Value
from .flat_index import Places
from .forest import Forest

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


@dataclass(eq=False)
class _Stream:
    """Units on their way, one column for each flow that is wanted: at every place, and along every edge."""

    forest: Forest
    places: Places
    units: Tensor  # places × flows
    edges: dict[tuple[int | str, int], Tensor] = field(default_factory=dict)

    def send(self, source: int | str, winners: Tensor, amount: Tensor) -> None:
        """Move the units of one value's scalars (batch × shape × flows) to their winning consumers."""
        live, consumer = self.places.consumers(winners)
        moved = amount[live]
        self.units.index_add_(0, consumer[live], moved)
        edges, which = (winners[live] >> EDGE_BITS).unique(return_inverse=True)
        totals = torch.zeros(len(edges), moved.shape[1], dtype=moved.dtype).index_add_(0, which, moved)
        for edge, total in zip(edges.tolist(), totals, strict=True):
            key = source, self.forest.step(edge << EDGE_BITS)[0].index
            self.edges[key] = self.edges[key] + total if key in self.edges else total


def flow(forest: Forest, of: str | Sequence[str] = "*", *, weighted: bool = False) -> Flow:
    """Push one unit, or with `weighted` the path weight over the largest, from every leaf scalar to the loss."""
    return flows(forest, [Asked(of, weighted)])[0]


def flows(forest: Forest, asked: Sequence[Asked]) -> list[Flow]:
    """Compute several flows, as many in one pass as memory allows."""
    places = Places.of(forest)
    at_once = max(1, MOST_MEMORY // (8 * max(places.total, 1)))
    parts = (asked[i : i + at_once] for i in range(0, len(asked), at_once))
    return [found for part in parts for found in _pass(forest, places, part)]


def _pass(forest: Forest, places: Places, asked: Sequence[Asked]) -> list[Flow]:
    stream = _Stream(forest, places, torch.zeros(places.total, len(asked), dtype=torch.float64))
    groups = [select_leaves(forest.record, a.of) for a in asked]
    units = [_unit(forest, group) if a.weighted else None for a, group in zip(asked, groups, strict=True)]
    for leaf in {v.id: v for group in groups for v in group}.values():
        amounts = [_amount(forest, leaf, leaf in group, unit) for group, unit in zip(groups, units, strict=True)]
        stream.send(str(leaf.name), forest.winners[leaf.id], torch.stack(amounts, -1))
    for call in forest.record.calls:
        for value, at, step in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None or value is forest.loss:
                continue
            amount = torch.stack([stream.units[at.start + b * step : at.stop + b * step] for b in range(len(winners))])
            if amount.any():
                stream.send(call.index, winners, amount.reshape(*winners.shape, len(asked)))
    return [_flow(stream, i, unit or 0.0) for i, unit in enumerate(units)]


def _unit(forest: Forest, leaves: Sequence[Value]) -> float | None:
    """Give log2 of the largest weight, in which the others are counted; None where nothing has a path."""
    top = max((float(forest.log2[v.id].max()) for v in leaves if v.numel), default=-math.inf)
    return top if top > -math.inf else None


def _amount(forest: Forest, leaf: Value, asked: bool, unit: float | None) -> Tensor:
    """Give what each scalar of a leaf sends: batch × shape."""
    log2 = forest.log2[leaf.id]
    if not asked:
        return torch.zeros_like(log2)
    return torch.ones_like(log2) if unit is None else torch.exp2(log2 - unit)


def _flow(stream: _Stream, column: int, unit: float) -> Flow:
    """Add up what went through each call, and between modules."""
    calls, spans = stream.forest.record.calls, stream.places.spans
    through = [float(stream.units[start : start + numel, column].sum()) for start, numel in spans]
    made = stream.forest.loss.call
    total = through[made.index] if made is not None else 0.0
    rows = tuple(
        FlowRow(c.index, c.name, c.module, c.source, n, n / total if total else 0.0)
        for c, n in zip(calls, through, strict=True)
        if n
    )
    edges = tuple(FlowEdge(s, t, float(n[column])) for (s, t), n in stream.edges.items() if n[column])
    links: dict[tuple[str, str], float] = {}
    for edge in edges:
        ends = edge.source if isinstance(edge.source, str) else calls[edge.source].module, calls[edge.target].module
        if ends[0] != ends[1]:
            links[ends] = links.get(ends, 0.0) + edge.paths
    return Flow(stream.forest.kind, total, rows, tuple(Link(s, t, n) for (s, t), n in links.items()), edges, unit)
