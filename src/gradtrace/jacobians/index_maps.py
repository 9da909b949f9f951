"""Ways back: which scalar of a result a scalar of an argument won through, without an integer for each.

A kernel stores a winner only where several scalars competed, and then only their number among them ("raw"). Where
a scalar has one consumer, as under a view or a pointwise operator, the way is arithmetic and nothing is stored.
`flat(positions, raw, row)` turns flat positions of an argument into flat positions of the result, `row` being the
example, where each has winners of its own: one of all positions, or that of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from .structure import Shape


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """offset + Σ coordinate · stride, of the argument seen in `shape`, and what the raw winner adds.

    Attributes:
        shape: in which the argument is seen.
        stride: by axis, in the result.
        step: raw · step is added; or `table()[raw]`, where there is one.
    """

    shape: Shape
    stride: Shape
    offset: int = 0
    step: int = 0
    table: Callable[[], Tensor] | None = None

    @property
    def stored(self) -> bool:
        return self.step != 0 or self.table is not None

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        out = torch.full_like(positions, self.offset)
        rest = positions
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if step:
                out += rest % n * step
            rest = rest // n
        if not self.stored:
            return out
        assert raw is not None
        raw = raw.clamp(min=0).to(torch.int64)
        return out + (raw * self.step if self.table is None else self.table()[raw])


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """The result's position is looked up by the argument's."""

    index: Callable[[], Tensor]
    stored: bool = False

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        del raw, row
        return self.index()[positions]


@dataclass(frozen=True, eq=False, slots=True)
class Sought:
    """The result reads rows of `width` scalars, no row twice: a scalar's row is sought among those that are read.

    Attributes:
        rows: the number of the row that each row of the result reads, in rising order.
        order: which row of the result it is.
    """

    rows: Tensor
    order: Tensor
    width: int
    stored: bool = False

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        del raw, row
        found = torch.searchsorted(self.rows, positions // self.width).clamp_(max=len(self.rows) - 1)
        return self.order[found] * self.width + positions % self.width


@dataclass(frozen=True, eq=False, slots=True)
class Shared:
    """All scalars of a row (of `width`) won through one scalar of the result: `place`, by row."""

    place: Tensor
    width: int
    stored: bool = False

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        del raw, row
        return self.place[positions // self.width]


@dataclass(frozen=True, eq=False, slots=True)
class Raw:
    """The raw winner is the result's position."""

    stored: bool = True

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        assert raw is not None
        return raw.to(torch.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Composed:
    """From the argument to a virtual scalar, and from there, by winners of its own (batch × virtual), to the result."""

    first: Way
    then: Way
    inner: Tensor | None

    @property
    def stored(self) -> bool:
        return self.first.stored

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        between = self.first.flat(positions, raw, row)
        if self.inner is None:
            return self.then.flat(between, None, row)
        inner = self.inner.reshape(len(self.inner), -1)
        if not inner.shape[1]:  # nothing leads anywhere
            return self.then.flat(between, torch.zeros_like(between), row)
        # of a scalar without a path the stored number means nothing
        found = inner[row if len(inner) > 1 else 0, between.clamp(0, inner.shape[1] - 1)]
        return self.then.flat(between, found, row)


@dataclass(frozen=True, eq=False, slots=True)
class Reordered:
    """The result was seen with the positions of one axis in another order.

    Attributes:
        way: to what was seen.
        order: by position there, the position in the result.
        inner: how many scalars each position has, beside the axes before this one.
    """

    way: Way
    order: Tensor
    inner: int

    @property
    def stored(self) -> bool:
        return self.way.stored

    def flat(self, positions: Tensor, raw: Tensor | None, row: int | Tensor = 0) -> Tensor:
        return self.placed(self.way.flat(positions, raw, row))

    def placed(self, seen: Tensor) -> Tensor:
        """Give the positions in the result, flat, of what was seen at some."""
        above, within = seen // self.inner, seen % self.inner
        outer, at = above // len(self.order), above % len(self.order)
        return (outer * len(self.order) + self.order[at]) * self.inner + within

    def seen(self, result: Tensor) -> Tensor:
        """See numbers of all scalars of the result in that order (flat)."""
        return result.reshape(-1, len(self.order), self.inner).index_select(1, self.order).reshape(-1)


Way: TypeAlias = Affine | Table | Sought | Shared | Raw | Composed | Reordered


def identity(shape: Shape) -> Affine:
    """The same position."""
    return Affine((prod(shape),), (1,))
