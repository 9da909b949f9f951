"""The table of rules: one row for each bare operator name ("mm" serves mm, mm_ and mm.out)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...recording.record import Call, Slot, Value, flat_tensors
from ...recording.replay import replay
from ..structure import Structure

Edge: TypeAlias = tuple[int, int, Structure]
Rule: TypeAlias = Callable[[Call], Iterable[Edge]]

TABLE: dict[str, Rule] = {}


def register(names: str, rule: Rule) -> None:
    """Add a row for some operators (names separated by spaces).

    Raises:
        ValueError: an operator has a row already.
    """
    for name in names.split():
        if name.endswith(".default") or name.count(".") > 1:
            raise ValueError(
                f"{name!r} names an overload: a row is for the operator, {'.'.join(name.split('.')[:2])!r}"
            )
        if name in TABLE:
            raise ValueError(f"operator {name!r} has a rule already")
        TABLE[name] = rule


def differentiable(call: Call) -> list[int]:
    """Give the positions of the arguments that autograd follows."""
    return [i for i, x in enumerate(call.inputs) if x.value is not None and x.value.differentiable]


@cache
def _places(op: Any) -> dict[str, tuple[int, Any]]:
    """Give the place of each argument in an operator's schema, and its default."""
    return {a.name: (i, a.default_value) for i, a in enumerate(op._schema.arguments)}


def schema(call: Call) -> dict[str, tuple[int, Any]]:
    """Give an operator's arguments by name, in order; none of a custom autograd.Function, which has no schema."""
    return _places(call.op) if hasattr(call.op, "_schema") else {}


def has(call: Call, name: str) -> bool:
    """Tell whether an operator has an argument of that name."""
    return name in schema(call)


def argument(call: Call, name: str) -> Any:
    """Read an argument by its name in the operator's schema, wherever it was passed, or its default."""
    if name in call.kwargs:
        return call.kwargs[name]
    found = schema(call).get(name)
    if found is None:
        raise KeyError(f"{call.name} has no argument {name!r}")
    place, default = found
    return call.args[place] if place < len(call.args) else default


def position(call: Call, name: str) -> int | None:
    """Give the position of a tensor argument among the call's inputs; None where it is absent."""
    slot = argument(call, name)
    return slot.position if isinstance(slot, Slot) else None


def data(call: Call, name: str) -> Tensor | None:
    """Give a tensor argument's data; None where it is absent."""
    at = position(call, name)
    return None if at is None else call.inputs[at].tensor()


def result(call: Call, number: int = 0) -> Value:
    """Give a result that a rule relies on."""
    value = call.outputs[number]
    assert value is not None
    return value


def kept(call: Call) -> Tensor:
    """Give the result of a call, kept or computed again."""
    if call.results and call.results[0] is not None:
        return call.results[0].get()
    y = call.run()[0]
    assert y is not None
    return y


def rerun(call: Call, tensors: Sequence[Tensor], **changed: Any) -> list[Tensor]:
    """Run an operator on other tensors, and with some of its plain arguments changed."""
    if call.inplace:
        tensors = [tensors[0].clone(), *tensors[1:]]
    args, kwargs = call.arguments(tensors)
    args = tuple(changed.pop(name) if name in changed else a for name, a in zip(schema(call), args, strict=False))
    return [t for t in flat_tensors(call.op(*args, **kwargs, **changed)) if t is not None]


def gradient(call: Call, output: int = 0, position: int = 0) -> Tensor:
    """Give the gradient of the sum of one result with respect to one argument, by autograd.

    Of complex numbers it is the derivative, of which autograd gives the conjugate.
    """
    again = replay(call, also=(position,))
    y = again.results[output]
    assert y is not None
    return again.gradients(output, torch.ones_like(y))[position].conj()
