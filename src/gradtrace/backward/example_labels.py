"""Which example of a batch each scalar belongs to, so that a batch traces as its examples alone would.

Labels start at the tensors that enumerate the examples and are carried forward, structure by structure, along the calls
that autograd follows and along the constants beside them. The label of a value is
    none    no example reaches it (parameters, and what is computed from them alone): None,
    rows    every scalar belongs to one example: an integer tensor that broadcasts to the value's shape; a scalar of it
            may be FREE (parameters reach it, and no example does) or NOTHING (neither do),
    mixed   it depends on several examples (the loss, after the mean): MIXED.
In the reverse pass a value has one element for each scalar, or one for each example: the latter where some scalar is
free, or belongs to no example. `Labels.batch` decides this, and nothing else does.
Where examples are *connected* (batch statistics, contrastive losses, a choice among them), an example has no trace of
its own: `Labels.connected` names the calls, and rows are then told apart by position only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import merge

import torch
from torch import Tensor

from ..jacobians import dependence, rules
from ..jacobians.structure import Structure, diagonal
from ..recording.constants import LINK, OVERLAY
from ..recording.record import Call, Input, Record, Value
from .entanglement import beside, entangles, probed
from .label_pushes import FREE, MIXED, Label, compress, push

Part = tuple[Label, bool]  # what one argument says of a result, and whether it connects examples there


@dataclass(eq=False)
class Labels:
    """The label of every value of a tape.

    Attributes:
        count: the number of examples.
        connected: calls at which examples influence one another: for each number of the whole batch, the first one.
        together: ids of the values that have one element for each scalar in a pass.
    """

    count: int
    of: dict[int, Label] = field(default_factory=dict)
    connected: list[Call] = field(default_factory=list)
    together: set[int] = field(default_factory=set)
    origin: dict[int, int] = field(default_factory=dict)  # of a mixed value: the one that was mixed first
    named: set[int] = field(default_factory=set)  # those of them that `connected` speaks of

    def free(self, value: Value) -> bool:
        """Tell whether no example reaches a value."""
        return self.of.get(value.id) is None

    def batch(self, value: Value) -> int:
        """Give how many elements a value has for each scalar: one, or one for each example."""
        return 1 if value.id in self.together else self.count

    def given(self, argument: Input) -> Label:
        """Give the label of an argument, whether autograd follows it or not."""
        value = argument.value or argument.constant
        return None if value is None else self.of.get(value.id)

    def mask(self, value: Value) -> Tensor | None:
        """Say which scalars count for which example (examples × shape), where a value that is apart has a label."""
        label = self.of.get(value.id)
        if value.id in self.together or not isinstance(label, Tensor):
            return None
        examples = torch.arange(self.count).reshape(-1, *[1] * len(value.shape))
        return (examples == label) | (label == FREE)

    def connect(self, call: Call, sources: Iterable[int]) -> None:
        """Note that a call connects examples, unless it does so by numbers that have been named already."""
        origins = {self.origin[source] for source in sources}
        if not origins or not origins <= self.named:
            self.connected.append(call)
        self.named |= origins


def propagate(record: Record, loss: Value) -> Labels:
    """Carry labels from the examples forward, as far as the loss needs them."""
    labels = Labels(record.examples or 0)
    for value in record.example_values:
        shape = (labels.count, *[1] * (len(value.shape) - 1))
        if value.numel:
            labels.of[value.id] = torch.arange(labels.count, dtype=torch.int32).reshape(shape)
    steps, reached = needed(record, loss)
    for call in steps:
        if any(labels.given(i) is not None for i in call.inputs):
            _through(call, labels)
    _decide(steps, reached, labels)
    return labels


def needed(record: Record, loss: Value) -> tuple[list[Call], set[int]]:
    """Give the calls on which the loss depends, constants among them, in recording order; and the values' ids."""
    reached, out = {loss.id}, []
    for call in reversed(list(merge(record.calls, record.constants, key=_when))):
        if any(v is not None and v.id in reached for v in call.outputs):
            for given in call.inputs:
                reached.update(v.id for v in (given.value, given.constant) if v is not None)
            out.append(call)
    return out[::-1], reached


