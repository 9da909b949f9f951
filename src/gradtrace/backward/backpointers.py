"""Winners: for every scalar of a value, the consumer through which its best path goes on, kept small.

`Winners` belongs to one value: its edges, which of them each scalar chose (nothing is kept where there is one), and
what the kernels stored of the place in it. Backpointers as integers are worked out when somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..jacobians.index_maps import Affine, Reordered, Way
from ..recording.layouts import Layout, contiguous, unravelled
from ..recording.record import Value

KEPT = 1 << 16  # scalars of a value that are not written out anew
Rows: TypeAlias = "int | np.ndarray"  # the example of all scalars, or that of each


def tensor_of(row: Rows) -> int | Tensor:
    """Give rows as what reads tensors takes them."""
    return row if isinstance(row, int) else torch.from_numpy(row)


@dataclass(eq=False, slots=True)
class Use:
    """One (call, argument, output) by which a value is used.

    Attributes:
        first: the backpointer of the output's first scalar.
        target: the output.
        way: to a scalar of the output.
        split: whether the examples, which share the output's one batch entry, were told apart on the way.
    """

    first: int
    target: Value
    way: Way
    split: bool = False

    def same(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a value of some shape leads to a result of the same scalars, one by one."""
        way = self.way
        if type(way) is not Affine or way.stored or way.offset or self.split or way.stride != contiguous(way.shape):
            return False
        return prod(way.shape) == prod(shape) == self.target.numel

    def places(self, positions: np.ndarray, stored: np.ndarray | None, row: Rows, numel: int) -> np.ndarray:
        """Give the places in the output of some scalars of a value of `numel` scalars."""
        if self.split:
            positions = positions + row * numel
        way, order = _in_order(self.way)
        if type(way) is not Affine or way.table is not None:
            raw = None if stored is None else torch.from_numpy(stored)
            out = way.flat(torch.from_numpy(positions), raw, tensor_of(row)).numpy()
        elif not way.stored and not way.offset and way.stride == contiguous(way.shape):
            out = positions
        else:
            out = _strided(way, positions, stored)
        return _placed(order, out)

    def all_places(self, stored: np.ndarray | None, row: int, numel: int) -> np.ndarray:
        """Give the places of all scalars of one row."""
        way, order = _in_order(self.way)
        if type(way) is not Affine or way.table is not None or prod(way.shape[self.split :]) != numel:
            return self.places(np.arange(numel), stored, row, numel)
        shape, stride, out = way.shape, way.stride, np.full((), way.offset)
        if self.split:
            shape, stride, out = shape[1:], stride[1:], out + row * stride[0]
        for n, step in zip(shape, stride, strict=True):
            out = out[..., None] + np.arange(n) * step
        out = out.reshape(-1)
        if way.step:
            assert stored is not None
            out = out + np.maximum(stored, 0).astype(np.int64) * way.step
        return _placed(order, out)

    def place(self, position: int, stored: int | None, row: int, numel: int) -> int:
        """Give what `places` does of one scalar."""
        way = self.way
        if self.split:
            position += row * numel
        if type(way) is not Affine or way.table is not None:
            raw = None if stored is None else torch.tensor([stored])
            return int(way.flat(torch.tensor([position]), raw, row))
        out = way.offset + (0 if stored is None else max(stored, 0) * way.step)
        for n, step in zip(reversed(way.shape), reversed(way.stride), strict=True):
            position, here = divmod(position, n)
            out += here * step
        return out


@lru_cache(maxsize=64)
def _ordinals(shape: tuple[int, ...], windows: tuple[Layout, ...]) -> Tensor:
    """Write by scalar which window it is in, 1 × shape: the same at each step of a loop."""
    out = torch.zeros((1, prod(shape)), dtype=torch.uint8 if len(windows) < 256 else torch.int32)
    for mark, at in enumerate(windows):
        out.as_strided((1, *at.size), (0, *at.stride), at.offset).fill_(mark)
    return out.reshape(1, *shape)


