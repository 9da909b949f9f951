"""Units: what leaf scalars send along their traces, on its way from value to value.

Leaves send in groups, and what has come to a scalar is kept by group: how many paths, and their weight. Only scalars at
which something has arrived are kept: of the many scalars of a value, traces run through few. A value sends everything
on at once, when no more can arrive, and is forgotten. `Compiled` does so along compact winners, and `ByPointers`, which
is the definition, along backpointers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners
from ..backward.best import Best
from ..backward.walk import EDGE_BITS
from ..jacobians.index_maps import Affine, Raw
from ..kernels import native
from ..recording.record import Value
from .component_sets import through
from .consumers import Consumers
from .forest import NONE, Forest

FARTHEST = 900.0  # powers of two between weights, from which on a float is too narrow for their quotient

Hop: TypeAlias = tuple[int, int]  # from a call, or a leaf (from -1 downwards), to the argument that is entered
Went: TypeAlias = tuple[int, int, int, float, float]  # (from, argument, group, paths, weight): see `Stream.found`
Waiting: TypeAlias = tuple[int, int, int, float, float]  # (row, flat position, group, paths, weight)
Grouping: TypeAlias = Callable[[int, int], int]  # the group of a row's scalars that enter a call first, by its number


@dataclass(frozen=True)
class Given:
    """What a leaf's scalars may send.

    Attributes:
        weight: rows × scalars, the weights over 2^of.
        live: rows × scalars, which have a trace; None where those are the ones whose weight is not 0.
    """

    weight: Tensor
    live: Tensor | None
    of: float

    def top(self) -> float:
        """Give log2 of the largest weight."""
        return float(self.weight.amax().to(torch.float64).log2() + self.of) if self.weight.numel() else -math.inf

    def over(self, base: float) -> tuple[Tensor, float]:
        """Give the weights over 2^base: as they are, and a factor."""
        shift = self.of - base
        if abs(shift) < FARTHEST:
            return self.weight, 2.0**shift
        return torch.exp2(self.weight.to(torch.float64).log2() + shift), 1.0  # the factor alone is beyond a float


def given_by(forest: Forest, leaf: Value) -> Given | None:
    """Read what a leaf may send; None where nothing leads from it to the loss."""
    if forest.compact is not None:
        plane = forest.compact.weights.get(leaf.id)
        if plane is None:
            return None
        live = forest.compact.live(leaf.id)
        rows = len(plane.data), -1
        return Given(plane.data.reshape(rows), None if live is None else live.reshape(rows), float(plane.exponent))
    log2, live = forest.log2[leaf.id], forest.winners[leaf.id] != NONE
    top = float(log2.max()) if log2.numel() else -math.inf
    relative = torch.zeros_like(log2) if top == -math.inf else torch.exp2(log2 - top)
    return Given(relative.reshape(len(log2), -1), live.reshape(len(log2), -1), 0.0 if top == -math.inf else top)


def live_scalars(forest: Forest, leaf: Value) -> Tensor | None:
    """Tell which scalars of a leaf have a path to the loss, in any row; None where nothing leads from it there."""
    live = _live(forest, leaf)
    return None if live is None else live.any(0)


def live_in_examples(forest: Forest, leaf: Value) -> Tensor:
    """Tell in which examples a path leads from any scalar of a leaf to the loss, of a forest that tells them apart."""
    assert forest.labels is not None
    live = _live(forest, leaf)
    return (torch.zeros(1, dtype=torch.bool) if live is None else live.any(1)).expand(forest.labels.count)


def _live(forest: Forest, leaf: Value) -> Tensor | None:
    """Tell which scalars have a path in which row (rows × scalars); None where nothing leads to the loss."""
    given = None if leaf is forest.loss else given_by(forest, leaf)
    if given is None:
        return None
    return given.weight != 0 if given.live is None else given.live.bool()


def has_path(forest: Forest, leaf: Value) -> bool:
    """Tell whether a path leads to the loss from any scalar of a leaf."""
    live = live_scalars(forest, leaf)
    return live is not None and bool(live.any())


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

    def at(self, value: Value) -> list[Waiting]:
        """Give what waits at the scalars of a value; of a value that is `kept`."""
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
        weight, factor = given.over(base)
        live = (weight != 0 if given.live is None else given.live).numpy()
        for row, (alive, amounts) in enumerate(zip(live, weight.numpy() * factor, strict=True)):
            positions = np.flatnonzero(alive)
            units = np.stack([np.ones(len(positions)), amounts[positions]], 1)
            self._send(leaf, number, row, positions, units, lambda call, row=row: group_of(row, call))

    def groups_at(self, value: Value) -> list[int]:
        return sorted({group for *_, group in self._arrived.get(value.id, ())})

    def regroup(self, value: Value, groups: Mapping[int, int]) -> None:
        come = self._arrived.pop(value.id, {})
        for (row, flat, group), units in come.items():
            _add(self._arrived.setdefault(value.id, {}), (row, flat, groups[group]), units)

    def at(self, value: Value) -> list[Waiting]:
        return [(*key, *units.tolist()) for key, units in self._arrived.get(value.id, {}).items()]

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
        winners = self._winners.get(leaf.id)
        if winners is None or not leaf.numel:
            return
        weight, factor = given.over(base)
        weight = weight.contiguous()
        live = None if given.live is None else given.live.contiguous()
        known, kept = self._known(winners, number)
        where = weight.dtype is torch.float64, weight.data_ptr(), 0 if live is None else live.data_ptr()
        calls = [_entered(edge) for edge in winners.edges]
        groups = [[group_of(row, call) for call in calls] for row in range(len(weight))]
        self._place(leaf, winners, self._units.leave(known, groups, *where, factor))
        del kept

    def groups_at(self, value: Value) -> list[int]:
        return sorted(self._units.groups_at(value.id))

    def regroup(self, value: Value, groups: Mapping[int, int]) -> None:
        self._units.regroup(value.id, value.numel, groups)

    def at(self, value: Value) -> list[Waiting]:
        return self._units.at(value.id)

    def send_on(self, value: Value) -> None:
        straight = value.id in self._straight
        if not (self._units.waits_straight(value.id) if straight else self._units.waits(value.id)):
            return
        winners = self._winners[value.id]
        assert value.call is not None
        edge, *others = winners.edges
        hop = value.call.index, _argument(edge)
        if straight:
            self._units.send_straight(value.id, hop, edge.target.id)
            return
        if not others and edge.same(value.shape) and edge.target.id not in self._straight:
            self._units.pass_on(value.id, hop, edge.target.id, self._forest.batch(edge.target) > 1)
            return
        known, kept = self._known(winners, value.call.index)
        self._place(value, winners, self._units.send(value.id, known))
        del kept

    def found(self) -> list[Went]:
        return self._units.found()

    def _known(self, winners: Winners, source: int) -> tuple[tuple, list]:
        """Describe winners for the kernel; the second is what has to live as long as it reads."""
        choice, raw, terms = winners.planes()
        ways, tables = [], []
        for edge in winners.edges:
            hops, after = [(source, _argument(edge))], self._winners.get(edge.target.id)
            if isinstance(after, Borrowed) and after.lender is winners:  # what these winners say decides there as well
                (then,) = after.edges
                assert edge.target.call is not None
                hops.append((edge.target.call.index, _argument(then)))
                edge = through(edge, then)
            way, target = edge.way, edge.target
            if type(way) is Affine:
                strided, table = (True, way.shape, way.stride, way.offset, way.step), way.table and way.table()
            else:
                strided, table = (type(way) is Raw, (), (), 0, 1), None
            if table is not None:
                table = table.contiguous()
                tables.append(table)
            address = 0 if table is None else table.data_ptr()
            rows, straight = self._forest.batch(target) > 1, target.id in self._straight
            ways.append((hops, target.id, rows, straight, edge.split, *strided, address, target.numel))
        numbers = (0, 0) if terms is None else (terms[0].data_ptr(), terms[1].data_ptr())
        known = winners.shape, native.plane(raw), native.plane(choice), numbers, ways
        return known, [choice, raw, terms, tables]

    def _place(self, value: Value, winners: Winners, waiting: list[tuple[int, int, int, bytes, bytes]]) -> None:
        """Follow ways that are not strided."""
        for number, ordinal, row, places, stored in waiting:
            edge, at = winners.edges[ordinal], np.frombuffer(bytearray(places), np.int64)
            numbers = np.frombuffer(bytearray(stored), np.int64) if edge.way.stored else None
            found = np.ascontiguousarray(edge.places(at, numbers, row, value.numel), np.int64)
            self._units.place(number, found.ctypes.data)


def _entered(edge: Use) -> int:
    """Give the number of the call that an edge enters."""
    assert edge.target.call is not None
    return edge.target.call.index


def _argument(edge: Use) -> int:
    """Give the number, among all edges, of the argument that an edge enters."""
    return edge.first >> EDGE_BITS
