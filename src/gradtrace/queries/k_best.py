"""The k best paths, and the signed extremes: a search from a scalar towards the loss.

The r-th best path from a scalar goes on along some edge, and from there along one of the consumer's own r best paths:
so the next path of a scalar needs at most one more path of one consumer (recursive enumeration, Jiménez and Marzal
1999). One pass says what the best path from every scalar weighs, up to rounding; edges are looked at in that order,
until no other can lead to a better path. Only scalars on paths that are found, or as good as those, are looked at.

What decides is exact: derivatives as the structures have them, multiplied from the loss to the leaf in float64, with an
exponent for each number. Of equals the one comes first whose edge does, as under Max. Paths are those of the whole
batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backward.best import OutOfRange, best
from ..backward.elements import reverse
from ..backward.walk import EDGE_BITS, Edges, offsets
from ..jacobians import rules
from ..kernels import native
from ..kernels.column import Columns, columns
from ..kernels.signed import Ends
from ..recording.record import Call, Record, Value
from ..semirings.base import Carrier, Element, Extreme
from ..semirings.exponents import INFINITE_EXPONENT
from ..semirings.ranked import Extremes, entries
from .forest import Forest
from .paths import Move, Path, flat_index, path_of
from .strongest import strongest

ROUNDINGS = 8  # of one step of a path, in the pass's precision
SLACK = 2.0**-30  # bits; what logarithms in float64 may be off by

Number: TypeAlias = tuple[int, float]  # exponent, mantissa with its sign
ONE: Number = (1, 0.5)


@dataclass(frozen=True, eq=False)
class Level:
    """What the best path from each scalar of a value weighs, nearly: data · 2^exponent, 1 × shape; 0 without a path."""

    data: Tensor
    exponent: Tensor | int

    @cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray | int]:
        data = self.data.reshape(-1).numpy()
        return data, self.exponent if isinstance(self.exponent, int) else self.exponent.reshape(-1).numpy()

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give signs and log2 of the absolute weights of some scalars."""
        data, exponent = self._flat
        some = data[places].astype(np.float64)
        return np.sign(some), np.log2(np.abs(some)) + (exponent if isinstance(exponent, int) else exponent[places])


@dataclass(eq=False, slots=True)
class Use:
    """One structure through which scalars of a value go on.

    Attributes:
        call, argument, output: whose structure it is; None, 0, 0 of edges from a root to where paths begin.
        result: where it leads.
        first: what comes first among equals: the backpointer of the result's first scalar.
        column: gives the edges from one scalar.
    """

    call: Call | None
    argument: int
    output: int
    result: Value
    first: int
    column: Columns


class Onward(NamedTuple):
    """An edge from one scalar: where it leads, how good a path along it may be, and which of equals comes first."""

    level: float
    order: int
    weight: float
    use: Use
    place: int


class Found(NamedTuple):
    """A path from one scalar: its weight, the edge it goes on by, and which of the consumer's paths that leads to."""

    number: Number
    edge: Onward
    rank: int


@dataclass(eq=False, slots=True)
class Node:
    """A scalar, and what is known of the paths from it.

    Attributes:
        end: under signed weights, 0 for the most positive path first, 1 for the most negative.
        edges: by falling level; those before `at` have been taken into account.
        ready: a heap of paths that can be next: (order of the weight, order of the edge, rank, path).
        found: the best ones, in order.
        over: whether there are no others.
    """

    value: Value
    flat: int
    end: int
    edges: list[Onward]
    at: int = 0
    ready: list[tuple[tuple[int, float, float], int, int, Found]] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    last: Found | None = None
    over: bool = False


