"""Sums of positive numbers, compiled: what surrounds a matrix product of powers or of shares, and connected rows.

An element here is one number z, under the p-norm with p = 2^squarings, or a pair (z, h) of a total and the entropy of
its shares in bits, where `squarings` is None. Functions give `flags` beside their results: 0 where nothing was lost to
underflow and everything is finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log2, prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..semirings.base import Element
from .memory import empty
from .native import lib, lying

LOST, UNBOUNDED, AGAIN = 2, 4, 8
WHOLE = slice(None)
CELLS = 1 << 21  # numbers of each factor of a product that are prepared at a time
MANY = 1 << 24  # terms that are too many to be met one entry at a time
FORMS = {"given": 0, "softmax": 1, "log_softmax": 2}

Found: TypeAlias = tuple[Element, int]


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _spread(g: Sequence[Tensor]) -> Tensor | None:
    """Give the plane of entropies, if there is one."""
    return g[1] if len(g) == 2 else None


def _double(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float64


@dataclass(frozen=True, eq=False)
class Factor:
    """One side of a product, b × rows × k, each row in units of a power of two near its largest.

    Attributes:
        data, h: any floats, laid out alike; `turned`: their memory runs along the rows, not along k.
        scale: b × rows, near 2^-exponent; `exponent`: int32, far below all others where a row is zero.
    """

    data: Tensor
    h: Tensor | None
    turned: bool
    scale: Tensor
    exponent: Tensor

    @classmethod
    def of(cls, data: Tensor, h: Tensor | None, room: int) -> Factor:
        """Find the units: the largest of a row is near 2^room, which leaves room for underflow."""
        data, h, turned = _laid_out(data, h)
        scale, exponent = empty(data.dtype, *data.shape[:2]), empty(torch.int32, *data.shape[:2])
        where = data.data_ptr(), turned, room, scale.data_ptr(), exponent.data_ptr()
        lib.sum_units(_double(data), *_lie(data, turned), *where, torch.get_num_threads())
        return cls(data, h, turned, scale, exponent)

    def part(self, rows: slice, k: slice) -> Factor:
        """Cut out some rows and some of k."""
        if rows == k == WHOLE:
            return self
        h = None if self.h is None else self.h[:, rows, k]
        return Factor(self.data[:, rows, k], h, self.turned, self.scale[:, rows], self.exponent[:, rows])

    def prepared(self, squarings: int | None, inside: torch.dtype) -> tuple[Tensor, ...]:
        """Give (v^p,), or (v, v (h - log2 v)), v being numbers in their row's units: b × rows × k."""
        shape, strides = _lie(self.data, self.turned)
        scale = self.scale.contiguous()
        outs = [torch.empty(shape, dtype=inside) for _ in range(1 if squarings is not None else 2)]
        types = _double(self.data), inside is torch.float64
        threads = torch.get_num_threads()
        if squarings is not None:
            given = self.turned, _at(scale), squarings, _at(outs[0]), threads
            lib.sum_raise(*types, shape, strides, self.data.data_ptr(), *given)
        else:
            given = self.turned, _at(scale), *map(_at, outs), threads
            lib.sum_shares(*types, shape, strides, self.data.data_ptr(), _at(self.h), *given)
        return tuple(out.transpose(1, 2) if self.turned else out for out in outs)


