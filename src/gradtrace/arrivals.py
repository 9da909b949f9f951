"""Arrivals: what has come to a value so far in a pass of the compiled kernels, from those of its consumers seen.

Of equally strong ones the last to arrive wins. Windows that do not overlap are pasted next to each other, since where
only one has arrived there is nothing to compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .kernels import native
from .kernels.plane import Plane, Pulled, aligned
from .kernels.product import Product
from .kernels.reference import window
from .storage import disjoint, span
from .structure import Layout
from .tape import Value
from .winners import Edge, Winners


@dataclass(eq=False, slots=True)
class Arrivals:
    """What has arrived at one value so far.

    Attributes:
        terms: products that have not been computed, of one key; nothing else has arrived while there are any.
        covered: the windows that have arrived, where only windows have and no two overlap.
        span: the first and the last position that they cover.
    """

    value: Value
    winners: Winners
    plane: Plane | None = None
    terms: list[Product] = field(default_factory=list)
    covered: list[Layout] | None = None
    span: tuple[int, int] = (0, -1)

    def merge(self, edge: Edge, part: Pulled, batch: int) -> None:
        """Take in what comes through one more edge, for that many batch entries."""
        self.winners.edges.append(edge)
        if part.window is None:
            plane, raw = part.plane, part.raw
            if plane.shape != (batch, *self.value.shape):
                plane, raw = self._refit(plane, raw, batch)
            if self.plane is None:
                self.plane, self.winners.index = plane, raw
                return
        elif self.plane is None or (self.covered is not None and self._apart(part.window)):
            self._paste(part, batch)
            return
        else:
            plane, raw = _whole(self.value, batch, part)
        if self.covered is not None:
            self.winners.settle()
            self.covered = None
        self._strongest(plane, raw)

    def _refit(self, plane: Plane, raw: Tensor | None, batch: int) -> tuple[Plane, Tensor | None]:
        """See what came in the value's own shape, once for each batch entry."""
        shape, rows = (batch, *self.value.shape), plane.shape[0]
        data = plane.data.reshape(rows, *self.value.shape).expand(shape)
        raw = None if raw is None else raw.reshape(raw.shape[0], *self.value.shape).expand(shape)
        return Plane(data, plane.exponent, plane.high, plane.low, plane.owned and rows == batch), raw

    def reshape(self) -> None:
        """See what a product gave, in the shape of its structure, in the value's."""
        plane, index, shape = self.plane, self.winners.index, self.value.shape
        assert plane is not None
        assert index is not None
        if plane.data.shape[1:] != shape:
            plane.data = plane.data.reshape(len(plane.data), *shape)
            self.winners.index = index.reshape(len(index), *shape)

    def _paste(self, part: Pulled, batch: int) -> None:
        """Write a window where nothing has arrived yet."""
        assert part.window is not None
        winners, plane = self.winners, part.plane
        if self.plane is None:
            data = torch.zeros((batch, *self.value.shape), dtype=plane.data.dtype)
            self.plane, self.covered = Plane(data, plane.exponent, plane.high, plane.low, owned=True), []
        assert self.covered is not None
        old = self.plane
        if old.exponent == plane.exponent and old.data.dtype is plane.data.dtype:
            window(old.data, part.window).copy_(plane.data)
            old.high, old.low = max(old.high, plane.high), min(old.low, plane.low)
        else:
            self._paste_scaled(part)
        first, last = span(part.window)
        self.span = (min(self.span[0], first), max(self.span[1], last)) if self.covered else (first, last)
        self.covered.append(part.window)
        if len(winners.edges) > 1:
            winners.windows = self.covered
        if part.raw is not None:
            if winners.index is None:
                winners.index = torch.zeros((batch, *self.value.shape), dtype=torch.int32)
            window(winners.index, part.window).copy_(part.raw)

    def _apart(self, new: Layout) -> bool:
        """Tell whether a window surely overlaps none that has arrived."""
        assert self.covered is not None
        first, last = span(new)
        if last < self.span[0] or first > self.span[1]:  # steps of a sequence come one after the other
            return True
        return all(disjoint(old, new) for old in self.covered)

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
        winners.edges, last = winners.edges[:-1], winners.edges[-1]
        winners.settle()
        winners.edges.append(last)
        fa, fb, exponent, double = aligned(old, new)
        kind = torch.float64 if double else torch.float32
        a, b = _mine(old, kind), new.data.to(kind).contiguous()
        mark = len(winners.edges) - 1
        _chosen(winners, a.shape, mark)
        indices = None
        if raw is not None or winners.index is not None:
            known = winners.index
            mine = torch.zeros(a.shape, dtype=torch.int32) if known is None else known.to(torch.int32).contiguous()
            winners.index = mine
            indices = None if raw is None else (mine, raw.to(torch.int32).contiguous())
        native.merge(a, fa, b, fb, indices, winners.choice, mark)
        self.plane = Plane(a, exponent, max(old.high * fa, new.high * fb), min(old.low * fa, new.low * fb), owned=True)


def _whole(value: Value, batch: int, part: Pulled) -> tuple[Plane, Tensor | None]:
    """Give a window's values and winners the shape of the value."""
    assert part.window is not None
    data = torch.zeros((batch, *value.shape), dtype=part.plane.data.dtype)
    window(data, part.window).copy_(part.plane.data)
    plane = Plane(data, part.plane.exponent, part.plane.high, part.plane.low, owned=True)
    if part.raw is None:
        return plane, None
    raw = torch.full(data.shape, -1, dtype=torch.int32)
    window(raw, part.window).copy_(part.raw)
    return plane, raw


def _chosen(winners: Winners, shape: torch.Size, mark: int) -> None:
    """Make room for choices, one for each scalar of each example, and wide enough for this one."""
    # choices by window are the same for all examples, and those of turned products lie as these do
    if winners.choice is None and mark <= 255:
        winners.choice = torch.zeros(shape, dtype=torch.uint8)
        return
    choice = torch.zeros(shape, dtype=torch.uint8) if winners.choice is None else winners.choice.expand(shape)
    winners.choice = choice.to(torch.int32 if mark > 255 else choice.dtype).contiguous()


def _mine(plane: Plane, kind: torch.dtype) -> Tensor:
    """Give data that may be written to."""
    data = plane.data if plane.data.dtype is kind else plane.data.to(kind)
    data = data if data.is_contiguous() else data.contiguous()
    return data if plane.owned or data is not plane.data else data.clone()
