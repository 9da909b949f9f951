"""Pointwise operators: y_i depends on the scalar that broadcasting brings to position i.

The local derivative is taken by autograd itself, on the recorded operator, with every argument expanded to
the result's shape: then the gradient of the sum of y is the diagonal of the Jacobian. A repeated argument
(x * x) is two arguments, each with its own derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from ..structure import Scatter, diagonal
from ..tape import Call
from .table import Edge, differentiable, register

# pointwise by nature, though not tagged so
ELEMENTWISE = "clone _to_copy tril triu lift_fresh rsub hardswish log_sigmoid_forward _prelu_kernel celu threshold"


def is_pointwise(call: Call) -> bool:
    """Tell whether PyTorch tags an operator as pointwise (and it draws no random numbers)."""
    tags = getattr(call.op, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def pointwise(call: Call) -> Iterator[Edge]:
    """Give diagonal structures for an elementwise operator."""
    y = call.outputs[0]
    assert y is not None
    weights = derivatives(call, y.shape)
    for position in range(len(call.inputs)):
        if len(call.inputs[position].shape) <= len(y.shape):
            yield position, 0, diagonal(y.shape, call.inputs[position].shape, weights(position))


def derivatives(call: Call, shape: tuple[int, ...]) -> Callable[[int], Callable[[], Tensor]]:
    """Give thunks for ∂y_i/∂x_i, of y's shape, by position; all are computed at the first."""

    @cache
    def compute() -> dict[int, Tensor]:
        wanted = differentiable(call)
        data = [i.tensor() for i in call.inputs]
        with torch.enable_grad():
            leaves = [data[p].expand(shape).clone().requires_grad_() for p in wanted]
            tensors = [leaves[wanted.index(p)] if p in wanted else d for p, d in enumerate(data)]
            y = call.run(tensors)[0]
            assert y is not None
            grads = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
        return {
            p: torch.zeros_like(leaf) if grad is None else grad
            for p, leaf, grad in zip(wanted, leaves, grads, strict=True)
        }

    return lambda position: lambda: compute()[position]


def overwritten(call: Call) -> Iterator[Edge]:
    """Nothing of the first argument is left."""
    y, x = call.outputs[0], call.inputs[0].shape
    assert y is not None
    yield 0, 0, Scatter(lambda: torch.full(x, -1), y.shape, x)


def filled(call: Call) -> Iterator[Edge]:
    """fill: one value everywhere."""
    y = call.outputs[0]
    assert y is not None
    yield from overwritten(call)
    if len(call.inputs) > 1:
        yield 1, 0, diagonal(y.shape, (), None)


def copied(call: Call) -> Iterator[Edge]:
    """copy_: the source is written over the first argument."""
    y = call.outputs[0]
    assert y is not None
    yield from overwritten(call)
    yield 1, 0, diagonal(y.shape, call.inputs[1].shape, None)


register(ELEMENTWISE, pointwise)
register("copy", copied)
register("fill", filled)
register("zero", overwritten)
