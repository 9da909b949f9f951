"""Which example of a batch each scalar belongs to, so that a batch traces as its examples alone would.

Labels start at the tensors that enumerate the examples and are carried forward along the tape, structure by
structure. A value is
    free    no example reaches it (parameters, and what is computed from them alone): None,
    rows    every scalar belongs to one example: an integer tensor that broadcasts to the value's shape,
    mixed   it depends on several examples (the loss, after the mean): MIXED.
In the reverse pass a free value has one element for each example; the split happens where a call's result
has rows and its argument is free.
Where examples are *connected* (batch statistics, contrastive losses), an example has no trace of its own:
`Labels.connected` names the calls, and rows are then told apart by position only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from ..jacobians import rules
from ..jacobians.structure import (
    Chain,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Shape,
    Sparse,
    Strided,
    Structure,
    result_shape,
)
from ..recording.layouts import positions
from ..recording.record import Call, Record, Value

UNKNOWN = -2  # a scalar that no example reaches, in a tensor of which others have rows


class _Mixed:
    def __repr__(self) -> str:
        return "MIXED"


MIXED = _Mixed()
Label: TypeAlias = Tensor | _Mixed | None


@dataclass(eq=False)
class Labels:
    """The label of every value of a tape.

    Attributes:
        count: the number of examples.
        connected: calls at which examples influence one another.
    """

    count: int
    of: dict[int, Label] = field(default_factory=dict)
    connected: list[Call] = field(default_factory=list)

    def free(self, value: Value) -> bool:
        """Tell whether no example reaches a value."""
        return self.of.get(value.id) is None


def propagate(record: Record, loss: Value) -> Labels:
    """Carry labels from the examples forward along the tape, as far as the loss needs them."""
    labels = Labels(record.examples or 0)
    for value in record.example_values:
        shape = (labels.count, *[1] * (len(value.shape) - 1))
        labels.of[value.id] = torch.arange(labels.count, dtype=torch.int32).reshape(shape)
    for call in record.before(loss):
        if any(i.value is not None and labels.of.get(i.value.id) is not None for i in call.inputs):
            _through(call, labels)
    return labels


def _through(call: Call, labels: Labels) -> None:
    """Label the results of one call."""
    found: dict[int, list[tuple[Label, bool]]] = {}
    free = False  # whether parameters reach the results too
    for position, number, structure in _structures(call):
        argument = call.inputs[position].value
        label = labels.of.get(argument.id) if argument is not None else None
        y = call.outputs[number] if number < len(call.outputs) else None
        free |= argument is not None and argument.differentiable and label is None
        if label is None or argument is None or y is None:
            continue
        pushed = push(structure, label, argument.shape, y.shape)
        if pushed[0] is MIXED or bool((pushed[0] != UNKNOWN).any()):  # type: ignore[union-attr]
            found.setdefault(number, []).append(pushed)
    for number, parts in found.items():
        y = call.outputs[number]
        assert y is not None
        label, connected = _combine(parts, free=free)
        labels.of[y.id] = label
        # where examples are mixed, the loss stays a sum of theirs only if none enters another's derivatives
        entangled = not connected and label is MIXED and not labels.connected and _entangles(call, number, labels)
        if connected or entangled:
            labels.connected.append(call)


def _structures(call: Call) -> list[rules.Edge]:
    """Structures of a call; a call on constants alone is only followed where that needs no derivative."""
    if any(i.value is not None and i.value.differentiable for i in call.inputs) or rules.generic(call):
        return rules.structures(call)
    return []


def _combine(parts: list[tuple[Label, bool]], *, free: bool) -> tuple[Label, bool]:
    """Merge what several arguments say about one result: (label, whether examples are connected)."""
    rows = [label for label, _ in parts if isinstance(label, Tensor)]
    connected = any(flag for _, flag in parts)
    if not rows:
        return MIXED, connected
    out = rows[0]
    for other in rows[1:]:
        out, other = torch.broadcast_tensors(out, other)
        if bool(((out != other) & (out != UNKNOWN) & (other != UNKNOWN)).any()):
            # the sum of two examples' terms keeps them apart, if it is one; rows that meet other rows do not
            return MIXED, connected or max(r.numel() for r in rows) > 1
        out = torch.where(out == UNKNOWN, other, out)
    label = compress(out)
    if bool((label == UNKNOWN).any()):
        filled = _fill(label)
        if filled is None and free:  # a parameter goes where no example is told apart
            return MIXED, True
        label = label if filled is None else filled
    if len(rows) == len(parts):
        return label, connected
    # one example's term joins a sum of others', or a mixture (a batch mean) enters the rows of several
    return (MIXED, connected) if label.numel() == 1 else (label, True)


def _entangles(call: Call, number: int, labels: Labels) -> bool:
    """Tell whether one example's derivatives depend on another example, by changing some and looking at the rest."""
    if not any(i.value is not None and i.value.differentiable for i in call.inputs):
        return False
    examples = torch.arange(labels.count)
    return any(_depends(call, number, labels, some) for some in (examples % 2 == 1, examples < labels.count / 2))


