"""Which example of a batch each scalar belongs to, so that a batch traces as its examples alone would.

Labels start at the tensors that enumerate the examples and are carried forward, structure by structure, along the calls
that autograd follows and along the constants beside them. The label of a value is
    none    no example reaches it (parameters, and what is computed from them alone): None,
    rows    scalars belong to one example each: an integer tensor that broadcasts to the value's shape; a scalar of it
            may be FREE (parameters reach it, and no example does), NOTHING (neither do), or of SEVERAL examples,
    mixed   all of it depends on several examples (the loss, after the mean): MIXED.
In the reverse pass a value has one element for each scalar, or one for each example: the latter where some scalar is
free, or belongs to no example. `Labels.batch` decides this, and nothing else does.
Where examples are *connected* (batch statistics, contrastive losses, a choice among them), an example has no trace of
its own: `Labels.connected` names the calls, and rows are then told apart by position only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..jacobians import dependence, rules
from ..jacobians.structure import Contraction, Convolved, LowRank, Placed, Strided, Structure, diagonal
from ..recording.constants import LINK, OVERLAY, when
from ..recording.record import Call, Input, Record, Value
from .entanglement import beside, entangles, probed
from .label_pushes import FREE, MIXED, NOTHING, SEVERAL, Label, compress, everywhere, examples_of, meet, push

Part = tuple[Label, bool]  # what one argument says of a result, and whether it connects examples there
FEW = 1 << 10  # scalars of a label that is looked for among others
MANY = 1 << 11  # labels, or kinds of calls, of which it is known from tape to tape what they say


class _Said(NamedTuple):
    """What is known of a result.

    Attributes:
        label: its own.
        connected: whether examples are connected there.
        mixed: the arguments of which some scalar is of several examples.
    """

    label: Label
    connected: bool
    mixed: tuple[int, ...]


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
    known: dict[Hashable, list[_Said | None]] = field(default_factory=dict)  # of calls with large labels: see `_KNOWN`
    several: dict[Tensor, bool] = field(default_factory=dict)  # whether some scalars are of several examples
    merged: dict[Hashable, Any] = field(default_factory=dict)  # axes along which examples differ (see `per_example`)
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

    def one(self, label: Tensor) -> Label:
        """Give for equal labels the same one."""
        if self.mixes(label) and bool((label == SEVERAL).all()):
            return MIXED
        if not _small(label):
            return label
        key = label.shape, label.numpy().tobytes()
        found = _ALIKE.get(key)
        return _keep(_ALIKE, key, label) if found is None else found

    def mixes(self, label: Label) -> bool:
        """Tell whether several examples reach some scalar of a value."""
        return _some(label, SEVERAL, self.several) if isinstance(label, Tensor) else label is MIXED

    def mask(self, value: Value) -> Tensor | None:
        """Say which scalars count for which example (examples × shape), where a value that is apart has a label."""
        label = self.of.get(value.id)
        if value.id in self.together or not isinstance(label, Tensor):
            return None
        return self.own(label, len(value.shape)) | (label == FREE)

    def own(self, label: Tensor, dims: int) -> Tensor:
        """Say which scalars, of a tensor of some axes, an example reaches (examples × shape)."""
        return (torch.arange(self.count).reshape(-1, *[1] * dims) == label) | (label == SEVERAL)

    def connect(self, call: Call, sources: Iterable[int]) -> None:
        """Note that a call connects examples, unless it does so by numbers that have been named already."""
        origins = {self.origin[source] for source in sources}
        if not origins or not origins <= self.named:
            self.connected.append(call)
        self.named |= origins


# What holds of any tape: labels, so that equal ones are one; what is known of calls that are alike.
_ALIKE: dict[Hashable, Tensor] = {}
_KNOWN: dict[Hashable, list[_Said | None]] = {}
Kept = TypeVar("Kept")


def _keep(known: dict[Hashable, Kept], key: Hashable, what: Kept) -> Kept:
    """Note something for later, among not too much."""
    if len(known) >= MANY:
        known.clear()
    known[key] = what
    return what


def propagate(record: Record, loss: Value) -> Labels:
    """Carry labels from the examples forward, as far as the loss needs them."""
    labels = Labels(record.examples or 0)
    for value in record.example_values:
        shape = (labels.count, *[1] * (len(value.shape) - 1))
        if value.numel:
            labels.of[value.id] = labels.one(torch.arange(labels.count, dtype=torch.int32).reshape(shape))
    steps, reached = needed(record, loss)
    for call in steps:
        given = [labels.given(i) for i in call.inputs]
        if any(label is not None for label in given):
            _through(call, given, [v is not None and v.id in reached for v in call.outputs], labels)
    _decide(steps, reached, labels)
    labels.known.clear()
    labels.several.clear()
    return labels


def needed(record: Record, loss: Value) -> tuple[list[Call], set[int]]:
    """Give the calls on which the loss depends, constants among them, in recording order; and the values' ids."""
    reached, out = {loss.id}, []
    for call in sorted([*record.calls, *record.constants], key=when, reverse=True):
        for made in call.outputs:
            if made is not None and made.id in reached:
                reached.update([v.id for i in call.inputs for v in (i.value, i.constant) if v is not None])
                out.append(call)
                break
    return out[::-1], reached


