"""The algebra of a semiring's arrays: what a carrier says is added up, or the strongest kept."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import Gather
from ..kernels.reference import gather_into, pull
from ..recording.record import Call, Record, Value
from ..semirings.base import Carrier, Element
from .example_labels import Labels
from .per_example import pull_by_example
from .walk import Algebra, Edge, Track, walk

Keep = Callable[[Value, Element], None]
Enter = Callable[[Element, Value, Call | None], Element]


class Reached(NamedTuple):
    """What has reached a value so far: batch × value.shape; `own` says that nobody else reads its memory."""

    g: Element
    own: bool = False


class Elements(Algebra[Reached, Reached]):
    """A carrier's arrays.

    Args:
        carrier: the semiring's arrays.
        keep: called once for every wanted value, with its finished elements (batch × value.shape), as soon as they are;
            None: nobody keeps any.
        labels: where given, values that belong to no example have a batch of one entry per example;
            all others, and all values where it is None, have a batch of 1.
        enter: given what reaches a value from one consumer call (None: it is the loss), says what it becomes there.
        wanted: ids of values; None: all. What nobody keeps may be written over.
    """

    def __init__(
        self,
        carrier: Carrier,
        keep: Keep | None,
        labels: Labels | None = None,
        enter: Enter | None = None,
        wanted: Container[int] | None = None,
    ) -> None:
        self.carrier, self.keep, self.labels, self.enter, self.wanted = carrier, keep, labels, enter, wanted

    def begin(self, loss: Value) -> Reached:
        one = self.carrier.one(torch.ones((1, *loss.shape), dtype=loss.dtype))
        return Reached(one if self.enter is None else self.enter(one, loss, None))

    def finish(self, value: Value, arrived: Reached, *, alone: bool) -> Reached:
        if self.keep is not None and (self.wanted is None or value.id in self.wanted):
            self.keep(value, arrived.g)
            return arrived._replace(own=False)
        return arrived if alone else arrived._replace(own=False)

    def send(self, edge: Edge, g: Reached, known: Reached | None) -> Reached:
        structure, call, result, argument, first = edge
        carrier, labels = self.carrier, self.labels
        planes = carrier.seed(g.g, _ids(result if carrier.points else None, first, g.g[0]))
        if known is not None and known.own and type(structure) is Gather and labels is None and self.enter is None:
            return known._replace(g=gather_into(structure, carrier, planes, tuple(p.contiguous() for p in known.g)))
        batch = 1 if labels is None else labels.batch(argument)
        if labels is None:
            part = pull(structure, carrier, planes)
        else:
            part = pull_by_example(structure, carrier, planes, result, argument, labels)
        part = tuple(p.reshape(batch, *argument.shape) for p in part)
        part = part if self.enter is None else self.enter(part, argument, call)
        if known is not None:
            part = (carrier.plus_over if known.own else carrier.plus)(known.g, part)
        read = (() if g.own else planes) + (() if known is None or known.own else known.g)
        return Reached(part, _apart(part, read))


def reverse(
    record: Record,
    loss: Value,
    carrier: Carrier,
    keep: Keep,
    labels: Labels | None = None,
    track: Track = iter,
    seconds: dict[str, float] | None = None,
    enter: Enter | None = None,
    wanted: Container[int] | None = None,
    among: Container[int] | None = None,
) -> None:
    """Compute g_v under a semiring for every value from which the loss can be reached: `walk`, with `Elements`."""
    walk(record, loss, Elements(carrier, keep, labels, enter, wanted), track, seconds, among)


def _apart(g: Element, read: Element) -> bool:
    """Tell whether planes lie beside each other, each without repetitions, in memory that others do not read."""
    if any(p._is_zerotensor() for p in g):  # autograd's zeros, which have no memory
        return False
    elsewhere = {p.untyped_storage().data_ptr() for p in read if not p._is_zerotensor()}
    dense = torch.ops.aten.is_non_overlapping_and_dense
    own = all(p.untyped_storage().data_ptr() not in elsewhere and dense(p) for p in g)
    return own and len({p.data_ptr() for p in g}) == len(g)


def _ids(value: Value | None, start: int, like: Tensor) -> Tensor:
    if value is None:
        return torch.empty(0, dtype=torch.int64, device=like.device)
    return torch.arange(start, start + value.numel, device=like.device).reshape(1, *value.shape)