def _depends(call: Call, number: int, labels: Labels, changed: Tensor) -> bool:
    """Change what belongs to some examples, and all that is mixed; compare the derivatives of what did not change.

    Args:
        call: the call, and `number`, its result.
        labels: of its arguments.
        changed: which examples, as booleans.
    """
    generator = torch.Generator().manual_seed(0)
    data = [i.tensor() for i in call.inputs]
    touched = [_touched(labels.of.get(i.value.id) if i.value is not None else None, changed) for i in call.inputs]
    moved = [
        x + torch.rand(x.shape, generator=generator).to(x.dtype) * t if x.is_floating_point() else x
        for x, t in zip(data, touched, strict=True)
    ]
    wanted = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
    slopes = zip(wanted, *_slopes(call, number, data, moved), strict=True)
    for p, before, after in slopes:
        label = labels.of.get(call.inputs[p].value.id)  # type: ignore[union-attr]
        compared = ~touched[p] if isinstance(label, Tensor) else torch.ones((), dtype=torch.bool)
        if not torch.allclose(before * compared, after * compared, rtol=1e-3):
            return True
    return False


def _touched(label: Label, changed: Tensor) -> Tensor:
    """Say which scalars of an argument belong to the examples that change; broadcasts to its shape."""
    if isinstance(label, Tensor):
        return changed[label.clamp(min=0).long()] & (label != UNKNOWN)
    return torch.tensor(label is MIXED)


def _slopes(call: Call, number: int, *points: list[Tensor]) -> list[list[Tensor]]:
    """Give the derivatives of the sum of one result at several points, for every followed argument."""
    wanted = [p for p, i in enumerate(call.inputs) if i.value is not None and i.value.differentiable]
    out = []
    for point in points:
        tensors = list(point)
        with torch.enable_grad():
            for p in wanted:
                tensors[p] = tensors[p].detach().requires_grad_()
            y = call.run(tensors)[number]
            assert y is not None
            leaves = [tensors[p] for p in wanted]
            found = torch.autograd.grad(y.sum(), leaves, allow_unused=True) if y.requires_grad else [None] * len(leaves)
        out.append([torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)])
    return out


def compress(label: Tensor) -> Tensor:
    """Keep one entry along every axis on which a label does not depend."""
    for d in range(label.dim()):
        if label.shape[d] > 1 and (label.stride(d) == 0 or bool((label == label.narrow(d, 0, 1)).all())):
            label = label.narrow(d, 0, 1)
    return label.contiguous()


def _fill(label: Tensor) -> Tensor | None:
    """Extend a label that depends on one axis only to scalars that no example reaches."""
    known = label != UNKNOWN
    for d in range(label.dim()):
        others = [e for e in range(label.dim()) if e != d]
        top = label.amax(others, keepdim=True) if others else label
        if bool(((label == top) | ~known).all()) and not bool((top == UNKNOWN).any()):
            return compress(top)
    return None


