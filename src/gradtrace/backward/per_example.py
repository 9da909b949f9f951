"""The split: cotangents of a result whose rows belong to examples, carried back to an argument that has none.

There each example gets elements of its own (a batch axis in front), so that a parameter's strongest path is found
for each example at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

from ..jacobians.index_maps import Reordered
from ..jacobians.structure import Contraction, Convolved, Gather, Structure
from ..kernels.fast import pull as fast_pull
from ..kernels.product import Product
from ..kernels.reference import each, pull
from ..kernels.shared_exponent import Plane, Pulled
from ..recording.record import Value
from ..semirings.base import Carrier, Element
from .example_labels import Labels
from .label_pushes import refit


def pull_by_example(structure: Structure, carrier: Carrier, g: Element, y: Value, x: Value, labels: Labels) -> Element:
    """Carry elements from a result to an argument, keeping examples apart where the argument is apart."""
    batch = labels.batch(x)
    if batch == labels.batch(y):
        return pull(structure, carrier, g)
    label = labels.of.get(y.id)
    assert batch > 1
    if isinstance(label, Tensor):
        out = _split(structure, carrier, g, y, label, labels.count)
    else:
        out = each(pull(structure, carrier, g), lambda p: p.expand(labels.count, *p.shape[1:]))
    own = labels.mask(x)
    return out if own is None else _masked(carrier, each(out, lambda p: p.reshape(batch, *x.shape)), own)


def _masked(carrier: Carrier, g: Element, own: Tensor) -> Element:
    """Keep the elements that are each example's own; the rest is zero."""
    zero = carrier.zero((), g)
    return tuple(torch.where(own, p, z) for p, z in zip(g, zero, strict=True))


def _split(structure: Structure, carrier: Carrier, g: Element, y: Value, label: Tensor, count: int) -> Element:
    """Tell apart, on the way to an argument, what belongs to each example in the result."""
    if isinstance(structure, Convolved):
        shape = (count, *structure.x_shape)
        parts = [_split(part, carrier, g, y, label, count) for part in structure.parts()]
        return reduce(carrier.plus, [each(part, lambda p: p.reshape(shape)) for part in parts])
    if isinstance(structure, Gather):
        return _gather_split(structure, carrier, g, label.expand(y.shape), count)
    if isinstance(structure, Contraction):
        found = divide(structure, refit(label, y.shape, structure.y_shape), count)
        if found is not None:
            out = pull(found.contraction, carrier, each(g, lambda p: found.ordered(p, structure.y_shape)))
            return each(out, lambda p: p.squeeze(0))
    own = torch.arange(count).reshape(-1, *[1] * len(y.shape)) == label
    return pull(structure, carrier, _masked(carrier, g, own))


def _gather_split(s: Gather, carrier: Carrier, g: Element, label: Tensor, count: int) -> Element:
    """Give each example rows of its own to gather into."""
    numel = prod(s.x_shape)

    def index() -> Tensor:
        flat = s.scalars().reshape(label.shape)
        return torch.where((flat >= 0) & (label >= 0), flat + label * numel, -1)

    out = pull(Gather(index, s.y_shape, (count * numel,)), carrier, g)
    return each(out, lambda p: p.reshape(count, *s.x_shape))


@dataclass(frozen=True)
class Division:
    """A contraction of which the one merged axis along which examples differ is split into (example, rest).

    Attributes:
        axis: of y; `order`: its positions, one example's after another's; None where they lie so.
    """

    contraction: Contraction
    axis: int
    order: Tensor | None

    def ordered(self, data: Tensor, y_shape: tuple[int, ...]) -> Tensor:
        """Bring values (1 × y) into the order, in the contraction's shape of y."""
        data = data.reshape(1, *y_shape)
        data = data if self.order is None else data.index_select(1 + self.axis, self.order)
        return data.reshape(1, *self.contraction.y_shape)

    def places(self, y_shape: tuple[int, ...]) -> Tensor:
        """Give for each position in that order the position in y."""
        assert self.order is not None
        return torch.arange(prod(y_shape)).reshape(y_shape).index_select(self.axis, self.order).flatten()


