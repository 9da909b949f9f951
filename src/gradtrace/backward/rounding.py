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
from functools import cache
from math import prod

import torch
from torch import Tensor

from ..jacobians.structure import (
    UNCANCELLED,
    UNCANCELLED_ROWS,
    Chain,
    Closed,
    ClosedRows,
    Constant,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Sparse,
    Strided,
    Structure,
)
from ..kernels import additive
from ..kernels.additive_rows import written_out
from ..kernels.reference import by_definition
from ..recording.layouts import Shape, positions
from ..recording.record import Call
from ..semirings.base import AbsSum, Semiring, Sum, as_is

# Roundings within one term. The longest formula of PyTorch's is that of a norm: x̂ (2), the sums of its row multiplied
# by γ (2), taken apart (1), by 1/σ³ and 1/n (4), by x̂ (1), added to two others (2), stored (1); twice, for two sides.
# PyTorch takes x for x̂ there, and the mean's part away at the end, so that a term is as large as x/σ.
FORMULA = 26


def unit(call: Call) -> float:
    """Give the unit roundoff of the coarsest numbers that go into a call or come out."""
    kinds = {i.dtype for i in call.inputs} | {v.dtype for v in call.outputs if v is not None}
    return max(roundoff(k) for k in kinds)


@cache
def roundoff(dtype: torch.dtype) -> float:
    """Give the unit roundoff of a type: half the step from 1 to the next number; 0 for integers."""
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point or dtype.is_complex else 0.0


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


def at_least(structure: Structure, call: Call) -> float:
    """Give a lower bound of `allowed`, for which no index is counted."""
    return FORMULA * unit(call) if _scattered(structure) else allowed(structure, call)


def piled(structure: Structure) -> bool:
    """Tell whether terms are added one by one, where they lie, so that each rounds what came before."""
    match structure:
        case Chain(first, second):
            return piled(first) or piled(second)
        case Strided(layout, x_shape):
            return not additive.shown(layout, x_shape).injective
        case _:
            return isinstance(structure, (Gather, Sparse))


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
            seen = additive.shown(structure.layout, structure.x_shape)
            if seen.injective:
                return prod(structure.layout.size[d - 1] for d in seen.repeated)
            return _most(positions(structure.layout).flatten())
        case _:
            return 1


def _most(index: Tensor) -> int:
    """Give how often the most frequent index occurs."""
    live = index[index >= 0]
    return int(live.unique(return_counts=True)[1].max()) if live.numel() else 0


def total(structure: Structure, g: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """Give Σ terms towards an argument, from the structure alone: no formula of autograd's own is asked.

    Args:
        structure: how the result depends on the argument.
        g: what reaches the result.
        kind: a precision to work in, without a look at what is not finite; None: float64, products in the model's own.

    Returns:
        x, in the shape in which the structure views it; float64 unless a kind was asked for.
    """
    if isinstance(structure, Chain):
        return total(structure.second, total(structure.first, g, kind), kind)
    if isinstance(structure, LowRank):
        found = written_out(structure, g.to(kind or torch.float64).reshape(1, *structure.shape))[0]
        return found if kind is not None or _finite(found) else _defined(structure, Sum, g)
    if kind is not None:
        if type(structure) is Contraction and type(structure.weight) is Closed:  # not by autograd's own formula
            s, w = structure, structure.weight()
            structure = Contraction(s.y, s.x, s.y_shape, s.x_shape, s.w, lambda: w)
        return additive.pull(structure, g.unsqueeze(0).to(kind))[0]
    return _pulled(_weighted(structure), Sum, g, kind)


def absolute(structure: Structure, g: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """Give Σ |terms| towards an argument: as `total`, of absolute values of what reaches the result."""
    if isinstance(structure, Chain):
        return absolute(structure.second, absolute(structure.first, g, kind), kind)
    if isinstance(structure, LowRank):
        return _uncancelled(structure, g.to(kind or torch.float64).reshape(structure.shape))
    return _pulled(_weighted(structure, unsigned=True), AbsSum, g, kind)


def _pulled(structure: Structure, semiring: Semiring, g: Tensor, kind: torch.dtype | None) -> Tensor:
    found = additive.pull(structure, g[None].to(kind or _precision(structure)))[0]
    if kind is not None:
        return found
    return found.to(torch.float64) if _finite(found) else _defined(structure, semiring, g)


def _defined(structure: Structure, semiring: Semiring, g: Tensor) -> Tensor:
    """Carry numbers as defined: beside infinity an absent edge is absent."""
    return by_definition(structure, semiring.carrier, (g[None].to(torch.float64),))[0][0]


def _finite(x: Tensor) -> bool:
    return not x.numel() or math.isfinite(x.sum())


def _weighted(structure: Structure, *, unsigned: bool = False) -> Structure:
    """Take a structure's weights, once, closed forms written out; or their absolute values, before they cancel."""
    size = torch.abs if unsigned else as_is
    match structure:
        case Contraction(weight=Constant() as weight):
            return replace(structure, weight=replace(weight, value=abs(weight.value))) if unsigned else structure
        case Contraction(weight=Closed(form, of)) if unsigned:
            w = UNCANCELLED[form](of())
            return replace(structure, weight=lambda: w)
        case Contraction(weight=weight) if weight is not None:
            w = size(weight())
            return replace(structure, weight=lambda: w)
        case Convolved(other=other):
            x = size(other())
            return replace(structure, other=lambda: x)
        case Sparse(edges=edges) if unsigned:
            i, j, some = edges()
            return replace(structure, edges=lambda: (i, j, None if some is None else some.abs()))
        case _:
            return structure


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
    """Give the precision that is asked of a structure whose weights were taken."""
    if not is_product(structure):
        return torch.float64
    weight = structure.other if isinstance(structure, Convolved) else structure.weight  # type: ignore[union-attr]
    assert weight is not None
    return torch.float64 if weight().dtype is torch.float64 else torch.float32


def _uncancelled(s: LowRank, g: Tensor) -> Tensor:
    """Take the diagonal apart again: |own - Σ l r| + Σ |l r|, and the rest is |l| |r| already."""
    if isinstance(s.factors, ClosedRows) and s.dims:
        given = (x.to(g.dtype) if isinstance(x, Tensor) else x for x in (s.factors.sizes or s.factors.of)())
        return UNCANCELLED_ROWS[s.factors.form](g, s.dims, *given)
    own, lefts, rights = s.factors()
    alone, out = own.to(g.dtype), torch.zeros_like(g)
    for left, right in zip(lefts, rights, strict=True):
        near, far = left.to(g.dtype), right.to(g.dtype)
        alone = torch.addcmul(alone, near, far, value=-1)
        row = near.abs() * g
        out = torch.addcmul(out, far.abs(), row.sum(s.dims, keepdim=True) if s.dims else row)
    return out + alone.abs() * g


def shaped(g: Tensor, shape: Shape) -> Tensor:
    """Give a cotangent in float64, in a shape."""
    return g.detach().to(torch.float64).reshape(shape)
