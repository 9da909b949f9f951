"""The fallback: any differentiable operator, by writing out its whole Jacobian with autograd."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ..errors import MissingRule
from ..structure import dense
from ..tape import Call
from .table import Edge, differentiable

LIMIT = 1 << 24  # entries of one Jacobian that the fallback will write out


def fallback(call: Call) -> Iterator[Edge]:
    """Give dense structures for an operator without a rule.

    Raises:
        MissingRule: the Jacobian has more than LIMIT entries, or the operator draws random numbers.
    """
    if torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ()):
        raise MissingRule(f"no rule for the random operator {call.where}: add a row in gradtrace/rules")
    for position in differentiable(call):
        for number, y in enumerate(call.outputs):
            if y is None:
                continue
            entries = y.numel * prod(call.inputs[position].shape)
            if entries > LIMIT:
                raise MissingRule(
                    f"no rule for {call.where}, and its Jacobian has {entries:,} entries, more than the fallback's "
                    f"{LIMIT:,}: add a row in gradtrace/rules, or raise gradtrace.rules.dense.LIMIT"
                )
            x_numel = prod(call.inputs[position].shape)
            yield position, number, dense(y.numel, x_numel, lambda p=position, n=number: jacobian(call, p, n))


def jacobian(call: Call, position: int, number: int) -> Tensor:
    """Give ∂(result `number`)/∂(argument `position`), y.numel() × x.numel(), one row at a time."""
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = leaf = tensors[position].clone().requires_grad_()
        y = call.run(tensors)[number]
    assert y is not None
    if not y.requires_grad:
        return leaf.new_zeros(y.numel(), leaf.numel())
    rows = []
    for i in range(y.numel()):
        seed = torch.zeros_like(y).flatten()
        seed[i] = 1
        (row,) = torch.autograd.grad(y, leaf, seed.reshape(y.shape), retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(leaf).flatten() if row is None else row.flatten())
    return torch.stack(rows) if rows else leaf.new_zeros(0, leaf.numel())
