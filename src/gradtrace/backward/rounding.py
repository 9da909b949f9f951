"""How far two floating-point computations of one gradient may be apart.

Both add up the same terms, weight · cotangent, each in its own order and by its own formula. By the standard model
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) a sum of m terms, each with c roundings of its
own, is off by at most

    (c + m) · u · Σ |terms|

to first order, in whatever order it is added up, u being the unit roundoff. It is an a priori bound: it does not know
how lucky the rounding was. Terms are counted before they cancel: a softmax's own derivative p_i (δ_ij - p_j) is the
two terms p_i δ_ij and p_i p_j, because autograd subtracts one from the other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..jacobians.structure import (
    UNCANCELLED,
    Chain,
    Closed,
    Constant,
    Contraction,
    Convolved,
    Edges,
    Gather,
    LowRank,
    Sparse,
    Strided,
    Structure,
)
from ..kernels import additive
from ..kernels.additive_rows import written_out
from ..kernels.reference import axes, by_definition
from ..recording.layouts import Shape, positions
from ..recording.record import Call
from ..semirings.base import AbsSum, Sum

# Roundings within one term. The longest formula of PyTorch's is that of a norm: x̂ (2), the sums of its row multiplied
# by γ (2), taken apart (1), by 1/σ³ and 1/n (4), by x̂ (1), added to two others (2), stored (1); twice, for two sides.
FORMULA = 26


def unit(call: Call) -> float:
    """Give the unit roundoff of the coarsest numbers that go into a call or come out."""
    kinds = [i.dtype for i in call.inputs] + [v.dtype for v in call.outputs if v is not None]
    return max((roundoff(k) for k in kinds if k.is_floating_point or k.is_complex), default=0.0)


def roundoff(dtype: torch.dtype) -> float:
    """Give the unit roundoff of a type: half the step from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def least(dtype: torch.dtype) -> float:
    """Give what underflow may lose: float16 has its smallest numbers, other kernels may flush them to zero."""
    wide = torch.finfo(torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32)
    info = torch.finfo(dtype)
    return max(wide.smallest_normal, info.smallest_normal * info.eps)


def allowed(structure: Structure, call: Call) -> float:
    """Give the bound's factor of Σ |terms| for one structure of a call: (c + m) u.

    Products, and sums along an axis, are added up in float32 at least and rounded at the end; what is scattered is
    added in the type that it has.
    """
    u = unit(call)
    inner = u if _scattered(structure) else min(u, roundoff(torch.float32))
    both = 2 if is_product(structure) else 1  # autograd and the tape, each in its own order
    return FORMULA * u + both * terms_of_each(structure) * inner


def _scattered(structure: Structure) -> bool:
    if isinstance(structure, Chain):
        return _scattered(structure.first) or _scattered(structure.second)
    return isinstance(structure, (Gather, Sparse, Strided))


def terms_of_each(structure: Structure) -> int:
    """Give an upper bound of how many terms are added up for one scalar of the argument."""
    match structure:
        case Contraction():
            sizes = zip(structure.y, structure.y_shape, strict=True)
            return prod(n for letter, n in sizes if letter not in structure.x)
        case LowRank():
            return prod(structure.shape[d] for d in structure.dims)
        case Chain():
            return terms_of_each(structure.first) + terms_of_each(structure.second)
        case Convolved():
            return sum(map(terms_of_each, structure.parts()))
        case Gather():
            return _most(structure.index().flatten())
        case Sparse():
            return _most(structure.edges()[1])
        case Strided():
            once = axes(structure.layout, structure.x_shape) is not None
            return 1 if once else _most(positions(structure.layout).flatten())
        case _:
            return 1


def _most(index: Tensor) -> int:
    """Give how often the most frequent index occurs."""
    live = index[index >= 0]
    return int(live.unique(return_counts=True)[1].max()) if live.numel() else 0


def total(structure: Structure, g: Tensor) -> Tensor:
    """Give Σ terms towards an argument, from the structure alone: no formula of autograd's own is asked.

    Args:
        structure: how the result depends on the argument.
        g: what reaches the result, float64.

    Returns:
        x, float64, in the shape in which the structure views it.
    """
    if isinstance(structure, Chain):
        return total(structure.second, total(structure.first, g))
    if isinstance(structure, LowRank):
        found = written_out(structure, g.reshape(1, *structure.shape))[0]
    else:
        found = additive.pull(structure, g[None].to(_precision(structure)))[0].to(torch.float64)
    if not found.numel() or math.isfinite(found.sum()):
        return found
    return by_definition(structure, Sum.carrier, (g[None],))[0][0]  # where an absent edge is absent beside infinity


def absolute(structure: Structure, g: Tensor) -> Tensor:
    """Give Σ |terms| towards an argument.

    Args:
        structure: how the result depends on the argument.
        g: absolute values of what reaches the result, float64.

    Returns:
        x, float64, in the shape in which the structure views it.
    """
    match structure:
        case Chain():
            return absolute(structure.second, absolute(structure.first, g))
        case LowRank():
            return _uncancelled(structure, g.reshape(structure.shape))
        case _:
            found = additive.pull(_absolute(structure), g[None].to(_precision(structure)))[0].to(torch.float64)
    if not found.numel() or math.isfinite(found.sum()):
        return found
    return by_definition(structure, AbsSum.carrier, (g[None],))[0][0]


def _absolute(structure: Structure) -> Structure:
    """Give the structure with absolute weights, before they cancel."""
    match structure:
        case Contraction(weight=Constant() as weight):
            return replace(structure, weight=replace(weight, value=abs(weight.value)))
        case Contraction(weight=Closed(form, of)):
            return replace(structure, weight=lambda: UNCANCELLED[form](of()))
        case Contraction(weight=weight) if weight is not None:
            return replace(structure, weight=lambda: weight().abs())
        case Convolved(other=other):
            return replace(structure, other=lambda: other().abs())
        case Sparse(edges=edges):
            return replace(structure, edges=lambda: _absolute_edges(edges()))
        case _:
            return structure


def _absolute_edges(edges: Edges) -> Edges:
    i, j, w = edges
    return i, j, None if w is None else w.abs()


def is_product(structure: Structure) -> bool:
    """Tell whether many terms are added up for each scalar, by products that are the bulk of a model's work.

    They are worked out in the model's own precision here as well, for which the bound allows.
    """
    if isinstance(structure, Convolved):
        return True
    if not isinstance(structure, Contraction) or structure.weight is None:
        return False
    return any(c in structure.w and c not in structure.x for c in structure.y)


def _precision(structure: Structure) -> torch.dtype:
    if not is_product(structure):
        return torch.float64
    assert isinstance(structure, (Contraction, Convolved))
    weight = structure.other if isinstance(structure, Convolved) else structure.weight
    assert weight is not None
    return torch.float64 if weight().dtype is torch.float64 else torch.float32


def _uncancelled(s: LowRank, g: Tensor) -> Tensor:
    """Take the diagonal apart again: |own - Σ l r| + Σ |l r|, and the rest is |l| |r| already."""
    own, lefts, rights = s.factors()
    own = own.to(torch.float64)
    out, alone = torch.zeros_like(g), own
    for left, right in zip(lefts, rights, strict=True):
        alone = alone - left.to(torch.float64) * right
        row = (left.to(torch.float64).abs() * g).sum(s.dims, keepdim=True) if s.dims else left.abs() * g
        out = out + right.to(torch.float64).abs() * row
    return out + alone.abs() * g


def shaped(g: Tensor, shape: Shape) -> Tensor:
    """Give a cotangent in float64, in a shape."""
    return g.detach().to(torch.float64).reshape(shape)
