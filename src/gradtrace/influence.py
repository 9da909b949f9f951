"""Components, crossing, influence and flow, for all parameters at once.

Backpointers form a forest rooted at the loss, so the set of components that a scalar's trace crosses is its
consumer's set and the consumer's own: one gather for each value, from the loss outwards. Flow goes the other
way: each leaf scalar sends one unit along its trace.
An influence is a share of traces. It is not the share of the gradient, and it says nothing of what would happen
without the component; that is what ablation is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .components import Component, Slice, check, expand, matches, name_of, select_leaves, top_level
from .engine import EDGE_BITS
from .forest import NONE, Forest
from .tape import Call, Value

if TYPE_CHECKING:
    import pandas

MASK = (1 << EDGE_BITS) - 1


@dataclass(eq=False)
class Places:
    """A row of memory with a place for every scalar of every call's results (one for each example, if free).

    Attributes:
        base: by edge, where the consumer call's results begin.
        stride: by edge, how far one example's results are from the next one's.
        spans: by call index, (where its results begin, how many places they take).
    """

    base: Tensor
    stride: Tensor
    spans: list[tuple[int, int]]
    total: int

    @classmethod
    def of(cls, forest: Forest) -> Places:
        """Lay the results of a tape's calls out one after another."""
        base, stride, spans, total = [], [], [], 0
        for call in forest.record.calls:
            made = [v for v in call.outputs if v is not None]
            batch = max((forest.batch(v) for v in made if v.id in forest.winners), default=1)
            numel = sum(v.numel for v in made)
            base += [total] * len(call.inputs)
            stride += [numel if batch > 1 else 0] * len(call.inputs)
            spans.append((total, batch * numel))
            total += batch * numel
        return cls(torch.tensor(base, dtype=torch.int64), torch.tensor(stride, dtype=torch.int64), spans, total)

    def consumers(self, winners: Tensor) -> tuple[Tensor, Tensor]:
        """Give, for batch × shape backpointers, (whether there is one, the place of the winning consumer or 0)."""
        live = winners != NONE
        edge = (winners >> EDGE_BITS).clamp_(min=0)
        place = self.base[edge].add_(winners & MASK)
        if len(winners) > 1:
            rows = torch.arange(len(winners)).reshape(-1, *[1] * (winners.dim() - 1))
            place += rows * self.stride[edge]
        return live, place.masked_fill_(~live, 0)

    def results(self, call: Call) -> list[tuple[Value, slice, int]]:
        """Give (value, its place for the first example, how far the next example's is) for each result."""
        start, _ = self.spans[call.index]
        numel = sum(v.numel for v in call.outputs if v is not None)
        out = []
        for value in call.outputs:
            if value is not None:
                out.append((value, slice(start, start + value.numel), numel))
                start += value.numel
        return out


def crossing(forest: Forest, components: Sequence[Component], leaves: Sequence[Value]) -> dict[int, Tensor]:
    """Give for each leaf the set of components that each scalar's trace crosses, as bits (batch × shape).

    Bit i stands for components[i]; at most 63 at a time.
    """
    places = Places.of(forest)
    bits = torch.zeros(places.total, dtype=torch.int64)
    for call in reversed(forest.record.calls):
        for value, at, numel in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None:
                continue
            found = _inherited(places, winners, bits) | own_bits(call, components, value.shape)
            for b, row in enumerate(found):
                bits[at.start + b * numel : at.stop + b * numel] = row.flatten()
    return {leaf.id: _inherited(places, forest.winners[leaf.id], bits) | leaf_bits(leaf, components) for leaf in leaves}


def _inherited(places: Places, winners: Tensor, bits: Tensor) -> Tensor:
    """Give each scalar the set of its winning consumer."""
    live, consumer = places.consumers(winners)
    return bits[consumer].masked_fill_(~live, 0)


def own_bits(call: Call, components: Sequence[Component], shape: tuple[int, ...]) -> Tensor:
    """Give the set of components that the scalars of a call's result are in; broadcasts to their shape."""
    out = torch.zeros((), dtype=torch.int64)
    for i, component in enumerate(components):
        if matches(call, name_of(component)):
            mask = component.mask(shape, call) if isinstance(component, Slice) else torch.ones((), dtype=torch.bool)
            out = out if mask is None else out | (mask.to(torch.int64) << i)
    return out


def leaf_bits(leaf: Value, components: Sequence[Component]) -> Tensor:
    """Give the slices that a leaf's own scalars are in: expert weights, say."""
    out = torch.zeros((), dtype=torch.int64)
    for i, component in enumerate(components):
        if isinstance(component, Slice) and component.module == leaf.name:
            mask = component.mask(leaf.shape)
            out = out if mask is None else out | (mask.to(torch.int64) << i)
    return out


@dataclass(frozen=True)
class InfluenceRow:
    """The influence of one component on a group of parameters.

    Attributes:
        share: traces that cross the component, of all (example, scalar) pairs that have one; nan if none has.
        weighted_share: the same, each pair counted by its path weight (best) or |∂ℓ/∂θ| (greedy).
        dead_share: pairs without a trace, of all pairs.
        examples: how many examples; 1 where the batch was traced as a whole.
        inside: whether parameters of the group live in the component, and so cross it trivially.
    """

    component: str
    share: float
    weighted_share: float
    dead_share: float
    examples: int
    inside: bool


