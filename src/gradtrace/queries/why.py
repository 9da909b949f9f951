"""Why a parameter gets no gradient, or next to none.

The answer is about this forward pass, at this moment. Causes are looked for in the order of `CAUSES`, the surest ones
first; thresholds are those below, and a gradient that none of them is true of is called healthy, whatever its size.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..backward.nan_backwards import Gradients, gradients
from ..backward.several import ask
from ..backward.watched import Key, watch_strongest
from ..jacobians import rules
from ..kernels.reference import carried
from ..kernels.shared_exponent import Plane, Spikes
from ..recording.autograd_functions import CustomFunction
from ..recording.components import names_listed
from ..recording.layouts import unravelled
from ..recording.record import Call, Cut, Record, Value
from ..recording.replay import replay
from ..semirings.base import AbsSum, Max, Sum
from .departures import living
from .forest import Forest
from .paths import follow
from .zeros import of_zero

CAUSES = (
    "frozen",
    "not a leaf",
    "unused",
    "cut",
    "result unused",
    "nan",
    "infinite",
    "zero",
    "cancelled",
    "vanished",
    "healthy",
)
NOISE = 64  # roundings of the absolute terms, below which a sum of them is noise
SURE = 2.0**-9  # of the terms: what a sum comes to by chance, of numbers of few digits, is no noise
FAINT = 20.0  # powers of 2 below the largest gradient of all parameters
INDICES = {"max", "min", "sort", "topk", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin"}  # with values
SHOWN = 4


@dataclass(frozen=True)
class Why:
    """Why a parameter gets the gradient that it gets.

    Attributes:
        name: of the parameter.
        cause: one of `CAUSES`.
        said: a sentence.
        where: the places that are to blame, at file and line.
        layers: for what vanished: modules, and log2 of the strongest path's weight from the parameter to their ends.
    """

    name: str
    cause: str
    said: str
    where: tuple[str, ...] = ()
    layers: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.cause}: {self.said}", *(f"  at {place}" for place in self.where[:SHOWN])]
        more = len(self.where) - SHOWN
        lines += [f"  and {more} more places"] if more > 0 else []
        if self.layers:
            lines.append("  log2 of the strongest path's weight after each module on its way:")
            lines += [f"    {log2:9.2f}  {module or '(top)'}" for module, log2 in self.layers]
        return "\n".join(lines)


@dataclass(eq=False)
class Reasons:
    """What the answers of one trace share; each part is worked out when it is first needed.

    Args:
        record, loss: the tape.
        forest: best paths of the whole batch.
    """

    record: Record
    loss: Value
    forest: Forest
    _noise: dict[int, bool] = field(default_factory=dict)

    @cached_property
    def consumers(self) -> dict[int, list[Call]]:
        """Calls by the values that they use."""
        found: dict[int, list[Call]] = {}
        for call in self.record.calls:
            for value in dict.fromkeys(i.value for i in call.inputs):
                if value is not None:
                    found.setdefault(value.id, []).append(call)
        return found

    @cached_property
    def leading(self) -> set[int]:
        """Numbers of the calls from which the loss can be reached."""
        return {call.index for call in self.record.before(self.loss)}

    @cached_property
    def used(self) -> set[int]:
        """Numbers of the calls that autograd goes back through: those, and what made numbers that were overwritten."""
        found = set(self.leading)
        for value, call in reversed(self.record.overwritten):
            if call.index in found:
                found |= {before.index for before in self.record.before(value)}
        return found

    @cached_property
    def gradients(self) -> Gradients:
        """Ordinary gradients, as autograd has them."""
        return gradients(self.record, self.loss)

    @cached_property
    def sizes(self) -> dict[str, float]:
        """log2 of the largest |∂ℓ/∂θ| of each parameter, also where no float holds it."""
        leaves = list(self.record.leaves.values())
        found = ask(self.record, self.loss, leaves, [Sum], log2=True)[0]
        return {str(v.name): _largest(found[v.id]) for v in leaves if v.id in found}

    @cached_property
    def largest(self) -> float:
        """The largest of them that is finite."""
        return max((size for size in self.sizes.values() if size < math.inf), default=-math.inf)

    def live(self, value: Value) -> bool:
        """Tell whether a path of non-zero weight leads to the loss from any scalar of a leaf, or of what is dead.

        It tells so of what is computed from dead leaves, too.
        """
        if value is self.loss:
            return True
        return living(self.forest, value) > 0 if value.call is None else value.id in self._live

    @cached_property
    def _live(self) -> set[int]:
        """Ids of values from which a path leads to the loss, of those that are computed from dead leaves."""
        found = set[int]()

        def plane(key: Key, g: Plane) -> None:
            if bool((g.values if isinstance(g, Spikes) else g.data).any()):
                found.add(cast("int", key))

        def element(key: Key, g: Any) -> None:
            if bool((Max.carrier.log2(g.g) > -math.inf).any()):
                found.add(cast("int", key))

        of_dead = self.record.after([v for v in self.record.leaves.values() if not living(self.forest, v)])
        watch_strongest(self.record, self.loss, plane, element, of_dead, among=of_dead)
        return found

    def reached(self, value: Value) -> bool:
        """Tell whether autograd takes the loss to be computed from a value."""
        return any(call.index in self.used for call in self.consumers.get(value.id, ()))

    def noise(self, value: Value) -> bool:
        """Tell whether what meets at a value cancels, up to rounding."""
        if value.id not in self._noise:
            grad, terms = self.gradients.of.get(value.id), self._terms(value)
            kind = torch.finfo(value.dtype)
            held = terms > value.numel * kind.tiny / kind.eps  # else it may have underflowed
            size = float(grad.double().abs().sum()) if grad is not None else math.inf
            self._noise[value.id] = held and terms < math.inf and size <= noise_of(value.dtype) * terms
        return self._noise[value.id]

    def _terms(self, value: Value) -> float:
        """Add up |w · g| over all edges that leave a value."""
        total = 0.0
        for call in self.consumers.get(value.id, ()):
            if call.index not in self.leading:
                continue
            for position, number, structure in rules.structures(call):
                made = call.outputs[number]
                grad = self.gradients.of.get(made.id) if made is not None else None
                if call.inputs[position].value is value and grad is not None:
                    total += float(carried(structure, AbsSum.carrier, grad.abs().double().unsqueeze(0)).sum())
        return total


def why(reasons: Reasons, name: str) -> Why:
    """Say why a parameter gets no gradient, or next to none, or that it gets one.

    Args:
        name: of a leaf, or of a frozen parameter.
    """
    record = reasons.record
    if name in record.frozen:
        return Why(name, *_frozen(record, name))
    value = record.leaves[name]
    if not reasons.reached(value):
        return Why(name, *_unreached(reasons, value))
    for look in (_nan, _infinite, _zero, _cancelled):
        found = look(reasons, value)
        if found is not None:
            return Why(name, *found)
    size = reasons.sizes.get(name, -math.inf)
    if size < max(reasons.largest - FAINT, least_held(value.dtype)):
        return _vanished(reasons, value)
    share = float((reasons.forest.log2[value.id].amax(0) == -torch.inf).double().mean())
    dead = f"{share:.1%}" if share else "none"
    return Why(name, "healthy", f"its largest gradient is 2^{size:.1f}; {dead} of its scalars have no path")


Found: TypeAlias = tuple[str, str, tuple[str, ...]]


def _frozen(record: Record, name: str) -> Found:
    if name in record.derived:
        return (
            "not a leaf",
            "it is computed from other tensors, and they get the gradient; no optimizer can step it",
            (),
        )
    return "frozen", "requires_grad is False", ()


def _unreached(reasons: Reasons, value: Value) -> Found:
    """Say where a value that the loss was not computed from is lost."""
    seen, waiting, ends = {value.id}, [value], list[Call]()
    while waiting:
        for call in reasons.consumers.get(waiting.pop().id, ()):
            made = [v for v in call.outputs if v is not None and v.differentiable and v.id not in seen]
            if not any(v is not None and v.differentiable for v in call.outputs):
                ends.append(call)
            seen.update(v.id for v in made)
            waiting += made
    cuts = _cuts(reasons, seen)
    if cuts:
        return "cut", "autograd does not follow it through detach, .data, numpy or no_grad", _unique(map(_place, cuts))
    last = [c for n in seen for c in reasons.consumers.get(n, ()) if not _goes_on(reasons, c)]
    indices = [c for c in last if c.base in INDICES and len(c.outputs) > 1]
    for calls, what in (ends, "numbers that"), (indices, "indices, beside values that are not used, which"):
        if calls:
            names = names_listed(dict.fromkeys(call.name for call in calls))
            return "cut", f"{names} gives {what} have no derivative", _unique(call.where for call in calls)
    if not last:
        return "unused", "nothing in the recorded forward pass uses it while it requires a gradient", ()
    said = (
        "it is used, and nothing that autograd follows leads on from the result: it is not used, or by what shows as "
        "no operator, such as tolist(), detach_() or nn.Parameter(…)"
    )
    return "result unused", said, _unique(c.where for c in last)


def _goes_on(reasons: Reasons, call: Call) -> bool:
    return any(v is not None and v.id in reasons.consumers for v in call.outputs)


def _cuts(reasons: Reasons, values: set[int]) -> list[Cut]:
    """List where autograd stops following values, without what operators detach themselves to save it."""
    by_value: dict[int, list[Cut]] = {}
    for cut in reasons.record.cuts:
        if cut.value in values:
            by_value.setdefault(cut.value, []).append(cut)
    makers = {v.id: c for c in reasons.record.calls for v in c.outputs if v is not None and v.id in by_value}
    return [cut for n, cuts in by_value.items() for cut in cuts[_own_detaches(makers.get(n), cuts) :]]


def _own_detaches(call: Call | None, cuts: Sequence[Cut]) -> int:
    """Count how often an operator detaches its own result."""
    if call is None or not any("detach" in cut.operator for cut in cuts):
        return 0
    with _Detaches() as counted:
        replay(call)
    return counted.number


class _Detaches(TorchDispatchMode):
    """Count calls of detach on what autograd follows."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and run."""
        del types
        if func is torch.ops.aten.detach.default and args[0].requires_grad and not args[0].is_leaf:
            self.number += 1
        return func(*args, **(kwargs or {}))


