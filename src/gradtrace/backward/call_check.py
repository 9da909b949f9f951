"""One call's rule against autograd on that call alone.

A rule is right or wrong in every precision, so both are run in float64, where rounding leaves nothing to argue about;
an operator without a kernel for float64 is compared in its own precision, and so are products at first. Random
operators cannot be run again, and a custom function's rule is its own backward: there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import MissingRule, NotOnTape
from ..jacobians import rules
from ..jacobians.rules.custom import custom
from ..jacobians.rules.table import Edge, differentiable
from ..recording.autograd_functions import CustomFunction
from ..recording.record import Call, Input, Record, Saved, Value
from .rounding import absolute, allowed, is_product, least, shaped, total


@dataclass(frozen=True)
class Off:
    """Where a rule and autograd differ most, in units of what rounding allows."""

    position: int
    index: tuple[int, ...]
    ours: float
    autograd: float
    bound: float


def off(call: Call, reached: Sequence[bool]) -> Off | None:
    """Compare a call's rule with autograd for a random cotangent; None where they agree, or cannot be compared.

    Args:
        call: what is run again.
        reached: which of its results have a cotangent.

    Raises:
        MissingRule: the rule says nothing about a result that depends on an argument.
    """
    if not comparable(call):
        return None
    with suppress(NotOnTape):  # the call that made an argument is missing, which is no fault of this one's rule
        own: tuple[Callable[[Call], Call], ...] = (lambda given: given,)
        # a function's results are those that were recorded, in their own precision
        precisions = own if isinstance(call.op, CustomFunction) else (widened, *own)
        if len(precisions) > 1 and any(is_product(s) for _, _, s in edges(call, reached)):
            with suppress(RuntimeError, NotImplementedError):  # the bulk of the work, where nothing is subtle
                if _off(call, reached) is None:
                    return None
        for precision in precisions:
            with suppress(RuntimeError, NotImplementedError):  # no kernel for float64; no derivative for this cotangent
                return _off(precision(call), reached)
    return None


def comparable(call: Call) -> bool:
    """Tell whether autograd can say something about a call that is not what its rule says anyway."""
    return repeatable(call) and bool(differentiable(call)) and rules.rule_of(call) is not custom


def repeatable(call: Call) -> bool:
    """Tell whether a call is one of the program's, and gives the same when it is run again."""
    drawn = torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ())
    return not drawn and not call.name.startswith("gradtrace.")


def kinds(record: Record, loss: Value) -> Iterator[tuple[Call, tuple[bool, ...]]]:
    """Give one call of each kind that can be compared, and which of its results lead to the loss.

    Calls are of one kind if operator, shapes, types and plain arguments are the same; the last one stands for them.
    """
    alive, seen = {loss.id}, set()
    for call in reversed(record.calls):
        reached = tuple(v is not None and v.id in alive for v in call.outputs)
        if not any(reached):
            continue
        followed = differentiable(call)
        alive.update(value.id for p in followed if (value := call.inputs[p].value) is not None)
        given = tuple((i.shape, i.stride, i.dtype) for i in call.inputs)
        kind = call.name, given, tuple(followed), reached, str(call.args), str(call.kwargs)
        if kind not in seen and comparable(call):
            seen.add(kind)
            yield call, reached


def edges(call: Call, reached: Sequence[bool]) -> list[Edge]:
    """Give the structures of a call towards what is followed.

    Raises:
        MissingRule: a result that is reached has none.
    """
    found = rules.structures(call)
    covered = {number for _, number, _ in found}
    missing = [n for n, there in enumerate(reached) if there and n not in covered]
    if missing and differentiable(call):
        raise MissingRule(f"the rule of {call.where} says nothing about its result number {missing[0]}")
    wanted = differentiable(call)
    return [edge for edge in found if edge[0] in wanted and edge[1] < len(reached) and reached[edge[1]]]


