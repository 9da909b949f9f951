"""Crossing: the set of components that each scalar's trace runs through, for all scalars at once.

Backpointers form a forest rooted at the loss, so a scalar's set is its consumer's set and the consumer's own: one
gather for each value, from the loss outwards. A set is the bits of an integer. As long as all scalars of a value have
the same set, it is one integer and no gather.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod

import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners
from ..backward.best import Best
from ..jacobians.index_maps import Affine
from ..kernels import native
from ..kernels.memory import within
from ..kernels.reference import window
from ..recording.components import Component, Membership, Slice
from ..recording.layouts import Layout, contiguous
from ..recording.record import Call, Record, Value
from .flat_index import Places
from .forest import Forest

AT_ONCE = 64  # components in one integer
BLOCK = 1 << 20  # scalars looked up at a time


@dataclass(frozen=True, eq=False, slots=True)
class Sets:
    """The sets of components that the traces of a value's scalars cross, as bits.

    Attributes:
        also: what all of them cross; of at most 64 components as a signed integer.
        plane: batch × shape (the batch possibly 1), what is to be joined with `also`, in integers as short as `word`
            finds; None for nothing.
        edge: where given, `plane` belongs to the edge's target, and nobody has looked it up from here yet.
    """

    also: int
    plane: Tensor | None = None
    edge: Use | None = None

    def joined(self, more: Tensor | int) -> Sets:
        """Join sets with others: an integer, or a tensor that broadcasts to the shape."""
        if isinstance(more, int):
            if self.plane is None:
                return _alike(self.also | more)
            return Sets(self.also | more, self.plane, self.edge) if more else self
        plane = more.unsqueeze(0) if self.plane is None else self.plane | more
        return Sets(self.also, plane)


@lru_cache(maxsize=4096)
def _alike(bits: int) -> Sets:
    """Give the sets of a value whose scalars all have this one: most values of a recurrent network."""
    return Sets(bits)


@dataclass(frozen=True, eq=False, slots=True)
class Crossed:
    """The sets of a leaf's scalars, which may be too many to be held at once.

    Attributes:
        rows: by example, where each has its own; a function from a range of flat positions to their sets.
        numbered: where given, `also` and rows are numbers of sets in this list, which may be of any length.
    """

    leaf: Value
    also: int
    rows: Sequence[Callable[[int, int], Tensor]] | None = None
    numbered: Sequence[int] | None = None

    def set_of(self, word: int) -> int:
        """Give the set that a word stands for."""
        return word if self.numbered is None else self.numbered[word]

    def parts(self, row: int) -> Iterator[tuple[int, int, Tensor]]:
        """Give (begin, end, sets of the scalars from begin to end), piece by piece."""
        assert self.rows is not None
        for begin in range(0, self.leaf.numel, BLOCK):
            end = min(self.leaf.numel, begin + BLOCK)
            bits = self.rows[row if len(self.rows) > 1 else 0](begin, end)
            yield begin, end, bits | self.also if self.also else bits

    def whole(self) -> Tensor:
        """Give all sets: batch × shape."""
        if self.rows is None:
            return torch.full((1, *self.leaf.shape), self.also)
        rows = [torch.cat([part for *_, part in self.parts(b)] or [torch.zeros(0)]) for b in range(len(self.rows))]
        return torch.stack(rows).reshape(-1, *self.leaf.shape)


class Differ(Exception):
    """Scalars of one value cross different components, of which there are more than one integer of a tensor holds."""


def crossing(forest: Forest, components: Sequence[Component], leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Give for each leaf the set of components that each scalar's trace crosses.

    Bit i stands for components[i]. What is said of scalars without a trace means nothing.

    Raises:
        Differ: there are more than `AT_ONCE` components, and scalars of one value cross different ones.
    """
    yield from crossed_by(forest, Own(forest.record, components), leaves)