@dataclass(eq=False)
class Ranking:
    """Paths from scalars in the order of their weights: absolute ones, or (`signed`) either end of the signed ones.

    Attributes:
        kind: what a path of it is called.
        levels: by value id, how strong paths from its scalars are; two of them where they are signed, the most positive
            one's and, times -1, the most negative one's.
    """

    record: Record
    loss: Value
    kind: str
    signed: bool = False
    levels: dict[int, tuple[Level, ...]] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)

    def paths(self, value: Value, index: tuple[int, ...] | int, k: int) -> list[Path]:
        """Give the k best paths from one scalar, best first; fewer where there are not so many."""
        flat = flat_index(value, index)
        return [path_of(self.kind, value, flat, moves) for moves in self.search([value], k).routes(value, flat)]

    def ends(self, value: Value, index: tuple[int, ...] | int) -> list[Path]:
        """Give the path of most positive weight from one scalar, and that of most negative weight; none without any."""
        flat, search = flat_index(value, index), self.search([value], 1)
        routes = (moves for end in (0, 1) for moves in search.routes(value, flat, end))
        return [path_of(self.kind, value, flat, moves) for moves in routes]

    def strongest(self, forest: Forest, values: Sequence[Value], k: int) -> list[Path]:
        """Give the k strongest among all paths of all scalars of some values, strongest first; of equals the first.

        Args:
            forest: knows the strongest path of every scalar.
        """
        found = self.search(values, k).among(values, _starts(forest, values, k, self.slack))
        return [path_of(self.kind, value, flat, moves) for value, flat, moves in found]

    def search(self, values: Sequence[Value], k: int) -> Search:
        """Begin to look for the k best paths from scalars of some values."""
        among = self.record.after(values) - {v.id for v in values}
        if not among <= self._known:
            self._known |= among
            self.levels = (_signed if self.signed else _absolute)(self.record, self.loss, self._known)
        return Search(self, k)

    @property
    def slack(self) -> float:
        """How many bits each of `levels` may be off."""
        return SLACK + ROUNDINGS * torch.finfo(self.record.precision(self.loss)).eps * (1 + len(self.record.calls))


