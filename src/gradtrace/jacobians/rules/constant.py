"""Results that depend on no argument, and random operators, by what autograd says of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import MissingRule
from ...recording.record import Call
from ..structure import Scatter, diagonal
from .table import Edge, argument, differentiable, register, result


def nothing(call: Call) -> Iterator[Edge]:
    """No scalar of a result depends on an argument (its values, if at all, do; autograd says 0)."""
    for position in differentiable(call):
        for number, y in enumerate(call.outputs):
            if y is not None:
                shape = call.inputs[position].shape
                yield position, number, Scatter(lambda s=shape: torch.full(s, -1), y.shape, shape)


def _given(call: Call, number: int) -> Tensor:
    """Give what a random operator gave when it was recorded."""
    results = getattr(call, "results", ())
    if not results or results[number] is None:
        raise MissingRule(f"what the random operator {call.where} gave was not kept")
    return results[number].get()


def rrelu(call: Call) -> Iterator[Edge]:
    """Where x ≤ 0 the slope is the drawn one, y/x; in evaluation the mean slope."""
    x, y = call.inputs[0], result(call)

    def weight() -> Tensor:
        data = x.tensor()
        if not argument(call, "training"):
            slope: Tensor | float = (argument(call, "lower") + argument(call, "upper")) / 2
        else:
            slope = torch.where(data == 0, 0.0, _given(call, 0) / data)
        return torch.where(data > 0, torch.ones_like(data), slope)

    yield 0, 0, diagonal(y.shape, x.shape, weight)


def native_dropout(call: Call) -> Iterator[Edge]:
    """The mask that was drawn, scaled."""
    y = result(call)

    def weight() -> Tensor:
        p = argument(call, "p") if argument(call, "train") is not False else 0.0
        return _given(call, 1).to(y.dtype) * (1 / (1 - p) if p < 1 else 0.0)

    yield 0, 0, diagonal(y.shape, call.inputs[0].shape, weight)


def gamma(call: Call) -> Iterator[Edge]:
    """A gamma variate depends on its shape parameter by the derivative of what was drawn."""
    y, x = result(call), call.inputs[0]

    def weight() -> Tensor:
        return torch.ops.aten._standard_gamma_grad(x.tensor(), _given(call, 0))

    yield 0, 0, diagonal(y.shape, x.shape, weight)


RANDOM = "bernoulli normal poisson uniform exponential cauchy log_normal geometric random"

register(RANDOM, nothing)
register("rrelu_with_noise", rrelu)
register("native_dropout", native_dropout)
register("_standard_gamma", gamma)
