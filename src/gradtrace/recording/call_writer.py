"""Write the calls of a layer that ran as one call in its place: one method call for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layouts import Layout, contiguous
from .record import Again, Call, Input, Saved, Slot, Value
from .storage import layout_of

_aten = torch.ops.aten
SLOTS = tuple(map(Slot, range(3)))


class Operand(NamedTuple):
    """A tensor inside a layer: its value (None: not followed), where it lies, and its data where that is kept.

    Attributes:
        constant: what it is among the record's constants.
    """

    value: Value | None
    at: Layout
    saved: Saved | None
    constant: Value | None = None

    @property
    def data(self) -> Tensor:
        assert self.saved is not None
        return self.saved.get()


class Operator(NamedTuple):
    """What a call has of an operator: see `Call`."""

    op: Any
    name: str
    base: str


def _operator(op: Any) -> Operator:
    return Operator(op, str(op), op._schema.name.split("::")[1])


T, VIEW, UNBIND = _operator(_aten.t.default), _operator(_aten.view.default), _operator(_aten.unbind.int)
MM, ADDMM, ADD = _operator(_aten.mm.default), _operator(_aten.addmm.default), _operator(_aten.add.Tensor)
MUL, ADDCMUL, SUB = _operator(_aten.mul.Tensor), _operator(_aten.addcmul.default), _operator(_aten.sub.Tensor)
TANH, SIGMOID, RELU = (_operator(getattr(_aten, name).default) for name in ("tanh", "sigmoid", "relu"))
SPLIT, SLICE = _operator(_aten.split_with_sizes.default), _operator(_aten.slice.Tensor)
STACK, CAT, CLONE = _operator(_aten.stack.default), _operator(_aten.cat.default), _operator(_aten.clone.default)
TRANSPOSE = _operator(_aten.transpose.int)


class Writer:
    """Write calls in the place of a fused one, and number what they make.

    Args:
        fused: the call.
        first: the first of the numbers that are kept free for this.

    Attributes:
        calls: what autograd follows; `constants`: what it does not, and says something about examples.
    """

    def __init__(self, fused: Call, first: int) -> None:
        self.calls: list[Call] = []
        self.constants: list[Call] = []
        self._fused, self._number = fused, first
        self._kind, self._device = fused.inputs[0].dtype, fused.inputs[0].device

    def argument(self, position: int) -> Operand:
        """Give an argument of the fused call."""
        x = self._fused.inputs[position]
        assert isinstance(x.saved, Saved)
        return Operand(x.value, Layout(x.shape, x.stride, x.offset), x.saved, x.constant)

    def __call__(
        self,
        operator: Operator,
        inputs: Sequence[Operand],
        at: Layout,
        saved: Saved | None = None,
        *,
        args: tuple[Any, ...] = (),
        into: Value | None = None,
        **kwargs: Any,
    ) -> Operand:
        """Write a call with one result.

        Args:
            operator: what is called.
            inputs: its tensor arguments.
            at: how its result lies.
            saved: its result, where that is kept.
            args, kwargs: its arguments, where there are others than tensors.
            into: the value that is its result, where the program has that one.
        """
        (made,) = self._write(operator, inputs, [at], [saved], args, kwargs, into)
        if saved is not None and made.value is not None:
            self.calls[-1].results, made.value.depth = (saved,), 0
        return made

    def several(
        self, operator: Operator, given: Operand, results: Sequence[Layout], *args: Any, saved: Sequence[Saved] = ()
    ) -> list[Operand]:
        """Write a view with several results."""
        return self._write(operator, [given], results, saved or [None] * len(results), (SLOTS[0], *args), {})

    def _write(
        self,
        operator: Operator,
        inputs: Sequence[Operand],
        results: Sequence[Layout],
        saved: Sequence[Saved | None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        into: Value | None = None,
    ) -> list[Operand]:
        given, depth, followed = [], 1, False
        for value, at, data, constant in inputs:
            kept: Saved | Again | None = data
            if value is not None:
                followed = True
                if data is None:
                    kept, depth = Again(value), max(depth, 1 + (value.depth or 0))
            given.append(Input(value, *at, self._kind, self._device, kept, constant))
        of = self._fused
        call = Call(0, *operator, tuple(given), args or SLOTS[: len(given)], kwargs, of.scopes, of.source)
        if not followed:
            return self._constant(call)
        values = [Value(0, at.size, self._kind) for at in results] if into is None else [into]
        self._number = self._number if into is None else into.id
        for value in values:
            value.id, value.call, value.depth = self._number, call, depth
            self._number += 1
        call.outputs = tuple(values)
        self.calls.append(call)
        return [Operand(*made) for made in zip(values, results, saved, strict=True)]

    def _constant(self, call: Call) -> list[Operand]:
        """Run a call that autograd does not follow; it is written down where it says something about examples."""
        made = [t for t in call.run() if t is not None]
        values: list[Value | None] = [None] * len(made)
        if any(x.constant is not None for x in call.inputs):
            for n, t in enumerate(made):
                values[n] = value = Value(self._number, tuple(t.shape), self._kind, differentiable=False)
                value.call = call
                self._number += 1
            call.outputs = tuple(values)
            self.constants.append(call)
        return [Operand(None, layout_of(t), Saved(t), value) for t, value in zip(made, values, strict=True)]


def lines(*size: int) -> Layout:
    """Give the layout of a contiguous tensor."""
    return Layout(size, contiguous(size), 0)


def parts(of: Layout, sizes: Sequence[int], dim: int) -> list[Layout]:
    """Give where the parts of a tensor lie that is split along an axis."""
    out, start = [], of.offset
    for n in sizes:
        out.append(Layout((*of.size[:dim], n, *of.size[dim + 1 :]), of.stride, start))
        start += n * of.stride[dim]
    return out


def split(write: Writer, given: Operand, sizes: Sequence[int], dim: int, saved: Sequence[Saved] = ()) -> list[Operand]:
    """Split a tensor along an axis."""
    return write.several(SPLIT, given, parts(given.at, sizes, dim), list(sizes), dim, saved=saved)


def halves(write: Writer, given: Operand) -> list[Operand]:
    """Split a tensor whose data is kept in two, along its last axis."""
    half = given.at.size[1] // 2
    return split(write, given, [half, half], 1, [Saved.own(part) for part in given.data.chunk(2, 1)])


def joined(
    write: Writer, operator: Operator, parts: Sequence[Operand], dim: int, data: Tensor | None, into: Value | None
) -> Operand:
    """Write a stack, or a cat along an axis."""
    size = list(parts[0].at.size)
    if operator is STACK:
        size.insert(dim, len(parts))
    else:
        size[dim] = sum(p.at.size[dim] for p in parts)
    args = ([Slot(n) for n in range(len(parts))], dim)
    return write(operator, parts, lines(*size), None if data is None else Saved(data), args=args, into=into)


def as_rows(write: Writer, x: Operand) -> Operand:
    """See a sequence, steps × batch × features, as rows."""
    if len(x.at.size) == 2:
        return x
    data, shape = x.data, [x.at.size[0] * x.at.size[1], x.at.size[2]]
    flat = data.flatten(0, 1)
    if flat.data_ptr() != data.data_ptr():
        data = data.contiguous()
        flat = data.flatten(0, 1)
        x = write(CLONE, [x], lines(*x.at.size), Saved(data), memory_format=torch.contiguous_format)
    return write(VIEW, [x], layout_of(flat), Saved(flat), args=(SLOTS[0], shape))


def section(write: Writer, given: Operand, start: int, end: int) -> Operand:
    """Take some of a tensor's rows."""
    data = given.data[start:end]
    return write(
        SLICE, [given], parts(given.at, [start, end - start], 0)[1], Saved(data), args=(SLOTS[0], 0, start, end)
    )


def turned(write: Writer, x: Operand, into: Value | None) -> Operand:
    """Write a transposition of batch and steps."""
    data = x.data.transpose(0, 1)
    return write(TRANSPOSE, [x], layout_of(data), Saved(data), args=(SLOTS[0], 0, 1), into=into)