class Search:
    """One search: scalars that were met, and the edges from them."""

    def __init__(self, ranking: Ranking, k: int) -> None:
        self.ranking, self.k, self._slack = ranking, k, ranking.slack
        record = ranking.record
        self._first = Edges.of(record).first
        self._calls: dict[int, list[tuple[Call, int]]] = {}  # by value id: calls, and where they take it
        for call in record.calls:
            for position, given in enumerate(call.inputs):
                if given.value is not None and given.value.differentiable:
                    self._calls.setdefault(given.value.id, []).append((call, position))
        self._structures: dict[int, list[rules.Edge]] = {}
        self._uses: dict[int, list[Use]] = {}
        self._nodes: dict[tuple[int, int, int], Node] = {}

    def routes(self, value: Value, flat: int, end: int = 0) -> Iterator[Iterator[Move]]:
        """Give the paths from one scalar, step by step each."""
        node = self._node(value, flat, end)
        for rank in range(self.k):
            if not self._extended(node, rank):
                return
            yield self._moves(node, rank)

    def among(
        self, values: Sequence[Value], starts: Sequence[tuple[float, int, int]]
    ) -> Iterator[tuple[Value, int, Iterator[Move]]]:
        """Give the paths from some scalars, and the scalar that each begins at.

        Args:
            starts: log2 of the weight of a scalar's strongest path, the number of its value, and its flat index.
        """
        uses = [_nowhere(value, number << EDGE_BITS) for number, value in enumerate(values)]
        edges = [Onward(log2, uses[n].first + flat, 1.0, uses[n], flat) for log2, n, flat in starts]
        root = Node(self.ranking.loss, 0, 0, edges)
        for rank in range(self.k):
            if not self._extended(root, rank):
                return
            _, (_, _, _, use, flat), of_start = root.found[rank]
            yield use.result, flat, self._moves(self._node(use.result, flat, 0), of_start)

    def _moves(self, node: Node, rank: int) -> Iterator[Move]:
        """Step along one path."""
        while node.value is not self.ranking.loss:
            _, edge, rank = node.found[rank]
            assert edge.use.call is not None
            yield edge.use.call, edge.use.argument, edge.use.output, edge.place, edge.weight
            node = self._after(node, edge)

    # ------------------------------------------------------------ enumeration

    def _extended(self, node: Node, rank: int) -> bool:
        """See that a scalar's paths are known up to a rank; tell whether there are so many."""
        while len(node.found) <= rank and not node.over:
            waiting = [node]
            while waiting:  # a loop, since paths are as long as a program
                missing = self._missing(waiting[-1])
                if missing is not None:
                    waiting.append(missing)
                else:
                    _take(waiting.pop())
        return len(node.found) > rank

    def _missing(self, node: Node) -> Node | None:
        """Make ready what can be a scalar's next path; give the consumer of which one more has to be known first."""
        if node.last is not None:
            after, rank = self._after(node, node.last.edge), node.last.rank + 1
            if len(after.found) <= rank and not after.over:
                return after
            _let_in(node, node.last.edge, after, rank)
            node.last = None
        while node.at < len(node.edges):
            edge = node.edges[node.at]
            if node.ready and edge.level < _level(node.ready[0][3].number) - self._slack:
                break
            after = self._after(node, edge)
            if not after.found and not after.over:
                return after
            _let_in(node, edge, after, 0)
            node.at += 1
        return None

    def _after(self, node: Node, edge: Onward) -> Node:
        """Give the consumer at the other end of an edge."""
        end = 1 - node.end if self.ranking.signed and edge.weight < 0 else node.end
        return self._node(edge.use.result, edge.place, end)

    def _node(self, value: Value, flat: int, end: int) -> Node:
        key = value.id, flat, end
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = self._met(value, flat, end)
        return found

    def _met(self, value: Value, flat: int, end: int) -> Node:
        """Meet a scalar for the first time."""
        if value is not self.ranking.loss:
            return Node(value, flat, end, self._edges(value, flat, end))
        edge = Onward(0.0, 0, 1.0, _nowhere(value, 0), 0)
        return Node(value, flat, end, [], found=[Found((ONE[0], -ONE[1] if end else ONE[1]), edge, 0)], over=True)

    # ------------------------------------------------------------ edges

    def _edges(self, value: Value, flat: int, end: int) -> list[Onward]:
        """Give the edges from a scalar by which its k best paths can go on, by falling level."""
        met = [(use, *use.column(flat)) for use in self._uses_of(value)]
        count = sum([len(places) for _, places, _ in met])
        if count < 2:  # nothing to compare
            return [
                Onward(math.inf, use.first + int(places[0]), weight, use, int(places[0]))
                for use, places, weights in met
                if len(places) and (weight := 1.0 if weights is None else float(weights[0]))
            ]
        with np.errstate(divide="ignore", invalid="ignore"):  # log2 of 0, which is no edge even beside an infinite one
            judged = [(n, self._judged(use.result, at, weights, end)) for n, (use, at, weights) in enumerate(met)]
        parts = [(*found, np.full(len(found[0]), n)) for n, found in judged]
        sign, level, weights, places, numbers = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts))  # noqa: B905
        above = sign > 0
        if not above.any():  # all paths are of the other sign: the weakest is best
            above, level = sign < 0, -level
        some = above.nonzero()[0]
        if len(some) > self.k:
            among = level[some]
            some = some[among >= np.partition(among, -self.k)[-self.k] - 2 * self._slack]
        some = some[np.argsort(-level[some])]
        chosen = (a[some].tolist() for a in (level, weights, places, numbers))
        uses = [use for use, _, _ in met]
        return [Onward(at, uses[n].first + place, w, uses[n], place) for at, w, place, n in zip(*chosen, strict=True)]

    def _judged(
        self, result: Value, places: np.ndarray, weights: np.ndarray | None, end: int
    ) -> tuple[np.ndarray, ...]:
        """Give the signs and log2 of the best paths along some edges, and the edges' weights and places."""
        levels = self.ranking.levels[result.id]
        sign, level = levels[end].at(places)
        if weights is None:
            return sign, level, np.ones(len(places)), places
        weights = weights.astype(np.float64)
        if self.ranking.signed and (weights < 0).any():  # where one end becomes the other
            turned = levels[1 - end].at(places)
            sign, level = (np.where(weights < 0, b, a) for a, b in zip((sign, level), turned, strict=True))
        return np.where(weights == 0, 0.0, sign), level + np.log2(np.abs(weights)), weights, places

    def _uses_of(self, value: Value) -> list[Use]:
        """Give the structures by which a value is used on the way to the loss."""
        found = self._uses.get(value.id)
        if found is None:
            calls = self._calls.get(value.id, ())
            found = self._uses[value.id] = [use for call, at in calls for use in self._uses_by(call, at)]
        return found

    def _uses_by(self, call: Call, argument: int) -> Iterator[Use]:
        if not any(y is not None and y.id in self.ranking.levels for y in call.outputs):
            return
        edges = self._structures.get(call.index)
        if edges is None:
            edges = self._structures[call.index] = rules.structures(call)
        begin = self._first[call.index] + argument << EDGE_BITS
        for position, output, structure in edges:
            result = call.outputs[output] if output < len(call.outputs) else None
            if position == argument and result is not None and result.id in self.ranking.levels:
                yield Use(call, argument, output, result, begin + offsets(call)[output], columns(structure))


