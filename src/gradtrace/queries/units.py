"""Units: what leaf scalars send along their traces, on its way from value to value.

Leaves send in groups, and what has come to a scalar is kept by group: how many paths, and their weight. Only scalars at
which something has arrived are kept: of the many scalars of a value, traces run through few. A value sends everything
on at once, when no more can arrive, and is forgotten. `Compiled` does so along compact winners, and `ByPointers`, which
is the definition, along backpointers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners
from ..backward.best import Best
from ..jacobians.index_maps import Affine, Raw
from ..kernels import native
from ..recording.record import Value
from .component_sets import through
from .consumers import Consumers
from .forest import NONE, Forest

FARTHEST = 900.0  # powers of two between weights, from which on a float is too narrow for their quotient

Hop: TypeAlias = tuple[int, int]  # from a call, or a leaf (from -1 downwards), to the call that is entered


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


class Stream(Protocol):
    """Units of some groups, on their way."""

    def leave(self, leaf: Value, number: int, given: Given, group: int, base: float) -> None:
        """Send what the scalars of a leaf do: those that are live one path each, of their weight over 2^base."""
        ...

    def send_on(self, value: Value) -> None:
        """Move all units of a value to the consumers through which they go on."""
        ...

    def found(self) -> tuple[list[Hop], np.ndarray]:
        """Give the edges in rising order, and what went along each: edges × groups × (paths, weight)."""
        ...


def stream(forest: Forest, groups: int) -> Stream:
    """Make room for units of some groups."""
    return ByPointers(forest, groups) if forest.compact is None else Compiled(forest, forest.compact, groups)


class ByPointers:
    """Units by value: rows × scalars × groups × (paths, weight)."""

    def __init__(self, forest: Forest, groups: int) -> None:
        self._forest, self._groups, self._consumers = forest, groups, Consumers(forest)
        self._arrived: dict[int, np.ndarray] = {}
        self._edges: dict[Hop, np.ndarray] = {}

    def leave(self, leaf: Value, number: int, given: Given, group: int, base: float) -> None:
        weight, factor = given.over(base)
        live = (weight != 0 if given.live is None else given.live).numpy()
        units = np.zeros((*weight.shape, self._groups, 2))
        units[:, :, group, 0], units[:, :, group, 1] = live, np.where(live, weight.numpy() * factor, 0.0)
        self._send(leaf, number, units)

    def send_on(self, value: Value) -> None:
        come = self._arrived.pop(value.id, None)
        if come is not None:
            assert value.call is not None
            self._send(value, value.call.index, come)

    def _send(self, value: Value, source: int, units: np.ndarray) -> None:
        for row, amounts in enumerate(units):
            positions = np.flatnonzero(amounts[:, :, 0].any(1))
            for part in self._consumers.by_pointers(value, row, positions):
                sent = amounts[positions[part.which]]
                hop, target, batch = (source, part.call.index), part.target, self._forest.batch(part.target)
                self._edges[hop] = self._edges.get(hop, 0.0) + sent.sum(0)
                if target.id not in self._arrived:
                    self._arrived[target.id] = np.zeros((batch, target.numel, self._groups, 2))
                np.add.at(self._arrived[target.id][row if batch > 1 else 0], part.flat, sent)

    def found(self) -> tuple[list[Hop], np.ndarray]:
        hops = sorted(self._edges)
        return hops, np.array([self._edges[hop] for hop in hops]).reshape(len(hops), self._groups, 2)


class Compiled:
    """Units in the hands of the compiled kernel, which follows strides and stored numbers; other ways go by here.

    Where all scalars of a value go the same way to the loss, from call to call, their places are forgotten.
    """

    def __init__(self, forest: Forest, compact: Best, groups: int) -> None:
        self._forest, self._winners, self._groups = forest, compact.winners, groups
        self._units = native.lib.Units(groups)
        self._straight = self._find_straight()

    def _find_straight(self) -> set[int]:
        """Find the values of which all scalars go the same way to the loss."""
        out = {self._forest.loss.id}
        for call in reversed(self._forest.record.calls):
            for value in call.outputs:
                winners = None if value is None else self._winners.get(value.id)
                if winners is not None and len(winners.edges) == 1 and winners.edges[0].target.id in out:
                    assert value is not None
                    out.add(value.id)
        return out

    def leave(self, leaf: Value, number: int, given: Given, group: int, base: float) -> None:
        winners = self._winners.get(leaf.id)
        if winners is None or not leaf.numel:
            return
        weight, factor = given.over(base)
        weight = weight.contiguous()
        live = None if given.live is None else given.live.contiguous()
        known, kept = self._known(winners, number)
        where = weight.dtype is torch.float64, weight.data_ptr(), 0 if live is None else live.data_ptr()
        self._place(leaf, winners, self._units.leave(known, group, len(weight), *where, factor))
        del kept

    def send_on(self, value: Value) -> None:
        straight = value.id in self._straight
        if not (self._units.waits_straight(value.id) if straight else self._units.waits(value.id)):
            return
        winners = self._winners[value.id]
        assert value.call is not None
        edge, *others = winners.edges
        hop = value.call.index, _entered(edge)
        if straight:
            self._units.send_straight(value.id, hop, edge.target.id)
            return
        if not others and edge.same(value.shape):
            self._units.pass_on(value.id, hop, edge.target.id, self._forest.batch(edge.target) > 1)
            return
        known, kept = self._known(winners, value.call.index)
        self._place(value, winners, self._units.send(value.id, known))
        del kept

    def found(self) -> tuple[list[Hop], np.ndarray]:
        found = self._units.found()
        hops = [(source, target) for source, target, _ in found]
        return hops, np.array([amounts for *_, amounts in found]).reshape(len(hops), self._groups, 2)

    def _known(self, winners: Winners, source: int) -> tuple[tuple, list]:
        """Describe winners for the kernel; the second is what has to live as long as it reads."""
        choice, raw, terms = winners.planes()
        ways, tables = [], []
        for edge in winners.edges:
            hops, after = [(source, _entered(edge))], self._winners.get(edge.target.id)
            if isinstance(after, Borrowed) and after.lender is winners:  # what these winners say decides there as well
                (then,) = after.edges
                assert edge.target.call is not None
                hops.append((edge.target.call.index, _entered(then)))
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
