"""Group reductions: each argument scalar goes into exactly one result scalar.

The weights are autograd's: the gradient of the sum of y, since no x reaches two y's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..structure import Gather, Scatter, reduction
from ..tape import Call
from .table import Edge, register


def axes(call: Call, position: int = 1) -> tuple[int, ...]:
    """Read which axes are merged: an int, a list, or none for all."""
    ndim = len(call.inputs[0].shape)
    dims = call.kwargs.get("dim", call.args[position] if position < len(call.args) else None)
    if dims is None or dims == [] or dims == () or isinstance(dims, bool):
        return tuple(range(ndim))
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(d % ndim if ndim else 0 for d in dims))[: ndim or 0]


def plain_sum(call: Call) -> Iterator[Edge]:
    """Sum: every derivative is 1."""
    yield 0, 0, reduction(call.inputs[0].shape, axes(call), None)


def weighted(position: int = 1, output: int = 0) -> object:
    """Make the rule of a reduction over the axes at an argument position; autograd gives the weights."""

    def rule(call: Call) -> Iterator[Edge]:
        x = call.inputs[0]
        yield 0, output, reduction(x.shape, axes(call, position), lambda: gradient(call, output))

    return rule


def gradient(call: Call, output: int = 0, position: int = 0) -> Tensor:
    """Give the gradient of the sum of one result with respect to one argument, by autograd."""
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = leaf = tensors[position].clone().requires_grad_()
        y = call.run(tensors)[output]
        assert y is not None
        (grad,) = torch.autograd.grad(y, [leaf], torch.ones_like(y))
    return grad


def nll_loss(call: Call) -> Iterator[Edge]:
    """nll_loss: each row's log-probability at its target, averaged, summed, or kept."""
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None
    if y.shape == ():
        yield 0, 0, reduction(x.shape, tuple(range(len(x.shape))), lambda: gradient(call))
    else:
        classes = 1 if len(x.shape) > 1 else 0
        yield 0, 0, reduction(x.shape, (classes,), lambda: gradient(call))


def selected(call: Call) -> Iterator[Edge]:
    """max/min/sort/topk/… along an axis: the values are gathered from where the indices say."""
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None
    dim = call.kwargs.get("dim", call.args[_SELECTED[call.base]] if len(call.args) > _SELECTED[call.base] else -1)

    def index() -> Tensor:
        where = call.run()[1]
        assert where is not None
        dims = len(x.shape)
        if where.dim() < dims:
            where = where.unsqueeze(dim)
        flat = torch.arange(x.tensor().numel()).reshape(x.shape)
        return flat.gather(dim, where).reshape(y.shape) if dims else flat

    yield 0, 0, Gather(index, y.shape, x.shape)


_SELECTED = {"sort": 1, "topk": 2, "kthvalue": 2, "mode": 1, "median": 1, "nanmedian": 1, "cummax": 1, "cummin": 1}


def extreme(call: Call) -> Iterator[Edge]:
    """max and min: with an axis they select; without, autograd shares among equals."""
    if len(call.outputs) > 1:
        _SELECTED.setdefault(call.base, 1)
        yield from selected(call)
    else:
        yield 0, 0, reduction(call.inputs[0].shape, tuple(range(len(call.inputs[0].shape))), lambda: gradient(call))


register("sum nansum", plain_sum)
register("mean nanmean amax amin logsumexp std var", weighted())  # type: ignore[arg-type]
register("linalg_vector_norm norm", weighted(2))  # type: ignore[arg-type]
register("prod", weighted())  # type: ignore[arg-type]
register("nll_loss_forward nll_loss2d_forward nll_loss_nd", nll_loss)
register("sort topk kthvalue mode cummax cummin", selected)
register("max min", extreme)
_ = Scatter
