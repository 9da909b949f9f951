"""Crossing: the set of components that each scalar's trace runs through, for all scalars at once.

Backpointers form a forest rooted at the loss, so a scalar's set is its consumer's set and the consumer's own: one
gather for each value, from the loss outwards. A set is the bits of an integer. As long as all scalars of a value have
the same set, it is one integer and no gather.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners, through
from ..backward.best import Best
from ..jacobians.index_maps import Affine, Reordered
from ..kernels import native
from ..kernels.memory import within
from ..kernels.reference import window
from ..recording.components import Component, Membership, Slice
from ..recording.layouts import Layout, contiguous
from ..recording.record import Call, Record, Value
from .departures import Ahead, Counted, Departed, Route, ahead_of, departed, direct
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
        counted: where given, how many traces have which of the words in `rows`, without a look at each of them.
    """

    leaf: Value
    also: int
    rows: Sequence[Callable[[int, int], Tensor]] | None = None
    numbered: Sequence[int] | None = None
    counted: Callable[[], list[Counted]] | None = None

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
    ahead = {leaf.id: found_ahead for leaf in leaves if (found_ahead := _ahead(forest, leaf, own)) is not None}
    waiting = _Waiting(found, ahead, leaves)
    for call in reversed(forest.record.calls):
        for value in call.outputs:
            if value is None or (value.id not in waiting.reads and value is not forest.loss):
                continue
            winners = found.winners.get(value.id)
            sources = [] if winners is None else [sets[edge.target.id] for edge in winners.edges]
            inherited = sets[value.id] if winners is None else _of(winners, sources, forest.batch(value), own)
            here = own.of(call, value.shape)
            if isinstance(here, Tensor) and winners is not None and inherited.edge is not None:
                inherited = _looked_up(winners, sources, forest.batch(value), own)
            sets[value.id] = own.joined(inherited, here)
            waiting.done(value.id, sets)
        for leaf in waiting.ready.pop(call.index, ()):
            yield _of_leaf(forest, leaf, ahead[leaf.id], own, sets)
            waiting.done(leaf.id, sets)
    for leaf in leaves:
        if leaf.id not in ahead:
            here = own.of_leaf(leaf)
            yield Crossed(leaf, here) if isinstance(here, int) else _held(leaf, 0, here.unsqueeze(0))


def _ahead(forest: Forest, leaf: Value, own: Own) -> Ahead | None:
    """Look past operators that tell none of a leaf's scalars apart."""
    ahead = ahead_of(forest, leaf)
    if ahead is None or (
        isinstance(own.of_leaf(leaf), int) and all(_between(r, own) is not None for r in ahead.routes)
    ):
        return ahead
    assert forest.compact is not None
    return direct(forest.compact.winners[leaf.id])


def _between(route: Route, own: Own) -> int | None:
    """Give what all scalars cross that go by a route, before its end; None where they cross different components."""
    out = 0
    for value in route.between:
        assert value.call is not None
        here = own.of(value.call, value.shape)
        if not isinstance(here, int):
            return None
        out |= here
    return out


class _Waiting:
    """Who still needs the sets of a value, and which leaves can be read after a call's results.

    Attributes:
        reads: by id of a value whose sets somebody needs, or of a leaf, the ids of those whose sets it needs itself.
        ready: by number of a call, the leaves that can be read when it is done.
    """

    def __init__(self, found: Best, ahead: Mapping[int, Ahead], leaves: Sequence[Value]) -> None:
        self.reads = {i: _targets(winners) for i, winners in found.winners.items() if i not in found.planes}
        passed = {v.id for of in ahead.values() for route in of.routes for v in route.between}
        self.reads |= {i: _targets(of.winners) for i, of in ahead.items()}
        waiting = [i for i in self.reads if i not in passed]
        while waiting:  # some of those that leaves look past are read by others, and by those in turn
            needed = passed.intersection(self.reads[waiting.pop()])
            waiting += needed
            passed -= needed
        self.reads = {i: targets for i, targets in self.reads.items() if i not in passed}
        self.needs = Counter(target for targets in self.reads.values() for target in targets)
        self.ready: dict[int, list[Value]] = {}
        for leaf in leaves:
            if leaf.id in ahead:
                calls = [edge.target.call for edge in ahead[leaf.id].winners.edges]
                self.ready.setdefault(min(call.index for call in calls if call is not None), []).append(leaf)

    def done(self, value_id: int, sets: dict[int, Sets]) -> None:
        """Forget the sets that only this value needed."""
        for target in self.reads.get(value_id, ()):
            self.needs[target] -= 1
            if not self.needs[target]:
                del sets[target]


