"""How many traces come into every junction, and by which branch: one pass of units, as a flow is.

A trace is asked about at a junction if it had a choice there: from the call that it enters first, another branch could
have been reached too. Parameters inside a branch have none. Units go in groups by the junctions ahead at which they are
not asked, so that groups become one where nothing ahead tells them apart: in a chain of blocks there are two or three
at a time, however many blocks there are. Several sets of parameters go in one pass, as those of a flow do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..recording.record import Call, Value
from .departures import Given, given_by
from .forest import Forest
from .junctions import Junction
from .units import Stream, stream

Group: TypeAlias = tuple[int, tuple[int, ...], int]  # the example, the sets, the junctions, as bits


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted.

    Attributes:
        came: by junction, examples × branches × (paths, weight): of traces that had a choice.
        total: examples × (paths, weight): of all traces.
    """

    came: tuple[np.ndarray, ...]
    total: np.ndarray


def count(
    forest: Forest, asked: Sequence[Junction], sets: Sequence[Sequence[Value]], *, by_example: bool = False
) -> list[Counts]:
    """Count for sets of leaves the traces that come in by each branch; weights are in a unit of their own."""
    return _Pass(forest, asked, sets, by_example).run()


class _Askers:
    """Which junctions ask a path, as bits: `Junction.asks` for all of them at once, since a long loop has thousands."""

    def __init__(self, asked: Sequence[Junction]) -> None:
        size = max([j.calls.bit_length() for j in asked], default=0) // 8 + 1
        rows = b"".join(j.calls.to_bytes(size, "little") for j in asked)
        # eight calls × junctions
        self._of_calls = np.ascontiguousarray(np.frombuffer(rows, np.uint8).reshape(len(asked), size).T)
        self._of_leaves: dict[int, int] = {}
        for number, junction in enumerate(asked):
            for leaf in junction.leaves:
                self._of_leaves[leaf] = self._of_leaves.get(leaf, 0) | 1 << number

    def of(self, leaf: int, first: int) -> int:
        """Give those that ask a path, by the id of its leaf and the number of the call that it enters first."""
        own = self._of_leaves.get(leaf, 0)
        if first >> 3 >= len(self._of_calls):
            return own
        bits = np.packbits(self._of_calls[first >> 3] >> (first & 7) & 1, bitorder="little")
        return own | int.from_bytes(bits.tobytes(), "little")