def push(structure: Structure, label: Label, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label from an argument to a result: (label, whether it connects examples)."""
    if not isinstance(label, Tensor):
        return MIXED, False
    match structure:
        case Contraction():
            return _push_contraction(structure, label, x_shape, y_shape)
        case LowRank():
            return _push_low_rank(structure, label, x_shape, y_shape)
        case Strided():
            return _push_strided(structure, label), False
        case Placed() | Scatter():
            return _push_written(structure, label, x_shape, y_shape), False
        case Gather():
            index = structure.scalars()
            out = label.expand(x_shape).reshape(-1)[index.clamp(min=0)]
            return out.masked_fill(index < 0, UNKNOWN).reshape(y_shape), False
        case Sparse():
            return _push_sparse(structure, label, x_shape, y_shape)
        case Convolved():
            return _push_parts(structure, label, x_shape, y_shape)
        case Chain():
            between = result_shape(structure.second)
            inner, connected = push(structure.second, label, x_shape, between)
            out, also = push(structure.first, inner, between, y_shape)
            return out, connected or also


def _push_written(s: Placed | Scatter, label: Tensor, x_shape: Shape, y_shape: Shape) -> Tensor:
    """Write a label where the argument is written; the rest of the result is UNKNOWN."""
    out = torch.full((prod(y_shape),), UNKNOWN, dtype=label.dtype)
    if isinstance(s, Placed):
        out.as_strided(s.layout.size, s.layout.stride, s.layout.offset).copy_(
            label.expand(x_shape).reshape(s.layout.size)
        )
    else:
        index = s.index().flatten()
        out[index[index >= 0]] = label.expand(x_shape).flatten()[index >= 0]
    return out.reshape(y_shape)


def _push_low_rank(s: LowRank, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Keep a label: the scalars of a row are connected, which only matters where they are of several examples."""
    label = compress(refit(label, x_shape, s.shape))
    across = any(label.shape[d] > 1 for d in s.dims)
    return refit(label, s.shape, y_shape), across


def _push_parts(s: Convolved, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Carry a label through a convolution: its parts agree, unless one of them mixes examples."""
    pushed = [push(part, label, x_shape, y_shape) for part in s.parts()]
    return next((p for p in pushed if p[0] is MIXED), pushed[0])


def refit(label: Tensor, shape: Shape, target: Shape) -> Tensor:
    """View a label of a tensor of one shape as one of another shape with the same scalars."""
    full = [n for n in shape if n != 1]
    if full != [n for n in target if n != 1]:
        return label.expand(shape).reshape(target)
    sizes = iter([label.shape[d] for d, n in enumerate(shape) if n != 1])
    return label.reshape([1 if n == 1 else next(sizes) for n in target])


def _push_contraction(s: Contraction, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    label = refit(label, x_shape, s.x_shape)
    if s.y and s.w and not set(s.x) & set(s.y) and label.numel() > 1:
        return _push_dense(s, label, y_shape)
    gone = [d for d, c in enumerate(s.x) if c not in s.y]
    if gone:
        low, high = _span(label, gone)
        if bool((low < high).any()):  # a sum of which every scalar is a term once may keep examples apart
            return MIXED, any(c not in s.x for c in s.y)
        label = high
    order = [s.x.index(c) for c in s.y if c in s.x]
    sizes = iter([label.shape[d] for d in order])
    label = label.permute([*order, *gone]).reshape([next(sizes) if c in s.x else 1 for c in s.y])
    return refit(label, s.y_shape, y_shape), False


def _span(label: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Give the smallest and the largest known label along some axes."""
    known = label.masked_fill(label == UNKNOWN, torch.iinfo(label.dtype).max)
    return known.amin(dims, keepdim=True), label.amax(dims, keepdim=True)


def _push_dense(s: Contraction, label: Tensor, y_shape: Shape) -> tuple[Label, bool]:
    """No axis is shared, so look at which entries of the Jacobian are there at all."""
    assert s.weight is not None
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    order = [s.w.index(c) for c in s.y + s.x if c in s.w]
    shape = [sizes[c] if c in s.w else 1 for c in s.y + s.x]
    jacobian = s.weight().reshape([sizes[c] for c in s.w]).permute(order).reshape(shape)
    there = (jacobian != 0).expand(*s.y_shape, *s.x_shape)
    full = torch.where(there, label.expand(s.x_shape), UNKNOWN).flatten(len(s.y))
    low, high = _span(full, [-1])
    if bool((low < high).any()):
        return MIXED, True
    return compress(high.reshape(y_shape)), False


def _push_sparse(s: Sparse, label: Tensor, x_shape: Shape, y_shape: Shape) -> tuple[Label, bool]:
    """Every scalar of y takes the label of what it depends on, if that is one."""
    (outer, m, inner), full = s.y_shape, label.expand(x_shape).reshape(s.x_shape)
    i, j, _ = s.edges()
    low = full.new_full((outer, m, inner), torch.iinfo(full.dtype).max)
    high = full.new_full((outer, m, inner), UNKNOWN)
    at = i.reshape(1, -1, 1).expand(outer, -1, inner)
    low.scatter_reduce_(1, at, full[:, j].contiguous(), "amin")
    high.scatter_reduce_(1, at, full[:, j].contiguous(), "amax")
    if bool((low < high).any()):
        return MIXED, True
    return compress(high.reshape(y_shape)), False


def _push_strided(s: Strided, label: Tensor) -> Tensor:
    last = max((d for d in range(label.dim()) if label.shape[d] > 1), default=-1)
    inner = prod(s.x_shape[last + 1 :])  # scalars in a row that share a label
    outer = label.expand(*s.x_shape[: last + 1], *[1] * (label.dim() - last - 1)).flatten().clone()
    at = s.layout
    split = [step % inner == 0 for step in at.stride]
    within = sum((n - 1) * t for n, t, o in zip(at.size, at.stride, split, strict=True) if not o) + at.offset % inner
    if within >= inner:  # an axis of the window crosses rows: look at every scalar
        return compress(label.expand(s.x_shape).reshape(-1)[positions(at, label.device)])
    size = [n if o else 1 for n, o in zip(at.size, split, strict=True)]
    stride = [t // inner if o else 0 for t, o in zip(at.stride, split, strict=True)]
    return compress(outer.as_strided(size, stride, at.offset // inner))
