"""Whether examples meet in a call, found out by changing some of them and looking at the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..jacobians.dependence import linear
from ..recording.record import Call, Value
from ..recording.replay import replay
from .label_pushes import MIXED, NOTHING, SEVERAL, Label, compress, examples_of


def entangles(call: Call, y: Value, given: Sequence[Label], count: int) -> bool:
    """Tell whether one example's derivatives depend on another example, by changing some and looking at the rest.

    Args:
        call: the call, and `y`, its result.
        given: the labels of its arguments.
        count: the number of examples.
    """
    if not y.differentiable or not any(i.value is not None and i.value.differentiable for i in call.inputs):
        return False
    moving = [at for at, i in enumerate(call.inputs) if i.dtype.is_floating_point or i.dtype.is_complex]
    if all(given[at] is None or linear(call, at) for at in moving):
        return False
    examples = torch.arange(count)
    return any(_depends(call, y, given, some) for some in (examples % 2 == 1, examples < count / 2))


def _depends(call: Call, y: Value, given: Sequence[Label], changed: Tensor) -> bool:
    """Change what belongs to some examples, and all that is mixed; compare the derivatives of what did not change."""
    number, ones = call.outputs.index(y), torch.ones(y.shape, dtype=y.dtype)
    data, touched = [i.tensor() for i in call.inputs], [_touched(label, changed) for label in given]
    before = replay(call, data).gradients(number, ones)
    try:
        after = replay(call, _moved(data, touched)).gradients(number, ones)
    except RuntimeError:  # no numbers for this operator; those of other places are
        after = replay(call, _exchanged(data, touched)).gradients(number, ones)
    for p in before:
        compared = ~touched[p] if isinstance(given[p], Tensor) else torch.ones((), dtype=torch.bool)
        same = torch.equal(before[p], after[p])
        if not same and not torch.allclose(before[p] * compared, after[p] * compared, rtol=1e-3):
            return True
    return False


def _moved(data: Sequence[Tensor], touched: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        x + torch.rand(x.shape, generator=generator).to(x.dtype) * t if x.is_floating_point() else x
        for x, t in zip(data, touched, strict=True)
    ]


def _exchanged(data: Sequence[Tensor], touched: Sequence[Tensor]) -> list[Tensor]:
    """Put numbers of other places there."""
    generator = torch.Generator().manual_seed(0)
    other = [x.flatten()[torch.randperm(x.numel(), generator=generator)].reshape(x.shape) for x in data]
    return [torch.where(t, o, x) if x.is_floating_point() else x for x, o, t in zip(data, other, touched, strict=True)]


def _touched(label: Label, changed: Tensor) -> Tensor:
    """Say which scalars of an argument belong to the examples that change; broadcasts to its shape."""
    if isinstance(label, Tensor):
        single = examples_of(label)
        return changed[label.masked_fill(~single, 0).long()] & single | (label == SEVERAL)
    return torch.tensor(label is MIXED)


def probed(call: Call, y: Value, given: Sequence[Label], count: int) -> Label:
    """Find the label of a constant by running its operator with the numbers of some examples changed.

    Examples change by the bits of their numbers, those in which a bit is set and those in which it is not: a scalar
    that changes in one of the two for every bit depends on the one example that the bits name. What cannot be changed
    (integers), or run again, counts as a mixture of all.

    Args:
        call, y, given, count: as for `entangles`.
    """
    some = [label for label in given if label is not None]
    single = {int(label) for label in some if isinstance(label, Tensor) and label.numel() == 1}
    if len(single) == 1 and all(isinstance(label, Tensor) and label.numel() == 1 for label in some):
        return torch.full([1] * len(y.shape), single.pop(), dtype=torch.int32)
    whole = any(
        label is not None and not (i.dtype.is_floating_point or i.dtype.is_complex)
        for i, label in zip(call.inputs, given, strict=True)
    )
    if whole or any(label is MIXED for label in some) or call.results:
        return MIXED
    try:
        return _by_bits(call, call.outputs.index(y), given, torch.arange(count))
    except (RuntimeError, NotImplementedError, ValueError):
        return MIXED


def beside(call: Call, y: Value, at: int, label: Label, count: int) -> Label:
    """Find what one argument, a constant of which no rule speaks, says of a result; None unless that is sure.

    It is where every scalar of the result is seen to change with one example.

    Args:
        call, y, count: as for `entangles`.
        at: which argument; `label`: its own.
    """
    found = probed(call, y, [label if n == at else None for n in range(len(call.inputs))], count)
    return found if isinstance(found, Tensor) and bool(examples_of(found).all()) else None


def _by_bits(call: Call, number: int, given: Sequence[Label], examples: Tensor) -> Label:
    data = [i.tensor() for i in call.inputs]
    before = _ran(call, number, data)
    found = torch.zeros(before.shape, dtype=torch.int32)
    several, reached = torch.zeros(before.shape, dtype=torch.bool), torch.zeros(before.shape, dtype=torch.bool)
    for bit in range(max(1, (len(examples) - 1).bit_length())):
        on, off = (
            _ran(call, number, _changed(data, given, (examples >> bit & 1) == side)) != before for side in (1, 0)
        )
        several |= on & off
        reached |= on | off
        found |= on.to(torch.int32) << bit
    return compress(found.masked_fill(~reached, NOTHING).masked_fill(several, SEVERAL))


def _ran(call: Call, number: int, data: list[Tensor]) -> Tensor:
    out = call.run(data)[number]
    assert out is not None
    return out.nan_to_num(0.0)


def _changed(data: list[Tensor], given: Sequence[Label], which: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for x, label in zip(data, given, strict=True):
        touched = _touched(label, which)
        noise = torch.rand(x.shape, generator=generator).to(x.dtype) + 0.5
        out.append(torch.where(touched, x + noise, x) if bool(touched.any()) else x)
    return out