def through(outer: Use, inner: Use) -> Use:
    """Go by strides to a value that has the axes in another order, and from there by another edge."""
    way, then = outer.way, inner.way
    assert isinstance(way, Affine)
    assert isinstance(then, Affine)
    seen, split = then.shape[1:] if inner.split else then.shape, then.stride[:1] if inner.split else ()
    # which axis of the value between each axis is: the one that it steps along
    steps = {(step, n): d for d, (step, n) in enumerate(zip(contiguous(seen), seen, strict=True))}
    axes = [steps[step, n] if n > 1 else None for n, step in zip(way.shape, way.stride, strict=True)]
    tail = then.stride[1:] if inner.split else then.stride
    stride = (*split, *(0 if d is None else tail[d] for d in axes))
    shape = (*then.shape[:1], *way.shape) if inner.split else way.shape
    return Use(outer.first, inner.target, Affine(shape, stride, then.offset, then.step, then.table), inner.split)


def _read(plane: Tensor, row: int, at: tuple[int, ...]) -> int:
    """Read one number of a plane (batch × shape, any strides)."""
    return int(plane[(row if len(plane) > 1 else 0, *at)])


def _in_order(way: Way) -> tuple[Way, Reordered | None]:
    """Take the order in which a result was seen off a way."""
    return (way.way, way) if type(way) is Reordered else (way, None)


def _placed(order: Reordered | None, seen: np.ndarray) -> np.ndarray:
    """Give the places in the result of what was seen in an order."""
    return seen if order is None else order.placed(torch.from_numpy(seen)).numpy()


