"""Arrivals: what has come to a value so far in a pass of the compiled kernels, from those of its consumers seen.

Of equally strong ones the last to arrive wins. Windows that do not overlap are put next to each other, since where
only one has arrived there is nothing to compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from ..jacobians.structure import Shape
from ..kernels import native
from ..kernels.memory import copied, zeros
from ..kernels.product import Product
from ..kernels.reference import window
from ..kernels.shared_exponent import OutOfRange, Plane, Pulled, aligned
from ..recording.layouts import Layout, contiguous
from ..recording.record import Value
from ..recording.storage import disjoint, span
from .backpointers import Use, Winners

Put: TypeAlias = Callable[[list[Tensor], int], Tensor]


@dataclass(eq=False, slots=True)
class Arrivals:
    """What has arrived at one value so far.

    Attributes:
        batch: entries that the value's planes have.
        terms: products that have not been computed, of one key; nothing else has arrived while there are any.
        parts: windows no two of which overlap, not put together; nothing else has arrived while there are any.
        span: the first and the last position that they cover.
    """

    value: Value
    winners: Winners
    batch: int
    plane: Plane | None = None
    terms: list[Product] = field(default_factory=list)
    parts: list[Pulled] = field(default_factory=list)
    span: tuple[int, int] = (0, -1)

    def merge(self, edge: Use, part: Pulled) -> None:
        """Take in what comes through one more edge."""
        if part.window is not None and self.plane is None and self._apart(part.window):
            self.winners.edges.append(edge)
            self._note(part, part.window)
            return
        if self.parts:
            self.complete()
        if part.rows is not None and self._strongest_rows(part, part.rows):
            self.winners.edges.append(edge)
            return
        shape = self.batch, *self.value.shape
        if part.window is not None or part.rows is not None:
            part = part.laid_out(shape)
        plane, raw = part.plane, part.raw
        if plane.shape != shape:
            plane, raw = self._refit(plane, raw)
        if self.plane is None:
            self.plane, self.winners.index = plane, raw
        else:
            self._strongest(plane, raw)
        self.winners.edges.append(edge)

    def complete(self) -> None:
        """Put the windows that have arrived together, if there are any."""
        if not self.parts:
            return
        parts, shape, winners = self.parts, (self.batch, *self.value.shape), self.winners
        self.parts = []
        layouts, like = [p.window for p in parts if p.window is not None], parts[0].plane
        stored = [p.raw for p in parts if p.raw is not None]
        if len(parts) > 1:
            winners.windows = layouts
        kinds = {(p.plane.exponent, p.plane.dtype, len(p.plane.data)) for p in parts}
        alike = kinds == {(like.exponent, like.dtype, self.batch)} and len(stored) in (0, len(parts))
        sides = side_by_side(tuple(layouts), self.value.shape) if alike else None
        if sides is not None:
            put, axis, order = sides
            high, low = max([p.plane.high for p in parts]), min([p.plane.low for p in parts])
            self.plane = Plane(put([parts[i].plane.data for i in order], axis), like.exponent, high, low, owned=True)
            winners.index = put([stored[i] for i in order], axis) if stored else None
            return
        data = zeros(like.dtype, *shape)
        self.plane = Plane(data, like.exponent, like.high, like.low, owned=True)
        winners.index = zeros(torch.int32, *shape) if stored else None
        for part in parts:
            self._paste(part)

    def _refit(self, plane: Plane, raw: Tensor | None) -> tuple[Plane, Tensor | None]:
        """See what came in the value's own shape, once for each batch entry."""
        shape, rows = (self.batch, *self.value.shape), plane.shape[0]
        data = plane.data.reshape(rows, *self.value.shape).expand(shape)
        raw = None if raw is None else raw.reshape(raw.shape[0], *self.value.shape).expand(shape)
        return Plane(data, plane.exponent, plane.high, plane.low, plane.owned and rows == self.batch), raw

    def reshape(self) -> None:
        """See what a product gave, in the shape of its structure, in the value's."""
        plane, index, shape = self.plane, self.winners.index, self.value.shape
        assert plane is not None
        assert index is not None
        if plane.data.shape[1:] != shape:
            plane.data = plane.data.reshape(len(plane.data), *shape)
            self.winners.index = index.reshape(len(index), *shape)

    def _note(self, part: Pulled, window: Layout) -> None:
        """Keep a window until all have arrived."""
        first, last = span(window)
        self.span = (min(self.span[0], first), max(self.span[1], last)) if self.parts else (first, last)
        self.parts.append(part)

    def _apart(self, new: Layout) -> bool:
        """Tell whether a window surely overlaps none that has arrived."""
        return apart(new, (old.window for old in self.parts if old.window is not None), self.span)

    def _paste(self, part: Pulled) -> None:
        """Write a window where nothing has been written yet."""
        old, plane = self.plane, part.plane
        assert old is not None
        assert part.window is not None
        if old.exponent == plane.exponent and old.dtype is plane.dtype:
            window(old.data, part.window).copy_(plane.data)
            old.high, old.low = max(old.high, plane.high), min(old.low, plane.low)
        else:
            self._paste_scaled(part)
        if part.raw is not None:
            assert self.winners.index is not None
            window(self.winners.index, part.window).copy_(part.raw)

    def _paste_scaled(self, part: Pulled) -> None:
        """Write a window that is in another unit."""
        old, plane = self.plane, part.plane
        assert old is not None
        assert part.window is not None
        factor, other, exponent, double = aligned(old, plane)
        data = old.data.to(torch.float64) if double else old.data
        if factor != 1:
            data.mul_(factor)
        window(data, part.window).copy_(plane.data * other)
        high, low = max(old.high * factor, plane.high * other), min(old.low * factor, plane.low * other)
        self.plane = Plane(data, exponent, high, low, owned=True)

    def _strongest(self, new: Plane, raw: Tensor | None) -> None:
        """Keep the stronger of what was there and what has arrived, scalar by scalar."""
        old, winners = self.plane, self.winners
        assert old is not None
        winners.settle()
        try:
            fa, fb, exponent, double = aligned(old, new)
        except OutOfRange:
            self._one_of_two(old, new, raw)
            return
        kind = torch.float64 if double else torch.float32
        a, b, mark = _mine(old, kind), _given(new.data, kind), len(winners.edges)
        choice, index = _chosen(winners, a.shape, mark), _stored(winners, a.shape, raw)
        indices = None
        if index is not None:
            index = winners.index = index.contiguous()
            indices = None if raw is None else (index, raw.to(torch.int32).contiguous())
        native.merge(a, fa, b, fb, indices, choice, mark)
        self.plane = Plane(a, exponent, max(old.high * fa, new.high * fb), min(old.low * fa, new.low * fb), owned=True)

    def _one_of_two(self, old: Plane, new: Plane, raw: Tensor | None) -> None:
        """Keep the stronger where every scalar of it is stronger: no exponent serves both, and none is needed.

        Raises:
            OutOfRange: some scalars of either are stronger.
        """
        winners = self.winners
        if _above(old, new):
            return
        if not _above(new, old):
            raise OutOfRange
        self.plane, winners.index = new, raw
        winners.choice = torch.full(new.shape, len(winners.edges), dtype=torch.int32)

    def _strongest_rows(self, part: Pulled, rows: Tensor) -> bool:
        """Do so at some rows alone, if all others can stay as they are; tell whether they can."""
        old, new, winners = self.plane, part.plane, self.winners
        if not len(rows):
            return old is not None
        if old is None or not old.owned or old.data.dim() != 3 or old.shape[::2] != new.shape[::2]:
            return False
        winners.settle()
        fa, fb, exponent, double = aligned(old, new)
        if fa != 1 or double != (old.dtype is torch.float64):
            return False
        mark = len(winners.edges)
        choice, index = _chosen(winners, old.shape, mark), winners.index
        if part.raw is not None and (index is None or part.raw.max() >= native.SHORT):
            index = _stored(winners, old.shape, part.raw)
        a, chosen = old.data.index_select(1, rows), choice.index_select(1, rows)
        indices = None
        if index is not None and part.raw is not None:
            indices = index.index_select(1, rows).to(torch.int32), part.raw.to(torch.int32).contiguous()
        native.merge(a, 1.0, new.data.to(a.dtype).contiguous(), fb, indices, chosen, mark)
        old.data.index_copy_(1, rows, a)
        choice.index_copy_(1, rows, chosen)
        if index is not None and indices is not None:
            index.index_copy_(1, rows, indices[0].to(index.dtype))
        high, low = max(old.high, new.high * fb), min(old.low, new.low * fb)
        known = None if old.rows is None else torch.cat([old.rows, rows]).unique()
        self.plane = Plane(old.data, exponent, high, low, owned=True, rows=known)
        return True