def divide(s: Contraction, label: Tensor, count: int) -> Division | None:
    """Split the one merged axis along which examples differ into (example, rest); None if there isn't one."""
    axes = [d for d in range(label.dim()) if label.shape[d] > 1]
    axis = axes[0] if axes else next((d for d, c in enumerate(s.y) if c not in s.x and count == 1), None)
    if len(axes) > 1 or axis is None or s.y[axis] in s.x or bool((label < 0).any()):
        return None
    vector = label.flatten() if axes else label.new_zeros(s.y_shape[axis])
    sizes = torch.bincount(vector, minlength=count)
    if len(sizes) != count or bool((sizes != sizes[0]).any()):
        return None
    sorts, each_size = torch.argsort(vector, stable=True), int(sizes[0])
    order = None if bool((vector[1:] >= vector[:-1]).all()) else sorts
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
    return Division(Contraction(y, new + s.x, y_shape, (count, *s.x_shape), w, given), axis, order)


def plane_by_example(
    structure: Structure, g: Plane, y: Value, x: Value, labels: Labels
) -> tuple[Pulled | Product, bool]:
    """The same for the planes of the compiled kernels: (what the argument gets, whether examples were told apart)."""
    if labels.batch(x) == labels.batch(y):
        return fast_pull(structure, g), False
    label, own = labels.of.get(y.id), labels.mask(x)
    if isinstance(label, Tensor):
        out, split = _plane_split(structure, g, y, label, labels.count)
    else:
        out, split = fast_pull(structure, g), False
        out = out.realise() if isinstance(out, Product) else out
    return (out, split) if own is None else (_plane_masked(out, own, labels.count, x), split)


def _plane_masked(part: Pulled | Product, own: Tensor, count: int, x: Value) -> Pulled:
    """Keep what is each example's own."""
    part = part.realise() if isinstance(part, Product) else part
    part = part.laid_out((len(part.plane.data) if part.window is not None else count, *x.shape))
    plane = part.plane
    data = torch.where(own, plane.data.reshape(-1, *x.shape), 0)
    raw = None if part.raw is None else part.raw.reshape(-1, *x.shape)
    return Pulled(Plane(data, plane.exponent, plane.high, plane.low, owned=True), raw, part.way)


def _plane_split(structure: Structure, g: Plane, y: Value, label: Tensor, count: int) -> tuple[Pulled | Product, bool]:
    """Tell apart, on the way to an argument, what belongs to each example in the result."""
    if isinstance(structure, Convolved) and len(structure.parts()) == 1:
        (structure,) = structure.parts()
    if isinstance(structure, Gather):
        rows = _rows_apart(structure, label.expand(y.shape), count)
        if rows is not None:
            return _unstacked(fast_pull(rows, g), (count, *structure.x_shape)), True
    if isinstance(structure, Contraction):
        found = divide(structure, refit(label, y.shape, structure.y_shape), count)
        if found is not None:
            data = found.ordered(g.data, structure.y_shape)
            part = fast_pull(found.contraction, Plane(data, g.exponent, g.high, g.low))
            return _in_order(part, found, structure.y_shape, count), True
    data = torch.where(torch.arange(count).reshape(-1, *[1] * len(y.shape)) == label, g.data, 0)
    out = fast_pull(structure, Plane(data, g.exponent, g.high, g.low))
    return out.realise() if isinstance(out, Product) else out, False


def _in_order(part: Pulled | Product, found: Division, y_shape: tuple[int, ...], count: int) -> Pulled | Product:
    """Take the examples' axis for the batch, and let ways lead to y as it is."""
    if isinstance(part, Product) and found.order is None:
        part.split = True
        return part
    pulled = part.realise() if isinstance(part, Product) else part
    if found.order is not None:
        pulled = Pulled(pulled.plane, pulled.raw, Reordered(pulled.way, lambda: found.places(y_shape)))
    return _unstacked(pulled, (count, *found.contraction.x_shape[1:]))


def _unstacked(part: Pulled | Product, shape: tuple[int, ...]) -> Pulled:
    """Take the first axis of x for the batch."""
    assert isinstance(part, Pulled)
    part = part.laid_out((1, prod(shape)))
    plane = Plane(part.plane.data.reshape(shape), part.plane.exponent, part.plane.high, part.plane.low, owned=True)
    return Pulled(plane, None if part.raw is None else part.raw.reshape(shape), part.way)


def _rows_apart(s: Gather, label: Tensor, count: int) -> Gather | None:
    """Give each example rows of its own to gather into; None where rows are shared by examples."""
    if s.width > 1 and label.stride(-1) != 0:
        return None
    rows, size = label.reshape(-1, s.width)[:, 0], prod(s.x_shape) // max(1, s.width)

    def index() -> Tensor:
        flat = s.index().reshape(-1)
        return torch.where((flat >= 0) & (rows >= 0), flat + rows * size, -1)

    return Gather(index, s.y_shape, (count * size, s.width), s.width)
