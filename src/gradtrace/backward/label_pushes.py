"""How a label goes from an argument to a result, structure by structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from ..jacobians.structure import (
    Chain,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sparse,
    Strided,
    Structure,
    result_shape,
)
from ..recording.layouts import Layout, Shape, Side, box, contiguous, positions

FREE = -2  # of a scalar: parameters reach it, and no example
NOTHING = -3  # neither does
SEVERAL = 1 << 30  # several examples do; above every example's number, so that the larger of two labels holds for both


class _Mixed:
    def __repr__(self) -> str:
        return "MIXED"


MIXED = _Mixed()  # every scalar is of several examples
Label: TypeAlias = Tensor | _Mixed | None


def compress(label: Tensor) -> Tensor:
    """Keep one entry along every axis on which a label does not depend."""
    for d in range(label.dim()):
        if label.shape[d] > 1 and (label.stride(d) == 0 or bool((label == label.narrow(d, 0, 1)).all())):
            label = label.narrow(d, 0, 1)
    return label.contiguous()


def everywhere(label: Label) -> Tensor:
    """Give a label that is there as a tensor that broadcasts."""
    return label if isinstance(label, Tensor) else torch.tensor(SEVERAL, dtype=torch.int32)


def examples_of(label: Tensor) -> Tensor:
    """Say which scalars belong to one example."""
    return (label >= 0) & (label < SEVERAL)


def push(structure: Structure, label: Label, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label from an argument to a result: (label, whether it connects examples)."""
    if not isinstance(label, Tensor):
        if type(structure) in _EVERYWHERE:
            return MIXED, False
        label = torch.full([1] * len(x_shape), SEVERAL, dtype=torch.int32)
    return _PUSHES[type(structure)](structure, label, x_shape, y_shape)


def meet(labels: Sequence[Label]) -> tuple[Tensor, bool]:
    """Give the label of what depends on scalars of several labels, which broadcast to it; whether they differ."""
    label, differ = _met(torch.stack(torch.broadcast_tensors(*map(everywhere, labels))), [0])
    return label[0], differ


def _met(label: Tensor, dims: list[int]) -> tuple[Tensor, bool]:
    """Let scalars along some axes meet: (their label, 1 along these axes; whether different examples do)."""
    known = label.masked_fill(label < 0, torch.iinfo(label.dtype).max)
    return _between(known.amin(dims, keepdim=True), label.amax(dims, keepdim=True))


def _between(low: Tensor, high: Tensor) -> tuple[Tensor, bool]:
    """Give the label of all from the smallest to the largest; what is free belongs to those that it meets."""
    clash = (low < high) & (high >= 0)
    some = bool(clash.any())
    return (high.masked_fill(clash, SEVERAL) if some else high), some


