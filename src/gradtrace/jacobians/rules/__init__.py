"""Rules: which structure the Jacobian of each operator has.

A rule is a row: `register(names, rule)`, where a rule is a function from a call to `(argument position,
output number, structure)` triples. It states what the derivative *is*, never what is done with it. Rows live
in the file of their family; operators that PyTorch tags as pointwise, or marks as views, need none.
"""

from __future__ import annotations

from functools import cache

from ...recording.record import Call, Gone
from . import (
    complex_numbers,
    constant,
    contraction,
    convolution,
    custom,
    dense,
    fourier,
    grouped,
    indexing,
    losses,
    normalisation,
    pointwise,
    reduction,
    resampling,
    rowwise,
    scattering,
    weights,
)
from .table import TABLE, Edge, Rule, register

__all__ = [
    "TABLE",
    "Edge",
    "Rule",
    "generic",
    "key",
    "nan_fills",
    "register",
    "served_by",
    "spreads_nan",
    "stated",
    "structures",
]

# by IEEE arithmetic whatever the kernel; a matrix product is not here, since some libraries skip factors of 0
NAN_SPREADS = {"add", "sub", "mul", "addcmul", "div", "neg", "exp", "tanh", "sigmoid", "relu"}
NAN_FILLS = {"_softmax", "_safe_softmax", "_log_softmax"}  # a row's sum is in every scalar of its result
NAN_SPREADS |= {*NAN_FILLS, "native_layer_norm", "native_batch_norm"}

_FAMILIES = (
    *(constant, contraction, convolution, indexing, losses, normalisation),
    *(reduction, resampling, rowwise, scattering, pointwise, dense),
    *(complex_numbers, fourier, grouped, weights),
)


def key(call: Call) -> str:
    """Name the row of a call: the bare name for PyTorch's own operators, "library.name" for all others.

    PyTorch's own operators on complex numbers have rows of their own: "complex.mul".
    """
    return _key(call.name, call.base, call.complex)


@cache
def _key(name: str, base: str, complex_numbers: bool) -> str:
    names = name.split(".")
    if names[0] != "aten":
        return ".".join(names[:2])
    return f"complex.{base}" if complex_numbers else base


def generic(call: Call) -> bool:
    """Tell whether a row or a tagged family covers an operator, so that no derivative is needed to know it."""
    return rule_of(call) is not dense.fallback


def rule_of(call: Call) -> Rule:
    """Find what serves a call: its row, else its tagged family, else the fallback."""
    complex_numbers = call.complex
    row = TABLE.get(_key(call.name, call.base, complex_numbers))
    if row is not None and not complex_numbers:
        return row
    pytorchs = call.name.startswith("aten.")
    if complex_numbers:
        return row if row is not None and pytorchs else _of_complex(call)
    if not pytorchs:
        return custom.custom if custom.is_custom(call) else _family(call)
    found = _FAMILIES_OF.get(call.name)
    if found is None:
        found = _FAMILIES_OF[call.name] = _family(call)
    return found


_FAMILIES_OF: dict[str, Rule] = {}  # of PyTorch's own operators, by name


def _family(call: Call) -> Rule:
    if indexing.is_view(call.op, call.base):
        return indexing.view
    return pointwise.pointwise if pointwise.is_pointwise(call.op) else dense.fallback


def _of_complex(call: Call) -> Rule:
    """Find what serves a call on complex numbers that has no row."""
    if indexing.moves_pairs(call):
        return indexing.view
    return complex_numbers.pointwise if pointwise.is_pointwise(call.op) else dense.fallback


def served_by(call: Call) -> str:
    """Say whether an exact rule or the dense fallback serves a call: "exact" or "fallback"."""
    rule = rule_of(call)
    written_out = rule is dense.fallback or (rule is custom.custom and not custom.covers(call))
    return "fallback" if written_out else "exact"


def stated(call: Call) -> bool:
    """Tell whether a row of this package serves a call, so that the kinds of its structures depend on no number."""
    return rule_of(call).__module__.startswith(__name__) and generic(call) and not custom.is_custom(call)


def spreads_nan(call: Call) -> bool:
    """Tell whether a NaN in any scalar of any argument surely makes one in the first result."""
    y = call.outputs[0] if call.outputs else None
    return call.base in NAN_SPREADS and y is not None and y.dtype.is_floating_point and 0 not in y.shape


def nan_fills(call: Call) -> int | None:
    """Give an axis of the first result along which a NaN in one scalar is in all others too; None if there is none."""
    y = call.outputs[0] if call.outputs else None
    if call.base not in NAN_FILLS or y is None or not y.shape or 0 in y.shape:
        return None
    return call.args[1] % len(y.shape)


def structures(call: Call) -> list[Edge]:
    """Give the structure of a call towards each of its arguments.

    Raises:
        MissingRule: no row, no generic family and no fallback covers the operator.
        NotKept: the call is a saved trace's.
    """
    if type(call.op) is Gone:
        call.op()
    return list(rule_of(call)(call))
