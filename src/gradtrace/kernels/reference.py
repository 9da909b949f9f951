"""The reference kernels: g_x = ⊕ over the edges into x of λ(w) ⊗ g_y, structure by structure.

Every kernel takes elements of shape (batch, *y) and gives elements of shape (batch, *x), where x and y
are the shapes in which the structure views the tensors. They are plain PyTorch and work for any carrier.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor

from ..jacobians.structure import (
    Chain,
    ClosedRows,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Shape,
    Sparse,
    Strided,
)
from ..recording.layouts import Layout, contiguous, positions
from ..semirings.base import Carrier, Element

ROWS = 1 << 22  # entries of a dense Jacobian held at a time


def each(g: Element, f: object) -> Element:
    """Apply a shape operation to every plane."""
    return tuple(f(plane) for plane in g)  # type: ignore[operator]


def rows_of(g: Element) -> Element:
    """Make every plane batch × scalars, also where there are none."""
    return each(g, lambda p: p.reshape(p.shape[0], _numel(tuple(p.shape[1:]))))


def pull(structure: object, carrier: Carrier, g: Element) -> Element:
    """Carry the elements of a result back to one argument, along a structure.

    Args:
        structure: how the result depends on the argument.
        carrier: the semiring's arrays, perhaps with kernels of its own.
        g: batch × y.

    Returns:
        batch × x.
    """
    found = carrier.along(structure, g)
    return by_definition(structure, carrier, g) if found is None else found


@singledispatch
def by_definition(structure: object, carrier: Carrier, g: Element) -> Element:
    """Do the same for any carrier, by what every carrier can."""
    raise TypeError(f"not a structure: {structure!r}")


@by_definition.register
def _contraction(s: Contraction, carrier: Carrier, g: Element) -> Element:
    batch = g[0].shape[0]
    g = each(g, lambda p: p.reshape(batch, *s.y_shape))
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    merged = [c for c in s.y if c not in s.x]
    if s.weight is None:
        return _expand(_merge(carrier, g, s.y, merged), [c for c in s.y if c in s.x], s.x, sizes)
    weight = s.weight().reshape([sizes[c] for c in s.w])
    alone = [c for c in merged if c not in s.w]
    inner = [c for c in merged if c in s.w]
    if inner and alone:  # one merge over both, in the order of y, so that ties fall as defined
        weight, w = weight.reshape([1] * len(alone) + list(weight.shape)), "".join(alone) + s.w
        weight = weight.expand([sizes[c] for c in w])
        return _product(carrier, g, s.y, weight, w, s.x, sizes)
    if inner:
        return _product(carrier, g, s.y, weight, s.w, s.x, sizes)
    y = "".join(c for c in s.y if c in s.x or c in s.w)
    return _pointwise(carrier, _merge(carrier, g, s.y, alone), y, weight, s.w, s.x, sizes)


def _merge(carrier: Carrier, g: Element, y: str, letters: list[str]) -> Element:
    """⊕ over some letters of y; the axes of g are batch, then y."""
    if not letters:
        return g
    kept = [1 + i for i, c in enumerate(y) if c not in letters]
    gone = [1 + i for i, c in enumerate(y) if c in letters]
    g = each(g, lambda p: p.permute(0, *kept, *gone).flatten(1 + len(kept)))
    return carrier.reduce(g)


def _expand(g: Element, have: list[str], x: str, sizes: dict[str, int]) -> Element:
    """Give axes batch, x to elements with axes batch, `have` (a subset of x)."""
    order = [1 + have.index(c) for c in x if c in have]
    shape = [sizes[c] if c in have else 1 for c in x]
    full = [sizes[c] for c in x]
    batch = g[0].shape[0]
    return each(g, lambda p: p.permute(0, *order).reshape(batch, *shape).expand(batch, *full))


def _pointwise(carrier: Carrier, g: Element, y: str, weight: Tensor, w: str, x: str, sizes: dict[str, int]) -> Element:
    """No letter is merged: multiply along x."""
    g = _expand(g, list(y), x, sizes)
    order = [w.index(c) for c in x if c in w]
    weight = weight.permute(order).reshape([sizes[c] if c in w else 1 for c in x])
    return carrier.weigh(weight, g)


def _product(carrier: Carrier, g: Element, y: str, weight: Tensor, w: str, x: str, sizes: dict[str, int]) -> Element:
    """A batched matrix product: letters of all three, of y and x, of w and x, and merged."""
    both = [c for c in y if c in x and c in w]
    rows = [c for c in y if c in x and c not in w]
    columns = [c for c in w if c in x and c not in y]
    inner = [c for c in y if c not in x]
    count = {name: _size(sizes, ls) for name, ls in (("b", both), ("i", rows), ("j", columns), ("k", inner))}
    batch = g[0].shape[0]
    # the batch axis joins the rows where the weight has no letter of its own for it
    order = [1 + y.index(c) for c in both], [1 + y.index(c) for c in rows], [1 + y.index(c) for c in inner]
    shaped = each(
        g,
        lambda p: p.permute(*order[0], 0, *order[1], *order[2]).reshape(count["b"], batch * count["i"], count["k"]),
    )
    weight = weight.permute([w.index(c) for c in both + columns + inner]).reshape(count["b"], count["j"], count["k"])
    out = carrier.contract(weight, shaped)  # b × batch·i × j
    have = [*both, "0", *rows, *columns]
    shape = [batch if c == "0" else sizes[c] for c in have]
    return _expand(each(out, lambda p: p.reshape(shape).movedim(len(both), 0)), both + rows + columns, x, sizes)


def _size(sizes: dict[str, int], letters: list[str]) -> int:
    out = 1
    for c in letters:
        out *= sizes[c]
    return out


@by_definition.register
def _strided(s: Strided, carrier: Carrier, g: Element) -> Element:
    order = axes(s.layout, s.x_shape)
    if order is not None:
        shown, back = (len(g[0]), *s.layout.size), [0, *(1 + d for d in order)]
        return each(g, lambda p: p.reshape(shown).permute(back).reshape(len(p), *s.x_shape))
    # y's repeated axes (stride 0) are merged, the rest is written where it came from
    repeated = [
        d for d, (n, step) in enumerate(zip(s.layout.size, s.layout.stride, strict=True)) if step == 0 and n > 1
    ]
    kept = [d for d in range(len(s.layout.size)) if d not in repeated]
    size = [s.layout.size[d] for d in kept]
    stride = [s.layout.stride[d] for d in kept]
    batch = g[0].shape[0]
    g = each(g, lambda p: p.reshape(batch, *s.layout.size))
    if repeated:
        g = each(
            g,
            lambda p: p.permute(0, *[1 + d for d in kept], *[1 + d for d in repeated]).flatten(1 + len(kept)),
        )
        g = carrier.reduce(g)
    numel, once = _numel(s.x_shape), Layout(tuple(size), tuple(stride), s.layout.offset)
    if not injective(size, stride):
        index = positions(once, g[0].device).flatten()
        g = carrier.segment(rows_of(g), index, numel)
        return each(g, lambda p: p.reshape(batch, *s.x_shape))
    out = carrier.zero((batch, numel), g)
    for plane, source in zip(out, g, strict=True):
        window(plane, once).copy_(source)
    return each(out, lambda p: p.reshape(batch, *s.x_shape))


def carried(structure: object, carrier: Carrier, numbers: Tensor) -> Tensor:
    """Carry ordinary numbers (batch × y) back along a structure, as ordinary numbers."""
    return carrier.plain(pull(structure, carrier, carrier.weigh(numbers, carrier.one(torch.ones_like(numbers)))))


def axes(layout: Layout, x_shape: Shape) -> list[int] | None:
    """Give the order in which x has the axes of a view, those of size 1 last, if it shows all of x once; else None."""
    size, stride = layout.size, layout.stride
    if layout.offset or _numel(size) != _numel(x_shape):
        return None
    order = sorted(range(len(size)), key=lambda d: -stride[d])
    real = [d for d in order if size[d] != 1]
    if tuple(stride[d] for d in real) != contiguous([size[d] for d in real]):
        return None
    return real + [d for d in order if size[d] == 1]


def injective(size: list[int], stride: list[int]) -> bool:
    """Tell whether no two indices meet at one position."""
    reach = 0
    for step, n in sorted(zip(stride, size, strict=True)):
        if n > 1 and step <= reach:
            return False
        reach += (n - 1) * step
    return True


def window(flat: Tensor, layout: Layout) -> Tensor:
    """View a tensor of batch × numel, or batch × any contiguous shape, through a layout: batch × layout.size."""
    return flat.as_strided(
        (flat.shape[0], *layout.size), (flat.stride(0), *layout.stride), flat.storage_offset() + layout.offset
    )


def window_into(layout: Layout, carrier: Carrier, part: Element, known: Element) -> Element:
    """Merge what reaches a part of x (batch × layout.size) into what is known of it, in that memory.

    Args:
        known: batch × x, contiguous.
    """
    merged = carrier.plus_over(each(known, lambda p: window(p, layout)), part)
    known = _fitting(carrier, known, merged)
    for plane, some in zip(known, merged, strict=True):
        window(plane, layout).copy_(some)
    return known


@by_definition.register
def _placed(s: Placed, carrier: Carrier, g: Element) -> Element:
    batch = g[0].shape[0]
    flat = each(rows_of(g), torch.Tensor.contiguous)
    if s.hidden:
        flat = each(flat, torch.clone)
        for hidden in s.hidden:
            zero = carrier.zero((), g)
            for plane, z in zip(flat, zero, strict=True):
                window(plane, hidden).copy_(z.expand(batch, *hidden.size))
    return each(flat, lambda p: window(p, s.layout).clone())


@by_definition.register
def _gather(s: Gather, carrier: Carrier, g: Element) -> Element:
    batch, numel = g[0].shape[0], _numel(s.x_shape)
    if 0 in (numel, s.width):
        return carrier.zero((batch, *s.x_shape), g)
    read, rows = _gathered(s, carrier, g)
    out = carrier.zero((batch, numel // s.width, s.width), rows)
    for plane, part in zip(out, rows, strict=True):
        plane.index_copy_(1, read, part)
    return each(out, lambda p: p.reshape(batch, *s.x_shape))


def gather_into(s: Gather, carrier: Carrier, g: Element, known: Element) -> Element:
    """Merge what a gather carries back into the rows of x that it reads, in the memory of what is known of x.

    Args:
        known: batch × x, contiguous.
    """
    if 0 in (_numel(s.x_shape), s.width):
        return known
    read, rows = _gathered(s, carrier, g)
    shape, known = known[0].shape, each(known, lambda p: p.reshape(len(p), -1, s.width))
    rows = carrier.plus(each(known, lambda p: p.index_select(1, read)), rows)
    known = _fitting(carrier, known, rows)
    for plane, part in zip(known, rows, strict=True):
        plane.index_copy_(1, read, part)
    return each(known, lambda p: p.reshape(shape))


def _fitting(carrier: Carrier, known: Element, some: Element) -> Element:
    """Give planes of which `some` can become a part: as many, and as precise."""
    if len(some) > len(known):  # of a carrier without a fixed number of planes
        known += carrier.zero(tuple(known[0].shape), some[len(known) :])
    return tuple(p.to(s.dtype) for p, s in zip(known, some, strict=True))


def _distinct(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Give the numbers below `size` that there are, rising, and which of them each is; without sorting many of few."""
    if size > 8 * len(index):
        return index.unique(return_inverse=True)
    there = torch.zeros(size, dtype=torch.int64, device=index.device)
    there[index] = 1
    return there.nonzero().squeeze(-1), (there.cumsum(0) - 1).index_select(0, index)


