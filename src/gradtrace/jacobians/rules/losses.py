"""Losses that are operators of their own: a pointwise loss, kept, added up or averaged."""

from __future__ import annotations

from collections.abc import Iterator

from ...recording.record import Call
from ..structure import reduction
from .pointwise import pointwise
from .reduction import whole
from .table import Edge, differentiable, gradient, register, result


def pointwise_loss(call: Call) -> Iterator[Edge]:
    """A loss of each position; reduced to one scalar, its weights are gradients."""
    y = result(call)
    if y.shape == () and any(x.shape != () for x in call.inputs):
        yield from whole(call)
    else:
        yield from pointwise(call)


def row_loss(call: Call) -> Iterator[Edge]:
    """A loss of each row of classes."""
    y = result(call)
    for position in differentiable(call):
        shape = call.inputs[position].shape
        merged = tuple(range(len(shape))) if y.shape == () else (len(shape) - 1,)
        yield position, 0, reduction(shape, merged, lambda p=position: gradient(call, 0, p))


def ctc_loss(call: Call) -> Iterator[Edge]:
    """Every log-probability, time × example × class, goes into its example's loss."""
    shape = call.inputs[0].shape
    merged = (0, 2) if len(shape) == 3 else (0, 1)
    yield 0, 0, reduction(shape, merged, lambda: gradient(call))


register("mse_loss huber_loss smooth_l1_loss soft_margin_loss", pointwise_loss)
register("binary_cross_entropy binary_cross_entropy_with_logits", pointwise_loss)
register("multi_margin_loss multilabel_margin_loss_forward", row_loss)
register("_ctc_loss", ctc_loss)
