"""Departures: what the scalars of a leaf send along their traces, added up where it arrives first.

Nearly all scalars of a model are its parameters', and each step of a question that goes through them costs more than
the rest of the tape: so each leaf is gone through once for a forest. What its traces come to, by (row, edge, place at
the far end), is few numbers, and flows, joins and tables of influence are counted from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed, Use, Winners, through
from ..backward.walk import EDGE_BITS
from ..jacobians.index_maps import Affine, Raw, Reordered
from ..kernels import native
from ..kernels.reference import axes
from ..recording.layouts import Layout, Shape
from ..recording.record import Value
from .forest import NONE, Forest
from .junctions import SHUFFLES

Hop: TypeAlias = tuple[int, int]  # from a call, or a leaf (from -1 downwards), to the argument that is entered
Found = TypeVar("Found")


@dataclass(frozen=True)
class Given:
    """What a leaf's scalars may send.

    Attributes:
        planes: rows × the leaf's shape, in any layout: the weights over 2^of, and numbers above 0 where there is a
            trace; None where the weights themselves are.
        of: log2 of the weights' unit.
        rows: numbers along the leaf's first axis, rising, beside which there are zeros alone; None: not known.
    """

    planes: tuple[Tensor, Tensor | None]
    of: float
    rows: Tensor | None = None

    @cached_property
    def weight(self) -> Tensor:
        """Rows × scalars, the weights over 2^of."""
        return self.planes[0].reshape(len(self.planes[0]), -1)

    @cached_property
    def some(self) -> tuple[Tensor, Tensor | None]:
        """Give what `planes` has at `rows`, or all of it."""
        if self.rows is None:
            return self.planes
        weight, live = self.planes
        return weight.index_select(1, self.rows), None if live is None else live.index_select(1, self.rows)

    @cached_property
    def top(self) -> float:
        """log2 of the largest weight."""
        weight = self.some[0]
        return float(weight.amax().to(torch.float64).log2() + self.of) if weight.numel() else -math.inf

    @cached_property
    def totals(self) -> list[tuple[float, float]]:
        """By row (how many traces, the sum of their weights over 2^of)."""
        weight, live = self.some
        weight = weight.reshape(len(weight), -1)
        alive = (weight if live is None else live.reshape(weight.shape)) > 0
        weight = weight if live is None else weight.masked_fill(~alive, 0.0)
        return list(zip(alive.sum(1).tolist(), weight.sum(1, dtype=torch.float64).tolist(), strict=True))

    def over(self, base: float) -> Tensor:
        """Give the weights over 2^base."""
        half = 2.0 ** min(max((self.of - base) / 2, -1000.0), 1000.0)  # the whole may be beyond a float
        return self.weight.to(torch.float64) * half * half

    def alive(self) -> Tensor:
        """Tell which scalars have a trace (rows × scalars)."""
        weight, live = self.planes
        return (weight if live is None else live).reshape(len(weight), -1) > 0


@dataclass(eq=False)
class Leaving:
    """What is known of a forest's leaves, by id.

    Attributes:
        ahead: where their traces go on; `living`: how many scalars have one.
        scratch: memory in which what one leaf after the other sends is added up.
    """

    given: dict[int, Given | None] = field(default_factory=dict)
    departed: dict[int, Departed | None] = field(default_factory=dict)
    ahead: dict[int, Ahead | None] = field(default_factory=dict)
    living: dict[int, int] = field(default_factory=dict)
    scratch: Any = None


def _leaving(forest: Forest) -> Leaving:
    forest.leaving = forest.leaving or Leaving(scratch=None if forest.compact is None else native.lib.Scratch())
    return forest.leaving


def _once(known: dict[int, Found], find: Callable[[Forest, Value], Found], forest: Forest, leaf: Value) -> Found:
    """Give what is known of a leaf, or find it."""
    if leaf.id not in known:
        known[leaf.id] = find(forest, leaf)
    return known[leaf.id]


def given_by(forest: Forest, leaf: Value) -> Given | None:
    """Read what a leaf may send; None where nothing leads from it to the loss."""
    return _once(_leaving(forest).given, _read, forest, leaf)


def _read(forest: Forest, leaf: Value) -> Given | None:
    if forest.compact is not None:
        plane = forest.compact.weights.get(leaf.id)
        if plane is None:
            return None
        return Given((plane.data, forest.compact.live(leaf.id)), float(plane.exponent), plane.rows)
    log2, live = forest.log2[leaf.id], forest.winners[leaf.id] != NONE
    top = float(log2.max()) if log2.numel() else -math.inf
    if math.isinf(top):  # beside an infinite weight all finite ones are nothing
        return Given(((log2 == math.inf).to(log2.dtype), live), 0.0)
    return Given((torch.exp2(log2 - top), live), top)


def living(forest: Forest, leaf: Value) -> int:
    """Count the scalars of a leaf that have a path to the loss, in any row."""
    return _once(_leaving(forest).living, _living, forest, leaf)


def _living(forest: Forest, leaf: Value) -> int:
    given = None if leaf is forest.loss else given_by(forest, leaf)
    if given is None:
        return 0
    weight, live = given.some
    first, *others = weight if live is None else live
    found = first > 0
    for row in others:  # one after the other: of all of them at once there can be more than memory has room for
        found |= row > 0
    return int(found.sum())


def live_in_examples(forest: Forest, leaf: Value) -> list[bool]:
    """Tell in which examples a path leads from any scalar of a leaf to the loss, of a forest that tells them apart."""
    assert forest.labels is not None
    gone, given = departed(forest, leaf), None if leaf is forest.loss else given_by(forest, leaf)
    if gone is not None:
        rows = [count > 0 for count, _ in gone.totals]
    else:
        rows = [False] if given is None else given.alive().any(1).tolist()
    return rows * (forest.labels.count // len(rows))


# ---------------------------------------------------------------- by compiled winners


@dataclass(frozen=True, eq=False)
class Route:
    """A way on from a value, through one call or through several of which those before the last decide nothing.

    Attributes:
        first: the number, among all edges, of the argument that is entered first.
        further: hops from there on.
        edge: all of them as one.
        between: results on the way.
    """

    first: int
    further: tuple[Hop, ...]
    edge: Use
    between: tuple[Value, ...] = ()

    @property
    def enters(self) -> int:
        """The number of the call that is entered first."""
        call = (self.between[0] if self.between else self.edge.target).call
        assert call is not None
        return call.index

    def hops(self, source: int) -> list[Hop]:
        """Give the hops from a call or leaf."""
        return [(source, self.first), *self.further]

    def then(self, later: Route, edge: Use) -> Route:
        """Go on from this one's end; `edge` is both as one."""
        end = self.edge.target
        assert end.call is not None
        hop = end.call.index, later.first
        return Route(self.first, (*self.further, hop, *later.further), edge, (*self.between, end, *later.between))


