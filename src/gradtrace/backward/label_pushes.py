"""How a label goes from an argument to a result, structure by structure."""

from __future__ import annotations

from collections.abc import Callable
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
from ..recording.layouts import Shape, positions

FREE = -2  # of a scalar: parameters reach it, and no example
NOTHING = -3  # neither does


class _Mixed:
    def __repr__(self) -> str:
        return "MIXED"


MIXED = _Mixed()
Label: TypeAlias = Tensor | _Mixed | None


def compress(label: Tensor) -> Tensor:
    """Keep one entry along every axis on which a label does not depend."""
    for d in range(label.dim()):
        if label.shape[d] > 1 and (label.stride(d) == 0 or bool((label == label.narrow(d, 0, 1)).all())):
            label = label.narrow(d, 0, 1)
    return label.contiguous()


def push(structure: Structure, label: Label, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label from an argument to a result: (label, whether it connects examples)."""
    if not isinstance(label, Tensor):
        return MIXED, False
    return _PUSHES[type(structure)](structure, label, x_shape, y_shape)


def _push_gather(s: Gather, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Read labels where scalars are read."""
    index = s.scalars()
    out = label.expand(x_shape).reshape(-1)[index.clamp(min=0)]
    return out.masked_fill(index < 0, NOTHING).reshape(y_shape), False


def _push_chain(s: Chain, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """One structure after the other."""
    between = result_shape(s.second)
    inner, connected = push(s.second, label, x_shape, between)
    out, also = push(s.first, inner, between, y_shape)
    return out, connected or also


def _push_placed(s: Placed, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Write a label where the argument is written; of the rest nothing is said."""
    out = torch.full((prod(y_shape),), NOTHING, dtype=label.dtype)
    out.as_strided(s.layout.size, s.layout.stride, s.layout.offset).copy_(label.expand(x_shape).reshape(s.layout.size))
    for at in s.hidden:
        out.as_strided(at.size, at.stride, at.offset).fill_(NOTHING)
    return out.reshape(y_shape), False


def _push_scattered(s: Scatter, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Do so where the argument goes; several of its scalars may go to one place."""
    index = s.index().flatten()
    live = index >= 0
    return _gathered(label.expand(x_shape).flatten()[live][None, :, None], index[live], (1, prod(y_shape), 1), y_shape)


def _push_low_rank(s: LowRank, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Let a row belong to its one example; scalars of several that are connected stay where they are."""
    label = refit(label, x_shape, s.shape)
    dims = [d for d in s.dims if label.shape[d] > 1]
    if not dims:
        return refit(label, s.shape, y_shape), False
    low, high = _span(label, dims)
    across = _several(low, high)
    return refit(compress(label) if across else high, s.shape, y_shape), across


def _push_parts(s: Convolved, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label through a convolution: its parts agree, unless one of them mixes examples."""
    pushed = [push(part, label, x_shape, y_shape) for part in s.parts()]
    return next((p for p in pushed if p[0] is MIXED), pushed[0])


def refit(label: Tensor, shape: Shape, target: Shape) -> Tensor:
    """View a label of a tensor of one shape as one of another shape with the same scalars."""
    full = [n for n in shape if n != 1]
    if full != [n for n in target if n != 1]:
        return label.expand(shape).reshape(target)
    sizes = iter([label.shape[d] for d, n in enumerate(shape) if n != 1])
    return label.reshape([1 if n == 1 else next(sizes) for n in target])


def _push_contraction(s: Contraction, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    label = refit(label, x_shape, s.x_shape)
    if s.y and s.w and not set(s.x) & set(s.y) and label.numel() > 1:
        return _push_dense(s, label, y_shape)
    gone = [d for d, c in enumerate(s.x) if c not in s.y]
    if gone:
        low, high = _span(label, gone)
        if _several(low, high):  # a sum of which every scalar is a term once may keep examples apart
            return MIXED, any(c not in s.x for c in s.y)
        label = high
    order = [s.x.index(c) for c in s.y if c in s.x]
    sizes = iter([label.shape[d] for d in order])
    label = label.permute([*order, *gone]).reshape([next(sizes) if c in s.x else 1 for c in s.y])
    return refit(label, s.y_shape, y_shape), False


def _span(label: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Give the smallest and the largest example along some axes; what is free belongs to those that it meets."""
    known = label.masked_fill(label < 0, torch.iinfo(label.dtype).max)
    return known.amin(dims, keepdim=True), label.amax(dims, keepdim=True)


def _several(low: Tensor, high: Tensor) -> bool:
    return bool(((low < high) & (high >= 0)).any())


def _push_dense(s: Contraction, label: Tensor, y_shape: Shape) -> tuple[Label, bool]:
    """No axis is shared, so look at which entries of the Jacobian are there at all."""
    assert s.weight is not None
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    order = [s.w.index(c) for c in s.y + s.x if c in s.w]
    shape = [sizes[c] if c in s.w else 1 for c in s.y + s.x]
    jacobian = s.weight().reshape([sizes[c] for c in s.w]).permute(order).reshape(shape)
    there = (jacobian != 0).expand(*s.y_shape, *s.x_shape)
    full = torch.where(there, label.expand(s.x_shape), NOTHING).flatten(len(s.y))
    low, high = _span(full, [-1])
    if _several(low, high):
        return MIXED, True
    return compress(high.reshape(y_shape)), False


def _push_sparse(s: Sparse, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Every scalar of y takes the label of what it depends on, if that is one."""
    i, j, _ = s.edges()
    return _gathered(label.expand(x_shape).reshape(s.x_shape)[:, j], i, s.y_shape, y_shape)


def _gathered(given: Tensor, index: Tensor, shape: tuple[int, int, int], y_shape: Shape) -> tuple[Label, bool]:
    """Let labels (outer × edges × inner) meet where they go: outer × m × inner, a result of `y_shape`."""
    low = given.new_full(shape, torch.iinfo(given.dtype).max)
    high = given.new_full(shape, NOTHING)
    at = index.reshape(1, -1, 1).expand(given.shape)
    low.scatter_reduce_(1, at, given.masked_fill(given < 0, torch.iinfo(given.dtype).max), "amin")
    high.scatter_reduce_(1, at, given.contiguous(), "amax")
    if _several(low, high):
        return MIXED, False
    return compress(high.reshape(y_shape)), False


def _push_strided(s: Strided, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Read the labels of rows, if a window keeps rows apart; else those of scalars."""
    del x_shape, y_shape
    return _windowed(s, label), False


def _windowed(s: Strided, label: Tensor) -> Tensor:
    last = max((d for d in range(label.dim()) if label.shape[d] > 1), default=-1)
    inner = prod(s.x_shape[last + 1 :])  # scalars in a row that share a label
    outer = label.expand((*s.x_shape[: last + 1], *[1] * (label.dim() - last - 1))).flatten().clone()
    at = s.layout
    split = [step % inner == 0 for step in at.stride]
    within = sum((n - 1) * t for n, t, o in zip(at.size, at.stride, split, strict=True) if not o) + at.offset % inner
    if within >= inner:  # an axis of the window crosses rows: look at every scalar
        return compress(label.expand(s.x_shape).reshape(-1)[positions(at, label.device)])
    size = [n if o else 1 for n, o in zip(at.size, split, strict=True)]
    stride = [t // inner if o else 0 for t, o in zip(at.stride, split, strict=True)]
    return compress(outer.as_strided(size, stride, at.offset // inner))


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