def _above(a: Plane, b: Plane) -> bool:
    """Tell whether every scalar of a is stronger than all of b."""
    # a plane's own bounds grow looser with all that it outdoes, step by step of a long sequence
    least, most = math.frexp(float(a.data.min())), math.frexp(float(b.data.max()))
    return least[0] > 0 and least[1] + a.exponent > most[1] + b.exponent


def apart(new: Layout, others: Iterable[Layout], reach: tuple[int, int]) -> bool:
    """Tell whether a window surely overlaps none of some others, which lie between two positions."""
    first, last = span(new)
    # steps of a sequence come one by one
    return last < reach[0] or first > reach[1] or all(disjoint(old, new) for old in others)


@lru_cache(maxsize=4096)
def side_by_side(layouts: tuple[Layout, ...], shape: Shape) -> tuple[Put, int, list[int]] | None:
    """See windows as what a tensor was split into along one axis, or unbound along it.

    Returns:
        What puts tensors of batch × window together again, along which of their axes, and in which order they lie;
        None if the windows are nothing of the kind.
    """
    order = sorted(range(len(layouts)), key=lambda i: layouts[i].offset)
    found, steps = [layouts[i] for i in order], contiguous(shape)
    for d, step in enumerate(steps):
        before, after = (shape[:d], steps[:d]), (shape[d + 1 :], steps[d + 1 :])
        if len(found) == shape[d]:
            rest = before[0] + after[0], before[1] + after[1]
            if found == [Layout(*rest, i * step) for i in range(shape[d])]:
                return torch.stack, d + 1, order
        sizes = [at.size[d] for at in found if len(at.size) == len(shape)]
        begins = [0, *accumulate(sizes)]
        slabs = [Layout((*shape[:d], n, *after[0]), steps, begin * step) for n, begin in zip(sizes, begins)]  # noqa: B905
        if found == slabs and begins[-1] == shape[d]:
            return torch.cat, d + 1, order
    return None


