"""Numbers of paths: gradients in which every weight that isn't 0 is 1 (`additive`), as whole numbers in float64.

Below 2^53 everything is exact; above, sums round. Where all weights of an operator are there, nothing is multiplied: a
product with a matrix of ones is a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import NotANumber
from ..jacobians.structure import Chain, Closed, ClosedRows, Constant, Contraction, Convolved, LowRank, Sparse
from ..semirings import rows
from ..semirings.base import Element, Linear, nonzero
from . import additive, native
from .gradient import Finite
from .grid import grid_of
from .reference import by_definition
from .shared_exponent import TINY

EXACT = 2.0**53  # whole numbers up to here are float64


@dataclass(frozen=True)
class Counting(Finite):
    """Numbers of edges' ways to the loss, in float64."""

    def along(self, structure: object, g: Element) -> Element | None:
        return (pull(structure, g[0]),)


COUNTING = Counting(nonzero)


def pull(structure: object, g: Tensor) -> Tensor:
    """Carry numbers of a result (batch × y, any strides) back to one argument, along a structure: batch × x."""
    run = KERNELS.get(type(structure))
    return additive.pull(structure, g) if run is None else run(structure, g)


def present(weight: Tensor) -> Tensor | None:
    """Give ones where a weight isn't 0; None where none is.

    Raises:
        NotANumber: a weight is NaN.
    """
    size = weight if weight.dtype is torch.bool else weight.abs()
    least = float(size.amin()) if size.numel() else 1.0
    if math.isnan(least):
        raise NotANumber("a local derivative is NaN")
    return None if least > 0 else (weight != 0).to(torch.float64)


def chain(s: Chain, g: Tensor) -> Tensor:
    """Go along two structures, one after the other."""
    return pull(s.second, pull(s.first, g))


def contraction(s: Contraction, g: Tensor) -> Tensor:
    """Add up along the edges that are there."""
    if s.weight is None:
        return additive.contraction(s, g)
    if isinstance(s.weight, Closed) and s.weight.form == "relu":
        there = present(s.weight.of() > 0)  # of a NaN nothing is left, as in the derivative itself
    else:
        there = present(torch.tensor(s.weight.value) if isinstance(s.weight, Constant) else s.weight())
    if there is None:
        return additive.contraction(Contraction(s.y, s.x, s.y_shape, s.x_shape), g)
    if isinstance(s.weight, Constant):
        return g.new_zeros(()).expand(g.shape[0], *s.x_shape)
    return additive.contraction(Contraction(s.y, s.x, s.y_shape, s.x_shape, s.w, lambda: there), g)


def sparse(s: Sparse, g: Tensor) -> Tensor:
    """Add up along a list of edges, some of which may be absent."""
    i, j, w = s.edges()
    there = None if w is None else present(w)
    return additive.sparse(Sparse(lambda: (i, j, there), s.y_shape, s.x_shape), g)


# ---------------------------------------------------------------- convolutions


def convolved(s: Convolved, g: Tensor) -> Tensor:
    """Convolve backwards; where all weights are there, channels of a group are alike, and examples in a kernel's."""
    there = present(s.other())
    if there is not None:
        return additive.convolution(s, g, there)
    sizes, g = s.sizes, g.reshape(g.shape[0], *s.sizes.output)
    groups, (examples, _, *pixels), kernel = sizes.groups, sizes.input, sizes.kernel
    if s.to_input:
        g = g.unflatten(2, (groups, -1)).sum(3)
        kernel = groups, 1, *kernel[2:]
    else:
        g, examples = g.sum(1, keepdim=True), 1
        kernel = (groups, *kernel[1:]) if sizes.transposed else (kernel[0], 1, *kernel[2:])
    small = replace(sizes, input=(examples, groups, *pixels), kernel=kernel, output=tuple(g.shape[1:]))
    ones = g.new_ones(small.kernel if s.to_input else small.input)
    return _repeated(s, additive.convolution(Convolved(small, s.to_input, s.other, s.parts), g, ones))