@dataclass(frozen=True, eq=False)
class Ahead:
    """Where the traces of a value go on, seen from as near the loss as nothing is decided before.

    Attributes:
        winners: of the value's scalars, their edges those of the routes.
    """

    winners: Winners
    routes: tuple[Route, ...]


@dataclass(frozen=True, eq=False)
class Departed:
    """What the scalars of a leaf send, in the compiled kernel's hands.

    Attributes:
        sent: by row, route and place how many traces there are, and their weight, in the unit of what is `Given`.
    """

    sent: Any
    routes: tuple[Route, ...]
    rows: int

    @cached_property
    def totals(self) -> list[tuple[float, float]]:
        """By row (how many traces, the sum of their weights)."""
        return self.sent.totals(self.rows)

    def tally(self, sources: Sequence[tuple[Tensor | None, int]], word: torch.dtype) -> list[Counted]:
        """Count sets of components.

        Args:
            sources: by route the sets at its far end (rows, possibly one, × scalars, contiguous) and what joins all.
            word: of the sets.
        """
        planes = [
            (0, 0, False, also) if bits is None else (bits.data_ptr(), bits[0].numel(), len(bits) > 1, also)
            for bits, also in sources
        ]
        return self.sent.tally(word.itemsize, planes)


Counted: TypeAlias = tuple[int, int, float, float]  # (row, set, how many traces, their weight)


def departed(forest: Forest, leaf: Value) -> Departed | None:
    """Go through a leaf's scalars, once for each forest; None where none has a trace, or no kernel has them."""
    return _once(_leaving(forest).departed, _departed, forest, leaf)


