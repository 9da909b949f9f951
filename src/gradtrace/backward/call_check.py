"""One call's rule against autograd on that call alone.

A rule is right or wrong in every precision, so both are run in float64, where rounding leaves nothing to argue about;
an operator without a kernel for float64 is compared in its own precision, and so are products at first. What does the
same to each slice of its arguments is compared on a few, and a view by where it lies. Random operators cannot be run
again, and a custom function's rule is its own backward: there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import MissingRule, NotOnTape
from ..jacobians import rules
from ..jacobians.rules.custom import custom
from ..jacobians.rules.indexing import is_view
from ..jacobians.rules.pointwise import is_pointwise
from ..jacobians.rules.table import Edge, differentiable
from ..jacobians.structure import Gather, Placed, Scatter, Strided
from ..recording.autograd_functions import CustomFunction
from ..recording.record import Call, Input, Record, Saved, Slot, Value
from ..recording.replay import Replay, replay
from ..recording.storage import layout_of
from .added import Added, Part
from .rounding import is_product

ENOUGH = 4096  # scalars of an argument of which a part will do
Cut: TypeAlias = dict[int, int]  # by argument, the axis along which an operator does the same to each slice
# of the operators beside pointwise ones
ENUMERATED: dict[str, Sequence[Cut]] = {
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "native_layer_norm"), ({0: 0}, {0: 1})),
    **dict.fromkeys(("native_batch_norm", "native_group_norm", "convolution"), ({0: 0},)),
    "mm": ({0: 0}, {1: 1}),
    "addmm": ({1: 0}, {2: 1, 0: -1}),
    "bmm": ({0: 0, 1: 0},),
    "baddbmm": ({0: 0, 1: 0, 2: 0},),
    "nll_loss_forward": ({0: 0, 1: 0},),
    "embedding": ({1: 0}, {0: 1}),
}
PLAIN = {int, float, bool, str, type(None)}  # of arguments
MOVED = (Strided, Placed, Gather, Scatter)  # structures without weights, as exact in one precision as in another


@dataclass(frozen=True)
class Off:
    """Where a rule and autograd differ most, in units of what rounding allows."""

    position: int
    index: tuple[int, ...]
    ours: float
    autograd: float
    bound: float


def off(call: Call, reached: Sequence[bool], *, whole: bool = False) -> Off | None:
    """Compare a call's rule with autograd for a random cotangent; None where they agree, or cannot be compared.

    Args:
        call: what is run again.
        reached: which of its results have a cotangent.
        whole: whether some of its rows do not stand for all of them.

    Raises:
        MissingRule: the rule says nothing about a result that depends on an argument.
    """
    if not comparable(call):
        return None
    with suppress(RuntimeError, NotImplementedError):
        if shown(call, reached):
            return None
    with suppress(NotOnTape):  # the call that made an argument is missing, which is no fault of this one's rule
        # a function's results are those that were recorded, in their own precision
        precisions = (own,) if isinstance(call.op, CustomFunction) else (widened, own)
        attempts = [partial(precision, call) for precision in precisions]
        for quick in _quick(call, reached, whole) if len(precisions) > 1 else ():
            with suppress(RuntimeError, NotImplementedError):
                if _off(*quick(), reached) is None:
                    return None
        for attempt in attempts:
            with suppress(RuntimeError, NotImplementedError):  # no kernel for float64; no derivative for this cotangent
                return _off(*attempt(), reached)
    return None


def _quick(call: Call, reached: Sequence[bool], whole: bool) -> Iterator[Callable[[], tuple[Call, Replay]]]:
    """Give cheaper ways to find that a rule is right: where it is found wrong, the whole call decides."""
    few = None if whole else few_slices(call)
    if few is not None:
        yield partial(widened, few)
    plain = [s for _, _, s in edges(call, reached)]
    if any(map(is_product, plain)) or all(isinstance(s, MOVED) for s in plain):
        yield partial(own, call)  # the bulk of the work, where nothing is subtle


def shown(call: Call, reached: Sequence[bool]) -> bool:
    """Tell whether a call is a view whose results lie in a plain argument where the rule says."""
    if call.complex or not is_view(call.op, call.base) or len(call.inputs) != 1:
        return False
    x = torch.empty(call.inputs[0].shape, dtype=call.inputs[0].dtype)
    made, memory = call.run([x]), x.untyped_storage().data_ptr()
    return all(
        isinstance(s, Strided)
        and (y := made[number]) is not None
        and (y.untyped_storage().data_ptr(), layout_of(y), y.is_neg()) == (memory, s.layout, False)
        for _, number, s in edges(call, reached)
    )


def few_slices(call: Call) -> Call | None:
    """Give a call of the same operator on a few of the slices that it works on one by one; None if there are few."""
    few = call
    for cut in _cuts(call):
        few = _first(few, cut) or few
    return None if few is call else few


def _cuts(call: Call) -> Sequence[Cut]:
    """Give the axes along which an operator does the same to each slice."""
    y = call.outputs[0]
    if not is_pointwise(call.op) or y is None:
        return ENUMERATED.get(call.base, ())
    axes = range(-len(y.shape), 0)
    return [{p: d for p, x in enumerate(call.inputs) if len(x.shape) >= -d and x.shape[d] != 1} for d in axes]


def _first(call: Call, cut: Cut) -> Call | None:
    """Give a call on the first slices of its arguments along some axes; None if there are few, or not equally many."""
    given = [(call.inputs[p], axis) for p, axis in cut.items() if p < len(call.inputs)]
    if not given or any(
        x.saved is None or x.dtype.is_complex or not -len(x.shape) <= axis < len(x.shape) for x, axis in given
    ):
        return None
    shape, n = given[0][0].shape, given[0][0].shape[given[0][1]]
    count = max(2, ENOUGH // max(1, prod(shape) // max(1, n)))
    if n <= count or any(x.shape[axis] != n for x, axis in given):
        return None
    inputs = [_narrowed(x, cut[p], count) if p in cut else x for p, x in enumerate(call.inputs)]
    return replace(call, inputs=tuple(inputs), results=())


def _narrowed(given: Input, axis: int, count: int) -> Input:
    """Give the first of an argument's slices."""
    assert given.saved is not None
    some = given.saved.get().narrow(axis, 0, count)
    return replace(given, shape=tuple(some.shape), saved=Saved.own(some))


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
        view = is_view(call.op, call.base) and call.base != "as_strided"  # which says the same however x lies
        given = tuple((i.shape, None if view else i.stride, i.dtype) for i in call.inputs)
        kind = call.name, given, tuple(followed), reached, _plain(call.args), str(call.kwargs) if call.kwargs else ""
        if kind not in seen and comparable(call):
            seen.add(kind)
            yield call, reached


