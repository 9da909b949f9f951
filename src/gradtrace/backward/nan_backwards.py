"""Backpropagation as autograd does it, call by call: what reaches each value, and where a NaN comes up.

A trace does not mind 0 · ∞ (an edge of weight 0 is absent), nor does `tape.grad` under Sum, but autograd multiplies,
and its gradient is NaN from there on; so it is where two gradients meet as ∞ − ∞. This walk says where, though no
forward value is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..recording.record import Call, Record, Value
from ..recording.replay import replay


@dataclass(eq=False)
class Gradients:
    """Ordinary gradients.

    Attributes:
        of: by value id, in the value's shape; none for a value that nothing reaches.
        sick: by their numbers, calls in whose derivative a NaN came up, or at which two gradients met as ∞ − ∞, with
            what to say of it.
    """

    of: dict[int, Tensor] = field(default_factory=dict)
    sick: dict[int, str] = field(default_factory=dict)


def gradients(record: Record, loss: Value) -> Gradients:
    """Walk back from the loss, every operator with its own derivative."""
    found = Gradients()
    for call, said in _walked(record, loss, found.of):
        found.sick.setdefault(call.index, said)
    return found


def nan_in_backward(record: Record, loss: Value) -> str | None:
    """Say where the first NaN comes up on the way back, None if none does."""
    return next((said for _, said in _walked(record, loss, {})), None)


def _walked(record: Record, loss: Value, reached: dict[int, Tensor]) -> Iterator[tuple[Call, str]]:
    """Walk back, and note what reaches each value; give calls as a NaN comes up in them."""
    reached[loss.id] = torch.ones(loss.shape, dtype=loss.dtype)
    for call in reversed(record.before(loss)):
        given = [reached.get(v.id) if v is not None else None for v in call.outputs]
        if not any(g is not None for g in given):
            continue
        for position, part in replay(call).vector_product(given).items():
            value = call.inputs[position].value
            if value is None or not value.differentiable:
                continue
            before = reached.get(value.id)
            total = reached[value.id] = part if before is None else before + part
            if not total.isnan().any() or any(g is not None and bool(g.isnan().any()) for g in given):
                continue
            if part.isnan().any():
                yield call, f"0 · ∞ in the derivative of {call.where}"
            elif before is not None and not before.isnan().any():
                yield call, f"∞ − ∞ where {call.where} and a later use of {value} meet"
