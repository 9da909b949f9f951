"""The reverse pass: walk the tape backwards, and let a carrier act on each call's structures.

One loop for every semiring. Cotangents live from the last consumer of a value to its producer, then they
are freed. A backpointer is one integer, `edge number << EDGE_BITS | flat index of the consumer scalar`,
where edges (call, argument) are numbered in recording order, so the smallest backpointer of several equally
strong ones is the one that the definition asks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MissingRule, NotANumber
from ..jacobians import rules
from ..jacobians.structure import Gather
from ..kernels.reference import gather_into, pull
from ..recording.record import Call, Record, Value
from ..semirings.base import Carrier, Element
from .example_labels import Labels
from .per_example import pull_by_example

EDGE_BITS = 34  # flat indices up to 17 billion, edges up to half a billion


@dataclass(frozen=True)
class Edges:
    """Numbers every (call, argument) pair of a tape, in recording order."""

    first: list[int]

    @classmethod
    def of(cls, record: Record) -> Edges:
        """Number the edges of a tape."""
        first, total = [], 0
        for call in record.calls:
            first.append(total)
            total += len(call.inputs)
        return cls(first)


class Reached(NamedTuple):
    """What has reached a value so far: batch × value.shape; `own` says that nobody else reads its memory."""

    value: Value
    g: Element
    own: bool = False


def offsets(call: Call) -> list[int]:
    """Give the flat index at which each output's scalars begin, among all results of the call."""
    out, total = [], 0
    for value in call.outputs:
        out.append(total)
        total += value.numel if value is not None else 0
    return out


def reverse(
    record: Record,
    loss: Value,
    carrier: Carrier,
    keep: Callable[[Value, Element], None],
    labels: Labels | None = None,
    track: Callable[[list[Call]], Iterable[Call]] = iter,
    seconds: dict[str, float] | None = None,
    enter: Callable[[Element, Value, Call | None], Element] | None = None,
    wanted: Container[int] | None = None,
) -> None:
    """Compute g_v for every value from which the loss can be reached.

    g_ℓ = 1, g_v = ⊕ over edges (u, v, k) of λ(w(u, v, k)) ⊗ g_u, in reverse recording order.

    Args:
        record: the tape.
        loss: the value of ℓ.
        carrier: the semiring's arrays.
        keep: called once for every wanted value, with its finished elements (batch × value.shape), as soon as they are.
        labels: where given, values that belong to no example have a batch of one entry per example;
            all others, and all values where it is None, have a batch of 1.
        track: wraps the calls that are walked, for a progress bar.
        seconds: where the time spent on each operator is added up.
        enter: given what reaches a value from one consumer call (None: it is the loss), and what it becomes there.
        wanted: ids of values; None: all. What nobody keeps may be written over.

    Raises:
        MissingRule: an operator on the way has no rule.
        NotANumber: a local derivative is NaN.
    """
    edges, first = Edges.of(record), _first_uses(record)
    one = torch.ones((1, *loss.shape), dtype=loss.dtype)
    begin = carrier.one(one)
    pending = {loss.id: Reached(loss, begin if enter is None else enter(begin, loss, None))}
    for call in track(record.calls[::-1]):
        outputs = [pending.pop(v.id, None) if v is not None else None for v in call.outputs]
        if not any(outputs):
            continue
        for place, found in enumerate(outputs):
            if found is not None and (wanted is None or found.value.id in wanted):
                keep(found.value, found.g)
                outputs[place] = found._replace(own=False)
        began = perf_counter()
        try:
            _propagate(call, outputs, carrier, edges.first[call.index], pending, labels, enter)
        except NotANumber as error:
            raise NotANumber(f"{error.said}: {call.where}") from None
        if seconds is not None:
            seconds[call.name] = seconds.get(call.name, 0.0) + perf_counter() - began
        _finish(_finished(call, first, pending), keep, wanted)
    _finish(pending.values(), keep, wanted)


def _finish(found: Iterable[Reached], keep: Callable[[Value, Element], None], wanted: Container[int] | None) -> None:
    """Let leaves' elements be kept, if they are wanted."""
    for value, g, _ in found:
        if wanted is None or value.id in wanted:
            keep(value, g)


def _first_uses(record: Record) -> dict[int, int]:
    """Give for each value the number of the first call that takes it: the last that a walk back comes to."""
    first: dict[int, int] = {}
    for call in record.calls:
        for given in call.inputs:
            if given.value is not None:
                first.setdefault(given.value.id, call.index)
    return first


def _finished(call: Call, first: dict[int, int], pending: dict[int, Reached]) -> Iterator[Reached]:
    """Take out the leaves that no call before this one takes: nothing more will reach them."""
    for given in call.inputs:
        value = given.value
        if value is not None and value.call is None and value.id in pending and first[value.id] == call.index:
            yield pending.pop(value.id)


def _propagate(
    call: Call,
    outputs: list[Reached | None],
    carrier: Carrier,
    first_edge: int,
    pending: dict[int, Reached],
    labels: Labels | None,
    enter: Callable[[Element, Value, Call | None], Element] | None,
) -> None:
    """Carry the cotangents of one call's results to its arguments."""
    starts = offsets(call)
    covered = set()
    edges = rules.structures(call)
    uses = Counter(output for _, output, _ in edges)
    for position, output, structure in edges:
        argument = call.inputs[position].value
        found = outputs[output] if output < len(outputs) else None
        covered.add(output)
        if argument is None or not argument.differentiable or found is None:
            continue
        value, g, own = found
        ids = _ids(value if carrier.points else None, (first_edge + position << EDGE_BITS) + starts[output], g[0])
        g = carrier.seed(g, ids)
        known = pending.get(argument.id)
        if known is not None and known.own and type(structure) is Gather and labels is None and enter is None:
            merged = gather_into(structure, carrier, g, tuple(p.contiguous() for p in known.g))
            pending[argument.id] = known._replace(g=merged)
            continue
        part = (
            pull_by_example(structure, carrier, g, value, argument, labels) if labels else pull(structure, carrier, g)
        )
        batch = labels.batch(argument) if labels is not None else 1
        part = tuple(p.reshape(batch, *argument.shape) for p in part)
        part = part if enter is None else enter(part, argument, call)
        if known is not None:
            part = (carrier.plus_over if known.own else carrier.plus)(known.g, part)
        read = (() if own and uses[output] == 1 else g) + (() if known is None or known.own else known.g)
        pending[argument.id] = Reached(argument, part, _apart(part, read))
    missing = [i for i, found in enumerate(outputs) if found is not None and i not in covered]
    if missing and any(i.value is not None and i.value.differentiable for i in call.inputs):
        raise MissingRule(f"the rule of {call.where} says nothing about its result number {missing[0]}")


def _apart(g: Element, read: Element) -> bool:
    """Tell whether planes lie beside each other, each without repetitions, in memory that others do not read."""
    if any(p._is_zerotensor() for p in g):  # autograd's zeros, which have no memory
        return False
    elsewhere = {p.untyped_storage().data_ptr() for p in read if not p._is_zerotensor()}
    dense = torch.ops.aten.is_non_overlapping_and_dense
    own = all(p.untyped_storage().data_ptr() not in elsewhere and dense(p) for p in g)
    return own and len({p.data_ptr() for p in g}) == len(g)


def _ids(value: Value | None, start: int, like: Tensor) -> Tensor:
    if value is None:
        return torch.empty(0, dtype=torch.int64, device=like.device)
    return torch.arange(start, start + value.numel, device=like.device).reshape(1, *value.shape)