def _nowhere(value: Value, first: int) -> Use:
    """Stand for an edge that no call makes."""
    return Use(None, 0, 0, value, first, lambda _: (np.empty(0, np.int64), None))


def _take(node: Node) -> None:
    """Take the best of the paths that are ready."""
    if node.ready:
        node.last = heappop(node.ready)[3]
        node.found.append(node.last)
    else:
        node.over = True


def _let_in(node: Node, edge: Onward, after: Node, rank: int) -> None:
    """Make ready the path along an edge and a consumer's path of some rank, if there is one."""
    if len(after.found) > rank:
        number = _times(edge.weight, after.found[rank].number)
        heappush(node.ready, (_order(number), edge.order, rank, Found(number, edge, rank)))


def _times(weight: float, number: Number) -> Number:
    """Multiply by the absolute weight."""
    mantissa, exponent = math.frexp(abs(weight))
    product, shift = math.frexp(mantissa * number[1])
    return (INFINITE_EXPONENT if math.isinf(product) else number[0] + exponent + shift), product


def _order(number: Number) -> tuple[int, float, float]:
    """Give what is smaller the larger a number is."""
    exponent, mantissa = number
    return (0, -exponent, -mantissa) if mantissa > 0 else (1, exponent, -mantissa)


def _level(number: Number) -> float:
    """Give log2 of a number; of a negative one, the higher the nearer it is to 0."""
    exponent, mantissa = number
    log2 = exponent + math.log2(abs(mantissa))
    return log2 if mantissa > 0 else -log2


def _starts(forest: Forest, values: Sequence[Value], k: int, slack: float) -> list[tuple[float, int, int]]:
    """Give the scalars with the k strongest paths, and all with paths that may be as strong, strongest first."""
    some = k
    while True:
        found = strongest(forest, values, some)
        if len(found) < some or found[-1][0] < found[k - 1][0] - 2 * slack:
            return found
        some *= 4


def _absolute(record: Record, loss: Value, among: set[int]) -> dict[int, tuple[Level, ...]]:
    """Find the weight of the strongest path from every scalar of some values."""
    if native.available():
        try:
            planes = best(record, loss, wanted=None, among=among).planes
        except OutOfRange:
            pass
        else:
            return {n: (Level(p.data, p.exponent),) for n, p in planes.items()}
    found = _passed(record, loss, Extreme(), among)
    return {n: (Level(g[0], g[1]),) for n, g in found.items()}


def _signed(record: Record, loss: Value, among: set[int]) -> dict[int, tuple[Level, ...]]:
    """Find the weight of the most positive path from every scalar of some values, and -1 times the most negative."""
    if native.available():
        try:
            found = _passed(record, loss, Ends(record.precision(loss)), among)
        except OutOfRange:
            pass
        else:
            return {
                n: (Level(high.nan_to_num(0.0), 0), Level(-low.nan_to_num(0.0), 0)) for n, (high, low) in found.items()
            }
    found = _passed(record, loss, Extremes(), among)
    return {n: tuple(Level(m, e) for m, e, *_ in entries(g)) for n, g in found.items()}


def _passed(record: Record, loss: Value, carrier: Carrier, among: set[int]) -> dict[int, Element]:
    found: dict[int, Element] = {}

    def keep(value: Value, g: Element) -> None:
        found[value.id] = g

    reverse(record, loss, carrier, keep, among=among)
    return found
