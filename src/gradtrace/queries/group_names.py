"""How a group of parameters is named in a line: each, where they are few."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 3


def group_named(names: Sequence[str], of_all: int = 0) -> str:
    """Name a group of parameters.

    Args:
        of_all: how many parameters there are.

    >>> group_named(["wte.weight", "wpe.weight"], 55)
    'wte.weight, wpe.weight'
    >>> group_named([f"h.{n}.bias" for n in range(12)], 55), group_named([f"h.{n}.bias" for n in range(12)], 12)
    ('12 parameters, h.0.bias to h.11.bias', 'all 12 parameters')
    """
    if len(names) == of_all > 1:
        return f"all {of_all} parameters"
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{len(names)} parameters, {names[0]} to {names[-1]}"
