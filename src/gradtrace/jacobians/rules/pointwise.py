"""Pointwise operators: y_i depends on the scalar that broadcasting brings to position i.

The local derivative is taken by autograd itself, on the recorded operator, with every argument expanded to
the result's shape: then the gradient of the sum of y is the diagonal of the Jacobian. A repeated argument
(x * x) is two arguments, each with its own derivative. The most frequent operators say it in closed form, rounded
as autograd rounds it, because asking autograd costs more than the operator itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor

from ...recording.record import Call, Input, Slot
from ...recording.replay import solid
from ..structure import Closed, Constant, Scatter, Weight, diagonal
from .table import Edge, Rule, differentiable, kept, register, result

# pointwise by nature, though not tagged so
ELEMENTWISE = "tril triu lift_fresh rsub hardswish log_sigmoid_forward _prelu_kernel celu threshold"
# what a backward pass computes, where it is differentiated again
ELEMENTWISE += " softplus_backward elu_backward hardshrink_backward hardtanh_backward hardswish_backward"
ELEMENTWISE += " leaky_relu_backward log_sigmoid_backward softshrink_backward"


@cache
def is_pointwise(op: object) -> bool:
    """Tell whether PyTorch tags an operator as pointwise (and it draws no random numbers)."""
    tags = getattr(op, "tags", ())
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
            p: torch.zeros_like(leaf) if grad is None else solid(grad)
            for p, leaf, grad in zip(wanted, leaves, grads, strict=True)
        }

    return lambda position: lambda: compute()[position]


def closed(form: str) -> Rule:
    """Make the rule of y = f(x) whose derivative is a closed form of y."""

    def rule(call: Call) -> Iterator[Edge]:
        shape = call.inputs[0].shape
        yield 0, 0, diagonal(shape, shape, Closed(form, lambda: kept(call)))

    return rule


def constant(call: Call, value: float) -> Weight | None:
    """Give one weight for all edges; None stands for 1."""
    if value == 1:
        return None
    y, device = result(call), call.inputs[0].device
    return Constant(value, y.shape, y.dtype, device)


def added(call: Call, sign: float = 1) -> Iterator[Edge]:
    """Give the edges of y = a ± alpha · b."""
    if _promotes(call):
        yield from pointwise(call)
        return
    y, alpha = result(call).shape, call.kwargs.get("alpha", 1)
    yield 0, 0, diagonal(y, call.inputs[0].shape, None)
    if len(call.inputs) > 1:
        yield 1, 0, diagonal(y, call.inputs[1].shape, constant(call, sign * alpha))


def multiplied(call: Call) -> Iterator[Edge]:
    """Give the edges of y = a · b: each is the other's derivative."""
    if _promotes(call):
        yield from pointwise(call)
        return
    y = result(call).shape
    if len(call.inputs) == 1:
        yield 0, 0, diagonal(y, call.inputs[0].shape, constant(call, float(call.args[1])))
        return
    for position, other in ((0, 1), (1, 0)):
        yield position, 0, diagonal(y, call.inputs[position].shape, partial(_expanded, call.inputs[other], y))


def multiplied_and_added(call: Call) -> Iterator[Edge]:
    """Give the edges of y = a + value · b · c."""
    if _promotes(call) or len(call.inputs) != 3:
        yield from pointwise(call)
        return
    y, value = result(call).shape, call.kwargs.get("value", 1)
    yield 0, 0, diagonal(y, call.inputs[0].shape, None)
    for position, other in ((1, 2), (2, 1)):
        yield position, 0, diagonal(y, call.inputs[position].shape, partial(_expanded, call.inputs[other], y, value))


def _expanded(given: Input, shape: tuple[int, ...], times: float = 1) -> Tensor:
    data = given.tensor() if times == 1 else given.tensor() * times
    return data if given.shape == shape else data.expand(shape)


def divided(call: Call) -> Iterator[Edge]:
    """Give the edges of y = a / b."""
    simple = not _promotes(call) and call.kwargs.get("rounding_mode") is None
    if simple and len(call.inputs) == 1 and not isinstance(call.args[0], Slot):
        simple = False  # a number over a tensor
    if not simple or len(call.inputs) != 1:
        yield from pointwise(call)
        return
    y = result(call).shape
    yield 0, 0, diagonal(y, y, constant(call, _reciprocal(float(call.args[1]))))


def _reciprocal(number: float) -> float:
    return 1 / number if number else math.copysign(math.inf, number)


def power(call: Call) -> Iterator[Edge]:
    """Give the edges of y = x^n for a number n."""
    n = call.args[1]
    if _promotes(call) or isinstance(n, (Slot, complex)) or not isinstance(call.args[0], Slot) or n in (0, 1):
        yield from pointwise(call)
        return
    y = result(call).shape
    yield 0, 0, diagonal(y, call.inputs[0].shape, lambda: n * call.inputs[0].tensor().pow(n - 1))


def negated(call: Call) -> Iterator[Edge]:
    """Give the edges of y = -x."""
    yield 0, 0, diagonal(result(call).shape, call.inputs[0].shape, constant(call, -1))


def same(call: Call) -> Iterator[Edge]:
    """Give the edges of y = x, perhaps in another precision."""
    yield 0, 0, diagonal(result(call).shape, call.inputs[0].shape, None)


def _promotes(call: Call) -> bool:
    """Tell whether the arguments differ in dtype, or are no plain numbers and tensors of rank at most the result's."""
    y = result(call)
    kind, most = y.dtype, len(y.shape)
    for given in call.inputs:  # noqa: SIM110 (a generator would be made for most calls of every pass)
        if given.dtype is not kind or len(given.shape) > most:
            return True
    return False


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
register("add", added)
register("sub", lambda call: added(call, -1))
register("mul", multiplied)
register("addcmul", multiplied_and_added)
register("div", divided)
register("neg", negated)
register("pow", power)
register("clone _to_copy", same)
register("tanh", closed("tanh"))
register("sigmoid", closed("sigmoid"))
register("relu", closed("relu"))
register("copy", copied)
register("fill", filled)
register("zero", overwritten)
