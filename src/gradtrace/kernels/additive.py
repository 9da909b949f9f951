"""What ordinary gradients do with each structure: PyTorch's own operators, in a precision of one's choice.

The same contract as `reference.pull`, for signed numbers that are added up: g_x = Σ w g_y, in about the time that
autograd's own formula takes. Nothing is looked at for range: what is infinite or no number on the way may come out so.
Results may share memory with g, and may be expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import (
    Chain,
    Closed,
    Constant,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Shape,
    Sliding,
    Sparse,
    Strided,
    Weight,
)
from ..recording.layouts import Layout, contiguous, positions
from .additive_rows import alike, low_rank
from .memory import zeros
from .reference import axes, injective, window

aten = torch.ops.aten
BACKWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": aten.tanh_backward.default,
    "sigmoid": aten.sigmoid_backward.default,
    "relu": lambda g, y: aten.threshold_backward.default(g, y, 0),
}


def pull(structure: object, g: Tensor) -> Tensor:
    """Carry gradients of a result (batch × y, any strides) back to one argument, along a structure: batch × x."""
    return KERNELS[type(structure)](structure, g)


def chain(s: Chain, g: Tensor) -> Tensor:
    """Go along two structures, one after the other."""
    return pull(s.second, pull(s.first, g))


# ---------------------------------------------------------------- contractions


class Plan(NamedTuple):
    """How a contraction is worked out, from its letters: permutations and sizes for PyTorch's operators.

    An order is None where the axes lie so.

    Attributes:
        alone: axes of g (batch × y) that are added up before anything else.
        product: whether a matrix product merges axes; the rest is for it, or for a product of scalars.
        of_g, of_w: order of the axes of g (the batch among the rows), and of the weight, whose sizes are `w_sizes`.
        g_shape, w_shape: three sizes each: shared, rows or columns, merged.
        flat: the sizes of the result's axes; `back`: their order in x.
        turned: the product is taken with the columns first, which is how x lies.
        x_shape: in front of it comes the batch, and axes that only x has are of size 1 in `thin`.
    """

    alone: tuple[int, ...]
    product: bool
    of_g: tuple[int, ...] | None
    of_w: tuple[int, ...] | None
    g_shape: Shape
    w_shape: Shape
    flat: Shape
    back: tuple[int, ...] | None
    turned: bool
    thin: Shape
    x_shape: Shape
    w_sizes: Shape

    def given(self, g: Tensor) -> Tensor:
        """See what reaches the result as operators take it."""
        return _seen(g, self.of_g, self.g_shape)

    def weights(self, w: Tensor) -> Tensor:
        """See a weight as operators take it."""
        return _seen(w if w.shape == self.w_sizes else w.reshape(self.w_sizes), self.of_w, self.w_shape)

    def laid(self, out: Tensor) -> Tensor:
        """See a product as x."""
        out = _seen(out, None, self.flat) if self.back is not None else out
        return _spread(_seen(out, self.back, self.thin), self.x_shape)

    def alike(self, g: Tensor) -> Tensor:
        """See as x what has no weight."""
        return _spread(_seen(g, self.of_g, self.thin), self.x_shape)


def _seen(t: Tensor, order: tuple[int, ...] | None, shape: Shape) -> Tensor:
    """Put axes in an order, and see them in a shape."""
    t = t if order is None else t.permute(order)
    return t if t.shape == shape else t.reshape(shape)


def _spread(t: Tensor, shape: Shape) -> Tensor:
    return t if t.shape == shape else t.expand(shape)


def _order(have: Sequence[str], want: Sequence[str], sizes: dict[str, int]) -> tuple[int, ...] | None:
    """Give the order in which axes are wanted; None where those of more than one scalar lie so."""
    order = tuple(have.index(c) for c in want)
    real = [d for d in order if sizes[have[d]] != 1]
    return None if real == sorted(real) else order


@lru_cache(maxsize=4096)
def planned(y: str, x: str, w: str, y_shape: Shape, x_shape: Shape, batch: int) -> Plan:
    """Plan a contraction with letters `w` of its weight ("" for none)."""
    y, x = "0" + y, "0" + x  # the batch is one more letter of both
    sizes = dict(zip(y + x, (batch, *y_shape, batch, *x_shape), strict=True))
    alone = tuple(d for d, c in enumerate(y) if c not in x and c not in w)
    y = "".join(c for c in y if c in x or c in w)
    merged = [c for c in y if c not in x]
    full = tuple(sizes[c] for c in x)
    shared = [c for c in y if c in x and c in w]
    rows, columns = [c for c in y if c in x and c not in w], [c for c in w if c in x and c not in y]
    if not merged or not (_size(rows, sizes) > 1 or _size(columns, sizes) > 1):
        return _scalars(alone, y, x, w, sizes, full)
    turned = _starts(x, columns, rows, sizes)
    have = [*shared, *columns, *rows] if turned else [*shared, *rows, *columns]
    thin = tuple(sizes[c] if c in have else 1 for c in x)
    return Plan(
        alone,
        True,
        _order(y, shared + rows + merged, sizes),
        _order(w, shared + columns + merged, sizes),
        (_size(shared, sizes), _size(rows, sizes), _size(merged, sizes)),
        (_size(shared, sizes), _size(columns, sizes), _size(merged, sizes)),
        tuple(sizes[c] for c in have),
        _order(have, [c for c in x if c in have], sizes),
        turned,
        thin,
        full,
        tuple(sizes[c] for c in w),
    )


def _scalars(alone: tuple[int, ...], y: str, x: str, w: str, sizes: dict[str, int], full: Shape) -> Plan:
    """Plan a product of scalars: merged axes, if there are, come last."""
    letters = x + "".join(c for c in y if c not in x)
    of_g, of_w = (_order(ls, [c for c in letters if c in ls], sizes) for ls in (y, w))
    g_shape, w_shape = (tuple(sizes[c] if c in ls else 1 for c in letters) for ls in (y, w))
    thin = tuple(sizes[c] if c in y + w else 1 for c in x)
    seen = thin, None, False, thin, full, tuple(sizes[c] for c in w)
    return Plan(alone, False, of_g, of_w, g_shape, w_shape, *seen)


def _size(letters: Sequence[str], sizes: dict[str, int]) -> int:
    return prod(sizes[c] for c in letters)


def _starts(x: str, first: Sequence[str], then: Sequence[str], sizes: dict[str, int]) -> bool:
    """Tell whether letters of `first` come before those of `then` in x."""
    at = [[x.index(c) for c in some if sizes[c] > 1] for some in (first, then)]
    return bool(at[0] and at[1]) and max(at[0]) < min(at[1])


def contraction(s: Contraction, g: Tensor) -> Tensor:
    """Multiply and add up, by a matrix product where something is merged."""
    batch, weight = g.shape[0], s.weight
    if g.shape[1:] != s.y_shape:
        g = g.reshape(batch, *s.y_shape)
    if isinstance(weight, Constant):
        g, weight = g * weight.value, None
    if s.y == s.x and (weight is None or s.w == s.y):
        return g if weight is None else pointwise(s, weight, g)
    p = planned(s.y, s.x, "" if weight is None else s.w, s.y_shape, s.x_shape, batch)
    if p.alone:
        g = g.sum(p.alone)
    if weight is None:
        return p.alike(g)
    w = weight()
    w = w if w.dtype is g.dtype else w.to(g.dtype)
    return (multiplied if p.product else weighed)(p, g, w)


def pointwise(s: Contraction, weight: Weight, g: Tensor) -> Tensor:
    """Multiply by a weight of y's shape."""
    if isinstance(weight, Closed):
        y = weight.of()
        if alike(y, g):
            return BACKWARDS[weight.form](g, _laid(y, g.dtype, s.y_shape))
    return g * _laid(weight(), g.dtype, s.y_shape)


