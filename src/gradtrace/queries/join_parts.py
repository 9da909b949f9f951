"""The ordinary gradient in parts, by the branch through which it comes into a junction: signed, and exact.

A part is the sum of the weights of all paths that come in by the branch, so it does not hang on single paths: rotate a
residual stream and undo it in the next weights, and a part turns as the gradient does. Its Euclidean norm over a group
of parameters stays the same, and so does its inner product with another part. A part is not what would be missing
without the branch, since the rest of the network would compute other numbers then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..backward.several import ask
from ..recording.record import Call, Record, Value
from ..semirings.base import Carrier, Element, Sum
from ..semirings.graded import WIDE
from ..semirings.states import States
from .junctions import Junction

AT_ONCE = 16  # branches in one walk


@dataclass(frozen=True)
class Way:
    """One branch: the (value, call) pairs by which it comes in, or a head of a value."""

    pairs: frozenset[tuple[int, int]] = frozenset()
    value: int = -1
    head: int = 0
    heads: int = 0

    @property
    def values(self) -> set[int]:
        """Ids of the values that it leads to."""
        return {self.value} if self.heads else {value for value, _ in self.pairs}

    def mask(self, value: Value, consumer: Call | None) -> Tensor | bool:
        """Tell which scalars of one of its values are on it, coming from a consumer."""
        if self.heads:
            head = torch.arange(value.shape[0]) % self.heads == self.head
            return head.reshape(-1, *[1] * (len(value.shape) - 1)).expand(value.shape)
        return consumer is not None and (value.id, consumer.index) in self.pairs


@dataclass(frozen=True)
class Entered:
    """The gradient, and what of it has come by each way: a path comes to a value, and so by a way, but once."""

    carrier: States
    ways: tuple[Way, ...]

    @property
    def result(self) -> Carrier:
        """Give the carrier of what `read` gives."""
        return States(self.carrier.base, len(self.ways))

    @cached_property
    def _at(self) -> dict[int, list[int]]:
        """By value the numbers of the ways that lead to it."""
        out: dict[int, list[int]] = {}
        for number, way in enumerate(self.ways):
            for value in way.values:
                out.setdefault(value, []).append(number)
        return out

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Add what comes by a way to what has."""
        parts = None
        for number in self._at.get(value.id, ()):
            mask = self.ways[number].mask(value, consumer)
            if mask is False:
                continue
            parts = parts or self.carrier.parts(g)
            whole, come = parts[0], parts[0]
            if isinstance(mask, Tensor):
                come = self.carrier.chosen(mask, whole, self.carrier.nothing(whole))
            parts[1 + number] = self.carrier.merged(parts[1 + number], come)
        return g if parts is None else tuple(plane for part in parts for plane in part)

    def read(self, g: Element) -> Element:
        """Give what has come by each way."""
        return tuple(plane for part in self.carrier.parts(g)[1:] for plane in part)


@dataclass(frozen=True)
class ByWays:
    """The gradient's parts by ways: what `ask` is asked."""

    ways: tuple[Way, ...]

    def on(self, record: Record, loss: Value) -> Entered:
        """Set up the states."""
        del record, loss
        return Entered(States(WIDE[Sum.name], 1 + len(self.ways)), self.ways)


def ways_of(junction: Junction) -> list[Way]:
    """Give a junction's branches."""
    if junction.heads:
        made = junction.call.outputs[0]
        assert made is not None
        return [Way(value=made.id, head=n, heads=junction.heads) for n in range(junction.heads)]
    return [Way(frozenset((e.value.id, call) for call, _ in e.arguments)) for e in junction.entries]


def parts(
    record: Record, loss: Value, found: Sequence[Junction], leaves: Sequence[Value]
) -> list[list[tuple[float, float]]]:
    """Give for each branch of each junction its part of the leaves' gradient: (norm, how far along the whole).

    The whole is the sum of the junction's parts, over the leaves of which some path had a choice. How far a part goes
    along it is its inner product with the whole, over that of the whole with itself: those of one junction add up to 1.
    """
    uses = _first_calls(record, loss, leaves)
    own = [[v for v in leaves if any(junction.asks(v.id, call) for call in uses.get(v.id, ()))] for junction in found]
    ways = [ways_of(junction) for junction in found]
    taken = groupby(_gradients(record, loss, ways, own), key=itemgetter(0))
    known = {n: _measured([gradient for _, gradient in some]) for n, some in taken}
    return [known[n] if n in known else _measured([torch.zeros(0)] * len(some)) for n, some in enumerate(ways)]


def _gradients(
    record: Record, loss: Value, ways: Sequence[Sequence[Way]], own: Sequence[Sequence[Value]]
) -> Iterator[tuple[int, Tensor]]:
    """Give for each way of each junction that has leaves of its own: (the junction's number, their gradient by it)."""
    asked = [(n, way) for n, some in enumerate(ways) if own[n] for way in some]
    for start in range(0, len(asked), AT_ONCE):
        chosen = asked[start : start + AT_ONCE]
        wanted = list({v.id: v for n, _ in chosen for v in own[n]}.values())
        by_ways: Any = ByWays(tuple(way for _, way in chosen))
        (answer,) = ask(record, loss, wanted, [by_ways])
        for number, (n, _) in enumerate(chosen):
            numbers = [answer[v.id][number].double().flatten() for v in own[n] if v.id in answer]
            yield n, torch.cat(numbers) if numbers else torch.zeros(0)


def _measured(gradients: Sequence[Tensor]) -> list[tuple[float, float]]:
    whole = torch.stack(list(gradients)).sum(0)
    square = float(whole @ whole)
    return [(float(g.norm()), float(g @ whole) / square if square else math.nan) for g in gradients]


def _first_calls(record: Record, loss: Value, leaves: Sequence[Value]) -> dict[int, list[int]]:
    """Give by leaf the calls that it enters."""
    ids = {v.id for v in leaves}
    out: dict[int, list[int]] = {}
    for call in record.before(loss):
        for given in call.inputs:
            if given.value is not None and given.value.id in ids:
                out.setdefault(given.value.id, []).append(call.index)
    return out