def _departed(forest: Forest, leaf: Value) -> Departed | None:
    ahead, given = ahead_of(forest, leaf), given_by(forest, leaf)
    if ahead is None or given is None or not leaf.numel:
        return None
    few = None if given.rows is None else _at_rows(ahead, given.rows)
    ahead, weight, live = _as_it_lies(ahead, *given.planes) if few is None else _as_it_lies(few, *given.some)
    known, kept = described(forest, ahead, source=0)
    where = weight.dtype is torch.float64, weight.data_ptr(), 0 if live is None else live.data_ptr()
    sent = native.lib.Departures(_leaving(forest).scratch, known, len(weight), *where, torch.get_num_threads())
    del kept
    for number, ordinal, _, found in placed(ahead.routes, sent.open(), leaf.numel):
        sent.place(number, found.ctypes.data, ahead.routes[ordinal].edge.target.numel)
    return Departed(sent, ahead.routes, len(weight))


def _as_it_lies(ahead: Ahead, weight: Tensor, live: Tensor | None) -> tuple[Ahead, Tensor, Tensor | None]:
    """See a leaf with its axes in the order in which its weights lie in memory, and make them contiguous."""
    winners = ahead.winners
    if not weight.is_contiguous() and weight.shape[1:] == winners.shape:
        order = sorted(range(len(winners.shape)), key=lambda d: -weight.stride(d + 1))
        if turned := _reordered(ahead, order):
            rows = [0, *(d + 1 for d in order)]
            ahead, weight, live = turned, weight.permute(rows), None if live is None else live.permute(rows)
    return ahead, weight.contiguous(), None if live is None else live.to(weight.dtype).contiguous()


def _reordered(ahead: Ahead, order: Sequence[int]) -> Ahead | None:
    """Put the axes of a value in another order; None where a way is not by strides along them."""
    if any(_strided_along(route.edge, ahead.winners.shape) is None for route in ahead.routes):
        return None
    shape = tuple(ahead.winners.shape[d] for d in order)

    def turned(way: Affine, split: bool) -> Affine:
        stride = *way.stride[:split], *(way.stride[split:][d] for d in order)
        return Affine((*way.shape[:split], *shape), stride, way.offset, way.step, way.table)

    return _seen(ahead, shape, turned, lambda plane: plane.permute(0, *(d + 1 for d in order)))


def _at_rows(ahead: Ahead, rows: Tensor) -> Ahead | None:
    """See some rows of a value alone; None where a way goes on from one row to the next."""
    for edge in (route.edge for route in ahead.routes):
        way = _strided_along(edge, ahead.winners.shape)
        if way is None or way.stride[edge.split]:
            return None
    shape = len(rows), *ahead.winners.shape[1:]

    def fewer(way: Affine, split: bool) -> Affine:
        return Affine((*way.shape[:split], *shape), way.stride, way.offset, way.step, way.table)

    return _seen(ahead, shape, fewer, lambda plane: plane.index_select(1, rows))


def _strided_along(edge: Use, shape: Shape) -> Affine | None:
    """Give the way of an edge if it is by strides along the axes of a value; examples told apart are an axis before."""
    return edge.way if isinstance(edge.way, Affine) and edge.way.shape[edge.split :] == shape else None


def _seen(
    ahead: Ahead, shape: Shape, of_way: Callable[[Affine, bool], Affine], of_plane: Callable[[Tensor], Tensor]
) -> Ahead:
    """See a value, all of whose ways are by strides, in another shape."""
    routes = []
    for route in ahead.routes:
        edge = route.edge
        assert isinstance(edge.way, Affine)
        routes.append(replace(route, edge=Use(edge.first, edge.target, of_way(edge.way, edge.split), edge.split)))
    choice, index, terms = ahead.winners.planes()
    choice, index = (None if p is None else of_plane(p) for p in (choice, index))
    return Ahead(Winners(shape, [r.edge for r in routes], choice, index, terms), tuple(routes))


def ahead_of(forest: Forest, leaf: Value) -> Ahead | None:
    """Look past operators that only move a leaf's scalars; None where no kernel has its winners."""
    return _once(_leaving(forest).ahead, _ahead_of, forest, leaf)


def _ahead_of(forest: Forest, leaf: Value) -> Ahead | None:
    every = {} if forest.compact is None else forest.compact.winners
    winners = every.get(leaf.id)
    if winners is None:
        return None
    ahead = routed(winners, every)
    while (further := _further(forest, ahead, forest.batch(leaf), every)) is not None:
        ahead = further
    return ahead


def direct(winners: Winners) -> Ahead:
    """Give the ways on one by one."""
    return Ahead(winners, tuple(Route(argument(edge), (), edge) for edge in winners.edges))