def _place(cut: Cut) -> str:
    file, _, line = cut.source.rpartition(":")
    code = linecache.getline(file, int(line or 0)).strip()
    inside = f" in {cut.module}" if cut.module else ""
    return f"{cut.operator}{inside} ({cut.source})" + (f": {code}" if code else "")


def _unique(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(places))


def _downstream(reasons: Reasons, value: Value, passes: Callable[[Value], bool]) -> list[tuple[Value, Call]]:
    """List (value, consumer) on the way from a value to the loss, through values that `passes` holds of."""
    seen, waiting, out = {value.id}, [value], list[tuple[Value, Call]]()
    while waiting:
        here = waiting.pop()
        for call in reasons.consumers.get(here.id, ()):
            if call.index not in reasons.leading:
                continue
            out.append((here, call))
            for made in call.outputs:
                if made is not None and made.id not in seen and passes(made):
                    seen.add(made.id)
                    waiting.append(made)
    return out


def _nan(reasons: Reasons, value: Value) -> Found | None:
    grad = reasons.gradients.of.get(value.id)
    if grad is None or not grad.isnan().any():
        return None
    calls = {call.index for _, call in _downstream(reasons, value, lambda made: True)}
    said = [text for index, text in reasons.gradients.sick.items() if index in calls]
    return "nan", "its gradient is NaN, though no number of the forward pass is", tuple(said)