def _laid_out(data: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
    """Lay planes, b × rows × k, out alike; whether their memory runs along the rows, not along k."""
    if h is not None and h.stride() != data.stride():
        data, h = data.contiguous(), h.contiguous()
    turned = data.stride(2) != 1 and data.shape[2] != 1
    if turned and data.stride(1) != 1 and data.shape[1] != 1:
        return data.contiguous(), h if h is None else h.contiguous(), False
    return data, h, turned


def _lie(data: Tensor, turned: bool) -> tuple[list[int], list[int]]:
    """Give the sizes and the strides of (batch, rows) in which memory is contiguous."""
    data = data.transpose(1, 2) if turned else data
    return list(data.shape), [data.stride(0), data.stride(1)]


def product(g: Element, weight: Tensor, squarings: int | None) -> Found:
    """Merge |weight[b,j,k]| ⊗ g[b,i,k] over k: b × i × j.

    Matrix products are in the precision of the weight, whatever that of g. Where what underflowed may count, z is -1
    and `AGAIN` is among the flags.
    """
    inside = weight.dtype
    if squarings == 0 and g[0].dtype is inside:
        simple = plainly(_times(g[0], weight.abs().transpose(1, 2)), weight.shape[2])
        if simple is not None:
            return (simple,), 0
    k, p = weight.shape[2], 1 if squarings is None else 2**squarings
    kind = torch.finfo(inside)
    reach = int(-log2(kind.tiny))
    room = 0 if squarings is None else max(0, int((reach - 2 - log2(k)) / (2 * p)))
    least = k * kind.tiny / kind.eps * 2.0 ** (room * p)
    (batch, rows, _), columns = g[0].shape, weight.shape[1]
    out = tuple([empty(g[0].dtype, batch, rows, columns) for _ in g])
    flags = 0
    inplace = inside is out[0].dtype
    if batch > 1 or k * max(rows, columns) <= CELLS:  # it stays in the caches as it is
        a, of_rows = _prepared(g[0], _spread(g), room, squarings, inside)
        b, of_columns = _prepared(weight, None, room, squarings, inside)
        total = _added((), a, tuple([t.transpose(1, 2) for t in b]), out[0] if inplace else None)
        return out, settled(total, [of_rows, of_columns], squarings, least, out)
    left = Factor.of(g[0], _spread(g), room)
    right = Factor.of(weight, None, room)
    for rows, total in _totals(left, right, squarings, inside, out[0] if inplace else None):
        whole = rows == WHOLE
        units = [left.exponent if whole else left.exponent[:, rows].contiguous(), right.exponent]
        there = out if whole else tuple(plane[:, rows] for plane in out)
        flags |= settled(total, units, squarings, least, there)
    return out, flags


def _prepared(
    data: Tensor, h: Tensor | None, room: int, squarings: int | None, inside: torch.dtype
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Give (what `Factor.prepared` gives, the exponent of each row) of a factor that is not cut."""
    data, h, turned = _laid_out(data, h)
    shape, strides = _lie(data, turned)
    exponent = empty(torch.int32, *data.shape[:2])
    outs = [empty(inside, *shape) for _ in range(1 if squarings is not None else 2)]
    types, given = (_double(data), inside is torch.float64), (data.data_ptr(), _at(h), turned, room, squarings or 0)
    outs_at, threads = (outs[0].data_ptr(), _at(_spread(outs))), torch.get_num_threads()
    lib.sum_prepare(*types, shape, strides, *given, exponent.data_ptr(), *outs_at, threads)
    return tuple([out.transpose(1, 2) for out in outs] if turned else outs), exponent


def plainly(total: Tensor, terms: int) -> Tensor | None:
    """Give sums of so many positive products as they are; None where underflow or overflow may count."""
    kind = torch.finfo(total.dtype)
    low, high = (float(x) for x in total.aminmax())
    return total if low > terms * kind.tiny / kind.eps and high < inf else None


def _totals(
    left: Factor, right: Factor, squarings: int | None, inside: torch.dtype, out: Tensor | None
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Multiply block by block, which stays in the caches: (rows, their sums over k); the first may be part of `out`."""
    (_, rows, k), columns = left.data.shape, right.data.shape[1]
    depth = min(k, max(256, CELLS // max(columns, min(rows, 512))))
    height = min(rows, max(256, CELLS // depth))
    whole = right.prepared(squarings, inside) if depth == k else None
    for i in range(0, rows, height):
        some, sums = WHOLE if height >= rows else slice(i, i + height), ()
        room = out if out is None or some == WHOLE else out[:, some]
        for start in range(0, k, depth):
            part = WHOLE if depth >= k else slice(start, start + depth)
            b = right.part(WHOLE, part).prepared(squarings, inside) if whole is None else whole
            a = left.part(some, part).prepared(squarings, inside)
            sums = _added(sums, a, tuple(t.transpose(1, 2) for t in b), room)
        yield some, sums


def _added(
    sums: tuple[Tensor, ...], a: tuple[Tensor, ...], b: tuple[Tensor, ...], room: Tensor | None
) -> tuple[Tensor, ...]:
    """Add a product of (v^p,), or of (v, v (h - log2 v)), to what is there."""
    if not sums:
        sums = (_times(a[0], b[0], room), *(_times(t, b[0]) for t in a[1:]))
    else:
        sums = tuple(_plus(s, t, b[0]) for s, t in zip(sums, a, strict=True))
    return sums if len(a) == 1 else (sums[0], _plus(sums[1], a[0], b[1]))


def _times(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    if len(a) > 1:
        return torch.bmm(a, b, out=out)
    torch.mm(a[0], b[0], out=out[0])
    return out


def _plus(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if len(a) > 1:
        return total.baddbmm_(a, b)
    total[0].addmm_(a[0], b[0])
    return total


def settled(total: tuple[Tensor, ...], units: list[Tensor], squarings: int | None, least: float, out: Element) -> int:
    """Turn sums into elements, in units for each row and column; `out` is where they go, contiguous."""
    types = _double(out[0]), _double(total[0])
    given = list(total[0].shape), *map(_at, total), *map(_at, units)
    threads = torch.get_num_threads()
    if squarings is not None:
        return lib.sum_settle(*types, *given, squarings, least, out[0].data_ptr(), threads)
    return lib.sum_settle_shares(*types, *given, least, *(p.data_ptr() for p in out), threads)


def join(a: Element, b: Element, squarings: int | None) -> Found:
    """Merge two arrays of one shape."""
    planes = [p if p.is_contiguous() else p.contiguous() for p in (*a, *b)]
    out = tuple([torch.empty_like(p) for p in planes[: len(a)]])
    where = [p.data_ptr() for p in planes]
    x, y, z = where[: len(a)], where[len(a) :], [p.data_ptr() for p in out]
    if len(a) == 1:
        x, y, z = [*x, 0], [*y, 0], [*z, 0]
    return out, lib.sum_join(_double(planes[0]), out[0].numel(), *x, *y, squarings or 0, *z, torch.get_num_threads())


def reduce(g: Element, squarings: int | None) -> Found:
    """Merge along the last axis, of more than one number."""
    shape, k = g[0].shape[:-1], g[0].shape[-1]
    planes = [p if p.dim() == 3 else p.reshape(1, -1, k) for p in g]  # b × rows × k
    data, h, turned = _laid_out(planes[0], _spread(planes))
    out = tuple([empty(p.dtype, *shape) for p in g])
    where = *_lie(data, turned), data.data_ptr(), _at(h), turned, squarings or 0
    return out, lib.sum_reduce(_double(data), *where, out[0].data_ptr(), _at(_spread(out)), torch.get_num_threads())


def rank_one(form: str, g: Element, factors: tuple[Tensor, ...], squarings: int | None, *, over: bool = False) -> Found:
    """Carry g (rows × n) back through (own, left, right), or a softmax's or a log-softmax's p; perhaps `over` p."""
    own, left, right = factors if form == "given" else (None, None, *factors)
    kept = [t if t is None else t.contiguous() for t in (own, left, right)]
    return _rows(lib.sum_one_rows, (FORMS[form],), g, kept, squarings, kept[2] if over else None)


def rank_two(g: Element, factors: Sequence[Tensor], squarings: int | None) -> Found:
    """Carry g (rows × n) back through (own, left_0, left_1, right_0, right_1): left · right, own on the diagonal."""
    return _rows(lib.sum_two_rows, (), g, [t.contiguous() for t in factors], squarings)


def standard(
    factors: Sequence[Tensor | None], count: int, g: Sequence[Tensor], out: Sequence[Tensor], squarings: int | None
) -> int:
    """Carry g back through a normalisation, x̂, γ (None: ones) and 1/σ being given, all of them rows × n1 × n2.

    Args:
        g, out: (z,) or (z, h); out is written. All numbers are float32, or all float64.

    Returns:
        flags.
    """
    where, threads = lying(*factors, g[0], _spread(g), out[0], _spread(out)), torch.get_num_threads()
    return lib.sum_standard_rows(_double(g[0]), *g[0].shape, *where, float(count), squarings or 0, threads)


def added(factors: Sequence[Tensor | None], count: int, g: Tensor, out: Tensor) -> None:
    """Carry an ordinary gradient of float64 back through a normalisation whose factors are float32, as `standard`."""
    lib.sum_added_rows(*g.shape, *lying(*factors, g, out), float(count), torch.get_num_threads())


def _rows(
    kernel: Any,
    first: tuple[int, ...],
    g: Element,
    given: Sequence[Tensor | None],
    squarings: int | None,
    over: Tensor | None = None,
) -> Found:
    g = tuple(p.contiguous() for p in g)
    out = (torch.empty_like(g[0]) if over is None else over, *map(torch.empty_like, g[1:]))
    z, h = ([p.data_ptr() for p in planes] + [0] for planes in (g, out))
    sizes = prod(g[0].shape[:-1]), g[0].shape[-1]
    where = *map(_at, given), *z[:2], squarings or 0, *h[:2], torch.get_num_threads()
    return out, kernel(_double(g[0]), *first, *sizes, *where)