def _when(call: Call) -> int:
    """Order calls by the numbers of their results, which count up; those without one are nobody's."""
    if call.name == LINK:
        return call.args[0]
    return min((v.id for v in call.outputs if v is not None), default=-1)


def _decide(steps: Sequence[Call], reached: set[int], labels: Labels) -> None:
    """Decide which values have one element for each scalar: none that leads to one which needs more."""
    for value_id, label in labels.of.items():
        if value_id in reached and not (isinstance(label, Tensor) and bool((label == FREE).any())):
            labels.together.add(value_id)
    for call in steps:  # what is empty needs nothing
        labels.together.update(v.id for v in call.outputs if v is not None and not v.numel)
    for call in reversed(steps):
        made = [v.id for v in call.outputs if v is not None and v.id in reached and v.differentiable]
        if not labels.together.issuperset(made):  # a call's results are alike in this
            labels.together.difference_update(made)
            labels.together.difference_update(i.value.id for i in call.inputs if i.value is not None)


@dataclass(frozen=True, slots=True)
class _Edge:
    """How a result depends on an argument.

    Attributes:
        choice: whether by being compared with others.
        unknown: whether the structure is what holds at worst: everything depends on everything.
    """

    position: int
    number: int
    structure: Structure
    choice: bool = False
    unknown: bool = False


def _edges(call: Call, labels: Labels) -> list[_Edge] | None:
    """Say how results depend on arguments: by derivatives, by what they are read with, and by choices.

    Returns:
        None where nothing is known of a constant's operator.
    """
    edges = [_Edge(*edge) for edge in _derived(call)]
    # what is drawn has no derivative, and says nothing by that of whom it was drawn for
    covered = set() if dependence.draws_scalars(call) else {(e.position, e.number) for e in edges}
    rows = dependence.depends(call)
    edges += [_Edge(*edge) for edge in rows or () if edge[:2] not in covered]
    if rows is None and not edges and not _followed(call):
        return None
    if rows is None:  # an argument of which nothing is known, beside others
        for position, given in enumerate(call.inputs):
            for number in {n for _, n in covered}:
                if (position, number) not in covered and labels.given(given) is not None:
                    edges.append(_Edge(*dependence.everything(call, position, number), unknown=True))
    return edges + [_Edge(*edge, choice=True) for edge in dependence.chooses(call)]


def _derived(call: Call) -> list[rules.Edge]:
    """Give the structures of a call's derivatives; of a constant's where that takes no derivative."""
    if call.name == LINK:
        shape = call.inputs[0].shape
        return [(0, 0, diagonal(shape, shape, None))]
    if _followed(call) or (rules.generic(call) and all(y is not None for y in call.outputs)):
        return rules.structures(call)
    return []


def _followed(call: Call) -> bool:
    return any(v is not None and v.differentiable for v in call.outputs)


def _through(call: Call, labels: Labels) -> None:
    """Label the results of one call."""
    edges = _edges(call, labels)
    for number, y in enumerate(call.outputs):
        if y is not None and y.numel:
            _label(call, y, None if edges is None else [e for e in edges if e.number == number], labels)


def _label(call: Call, y: Value, edges: Sequence[_Edge] | None, labels: Labels) -> None:
    """Label one result."""
    given = [labels.given(i) for i in call.inputs]
    parts, sources = _parts(call, y, edges or (), labels)
    if edges is None:
        parts = [(probed(call, y, given, labels.count), False)]
    if call.name == LINK:  # what is followed there says more
        parts = _beneath(labels.of.get(y.id), parts)
    parts = [(label, connected) for label, connected in parts if label is MIXED or _says_something(label)]
    if not parts:
        return
    label, connected = combine(parts)
    if call.name == OVERLAY and isinstance(label, Tensor) and bool((label < 0).any()) and sources:
        label = MIXED  # memory, a part of which holds what several examples have to do with
    elif isinstance(label, Tensor) and bool((label < 0).any()):
        label = settled(_with_free(call, y, edges or (), label, labels), labels.count, by_place=call.name != OVERLAY)
    labels.of[y.id] = label
    if label is MIXED:
        origins = {labels.origin[s] for s in sources}
        labels.origin[y.id] = origins.pop() if len(origins) == 1 else y.id
    # where examples are mixed, the loss stays a sum of theirs only if none enters another's derivatives
    entangled = not connected and label is MIXED and not labels.connected and entangles(call, y, given, labels.count)
    if connected or entangled:
        labels.connect(call, sources)
        labels.named.add(labels.origin.get(y.id, y.id))


