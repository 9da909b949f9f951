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

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..jacobians.structure import (
    UNCANCELLED,
    Chain,
    Closed,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Sparse,
    Strided,
    Structure,
)
from ..kernels.reference import axes, pull
from ..recording.layouts import Shape, positions
from ..recording.record import Call
from ..semirings.base import AbsSum

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
    return FORMULA * u + terms_of_each(structure) * inner


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


def absolute(structure: Structure, g: Tensor) -> Tensor:
    """Give Σ |terms| towards an argument.

    Args:
        structure: how the result depends on the argument.
        g: absolute values of what reaches the result, float64.

    Returns:
        x, in the shape in which the structure views it.
    """
    match structure:
        case Chain():
            return absolute(structure.second, absolute(structure.first, g))
        case LowRank():
            return _uncancelled(structure, g.reshape(structure.shape))
        case Contraction(weight=Closed(form, of)):
            whole = replace(structure, weight=lambda: UNCANCELLED[form](of()))
            return pull(whole, AbsSum.carrier, (g[None],))[0][0]
        case _:
            return pull(structure, AbsSum.carrier, (g[None],))[0][0]


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