def vector_product(call: Call, cotangents: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Run a call again, and its backward for all that is followed at once: gradients by position.

    Asked for one of them alone, some of PyTorch's kernels end the process (group norm in channels-last).
    """
    wanted = differentiable(call)
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        leaves = [tensors[p].detach().requires_grad_() for p in wanted]
        for p, leaf in zip(wanted, leaves, strict=True):
            tensors[p] = leaf
        results = call.run(tensors)
        pairs = [(y, g) for y, g in zip(results, cotangents, strict=False) if y is not None and g is not None]
        pairs = [(y, g.to(y.dtype).reshape(y.shape)) for y, g in pairs if y.requires_grad]
        if not pairs:
            return {p: torch.zeros_like(leaf) for p, leaf in zip(wanted, leaves, strict=True)}
        found = torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    return {
        p: torch.zeros_like(leaf) if g is None else g.to_dense() if g.layout is not torch.strided else g
        for p, leaf, g in zip(wanted, leaves, found, strict=True)
    }


def _off(call: Call, reached: Sequence[bool]) -> Off | None:
    """Compare in the precision of the call as it is given."""
    g = [_random(v, n, call) if at else None for n, (v, at) in enumerate(zip(call.outputs, reached, strict=True))]
    expected = vector_product(call, g)
    ours = {p: torch.zeros_like(e, dtype=torch.float64) for p, e in expected.items()}
    bounds = {p: torch.full_like(e, least(e.dtype), dtype=torch.float64) for p, e in expected.items()}
    for position, number, s in edges(call, reached):
        cotangent = g[number]
        assert cotangent is not None
        seed, shape = shaped(cotangent, cotangent.shape), ours[position].shape
        ours[position] += total(s, seed).reshape(shape)
        bounds[position] += absolute(s, seed.abs()).reshape(shape) * allowed(s, call)
    if all(bool(((ours[p] - e).abs_() <= bounds[p]).all()) for p, e in expected.items()):
        return None
    noise = _noise(call, g, expected)  # of autograd's own formula: what is off by no more is not known any better
    found = [worst(p, ours[p], e, bounds[p] + noise[p]) for p, e in expected.items()]
    return next((f for f in found if f is not None), None)


def _noise(call: Call, g: Sequence[Tensor | None], expected: dict[int, Tensor]) -> dict[int, float]:
    """Measure how well autograd's own derivative is determined in floating point, by argument.

    It is linear, so parts of a cotangent must add up to the whole; and what was computed is right for arguments that
    differ from the given ones by rounding. A rule may add up as many parts as there are scalars in the results.
    """
    heads = torch.Generator().manual_seed(1)
    some = [None if c is None else c * torch.randint(2, c.shape, generator=heads).to(c.device) for c in g]
    rest = [None if c is None or s is None else c - s for c, s in zip(g, some, strict=True)]
    beside = replace(
        call, inputs=tuple(replace(i, saved=Saved.own(nudged(i.saved.get()))) if i.saved else i for i in call.inputs)
    )
    one, two = vector_product(beside, some), vector_product(beside, rest)
    parts = sum(v.numel for v in call.outputs if v is not None)
    apart = {p: (e.double() - one[p].double() - two[p].double()).abs() for p, e in expected.items()}
    return {p: float(a.max()) * parts if a.numel() else 0.0 for p, a in apart.items()}


def nudged(x: Tensor) -> Tensor:
    """Give the next float64 above or below each number, the same for equal numbers, so that ties stay ties."""
    if x.dtype is not torch.float64:
        return x
    bits = x.contiguous().view(torch.int64)
    step = 1 - 2 * (bits * -7046029254386353131 < 0).to(torch.int64)  # a hash's sign
    moved = (bits + step).view(torch.float64).reshape(x.shape)
    out = torch.empty_like(x)
    return out.copy_(torch.where((x == 0) | ~moved.isfinite(), x, moved))


def worst(position: int, ours: Tensor, autograd: Tensor, bound: Tensor) -> Off | None:
    """Give the entry that is furthest beyond its bound; None where all are within.

    Args:
        position: which argument.
        ours: float64; compared in autograd's own type.
        autograd, bound: of the same shape.
    """
    excess = beyond(ours, autograd, bound)
    if not excess.numel() or not bool((at := excess.argmax()) is not None and excess.flatten()[at] > 1):
        return None
    index = tuple(int(i) for i in torch.unravel_index(at, excess.shape))
    return Off(position, index, float(ours[index]), float(autograd[index]), float(bound[index]))


def beyond(ours: Tensor, autograd: Tensor, bound: Tensor) -> Tensor:
    """Give |ours - autograd| in units of the bound, 0 where they are equal, infinity where one is NaN."""
    rounded = ours.to(autograd.dtype)
    apart = (ours - autograd.to(torch.float64)).abs()
    share = (apart / bound).nan_to_num(nan=torch.inf)
    return share.masked_fill(rounded == autograd, 0.0).masked_fill(ours.isnan() | autograd.isnan(), torch.inf)


@cache
def _numbers() -> Tensor:
    """Draw normal numbers, as many as a prime, so that no axis of a tensor is likely to meet their period."""
    return torch.randn(65_537, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _random(value: Value | None, number: int, call: Call) -> Tensor:
    """Make a cotangent for a result, the same each time; drawing each of its numbers would take most of the time."""
    assert value is not None
    drawn = _numbers().roll(-1009 * number)
    repeated = drawn.repeat(-(-value.numel // len(drawn)) or 1)[: value.numel].reshape(value.shape)
    return repeated.to(call.inputs[0].device, value.dtype)


def widened(call: Call) -> Call:
    """Give the same call with arguments in float64; what it kept of its results is computed again."""
    new = replace(call, inputs=tuple(map(_wide, call.inputs)), results=(), outputs=())
    made = new.run()
    new.outputs = tuple(
        v if v is None or y is None else replace(v, dtype=y.dtype) for v, y in zip(call.outputs, made, strict=False)
    )
    for value in filter(None, new.outputs):
        value.call = new
    return new


def _wide(given: Input) -> Input:
    if not (given.dtype.is_floating_point or given.dtype.is_complex):
        return given
    dtype = torch.complex128 if given.dtype.is_complex else torch.float64
    saved = given.saved if given.saved is None or given.dtype is dtype else Saved.own(given.saved.get().to(dtype))
    return replace(given, dtype=dtype, saved=saved)