def _beneath(known: Label, parts: list[Part]) -> list[Part]:
    """Let a constant speak where what was written over it, or made of it, says nothing."""
    if known is not None and not isinstance(known, Tensor):
        return [(known, False), *parts]
    over = torch.tensor(FREE, dtype=torch.int32) if known is None else known
    joined = [
        (torch.where(over >= 0, over, torch.maximum(over, label)) if isinstance(label, Tensor) else label, flag)
        for label, flag in parts
    ]
    return joined if joined or known is None else [(known, False)]


def _says_something(label: Label) -> bool:
    return isinstance(label, Tensor) and bool((label >= 0).any())


def _parts(call: Call, y: Value, edges: Sequence[_Edge], labels: Labels) -> tuple[list[Part], set[int]]:
    """Give what arguments say about a result, and the ids of those that are mixed."""
    parts, sources = [], set()
    for edge in edges:
        given = call.inputs[edge.position]
        value, label = given.value or given.constant, labels.given(given)
        if value is None or label is None or not value.numel:
            continue
        seen = beside(call, y, edge.position, label, labels.count) if edge.unknown else None
        pushed, connected = (seen, False) if seen is not None else push(edge.structure, label, value.shape, y.shape)
        parts.append((pushed, connected or (edge.choice and pushed is MIXED and label is not MIXED)))
        if label is MIXED:
            sources.add(value.id)
    return parts, sources


def combine(parts: Sequence[Part]) -> Part:
    """Merge what several arguments say about one result."""
    rows = [label for label, _ in parts if isinstance(label, Tensor)]
    connected = any(flag for _, flag in parts)
    if not rows:
        return MIXED, connected
    out = rows[0]
    for other in rows[1:]:
        out, other = torch.broadcast_tensors(out, other)
        if bool(((out != other) & (out >= 0) & (other >= 0)).any()):
            # the sum of two examples' terms keeps them apart, if it is one; rows that meet other rows do not
            return MIXED, connected or max(r.numel() for r in rows) > 1
        out = torch.maximum(out, other)
    label = compress(out)
    if len(rows) == len(parts):
        return label, connected
    # one example's term joins a sum of others', or a mixture (a batch mean) enters the rows of several
    return (MIXED, connected) if label.numel() == 1 else (label, True)


def _with_free(call: Call, y: Value, edges: Sequence[_Edge], label: Tensor, labels: Labels) -> Tensor:
    """Say where parameters reach a result and no example does."""
    for edge in edges:
        value = call.inputs[edge.position].value
        if edge.choice or value is None or not value.differentiable or not labels.free(value) or not value.numel:
            continue
        free = torch.full([1] * len(value.shape), FREE, dtype=label.dtype)
        pushed, _ = push(edge.structure, free, value.shape, y.shape)
        if isinstance(pushed, Tensor):
            label = torch.maximum(*torch.broadcast_tensors(label, pushed))
    return label


def settled(label: Tensor, count: int, *, by_place: bool = True) -> Tensor:
    """Extend a label that depends on one axis only to scalars that no example reaches.

    Where an axis has a place, or as many in a row, for each example, and those that are known stand at their own, the
    others are those of the examples whose places they are (`by_place`; memory has no such places).
    """
    known = label >= 0
    for d in range(label.dim()):
        others = [e for e in range(label.dim()) if e != d]
        top = label.amax(others, keepdim=True) if others else label
        if not bool(((label == top) | ~known).all()):
            continue
        if bool((top >= 0).all()) and (count == 1 or bool(top.min() < top.max())):
            return compress(top)
        if by_place and bool((label == FREE).any()) and top.numel() % count == 0:
            own = (torch.arange(top.numel(), dtype=label.dtype) // (top.numel() // count)).reshape(top.shape)
            if bool(((top == own) | (top < 0)).all()):
                return compress(own)
    return compress(label)