def _gathered(s: Gather, carrier: Carrier, g: Element) -> tuple[Tensor, Element]:
    """Give the rows of x that are read, and what reaches them: batch × rows × width."""
    batch = g[0].shape[0]
    index = s.index().reshape(-1).to(g[0].device, torch.int64)
    # batch × width × rows, merged row by row of x
    flat = each(g, lambda p: p.reshape(batch, len(index), s.width).transpose(1, 2))
    live = (index >= 0).nonzero().squeeze(-1)
    if len(live) < len(index):
        flat, index = each(flat, lambda p: p.index_select(2, live)), index.index_select(0, live)
    read, slot = _distinct(index, _numel(s.x_shape) // s.width)
    if len(read) == len(index):  # none twice
        flat = each(flat, lambda p: p.index_select(2, slot.argsort()))
    else:
        flat = carrier.segment(flat, slot, len(read))
    return read, each(flat, lambda p: p.transpose(1, 2))


@by_definition.register
def _scatter(s: Scatter, carrier: Carrier, g: Element) -> Element:
    batch, index = g[0].shape[0], s.index().reshape(-1).to(g[0].device)
    if 0 in g[0].shape:
        return carrier.zero((batch, *s.x_shape), g)
    flat = each(rows_of(g), lambda p: p.index_select(1, index.clamp(min=0)))
    dead = index < 0
    if dead.any():
        zero = carrier.zero((), g)
        flat = tuple(torch.where(dead, z, p) for z, p in zip(zero, flat, strict=True))
    return each(flat, lambda p: p.reshape(batch, *s.x_shape))


@by_definition.register
def _sparse(s: Sparse, carrier: Carrier, g: Element) -> Element:
    batch, (outer, _, inner), n = g[0].shape[0], s.y_shape, s.x_shape[1]
    i, j, w = (t if t is None else t.to(g[0].device) for t in s.edges())
    assert i is not None
    assert j is not None
    # batch·outer·inner × edges, some rows at a time
    m = s.y_shape[1]
    rows = each(g, lambda p: p.reshape(batch * outer, m, inner).transpose(1, 2).reshape(batch * outer * inner, m))
    step, parts = max(1, ROWS // max(1, len(i))), []
    for r in range(0, len(rows[0]), step):
        edges = each(rows, lambda p, r=r: p[r : r + step].index_select(1, i))
        parts.append(carrier.segment(edges if w is None else carrier.weigh(w, edges), j, n))
    if not parts:
        return carrier.zero((batch, *s.x_shape), g)
    merged = _joined(carrier, parts, 0)
    return each(merged, lambda p: p.reshape(batch, outer, inner, n).transpose(2, 3))


@by_definition.register
def _chain(s: Chain, carrier: Carrier, g: Element) -> Element:
    return pull(s.second, carrier, pull(s.first, carrier, g))


@by_definition.register
def _convolved(s: Convolved, carrier: Carrier, g: Element) -> Element:
    batch, out = g[0].shape[0], None
    for part in s.parts():
        more = each(pull(part, carrier, g), lambda p: p.reshape(batch, *s.x_shape))
        out = more if out is None else carrier.plus(out, more)
    return carrier.zero((batch, *s.x_shape), g) if out is None else out


@by_definition.register
def _low_rank(s: LowRank, carrier: Carrier, g: Element) -> Element:
    if 0 in g[0].shape:
        return g
    batch = g[0].shape[0]
    kept = [d for d in range(len(s.shape)) if d not in s.dims]
    back = [0] + [1 + (kept + list(s.dims)).index(d) for d in range(len(s.shape))]
    rows, n = _numel(tuple(s.shape[d] for d in kept)), _numel(tuple(s.shape[d] for d in s.dims))
    g = each(g, lambda p: p.reshape(batch, *s.shape).permute(0, *[1 + d for d in (*kept, *s.dims)]))
    g = each(g, lambda p: p.reshape(batch, rows, n))

    def row(t: Tensor) -> Tensor:
        """The axes `dims` last, flattened: rows × n."""
        return t.permute([*kept, *s.dims]).reshape(rows, n)

    out = _closed(s, carrier, row, g)
    if out is None:
        diagonal, lefts, rights = s.factors()
        diagonal, left, right = row(diagonal), *(torch.stack([*map(row, ts)]).movedim(0, -1) for ts in (lefts, rights))
        out = carrier.low_rank(diagonal, left, right, g)
        if out is None:
            out = _dense_rows(carrier, diagonal, left, right, g)
    shape = [s.shape[d] for d in (*kept, *s.dims)]
    return each(out, lambda p: p.reshape(batch, *shape).permute(back))


def _closed(s: LowRank, carrier: Carrier, row: Callable[[Tensor], Tensor], g: Element) -> Element | None:
    """Let a carrier that can go back through a softmax without its factors do so."""
    if not isinstance(s.factors, ClosedRows) or s.factors.form not in ("softmax", "log_softmax"):
        return None
    of = s.factors.of
    return carrier.softmax(lambda: row(of()[0]), g, log=s.factors.form == "log_softmax")


def _dense_rows(carrier: Carrier, diagonal: Tensor, left: Tensor, right: Tensor, g: Element) -> Element:
    """Write out some columns of some rows' Jacobians at a time."""
    rows, n = diagonal.shape
    height, width = max(1, ROWS // (n * n)), max(1, min(n, ROWS // n))
    out = []
    for r in range(0, rows, height):
        at = slice(r, r + height)
        incoming, columns = each(g, lambda p, at=at: p[:, at].transpose(0, 1)), []
        for start in range(0, n, width):
            some = slice(start, start + width)
            # rows × j × i
            jacobian = torch.bmm(right[at, some], left[at].transpose(1, 2))
            jacobian.diagonal(start, 1, 2).copy_(diagonal[at, some])
            columns.append(carrier.contract(jacobian, incoming))
        out.append(_joined(carrier, columns, -1))
    return each(_joined(carrier, out, 0), lambda p: p.transpose(0, 1))


def _joined(carrier: Carrier, parts: list[Element], dim: int) -> Element:
    """Put elements side by side; of a carrier without a fixed number of planes, some have zeros for the last."""
    most = max(parts, key=len)
    short = [(part, most[len(part) :]) for part in parts]
    full = [part + (carrier.zero(tuple(part[0].shape), rest) if rest else ()) for part, rest in short]
    return tuple(torch.cat(planes, dim) for planes in zip(*full, strict=True))


def _numel(shape: Shape) -> int:
    return int(torch.Size(shape).numel())
