"""Influence: the share of a group of parameters' traces that cross each component.

An influence is a share of traces. It is not the share of the gradient, and it says nothing of what would happen
without the component; that is what ablation is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..kernels import native
from ..recording.components import (
    Component,
    check,
    default_components,
    expand,
    is_glob,
    name_of,
    seen,
    select_leaves,
)
from ..recording.record import Call, Value
from .component_sets import Crossed
from .departures import Counted, departed, given_by
from .forest import Forest
from .many_components import all_crossings
from .tables import Counts, InfluenceTable, rows_of


def influence(forest: Forest, components: Sequence[Component] | None, of: str | Sequence[str]) -> InfluenceTable:
    """Tabulate the share of traces that cross each component (SEMANTICS: a trace crosses it or not).

    Raises:
        UnknownName: a component or parameter that does not exist.
    """
    return influences(forest, components, [of])[0]


def influences(
    forest: Forest, components: Sequence[Component] | None, groups: Sequence[str | Sequence[str]]
) -> list[InfluenceTable]:
    """Tabulate several groups of parameters; what their traces cross is read once, however many groups they are in."""
    record = forest.record
    parts = expand(components) if components is not None else [*default_components(record)]
    check(record, parts)
    names = [str(p) for p in parts]
    of_groups = [{v.id: v for v in select_leaves(record, of)} for of in groups]
    leaves = {i: v for group in of_groups for i, v in group.items()}
    count, known = forest.labels.count if forest.labels is not None else 1, [seen(record, p) for p in parts]
    totals = [_Totals(names, count) for _ in groups]
    for there, crossed in all_crossings(forest, parts, list(leaves.values())):
        of_leaf = _Totals(names, count)
        of_leaf.add(there, crossed, _Traces(forest, crossed.leaf))
        for total, group in zip(totals, of_groups, strict=True):
            if crossed.leaf.id in group:
                total.join(of_leaf)
    connected = connections(forest)
    tables = []
    for total, group in zip(totals, of_groups, strict=True):
        inside = _inside(list(group.values()), parts)
        counts = [total.counts(None), *(total.counts(b) for b in range(count if count > 1 else 0))]
        rows = [rows_of(c, names, count if n == 0 else 1, inside, known) for n, c in enumerate(counts)]
        of = tuple(str(v.name) for v in group.values())
        tables.append(
            InfluenceTable(
                forest.kind, of, rows[0], tuple(rows[1:]), connected, counts[0], tuple(counts[1:]), len(record.leaves)
            )
        )
    return tables


def connections(forest: Forest) -> tuple[str, ...]:
    """Name the lines at which examples are connected: with others of this batch, and with those of other ranks."""
    own = lines_of(forest.labels.connected) if forest.labels is not None else ()
    return (*own, *forest.record.exchanged)


def lines_of(calls: Sequence[Call]) -> tuple[str, ...]:
    """Name calls, once for each operator and line: the first one, and how many more there are."""
    found: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        found.setdefault((call.name, call.source), []).append(call)
    return tuple(
        same[0].where + (f" and {len(same) - 1} more calls there" if len(same) > 1 else "") for same in found.values()
    )


class _Traces:
    """A leaf's traces: examples × scalars.

    Attributes:
        gone: what departs from the leaf, where that is known, and all of its scalars count.
        unit: log2 of what weights are multiples of.
        pairs: how many (example, scalar) pairs count, by example.
    """

    def __init__(self, forest: Forest, leaf: Value) -> None:
        self._leaf, self._given, self._belongs = leaf, given_by(forest, leaf), _belongs(forest, leaf)
        self.gone = None if self._belongs is not None else departed(forest, leaf)
        self.unit = -math.inf if self._given is None else self._given.of
        everything = np.full(forest.batch(leaf), leaf.numel)
        self.pairs = everything if self._belongs is None else self._belongs.sum(1).numpy()

    @property
    def compiled(self) -> bool:
        """Whether a compiled kernel may count: a trace is live where its weight is not 0."""
        return self._given is not None and self._given.planes[1] is None

    @cached_property
    def live(self) -> Tensor:
        """Whether there is one."""
        live = torch.zeros(len(self.pairs), self._leaf.numel, dtype=torch.bool)
        live = live if self._given is None else self._given.alive()
        return live if self._belongs is None else live & self._belongs

    @cached_property
    def weight(self) -> Tensor:
        """Its weight over 2^unit; a greedy trace can start from a gradient of 0."""
        return torch.zeros(self.live.shape) if self._given is None else self._given.weight.masked_fill(~self.live, 0)

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Give by example (how many traces, the sum of their weights)."""
        if self.gone is None:
            return self.live.sum(1).numpy().astype(np.float64), self.weight.sum(1, dtype=torch.float64).numpy()
        count, weight = np.array(self.gone.totals).T
        return count, weight