def _infinite(reasons: Reasons, value: Value) -> Found | None:
    """Say which operators' derivatives are infinite."""

    def infinite(of: Value | None) -> bool:
        grad = None if of is None else reasons.gradients.of.get(of.id)
        return grad is not None and bool(grad.isinf().any())

    if not infinite(value):
        return None
    ways = _downstream(reasons, value, infinite)
    born = [call for here, call in ways if infinite(here) and not any(map(infinite, call.outputs))]
    names = names_listed(dict.fromkeys(call.title for call in born)) or "an operator"
    return "infinite", f"its gradient is infinite: the derivative of {names} is", _unique(c.where for c in born)


def _zero(reasons: Reasons, value: Value) -> Found | None:
    """Say which operators have derivative 0, where no path of non-zero weight is left."""
    if reasons.live(value):
        return None
    ways = _downstream(reasons, value, lambda made: not reasons.live(made))
    sick = [(here, call) for here, call in ways if any(v is not None and reasons.live(v) for v in call.outputs)]
    if sick and all(unanswered(here, call) for here, call in sick):
        names = names_listed(dict.fromkeys(call.name for _, call in sick))
        return "cut", f"the backward of {names} gives None for it", _unique(call.where for _, call in sick)
    zeros = [of_zero(here, call) for here, call in sick]
    said, origins = [zero.said for zero in zeros], [z.origin.where for z in zeros if isinstance(z.origin, Call)]
    lost = _lost(reasons, [value, *(v for _, call in ways for v in call.outputs if v is not None)])
    said += [f"{call.base} overwrites it" for call in lost]
    return (
        "zero",
        "; ".join(dict.fromkeys(said)),
        _unique((*origins, *(c.where for _, c in sick), *(c.where for c in lost))),
    )


