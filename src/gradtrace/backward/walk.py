"""The one walk: a tape backwards, call by call, carrying what an algebra says from results to arguments.

Backpropagation, best paths, greedy paths and every semiring are the same dynamic program. From the loss to the leaves,

    1. what has arrived at a call's results is taken out: all of their consumers have been seen (`finish`),
    2. the call's rule gives a structure for each argument and result, which says how one depends on the other,
    3. the algebra carries the results' elements along it, and merges them into what has arrived at the argument so far
       (`send`); or it lets something that is not computed yet go on as it is (`relay`).

An element lives from the last consumer of a value to its producer, then it is freed. Edges (call, argument) are
numbered in recording order, and visited the last one first, so that of equally strong ones the last to arrive is the
one that comes first in the program, as the definition asks. A backpointer is one integer,
`edge number << EDGE_BITS | flat index of the consumer scalar`.

What an algebra is: `elements` (the arrays of a semiring), `best` ((max, ×) with its winners, by compiled kernels),
`greedy` (the ordinary gradient, and the winners along it), `certificate` (the ordinary gradient beside autograd's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import MissingRule, NotANumber
from ..jacobians import rules
from ..recording.record import Call, Record, Value

EDGE_BITS = 34  # flat indices up to 17 billion, edges up to half a billion

Track = Callable[[list[Call]], Iterable[Call]]
Arrived = TypeVar("Arrived")  # what has come to a value so far
Finished = TypeVar("Finished")  # what its scalars carry, once all has come

_POSITION = itemgetter(0, 1)  # of an edge: its argument, its result


class Edge(NamedTuple):
    """One (call, argument, result) that a walk goes along.

    Attributes:
        structure: how the result depends on the argument.
        first: the backpointer that leads to the result's first scalar by this edge.
    """

    structure: Any
    call: Call
    result: Value
    argument: Value
    first: int


class Algebra(ABC, Generic[Arrived, Finished]):
    """What a walk carries, and how it is carried along an edge and merged."""

    @abstractmethod
    def begin(self, loss: Value) -> Arrived:
        """Give what the loss starts with: 1."""

    @abstractmethod
    def finish(self, value: Value, arrived: Arrived, *, alone: bool) -> Finished:
        """Take notice that a value has all that it will get; called once for each.

        Args:
            alone: whether at most one edge will read it, so that its memory may be written over.
        """

    @abstractmethod
    def send(self, edge: Edge, g: Finished, known: Arrived | None) -> Arrived:
        """Carry a result's elements along an edge, and merge them into what is known of the argument."""

    def relay(self, edge: Edge, arrived: Arrived, known: Arrived | None) -> Arrived | None:
        """Carry what has arrived at a result along an edge without finishing it; None where that is impossible."""
        del edge, arrived, known


@dataclass(frozen=True)
class Edges:
    """Numbers every (call, argument) pair of a tape, in recording order."""

    first: list[int]

    @classmethod
    def of(cls, record: Record) -> Edges:
        """Number the edges of a tape."""
        first, total = [], 0
        for call in record.calls:
            first.append(total)
            total += len(call.inputs)
        return cls(first)

    def call(self, number: int) -> int:
        """Give the number of the call that an edge enters."""
        return bisect_right(self.first, number) - 1  # calls without arguments share their number with the next


def offsets(call: Call) -> list[int]:
    """Give the flat index at which each output's scalars begin, among all results of the call."""
    out, total = [], 0
    for value in call.outputs:
        out.append(total)
        total += value.numel if value is not None else 0
    return out