def _decide(steps: Sequence[Call], reached: set[int], labels: Labels) -> None:
    """Decide which values have one element for each scalar: none that leads to one which needs more."""
    free: dict[Tensor, bool] = {}
    for value_id, label in labels.of.items():
        if value_id in reached and not (isinstance(label, Tensor) and _some(label, FREE, free)):
            labels.together.add(value_id)
    for call in steps:  # what is empty needs nothing
        labels.together.update([v.id for v in call.outputs if v is not None and not v.numel])
    for call in reversed(steps):
        made = [v.id for v in call.outputs if v is not None and v.id in reached and v.differentiable]
        if not labels.together.issuperset(made):  # a call's results are alike in this
            labels.together.difference_update(made)
            labels.together.difference_update([i.value.id for i in call.inputs if i.value is not None])


def _some(label: Tensor, what: int, known: dict[Tensor, bool]) -> bool:
    """Tell whether something is in a label."""
    if label not in known:
        known[label] = bool((label == what).any())
    return known[label]


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


def _through(call: Call, given: Sequence[Label], wanted: Sequence[bool], labels: Labels) -> None:
    """Label the results of one call that lead to the loss: as those of one that was like it, if there was one."""
    key = _likeness(call, given, wanted, labels.count)
    found = _KNOWN.get(key) or labels.known.get(key)
    if found is None:
        edges = _edges(call, labels)
        edges = None if edges is None else [edge for edge in edges if wanted[edge.number]]
        found = [
            _said(call, y, number, edges, labels) if y is not None and y.numel and wanted[number] else None
            for number, y in enumerate(call.outputs)
        ]
        if edges is not None and call.name != LINK and _by_shape(call, edges):
            said = [one.label for one in found if one is not None]
            _keep(_KNOWN if all(map(_small, (*given, *said))) else labels.known, key, found)
    for y, said in zip(call.outputs, found, strict=True):
        if said is not None and y is not None:
            _note(call, y, said, given, labels)


def _small(label: Label) -> bool:
    return not isinstance(label, Tensor) or label.numel() <= FEW


def _likeness(call: Call, given: Sequence[Label], wanted: Sequence[bool], count: int) -> Hashable:
    """Give what calls have in common whose results, of equal shapes, belong to the same of so many examples."""
    inputs = [(i.shape, i.dtype, i.value is not None and i.value.differentiable) for i in call.inputs]
    outputs = [(v.shape, v.differentiable) if v is not None else None for v in call.outputs]
    plain = call.args, tuple(call.kwargs.items())
    try:
        hash(plain)
    except TypeError:  # a list among the arguments
        plain = repr(plain)
    # what it shows depends on how its argument lies
    lies = [(i.stride, i.offset) for i in call.inputs] if call.base == "as_strided" else ()
    return call.op, rules.rule_of(call), plain, (*inputs, *lies), tuple(outputs), tuple(given), tuple(wanted), count