def _laid(weight: Tensor, kind: torch.dtype, shape: Shape) -> Tensor:
    """Give weights of some type and shape, as they nearly always are."""
    weight = weight if weight.dtype is kind else weight.to(kind)
    return weight if weight.shape == shape else weight.reshape(shape)


def weighed(p: Plan, g: Tensor, w: Tensor) -> Tensor:
    """Multiply scalar by scalar, and add up what is merged."""
    out = p.given(g) * p.weights(w)
    extra = len(p.g_shape) - len(p.x_shape)
    return _spread(out.sum(tuple(range(-extra, 0))) if extra else out, p.x_shape)


def multiplied(p: Plan, g: Tensor, w: Tensor) -> Tensor:
    """Multiply matrices."""
    g, w = p.given(g), p.weights(w)  # shared × rows, or columns, × merged
    left, right = (w, g) if p.turned else (g, w)
    alone = p.g_shape[0] == 1
    return p.laid(torch.mm(left[0], right[0].t()) if alone else torch.bmm(left, right.transpose(1, 2)))


# ---------------------------------------------------------------- index maps


class Shown(NamedTuple):
    """How a view shows its base, from its strides.

    Attributes:
        flat: whether all of x is shown once, and in order; `back`: the order of x's axes, if all of x is shown once.
        repeated: axes of y that are added up first; `apart`: what is left.
        injective: whether no two places of it are one.
    """

    flat: bool
    back: tuple[int, ...] | None
    repeated: tuple[int, ...]
    apart: Layout
    injective: bool

    @property
    def part(self) -> Layout | None:
        """Where a view lies in its base, if it shows a part of it, each scalar once."""
        return None if self.back is not None or self.repeated or not self.injective else self.apart


