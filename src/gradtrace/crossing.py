"""Crossing: the set of components that each scalar's trace runs through, for all scalars at once.

Backpointers form a forest rooted at the loss, so a scalar's set is its consumer's set and the consumer's own: one
gather for each value, from the loss outwards. A set is the bits of an integer. As long as all scalars of a value have
the same set, it is one integer and no gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from .best import Best
from .components import Component, Slice, matches, name_of
from .forest import NONE, Forest
from .places import Places
from .tape import Call, Record, Value
from .ways import Affine
from .winners import Edge, Winners

AT_ONCE = 64  # components in one integer
BLOCK = 1 << 22  # scalars looked up at a time

Bits: TypeAlias = Tensor | int


def crossing(forest: Forest, components: Sequence[Component], leaves: Sequence[Value]) -> Iterator[tuple[Value, Bits]]:
    """Give for each leaf the set of components that each scalar's trace crosses, as bits (batch × shape).

    Bit i stands for components[i]; at most `AT_ONCE` of them. An integer stands for the same set everywhere; what
    is said of scalars without a trace means nothing.
    """
    own = Own(forest.record, components)
    if forest.compact is None:
        yield from _by_pointers(forest, own, leaves)
    else:
        yield from _by_winners(forest, forest.compact, own, leaves)


class Own:
    """The components that a call's results, or a leaf's scalars, are in themselves."""

    def __init__(self, record: Record, components: Sequence[Component]) -> None:
        self.record, self.components = record, list(enumerate(components))
        self._known: dict[object, tuple[int, list[tuple[int, Slice]]]] = {}

    def of(self, call: Call, shape: tuple[int, ...]) -> Bits:
        """Give the bits of a result; as a tensor, they broadcast to its shape."""
        key = tuple((s.name, s.instance) for s in call.scopes)
        if key not in self._known:
            here = [(i, c) for i, c in self.components if matches(call, name_of(c))]
            whole = signed(sum(1 << i for i, c in here if not isinstance(c, Slice)))
            self._known[key] = whole, [(i, c) for i, c in here if isinstance(c, Slice)]
        whole, slices = self._known[key]
        return _sliced(whole, [(i, c.mask(shape, call)) for i, c in slices])

    def of_leaf(self, leaf: Value) -> Bits:
        """Give the slices that a leaf's own scalars are in: expert weights, say."""
        named = [(i, c) for i, c in self.components if isinstance(c, Slice) and c.module == leaf.name]
        return _sliced(0, [(i, c.mask(leaf.shape)) for i, c in named])


def signed(bits: int) -> int:
    """Read 64 bits as the signed integer that a tensor holds."""
    return bits - (1 << 64) if bits >> 63 else bits


def _sliced(whole: int, masks: Sequence[tuple[int, Tensor | None]]) -> Bits:
    out: Bits = whole
    for i, mask in masks:
        if mask is not None:
            out = out | (mask.to(torch.int64) << i)
    return out


def _by_pointers(forest: Forest, own: Own, leaves: Sequence[Value]) -> Iterator[tuple[Value, Bits]]:
    """Read sets off backpointers."""
    places = Places.of(forest)
    bits = torch.zeros(places.total, dtype=torch.int64)
    for call in reversed(forest.record.calls):
        for value, at, numel in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None:
                continue
            found = _inherited(places, winners, bits) | own.of(call, value.shape)
            for b, row in enumerate(found):
                bits[at.start + b * numel : at.stop + b * numel] = row.flatten()
    for leaf in leaves:
        yield leaf, _with_batch(_inherited(places, forest.winners[leaf.id], bits) | own.of_leaf(leaf), leaf)


def _inherited(places: Places, winners: Tensor, bits: Tensor) -> Tensor:
    """Give each scalar the set of its winning consumer."""
    live, consumer = places.consumers(winners)
    return bits[consumer].masked_fill_(~live, 0)


def _by_winners(forest: Forest, found: Best, own: Own, leaves: Sequence[Value]) -> Iterator[tuple[Value, Bits]]:
    """Read sets off compact winners, freeing those that no value before needs."""
    sets: dict[int, Bits] = {}
    for call in reversed(forest.record.calls):
        for value in call.outputs:
            if value is None or (value.id not in found.winners and value is not forest.loss):
                continue
            inherited: Bits = 0 if value is forest.loss else inherit(found.winners[value.id], sets, forest.batch(value))
            sets[value.id] = _with_batch(inherited | own.of(call, value.shape), value)
    for leaf in leaves:
        winners = found.winners.get(leaf.id)
        inherited = 0 if winners is None else inherit(winners, sets, forest.batch(leaf))
        yield leaf, _with_batch(inherited | own.of_leaf(leaf), leaf)


def _with_batch(bits: Bits, value: Value) -> Bits:
    """Give sets as an integer or as batch × shape, the batch possibly 1."""
    if isinstance(bits, int):
        return bits
    bits = bits.unsqueeze(0) if bits.dim() == len(value.shape) else bits
    return bits.expand(len(bits), *value.shape)


def inherit(winners: Winners, sets: dict[int, Bits], batch: int) -> Bits:
    """Give each scalar of a value the set of its winning consumer."""
    sources = [sets[edge.target.id] for edge in winners.edges]
    first = sources[0]
    if isinstance(first, int) and all(isinstance(s, int) and s == first for s in sources):
        return first
    if len(sources) == 1:
        seen = _seen(winners, winners.edges[0], first, batch)
        if seen is not None:
            return seen
    out = torch.empty((batch, *winners.shape), dtype=torch.int64)
    numel = prod(winners.shape)
    for row in range(batch):
        flat = out[row].reshape(-1)
        for start in range(0, numel, BLOCK):
            positions = torch.arange(start, min(numel, start + BLOCK))
            flat[start : start + BLOCK] = _looked_up(winners, sources, row, positions)
    return out


def _seen(winners: Winners, edge: Edge, source: Bits, batch: int) -> Tensor | None:
    """See the consumer's sets through the way, where that takes strides alone."""
    way = edge.way
    if not isinstance(source, Tensor) or not isinstance(way, Affine) or way.stored or edge.split:
        return None
    if len(source) != batch:
        return None
    source = source.contiguous()
    seen = source.as_strided((batch, *way.shape), (source.stride(0), *way.stride), way.offset)
    return seen.reshape(batch, *winners.shape)


def _looked_up(winners: Winners, sources: Sequence[Bits], row: int, positions: Tensor) -> Tensor:
    chosen, raw = winners.bulk(row, positions)
    out = torch.zeros_like(positions)
    for ordinal, (edge, source) in enumerate(zip(winners.edges, sources, strict=True)):
        one = len(sources) == 1
        here = slice(None) if one else (chosen == ordinal).nonzero().squeeze(-1)
        if isinstance(source, int):
            out[here] = source
            continue
        where = positions[here] + (row * prod(winners.shape) if edge.split else 0)
        flat = edge.way.flat(where, None if raw is None else raw[here])
        plane = source[row if len(source) > 1 else 0].reshape(-1)
        out[here] = plane[flat.clamp_(0, edge.target.numel - 1)]
    return out