class _Pass:
    """Units on their way, in groups (example, the sets of their leaf, junctions ahead at which they are not asked)."""

    def __init__(
        self, forest: Forest, asked: Sequence[Junction], sets: Sequence[Sequence[Value]], by_example: bool
    ) -> None:
        self._forest, self._asked = forest, asked
        self._leaves = {v.id: v for leaves in sets for v in leaves if v is not forest.loss}
        members = [{v.id for v in leaves} for leaves in sets]
        self._sets_of = {i: tuple(n for n, ids in enumerate(members) if i in ids) for i in self._leaves}
        self._calls = forest.record.before(forest.loss)
        self._examples = forest.labels.count if by_example and forest.labels is not None else 1
        self._numbers: dict[Group, int] = {}
        self._groups: list[Group] = []
        self._branch_of: dict[int, list[tuple[int, int]]] = {}  # by edge: junctions and branches
        self._heads = {_made(j.call).id: n for n, j in enumerate(asked) if j.heads}
        for number, junction in enumerate(asked):
            for branch, entry in enumerate(junction.entries):
                for call, position in entry.arguments:
                    edge = forest.edges.first[call] + position
                    self._branch_of.setdefault(edge, []).append((number, branch))
        self._ahead, self._ahead_of_calls = self._look_ahead()
        self._askers = _Askers(asked)
        self._counting: dict[tuple[int, ...], list[tuple[Counts, float]]] = {}
        self._counts = [
            Counts(
                tuple(np.zeros((self._examples, j.heads or len(j.entries), 2)) for j in asked),
                np.zeros((self._examples, 2)),
            )
            for _ in sets
        ]

    def _look_ahead(self) -> tuple[dict[int, int], dict[int, int]]:
        """Give as bits the junctions ahead of each value, and those of what enters each call."""
        of_value: dict[int, int] = {}
        of_call: dict[int, int] = {}
        for call in reversed(self._calls):
            after = 0
            for made in call.outputs:
                if made is not None:
                    after |= of_value.get(made.id, 0)
                    after |= 1 << self._heads[made.id] if made.id in self._heads else 0
            of_call[call.index] = 0
            for position, given in enumerate(call.inputs):
                if given.value is not None:
                    here = after | self._entered(call, position)
                    of_value[given.value.id] = of_value.get(given.value.id, 0) | here
                    of_call[call.index] |= here
        return of_value, of_call

    def _entered(self, call: Call, position: int) -> int:
        found = self._branch_of.get(self._forest.edges.first[call.index] + position, ())
        return sum(1 << number for number, _ in found)

    def _group(self, key: Group) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._groups)
            self._groups.append(key)
        return self._numbers[key]

    def _group_of(self, leaf: Value, row: int, first: int) -> int:
        """Give the group of what a leaf sends into a call."""
        unasked = self._ahead_of_calls.get(first, 0) & ~self._askers.of(leaf.id, first)
        return self._group((row if self._examples > 1 else 0, self._sets_of[leaf.id], unasked))

    def run(self) -> list[Counts]:
        """Send what the leaves do, and count."""
        given = [(v, f) for v in self._leaves.values() if (f := given_by(self._forest, v))]
        bases: dict[tuple[int, ...], float] = {}  # weights are compared with others of the same set only
        for leaf, found in given:
            of = self._sets_of[leaf.id]
            bases[of] = max(found.of, bases.get(of, found.of))
        self._counting = self._scaled(bases)
        units = stream(self._forest, kept=self._heads)
        for number, (leaf, found) in enumerate(given):
            self._leave(units, leaf, number - len(given), found, bases[self._sets_of[leaf.id]])
        for call in self._calls:
            for value in call.outputs:
                if value is not None and value is not self._forest.loss:
                    self._pass(units, value)
        for source, edge, group, paths, weight in units.found():
            example, sets, unasked = self._groups[group]
            branches = [(n, b) for n, b in self._branch_of.get(edge, ()) if not unasked >> n & 1]
            for counts, scale in self._counting[sets]:
                if source < 0:
                    counts.total[example] += paths, weight * scale
                for number, branch in branches:
                    counts.came[number][example, branch] += paths, weight * scale
        return self._counts

    def _scaled(self, bases: Mapping[tuple[int, ...], float]) -> dict[tuple[int, ...], list[tuple[Counts, float]]]:
        """Give by the sets that leaves are in where they count, and what a unit of their weight is in the set's own."""
        tops = [max([base for of, base in bases.items() if n in of], default=0.0) for n in range(len(self._counts))]
        return {of: [(self._counts[n], 2.0 ** max(base - tops[n], -2000.0)) for n in of] for of, base in bases.items()}

    def _leave(self, units: Stream, leaf: Value, number: int, found: Given, base: float) -> None:
        known: dict[tuple[int, int], int] = {}

        def group_of(row: int, first: int) -> int:
            key = row if self._examples > 1 else 0, first
            if key not in known:
                known[key] = self._group_of(leaf, *key)
            return known[key]

        units.leave(leaf, number, found, group_of, base)

    def _pass(self, units: Stream, value: Value) -> None:
        """Send on what has come to a value."""
        waiting = units.groups_at(value)
        if not waiting:
            return
        if value.id in self._heads:
            self._count_heads(units, value)
        ahead, becomes = self._ahead.get(value.id, 0), dict[int, int]()
        for group in waiting:
            example, sets, unasked = self._groups[group]
            becomes[group] = self._group((example, sets, unasked & ahead))
        if any(old != new for old, new in becomes.items()):
            units.regroup(value, becomes)
        units.send_on(value)

    def _count_heads(self, units: Stream, value: Value) -> None:
        number = self._heads[value.id]
        heads, size = self._asked[number].heads, value.numel // value.shape[0]
        for head, group, paths, weight in units.parts(value, size, heads):
            example, sets, unasked = self._groups[group]
            for counts, scale in self._counting[sets] if not unasked >> number & 1 else ():
                counts.came[number][example, head] += paths, weight * scale


def _made(call: Call) -> Value:
    made = call.outputs[0]
    assert made is not None
    return made
