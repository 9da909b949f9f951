"""The fallback: any differentiable operator, by writing out its whole Jacobian with autograd.

`LIMIT` is the number of entries of one Jacobian that it will write out; raise it to allow more:

    gradtrace.rules.dense.LIMIT = 1 << 28
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...errors import MissingRule
from ...recording.record import Call
from ...recording.replay import replay
from ..structure import dense
from .table import Edge, differentiable, result

LIMIT = 1 << 26  # entries of one Jacobian that the fallback will write out
BLOCK = 1 << 22  # entries of the seeds and rows of one batched backward pass


def fallback(call: Call) -> Iterator[Edge]:
    """Give dense structures for an operator without a rule.

    Raises:
        MissingRule: a Jacobian has more than LIMIT entries, or the operator draws random numbers.
    """
    if torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ()):
        raise MissingRule(f"no rule for the random operator {call.where}: add a row in gradtrace/rules")
    for position in differentiable(call):
        for number, y in enumerate(call.outputs):
            if y is None:
                continue
            yield whole(call, position, number)


def whole(call: Call, position: int, number: int) -> Edge:
    """Give the dense structure of one result towards one argument.

    Raises:
        MissingRule: the Jacobian has more than LIMIT entries.
    """
    y = result(call, number)
    x_numel = prod(call.inputs[position].shape)
    refuse_large(call, y.numel * x_numel)
    return position, number, dense(y.numel, x_numel, Written(call, position, number))


def refuse_large(call: Call, entries: int) -> None:
    """Refuse to write out more than LIMIT entries of a Jacobian.

    Raises:
        MissingRule: says what to do.
    """
    if entries > LIMIT:
        raise MissingRule(
            f"no rule for {call.where}, and its Jacobian has {entries:,} entries, more than the fallback's "
            f"{LIMIT:,}: add a row in gradtrace/rules, or raise gradtrace.rules.dense.LIMIT"
        )


@dataclass(frozen=True, eq=False)
class Written:
    """A whole Jacobian, written out when it is asked for; one row costs one backward pass."""

    call: Call
    position: int
    number: int

    def __call__(self) -> Tensor:
        return jacobian(self.call, self.position, self.number)

    def row(self, y: int) -> Tensor:
        """Give ∂y_i/∂x for one i, flat."""
        again = replay(self.call)
        result = again.results[self.number]
        assert result is not None
        seed = torch.zeros_like(result, memory_format=torch.contiguous_format)
        seed.view(-1)[y] = 1
        return again.gradients(self.number, seed)[self.position].reshape(-1)


def jacobian(call: Call, position: int, number: int) -> Tensor:
    """Give ∂(result `number`)/∂(argument `position`), y.numel() × x.numel().

    Raises:
        MissingRule: autograd refuses to differentiate by single results (singular vectors up to a phase).
    """
    try:
        return _written(call, position, number)
    except RuntimeError as error:
        raise MissingRule(f"no rule for {call.where}, and autograd refuses its derivatives: {error}") from None


def _written(call: Call, position: int, number: int) -> Tensor:
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = leaf = tensors[position].clone().requires_grad_()
        y = call.run(tensors)[number]
    assert y is not None
    m, out = y.numel(), leaf.new_zeros(y.numel(), leaf.numel())
    step = max(1, BLOCK // max(1, m + leaf.numel()))
    for start in range(0, m, step):
        stop = min(m, start + step)
        seeds = torch.zeros(stop - start, m, dtype=y.dtype, device=y.device)
        seeds[range(stop - start), range(start, stop)] = 1
        out[start:stop] = backward(y, leaf, seeds.reshape(-1, *y.shape)).reshape(stop - start, -1)
    return out


def backward(y: Tensor, leaf: Tensor, seeds: Tensor) -> Tensor:
    """Give the gradients for several seeds (seeds × y): seeds × x, batched where the operator allows it."""
    if not y.requires_grad or not len(seeds):
        return leaf.new_zeros(len(seeds), *leaf.shape)
    if len(seeds) > 1:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of operators without a batching rule: they loop inside
                return _gradient(y, leaf, seeds, batched=True)
        except (RuntimeError, NotImplementedError):
            pass
    return torch.stack([_gradient(y, leaf, seed, batched=False) for seed in seeds])


def _gradient(y: Tensor, leaf: Tensor, seed: Tensor, batched: bool) -> Tensor:
    (grad,) = torch.autograd.grad(y, leaf, seed, retain_graph=True, allow_unused=True, is_grads_batched=batched)
    shape = (len(seed), *leaf.shape) if batched else leaf.shape
    return leaf.new_zeros(shape) if grad is None else grad
