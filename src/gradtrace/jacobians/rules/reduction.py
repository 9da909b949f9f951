"""Group reductions: each argument scalar goes into exactly one result scalar.

The weights are autograd's: the gradient of the sum of y, since no x reaches two y's.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import Chain, Constant, Contraction, Gather, reduction
from .table import Edge, Rule, argument, data, differentiable, gradient, has, register, result


def axes(call: Call) -> tuple[int, ...]:
    """Read which axes are merged: an int, a list, or none for all."""
    ndim = len(call.inputs[0].shape)
    dims = argument(call, "dim") if has(call, "dim") else None
    if dims is None or dims in ([], ()):
        return tuple(range(ndim))
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(d % ndim if ndim else 0 for d in dims))[: ndim or 0]


def plain_sum(call: Call) -> Iterator[Edge]:
    """Sum: every derivative is 1."""
    yield 0, 0, reduction(call.inputs[0].shape, axes(call), None)


def weighted(output: int = 0) -> Rule:
    """Make the rule of a reduction over the axes `dim`; autograd gives the weights."""

    def rule(call: Call) -> Iterator[Edge]:
        x = call.inputs[0]
        yield 0, output, reduction(x.shape, axes(call), lambda: gradient(call, output))

    return rule


def mean(call: Call) -> Iterator[Edge]:
    """Mean: every derivative is one over the number of scalars."""
    x, merged = call.inputs[0], axes(call)
    count = prod(x.shape[d] for d in merged)
    weight = Constant(1 / count if count else 0.0, x.shape, result(call).dtype, x.device)
    yield 0, 0, reduction(x.shape, merged, weight)


def nll_loss(call: Call) -> Iterator[Edge]:
    """nll_loss: each row's log-probability at its target, averaged, summed, or kept."""
    x, y = call.inputs[0].shape, result(call).shape
    merged = tuple(range(len(x))) if y == () else (1 if len(x) > 1 else 0,)
    if len(x) != 2 or 0 in x:
        yield 0, 0, reduction(x, merged, lambda: gradient(call))
        return
    # a row has one scalar that counts: what is read there, then a sum of rows
    target = call.inputs[1].tensor().to(torch.int64)
    ignored = target == argument(call, "ignore_index")
    rows = torch.arange(x[0])

    def index() -> Tensor:
        return (rows * x[1] + target).masked_fill(ignored, -1)

    def weight() -> Tensor:
        given, like = data(call, "weight"), call.inputs[0].tensor()
        share = like.new_ones(x[0]) if given is None else given[target.masked_fill(ignored, 0)]
        share = share.masked_fill(ignored, 0)
        return -share / share.sum() if argument(call, "reduction") == 1 else -share

    read = Gather(index, (x[0],), x)
    yield 0, 0, Chain(Contraction("" if y == () else "a", "a", y, (x[0],), "a", weight), read)


def selected(call: Call) -> Iterator[Edge]:
    """max/min/sort/topk/… along an axis: the values are gathered from where the indices say."""
    x, y, dim = call.inputs[0], result(call), argument(call, "dim")

    def index() -> Tensor:
        where = call.run()[1]
        assert where is not None
        if where.dim() < len(x.shape):
            where = where.unsqueeze(dim)
        flat = torch.arange(int(torch.Size(x.shape).numel())).reshape(x.shape)
        return flat.gather(dim, where).reshape(y.shape) if x.shape else flat

    yield 0, 0, Gather(index, y.shape, x.shape)


def extreme(call: Call) -> Iterator[Edge]:
    """max, min and median: with an axis they select; without, autograd shares among equals."""
    if len(call.outputs) > 1:
        yield from selected(call)
    else:
        yield from whole(call)


def whole(call: Call) -> Iterator[Edge]:
    """An operator whose results are one scalar each: the weights are gradients."""
    for number in range(len(call.outputs)):
        for position in differentiable(call):
            shape = call.inputs[position].shape
            weight = lambda n=number, p=position: gradient(call, n, p)  # noqa: E731
            yield position, number, reduction(shape, tuple(range(len(shape))), weight)


def both(call: Call) -> Iterator[Edge]:
    """aminmax, var_mean, std_mean: two reductions over the same axes."""
    shape, dim = call.inputs[0].shape, argument(call, "dim")
    merged = axes(call) if dim is not None else tuple(range(len(shape)))
    for number in range(len(call.outputs)):
        yield 0, number, reduction(shape, merged, lambda n=number: gradient(call, n))


def pooled(spatial: int) -> Rule:
    """Make the rule of max pooling: the indices count within a plane of `spatial` axes."""

    def rule(call: Call) -> Iterator[Edge]:
        x, y = call.inputs[0], result(call)
        size = int(torch.Size(x.shape[len(x.shape) - spatial :]).numel())

        def index() -> Tensor:
            where = call.run()[1]
            assert where is not None
            batch = where.shape[: where.dim() - spatial]
            plane = torch.arange(int(torch.Size(batch).numel())).reshape(*batch, *[1] * spatial)
            return plane * size + where

        yield 0, 0, Gather(index, y.shape, x.shape)

    return rule


register("sum", plain_sum)
register("mean", mean)
register("nansum amax amin logsumexp std var linalg_vector_norm norm prod", weighted())
register("var_mean std_mean aminmax", both)
register("dist trace", whole)
register("nll_loss_forward nll_loss2d_forward", nll_loss)
register("sort topk kthvalue mode cummax cummin", selected)
register("max min median nanmedian", extreme)
register("max_pool2d_with_indices adaptive_max_pool2d fractional_max_pool2d", pooled(2))
register("max_pool3d_with_indices adaptive_max_pool3d fractional_max_pool3d", pooled(3))
