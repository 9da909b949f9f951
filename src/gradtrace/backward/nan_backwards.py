"""Where a gradient becomes NaN although no forward value is: 0 · ∞ in a derivative, or ∞ − ∞ where two meet.

A trace does not mind 0 · ∞ (an edge of weight 0 is absent), but autograd's gradient is NaN from there on, and so there
is nothing to prove a tape against. This walk says where.
"""

from __future__ import annotations

import torch

from ..recording.record import Record, Value
from ..recording.replay import replay


def nan_in_backward(record: Record, loss: Value) -> str | None:
    """Walk back as autograd does, operator by operator; say where the first NaN comes up, None if none does."""
    reached = {loss.id: torch.ones(loss.shape, dtype=loss.dtype)}
    for call in reversed(record.before(loss)):
        given = [reached.get(v.id) if v is not None else None for v in call.outputs]
        if not any(g is not None for g in given):
            continue
        for position, part in replay(call).vector_product(given).items():
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
