"""The table of rules: one row for each bare operator name ("mm" serves mm, mm_ and mm.out)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from ..structure import Structure
from ..tape import Call

Edge: TypeAlias = tuple[int, int, Structure]
Rule: TypeAlias = Callable[[Call], Iterable[Edge]]

TABLE: dict[str, Rule] = {}


def register(names: str, rule: Rule) -> None:
    """Add a row for some operators (names separated by spaces).

    Raises:
        ValueError: an operator has a row already.
    """
    for name in names.split():
        if name in TABLE:
            raise ValueError(f"operator {name!r} has a rule already")
        TABLE[name] = rule


def differentiable(call: Call) -> list[int]:
    """Give the positions of the arguments that autograd follows."""
    return [i for i, x in enumerate(call.inputs) if x.value is not None and x.value.differentiable]