def _plain(given: Any) -> Any:
    """Give arguments in a form that can be compared: where a tensor was, the number of it."""
    kind = type(given)
    if kind is tuple or kind is list:
        return kind.__name__, *map(_plain, given)
    if kind is Slot:
        return "tensor", given.position
    return given if kind in PLAIN else str(given)


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


def own(call: Call) -> tuple[Call, Replay]:
    """Run a call again in its own precision."""
    return call, replay(call)


def widened(call: Call) -> tuple[Call, Replay]:
    """Run the same call on arguments in float64; its results, and what it keeps of them, are what that gives."""
    new = replace(call, inputs=tuple(map(_wide, call.inputs)))
    again = replay(new)
    made = list(zip(call.outputs, again.results, strict=False))
    new.outputs = tuple(
        v if v is None or y is None else replace(v, dtype=y.dtype, shape=tuple(y.shape)) for v, y in made
    )
    new.results = () if call.complex else tuple(None if y is None else Saved.own(y.detach()) for _, y in made)
    for value in filter(None, new.outputs):
        value.call = new
    return new, again


def _wide(given: Input) -> Input:
    if not (given.dtype.is_floating_point or given.dtype.is_complex):
        return given
    dtype = torch.complex128 if given.dtype.is_complex else torch.float64
    saved = given.saved if given.saved is None or given.dtype is dtype else Saved.own(given.saved.get().to(dtype))
    return replace(given, dtype=dtype, saved=saved)


def _off(call: Call, again: Replay, reached: Sequence[bool]) -> Off | None:
    """Compare a call's rule with what its replay says."""
    g = [_random(v, n, call) if at else None for n, (v, at) in enumerate(zip(call.outputs, reached, strict=True))]
    expected = again.vector_product(g)
    ours = {p: Added(tuple(e.shape), e.dtype, swift=True) for p, e in expected.items()}
    for position, number, s in edges(call, reached):
        cotangent = g[number]
        assert cotangent is not None
        ours[position].add(Part(s, call, cotangent))
    beyond = [p for p, e in expected.items() if not ours[p].fit(e).used <= 1]
    if not beyond:
        return None
    noise = _noise(call, g, expected)  # of autograd's own formula: what is off by no more is not known any better
    found = [worst(p, ours[p].sum().double(), expected[p], ours[p].slack() + noise[p]) for p in beyond]
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
    again = replay(beside)
    one, two = again.vector_product(some), again.vector_product(rest)
    parts = sum(v.numel for v in call.outputs if v is not None)
    apart = {p: (e.double() - one[p].double() - two[p].double()).abs() for p, e in expected.items()}
    known = {p: a.nan_to_num(nan=0.0, posinf=0.0) for p, a in apart.items()}  # ∞ - ∞ says nothing of other entries
    return {p: float(a.max()) * parts if a.numel() else 0.0 for p, a in known.items()}


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


PERIOD = 65_537  # a prime, so that no axis of a tensor is likely to meet it


@cache
def _numbers() -> Tensor:
    """Draw normal numbers, twice the same ones, so that any start has as many after it."""
    drawn = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat((drawn, drawn))


def _random(value: Value | None, number: int, call: Call) -> Tensor:
    """Make a cotangent for a result, the same each time; drawing each of its numbers would take most of the time."""
    assert value is not None
    start, n = 1009 * number % PERIOD, value.numel
    drawn = _numbers()[start : start + min(n, PERIOD)]
    repeated = drawn if n <= PERIOD else drawn.repeat(-(-n // PERIOD))[:n]
    return repeated.to(call.inputs[0].device, value.dtype).reshape(value.shape)