@lru_cache(maxsize=4096)
def shown(layout: Layout, x_shape: Shape) -> Shown:
    """See how a view shows its base."""
    order = axes(layout, x_shape)
    sizes = list(zip(layout.size, layout.stride, strict=True))
    repeated = [d for d, (n, step) in enumerate(sizes) if step == 0 and n > 1]
    kept = [pair for d, pair in enumerate(sizes) if d not in repeated]
    size, stride = [n for n, _ in kept], [step for _, step in kept]
    apart = Layout(tuple(size), tuple(stride), layout.offset)
    back = None if order is None else (0, *(1 + d for d in order))
    real = [] if order is None else [d for d in order if layout.size[d] != 1]
    return Shown(
        order is not None and real == sorted(real), back, tuple(1 + d for d in repeated), apart, injective(size, stride)
    )


def strided(s: Strided, g: Tensor) -> Tensor:
    """Lay a view's gradient where the view lies."""
    batch, how = g.shape[0], shown(s.layout, s.x_shape)
    if how.flat:
        return g.reshape(batch, *s.x_shape)
    if g.shape[1:] != s.layout.size:
        g = g.reshape(batch, *s.layout.size)
    if how.back is not None:
        return g.permute(how.back).reshape(batch, *s.x_shape)
    g = g.sum(how.repeated) if how.repeated else g
    if how.injective and how.apart.size == s.x_shape and how.apart.stride == contiguous(s.x_shape):
        return g
    out = g.new_zeros(batch, *s.x_shape)
    if how.injective:
        window(out, how.apart).copy_(g)
    else:
        index = positions(how.apart, g.device).flatten()
        out.view(batch, -1).index_add_(1, index, g.reshape(batch, -1))
    return out


def add_to_window(s: Strided, g: Tensor, known: Tensor | None) -> bool:
    """Add a view's gradient where the view lies, in memory that is there; False where that is not so simple.

    Args:
        g: batch × y, or y.
        known: batch × x, or x; contiguous.
    """
    layout = shown(s.layout, s.x_shape).part
    if known is None or layout is None or not known.is_contiguous():
        return False
    whole = known.reshape(-1, prod(s.x_shape))
    window(whole, layout).add_(g.reshape(len(whole), *layout.size))
    return True


def placed(s: Placed, g: Tensor) -> Tensor:
    """See the part of the result in which the argument lies."""
    g = g.reshape(g.shape[0], *s.y_shape).contiguous()
    if not s.hidden:
        return window(g, s.layout)
    g = g.clone()
    for hidden in s.hidden:
        window(g, hidden).zero_()
    return window(g, s.layout)


def gather(s: Gather, g: Tensor) -> Tensor:
    """Add rows up where they were read."""
    shape = g.shape[0], *s.x_shape
    return gathered(s, g, zeros(g.dtype, *shape) if g.device.type == "cpu" else g.new_zeros(shape))