def _targets(winners: Winners) -> list[int]:
    return [edge.target.id for edge in winners.edges]


def _of_leaf(forest: Forest, leaf: Value, ahead: Ahead, own: Own, sets: dict[int, Sets]) -> Crossed:
    """Give a leaf's sets, to be looked up piece by piece where that is possible."""
    here, winners, batch = own.of_leaf(leaf), ahead.winners, forest.batch(leaf)
    sources = [own.joined(sets[r.edge.target.id], _between(r, own) or 0) for r in ahead.routes]
    if isinstance(here, int) and (shared := _shared(sources)) is not None:
        return Crossed(leaf, shared | here)
    if isinstance(here, int):
        own.tell_apart()
        gone = departed(forest, leaf)
        ends = [r.edge.target.id for r in gone.routes] if gone is not None else None
        counted = _counted(gone, sources, own.word) if gone is not None and ends == _targets(winners) else None
        return Crossed(leaf, here, _ByRow(winners, sources, batch, own.word), counted=counted)
    both = _looked_up(winners, sources, batch, own).joined(here)
    assert both.plane is not None
    return _held(leaf, both.also, both.plane)


class _ByRow(Sequence[Callable[[int, int], Tensor]]):
    """By row, a function from a range of flat positions to their sets; made ready when somebody asks."""

    def __init__(self, winners: Winners, sources: Sequence[Sets], batch: int, word: torch.dtype) -> None:
        self._winners, self._sources, self._batch, self._word = winners, sources, batch, word

    def __len__(self) -> int:
        return self._batch

    @cached_property
    def _walks(self) -> list[native.Walk]:
        walks = _walks(self._winners, self._sources, self._batch)
        assert walks is not None
        return walks

    def __getitem__(self, row: Any) -> Any:
        return partial(native.inherit, self._walks[row], word=self._word, widen=True)


def _counted(gone: Departed, sources: Sequence[Sets], word: torch.dtype) -> Callable[[], list[Counted]] | None:
    """Count a leaf's sets by what departs from it, where the sets are known at the places to which that comes."""
    if any(known.edge is not None for known in sources):
        return None
    planes = [
        None if known.plane is None else known.plane.expand(len(known.plane), *route.edge.target.shape).contiguous()
        for known, route in zip(sources, gone.routes, strict=True)
    ]
    return partial(gone.tally, [(p, known.also) for p, known in zip(planes, sources, strict=True)], word)


def _of(winners: Winners, sources: Sequence[Sets], batch: int, own: Own) -> Sets:
    """Give the sets of a value's consumers, looked up only where that cannot be put off."""
    shared = _shared(sources)
    if shared is not None:
        return _alike(shared)
    if len(winners.edges) == 1:
        (edge,), (source,) = winners.edges, sources
        assert source.plane is not None
        if isinstance(winners, Borrowed):  # what chose its scalars is known at the value that its product went on to
            there = edge if source.edge is None else through(edge, source.edge)
            return Sets(source.also, source.plane, there)
        seen = _seen(winners, edge, source, batch)
        if seen is not None:
            return Sets(source.also, seen)
    return _looked_up(winners, sources, batch, own)


def _shared(sources: Sequence[Sets]) -> int | None:
    """Give the one set of all scalars that go on to some others; None where they differ."""
    alike = all(s.plane is None and s.also == sources[0].also for s in sources)
    return sources[0].also if alike else None


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


def _looked_up(winners: Winners, sources: Sequence[Sets], batch: int, own: Own) -> Sets:
    """Look up the sets of all scalars."""
    walks = _walks(winners, sources, batch)
    if walks is None:
        shared = _shared(sources)
        assert shared is not None
        return _alike(shared)
    own.tell_apart()
    with within(own.record.room):
        rows = [native.inherit(walk, 0, prod(winners.shape), own.word).reshape(winners.shape) for walk in walks]
    return Sets(0, rows[0].unsqueeze(0) if batch == 1 else torch.stack(rows))


def _walks(winners: Winners, sources: Sequence[Sets], batch: int) -> list[native.Walk] | None:
    """Say how the sets of each row are looked up; None where all are one."""
    if _shared(sources) is not None:
        return None
    choice, raw, terms = winners.planes()
    return [
        native.Walk(
            list(winners.shape),
            _row(raw, row),
            _row(choice, row),
            terms,
            [source_of(winners, n, edge, sources[n], row) for n, edge in enumerate(winners.edges)],
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
    if type(there.way) is Reordered:
        there, plane = Use(there.first, there.target, there.way.way, there.split), there.way.seen(plane)
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
