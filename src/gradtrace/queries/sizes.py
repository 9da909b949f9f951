"""How large a tape is, as far as that decides what a question costs: read off its calls, without computing anything."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from math import prod

from ..recording.record import Call, Record, Value

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "_addmm_activation"}
CONVOLUTIONS = {"convolution", "_convolution"}
ROWS = {"_softmax", "_log_softmax", "_safe_softmax", "native_layer_norm", "native_batch_norm", "_fused_rms_norm"}
# pointwise, and as dear: their derivative is a formula of several operators, of which none is saved
FORMULAS = {"gelu", "silu", "mish", "softplus", "elu", "celu", "erf", "pow", "log_sigmoid_forward", "hardswish"}
# reading a few scalars of a large leaf: what is carried to the others are zeros, which take no memory
READING = {"embedding", "index", "index_select", "gather", "select", "slice", "narrow", "split", "unbind", "take"}
ROWS |= {"_native_batch_norm_legit", "native_group_norm", "cumsum", "logsumexp", "linalg_vector_norm"}


@dataclass
class Sizes:
    """What there is on the way from some leaves to the loss.

    Attributes:
        width: bytes of a number in a pass.
        examples: how many there are, at least 1.
        calls: operator calls.
        products, convolutions: multiplications of a forward pass in them.
        patches: scalars that the largest convolution reads, each as often as it does.
        rows: scalars that softmaxes, norms, and functions whose derivative is as dear read.
        scalars: that all other calls read or give, views left out.
        largest: scalars of the largest leaf or result.
        leaves: scalars of leaves that calls read; `each`: that one example has of its own, also of what is made of
            leaves alone.
        uses: the same, each time that a call takes them.
        values: scalars of results, views left out.
        chosen: scalars whose winner is stored.
        live: most scalars of results that are carried at one time.
    """

    width: int
    examples: int = 1
    calls: int = 0
    products: float = 0.0
    convolutions: float = 0.0
    patches: float = 0.0
    rows: float = 0.0
    scalars: float = 0.0
    largest: float = 0.0
    leaves: float = 0.0
    each: float = 0.0
    uses: float = 0.0
    values: float = 0.0
    chosen: float = 0.0
    live: float = 0.0


def sizes(record: Record, loss: Value, leaves: Iterable[Value] | None = None) -> Sizes:
    """Measure a tape, or the part of it that some leaves lead to.

    Args:
        leaves: that are asked about; None: all.
    """
    asked = [*record.leaves.values()] if leaves is None else [*leaves]
    among = record.after(asked) if leaves is not None else None
    calls = [c for c in record.before(loss) if among is None or any(v is not None and v.id in among for v in c.outputs)]
    found = Sizes(record.precision(loss).itemsize, record.examples or 1, len(calls))
    outer = {v.id for v in record.example_values}
    alone, read = {v.id for v in asked} - outer, dict[int, float]()
    for call in calls:
        made = _made(call)
        _add_uses(found, call, made, alone, read)
        if not getattr(call.op, "is_view", False):
            found.values += made
            found.largest = max(found.largest, made)
            _add_work(found, call, made)
    for leaf in asked:
        dense, few = read.get(leaf.id, 0.0), read.get(~leaf.id, 0.0)
        size = float(prod(leaf.shape))
        found.leaves += min(size, dense + few)
        found.each += min(size, dense + few / found.examples)
        found.largest = max(found.largest, min(size, dense + few))
    found.live, found.chosen = _live(calls, loss, among), _chosen(calls, among)
    return found


def at_most(record: Record, loss: Value) -> Sizes:
    """Give no less than `sizes` of whatever leaves, in a fraction of its time; of what takes time, nothing."""
    values = largest = patches = 0.0
    for call in record.calls:
        made = _made(call)
        values += made
        largest = max(largest, made)
        if call.base in CONVOLUTIONS:
            patches = max(patches, _patches(call, made))
    each = [float(prod(leaf.shape)) for leaf in record.leaves.values()]
    leaves = sum(each)
    return Sizes(
        record.precision(loss).itemsize, record.examples or 1, len(record.calls), patches=patches,
        largest=max(largest, *each, 0.0), leaves=leaves, each=leaves + values, values=values, chosen=leaves + values,
        live=1.0 + values,
    )  # fmt: skip


def _made(call: Call) -> float:
    return float(sum([prod(v.shape) for v in call.outputs if v is not None]))


def _add_uses(found: Sizes, call: Call, made: float, alone: set[int], read: dict[int, float]) -> None:
    """Count how much calls read of leaves (by id; of some scalars, by its complement), and what is made of them.

    Args:
        alone: ids of leaves, and of what is made of them and nothing else; completed.
    """
    pure, view = True, getattr(call.op, "is_view", False)
    for given in call.inputs:
        if given.value is not None and given.value.id in alone:
            few = call.base in READING
            amount = made / found.examples if few else float(prod(given.shape))
            found.uses += 0.0 if view else amount
            at = ~given.value.id if few else given.value.id
            read[at] = read.get(at, 0.0) + (made if few else amount)
        elif given.value is not None or given.constant is not None:
            pure = False
    if pure:
        alone.update([v.id for v in call.outputs if v is not None])
        found.each += 0.0 if view else made


def _add_work(found: Sizes, call: Call, made: float) -> None:
    """Count what the derivatives of a call have to do."""
    base = call.base
    if base in PRODUCTS:
        shape = call.inputs[1 if "add" in base and len(call.inputs) > 2 else 0].shape
        found.products += made * (shape[-1] if shape else 1)
    elif base in CONVOLUTIONS:
        weight = call.inputs[1].shape
        found.convolutions += made * prod(weight[1:])
        found.patches = max(found.patches, _patches(call, made))
    else:
        read = max(made, *[prod(i.shape) for i in call.inputs[:1]], 0.0)
        if base in ROWS or base in FORMULAS:
            found.rows += read
        else:
            found.scalars += read


def _patches(call: Call, made: float) -> float:
    """Count the scalars that a convolution reads, each as often as it does."""
    weight = call.inputs[1].shape
    return made / max(1, weight[0]) * prod(weight[1:])


def _live(calls: list[Call], loss: Value, among: Container[int] | None) -> float:
    """Count what a walk back carries at one time."""
    here, now, most = {loss.id: 1.0}, 1.0, 0.0
    for call in reversed(calls):
        for given in call.inputs:
            value = given.value
            if value is None or not value.differentiable or (among is not None and value.id not in among):
                continue
            if value.id not in here and value.call is not None:
                here[value.id] = size = float(prod(value.shape))
                now += size
        most = max(most, now)
        for value in call.outputs:
            if value is not None:
                now -= here.pop(value.id, 0.0)
    return most


def _chosen(calls: list[Call], among: Container[int] | None) -> float:
    """Count the scalars whose winners are stored."""
    stored, chosen = set[int](), 0.0
    for call in reversed(calls):
        made = _made(call)
        mixing = call.base in PRODUCTS or call.base in CONVOLUTIONS or call.base in ROWS
        for given in call.inputs:
            value = given.value
            if value is None or not value.differentiable or (among is not None and value.id not in among):
                continue
            size = float(prod(value.shape))
            whole = _whole(value).id  # at each step of a loop a weight has a view of its own, and winners once
            if whole not in stored and (mixing or size < made):  # else the way back is arithmetic
                stored.add(whole)
                chosen += min(size, made) if call.base in READING else size
    return chosen


def _whole(value: Value) -> Value:
    """Give the leaf of which a value is a view as large as itself, if it is one, else the value."""
    leaf = value
    while leaf.call is not None and len(leaf.call.inputs) == 1 and getattr(leaf.call.op, "is_view", False):
        before = leaf.call.inputs[0].value
        if before is None or prod(before.shape) != prod(value.shape):
            return value
        leaf = before
    return leaf if leaf.call is None else value