def gathered(s: Gather, g: Tensor, out: Tensor) -> Tensor:
    """Add rows up where they were read, in memory that is there: batch × x, contiguous."""
    if 0 in (out.numel(), g.numel(), s.width):
        return out
    index = s.index().reshape(-1).to(g.device, torch.int64)
    rows = g.reshape(g.shape[0], len(index), s.width)
    if index.min() < 0:
        live = (index >= 0).nonzero().squeeze(-1)
        index, rows = index.index_select(0, live), rows.index_select(1, live)
    for one, given in zip(out.view(len(out), -1, s.width), rows, strict=True):
        if s.width == 1:
            one.squeeze(-1).scatter_add_(0, index, given.squeeze(-1))
        else:
            one.index_add_(0, index, given)
    return out


def scatter(s: Scatter, g: Tensor) -> Tensor:
    """Read where scalars went."""
    batch, index = g.shape[0], s.index().reshape(-1).to(g.device, torch.int64)
    if 0 in (g.numel(), len(index)) or index.max() < 0:
        return g.new_zeros(()).expand(batch, *s.x_shape)
    out = g.reshape(batch, -1).index_select(1, index.clamp(min=0))
    if index.min() < 0:
        out.masked_fill_(index < 0, 0)
    return out.reshape(batch, *s.x_shape)


def sparse(s: Sparse, g: Tensor) -> Tensor:
    """Add up along a list of edges."""
    batch, (outer, m, inner), n = g.shape[0], s.y_shape, s.x_shape[1]
    i, j, w = s.edges()
    if 0 in (g.numel(), n, len(i)):
        return g.new_zeros(batch, *s.x_shape)
    i, j = i.to(g.device, torch.int64), j.to(g.device, torch.int64)
    rows = g.reshape(batch * outer, m, inner).transpose(0, 1).reshape(m, batch * outer * inner).index_select(0, i)
    if w is not None:
        rows.mul_(w.to(g.device, g.dtype).unsqueeze(1))
    out = rows.new_zeros(n, rows.shape[1]).index_add_(0, j, rows)
    return out.reshape(n, batch * outer, inner).transpose(0, 1).reshape(batch, *s.x_shape)


# ---------------------------------------------------------------- convolutions


def convolved(s: Convolved, g: Tensor) -> Tensor:
    """Convolve backwards."""
    return convolution(s, g, s.other().to(g.dtype))


def convolution(s: Convolved, g: Tensor, other: Tensor) -> Tensor:
    """Convolve backwards, with the other argument given: the operator is linear in both."""
    batch, sizes = g.shape[0], s.sizes
    g = g.reshape(batch, *sizes.output)
    if s.to_input:  # the batch is only more examples
        x = g.new_empty(batch * sizes.input[0], *sizes.input[1:])
        return _backwards(g.flatten(0, 1), x, other, sizes, 0).reshape(batch, *sizes.input)
    kernel = g.new_empty(sizes.kernel)
    each = [_backwards(one, other, kernel, sizes, 1) for one in g]
    return torch.stack(each) if batch > 1 else each[0].unsqueeze(0)


def _backwards(g: Tensor, x: Tensor, kernel: Tensor, sizes: Sliding, position: int) -> Tensor:
    """Call PyTorch's operator towards its input (0) or its kernel (1), of which only the shape is looked at."""
    mask = [position == 0, position == 1, False]
    outside = [0] * len(sizes.stride)
    if sizes.transposed:
        reached = zip(x.shape[2:], kernel.shape[2:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
        whole = [(n - 1) * step - 2 * pad + wide * (k - 1) + 1 for n, k, step, pad, wide in reached]
        outside = [n - m for n, m in zip(sizes.output[2:], whole, strict=True)]
    where = sizes.stride, sizes.padding, sizes.dilation, sizes.transposed, outside, sizes.groups
    return aten.convolution_backward.default(g, x, kernel, None, *where, mask)[position]


KERNELS: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Contraction: contraction,
    Strided: strided,
    Placed: placed,
    Gather: gather,
    Scatter: scatter,
    LowRank: low_rank,
    Sparse: sparse,
    Chain: chain,
    Convolved: convolved,
}
