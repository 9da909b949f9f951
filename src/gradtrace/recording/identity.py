"""Values: which tensor at which moment a tensor of the program stands for.

A leaf is known by its identity, the result of a custom function by its autograd node, everything else by where it
lies in which storage (a storage is a cell, see `storage`). What autograd does not follow has no value: the
tensors themselves say so (`requires_grad`, `is_leaf`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NotOnTape, Unsupported
from .autograd_functions import CustomFunction, CustomNode, name_of, refuse_reentrant
from .layouts import Layout
from .record import Call, Input, Record, Saved, Scope, Slot, Value
from .scopes import source_line
from .storage import Cell, alias, disjoint, layout_of, overlay
from .strangers import stranger


class Values:
    """The values of a record, by tensor.

    Args:
        record: where leaves, and the calls that read a storage after writes, are added.
        examples: tensors whose first dimension enumerates the examples.
    """

    def __init__(self, record: Record, examples: Sequence[Tensor]) -> None:
        self.record = record
        self.leaves: dict[int, tuple[Tensor, Value]] = {}
        self.open = True  # whether new leaves and functions may appear
        self._cells: dict[tuple[int, bool], Cell] = {}
        self._customs: dict[Any, Call] = {}
        self._made: dict[int, tuple[tuple[Scope, ...], str]] = {}
        self._examples = list(examples)  # alive as long as their cells are looked up
        for tensor in examples:
            record.example_values.append(self._example(tensor))
            record.examples = tensor.shape[0]

    def _example(self, tensor: Tensor) -> Value:
        if tensor.requires_grad and tensor.is_leaf:
            return self.leaf(tensor)
        value = self.record.value(tensor, differentiable=False)
        self._cell(tensor, followed=False).write(layout_of(tensor), value)
        return value

    def name(self, name: str, tensor: Tensor) -> None:
        """Give a leaf its name; a second name of a tied parameter becomes an alias."""
        if torch.nn.parameter.is_lazy(tensor):
            raise Unsupported(f"the lazy parameter {name!r} has no shape yet: run the model once before recording")
        if not (tensor.requires_grad and tensor.is_leaf):
            self.record.frozen.add(name)
        elif id(tensor) in self.leaves:
            self.record.aliases[name] = str(self.leaves[id(tensor)][1].name)
        else:
            self.leaf(tensor, name)

    def leaf(self, tensor: Tensor, name: str | None = None) -> Value:
        """Find or make the value of a leaf tensor.

        Raises:
            NotOnTape: the recording is over, and it was not used.
        """
        known = self.leaves.get(id(tensor))
        if known is None:
            if not self.open:
                raise NotOnTape(f"this leaf tensor of shape {tuple(tensor.shape)} was not used in the recorded code")
            if tensor.is_complex():
                raise Unsupported(
                    f"a complex leaf of shape {tuple(tensor.shape)}: gradtrace traces from real ones only; make it "
                    "with torch.view_as_complex or torch.complex from a real parameter"
                )
            name = name or f"leaf{len(self.leaves)}"
            known = tensor, self.record.value(tensor, name=name)
            known[1].data, known[1].depth = Saved(tensor), 0
            self.leaves[id(tensor)] = known
            self.record.leaves[name] = known[1]
        return known[1]

    def _cell(self, tensor: Tensor, *, followed: bool) -> Cell:
        """Find a storage's cell: one for what autograd follows, one for the rest, which autograd keeps apart too."""
        storage = tensor.untyped_storage()
        key = storage._cdata, followed
        cell = self._cells.get(key)
        if cell is None or cell.ref() is not storage:
            cell = self._cells[key] = Cell(weakref.ref(storage))
        return cell

    def lookup(self, tensor: Tensor, at: Layout | None = None) -> Value | None:
        """Find the value that a tensor stands for at this moment; None if autograd does not follow it.

        Args:
            tensor: any tensor of the program.
            at: its layout, where that is known already.

        Raises:
            NotOnTape: autograd follows it, but the tape has not seen how it was made.
        """
        followed = tensor.requires_grad
        if not followed and self.record.examples is None:
            return None
        if followed and tensor.is_leaf:
            value = self.leaf(tensor)
        else:
            value = self._find(tensor, at or layout_of(tensor), followed)
        if value is not None and followed:
            value.confirmed = True
        return value

    def _find(self, tensor: Tensor, at: Layout, followed: bool) -> Value | None:
        node = tensor.grad_fn
        if isinstance(node, CustomNode):
            return self._custom(tensor, node)
        cell = self._cell(tensor, followed=followed)
        found = cell.views.get(at, ())
        if len(found) == 1:
            return found[0]
        if found:
            seq = node._sequence_nr() if node is not None else -1
            return next((v for v in found if v.seq == seq), found[0])
        if any(not disjoint(at, a) for a, _ in cell.writes) or (cell.writes and tensor.numel() == 0):
            return self._alias(tensor, cell, at)
        if followed:
            raise stranger(tensor)
        return None

    def seen(self, tensor: Tensor) -> Value | None:
        """Find a value under no_grad, for its example labels only; None if there is none."""
        if tensor.requires_grad and tensor.is_leaf:  # perhaps no leaf at all: views made under no_grad say so too
            return self.leaves[id(tensor)][1] if id(tensor) in self.leaves else None
        try:
            return self.lookup(tensor)
        except NotOnTape:
            return None

    def _custom(self, tensor: Tensor, node: Any) -> Value:
        """Find, or put on the tape, the call of the custom function that made a tensor."""
        scopes, source = self._made.get(tensor.untyped_storage()._cdata, ((), ""))
        waiting = [node]
        while waiting:  # functions of functions, whose results no operator has used
            unknown = [f for f, _ in waiting[-1].next_functions if isinstance(f, CustomNode) and f not in self._customs]
            if unknown:
                waiting += unknown
            elif (last := waiting.pop()) not in self._customs:
                self._customs[last] = self._custom_call(last, scopes, source)
        call = self._customs[node]
        assert isinstance(call.op, CustomFunction)
        call.op.results[tensor.output_nr] = tensor.detach()
        return _result(call, tensor.output_nr)

    def _custom_call(self, node: Any, scopes: tuple[Scope, ...], source: str) -> Call:
        refuse_reentrant(node)
        op = CustomFunction(node)
        values = [self._behind(fn, number) for fn, number in node.next_functions if fn is not None]
        inputs = tuple(Input(v, v.shape, (), 0, v.dtype, op.results[0].device, None) for v in values)
        slots = tuple(Slot(i) for i in range(len(inputs)))
        name = f"autograd.{name_of(node)}"
        call = Call(len(self.record.calls), op, name, name, inputs, slots, {}, scopes, source)
        call.outputs = tuple(self.record.value(result) for result in op.results)
        for value in call.outputs:
            assert value is not None
            value.call = call
        self.record.calls.append(call)
        return call

    def _behind(self, node: Any, number: int) -> Value:
        """Find the value that an autograd node made as its result `number`."""
        if hasattr(node, "variable"):
            return self.leaf(node.variable)
        if node in self._customs:
            return _result(self._customs[node], number)
        seq = node._sequence_nr()
        for call in reversed(self.record.calls):
            for value in call.outputs:
                if value is not None and (value.seq, value.number) == (seq, number):
                    return value
        raise NotOnTape(f"an argument of a custom autograd.Function comes from {node.name()}, which was not recorded")

    def _alias(self, tensor: Tensor, cell: Cell, at: Layout) -> Value:
        """Read a storage through an alias that was made before the last write to it."""
        numel = tensor.untyped_storage().nbytes() // tensor.element_size() * (2 if tensor.is_complex() else 1)
        flat = Layout((numel,), (1,), 0)
        if [a for a, _ in cell.writes] != [flat]:
            layouts = tuple(a for a, _ in cell.writes)
            slots = [Slot(i) for i in range(len(layouts))]
            whole = self._pseudo(overlay, (slots, layouts, numel), [v for _, v in cell.writes], (numel,), tensor)
            cell.writes = [(flat, whole)]
        value = self._pseudo(alias, (Slot(0), at), [cell.writes[0][1]], at.size, tensor)
        cell.views.setdefault(at, []).append(value)
        return value

    def _pseudo(
        self,
        op: Callable[..., Any],
        args: tuple[Any, ...],
        values: list[Value],
        shape: tuple[int, ...],
        like: Tensor,
    ) -> Value:
        """Add a call that no program made: it reads a storage after writes."""
        inputs = tuple(Input(v, v.shape, (), 0, v.dtype, like.device, None) for v in values)
        name = f"gradtrace.{op.__name__}"
        call = Call(len(self.record.calls), op, name, name, inputs, args, {}, (), source_line())
        value = self.record.value(like, differentiable=like.requires_grad)
        value.shape, value.call = shape, call
        call.outputs = (value,)
        self.record.calls.append(call)
        return value

    def place(self, tensor: Tensor, value: Value, *, writes: bool) -> None:
        """Note which storage holds a new value: written there, or a view of what it held."""
        cell, at = self._cell(tensor, followed=value.differentiable), layout_of(tensor)
        if writes and not (value.differentiable and _is_stranger(tensor, at, cell)):
            cell.write(at, value)
        else:
            cell.views.setdefault(at, []).append(value)

    def made(self, tensor: Tensor, where: tuple[tuple[Scope, ...], str]) -> None:
        """Note where a tensor was made that autograd does not follow, perhaps inside a custom function."""
        self._made[tensor.untyped_storage()._cdata] = where


def _is_stranger(tensor: Tensor, at: Layout, cell: Cell) -> bool:
    """Tell whether a tensor is an alias detached from what its cell holds, which keeps its own history."""
    if not cell.writes or tensor.requires_grad:
        return False
    return any(v.confirmed and not disjoint(at, a) for a, v in cell.writes)


def _result(call: Call, number: int) -> Value:
    value = call.outputs[number]
    assert value is not None
    return value
