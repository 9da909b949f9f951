"""How many traces come into every junction, and by which branch: one pass of units, as a flow is.

A trace is asked about at a junction if it had a choice there: from the call that it enters first, another branch could
have been reached too. Parameters inside a branch have none. Units go in groups by the junctions ahead at which they are
not asked, so that groups become one where nothing ahead tells them apart: in a chain of blocks there are two or three
at a time, however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..recording.record import Call, Value
from .forest import Forest
from .junctions import Junction
from .units import Given, Stream, given_by, stream


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted.

    Attributes:
        came: by junction, examples × branches × (paths, weight): of traces that had a choice.
        total: examples × (paths, weight): of all traces.
    """

    came: tuple[np.ndarray, ...]
    total: np.ndarray


def count(forest: Forest, asked: Sequence[Junction], leaves: Sequence[Value], *, by_example: bool = False) -> Counts:
    """Count the traces of some leaves that come in by each branch; weights are in a unit of their own."""
    return _Pass(forest, asked, by_example).run(leaves)


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
    """Units on their way, in groups (example, junctions ahead at which they are not asked)."""

    def __init__(self, forest: Forest, asked: Sequence[Junction], by_example: bool) -> None:
        self._forest, self._asked = forest, asked
        self._calls = forest.record.before(forest.loss)
        self._examples = forest.labels.count if by_example and forest.labels is not None else 1
        self._numbers: dict[tuple[int, int], int] = {}
        self._groups: list[tuple[int, int]] = []
        self._branch_of: dict[int, list[tuple[int, int]]] = {}  # by edge: junctions and branches
        self._heads = {_made(j.call).id: n for n, j in enumerate(asked) if j.heads}
        for number, junction in enumerate(asked):
            for branch, entry in enumerate(junction.entries):
                for call, position in entry.arguments:
                    edge = forest.edges.first[call] + position
                    self._branch_of.setdefault(edge, []).append((number, branch))
        self._ahead, self._ahead_of_calls = self._look_ahead()
        self._askers = _Askers(asked)
        self._came = [np.zeros((self._examples, j.heads or len(j.entries), 2)) for j in asked]
        self._total = np.zeros((self._examples, 2))

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

    def _group(self, example: int, unasked: int) -> int:
        key = example, unasked
        if key not in self._numbers:
            self._numbers[key] = len(self._groups)
            self._groups.append(key)
        return self._numbers[key]

    def _group_of(self, leaf: Value, row: int, first: int) -> int:
        """Give the group of what a leaf sends into a call."""
        unasked = self._ahead_of_calls.get(first, 0) & ~self._askers.of(leaf.id, first)
        return self._group(row if self._examples > 1 else 0, unasked)

    def run(self, leaves: Sequence[Value]) -> Counts:
        """Send what the leaves do, and count."""
        given = [(v, f) for v in leaves if v is not self._forest.loss and (f := given_by(self._forest, v))]
        base = max((f.of for _, f in given), default=0.0)  # weights are compared with each other only
        units = stream(self._forest, kept=self._heads)
        for number, (leaf, found) in enumerate(given):
            self._leave(units, leaf, number - len(given), found, base)
        for call in self._calls:
            for value in call.outputs:
                if value is not None and value is not self._forest.loss:
                    self._pass(units, value)
        for source, edge, group, paths, weight in units.found():
            example, unasked = self._groups[group]
            if source < 0:
                self._total[example] += paths, weight
            for number, branch in self._branch_of.get(edge, ()):
                if not unasked >> number & 1:
                    self._came[number][example, branch] += paths, weight
        return Counts(tuple(self._came), self._total)

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
            example, unasked = self._groups[group]
            becomes[group] = self._group(example, unasked & ahead)
        if any(old != new for old, new in becomes.items()):
            units.regroup(value, becomes)
        units.send_on(value)

    def _count_heads(self, units: Stream, value: Value) -> None:
        number = self._heads[value.id]
        heads, size = self._asked[number].heads, value.numel // value.shape[0]
        for _, place, group, paths, weight in units.at(value):
            example, unasked = self._groups[group]
            if not unasked >> number & 1:
                self._came[number][example, place // size % heads] += paths, weight


def _made(call: Call) -> Value:
    made = call.outputs[0]
    assert made is not None
    return made