def _chosen(winners: Winners, shape: torch.Size, mark: int) -> Tensor:
    """Make room for choices, one for each scalar of each example, and wide enough for this one."""
    # choices by window are the same for all examples, and those of turned products lie as these do
    if winners.choice is None:
        winners.choice = zeros(torch.int32 if mark > 255 else torch.uint8, *shape)
    else:
        kind = torch.int32 if mark > 255 else winners.choice.dtype
        winners.choice = _given(winners.choice.expand(shape), kind)
    return winners.choice


def _stored(winners: Winners, shape: torch.Size, raw: Tensor | None) -> Tensor | None:
    """Make room for what kernels store of the winners, once there is something."""
    if winners.index is None and raw is not None:
        winners.index = zeros(torch.int32, *shape)
    elif winners.index is not None:
        winners.index = winners.index.to(torch.int32)
    return winners.index


def _given(data: Tensor, kind: torch.dtype) -> Tensor:
    """Give data to be read one after the other."""
    data = data if data.dtype is kind else data.to(kind)
    return data if data.is_contiguous() else copied(data)


def _mine(plane: Plane, kind: torch.dtype) -> Tensor:
    """Give data that may be written to."""
    data = _given(plane.data, kind)
    return copied(data) if data is plane.data and not plane.owned else data
