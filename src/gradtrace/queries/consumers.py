"""Consumers: where the traces of many scalars of a value go on, read at once.

`Consumers` reads the winners of a forest as they are stored, small ones or backpointers, and gives for some scalars,
or for all of them, the edges that they won through and their places at the far ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners
from ..backward.walk import EDGE_BITS, offsets
from ..kernels import native
from ..recording.record import Call, Value
from .component_sets import Sets, source_of, through
from .forest import NONE, Forest

MASK = (1 << EDGE_BITS) - 1
BLOCK = 1 << 20  # scalars looked up at a time
MOST_PLACES = 1 << 30  # that are numbered in 32 bits


Hop: TypeAlias = tuple[int | str, int]  # an edge: the number of the call, or the leaf's name, and of the call entered


class Part(NamedTuple):
    """Scalars that go on through one edge, or several in a row.

    Attributes:
        hops: the edges.
        target: the value that they lead to.
        which: numbers of the scalars, among those that were asked about; None for all.
        flat: their places in the target.
    """

    hops: tuple[Hop, ...]
    target: Value
    which: np.ndarray | None
    flat: np.ndarray


class Section(NamedTuple):
    """A range of numbers that stands for the scalars of one target: begin … begin + target.numel."""

    hops: tuple[Hop, ...]
    target: Value
    begin: int


@dataclass(eq=False)
class Consumers:
    """Reads a forest's winners for many scalars at once."""

    forest: Forest
    _calls: dict[int, Call] = field(default_factory=dict)
    _numbers: Tensor | None = None

    def call_of(self, edge: int) -> Call:
        """Give the call that an edge, by its number, enters."""
        found = self._calls.get(edge)
        if found is None:
            found = self._calls[edge] = self.forest.step(edge << EDGE_BITS)[0]
        return found

    def compact(self, value: Value) -> Winners | None:
        """Give a value's winners as the compiled kernels stored them, if they did."""
        return None if self.forest.compact is None else self.forest.compact.winners.get(value.id)

    def straight(self) -> set[int]:
        """Find the values of which all scalars go the same way to the loss, from call to call."""
        out = {self.forest.loss.id}
        for call in reversed(self.forest.record.calls):
            for value in call.outputs:
                winners = None if value is None else self.compact(value)
                if winners is not None and len(winners.edges) == 1 and winners.edges[0].target.id in out:
                    assert value is not None
                    out.add(value.id)
        return out

    def only(self, value: Value) -> tuple[Hop, Value]:
        """Give the only edge by which a value's scalars go on, and where it leads."""
        winners = self.compact(value)
        assert winners is not None
        return self._hop(value, winners.edges[0]), winners.edges[0].target

    def of(self, value: Value, row: int, positions: np.ndarray) -> Iterator[Part]:
        """Tell where some scalars (flat positions of one row) go on; those without a path nowhere."""
        winners = self.compact(value)
        if winners is None:
            yield from self._by_pointers(value, row, positions)
            return
        if len(winners.edges) == 1 and not winners.edges[0].way.stored:
            yield self._part(value, winners, 0, None, positions, None, row)
            return
        chosen, raw = winners.at(row, torch.from_numpy(positions))
        stored = None if raw is None else raw.numpy()
        if len(winners.edges) == 1:
            yield self._part(value, winners, 0, None, positions, stored, row)
            return
        for ordinal, which in _grouped(chosen.numpy()):
            here = None if stored is None else stored[which]
            yield self._part(value, winners, ordinal, which, positions[which], here, row)

    def _part(
        self,
        value: Value,
        winners: Winners,
        ordinal: int,
        which: np.ndarray | None,
        positions: np.ndarray,
        stored: np.ndarray | None,
        row: int,
    ) -> Part:
        edge = winners.edges[ordinal]
        return Part((self._hop(value, edge),), edge.target, which, edge.places(positions, stored, row, value.numel))

    def _hop(self, value: Value, edge: Use) -> Hop:
        entered, maker = edge.target.call, value.call
        assert entered is not None
        return str(value.name) if maker is None else maker.index, entered.index

    def _by_pointers(self, value: Value, row: int, positions: np.ndarray) -> Iterator[Part]:
        winners = self.forest.winners[value.id]
        pointers = winners[row if len(winners) > 1 else 0].reshape(-1)[torch.from_numpy(positions)].numpy()
        live = np.flatnonzero(pointers != NONE)
        pointers = pointers[live]
        for edge, which in _grouped(pointers >> EDGE_BITS):
            call, flat = self.call_of(edge), pointers[which] & MASK
            maker, starts = value.call, offsets(call)
            hop = str(value.name) if maker is None else maker.index, call.index
            if len(starts) == 1:
                assert call.outputs[0] is not None
                yield Part((hop,), call.outputs[0], live[which], flat)
                continue
            for output, there in _grouped(np.searchsorted(starts, flat, side="right") - 1):
                made = call.outputs[output]
                assert made is not None
                yield Part((hop,), made, live[which[there]], flat[there] - starts[output])

    # ------------------------------------------------------------ all scalars

    def sections(self, value: Value) -> list[Section]:
        """Give ranges of numbers for the targets of a value's edges; none where `numbers` has nothing to say."""
        winners = self.compact(value)
        if winners is None or isinstance(winners, Borrowed):
            return []
        out, begin = [], 0
        for edge in winners.edges:
            hops, target, after = [self._hop(value, edge)], edge.target, self._after(winners, edge)
            if after is not None:
                hops.append(self._hop(target, after))
                target = after.target
            out.append(Section(tuple(hops), target, begin))
            begin += target.numel
        return out if begin < MOST_PLACES else []

    def _after(self, winners: Winners, edge: Use) -> Use | None:
        """Give the edge after one, where what the value's own winners say decides about it as well."""
        after = self.compact(edge.target)
        return after.edges[0] if isinstance(after, Borrowed) and after.lender is winners else None

    def numbers(self, value: Value, row: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Give (begin, end, numbers of the places where the scalars from begin to end go on), piece by piece.

        What is said of scalars without a path means nothing.
        """
        winners = self.compact(value)
        assert winners is not None
        choice, raw, terms = winners.planes()
        planes = [None if p is None else p[row if len(p) > 1 else 0] for p in (raw, choice)]
        sources, at = [], 0
        for edge in winners.edges:
            after = self._after(winners, edge)
            there = edge if after is None else through(edge, after)
            sources.append(source_of(winners, there, Sets(0, self._numbered(there.target, at)), row))
            at += there.target.numel
        walk = native.Walk(list(winners.shape), planes[0], planes[1], terms, sources)
        for begin in range(0, value.numel, BLOCK):
            end = min(value.numel, begin + BLOCK)
            yield begin, end, native.inherit(walk, begin, end, torch.int32, widen=True).numpy()

    def _numbered(self, target: Value, begin: int) -> Tensor:
        """Number the scalars of a target: 1 × shape."""
        end = begin + target.numel
        if self._numbers is None or len(self._numbers) < end:
            self._numbers = torch.arange(max(end, 1 << 16), dtype=torch.int32)
        return self._numbers[begin:end].reshape(1, *target.shape)


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
