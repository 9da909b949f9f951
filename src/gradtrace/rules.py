"""Add a rule for an operator (the public door to `jacobians.rules`; see docs/howto-rule.md)."""

import sys

from .backward.first_use import proven
from .jacobians.rules import TABLE, Edge, Rule, dense, key, served_by, table
from .jacobians.rules.constant import nothing
from .jacobians.rules.contraction import product
from .jacobians.rules.indexing import filling, moved, moved_each
from .jacobians.rules.losses import pointwise_loss
from .jacobians.rules.pointwise import pointwise
from .jacobians.rules.reduction import selected, weighted, whole
from .jacobians.rules.resampling import separable
from .jacobians.rules.rowwise import along, trailing
from .jacobians.rules.scattering import written

__all__ = [
    "TABLE",
    "Edge",
    "Rule",
    "along",
    "dense",
    "filling",
    "key",
    "moved",
    "moved_each",
    "nothing",
    "pointwise",
    "pointwise_loss",
    "product",
    "register",
    "selected",
    "separable",
    "served_by",
    "trailing",
    "weighted",
    "whole",
    "written",
]


def register(names: str, rule: Rule) -> None:
    """Add a row for some operators of your own (names separated by spaces).

    The first call of each that the row serves is compared with autograd.

    Raises:
        ValueError: an operator has a row already.
    """
    caller = sys._getframe(1)
    kind = getattr(rule, "__qualname__", type(rule).__name__).split(".")[0]
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    table.register(names, proven(rule, f"the row {kind!r} of {names!r} ({where})"))
