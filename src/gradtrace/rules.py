"""Add a rule for an operator (the public door to `jacobians.rules`; see docs/howto-rule.md)."""

from .jacobians.rules import TABLE, Edge, Rule, register
from .jacobians.rules.contraction import product
from .jacobians.rules.pointwise import pointwise

__all__ = ["TABLE", "Edge", "Rule", "pointwise", "product", "register"]