def unanswered(here: Value, call: Call) -> bool:
    """Tell whether a custom function's backward gives None for an argument."""
    if not isinstance(call.op, CustomFunction):
        return False
    none = replay(call).unanswered()
    return all(p in none for p, given in enumerate(call.inputs) if given.value is here)


def _lost(reasons: Reasons, values: Sequence[Value]) -> list[Call]:
    """List the calls that have overwritten some values, or what is made of them."""
    seen, waiting = {v.id for v in values}, list(values)
    while waiting:
        for call in reasons.consumers.get(waiting.pop().id, ()):
            made = [v for v in call.outputs if v is not None and v.id not in seen]
            seen.update(v.id for v in made)
            waiting += made
    return [call for value, call in reasons.record.overwritten if value.id in seen and call.index in reasons.used]


def _cancelled(reasons: Reasons, value: Value) -> Found | None:
    """Say at which values all that a parameter sends on cancels."""
    noisy = list[Value]()

    def passes(made: Value) -> bool:
        if not reasons.noise(made):
            return True
        noisy.append(made)
        return False

    if reasons.noise(value):
        noisy.append(value)
    elif any(v is reasons.loss for _, c in _downstream(reasons, value, passes) for v in c.outputs):
        return None
    if not noisy:
        return None
    said = "what reaches it from the loss adds up to 0, up to rounding: the absolute terms are at least "
    places = _unique(v.call.where if v.call is not None else str(v) for v in noisy)
    return "cancelled", said + f"{min(1 / noise_of(v.dtype) for v in noisy):,.0f} times as large", places


def least_held(dtype: torch.dtype) -> float:
    """Give log2 of the least number above 0 that a type has."""
    kind = torch.finfo(dtype)
    return math.log2(kind.tiny) + math.log2(kind.eps)


def noise_of(dtype: torch.dtype) -> float:
    """Give how small a sum is beside its absolute terms that is taken for rounding."""
    return min(NOISE * torch.finfo(dtype).eps, SURE)


def _vanished(reasons: Reasons, value: Value) -> Why:
    """Say where most is lost of a gradient that is next to none beside the largest."""
    name, log2 = str(value.name), reasons.forest.log2[value.id].amax(0)
    path = follow(reasons.forest, value, unravelled(int(log2.reshape(-1).argmax()), value.shape))
    assert path is not None
    before = [0.0, *(step.log2_weight for step in path.steps)]
    losses = [step.log2_weight - was for was, step in zip(before, path.steps, strict=False)]
    lost, worst = min(losses), path.steps[losses.index(min(losses))]
    size = reasons.sizes.get(name, -math.inf)
    beside = f"that of others 2^{reasons.largest:.1f}"
    if size >= reasons.largest - FAINT:
        beside = f"and the least that {value.dtype} holds is 2^{least_held(value.dtype):.0f}"
    said = (
        f"its largest gradient is 2^{size:.1f}, {beside}; on its strongest path most is lost in {worst.operator}: "
        f"2^{lost:.1f}"
    )
    inside = f" in {worst.module}" if worst.module else ""
    layers: dict[str, float] = {}
    for step in path.steps:
        layers[step.module] = step.log2_weight
    return Why(name, "vanished", said, (f"{worst.operator}{inside} ({worst.source})",), tuple(layers.items()))


def _largest(log2: Tensor) -> float:
    return float(log2.max()) if log2.numel() else -math.inf


def unused(reasons: Reasons) -> dict[str, list[str]]:
    """List the parameters that the loss was not computed from, by cause."""
    found: dict[str, list[str]] = {}
    lost = [n for n, v in reasons.record.leaves.items() if not reasons.reached(v) and v is not reasons.loss]
    for name in (*lost, *sorted(reasons.record.frozen)):
        found.setdefault(why(reasons, name).cause, []).append(name)
    return {cause: found[cause] for cause in CAUSES if cause in found}
