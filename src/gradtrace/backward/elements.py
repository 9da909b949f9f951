"""The algebra of a semiring's arrays: what a carrier says is added up, or the strongest kept."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import Gather, Strided
from ..kernels.additive import shown
from ..kernels.reference import gather_into, pull, window, window_into
from ..recording.layouts import Layout, Shape
from ..recording.record import Call, Record, Value
from ..recording.storage import span
from ..semirings.base import Carrier, Element
from .arrivals import apart, side_by_side
from .example_labels import Labels
from .per_example import pull_by_example
from .waiting import Waiting, waiting
from .walk import Algebra, Edge, Track, walk

NO_IDS = torch.empty(0, dtype=torch.int64)

Keep = Callable[[Value, Element], None]
Enter = Callable[[Element, Value, Call | None], Element]


@dataclass(eq=False, slots=True)
class Windows:
    """What has reached parts of a value, no two of which overlap.

    Attributes:
        layouts: where the parts lie.
        parts: batch × the layout's size, each.
        span: the first and the last position that they cover.
    """

    layouts: list[Layout]
    parts: list[Element]
    span: tuple[int, int]

    def take(self, layout: Layout, part: Element) -> bool:
        """Take in one more part, if it surely overlaps none that is there."""
        if not apart(layout, self.layouts, self.span):
            return False
        (begin, end), (first, last) = self.span, span(layout)
        self.layouts.append(layout)
        self.parts.append(part)
        self.span = min(begin, first), max(end, last)
        return True


class Reached(NamedTuple):
    """What has reached a value so far.

    Attributes:
        g: batch × value.shape; nothing while there are windows.
        own: whether nobody else reads its memory.
        windows: parts that have not been put together; nothing else has arrived while there are any.
        waiting: products that have not been worked out, beside g.
    """

    g: Element
    own: bool = False
    windows: Windows | None = None
    waiting: Waiting | None = None


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
        self._seeds = carrier.points or type(carrier).seed is not Carrier.seed
        self._waits = labels is None and enter is None and not carrier.points  # ties fall in the order of arrival

    def begin(self, loss: Value) -> Reached:
        one = self.carrier.one(torch.ones((1, *loss.shape), dtype=loss.dtype))
        return Reached(one if self.enter is None else self.enter(one, loss, None))

    def finish(self, value: Value, arrived: Reached, *, alone: bool) -> Reached:
        arrived = self._settled(value, arrived)
        if self.keep is not None and (self.wanted is None or value.id in self.wanted):
            self.keep(value, arrived.g)
            alone = False
        return arrived if alone or not arrived.own else Reached(arrived.g)

    def send(self, edge: Edge, g: Reached, known: Reached | None) -> Reached:
        structure, call, result, argument, first = edge
        carrier, labels = self.carrier, self.labels
        planes = carrier.seed(g.g, _ids(result if carrier.points else None, first, g.g[0])) if self._seeds else g.g
        kind, batch = type(structure), 1 if labels is None else labels.batch(argument)
        if kind is Strided and self.enter is None and (labels is None or batch == labels.batch(result)):
            layout = shown(structure.layout, structure.x_shape).part
            if layout is not None:
                return self._beside(layout, planes, argument, known)
        more = waiting(structure, planes, call) if self._waits else None
        if more is not None:
            return self._wait(argument, known, more)
        known = None if known is None else self._settled(argument, known)
        if kind is Gather and known is not None and known.own and labels is None and self.enter is None:
            return Reached(gather_into(structure, carrier, planes, tuple(p.contiguous() for p in known.g)), own=True)
        if labels is None:
            part = pull(structure, carrier, planes)
        else:
            part = pull_by_example(structure, carrier, planes, result, argument, labels)
        if self.enter is not None:
            part = self.enter(_shaped(part, (batch, *argument.shape)), argument, call)
        return self._met((batch, *argument.shape), known, part, () if g.own else planes)

    def _met(self, shape: Shape, known: Reached | None, part: Element, read: Element) -> Reached:
        """Add what one consumer brings to what is there; `read`: what others may still read of it."""
        part = _shaped(part, shape)
        if known is not None:
            part = (self.carrier.plus_over if known.own else self.carrier.plus)(known.g, part)
            read = read if known.own else read + known.g
        return Reached(part, _apart(part, read))

    def _wait(self, argument: Value, known: Reached | None, more: Waiting) -> Reached:
        """Let one more product wait beside others."""
        if known is None:
            return Reached((), waiting=more)
        if known.waiting is None or not known.waiting.take(more):
            known = self._settled(argument, known)._replace(waiting=more)
        return known

    def _settled(self, value: Value, known: Reached) -> Reached:
        """Put together what has reached a value."""
        if known.windows is not None:
            return self._together(value, known.windows)
        if known.waiting is None:
            return known
        there = Reached(known.g, known.own) if known.g else None
        part = known.waiting.realise(self.carrier)
        read = () if len(known.waiting.parts) > 1 else known.waiting.parts[0][1]
        return self._met((1, *value.shape), there, part, read)

    def _beside(self, layout: Layout, planes: Element, argument: Value, known: Reached | None) -> Reached:
        """Take in what reaches a part of an argument."""
        part = planes
        if planes[0].shape[1:] != layout.size:
            part = tuple([p.reshape(p.shape[0], *layout.size) for p in planes])
        if known is None:
            return Reached((), windows=Windows([layout], [part], span(layout)))
        if known.windows is not None and known.windows.take(layout, part):
            return known
        known = self._settled(argument, known)
        mine = known.g if known.own else tuple([p.clone() for p in known.g])
        return Reached(window_into(layout, self.carrier, part, tuple([p.contiguous() for p in mine])), own=True)

    def _together(self, value: Value, windows: Windows) -> Reached:
        """Put parts together: side by side where they are what the value was split into, else among zeros."""
        layouts, parts = windows.layouts, windows.parts
        kinds = {tuple([p.dtype for p in part]) for part in parts}
        sides = side_by_side(tuple(layouts), value.shape) if len(parts) > 1 and len(kinds) == 1 else None
        if sides is not None:
            put, axis, order = sides
            return Reached(tuple([put([parts[i][n] for i in order], axis) for n in range(len(parts[0]))]), own=True)
        like = max(parts, key=len)  # of a carrier without a fixed number of planes
        g = self.carrier.zero((len(like[0]), *value.shape), like)
        if len(kinds) > 1:
            wide = [max((part[n].dtype for part in parts if n < len(part)), key=_size) for n in range(len(g))]
            g = tuple([p.to(kind) for p, kind in zip(g, wide, strict=True)])
        for layout, part in zip(layouts, parts, strict=True):
            for plane, some in zip(g, part, strict=False):
                window(plane, layout).copy_(some)
        return Reached(g, own=True)


def _size(kind: torch.dtype) -> int:
    return kind.itemsize


def _shaped(g: Element, shape: Shape) -> Element:
    return g if g[0].shape == shape else tuple([p.reshape(shape) for p in g])


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
    # autograd's zeros have no memory
    elsewhere = [p.untyped_storage().data_ptr() for p in read if not p._is_zerotensor()]
    for p in g:
        if p._is_zerotensor() or p.untyped_storage().data_ptr() in elsewhere:
            return False
        if not p.is_contiguous() and not torch.ops.aten.is_non_overlapping_and_dense(p):
            return False
    return len(g) == 1 or len({p.data_ptr() for p in g}) == len(g)


def _ids(value: Value | None, start: int, like: Tensor) -> Tensor:
    if value is None:
        return NO_IDS
    return torch.arange(start, start + value.numel, device=like.device).reshape(1, *value.shape)