def _belongs(forest: Forest, leaf: Value) -> Tensor | None:
    """Say which scalars of a leaf count for which example (examples × numel), if it is an input itself; else None."""
    label = forest.labels.of.get(leaf.id) if forest.labels is not None else None
    if not isinstance(label, Tensor) or forest.labels is None:
        return None
    return forest.labels.own(label, len(leaf.shape)).expand(-1, *leaf.shape).flatten(1)


def _inside(leaves: Sequence[Value], parts: Sequence[Component]) -> list[bool]:
    """Tell for each component whether some of the parameters live in it."""
    names = [str(leaf.name).split(".") for leaf in leaves]
    homes = {".".join(name[:n]) for name in names for n in range(1, len(name))}
    patterns = [name_of(p).split(":")[0] for p in parts]
    return [any(fnmatchcase(h, p) for h in homes) if is_glob(p) else p in homes for p in patterns]


def _members(bits: int, count: int) -> np.ndarray:
    """Give which of some components a set has: 0 or 1 for each."""
    data = bits.to_bytes(count // 8 + 9, "little", signed=True)  # 64 bits in a tensor may have a sign
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count].astype(np.float64)


def _tallies(crossed: Crossed, of: _Traces) -> Iterator[Counted]:
    """Give by row (the row, a word, how many live scalars have it, their weights' sum)."""
    if crossed.counted is not None and of.gone is not None:
        yield from ((row, word | crossed.also, n, a) for row, word, n, a in crossed.counted())
        return
    for row in range(len(of.pairs)):
        for begin, end, bits in crossed.parts(row):
            found = tally(bits, of.live[row, begin:end], of.weight[row, begin:end], compiled=of.compiled)
            yield from ((row, *one) for one in found)


def tally(bits: Tensor, live: Tensor, weight: Tensor, *, compiled: bool) -> Sequence[tuple[int, float, float]]:
    """Give for each distinct set among live scalars (the set, how many have it, their weights' sum)."""
    if compiled:
        found = native.tally(bits, weight)
        if found is not None:
            return found
    live = live.bool()
    sets, which = bits[live].unique(return_inverse=True)
    counts = torch.bincount(which, minlength=len(sets)).to(torch.float64)
    sums = torch.zeros(len(sets), dtype=torch.float64).index_add_(0, which, weight[live].to(torch.float64))
    return list(zip(sets.tolist(), counts.tolist(), sums.tolist(), strict=True))


class _Totals:
    """Counts and weights of crossing pairs, by example and component; weights relative to the largest."""

    def __init__(self, names: Sequence[str], count: int) -> None:
        self.names = names
        self.cross, self.crossed = np.zeros((count, len(names))), np.zeros((count, len(names)))
        self.live, self.pairs, self.weight = np.zeros(count), np.zeros(count), np.zeros(count)
        self.top = -math.inf

    def add(self, there: slice, crossed: Crossed, of: _Traces) -> None:
        """Count the traces of one leaf's scalars by which of some components they cross."""
        count = len(self.names[there])
        if of.unit > self.top:
            self._raise_top(of.unit)
        unit = 1.0 if of.unit == self.top else 2.0 ** max(-2000.0, of.unit - self.top)
        live, weight = of.totals()
        if there.start == 0:
            self.live += live
            self.pairs += of.pairs
            self.weight += weight * unit
        if crossed.rows is None:
            members = _members(crossed.set_of(crossed.also), count)
            self.cross[:, there] += np.outer(live, members)
            self.crossed[:, there] += np.outer(weight * unit, members)
            return
        # in the order of the sets themselves, so that sums do not depend on how those are numbered
        found = sorted((row, crossed.set_of(word), n, a) for row, word, n, a in _tallies(crossed, of))
        for row, whole, number, amount in found:
            members = _members(whole, count)
            self.cross[row, there] += number * members
            self.crossed[row, there] += amount * unit * members

    def join(self, more: _Totals) -> None:
        """Add what was counted of other traces."""
        self._raise_top(max(self.top, more.top))
        unit = 1.0 if more.top == self.top else 2.0 ** max(-2000.0, more.top - self.top)
        for mine, other in (self.cross, more.cross), (self.live, more.live), (self.pairs, more.pairs):
            mine += other
        self.weight += more.weight * unit
        self.crossed += more.crossed * unit

    def _raise_top(self, top: float) -> None:
        """Take a larger unit for the weights."""
        if top > self.top:
            shrink = 2.0 ** (self.top - top) if self.top > -math.inf else 0.0
            self.weight, self.crossed, self.top = self.weight * shrink, self.crossed * shrink, top

    def counts(self, example: int | None) -> Counts:
        """Give what was counted, of all examples together or of one."""
        at = slice(None) if example is None else slice(example, example + 1)
        pairs, live, weight = (float(t[at].sum()) for t in (self.pairs, self.live, self.weight))
        cross, crossed = (tuple(t[at].sum(0).tolist()) for t in (self.cross, self.crossed))
        return Counts(pairs, live, weight, self.top, cross, crossed)
