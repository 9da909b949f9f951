"""Where a gradient becomes NaN although no forward value is: 0 · ∞ in a derivative, or ∞ − ∞ where two meet.

A trace does not mind 0 · ∞ (an edge of weight 0 is absent), but autograd's gradient is NaN from there on, and so there
is nothing to prove a tape against. This walk says where.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recording.record import Call, Record, Value


def nan_in_backward(record: Record, loss: Value) -> str | None:
    """Walk back as autograd does, operator by operator; say where the first NaN comes up, None if none does."""
    reached = {loss.id: torch.ones(loss.shape, dtype=loss.dtype)}
    for call in reversed(record.before(loss)):
        given = [reached.get(v.id) if v is not None else None for v in call.outputs]
        for position, part in _gradients(call, given):
            value = call.inputs[position].value
            if value is None or not value.differentiable:
                continue
            if part.isnan().any():
                return f"0 · ∞ in the derivative of {call.where}"
            before = reached.get(value.id)
            reached[value.id] = part if before is None else before + part
            if reached[value.id].isnan().any():
                return f"∞ − ∞ where {call.where} and a later use of {value} meet"
    return None


def _gradients(call: Call, given: list[Tensor | None]) -> list[tuple[int, Tensor]]:
    """Give what one call's own backward gives its arguments: (position, gradient)."""
    wanted = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
    with torch.enable_grad():
        tensors = [i.tensor() for i in call.inputs]
        leaves = [tensors[p].detach().requires_grad_() for p in wanted]
        for position, leaf in zip(wanted, leaves, strict=True):
            tensors[position] = leaf
        results = call.run(tensors)
        pairs = [(y, g) for y, g in zip(results, given, strict=False) if y is not None and g is not None]
        pairs = [(y, g.to(y.dtype)) for y, g in pairs if y.requires_grad]
        if not pairs:
            return []
        ys, gs = zip(*pairs, strict=True)
        found = torch.autograd.grad(ys, leaves, gs, allow_unused=True)
    return [(p, g) for p, g in zip(wanted, found, strict=True) if g is not None]
