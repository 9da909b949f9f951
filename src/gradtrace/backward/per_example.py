"""The split: cotangents of a result whose rows belong to examples, carried back to an argument that has none.

There each example gets elements of its own (a batch axis in front), so that a parameter's strongest path is found
for each example at once. `divide` says which rows of which structure go to which example, for whatever is carried.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..jacobians.index_maps import Affine, Reordered
from ..jacobians.structure import Contraction, Convolved, Gather, Shape, Structure
from ..kernels.fast import pull as fast_pull
from ..kernels.product import Product
from ..kernels.reference import each, pull
from ..kernels.shared_exponent import Plane, Pulled
from ..recording.record import Value
from ..semirings.base import Carrier, Element
from .example_labels import Labels
from .label_pushes import examples_of, refit


@dataclass(frozen=True, eq=False, slots=True)
class Division:
    """A structure by which the examples of a result go to an argument of each.

    Attributes:
        structure: to one argument after another, as if they were one; or, where `own` is given, to each by itself.
        y_shape: in which the structure sees the result.
        own: what of the result is each example's (examples × y).
        axis: of the result; `order`: its positions, one example's after another's; None where they lie so.
    """

    structure: Structure
    y_shape: Shape
    own: Tensor | None = None
    axis: int = 0
    order: Tensor | None = None

    def given(self, data: Tensor, zero: Tensor | float = 0) -> Tensor:
        """Bring values of the result (1 × y) into the order of the structure, or to each example its own."""
        if self.own is not None:
            return torch.where(self.own, data, zero)
        data = data.reshape(1, *self.y_shape)
        return data if self.order is None else data.index_select(1 + self.axis, self.order)


def divide(structure: Structure, y: Value, labels: Labels) -> Division | None:
    """Say how a result's examples are told apart on the way to an argument; None where no scalar is one's own."""
    label, count = labels.of.get(y.id), labels.count
    if not isinstance(label, Tensor):
        return None
    found, seen = None, structure
    if isinstance(structure, Convolved) and not structure.to_input:
        (seen,) = structure.parts()
    if isinstance(seen, Gather) and not labels.mixes(label):
        found = _rows_apart(seen, label.expand(y.shape), count)
    elif isinstance(seen, Contraction):
        key = id(label), y.shape, seen.y_shape, seen.y, seen.x
        if key not in labels.merged:
            labels.merged[key] = _merged(seen, refit(label, y.shape, seen.y_shape), count)
        found = _axis_apart(seen, labels.merged[key], count)
    if found is not None:
        return found
    return Division(structure, y.shape, labels.own(label, len(y.shape)))


def _rows_apart(s: Gather, label: Tensor, count: int) -> Division:
    """Give each example rows of its own to gather into: scalars, where rows are shared by examples."""
    width = s.width if s.width == 1 or label.stride(-1) == 0 else 1
    size = prod(s.x_shape) // max(1, width)

    def index() -> Tensor:
        flat = (s.index() if width == s.width else s.scalars()).reshape(-1)
        rows = label.reshape(-1, width)[:, 0]
        return torch.where((flat >= 0) & (rows >= 0), flat + rows * size, -1)

    return Division(Gather(index, s.y_shape, (count * size, width), width), s.y_shape)


class Merged(NamedTuple):
    """The one axis along which examples of a result differ, how many scalars each has, and their order, if mixed."""

    axis: int
    each: int
    order: Tensor | None


def _merged(s: Contraction, label: Tensor, count: int) -> Merged | None:
    """Find the one axis along which examples differ; None if there isn't one."""
    axes = [d for d in range(label.dim()) if label.shape[d] > 1]
    axis = axes[0] if axes else next((d for d, c in enumerate(s.y) if c not in s.x and count == 1), None)
    if len(axes) > 1 or axis is None or s.y[axis] in s.x or not bool(examples_of(label).all()):
        return None
    vector = label.flatten() if axes else label.new_zeros(s.y_shape[axis])
    sizes = torch.bincount(vector, minlength=count)
    if len(sizes) != count or bool((sizes != sizes[0]).any()):
        return None
    order = None if bool((vector[1:] >= vector[:-1]).all()) else torch.argsort(vector, stable=True)
    return Merged(axis, len(vector) // count, order)


def _axis_apart(s: Contraction, merged: Merged | None, count: int) -> Division | None:
    """Split the one merged axis along which examples differ into (example, rest)."""
    if merged is None:
        return None
    axis, each_size, order = merged
    letter, new = s.y[axis], next(c for c in "ZYXWVUTSRQP" if c not in s.y + s.x + s.w)
    y_shape = (*s.y_shape[:axis], count, each_size, *s.y_shape[axis + 1 :])

    def weight() -> Tensor:
        assert s.weight is not None
        given = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
        at = s.w.index(letter)
        full = s.weight().reshape([given[c] for c in s.w])
        full = full if order is None else full.index_select(at, order)
        return full.unflatten(at, (count, each_size))

    w, y = s.w.replace(letter, new + letter), s.y.replace(letter, new + letter)
    given = s.weight if letter not in s.w else weight
    split = Contraction(y, new + s.x, y_shape, (count, *s.x_shape), w, given)
    return Division(split, s.y_shape, axis=axis, order=order)


def pull_by_example(structure: Structure, carrier: Carrier, g: Element, y: Value, x: Value, labels: Labels) -> Element:
    """Carry elements from a result to an argument, keeping examples apart where the argument is apart."""
    batch = labels.batch(x)
    if batch == labels.batch(y):
        return pull(structure, carrier, g)
    found, own, zero = divide(structure, y, labels), labels.mask(x), carrier.zero((), g)
    if found is None:
        out = each(pull(structure, carrier, g), lambda p: p.reshape(1, *x.shape).expand(batch, *x.shape))
    else:
        out = pull(found.structure, carrier, tuple(found.given(p, z) for p, z in zip(g, zero, strict=True)))
        out = each(out, lambda p: p.reshape(batch, *x.shape))
    return out if own is None else tuple(torch.where(own, p, z) for p, z in zip(out, zero, strict=True))


def plane_by_example(
    structure: Structure, g: Plane, y: Value, x: Value, labels: Labels
) -> tuple[Pulled | Product, bool]:
    """The same for the planes of the compiled kernels: (what the argument gets, whether examples were told apart)."""
    if labels.batch(x) == labels.batch(y):
        return fast_pull(structure, g), False
    found, own = divide(structure, y, labels), labels.mask(x)
    if found is not None:
        structure, g = found.structure, Plane(found.given(g.data), g.exponent, g.high, g.low)
    out = fast_pull(structure, g)
    if isinstance(out, Product):
        if found is not None and found.own is None and found.order is None and own is None:
            out.split = True
            return out, True
        out = out.realise()
    if found is not None and found.own is None:
        out = _unstacked(out, (labels.count, *x.shape))
        if found.order is not None:
            out.way = Reordered(out.way, found.order, prod(found.y_shape[found.axis + 1 :]))
    return (out if own is None else _masked(out, own, x)), found is not None and found.own is None


def _unstacked(part: Pulled, shape: Shape) -> Pulled:
    """Take the first axis of x for the batch."""
    if (rows := part.rows_of(shape)) is not None:
        return _unstacked_rows(part, rows, shape)
    part = part.laid_out((1, prod(shape)))
    plane = Plane(part.plane.data.reshape(shape), part.plane.exponent, part.plane.high, part.plane.low, owned=True)
    return Pulled(plane, None if part.raw is None else part.raw.reshape(shape), part.way)


def _unstacked_rows(part: Pulled, rows: Tensor, shape: Shape) -> Pulled:
    """Do so for some rows, each of one example's: of all examples those that are any's."""
    plane, width = part.plane, part.plane.shape[2]
    found, number = torch.unique(rows % shape[1], return_inverse=True)
    number = number + rows // shape[1] * len(found)

    def of(some: Tensor) -> Tensor:
        out = some.new_zeros(1, shape[0] * len(found), width)
        return out.index_copy_(1, number, some).reshape(shape[0], len(found), width)

    way, apart = part.way, Plane(of(plane.data), plane.exponent, plane.high, plane.low, owned=True)
    if type(way) is Affine and way.shape == (shape[0] * shape[1], width):
        step, along = way.stride
        way = Affine((*shape[:2], width), (shape[1] * step, step, along), way.offset, way.step, way.table)
    return Pulled(apart, None if part.raw is None else of(part.raw), way, rows=found)


def _masked(part: Pulled, own: Tensor, x: Value) -> Pulled:
    """Keep what is each example's own."""
    part = part.laid_out((len(part.plane.data), *x.shape))
    plane = part.plane
    data = torch.where(own, plane.data.reshape(-1, *x.shape), 0)
    raw = None if part.raw is None else part.raw.reshape(-1, *x.shape).expand(data.shape)
    return Pulled(Plane(data, plane.exponent, plane.high, plane.low, owned=True), raw, part.way)