def _push_gather(s: Gather, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Read labels where scalars are read."""
    index = s.scalars()
    return _read(label, x_shape, index.clamp(min=0)).masked_fill(index < 0, NOTHING).reshape(y_shape), False


def _read(label: Tensor, shape: Shape, flat: Tensor) -> Tensor:
    """Read a label at flat positions of the tensor, of some shape, that it is of."""
    at = torch.zeros_like(flat)
    for n, step, own, stride in zip(shape, contiguous(shape), label.shape, contiguous(label.shape), strict=True):
        if own > 1:
            at += flat // step % n * stride
    return label.reshape(-1)[at]


def _push_chain(s: Chain, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """One structure after the other."""
    between = result_shape(s.second)
    inner, connected = push(s.second, label, x_shape, between)
    out, also = push(s.first, inner, between, y_shape)
    return out, connected or also


def _push_placed(s: Placed, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Write a label where the argument is written; of the rest nothing is said."""
    label, boxes = refit(label, x_shape, s.layout.size), [box(at, tuple(y_shape)) for at in (s.layout, *s.hidden)]
    found = [sides for sides in boxes if sides is not None]
    if len(found) < len(boxes):
        out = torch.full((prod(y_shape),), NOTHING, dtype=label.dtype)
        out.as_strided(*s.layout).copy_(label.expand(s.layout.size))
        for at in s.hidden:
            out.as_strided(*at).fill_(NOTHING)
        return out.reshape(y_shape), False
    part = _turned(label, [side.axis for side in found[0]])
    # it differs along an axis on which the label does, or a window ends
    told = [n > 1 or any(sides[d].size < y_shape[d] for sides in found) for d, n in enumerate(part.shape)]
    out = torch.full([n if t else 1 for n, t in zip(y_shape, told, strict=True)], NOTHING, dtype=label.dtype)
    _window(out, found[0], told).copy_(part)
    for sides in found[1:]:
        _window(out, sides, told).fill_(NOTHING)
    return out, False


def _window(label: Tensor, sides: Sequence[Side], told: Sequence[bool]) -> Tensor:
    """See a label through a box, along the axes that it tells apart."""
    for d, (side, there) in enumerate(zip(sides, told, strict=True)):
        label = label.narrow(d, side.start, side.size) if there else label
    return label


def _turned(label: Tensor, axes: Sequence[int | None]) -> Tensor:
    """Give a label the axes of these numbers, in that order; None for one of size 1."""
    order = [axis for axis in axes if axis is not None]
    sizes = iter([label.shape[axis] for axis in order])
    turned = label.permute([*order, *(d for d in range(label.dim()) if d not in order)])
    return turned.reshape([1 if axis is None else next(sizes) for axis in axes])


def _push_scattered(s: Scatter, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Do so where the argument goes; several of its scalars may go to one place."""
    index = s.index().flatten()
    live = index >= 0
    given = label.expand(x_shape).flatten()[live][None, :, None]
    return compress(_gathered(given, index[live], (1, prod(y_shape), 1)).reshape(y_shape)), False


def _push_low_rank(s: LowRank, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Let a row belong to its one example; scalars of several that are connected stay where they are."""
    label = refit(label, x_shape, s.shape)
    dims = [d for d in s.dims if label.shape[d] > 1]
    if not dims:
        return refit(label, s.shape, y_shape), False
    met, across = _met(label, dims)
    return refit(compress(label) if across else met, s.shape, y_shape), across


def _push_parts(s: Convolved, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label through a convolution: rows stay apart, and its parts agree, unless one of them mixes examples."""
    if s.to_input and label.numel() == label.shape[0]:
        return label.reshape(-1, *[1] * (len(y_shape) - 1)), False
    return compress(meet([push(part, label, x_shape, y_shape)[0] for part in s.parts()])[0]), False


def refit(label: Tensor, shape: Shape, target: Shape) -> Tensor:
    """View a label of a tensor of one shape as one of another shape with the same scalars."""
    given: list[int] = []
    wanted: list[int] = []
    for axes, others in _runs(tuple(shape), tuple(target)):
        alike = all(label.shape[d] == 1 for d in axes)
        given += [1 if alike else shape[d] for d in axes]
        wanted += [1 if alike else target[d] for d in others]
    return label.expand(given).reshape(wanted)


@lru_cache(maxsize=4096)
def _runs(shape: Shape, target: Shape) -> list[tuple[range, range]]:
    """Give the shortest runs of axes of one shape that span as many scalars as runs of another's.

    >>> _runs((20, 35, 7), (700, 7))
    [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 2))]
    """
    if 0 in shape or 0 in target:
        return [(range(len(shape)), range(len(target)))]
    out, i, j = [], 0, 0
    while i < len(shape) or j < len(target):
        start, other, left, right = i, j, 1, 1
        if i < len(shape):
            left, i = shape[i], i + 1
        else:
            right, j = target[j], j + 1
        while left != right:
            if left < right:
                left, i = left * shape[i], i + 1
            else:
                right, j = right * target[j], j + 1
        out.append((range(start, i), range(other, j)))
    return out


def _push_contraction(s: Contraction, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    label = refit(label, x_shape, s.x_shape)
    if s.y and s.w and not set(s.x) & set(s.y) and label.numel() > 1:
        return _push_dense(s, label, y_shape)
    gone, connected = [d for d, c in enumerate(s.x) if c not in s.y], False
    if gone:
        label, several = _met(label, gone)
        connected = several and any(c not in s.x for c in s.y)  # a sum in which all are once may keep examples apart
    order = [s.x.index(c) for c in s.y if c in s.x]
    sizes = iter([label.shape[d] for d in order])
    label = label.permute([*order, *gone]).reshape([next(sizes) if c in s.x else 1 for c in s.y])
    return refit(label, s.y_shape, y_shape), connected


def _push_dense(s: Contraction, label: Tensor, y_shape: Shape) -> tuple[Label, bool]:
    """No axis is shared, so look at which entries of the Jacobian are there at all."""
    assert s.weight is not None
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    order = [s.w.index(c) for c in s.y + s.x if c in s.w]
    shape = [sizes[c] if c in s.w else 1 for c in s.y + s.x]
    jacobian = s.weight().reshape([sizes[c] for c in s.w]).permute(order).reshape(shape)
    there = (jacobian != 0).expand(*s.y_shape, *s.x_shape)
    full = torch.where(there, label.expand(s.x_shape), NOTHING).flatten(len(s.y))
    met, several = _met(full, [-1])
    return compress(met.reshape(y_shape)), several


def _push_sparse(s: Sparse, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Every scalar of y takes the label of what it depends on, if that is one."""
    i, j, _ = s.edges()
    given = refit(label, x_shape, s.x_shape)
    given = given[:, j] if given.shape[1] > 1 else given.expand(-1, len(j), -1)
    return refit(_gathered(given, i, (given.shape[0], s.y_shape[1], given.shape[2])), s.y_shape, y_shape), False


def _gathered(given: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """Let labels (outer × edges × inner) meet where they go: outer × m × inner."""
    low = given.new_full(shape, torch.iinfo(given.dtype).max)
    high = given.new_full(shape, NOTHING)
    at = index.reshape(1, -1, 1).expand(given.shape)
    low.scatter_reduce_(1, at, given.masked_fill(given < 0, torch.iinfo(given.dtype).max), "amin")
    high.scatter_reduce_(1, at, given.contiguous(), "amax")
    return _between(low, high)[0]


def _push_strided(s: Strided, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Read the labels of rows, if a window keeps rows apart; else those of scalars."""
    del x_shape, y_shape
    at, shape = s.layout, tuple(s.x_shape)
    if at == Layout(at.size, contiguous(at.size), 0) and prod(at.size) == prod(shape):
        return refit(label, shape, at.size), False
    sides = box(at, shape)
    if sides is None:
        return _windowed(at, shape, label), False
    part = _window(label, sides, [n > 1 for n in label.shape])
    axes = {side.axis: d for d, side in enumerate(sides) if side.axis is not None}
    return compress(_turned(part, [axes.get(axis) for axis in range(len(at.size))])), False


def _windowed(at: Layout, shape: Shape, label: Tensor) -> Tensor:
    """Read labels through a window that is no box: by rows, as long as may be, that it does not cross."""
    first = max((d + 1 for d in range(label.dim()) if label.shape[d] > 1), default=0)
    for cut in range(first, len(shape)):
        inner = prod(shape[cut:])  # scalars in a row that share a label
        split = [step % inner == 0 for step in at.stride]
        within = sum((n - 1) * t for n, t, o in zip(at.size, at.stride, split, strict=True) if not o)
        if within + at.offset % inner < inner:
            outer = label.reshape(label.shape[:cut]).expand(shape[:cut]).flatten()
            size = [n if o else 1 for n, o in zip(at.size, split, strict=True)]
            stride = [t // inner if o else 0 for t, o in zip(at.stride, split, strict=True)]
            return compress(outer.clone().as_strided(size, stride, at.offset // inner))
    return compress(_read(label, shape, positions(at, label.device)))


_PUSHES: dict[type, Callable[..., tuple[Label, bool]]] = {
    Contraction: _push_contraction,
    LowRank: _push_low_rank,
    Strided: _push_strided,
    Placed: _push_placed,
    Scatter: _push_scattered,
    Gather: _push_gather,
    Sparse: _push_sparse,
    Convolved: _push_parts,
    Chain: _push_chain,
}
_EVERYWHERE = (Contraction, LowRank, Convolved)  # every scalar of the result depends on some of the argument
