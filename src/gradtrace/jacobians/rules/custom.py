"""Custom autograd.Functions, and operators of libraries: the Jacobian is what their own backward says.

What has to be written out of it is found by trying. If Jᵀv = d ∘ v for d = Jᵀ1 and random v, then Jᵀ is diagonal (with
probability 1). If cotangents at some places of an axis give nothing at its other places, rows along that axis are
independent, and each has a Jacobian of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from ...errors import GradtraceError
from ...recording.record import Call
from ..structure import Structure, diagonal
from . import dense, rowwise
from .table import Edge, differentiable


def is_custom(call: Call) -> bool:
    """Tell whether a call is that of a custom autograd.Function, or of an operator that is not PyTorch's own."""
    return not call.name.startswith(("aten.", "gradtrace.")) and not _draws(call.op)


@cache
def _draws(op: object) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())


def covers(call: Call) -> bool:
    """Tell whether no Jacobian of a whole tensor has to be written out."""
    if call.name.startswith("autograd."):
        return True
    try:
        found = [trial(call, p, n) for p in differentiable(call) for n, y in enumerate(call.outputs) if y is not None]
        return all(elementwise(t) is not None or independent(t) for t in found)
    except GradtraceError:
        return False


def custom(call: Call) -> Iterator[Edge]:
    """Give a diagonal structure where the backward is elementwise, else a Jacobian for each row that is independent."""
    for position in differentiable(call):
        for number, y in enumerate(call.outputs):
            if y is not None:
                yield position, number, _structure(call, position, number)


def _structure(call: Call, position: int, number: int) -> Structure:
    tried = trial(call, position, number)
    slope = elementwise(tried)
    if slope is not None:
        return diagonal(tuple(slope.shape), tuple(slope.shape), lambda: slope)
    own = independent(tried)
    if not own:
        return dense.whole(call, position, number)[2]
    row = tuple(d for d in range(tried.x.dim()) if d not in own)
    dense.refuse_large(call, tried.y.numel() * prod(tried.x.shape[d] for d in row))
    return rowwise.rows(call, position, number, row, row)


@dataclass(frozen=True)
class Trial:
    """One argument and one result of a call that has been run again, to be asked for derivatives."""

    x: Tensor
    y: Tensor

    def transposed(self, v: Tensor) -> Tensor:
        """Give Jᵀv."""
        if not self.y.requires_grad:
            return torch.zeros_like(self.x)
        (grad,) = torch.autograd.grad(self.y, [self.x], v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self.x) if grad is None else grad

    def draw(self, seed: int) -> Tensor:
        """Give a random cotangent."""
        return torch.randn(self.y.shape, generator=torch.Generator().manual_seed(seed)).to(self.y)


def trial(call: Call, position: int, number: int) -> Trial:
    """Run a call again, to ask for ∂(result `number`)/∂(argument `position`)."""
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = x = tensors[position].detach().requires_grad_()
        y = call.run(tensors)[number]
    assert y is not None
    return Trial(x, y)


def elementwise(tried: Trial) -> Tensor | None:
    """Give the diagonal of the Jacobian if that is all there is."""
    if tried.x.shape != tried.y.shape:
        return None
    slope = tried.transposed(torch.ones_like(tried.y))
    if not slope.numel():
        return slope
    floor = 1e-6 * float(slope.abs().nan_to_num(nan=0.0, posinf=0.0).max())
    for seed in range(2):
        v = tried.draw(seed)
        if not torch.allclose(tried.transposed(v), slope * v, rtol=1e-4, atol=floor, equal_nan=True):
            return None
    return slope


def independent(tried: Trial) -> list[int]:
    """Find the axes of several places at each of which the result depends on that place of the argument alone."""
    x, y = tried.x, tried.y
    if x.dim() != y.dim() or not x.numel() or not y.numel():
        return []
    return [d for d, n in enumerate(y.shape) if n == x.shape[d] > 1 and _is_independent(tried, d)]


def _is_independent(tried: Trial, axis: int) -> bool:
    """Light the places with one bit of their number set, or not set: any two places differ in one of the bits."""
    place = torch.arange(tried.y.shape[axis], device=tried.y.device)
    shape = [-1 if d == axis else 1 for d in range(tried.y.dim())]
    for bit in range(int(place[-1]).bit_length()):
        for value in (0, 1):
            lit = (place >> bit & 1 == value).reshape(shape)
            if bool(tried.transposed(tried.draw(bit) * lit).masked_fill(lit, 0).any()):
                return False
    return True