def routed(winners: Winners, every: Mapping[int, Winners]) -> Ahead:
    """Give the ways on; what these winners say where others borrow them decides there as well."""
    out = []
    for edge in winners.edges:
        route, after = Route(argument(edge), (), edge), every.get(edge.target.id)
        while isinstance(after, Borrowed) and after.lender is winners:
            (then,) = after.edges
            route = route.then(Route(argument(then), (), then), through(route.edge, then))
            after = every.get(route.edge.target.id)
        out.append(route)
    if not any(route.between for route in out):
        return Ahead(winners, tuple(out))
    choice, index, terms = winners.planes()
    return Ahead(Winners(winners.shape, [r.edge for r in out], choice, index, terms), tuple(out))


def _further(forest: Forest, ahead: Ahead, rows: int, every: Mapping[int, Winners]) -> Ahead | None:
    """Look past one more operator; None where something is decided there, or its scalars are not those before it."""
    route, *others = ahead.routes
    edge, end, shape = route.edge, route.edge.target, ahead.winners.shape
    after = every.get(end.id)
    if others or after is None or isinstance(after, Borrowed) or type(edge.way) is not Affine or edge.way.stored:
        return None
    if edge.split or edge.way.offset or end.call is None or end.call.base not in SHUFFLES or forest.batch(end) != rows:
        return None
    then = routed(after, every)
    if edge.same(shape):
        routes = tuple(route.then(later, later.edge) for later in then.routes)
        return Ahead(then.winners, routes)
    order = axes(Layout(shape, edge.way.stride, 0), end.shape) if edge.way.shape == shape else None
    if order is None or [shape[d] for d in order if shape[d] != 1] != [n for n in end.shape if n != 1]:
        return None
    edges = [later.edge for later in then.routes]
    if any(type(e.way) is not Affine or e.way.shape[e.split :] != end.shape for e in edges):
        return None
    routes = tuple(route.then(later, through(edge, later.edge)) for later in then.routes)
    choice, index, terms = then.winners.planes()
    sizes, back = [shape[d] for d in order], [1 + order.index(d) for d in range(len(shape))]
    choice, index = (None if p is None else p.reshape(len(p), *sizes).permute(0, *back) for p in (choice, index))
    return Ahead(Winners(shape, [r.edge for r in routes], choice, index, terms), routes)


def described(
    forest: Forest, ahead: Ahead, source: int, straight: Container[int] = ()
) -> tuple[tuple[Any, ...], list[Any]]:
    """Describe where traces go on for the kernel; the second is what has to live as long as it reads.

    Args:
        source: the number of the call, or leaf, that the routes lead on from.
        straight: ids of values of which nobody has to know the place.
    """
    choice, raw, terms = ahead.winners.planes()
    ways, tables = [], []
    for route in ahead.routes:
        way, target, order, inner = route.edge.way, route.edge.target, None, 1
        if type(way) is Reordered:
            way, order, inner = way.way, way.order.contiguous(), way.inner
        if type(way) is Affine:
            strided, table = (True, way.shape, way.stride, way.offset, way.step), way.table and way.table()
        else:
            strided, table = (type(way) is Raw, (), (), 0, 1), None
        table = None if table is None else table.contiguous()
        tables += [table, order]
        address, at = (0 if t is None else t.data_ptr() for t in (table, order))
        there = target.id, forest.batch(target) > 1, target.id in straight, route.edge.split
        seen = at, 0 if order is None else len(order), inner
        ways.append((route.hops(source), *there, *strided, address, target.numel, seen))
    numbers = (0, 0) if terms is None else (terms[0].data_ptr(), terms[1].data_ptr())
    known = ahead.winners.shape, native.plane(raw), native.plane(choice), numbers, ways
    return known, [choice, raw, terms, tables]


def placed(
    routes: Sequence[Route], waiting: Sequence[tuple[int, int, int, bytes, bytes]], numel: int
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Follow ways that are not strided: (number of what waits, ordinal of the route, row, places)."""
    for number, ordinal, row, places, stored in waiting:
        edge, at = routes[ordinal].edge, np.frombuffer(bytearray(places), np.int64)
        numbers = np.frombuffer(bytearray(stored), np.int64) if edge.way.stored else None
        yield number, ordinal, row, np.ascontiguousarray(edge.places(at, numbers, row, numel), np.int64)


def argument(edge: Use) -> int:
    """Give the number, among all edges, of the argument that an edge enters."""
    return edge.first >> EDGE_BITS