def _repeated(s: Convolved, out: Tensor) -> Tensor:
    """Give every channel what the one that stands for its group has got."""
    of_groups = s.to_input or s.sizes.transposed
    axis = 1 if s.sizes.transposed and not s.to_input else 2
    apart = out.unflatten(axis, (s.sizes.groups if of_groups else 1, 1))
    each = s.x_shape[axis - 1] // apart.shape[axis]
    return apart.expand(*apart.shape[: axis + 1], each, *apart.shape[axis + 2 :]).reshape(out.shape[0], *s.x_shape)


# ---------------------------------------------------------------- low rank


def low_rank(s: LowRank, g: Tensor) -> Tensor:
    """Add up all that is connected, and leave out what isn't."""
    if g.numel() == 0:
        return g
    g, dims = g.reshape(g.shape[0], *s.shape), tuple(1 + d for d in s.dims)
    if dims and _normal(s):
        return g.sum(dims, keepdim=True).expand(g.shape)
    own, left, right = s.factors()
    if not dims:
        return _product(own, g)
    if len(left) == 2:
        flags = _meeting(s, left, right)
        if flags & native.MEET:
            return by_definition(s, Linear(nonzero), (g,))[0]
        sides = (_any(*left), _any(*right)) if flags & native.ABSENT else (None, None)
    elif len(left) == 1:
        sides = present(left[0]), present(right[0])
    else:
        return by_definition(s, Linear(nonzero), (g,))[0]
    straight, (before, after) = present(own), sides
    near = _times(g, before)
    total = near.sum(dims, keepdim=True)
    if straight is before is after is None:
        return total.expand(g.shape)
    beside = total - near if total.max() < EXACT else _others(near, dims)
    return _times(g, straight) + _times(beside, after)


def _normal(s: LowRank) -> bool:
    """Tell whether a structure is a normalisation whose weights, not written out, are surely all other than 0."""
    if not isinstance(s.factors, ClosedRows) or s.factors.form != "standard":
        return False
    hat, gamma, scale, count = s.factors.of()
    least = prod([float(t.abs().amin()) for t in (scale, gamma) if t is not None])
    far = 1 - (1 + float(hat.abs().amax()) ** 2) / count  # what own is least, before γ and 1/σ multiply it
    if not (far > 0.01 and 0.01 * least / count > torch.finfo(hat.dtype).tiny):
        return False
    across = hat.new_ones(()), hat
    return not _meeting(s, across, across)


def _product(weight: Tensor, g: Tensor) -> Tensor:
    return _times(g, present(weight))


def _times(g: Tensor, there: Tensor | None) -> Tensor:
    return g if there is None else g * there


def _any(a: Tensor, b: Tensor) -> Tensor:
    """Tell where either isn't 0."""
    return (a != 0) | (b != 0)


def _others(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Add up all others along some axes, without a difference."""
    kept = [d for d in range(t.dim()) if d not in dims]
    order = [*kept, *dims]
    last = t.permute(order)
    found = rows.others(last.flatten(len(kept))).reshape(last.shape)
    return found.permute([order.index(d) for d in range(t.dim())])


def _meeting(s: LowRank, left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> int:
    """Say what the products of l_i and r_j in a row may be besides numbers: flags of `native.meeting`.

    Raises:
        NotANumber: a weight is NaN.
    """
    kind = left[0].dtype if left[0].dtype in TINY else torch.float64
    view = grid_of(s.shape, tuple(s.dims)).view
    flags = native.meeting(*[[view(t.to(kind).expand(s.shape)) for t in side] for side in (left, right)])
    if flags & native.NAN:
        raise NotANumber("a local derivative is NaN")
    return flags


KERNELS: dict[type, Callable[[Any, Tensor], Tensor]] = {
    Contraction: contraction,
    LowRank: low_rank,
    Sparse: sparse,
    Chain: chain,
    Convolved: convolved,
}