def _by_shape(call: Call, edges: Sequence[_Edge]) -> bool:
    """Tell whether results depend on arguments in a way that shapes and plain arguments say, and no numbers do."""
    if not rules.stated(call):
        return False
    for edge in edges:
        s = edge.structure
        dense = type(s) is Contraction and s.w and not set(s.x) & set(s.y)
        if edge.unknown or dense or type(s) not in (Contraction, LowRank, Strided, Placed, Convolved):
            return False
    return True


def _said(call: Call, y: Value, number: int, edges: Sequence[_Edge] | None, labels: Labels) -> _Said | None:
    """Say what one result depends on."""
    own = [] if edges is None else [e for e in edges if e.number == number]
    parts, mixed = _parts(call, y, own, labels)
    if edges is None:
        parts = [(probed(call, y, [labels.given(i) for i in call.inputs], labels.count), False)]
    if call.name == LINK:  # what is followed there says more
        parts = _beneath(labels.of.get(y.id), parts)
    parts = [(label, connected) for label, connected in parts if label is MIXED or _says_something(label)]
    if not parts:
        return None
    label, connected = combine(parts)
    if bool((label < 0).any()):
        label = _with_free(call, y, own, label, labels)
        label = settled(label, labels.count, by_place=call.name != OVERLAY)
    return _Said(labels.one(label), connected, tuple(mixed))


def _note(call: Call, y: Value, said: _Said, given: Sequence[Label], labels: Labels) -> None:
    """Note what is known of one result, and where examples are connected."""
    labels.of[y.id], mixes = said.label, labels.mixes(said.label)
    values = (call.inputs[p].value or call.inputs[p].constant for p in said.mixed)
    sources = {v.id for v in values if v is not None}
    if mixes:
        origins = {labels.origin[s] for s in sources}
        labels.origin[y.id] = origins.pop() if len(origins) == 1 else y.id
    # where examples are mixed, the loss stays a sum of theirs only if none enters another's derivatives
    asked = mixes and not said.connected and not labels.connected
    if said.connected or (asked and entangles(call, y, given, labels.count)):
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


def _parts(call: Call, y: Value, edges: Sequence[_Edge], labels: Labels) -> tuple[list[Part], list[int]]:
    """Give what arguments say about a result, and the positions of those that are mixed."""
    parts, mixed = [], []
    for edge in edges:
        given = call.inputs[edge.position]
        value, label = given.value or given.constant, labels.given(given)
        if value is None or label is None or not value.numel:
            continue
        seen = beside(call, y, edge.position, label, labels.count) if edge.unknown else None
        pushed, connected = (seen, False) if seen is not None else push(edge.structure, label, value.shape, y.shape)
        chosen = edge.choice and label is not MIXED and bool((everywhere(pushed) == SEVERAL).any())
        parts.append((pushed, connected or chosen))
        if labels.mixes(label):
            mixed.append(edge.position)
    return parts, mixed


def combine(parts: Sequence[Part]) -> tuple[Tensor, bool]:
    """Merge what several arguments say about one result."""
    given, connected = [everywhere(label) for label, _ in parts], any(flag for _, flag in parts)
    label, differ = meet(given)
    if differ:
        label, apart = _where_rows_stay(label, given)
        connected |= apart
    return compress(label), connected


def _where_rows_stay(label: Tensor, given: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Give the label of what labels that differ come to, which is `label` by itself; whether examples are connected."""
    rows = [r.masked_fill(r == SEVERAL, NOTHING) for r in given if bool(examples_of(r).any())]
    placed = [r for r in rows if r.numel() > 1]
    if not placed:
        return label, False
    # the sum of two examples' terms keeps them apart, if it is one; rows that meet other rows do not
    own, clash = meet(rows)
    # one example's term joins a sum of others', or a mixture (a batch mean) enters the rows of several, which stay
    stays = (label == SEVERAL) & examples_of(own) & examples_of(meet(placed)[0])
    return torch.where(stays, own, label), clash or bool(stays.any())


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
            stays = top == SEVERAL
            if bool((top == own).any()) and bool(((top == own) | (top < 0) | stays).all()):
                return compress(torch.where(stays, top, own))
    return compress(label)