@dataclass(frozen=True)
class InfluenceTable:
    """Influence of components on a group of parameters; `connected` names calls that connect examples."""

    kind: str
    of: tuple[str, ...]
    rows: tuple[InfluenceRow, ...]
    by_example: tuple[tuple[InfluenceRow, ...], ...] = ()
    connected: tuple[str, ...] = ()

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a component, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.rows])

    def __str__(self) -> str:
        name = max([9, *(len(r.component) for r in self.rows)])
        lines = [f"{self.kind} influence on {', '.join(self.of)}"]
        lines.append(f"{'component':<{name}}  {'share':>7}  {'weighted':>8}  {'dead':>7}  {'examples':>8}")
        for r in sorted(self.rows, key=lambda r: -r.share if r.share == r.share else 1):
            mark = "  (parameters inside)" if r.inside else ""
            shares = f"{r.share:>7.1%}  {r.weighted_share:>8.1%}  {r.dead_share:>7.1%}"
            lines.append(f"{r.component:<{name}}  {shares}  {r.examples:>8}{mark}")
        if self.connected:
            lines.append(f"examples are connected at {', '.join(self.connected)}: shares are by position")
        return "\n".join(lines)

    __repr__ = __str__


def influence(forest: Forest, components: Sequence[Component] | None, of: str | Sequence[str]) -> InfluenceTable:
    """Tabulate the share of traces that cross each component (SEMANTICS: a trace crosses it or not).

    Raises:
        UnknownName: a component or parameter that does not exist.
    """
    record = forest.record
    parts = expand(components) if components is not None else [*top_level(record)]
    check(record, parts)
    names = [str(p) for p in parts]
    leaves = select_leaves(record, of)
    count = forest.labels.count if forest.labels is not None else 1
    totals = _Totals(names, count)
    by_id = {leaf.id: leaf for leaf in leaves}
    for start in range(0, len(names), 63):
        chunk = parts[start : start + 63]
        for leaf_id, bits in crossing(forest, chunk, leaves).items():
            live, log2 = forest.winners[leaf_id] != NONE, forest.log2[leaf_id]
            totals.add(start, len(chunk), bits, live, log2, _belongs(forest, by_id[leaf_id]))
    inside = [any(_lives_in(str(v.name), name_of(p)) for v in leaves) for p in parts]
    rows = [totals.rows(None, inside), *(totals.rows(b, inside) for b in range(count if count > 1 else 0))]
    connected = tuple(dict.fromkeys(c.where for c in forest.labels.connected)) if forest.labels else ()
    return InfluenceTable(forest.kind, tuple(str(v.name) for v in leaves), rows[0], tuple(rows[1:]), connected)


def _belongs(forest: Forest, leaf: Value) -> Tensor:
    """Say which scalars of a leaf count for which example (examples × numel): all, unless it is an input itself."""
    label = forest.labels.of.get(leaf.id) if forest.labels is not None else None
    if not isinstance(label, Tensor) or forest.labels is None:
        return torch.ones(1, 1, dtype=torch.bool)
    return torch.arange(forest.labels.count).unsqueeze(1) == label.expand(leaf.shape).reshape(1, -1)


def _lives_in(parameter: str, component: str) -> bool:
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[:n]), component.split(":")[0]) for n in range(1, len(parts)))


class _Totals:
    """Counts and weights of crossing pairs, by example and component; weights relative to the largest."""

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names, self.count = names, count
        self.cross = torch.zeros(count, len(names), dtype=torch.float64)
        self.live, self.pairs = (
            torch.zeros(count, dtype=torch.float64),
            torch.zeros(count, dtype=torch.float64),
        )
        self.weight = torch.zeros(count, dtype=torch.float64)
        self.crossed = torch.zeros(count, len(names), dtype=torch.float64)
        self.top = -math.inf

    def add(self, start: int, chunk: int, bits: Tensor, live: Tensor, log2: Tensor, belongs: Tensor) -> None:
        """Count one leaf: batch × shape; `belongs` says which scalars count for which example."""
        bits, live, log2 = (t.reshape(len(t), -1) for t in (bits, live, log2))
        live = live & belongs
        weighs = live & (log2 > -torch.inf)  # a greedy trace can start from a gradient that cancels to 0
        self._raise_top(float(log2.expand(live.shape)[weighs].max()) if weighs.any() else -math.inf)
        scale = torch.where(log2 == torch.inf, 0.0, log2 - self.top) if self.top == math.inf else log2 - self.top
        relative = torch.exp2(torch.where(weighs, scale, -torch.inf))
        if start == 0:
            self.live += live.sum(1)
            self.pairs += belongs.expand(live.shape).sum(1)
            self.weight += relative.sum(1)
        for i in range(chunk):
            hit = ((bits >> i) & 1).bool() & live
            self.cross[:, start + i] += hit.sum(1)
            self.crossed[:, start + i] += (relative * hit).sum(1)

    def _raise_top(self, top: float) -> None:
        """Take a larger unit for the weights."""
        if top > self.top:
            shrink = 2.0 ** (self.top - top) if self.top > -math.inf else 0.0
            self.weight, self.crossed, self.top = self.weight * shrink, self.crossed * shrink, top

    def rows(self, example: int | None, inside: Sequence[bool]) -> tuple[InfluenceRow, ...]:
        """Give the table's rows, for all examples together or for one."""
        at = slice(None) if example is None else slice(example, example + 1)
        live, pairs, weight = (float(t[at].sum()) for t in (self.live, self.pairs, self.weight))
        return tuple(
            InfluenceRow(
                name,
                float(self.cross[at, i].sum()) / live if live else math.nan,
                float(self.crossed[at, i].sum()) / weight if weight else math.nan,
                1 - live / pairs if pairs else math.nan,
                self.count if example is None else 1,
                inside[i],
            )
            for i, name in enumerate(self.names)
        )
