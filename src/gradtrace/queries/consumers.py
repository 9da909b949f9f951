"""Consumers: where the traces of many scalars of a value go on, read at once.

`Consumers` reads the winners of a forest as they are stored, small ones or backpointers, and gives for some scalars of
a value the edges that they won through and their places at the far ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ..backward.backpointers import Borrowed, Rows, Winners, tensor_of
from ..backward.walk import EDGE_BITS, offsets
from ..recording.record import Call, Value
from .forest import NONE, Forest

MASK = (1 << EDGE_BITS) - 1


class Part(NamedTuple):
    """Scalars that go on through one edge.

    Attributes:
        call, argument, output: the call that they enter, at which position, and the number of its result.
        which: numbers of the scalars, among those that were asked about; None for all.
        flat: their places in the result.
    """

    call: Call
    argument: int
    output: int
    which: np.ndarray | None
    flat: np.ndarray

    @property
    def target(self) -> Value:
        """The result."""
        made = self.call.outputs[self.output]
        assert made is not None
        return made


@dataclass(eq=False)
class Consumers:
    """Reads a forest's winners for many scalars at once."""

    forest: Forest
    _calls: dict[int, Call] = field(default_factory=dict)

    def compact(self, value: Value) -> Winners | None:
        """Give a value's winners as the compiled kernels stored them, if they did."""
        return None if self.forest.compact is None else self.forest.compact.winners.get(value.id)

    def of(self, value: Value, row: Rows, positions: np.ndarray) -> Iterator[Part]:
        """Tell where some scalars go on (flat, of one row or each of its own); those without a path nowhere."""
        winners = self.compact(value)
        if winners is None:
            yield from self.by_pointers(value, row, positions)
            return
        if isinstance(winners, Borrowed):
            known = winners.known(row, positions)
            if not known.all():  # on no leaf's path
                others, known = np.flatnonzero(~known), np.flatnonzero(known)
                there = self.by_pointers(value, _some(row, others), positions[others])
                here = self._by_winners(value, winners, _some(row, known), positions[known])
                yield from _of_some(there, others)
                yield from _of_some(here, known)
                return
        yield from self._by_winners(value, winners, row, positions)

    def _by_winners(self, value: Value, winners: Winners, row: Rows, positions: np.ndarray) -> Iterator[Part]:
        if len(winners.edges) == 1 and not winners.edges[0].way.stored:
            yield self._part(value, winners, 0, None, positions, None, row)
            return
        chosen, raw = winners.at(tensor_of(row), torch.from_numpy(positions))
        stored = None if raw is None else raw.numpy()
        if len(winners.edges) == 1:
            yield self._part(value, winners, 0, None, positions, stored, row)
            return
        for ordinal, which in _grouped(chosen.numpy()):
            here = None if stored is None else stored[which]
            yield self._part(value, winners, ordinal, which, positions[which], here, _some(row, which))

    def _part(
        self,
        value: Value,
        winners: Winners,
        ordinal: int,
        which: np.ndarray | None,
        positions: np.ndarray,
        stored: np.ndarray | None,
        row: Rows,
    ) -> Part:
        edge = winners.edges[ordinal]
        call = edge.target.call
        assert call is not None
        argument = (edge.first >> EDGE_BITS) - self.forest.edges.first[call.index]
        output = next(n for n, made in enumerate(call.outputs) if made is edge.target)
        return Part(call, argument, output, which, edge.places(positions, stored, row, value.numel))

    def by_pointers(self, value: Value, row: Rows, positions: np.ndarray) -> Iterator[Part]:
        """Do what `of` does by backpointers, which every forest has."""
        winners = self.forest.winners[value.id]
        pointers = winners.reshape(len(winners), -1).numpy()[row if len(winners) > 1 else 0, positions]
        live = np.flatnonzero(pointers != NONE)
        pointers = pointers[live]
        for edge, which in _grouped(pointers >> EDGE_BITS):
            call, flat = self._entered(edge), pointers[which] & MASK
            argument, starts = edge - self.forest.edges.first[call.index], offsets(call)
            if len(starts) == 1:
                yield Part(call, argument, 0, live[which], flat)
                continue
            for output, there in _grouped(np.searchsorted(starts, flat, side="right") - 1):
                yield Part(call, argument, output, live[which[there]], flat[there] - starts[output])

    def _entered(self, edge: int) -> Call:
        """Give the call that an edge, by its number, enters."""
        found = self._calls.get(edge)
        if found is None:
            found = self._calls[edge] = self.forest.step(edge << EDGE_BITS)[0]
        return found


def _some(row: Rows, which: np.ndarray) -> Rows:
    return row if isinstance(row, int) else row[which]


def _of_some(parts: Iterator[Part], asked: np.ndarray) -> Iterator[Part]:
    """Number scalars among all that were asked about, not among those some that were."""
    for part in parts:
        yield part._replace(which=asked if part.which is None else asked[part.which])


def _grouped(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Give each distinct key, and where it stands."""
    if not len(keys):
        return
    if (keys == keys[0]).all():
        yield int(keys[0]), np.arange(len(keys))
        return
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    for part in np.split(order, np.flatnonzero(in_order[1:] != in_order[:-1]) + 1):
        yield int(keys[part[0]]), part
