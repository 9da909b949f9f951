"""Custom autograd.Functions, and operators of libraries: what their own backward says, pointwise where it is pointwise.

Whether it is, is found by trying: if Jᵀv = d ∘ v for d = Jᵀ1 and random v, then Jᵀ is diagonal (with probability 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import GradtraceError
from ...recording.record import Call
from ..structure import diagonal
from . import dense
from .table import Edge, differentiable


def is_custom(call: Call) -> bool:
    """Tell whether a call is that of a custom autograd.Function, or of an operator that is not PyTorch's own."""
    draws = torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ())
    return not call.name.startswith(("aten.", "gradtrace.")) and not draws


def covers(call: Call) -> bool:
    """Tell whether a call's Jacobian is known without writing it out: all of it is elementwise."""
    if call.name.startswith("autograd."):
        return True
    pairs = [(p, n, y) for p in differentiable(call) for n, y in enumerate(call.outputs) if y is not None]
    try:
        return all(y.shape == call.inputs[p].shape and elementwise(call, p, n) is not None for p, n, y in pairs)
    except GradtraceError:
        return False


def custom(call: Call) -> Iterator[Edge]:
    """Give a diagonal structure where the function's backward is elementwise, else its whole Jacobian."""
    for position in differentiable(call):
        for number, y in enumerate(call.outputs):
            if y is None:
                continue
            slope = elementwise(call, position, number) if y.shape == call.inputs[position].shape else None
            if slope is None:
                yield dense.whole(call, position, number)
            else:
                yield position, number, diagonal(y.shape, y.shape, lambda d=slope: d)


def elementwise(call: Call, position: int, number: int) -> Tensor | None:
    """Give the diagonal of ∂(result `number`)/∂(argument `position`) if that is all there is."""
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = x = tensors[position].detach().requires_grad_()
        y = call.run(tensors)[number]
    assert y is not None
    generator = torch.Generator().manual_seed(0)

    def transposed(v: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(y, [x], v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if grad is None else grad

    slope = transposed(torch.ones_like(y))
    for _ in range(2):
        v = torch.randn(y.shape, generator=generator).to(y)
        if not torch.allclose(transposed(v), slope * v, rtol=1e-4, atol=1e-6 * float(slope.abs().max())):
            return None
    return slope
