"""The k largest path weights by the compiled kernels: a carrier of values alone.

An element is 1 to k planes of plain float64 numbers, the s-th largest weight of every scalar in the s-th plane; there
are only as many planes as some scalar has paths. Which of equal weights is kept makes no difference to their values, so
there are no backpointers, and candidates that cannot be among the largest are never looked at. Products round as the
mantissas of `semirings.ranked` do, so values are the same, bit for bit, save where a norm's own Jacobian is worked out.
Where a float64 would under- or overflow, `OutOfRange` asks for the carrier that has an exponent for each weight.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from ..errors import NotANumber
from ..semiring import Carrier, Element
from . import native
from .plane import OutOfRange, wide

LARGE = 1 << 20  # bytes from which memory is worth keeping


class Room:
    """Memory for results, used again when nothing refers to it any more.

    Pages fresh from the system have to be cleared first, which takes longer than many a kernel does.
    """

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []

    def __call__(self, *shape: int) -> Tensor:
        """Make room for float64 numbers of a shape."""
        size = 8 * prod(shape)
        if size < LARGE:
            return torch.empty(shape, dtype=torch.float64)
        fitting = [m for m in self.free if size <= len(m) <= 2 * size]
        if fitting:
            memory = min(fitting, key=len)
            self.free.remove(memory)
        else:
            memory = _pages(size)
        view = memoryview(memory)  # lives as long as a tensor shows it
        weakref.finalize(view, self.free.append, memory).atexit = False
        return _tensor(view, shape)

    def zeros(self, *shape: int) -> Tensor:
        """Make zeros, which take no memory, and no time, until they are written."""
        size = 8 * prod(shape)
        return torch.zeros(shape, dtype=torch.float64) if size < LARGE else _tensor(memoryview(_pages(size)), shape)


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _tensor(view: memoryview, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(view, dtype=torch.float64, count=prod(shape)).reshape(shape)


def judge(flags: int) -> None:
    """Look at what a kernel says.

    Raises:
        NotANumber: a weight is NaN.
        OutOfRange: a float64 is too narrow.
    """
    if flags & native.NAN:
        raise NotANumber("a local derivative is NaN")
    if flags:
        raise OutOfRange


def alike(g: Sequence[Tensor]) -> Element:
    """Give planes of one layout."""
    same = all(p.stride() == g[0].stride() for p in g)
    return tuple(g) if same else tuple(p.contiguous() for p in g)


@dataclass(frozen=True)
class Largest(Carrier):
    """The k largest path weights. One is made for each pass: it remembers whose memory several may read.

    Attributes:
        read: by where memory begins, the first plane of the element that was last carried back out of it.
        shared: memory that was carried back along several edges, or kept: several elements may be views of it.
    """

    points = False

    k: int
    read: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    room: Room = field(default_factory=Room)

    def one(self, like: Tensor) -> Element:
        return (torch.ones_like(like, dtype=torch.float64),)

    def zero(self, shape: tuple[int, ...], like: Element) -> Element:
        return self.room(len(like), *shape).zero_().unbind(0)

    def seed(self, g: Element, ids: Tensor) -> Element:
        del ids
        for at in _memory(g):
            if self._reader(at) is g[0]:
                self.shared.add(at)
            self.read[at] = weakref.ref(g[0])
        return g

    def _reader(self, at: int) -> Tensor | None:
        """Give the element that is being carried back out of a piece of memory, if one still is."""
        return self.read[at]() if at in self.read else None

    def weigh(self, weight: Tensor, g: Element) -> Element:
        shape = torch.broadcast_shapes(weight.shape, g[0].shape)
        out = self.room(len(g), *shape)
        judge(native.top_weigh(wide(weight).expand(shape).contiguous(), [p.expand(shape).contiguous() for p in g], out))
        return out.unbind(0)

    def _kept(self, g: Element) -> int:
        """Count how many entries a merge of the rows of batch × rows × n needs."""
        return max(1, native.top_depth(g, self.k))

    def reduce(self, g: Element) -> Element:
        shape, n = g[0].shape[:-1], g[0].shape[-1]
        if g[0].numel() == 0:
            return self.zero(tuple(shape), g[:1])
        rows = alike([p.reshape(prod(shape), n) for p in g])
        keep = self._kept(tuple(p.unsqueeze(0) for p in rows))
        columns = [p.t() if p.stride(0) == 1 else p.t().contiguous() for p in rows]
        out = self.room(keep, prod(shape))
        native.top_reduce(columns, out)
        return out.reshape(keep, *shape).unbind(0)

    def others(self, g: Element) -> Element:
        shape, n = g[0].shape, g[0].shape[-1]
        if g[0].numel() == 0:
            return g
        one = g[0].new_ones(()).expand(prod(shape[:-1]), n, 1)
        out = self.low_rank(torch.zeros_like(one[..., 0]), one, one, tuple(p.reshape(1, -1, n) for p in g))
        assert out is not None
        return tuple(p.reshape(shape) for p in out)

    def low_rank(self, own: Tensor, left: Tensor, right: Tensor, g: Element) -> Element | None:
        rank = left.shape[-1]
        if rank > 2:
            return None
        kind = torch.float64 if torch.float64 in (own.dtype, left.dtype, right.dtype) else torch.float32
        factors = [t.to(kind) for t in (own, *left.unbind(-1), *right.unbind(-1))]
        g = alike(g)
        out = self.room(self._kept(g), *g[0].shape)
        judge(native.top_low_rank(g, factors, out))
        return out.unbind(0)

    def segment(self, g: Element, index: Tensor, size: int) -> Element:
        shape = g[0].shape[:-1]
        if g[0].numel() == 0:
            return self.zero((*shape, size), g[:1])
        rows = alike([p.reshape(prod(shape), -1) for p in g])
        out = self.room.zeros(self.k, len(rows[0]), size)
        used = native.top_segment(rows, index.reshape(-1, *rows[0].shape[1:]).squeeze(0), out)
        return out.reshape(-1, *shape, size)[: max(1, used)].unbind(0)

    def plus(self, a: Element, b: Element) -> Element:
        keep = min(self.k, len(a) + len(b))
        b = tuple(p.contiguous() for p in b)
        if keep > len(a) or not self._alone(a):
            a = tuple(p.contiguous() for p in a)
            out = self.room(keep, *a[0].shape).unbind(0)
        else:
            out = a
        native.top_merge(a, b, out)
        return out

    def _alone(self, g: Element) -> bool:
        """Tell whether nothing else can be reading these planes: then they may be written."""
        free = all(at not in self.shared and self._reader(at) is None for at in _memory(g))
        return free and all(p.is_contiguous() for p in g)

    def contract(self, weight: Tensor, g: Element) -> Element:
        batch, rows, inner = g[0].shape
        columns = weight.shape[1]
        if 0 in (batch, rows, inner, columns):
            return self.zero((batch, rows, columns), g[:1])
        if columns == 1:  # a block of columns would be wasted on it
            return tuple(p.unsqueeze(-1) for p in self.reduce(self.weigh(weight, g)))
        g = alike(g)
        out = self.room(self._kept(g), batch, rows, columns)
        judge(native.top_product(g, wide(weight), out))
        return out.unbind(0)

    def plain(self, g: Element) -> Tensor:
        self.shared.update(_memory(g))
        out = together(g)
        missing = self.k - len(g)
        return out if not missing else torch.cat([out, out.new_zeros(len(out), missing, *out.shape[2:])], 1)


def _memory(g: Element) -> set[int]:
    """Tell which pieces of memory planes lie in."""
    return {p.untyped_storage().data_ptr() for p in g}


def together(g: Element) -> Tensor:
    """Give batch × entries × shape: a view, where the planes lie in memory as one array's do."""
    first, step = g[0], g[1].storage_offset() - g[0].storage_offset() if len(g) > 1 else 0
    at = first.storage_offset()
    if all(
        p.stride() == first.stride()
        and p.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and p.storage_offset() == at + s * step
        for s, p in enumerate(g)
    ):
        batch, *shape = first.shape
        of_batch, *strides = first.stride()
        return first.as_strided((batch, len(g), *shape), (of_batch, step, *strides), at)
    return torch.stack(g, 1)
