"""Backpropagation as autograd does it, call by call: what reaches each value, and where a NaN comes up.

`tape.grad` under Sum leaves out edges of weight 0, for which autograd multiplies; so 0 · ∞ is 0 there and NaN here.
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
        sick: calls in whose derivative a NaN came up, or at which two gradients met as ∞ − ∞, with what to say of it.
    """

    of: dict[int, Tensor] = field(default_factory=dict)
    sick: dict[int, str] = field(default_factory=dict)


def gradients(record: Record, loss: Value) -> Gradients:
    """Walk back from the loss, every operator with its own derivative."""
    found = Gradients({loss.id: torch.ones(loss.shape, dtype=loss.dtype)})
    for call in reversed(record.before(loss)):
        _carry(found, call)
    return found


def _carry(found: Gradients, call: Call) -> None:
    given = {n: found.of[v.id] for n, v in enumerate(call.outputs) if v is not None and v.id in found.of}
    well = not any(g.isnan().any() for g in given.values())
    for position, part in _parts(call, given):
        value = call.inputs[position].value
        if value is None or not value.differentiable:
            continue
        before = found.of.get(value.id)
        total = part if before is None else before + part
        found.of[value.id] = total
        if total.isnan().any() and well:
            if part.isnan().any():
                found.sick.setdefault(call.index, f"0 · ∞ in the derivative of {call.where}")
            elif before is not None and not before.isnan().any():
                found.sick.setdefault(call.index, f"∞ − ∞ where {call.where} and a later use of {value} meet")


def _parts(call: Call, given: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Give what a call's own backward gives its arguments: (position, gradient)."""
    run = replay(call)
    for number, cotangent in given.items():
        y = run.results[number]
        if y is not None and y.requires_grad:
            yield from run.gradients(number, cotangent.to(y.dtype).reshape(y.shape)).items()