def _strided(way: Affine, positions: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
    """Do what `Affine.flat` does, by numpy, which takes a fraction of the time of few scalars and of divisions."""
    out = np.full(positions.shape, way.offset)
    rest = positions
    for d in range(len(way.shape) - 1, -1, -1):
        n, step = way.shape[d], way.stride[d]
        if not any(way.stride[: d + 1]):
            break
        above = rest // n if d else None
        if step:
            out += (rest if above is None else rest - above * n) * step
        rest = rest if above is None else above
    if way.step:
        assert stored is not None
        out += np.maximum(stored, 0).astype(np.int64) * way.step
    return out


@dataclass(eq=False, slots=True)
class Winners:
    """The winners of one value: batch × shape.

    Attributes:
        edges: by ordinal; of equals the last came first in the program.
        choice: the ordinal of each scalar's edge, None where there is one edge.
        index: what the kernels stored; None where every way is arithmetic.
        windows: where every edge has a window of its own, by ordinal, instead of `choice`.
        terms: where several products were put into one, (ordinal, number within the product) of each stored number.
    """

    shape: tuple[int, ...]
    edges: list[Use] = field(default_factory=list)
    choice: Tensor | None = None
    index: Tensor | None = None
    terms: tuple[Tensor, Tensor] | None = None
    windows: list[Layout] | None = None

    def settle(self) -> None:
        """Write out choices that are implied by windows, or by the stored numbers."""
        if self.windows is not None:
            write = _ordinals if prod(self.shape) <= KEPT else _ordinals.__wrapped__
            # a copy, into which others may be merged
            self.choice, self.windows = write(self.shape, tuple(self.windows)).clone(), None
        if self.terms is None or self.index is None:
            return
        raw = self.index.clamp(min=0).to(torch.int64)
        ordinal, local = self.terms
        kind = torch.uint8 if len(self.edges) < 256 else torch.int32
        self.choice, self.index, self.terms = ordinal[raw].to(kind), local[raw].to(torch.int32), None

    def planes(self) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Give (choice, index, terms)."""
        if self.windows is not None:
            self.settle()
        return self.choice, self.index, self.terms

    def at(self, row: int | Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give (the ordinal of the edge, what is stored) of some scalars, all of one row or each of its own."""
        if self.windows is not None:
            self.settle()
        raw = None if self.index is None else pick(self.index, row, positions, self.shape)
        if self.terms is not None and raw is not None:
            raw = raw.clamp(min=0).to(torch.int64)
            return self.terms[0][raw], self.terms[1][raw]
        if self.choice is None:
            return torch.zeros_like(positions), raw
        return pick(self.choice, row, positions, self.shape).to(torch.int64), raw

    def one(self, row: int, position: int) -> tuple[int, int | None]:
        """Give what `at` does of one scalar."""
        if self.windows is not None:
            self.settle()
        at = unravelled(position, self.shape)
        raw = None if self.index is None else _read(self.index, row, at)
        if self.terms is not None and raw is not None:
            raw = max(raw, 0)
            return int(self.terms[0][raw]), int(self.terms[1][raw])
        return 0 if self.choice is None else _read(self.choice, row, at), raw

    def consumer(self, row: int, position: int) -> tuple[Use, int]:
        """Give the edge through which one scalar goes on, and its place in the output."""
        chosen, raw = self.one(row, position)
        edge = self.edges[chosen]
        return edge, edge.place(position, raw, row, prod(self.shape))

    def pointers(self, row: int, positions: Tensor) -> Tensor:
        """Give the backpointers of some scalars, which have to have a path."""
        chosen, raw = self.at(row, positions)
        out = torch.zeros_like(positions)
        for ordinal in range(len(self.edges)) if len(self.edges) > 1 else (0,):
            edge = self.edges[ordinal]
            here = (chosen == ordinal).nonzero().squeeze(-1) if len(self.edges) > 1 else slice(None)
            where = positions[here] + (row * prod(self.shape) if edge.split else 0)
            out[here] = edge.way.flat(where, None if raw is None else raw[here], row) + edge.first
        return out


class Borrowed(Winners):
    """Winners of a value whose product went on, uncomputed, through a transposition to another value.

    That value's winners say all about the scalars that it chose to come from here. All others are on no leaf's path.
    """

    __slots__ = ("_link", "_order")

    def __init__(self, shape: tuple[int, ...], edges: list[Use]) -> None:
        super().__init__(shape, edges)
        self._link: tuple[Winners, int, Affine] | None = None
        self._order: tuple[int, ...] = ()

    @property
    def lender(self) -> Winners | None:
        """The winners that serve."""
        return None if self._link is None else self._link[0]

    @property
    def link(self) -> tuple[Winners, int, tuple[int, ...]] | None:
        """What was borrowed: whose winners, for which ordinal, in which order of axes."""
        return None if self._link is None else (*self._link[:2], self._order)

    def borrow(self, winners: Winners, ordinal: int, order: tuple[int, ...]) -> None:
        """Say whose winners serve: those of a value that has this one's axes in another order, for one ordinal."""
        stride = [0] * len(self.shape)
        for step, d in zip(contiguous(winners.shape), order, strict=True):
            stride[d] = step
        self._link, self._order = (winners, ordinal, Affine(self.shape, tuple(stride))), order

    def knows(self, row: int, position: int) -> bool:
        """Tell whether a scalar was chosen, so that its winner is known."""
        assert self._link is not None
        winners, ordinal, _ = self._link
        return winners.one(row, self._there(position))[0] == ordinal

    def known(self, row: Rows, positions: np.ndarray) -> np.ndarray:
        """Do what `knows` does for some scalars."""
        assert self._link is not None
        winners, ordinal, way = self._link
        return (winners.at(tensor_of(row), way.flat(torch.from_numpy(positions), None))[0] == ordinal).numpy()

    def _there(self, position: int) -> int:
        """Give the position of a scalar among the lender's."""
        assert self._link is not None
        stride = self._link[2].stride
        return sum(i * step for i, step in zip(unravelled(position, self.shape), stride, strict=True))

    def planes(self) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
        assert self._link is not None
        _, stored, terms = self._link[0].planes()
        if stored is None:
            return None, None, None
        if terms is not None:
            stored = terms[1][stored.clamp(min=0).to(torch.int64)].to(torch.int32)
        stored = stored.reshape(-1, *self._link[0].shape)
        return None, stored.permute(0, *(1 + self._order.index(d) for d in range(len(self.shape)))), None

    def at(self, row: int | Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self._link is not None
        winners, _, way = self._link
        return torch.zeros_like(positions), winners.at(row, way.flat(positions, None))[1]

    def one(self, row: int, position: int) -> tuple[int, int | None]:
        assert self._link is not None
        return 0, self._link[0].one(row, self._there(position))[1]


def pick(plane: Tensor, row: int | Tensor, positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Read some scalars of a plane (batch × shape, any strides), flat, of one row or each of its own."""
    if isinstance(row, Tensor) and len(plane) > 1:
        if plane.is_contiguous():
            return plane.reshape(len(plane), -1)[row, positions]
        return plane[(row, *torch.unravel_index(positions, tuple(shape)))] if shape else plane[row]
    if isinstance(row, Tensor):
        row = 0
    plane = plane[row if len(plane) > 1 else 0]
    if 4 * len(positions) > prod(shape) or plane.is_contiguous():
        return plane.reshape(-1)[positions]
    return plane[torch.unravel_index(positions, tuple(shape))] if shape else plane.reshape(1)[positions]
