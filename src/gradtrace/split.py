"""The split: cotangents of a result whose rows belong to examples, carried back to an argument that has none.

There each example gets elements of its own (a batch axis in front), so that a parameter's strongest path is found
for each example at once.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .kernels.reference import each, pull
from .labels import UNKNOWN, Labels, refit
from .semiring import Carrier, Element
from .structure import Contraction, Gather, Structure
from .tape import Value


def pull_by_example(structure: Structure, carrier: Carrier, g: Element, y: Value, x: Value, labels: Labels) -> Element:
    """Carry elements from a result to an argument, keeping examples apart where the argument is free."""
    label = labels.of.get(y.id)
    if not labels.free(x) or label is None:
        return pull(structure, carrier, g)
    if not isinstance(label, Tensor):
        out = pull(structure, carrier, g)
        return each(out, lambda p: p.expand(labels.count, *p.shape[1:]))
    if isinstance(structure, Gather):
        return _gather_split(structure, carrier, g, label.expand(y.shape), labels.count)
    if isinstance(structure, Contraction):
        split = _contraction_split(structure, g, refit(label, y.shape, structure.y_shape), labels.count)
        if split is not None:
            return pull(split[0], carrier, split[1])
    apart = (torch.arange(labels.count).reshape(-1, *[1] * len(y.shape)) == label) | (label == UNKNOWN)
    zero = carrier.zero((), g)
    g = tuple(torch.where(apart, p, z) for p, z in zip(g, zero, strict=True))
    return pull(structure, carrier, g)


def _gather_split(s: Gather, carrier: Carrier, g: Element, label: Tensor, count: int) -> Element:
    """Give each example rows of its own to gather into."""
    numel = prod(s.x_shape)

    def index() -> Tensor:
        flat = s.index().reshape(label.shape)
        return torch.where(flat >= 0, flat + label * numel, -1)

    out = pull(Gather(index, s.y_shape, (count * numel,)), carrier, g)
    return each(out, lambda p: p.reshape(count, *s.x_shape))


def _contraction_split(s: Contraction, g: Element, label: Tensor, count: int) -> tuple[Contraction, Element] | None:
    """Split the one merged axis along which examples differ into (example, rest); None if there isn't one."""
    axes = [d for d in range(label.dim()) if label.shape[d] > 1]
    axis = axes[0] if axes else next((d for d, c in enumerate(s.y) if c not in s.x and count == 1), None)
    if len(axes) > 1 or axis is None or s.y[axis] in s.x or bool((label == UNKNOWN).any()):
        return None
    vector = label.flatten() if axes else label.new_zeros(s.y_shape[axis])
    sizes = torch.bincount(vector, minlength=count)
    if len(sizes) != count or bool((sizes != sizes[0]).any()):
        return None
    order, each_size = torch.argsort(vector, stable=True), int(sizes[0])
    letter, new = s.y[axis], next(c for c in "ZYXWVUTSRQP" if c not in s.y + s.x + s.w)
    g = each(g, lambda p: p.reshape(1, *s.y_shape).index_select(1 + axis, order))
    y_shape = (*s.y_shape[:axis], count, each_size, *s.y_shape[axis + 1 :])

    def weight() -> Tensor:
        assert s.weight is not None
        given = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
        at = s.w.index(letter)
        full = s.weight().reshape([given[c] for c in s.w]).index_select(at, order)
        return full.unflatten(at, (count, each_size))

    w = s.w.replace(letter, new + letter)
    given = s.weight if letter not in s.w else weight
    y = s.y.replace(letter, new + letter)
    return Contraction(y, new + s.x, y_shape, (count, *s.x_shape), w, given), g
