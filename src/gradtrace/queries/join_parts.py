"""The ordinary gradient in parts, by the branch through which it comes into a junction: signed, and exact.

A part is the sum of the weights of all paths that come in by the branch, so it does not hang on single paths: rotate a
residual stream and undo it in the next weights, and a part turns as the gradient does. Its Euclidean norm over a group
of parameters stays the same, and so does its inner product with another part. A part is not what would be missing
without the branch, since the rest of the network would compute other numbers then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backward.several import ask
from ..recording.record import Call, Record, Value
from ..semirings.base import Element, Sum
from ..semirings.graded import WIDE, Crossed
from ..semirings.states import Pairs
from .junctions import Junction

AT_ONCE = 8  # branches in one walk


@dataclass(frozen=True)
class Way:
    """One branch: the (value, call) pairs by which it comes in, or a head of a value."""

    pairs: frozenset[tuple[int, int]] = frozenset()
    value: int = -1
    head: int = 0
    heads: int = 0

    def mask(self, value: Value, consumer: Call | None) -> Tensor | bool:
        """Tell which scalars of a value are on it, coming from a consumer."""
        if self.heads:
            if value.id != self.value:
                return False
            head = torch.arange(value.shape[0]) % self.heads == self.head
            return head.reshape(-1, *[1] * (len(value.shape) - 1)).expand(value.shape)
        return consumer is not None and (value.id, consumer.index) in self.pairs


@dataclass(frozen=True)
class Entered(Crossed):
    """Two states for each way, not taken and taken: as `Through` for components."""

    ways: tuple[Way, ...] = ()

    def enter(self, g: Element, value: Value, consumer: Call | None) -> Element:
        """Move what comes by a way to the way's second state."""
        for number, way in enumerate(self.ways):
            mask = way.mask(value, consumer)
            if mask is not False:
                target = list(range(self.carrier.count))
                target[2 * number] = 2 * number + 1
                g = self.carrier.moved(g, target, mask)
        return g


@dataclass(frozen=True)
class ByWays:
    """The gradient, split by ways: what `ask` is asked."""

    ways: tuple[Way, ...]

    def on(self, record: Record, loss: Value) -> Entered:
        """Set up the states."""
        del record, loss
        return Entered(Pairs(WIDE[Sum.name], 2 * len(self.ways)), (), self.ways)


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
    out: list[list[tuple[float, float]]] = []
    for junction in found:
        own = [v for v in leaves if any(junction.asks(v.id, call) for call in uses.get(v.id, ()))]
        ways = ways_of(junction)
        taken = [[] for _ in ways]
        for start in range(0, len(ways) if own else 0, AT_ONCE):
            chosen = tuple(ways[start : start + AT_ONCE])
            answer = ask(record, loss, own, [ByWays(chosen)])[0]  # type: ignore[list-item]
            for number in range(len(chosen)):
                taken[start + number] = [answer[v.id][0, number].double().flatten() for v in own if v.id in answer]
        out.append(_measured([torch.cat(t) if t else torch.zeros(0) for t in taken]))
    return out


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
