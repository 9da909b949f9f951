"""Complex numbers as pairs: rules of real operators, asked about complex ones.

A complex number is two real scalars, so that one derivative is a block of up to 2 × 2. For a complex derivative u + iv
it is [[u, -v], [v, u]]: rows by the parts of the result, columns by those of the argument; a real result has the first
row only, a real argument the first column. `lifted` asks a rule about a call in which a complex number is one scalar
(`numbers`), and writes its structures out in pairs (`lift`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...recording.layouts import Layout
from ...recording.record import Call, Input, Value, flat_tensors
from ..structure import (
    LETTERS,
    Constant,
    Contraction,
    Edges,
    Gather,
    Placed,
    Scatter,
    Sparse,
    Strided,
    Structure,
    Weight,
)
from .dense import whole
from .table import Edge, Rule


def blocks(w: Tensor, y: bool, x: bool) -> Tensor:
    """Give the blocks of derivatives w, as axes behind those of w; `y`, `x`: which of the sides are pairs.

    >>> blocks(torch.tensor(3 + 4j), True, True).tolist()
    [[3.0, -4.0], [4.0, 3.0]]
    """
    u, v = (w.real, w.imag) if w.is_complex() else (w, torch.zeros_like(w))
    rows = [(u, -v), (v, u)][: 1 + y]
    return torch.stack([part for row in rows for part in row[: 1 + x]], -1).reshape(*w.shape, *[2] * (y + x))


@dataclass(eq=False, slots=True)
class Number(Input):
    """An argument whose complex numbers are scalars, made of one in which they are `pairs`."""

    pairs: Input | None = None

    def tensor(self) -> Tensor:
        assert self.pairs is not None
        found = self.pairs.tensor()
        return torch.view_as_complex(found.contiguous()) if self.dtype.is_complex else found


class Numbers(Call):
    """A call in which complex numbers are scalars."""

    def run(self, tensors: Sequence[Tensor] | None = None) -> list[Tensor | None]:
        data = [x.tensor() for x in self.inputs] if tensors is None else list(tensors)
        for position in self.written:
            data[position] = data[position].clone()
        args, kwargs = self.arguments(data)
        return list(flat_tensors(self.op(*args, **kwargs)))


def numbers(call: Call) -> Numbers:
    """See the complex numbers of a call as scalars."""
    seen = Numbers(**{f.name: getattr(call, f.name) for f in fields(call)})
    seen.inputs = tuple(_number(x) for x in call.inputs)
    if call.gives_complex:
        seen.outputs = tuple(y if y is None else Value(y.id, y.shape[:-1], y.dtype.to_complex()) for y in call.outputs)
    return seen


def _number(x: Input) -> Number:
    shape, stride, offset = x.shape, x.stride, x.offset
    if x.dtype.is_complex:
        shape, stride, offset = shape[:-1], tuple(s // 2 for s in stride[:-1]), offset // 2
    return Number(x.value, shape, stride, offset, x.dtype, x.device, x.saved, x.constant, x)


def lifted(rule: Rule) -> Rule:
    """Make the rule of complex numbers from that of real ones, for an operator that is complex-linear."""

    def pairwise(call: Call) -> Iterator[Edge]:
        for position, number, structure in rule(numbers(call)):
            found = lift(structure, call.gives_complex, call.inputs[position].dtype.is_complex)
            yield whole(call, position, number) if found is None else (position, number, found)

    return pairwise


def lift(s: Structure, y: bool, x: bool) -> Structure | None:
    """Write a structure of numbers out in pairs; None where none of the structures says it.

    Args:
        s: a structure whose weights, if any, are complex derivatives.
        y, x: whether the results, and the arguments, are pairs.
    """
    if isinstance(s, Contraction):
        return _contraction(s, y, x)
    if isinstance(s, Placed) and y and not x:
        at, shape = s.layout, (*s.y_shape, 2)
        return Placed(Layout(at.size, tuple(2 * t for t in at.stride), 2 * at.offset), shape)
    if not (x and y):
        return None
    match s:
        case Strided():
            return Strided(_doubled(s.layout), (*s.x_shape, 2))
        case Placed():
            return Placed(_doubled(s.layout), (*s.y_shape, 2), tuple(map(_doubled, s.hidden)))
        case Gather():
            return Gather(s.index, (*s.y_shape, 2), (*s.x_shape, 2), 2 * s.width)
        case Scatter():
            return Scatter(lambda: _both(s.index()), (*s.y_shape, 2), (*s.x_shape, 2))
        case Sparse() if s.y_shape[2] == 1:
            (outer, m, _), (_, n, _) = s.y_shape, s.x_shape
            return Sparse(lambda: _edges(*s.edges()), (outer, 2 * m, 1), (outer, 2 * n, 1))
    return None


def _edges(i: Tensor, j: Tensor, w: Tensor | None) -> Edges:
    """Give the edges between parts: two for each edge of real weight, four for one of complex weight."""
    part = torch.arange(2, device=i.device)
    if w is None or not w.is_complex():
        both = (2 * i[:, None] + part).flatten(), (2 * j[:, None] + part).flatten()
        return *both, None if w is None else w.repeat_interleave(2)
    # edge × part of y × part of x
    to, source = (2 * i[:, None, None] + part[:, None]).expand(-1, 2, 2), (2 * j[:, None, None] + part).expand(-1, 2, 2)
    return to.flatten(), source.flatten(), blocks(w, True, True).flatten()


def _doubled(at: Layout) -> Layout:
    return Layout((*at.size, 2), (*(2 * t for t in at.stride), 1), 2 * at.offset)


def _both(index: Tensor) -> Tensor:
    """Give the positions of both parts of each number."""
    at = (2 * index).unsqueeze(-1) + torch.arange(2, device=index.device)
    return at.masked_fill(index.unsqueeze(-1) < 0, -1)


def _contraction(s: Contraction, y: bool, x: bool) -> Contraction:
    part = next(c for c in reversed(LETTERS) if c not in s.y + s.x)
    real = s.weight is None or isinstance(s.weight, Constant)
    if real and x and y:  # part by part
        weight = _constant(s.weight) if isinstance(s.weight, Constant) else None
        return Contraction(s.y + part, s.x + part, (*s.y_shape, 2), (*s.x_shape, 2), s.w, weight)
    return blocked(s, _weight(s), y, x)


def _constant(w: Constant) -> Constant:
    return Constant(w.value, w.shape, w.dtype.to_real() if w.dtype.is_complex else w.dtype, w.device)


def _weight(s: Contraction) -> Weight:
    given = s.weight
    return (lambda: torch.ones(())) if given is None else given


def blocked(s: Contraction, weight: Weight, y: bool, x: bool, whole: bool = False) -> Contraction:
    """Give the contraction whose weights are blocks.

    Args:
        s: says which number depends on which.
        weight: complex derivatives, in the letters of s; or, if `whole`, the blocks themselves.
        y, x: which of the sides are pairs.
    """
    of_y, of_x = [c for c in reversed(LETTERS) if c not in s.y + s.x][:2]
    return Contraction(
        s.y + of_y * y,
        s.x + of_x * x,
        (*s.y_shape, *[2] * y),
        (*s.x_shape, *[2] * x),
        s.w + of_y * y + of_x * x,
        weight if whole else lambda: blocks(weight(), y, x),
    )
