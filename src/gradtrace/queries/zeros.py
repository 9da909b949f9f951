"""Why a call's derivative is 0: what is said of it, and where the zeros come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File

from ..recording.record import Call, Input, Value

FLAT = {"floor", "ceil", "round", "sign", "sgn", "trunc", "fix", "heaviside", "bernoulli"}
MULTIPLYING = {"mul", "div", "mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot"}
MULTIPLYING |= {"linear", "convolution", "_convolution", "addcmul", "addcdiv", "prod", "lerp"}
OFF = {"relu", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max", "hardsigmoid", "hardswish"}
SATURATING = {"sigmoid", "tanh", "_softmax", "_safe_softmax", "_log_softmax", "erf", "elu", "celu", "gelu"}
CHOOSING = {"index", "embedding", "gather", "select", "slice", "max", "min", "amax", "amin", "topk", "sort"}
CHOOSING |= {"index_select", "where", "masked_fill", "max_pool2d_with_indices", "maximum", "minimum", "fmax", "fmin"}
PLACING = {"cat", "stack", "overlay", "hstack", "vstack", "block_diag"}  # whose derivative is 1
FARTHEST = 50  # calls that are gone back through to where zeros come from


@dataclass(frozen=True)
class Zero:
    """Why no path leads from a value through a call.

    Attributes:
        said: a sentence, without a place.
        origin: the call, or the leaf, that is to blame: of a factor that is 0 what has made it so.
        short: what is to be said of the origin after its name.
    """

    said: str
    origin: Call | Value
    short: str

    def told(self, *, placing: bool = True) -> str:
        """Say what is to blame, and where: in which module, too, or at which line alone."""
        if isinstance(self.origin, Call):
            name = placed(self.origin) if placing else self.origin.title
            return f"{name} {self.short} ({at(self.origin)})"
        return f"{self.origin} {self.short}"


def of_zero(here: Value, call: Call) -> Zero:
    """Say why the derivative of a call towards one of its arguments is 0."""
    base = call.base
    if not here.numel:
        return _of_none(f"{base} is of no numbers at all: {here} is empty", here)
    if base in MULTIPLYING and (found := _nought(here, call)) is not None:
        return found
    if base in FLAT:
        return Zero(f"the derivative of {base} is 0 everywhere", call, "has derivative 0 everywhere")
    if base in OFF:
        return Zero(f"{base} is off: all of its arguments are where it is constant", call, "is off everywhere")
    if "softmax" in base and here.shape and here.shape[int(call.args[1])] == 1:
        return Zero(f"{base} over one element is constant", call, "over one element is constant")
    if base in SATURATING:
        said = "is saturated: its derivative is 0 in this precision"
        return Zero(f"{base} {said}", call, said)
    if base in CHOOSING:
        return Zero(f"{base} chooses none of the scalars that have a path", call, "chooses none of its scalars")
    if base in PLACING:
        return Zero(f"what comes after {base} uses nothing of it", call, "is followed by what uses nothing of it")
    return Zero(
        f"the derivative of {base} is 0 for all of its scalars", call, "has derivative 0 for all of its scalars"
    )


def _of_none(said: str, value: Value) -> Zero:
    """Find what has left a value without numbers."""
    origin = _back(value, lambda given: given.value is not None and not given.value.numel)
    return Zero(said, origin, "picks nothing" if isinstance(origin, Call) else "is empty")


def _nought(here: Value, call: Call) -> Zero | None:
    """Name the factor of a product that is 0."""
    first = 1 if call.base.startswith(("add", "_add", "baddbmm")) else 0  # what is added is no factor
    for given in call.inputs[first:]:
        value = given.value
        if value is here or not _is_nought(given):
            continue
        named = "a tensor" if value is None else source_of(value)
        said = f"{call.base} multiplies it by {named}, which is 0 everywhere"
        if value is not None and not value.numel:
            return _of_none(said, value)
        origin = call if value is None else _back(value, _is_nought)
        if origin is call:
            return Zero(said, call, "multiplies by zeros")
        if isinstance(origin, Value):
            return Zero(said, origin, "is 0 everywhere")
        if origin.base in OFF:
            return Zero(f"{said}: {origin.where} is off", origin, "is off everywhere")
        return Zero(f"{said}: {origin.where} gives it", origin, "gives 0 everywhere")
    if any(type(a) in (int, float) and a == 0 for a in call.args):
        return Zero(f"{call.base} multiplies it by the number 0", call, "multiplies by the number 0")
    return None


def _is_nought(given: Input) -> bool:
    return given.dtype.is_floating_point and not given.tensor().count_nonzero()


def _back(value: Value, so: Callable[[Input], bool]) -> Call | Value:
    """Go back to the call, or the leaf, that is the first of which something holds that holds of a value."""
    for _ in range(FARTHEST):
        if value.call is None:
            return value
        before = next(
            (i.value for i in value.call.inputs if i.value is not None and i.value.differentiable and so(i)), None
        )
        if before is None:
            return value.call
        value = before
    assert value.call is not None
    return value.call


def source_of(value: Value) -> str:
    """Name a value by the parameter that it is a view of, if it is."""
    while value.name is None and value.call is not None and len(value.call.inputs) == 1:
        before = value.call.inputs[0].value
        if before is None or not getattr(value.call.op, "is_view", False):
            break
        value = before
    return str(value)


def placed(call: Call) -> str:
    """Name an operator call by its module, or by the one before it.

    A call at the top has none, and comes after what made its argument.
    """
    base = call.title
    if call.module:
        return f"{base} in {call.module}"
    makers = [i.value.call for i in call.inputs if i.value is not None and i.value.call is not None]
    after = next((m.module for m in makers if m.module), "")
    return f"{base} after {after}" if after else base


def briefly(where: str) -> str:
    """Say a place with the operator's bare name and without folders.

    >>> briefly("aten.mm.default#9 in layers.0 (/home/me/model.py:31) and 2 more calls there")
    'mm in layers.0 (model.py:31) and 2 more calls there'
    """
    place = re.sub(r"\((?:[^()]*/)?([^/()]+:\d+)\)", r"(\1)", where)
    return re.sub(r"^aten\.(\w+?)_?\.\w+(#\d+)?", r"\1", place)


def at(call: Call) -> str:
    """Give the line of a call, without the folders of its file."""
    file, _, line = call.source.rpartition(":")
    return f"{File(file).name}:{line}"