def crossed_by(forest: Forest, own: Own, leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Give what leaves' traces cross, in the form that `own` keeps sets in."""
    if forest.compact is None:
        yield from _by_pointers(forest, own, leaves)
    else:
        yield from _by_winners(forest, forest.compact, own, leaves)


class Own:
    """The components that a call's results, or a leaf's scalars, are in themselves."""

    def __init__(self, record: Record, components: Sequence[Component]) -> None:
        self.record, self.word = record, word(len(components))
        self.many, self._members = len(components) > AT_ONCE, Membership(components)
        self._slices = [(i, c) for i, c in enumerate(components) if isinstance(c, Slice)]
        self._cut = sum(1 << i for i, _ in self._slices)

    def of(self, call: Call, shape: tuple[int, ...]) -> Tensor | int:
        """Give the bits of a result; as a tensor, they broadcast to its shape."""
        here = self._members.of(call)
        slices = [(i, c.mask(shape, call)) for i, c in self._slices if here >> i & 1] if here & self._cut else ()
        whole = here & ~self._cut
        return self._sliced(whole if self.many else signed(whole), slices)

    def of_leaf(self, leaf: Value) -> Tensor | int:
        """Give the slices that a leaf's own scalars are in: expert weights, say."""
        named = [(i, c) for i, c in self._slices if c.module == leaf.name]
        return self._sliced(0, [(i, c.mask(leaf.shape)) for i, c in named])

    def joined(self, sets: Sets, more: Tensor | int) -> Sets:
        """Join the sets of a value's consumers with its own."""
        return sets.joined(more)

    def united(self, sets: Tensor, more: Tensor | int) -> Tensor:
        """Join some sets of scalars with another."""
        return sets | more

    def tell_apart(self) -> None:
        """Be told that scalars of one value have different sets, which takes integers of a tensor.

        Raises:
            Differ: there are more components than those have bits.
        """
        if self.many:
            raise Differ

    def _sliced(self, whole: int, masks: Sequence[tuple[int, Tensor | None]]) -> Tensor | int:
        out: Tensor | int = whole
        for i, mask in masks:
            if mask is not None:
                self.tell_apart()
                out = out | (mask.to(self.word) << i)
        return out


def word(components: int) -> torch.dtype:
    """Give the shortest integers that have a bit for each component; in the longest one of them is the sign."""
    sizes = (8, torch.uint8), (15, torch.int16), (31, torch.int32)
    return next((kind for most, kind in sizes if components <= most), torch.int64)


def signed(bits: int) -> int:
    """Read 64 bits as the signed integer that a tensor holds."""
    return bits - (1 << 64) if bits >> 63 else bits


def _by_pointers(forest: Forest, own: Own, leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Read sets off backpointers."""
    places = Places.of(forest)
    bits = torch.zeros(places.total, dtype=torch.int64)
    for call in reversed(forest.record.calls):
        for value, at, numel in places.results(call):
            winners = forest.winners.get(value.id)
            if winners is None:
                continue
            found = own.united(_inherited(places, winners, bits), own.of(call, value.shape))
            for b, row in enumerate(found):
                bits[at.start + b * numel : at.stop + b * numel] = row.flatten()
    for leaf in leaves:
        found = own.united(_inherited(places, forest.winners[leaf.id], bits), own.of_leaf(leaf))
        yield _held(leaf, 0, found)


def _held(leaf: Value, also: int, plane: Tensor) -> Crossed:
    """Give sets that are held at once (batch × shape)."""
    flat = plane.expand(len(plane), *leaf.shape).reshape(len(plane), -1)
    return Crossed(leaf, also, [lambda begin, end, r=row: r[begin:end].to(torch.int64) for row in flat])


def _inherited(places: Places, winners: Tensor, bits: Tensor) -> Tensor:
    """Give each scalar the set of its winning consumer."""
    live, consumer = places.consumers(winners)
    return bits[consumer].masked_fill_(~live, 0)


def _by_winners(forest: Forest, found: Best, own: Own, leaves: Sequence[Value]) -> Iterator[Crossed]:
    """Read sets off compact winners; a leaf's as soon as can be, so that nobody's are kept longer than needed."""
    sets: dict[int, Sets] = {forest.loss.id: Sets(0)}
    waiting = _Waiting(found, leaves)
    for call in reversed(forest.record.calls):
        for value in call.outputs:
            if value is None or (value.id not in found.winners and value is not forest.loss):
                continue
            winners = found.winners.get(value.id)
            inherited = sets[value.id] if winners is None else _of(winners, sets, forest.batch(value), own)
            here = own.of(call, value.shape)
            if isinstance(here, Tensor) and winners is not None and inherited.edge is not None:
                inherited = _looked_up(winners, sets, forest.batch(value), own)
            sets[value.id] = own.joined(inherited, here)
            waiting.done(value.id, sets)
        for leaf in waiting.ready.pop(call.index, ()):
            yield _of_leaf(leaf, found.winners[leaf.id], own, sets, forest.batch(leaf))
            waiting.done(leaf.id, sets)
    for leaf in leaves:
        if leaf.id not in found.winners:
            here = own.of_leaf(leaf)
            yield Crossed(leaf, here) if isinstance(here, int) else _held(leaf, 0, here.unsqueeze(0))


class _Waiting:
    """Who still needs the sets of a value, and which leaves can be read after a call's results."""

    def __init__(self, found: Best, leaves: Sequence[Value]) -> None:
        self.found, asked = found, {leaf.id for leaf in leaves}
        self.needs: dict[int, int] = {}
        self.ready: dict[int, list[Value]] = {}
        for value_id, winners in found.winners.items():
            if value_id in asked or value_id not in found.planes:  # other leaves are not asked about
                for edge in winners.edges:
                    self.needs[edge.target.id] = self.needs.get(edge.target.id, 0) + 1
        for leaf in leaves:
            if leaf.id in found.winners:
                calls = [edge.target.call for edge in found.winners[leaf.id].edges]
                self.ready.setdefault(min(call.index for call in calls if call is not None), []).append(leaf)

    def done(self, value_id: int, sets: dict[int, Sets]) -> None:
        """Forget the sets that only this value needed."""
        winners = self.found.winners.get(value_id)
        for edge in winners.edges if winners is not None else ():
            self.needs[edge.target.id] -= 1
            if not self.needs[edge.target.id]:
                del sets[edge.target.id]


def _of_leaf(leaf: Value, winners: Winners, own: Own, sets: dict[int, Sets], batch: int) -> Crossed:
    """Give a leaf's sets, to be looked up piece by piece where that is possible."""
    here, shared = own.of_leaf(leaf), _shared(winners, sets)
    if isinstance(here, int) and shared is not None:
        return Crossed(leaf, shared | here)
    if isinstance(here, int):
        own.tell_apart()
        walks = _walks(winners, sets, batch)
        assert walks is not None
        return Crossed(leaf, here, [partial(native.inherit, walk, word=own.word, widen=True) for walk in walks])
    both = _looked_up(winners, sets, batch, own).joined(here)
    assert both.plane is not None
    return _held(leaf, both.also, both.plane)


def _of(winners: Winners, sets: dict[int, Sets], batch: int, own: Own) -> Sets:
    """Give the sets of a value's consumers, looked up only where that cannot be put off."""
    shared = _shared(winners, sets)
    if shared is not None:
        return _alike(shared)
    if len(winners.edges) == 1:
        (edge,) = winners.edges
        source = sets[edge.target.id]
        assert source.plane is not None
        if isinstance(winners, Borrowed):  # what chose its scalars is known at the value that its product went on to
            there = edge if source.edge is None else through(edge, source.edge)
            return Sets(source.also, source.plane, there)
        seen = _seen(winners, edge, source, batch)
        if seen is not None:
            return Sets(source.also, seen)
    return _looked_up(winners, sets, batch, own)


def _shared(winners: Winners, sets: dict[int, Sets]) -> int | None:
    """Give the one set of all scalars; None where they differ."""
    if len(winners.edges) == 1:
        only = sets[winners.edges[0].target.id]
        return only.also if only.plane is None else None
    sources = [sets[edge.target.id] for edge in winners.edges]
    alike = all(s.plane is None and s.also == sources[0].also for s in sources)
    return sources[0].also if alike else None


def through(outer: Use, inner: Use) -> Use:
    """Go by strides to a value that has the axes in another order, and from there by another edge."""
    way, then = outer.way, inner.way
    assert isinstance(way, Affine)
    assert isinstance(then, Affine)
    seen, split = then.shape[1:] if inner.split else then.shape, then.stride[:1] if inner.split else ()
    # which axis of the value between each axis is: the one that it steps along
    steps = {(step, n): d for d, (step, n) in enumerate(zip(contiguous(seen), seen, strict=True))}
    axes = [steps[step, n] if n > 1 else None for n, step in zip(way.shape, way.stride, strict=True)]
    tail = then.stride[1:] if inner.split else then.stride
    stride = (*split, *(0 if d is None else tail[d] for d in axes))
    shape = (*then.shape[:1], *way.shape) if inner.split else way.shape
    return Use(outer.first, inner.target, Affine(shape, stride, then.offset, then.step, then.table), inner.split)


def _seen(winners: Winners, edge: Use, source: Sets, batch: int) -> Tensor | None:
    """See the consumer's sets through the way, where that takes strides alone."""
    way, plane = edge.way, source.plane
    if plane is None or source.edge is not None or not isinstance(way, Affine) or way.stored or edge.split:
        return None
    if len(plane) != batch or way.offset + sum((n - 1) * t for n, t in zip(way.shape, way.stride, strict=True)) < 0:
        return None
    if way.offset < 0:
        return None
    plane = plane.expand(len(plane), *edge.target.shape).contiguous()
    last = way.offset + sum((n - 1) * t for n, t in zip(way.shape, way.stride, strict=True))
    if last >= edge.target.numel:
        return None
    return window(plane, Layout(way.shape, way.stride, way.offset)).reshape(batch, *winners.shape)


def _looked_up(winners: Winners, sets: dict[int, Sets], batch: int, own: Own) -> Sets:
    """Look up the sets of all scalars."""
    walks = _walks(winners, sets, batch)
    if walks is None:
        shared = _shared(winners, sets)
        assert shared is not None
        return _alike(shared)
    own.tell_apart()
    with within(own.record.room):
        rows = [native.inherit(walk, 0, prod(winners.shape), own.word).reshape(winners.shape) for walk in walks]
    return Sets(0, rows[0].unsqueeze(0) if batch == 1 else torch.stack(rows))


def _walks(winners: Winners, sets: dict[int, Sets], batch: int) -> list[native.Walk] | None:
    """Say how the sets of each row are looked up; None where all are one."""
    if _shared(winners, sets) is not None:
        return None
    choice, raw, terms = winners.planes()
    return [
        native.Walk(
            list(winners.shape),
            _row(raw, row),
            _row(choice, row),
            terms,
            [source_of(winners, n, edge, sets[edge.target.id], row) for n, edge in enumerate(winners.edges)],
        )
        for row in range(batch)
    ]


def _row(plane: Tensor | None, row: int) -> Tensor | None:
    return None if plane is None else plane[row if len(plane) > 1 else 0]


def source_of(winners: Winners, ordinal: int, edge: Use, sets: Sets, row: int) -> native.Source:
    """Say where one edge's sets are read."""
    shape = winners.shape
    if sets.plane is None:
        return native.Source(None, sets.also, 0, 0, None, [0] * len(shape))
    there = edge if sets.edge is None else through(edge, sets.edge)
    plane = _row(sets.plane.expand(len(sets.plane), *there.target.shape), row)
    assert plane is not None
    plane = plane.contiguous()
    way = _on(there, shape, row)
    if way is None:  # of another kind: by a table of all scalars' places, or of what is stored
        return _tabled(winners, ordinal, there, plane, sets.also, row)
    table = None if way.table is None else way.table()
    return native.Source(plane, sets.also, way.offset, way.step, table, list(way.stride))


def _tabled(winners: Winners, ordinal: int, edge: Use, plane: Tensor, also: int, row: int) -> native.Source:
    """Read sets through a way that no strides describe: look the place of every scalar of that edge up first."""
    numel = prod(winners.shape)
    raw = None
    if edge.way.stored:
        chosen, raw = winners.at(row, torch.arange(numel))
        if raw is not None and len(winners.edges) > 1:  # what others store is beyond this one's table
            raw = raw.masked_fill(chosen != ordinal, 0)
    flat = torch.from_numpy(edge.all_places(None if raw is None else raw.numpy(), row, numel))
    # an empty result is nobody's consumer
    bits = plane.reshape(-1)[flat.clamp_(0, plane.numel() - 1)] if plane.numel() else plane.new_zeros(numel)
    return native.Source(bits, also, 0, 0, None, list(contiguous(winners.shape)))


def _on(edge: Use, shape: tuple[int, ...], row: int) -> Affine | None:
    """Give an edge's way by strides on the axes of a value, for one row; None where it is of another kind."""
    way = edge.way
    if not isinstance(way, Affine):
        return None
    seen, stride, offset = way.shape, way.stride, way.offset
    if edge.split:  # the examples are the way's first axis, and this row is one of them
        seen, stride, offset = seen[1:], stride[1:], offset + row * stride[0]
    if seen == shape:
        return Affine(shape, stride, offset, way.step, way.table)
    if len(seen) == 1 and seen[0] == prod(shape):
        return Affine(shape, tuple(stride[0] * t for t in contiguous(shape)), offset, way.step, way.table)
    if [n for n in seen if n != 1] != [n for n in shape if n != 1]:
        return None
    real = iter([t for n, t in zip(seen, stride, strict=True) if n != 1])
    return Affine(shape, tuple(next(real) if n != 1 else 0 for n in shape), offset, way.step, way.table)
