"""Flow: how many traces run through every operator call, and from module to module.

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

from .components import select_leaves
from .engine import EDGE_BITS
from .forest import Forest
from .places import Places

if TYPE_CHECKING:
    import pandas


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
    """

    kind: str
    total: float
    calls: tuple[FlowRow, ...]
    links: tuple[Link, ...]

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


@dataclass(eq=False)
class _Stream:
    """Units on their way: at every place, through every edge, and from module to module."""

    forest: Forest
    places: Places
    units: Tensor
    links: dict[tuple[str, str], float] = field(default_factory=dict)

    def send(self, name: str, winners: Tensor, amount: Tensor) -> None:
        """Move the units of one value's scalars to their winning consumers."""
        live, consumer = self.places.consumers(winners)
        self.units.index_add_(0, consumer[live], amount[live])
        edges, which = (winners[live] >> EDGE_BITS).unique(return_inverse=True)
        totals = torch.zeros(len(edges), dtype=amount.dtype).index_add_(0, which, amount[live])
        for edge, total in zip(edges.tolist(), totals.tolist(), strict=True):
            target = self.forest.step(edge << EDGE_BITS)[0].module
            if target != name:
                self.links[name, target] = self.links.get((name, target), 0.0) + total


def flow(forest: Forest, of: str | Sequence[str] = "*", *, weighted: bool = False) -> Flow:
    """Push one unit, or with `weighted` the path weight over the largest, from every leaf scalar to the loss."""
    places = Places.of(forest)
    stream = _Stream(forest, places, torch.zeros(places.total, dtype=torch.float64))
    leaves = select_leaves(forest.record, of)
    top = max((float(forest.log2[v.id].max()) for v in leaves if v.numel), default=-math.inf)
    for leaf in leaves:
        log2 = forest.log2[leaf.id]
        amount = torch.exp2(log2 - top) if weighted and top > -math.inf else torch.ones_like(log2)
        stream.send(str(leaf.name), forest.winners[leaf.id], amount)
    for call in forest.record.calls:
        for value, at, step in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None or value is forest.loss:
                continue
            amount = torch.stack([stream.units[at.start + b * step : at.stop + b * step] for b in range(len(winners))])
            if amount.any():
                stream.send(call.module, winners, amount.reshape(winners.shape))
    return _flow(stream)


def _flow(stream: _Stream) -> Flow:
    """Add up what went through each call."""
    forest, spans = stream.forest, stream.places.spans
    through = [float(stream.units[start : start + numel].sum()) for start, numel in spans]
    made = forest.loss.call
    total = through[made.index] if made is not None else 0.0
    rows = tuple(
        FlowRow(c.index, c.name, c.module, c.source, n, n / total if total else 0.0)
        for c, n in zip(forest.record.calls, through, strict=True)
        if n
    )
    return Flow(forest.kind, total, rows, tuple(Link(s, t, n) for (s, t), n in stream.links.items()))