def walk(
    record: Record,
    loss: Value,
    algebra: Algebra[Any, Any],
    track: Track = iter,
    seconds: dict[str, float] | None = None,
    among: Container[int] | None = None,
) -> None:
    """Carry an algebra's elements from the loss to every value from which it can be reached.

    g_ℓ = 1, g_v = ⊕ over edges (u, v, k) of λ(w(u, v, k)) ⊗ g_u, in reverse recording order.

    Args:
        record: the tape.
        loss: the value of ℓ.
        track: wraps the calls that are walked, for a progress bar.
        seconds: where the time spent on each operator is added up.
        among: ids of the values that are gone to; None: all.

    Raises:
        MissingRule: an operator on the way has no rule.
        NotANumber: a local derivative is NaN.
    """
    edges, last = Edges.of(record).first, _leaves(record)
    pending: dict[int, Any] = {loss.id: algebra.begin(loss)}
    take = pending.pop
    for call in track(record.calls[::-1]):
        arrived = [take(v.id, None) if v is not None else None for v in call.outputs]
        if arrived.count(None) == len(arrived):
            continue
        began = perf_counter()
        try:
            _back(call, arrived, edges[call.index], algebra, pending, among)
            for value in last.get(call.index, ()):
                if value.id in pending:
                    algebra.finish(value, take(value.id), alone=True)
        except NotANumber as error:
            raise _told(error, call) from None
        if seconds is not None:
            seconds[call.name] = seconds.get(call.name, 0.0) + perf_counter() - began
    if pending:  # what calls take that do not lead to the loss; the loss itself, if it is a leaf
        left = {
            given.value.id: given.value for call in record.calls for given in call.inputs if given.value is not None
        }
        try:
            for number, found in pending.items():
                algebra.finish(loss if number == loss.id else left[number], found, alone=True)
        except NotANumber as error:
            raise _told(error, None) from None


def _told(error: NotANumber, call: Call | None) -> NotANumber:
    """Say at which call: the one that is walked, unless something has waited and is another's."""
    where = error.args[1:] or (() if call is None else (call.where,))
    return NotANumber(": ".join((error.said, *where)))


@contextmanager
def naming(call: Call | None) -> Iterator[None]:
    """Tell of a NaN that is found inside the block that it is this call's, whichever is walked by then."""
    try:
        yield
    except NotANumber as error:
        raise (error if call is None else NotANumber(error.said, call.where)) from None


def _back(
    call: Call,
    arrived: list[Any],
    first_edge: int,
    algebra: Algebra[Any, Any],
    pending: dict[int, Any],
    among: Container[int] | None,
) -> None:
    """Carry what has arrived at one call's results to its arguments, the last argument first."""
    starts = offsets(call) if len(arrived) > 1 else (0,)
    edges = rules.structures(call)
    if len(edges) > 1:
        edges.sort(key=_POSITION, reverse=True)
    reached = [edge[1] for edge in edges]
    finished: list[Any] = [None] * len(arrived)
    relayed: list[int] = []
    inputs, outputs = call.inputs, call.outputs
    for position, output, structure in edges:
        argument, got = inputs[position].value, arrived[output] if output < len(arrived) else None
        if got is None or argument is None or not argument.differentiable:
            continue
        if among is not None and argument.id not in among:
            continue
        result = outputs[output]
        assert result is not None
        edge = Edge(structure, call, result, argument, (first_edge + position << EDGE_BITS) + starts[output])
        known, g = pending.get(argument.id), finished[output]
        if g is None:
            passed = algebra.relay(edge, got, known)
            if passed is not None:
                relayed.append(output)
                pending[argument.id] = passed
                continue
            g = finished[output] = algebra.finish(result, got, alone=reached.count(output) == 1)
        pending[argument.id] = algebra.send(edge, g, known)
    if None in finished:
        done = [g is not None or n in relayed for n, g in enumerate(finished)]
        _leave(call, [None if over else got for over, got in zip(done, arrived, strict=True)], reached, algebra)


def _leave(call: Call, left: list[Any], covered: list[int], algebra: Algebra[Any, Any]) -> None:
    """Finish the results that go on along no edge, and see that the rule has said something about each."""
    for number, (value, got) in enumerate(zip(call.outputs, left, strict=True)):
        if value is None or got is None:
            continue
        algebra.finish(value, got, alone=True)
        if number not in covered and any(i.value is not None and i.value.differentiable for i in call.inputs):
            raise MissingRule(f"the rule of {call.where} says nothing about its result number {number}")


def _leaves(record: Record) -> dict[int, list[Value]]:
    """Give by call the leaves that it is the first to take: after it, on the walk back, nothing more reaches them."""
    out: dict[int, list[Value]] = {}
    seen: set[int] = set()
    for call in record.calls:
        for given in call.inputs:
            value = given.value
            if value is not None and value.id not in seen and value.call is None:
                seen.add(value.id)
                out.setdefault(call.index, []).append(value)
    return out
