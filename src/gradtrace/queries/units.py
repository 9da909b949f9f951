"""Units: what leaf scalars send along their traces, on its way from value to value.

Leaves send in groups, and what has come to a scalar is kept by group: how many paths, and their weight. Only scalars at
which something has arrived are kept: of the many scalars of a value, traces run through few. A value sends everything
on at once, when no more can arrive, and is forgotten. `Compiled` does so along compact winners, and `ByPointers`, which
is the definition, along backpointers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Protocol, TypeAlias

import numpy as np

from ..backward.best import Best
from ..kernels import native
from ..recording.record import Value
from .consumers import Consumers
from .departures import Given, ahead_of, argument, departed, described, placed, routed
from .forest import Forest

Went: TypeAlias = tuple[int, int, int, float, float]  # (from, argument, group, paths, weight): see `Stream.found`
Waiting: TypeAlias = tuple[int, int, float, float]  # (number of a part, group, paths, weight)
Grouping: TypeAlias = Callable[[int, int], int]  # the group of a row's scalars that enter a call first, by its number


class Stream(Protocol):
    """Units of some groups, on their way."""

    def leave(self, leaf: Value, number: int, given: Given, group_of: Grouping, base: float) -> None:
        """Send what the scalars of a leaf do: those that are live one path each, of their weight over 2^base."""
        ...

    def groups_at(self, value: Value) -> list[int]:
        """Give the groups of which something waits at a value."""
        ...

    def regroup(self, value: Value, groups: Mapping[int, int]) -> None:
        """Count what waits at a value to other groups from here on."""
        ...

    def parts(self, value: Value, size: int, count: int) -> list[Waiting]:
        """Give what waits at a value that is `kept`, of which so many parts of a size follow each other, in turn."""
        ...

    def send_on(self, value: Value) -> None:
        """Move all units of a value to the consumers through which they go on."""
        ...

    def found(self) -> list[Went]:
        """Give what went along every edge: from a call or leaf into an argument, which has a number among all edges."""
        ...


def stream(forest: Forest, kept: Container[int] = ()) -> Stream:
    """Begin a pass.

    Args:
        kept: ids of values at which it will be asked what came to each scalar.
    """
    return ByPointers(forest) if forest.compact is None else Compiled(forest, forest.compact, kept)


class ByPointers:
    """Units by value: for each (row, flat position, group) a pair of paths and weight."""

    def __init__(self, forest: Forest) -> None:
        self._forest, self._consumers = forest, Consumers(forest)
        self._arrived: dict[int, dict[tuple[int, int, int], np.ndarray]] = {}
        self._edges: dict[tuple[int, int, int], np.ndarray] = {}

    def leave(self, leaf: Value, number: int, given: Given, group_of: Grouping, base: float) -> None:
        weight = given.over(base).numpy()
        for row, (alive, amounts) in enumerate(zip(given.alive().numpy(), weight, strict=True)):
            positions = np.flatnonzero(alive)
            units = np.stack([np.ones(len(positions)), amounts[positions]], 1)
            self._send(leaf, number, row, positions, units, lambda call, row=row: group_of(row, call))

    def groups_at(self, value: Value) -> list[int]:
        return sorted({group for *_, group in self._arrived.get(value.id, ())})

    def regroup(self, value: Value, groups: Mapping[int, int]) -> None:
        come = self._arrived.pop(value.id, {})
        for (row, flat, group), units in come.items():
            _add(self._arrived.setdefault(value.id, {}), (row, flat, groups[group]), units)

    def parts(self, value: Value, size: int, count: int) -> list[Waiting]:
        come = self._arrived.get(value.id, {})
        return [(flat // size % count, group, *units.tolist()) for (_, flat, group), units in come.items()]

    def send_on(self, value: Value) -> None:
        come = self._arrived.pop(value.id, {})
        alike: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
        for (row, flat, group), units in come.items():
            alike.setdefault((row, group), []).append((flat, units))
        for (row, group), found in alike.items():
            assert value.call is not None
            positions, units = np.array([flat for flat, _ in found]), np.stack([units for _, units in found])
            self._send(value, value.call.index, row, positions, units, lambda call, group=group: group)

    def _send(
        self,
        value: Value,
        source: int,
        row: int,
        positions: np.ndarray,
        units: np.ndarray,
        group_of: Callable[[int], int],
    ) -> None:
        for part in self._consumers.by_pointers(value, row, positions):
            sent, group = units[slice(None) if part.which is None else part.which], group_of(part.call.index)
            edge, target = self._forest.edges.first[part.call.index] + part.argument, part.target
            _add(self._edges, (source, edge, group), sent.sum(0))
            there, arrived = row if self._forest.batch(target) > 1 else 0, self._arrived.setdefault(target.id, {})
            for flat, amount in zip(part.flat.tolist(), sent, strict=True):
                _add(arrived, (there, flat, group), amount)

    def found(self) -> list[Went]:
        return [(*key, *units.tolist()) for key, units in sorted(self._edges.items())]


def _add(sums: dict[tuple[int, int, int], np.ndarray], key: tuple[int, int, int], more: np.ndarray) -> None:
    sums[key] = sums[key] + more if key in sums else more


class Compiled:
    """Units in the hands of the compiled kernel, which follows strides and stored numbers; other ways go by here.

    Where all scalars of a value go the same way to the loss, from call to call, their places are forgotten.
    """

    def __init__(self, forest: Forest, compact: Best, kept: Container[int] = ()) -> None:
        self._forest, self._winners = forest, compact.winners
        self._units = native.lib.Units()
        self._straight = self._find_straight(kept)

    def _find_straight(self, kept: Container[int]) -> set[int]:
        """Find the values of which all scalars go the same way to the loss, and nobody asks about one of them."""
        out = {self._forest.loss.id}
        for call in reversed(self._forest.record.calls):
            for value in call.outputs:
                winners = None if value is None else self._winners.get(value.id)
                if value is None or winners is None or value.id in kept:
                    continue
                if len(winners.edges) == 1 and winners.edges[0].target.id in out:
                    out.add(value.id)
        return out

    def leave(self, leaf: Value, number: int, given: Given, group_of: Grouping, base: float) -> None:
        shift, ahead = given.of - base, ahead_of(self._forest, leaf)
        if ahead is not None and len(ahead.routes) == 1 and (way := ahead.routes[0]).edge.target.id in self._straight:
            for row, (count, weight) in enumerate(given.totals):
                if count:
                    where = way.hops(number), way.edge.target.id, group_of(row, way.enters)
                    self._units.leave_straight(*where, count, weight, shift)
            return
        gone = departed(self._forest, leaf)
        if gone is None:
            return
        groups = [[group_of(row, route.enters) for route in gone.routes] for row in range(gone.rows)]
        ways = [
            (r.hops(number), target.id, self._forest.batch(target) > 1, target.id in self._straight)
            for r in gone.routes
            for target in [r.edge.target]
        ]
        self._units.leave(gone.sent, ways, groups, shift)

    def groups_at(self, value: Value) -> list[int]:
        return sorted(self._units.groups_at(value.id))

    def regroup(self, value: Value, groups: Mapping[int, int]) -> None:
        self._units.regroup(value.id, value.numel, groups)

    def parts(self, value: Value, size: int, count: int) -> list[Waiting]:
        return self._units.parts(value.id, size, count)

    def send_on(self, value: Value) -> None:
        straight = value.id in self._straight
        if not (self._units.waits_straight(value.id) if straight else self._units.waits(value.id)):
            return
        winners = self._winners[value.id]
        assert value.call is not None
        edge, *others = winners.edges
        hop = value.call.index, argument(edge)
        if straight:
            self._units.send_straight(value.id, hop, edge.target.id)
            return
        if not others and edge.same(value.shape) and edge.target.id not in self._straight:
            self._units.pass_on(value.id, hop, edge.target.id, self._forest.batch(edge.target) > 1)
            return
        ahead = routed(winners, self._winners)
        known, kept = described(self._forest, ahead, value.call.index, self._straight)
        for number, _, _, found in placed(ahead.routes, self._units.send(value.id, known), value.numel):
            self._units.place(number, found.ctypes.data)
        del kept

    def found(self) -> list[Went]:
        return self._units.found()
