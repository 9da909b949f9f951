"""Values: which tensor at which moment a tensor that autograd follows stands for.

A leaf is known by its identity, the result of a custom function by its autograd node, everything else by where it
lies in which storage (a storage is a cell, see `storage`) and, where several lie there alike, by autograd's node and
the number of its result. What autograd does not follow has no value here: the tensors themselves say so
(`requires_grad`, `is_leaf`). What belongs to which example is kept apart, in `constants`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import NotOnTape, Unsupported
from .autograd_functions import CustomFunction, CustomNode, generated_name, name_of, refuse_reentrant
from .layouts import Layout
from .ranks import Parts, handed_on, reduces
from .record import Call, Input, Record, Scope, Slot, Value
from .storage import Cell, Cells, Identities, Saving, cell_of, disjoint, layout_of, read, root_of, version_of
from .strangers import stranger


class Values:
    """The values of a record, by tensor.

    Args:
        record: where leaves, and the calls that read a storage after writes, are added.
        saving: what leaves' data are saved by.
        parts: parameters of which this rank has a part.
    """

    def __init__(self, record: Record, saving: Saving, parts: Parts) -> None:
        self.record, self._saving, self._parts = record, saving, parts
        self.leaves: dict[int, tuple[Tensor, Value]] = {}
        self.open = True  # whether new leaves and functions may appear
        # is told of values that may hold constants: leaves (`x.clone().requires_grad_()`), custom functions' results,
        # and whole storages, of which parts were written to
        self.told: Callable[[Tensor, Value], None] = nobody
        self._storages: dict[int, Value] = {}  # of leaves
        self._known = Identities()
        self._cells: Cells = {}
        self._customs: dict[Any, Call] = {}
        self._made: dict[int, tuple[tuple[Scope, ...], str]] = {}
        self._nodes: dict[tuple[int, int], Value] = {}
        self._indexed = 0  # how many calls' results are among them
        self._waiting: dict[int, Call] = {}  # of libraries' operators, by the storage of a result
        self._unseen: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # roots written to under no_grad, and their nodes
        self._renewed: set[int] = set()  # numbers of nodes that autograd has made for this call's arguments
        self._last = -1  # the number of the last node that was there before this call

    def name(self, name: str, tensor: Tensor) -> None:
        """Give a leaf its name; a second name of a tied parameter becomes an alias."""
        if torch.nn.parameter.is_lazy(tensor):
            raise Unsupported(f"the lazy parameter {name!r} has no shape yet: run the model once before recording")
        if not (tensor.requires_grad and tensor.is_leaf):
            self.record.frozen.add(name)
            if not tensor.is_leaf:
                self.record.derived.add(name)
        elif id(tensor) in self.leaves:
            self.record.aliases[name] = str(self.leaves[id(tensor)][1].name)
        else:
            self.leaf(tensor, name)

    def part(self, name: str, part: Tensor) -> None:
        """Give a parameter its name of which this rank has a part: it is a leaf once the whole is in its place."""
        first = self._parts.wait(name, part)
        if first is not None:
            self.record.aliases[name] = first

    def leaf(self, tensor: Tensor, name: str | None = None) -> Value:
        """Find or make the value of a leaf tensor.

        Raises:
            NotOnTape: the recording is over, and it was not used.
        """
        known = self.leaves.get(id(tensor))
        if known is None and name is None and self._parts:
            known = self._whole(tensor)
        if known is None:
            if not self.open:
                raise NotOnTape(f"this leaf tensor of shape {tuple(tensor.shape)} was not used in the recorded code")
            if tensor.is_complex():
                raise Unsupported(
                    f"a complex leaf of shape {tuple(tensor.shape)}: gradtrace traces from real ones only; make it "
                    "with torch.view_as_complex or torch.complex from a real parameter"
                )
            name = name or f"leaf{len(self.leaves) + len(self._parts.waiting)}"
            known = tensor, self.record.value(tensor, name=name)
            known[1].data, known[1].depth = self._saving.save(tensor), 0
            self._storages[tensor.untyped_storage()._cdata] = known[1]
            self.leaves[id(tensor)] = known
            self.record.leaves[name] = known[1]
            self.told(tensor, known[1])
        return known[1]

    def _whole(self, tensor: Tensor) -> tuple[Tensor, Value] | None:
        """Name the parameters that have been put in the place of their parts; find the one that is meant."""
        for name, whole in self._parts.in_place():
            self._saving.copy(whole)  # FSDP frees the memory before a trace is made
            self.leaf(whole, name)
        part = self._parts.names.get(id(tensor))
        if part in self.record.leaves:
            return tensor, self.record.leaves[part]
        return self.leaves.get(id(tensor))

    def close(self) -> None:
        """End: what was never whole is a leaf of which nothing is known, and leaves come in the model's order."""
        self.open = False
        if not self._parts:
            return
        for name, part in self._parts.waiting.items():
            value = self.record.value(part, name=name)
            self.leaves[id(part)], self.record.leaves[name] = (part, value), value
        self._parts.waiting.clear()
        order = {name: n for n, name in enumerate(self._parts.order)}
        leaves = sorted(self.record.leaves.items(), key=lambda item: order.get(item[0], len(order)))
        self.record.leaves.clear()
        self.record.leaves.update(leaves)

    def _cell(self, tensor: Tensor) -> Cell:
        """Find a storage's cell, as views of the tensor's root see it."""
        return cell_of(self._cells, tensor, root_of(tensor))

    def lookup(self, tensor: Tensor, at: Layout | None = None) -> Value | None:
        """Find the value that a tensor stands for at this moment; None if autograd does not follow it.

        Args:
            tensor: any tensor of the program.
            at: its layout, where that is known already.

        Raises:
            NotOnTape: autograd follows it, but the tape has not seen how it was made.
        """
        if not tensor.requires_grad:
            return None
        if tensor.is_leaf:
            return None if _is_cut(tensor) else self.leaf(tensor)
        return self._known.find(tensor) or self._find(tensor, at or layout_of(tensor))

    def _find(self, tensor: Tensor, at: Layout) -> Value:
        node = tensor.grad_fn
        if isinstance(node, CustomNode):
            return self._custom(tensor, node)
        if self._unseen:
            self._refuse_unseen(tensor)
        if tensor._base is not None:
            self._renew(node)
        cell = self._cell(tensor)
        if not cell.views:  # what autograd saved for its backward pass, and unpacks there, is a tensor of its own
            others = [c for c in self._cells[tensor.untyped_storage()._cdata] if c.views]
            cell = next((c for c in others if _made_here(tensor, c)), others[-1] if others else cell)
        found = _told_apart(tensor, cell.views.get(at, ()))
        if found is not None:
            return found
        if cell.writes:  # there, or elsewhere in what it is a view of
            return self._alias(tensor, cell, at)
        raise stranger(tensor)

    def _refuse_unseen(self, tensor: Tensor) -> None:
        """Refuse what a custom function has written to through a view: autograd tells nobody which function it was.

        Raises:
            Unsupported: says what to do.
        """
        root = root_of(tensor)
        ref, number = self._unseen.get(id(root), (None, -1))
        if root is not None and ref is not None and ref() is root and _number(root) != number:
            raise Unsupported(
                f"a custom autograd.Function wrote in place to a view of a tensor of shape {tuple(root.shape)} "
                "(mark_dirty): PyTorch does not say what it did there. Give the function a clone() of the view, and "
                "copy its result back"
            )

    def _renew(self, node: Any) -> None:
        """Note nodes that autograd may have made only now, of a view of what was written to."""
        number = node._sequence_nr() if node is not None else -1
        while node is not None and node._sequence_nr() == number > self._last:
            self._renewed.add(number)
            node, number = node.next_functions[0][0] if node.next_functions else None, number - 1

    def last_node(self) -> int:
        """Give the number of the node that autograd made for the call whose arguments were looked up last."""
        self._last = last = torch._C._autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        while last in self._renewed:  # they were made after it
            last -= 1
        self._renewed.clear()
        return last

    def peek(self, tensor: Tensor) -> Value | None:
        """Find the value of a tensor that autograd follows without changing anything; None if that takes a new call."""
        if tensor.is_leaf:
            return self.leaves[id(tensor)][1] if id(tensor) in self.leaves else None
        known = self._known.find(tensor)
        if known is not None:
            return known
        if isinstance(tensor.grad_fn, CustomNode):
            return self._known_behind(tensor)
        return _told_apart(tensor, self._cell(tensor).views.get(layout_of(tensor), ()))

    def _known_behind(self, tensor: Tensor) -> Value | None:
        """Find the value of a custom function's result, if the function is on the tape, or handed on what is."""
        node, number = handed_on(tensor.grad_fn, tensor.output_nr)
        if isinstance(node, CustomNode):
            return _result(self._customs[node], number) if node in self._customs else None
        with suppress(NotOnTape):
            return self._behind(node, number)

    def written(self, tensor: Tensor) -> Cell | None:
        """Give a copy of a storage's cell, if what was written there may be in a tensor."""
        cell = self._cell(tensor)
        return Cell(cell.ref, cell.root, list(cell.writes)) if cell.touches(layout_of(tensor)) else None

    def seen(self, tensor: Tensor) -> Value | None:
        """Find the value of a tensor that is being detached; None if there is none."""
        if tensor.requires_grad and tensor.is_leaf:  # perhaps no leaf at all: views made under no_grad say so too
            return self.leaves[id(tensor)][1] if id(tensor) in self.leaves else None
        try:
            return self.lookup(tensor)
        except NotOnTape:
            return None

    def _custom(self, tensor: Tensor, node: Any) -> Value:
        """Find, or put on the tape, the call of the custom function that made a tensor."""
        self.record.reduces |= reduces(node)
        node, number = handed_on(node, tensor.output_nr)
        if not isinstance(node, CustomNode):
            value = self._behind(node, number)
            self._place_custom(tensor, value)
            return value
        scopes, source = self._made.get(tensor.untyped_storage()._cdata, ((), ""))
        waiting = [node]
        while waiting:  # functions of functions, whose results no operator has used
            behind = (handed_on(*pair)[0] for pair in waiting[-1].next_functions)
            unknown = [f for f in behind if isinstance(f, CustomNode) and f not in self._customs]
            if unknown:
                waiting += unknown
            elif (last := waiting.pop()) not in self._customs:
                self._customs[last] = self._custom_call(last, scopes, source, tensor if last is node else None)
        call = self._customs[node]
        if isinstance(call.op, CustomFunction):
            call.op.results[number] = tensor.detach().cpu()
        value = _result(call, number)
        if value.seq < 0:
            value.seq, value.number = node._sequence_nr(), number
            self._place_custom(tensor, value)
            self.told(tensor, value)
        return value

    def _place_custom(self, tensor: Tensor, value: Value) -> None:
        """Note where a custom function's result lies: in memory of its own, or in that of an argument."""
        cell = self._cell(tensor)
        new = not (cell.writes or cell.views) and tensor.untyped_storage()._cdata not in self._storages
        self.place(tensor, value, writes=new, version=version_of(tensor))

    def _custom_call(self, node: Any, scopes: tuple[Scope, ...], source: str, tensor: Tensor | None) -> Call:
        refuse_reentrant(node)
        op = CustomFunction(node)
        known = self._waiting.pop(tensor.untyped_storage()._cdata, None) if tensor is not None else None
        known = known if known is not None and name_of(node) == generated_name(known.op) else None
        behind = [None if fn is None else self._behind(fn, number) for fn, number in node.next_functions]
        if known is not None and len(behind) == len(known.inputs):
            for given, value in zip(known.inputs, behind, strict=True):
                given.value = value
            return self._add(known, scopes, source, op.results)
        values = [value for value in behind if value is not None]
        inputs = tuple(Input(v, v.shape, (), 0, v.dtype, op.results[0].device, None) for v in values)
        slots = tuple(Slot(i) for i in range(len(inputs)))
        name = f"autograd.{name_of(node)}"
        return self._add(Call(0, op, name, name, inputs, slots, {}, (), ""), scopes, source, op.results)

    def _add(self, call: Call, scopes: tuple[Scope, ...], source: str, results: list[Tensor]) -> Call:
        call.index, call.scopes, call.source = len(self.record.calls), scopes, source
        call.outputs = tuple(self.record.value(result) for result in results)
        for value in call.outputs:
            assert value is not None
            value.call = call
        self.record.calls.append(call)
        return call

    def wait(self, call: Call, tensors: Sequence[Tensor], result: Tensor) -> None:
        """Keep a library's operator, seen inside the function that PyTorch made for it, until its result is used."""
        for tensor in tensors:
            if isinstance(tensor.grad_fn, CustomNode):
                self.lookup(tensor)
        self._waiting[result.untyped_storage()._cdata] = call

    def _behind(self, node: Any, number: int) -> Value:
        """Find the value that an autograd node made as its result `number`."""
        node, number = handed_on(node, number)
        if hasattr(node, "variable"):
            return self.leaf(node.variable)
        if node in self._customs:
            return _result(self._customs[node], number)
        for call in self.record.calls[self._indexed :]:
            self._nodes.update(((v.seq, v.number), v) for v in call.outputs if v is not None)
        self._indexed = len(self.record.calls)
        value = self._nodes.get((node._sequence_nr(), number))
        if value is not None:
            return value
        raise NotOnTape(f"an argument of a custom autograd.Function comes from {node.name()}, which was not recorded")

    def _alias(self, tensor: Tensor, cell: Cell, at: Layout) -> Value:
        """Read a storage through an alias that was made before the last write to it."""
        return read(self.record, self.record.calls, cell, tensor, at, self.told)

    def meet(self, tensor: Tensor) -> None:
        """Meet a tensor inside a custom function, perhaps: after a write, autograd knows a view by another node."""
        if tensor.is_leaf or not version_of(tensor):
            return
        node = tensor.grad_fn
        if node is None or isinstance(node, CustomNode):
            return
        with suppress(NotOnTape):
            found = self._known.find(tensor) or self._find(tensor, layout_of(tensor))
            self._nodes[node._sequence_nr(), tensor.output_nr] = found

    def held(self) -> list[tuple[Value, Tensor]]:
        """List the tensors that autograd follows and the program still has, with their values."""
        return [(value, tensor) for value, tensor in self._known.held() if tensor.requires_grad]

    def rewritten(self, tensor: Tensor, *, followed: bool) -> None:
        """Note that numbers change of which autograd takes no notice: what is there cannot be computed again.

        Args:
            followed: whether it does take notice of those that are views of the tensor's own root.
        """
        key, at = tensor.untyped_storage()._cdata, layout_of(tensor)
        if key in self._storages:
            self._storages[key].depth = None
        own = self._cell(tensor) if followed else None
        if tensor._base is not None and key in self._cells and not torch.is_grad_enabled():
            self._unseen[id(tensor._base)] = weakref.ref(tensor._base), _number(tensor._base)
        for cell in self._cells.get(key, ()):
            if cell is not own:
                for layout, value in cell.values():
                    if not disjoint(layout, at):
                        value.depth = None

    def place(self, tensor: Tensor, value: Value, *, writes: bool, version: int, view_of: Tensor | None = None) -> None:
        """Note which storage holds a new value: written there, or a view of what it held; and what its version is.

        Args:
            view_of: of what, where autograd has not been told yet.
        """
        self._known.note(tensor, version, value)
        cell = self._cell(tensor if view_of is None else view_of)
        if writes:
            if self._unseen:  # it was looked up before
                self._unseen.pop(id(root_of(tensor)), None)
            cell.write(layout_of(tensor), value)
        else:
            cell.views.setdefault(layout_of(tensor), []).append(value)

    def made(self, tensor: Tensor, where: tuple[tuple[Scope, ...], str]) -> None:
        """Note where a tensor was made that autograd does not follow, perhaps inside a custom function."""
        self._made[tensor.untyped_storage()._cdata] = where


def nobody(tensor: Tensor, value: Value) -> None:
    """Is told, where nobody else asks to be."""


def _number(tensor: Tensor) -> int:
    """Give the number of a tensor's node."""
    return tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else -1


def _is_cut(tensor: Tensor) -> bool:
    """Tell whether a leaf that requires grad is none, but a view made under no_grad."""
    base = tensor._base
    return base is not None and base.requires_grad


def _made_here(tensor: Tensor, cell: Cell) -> bool:
    """Tell whether autograd's node of a tensor is that of a value in a cell."""
    made = _number(tensor), tensor.output_nr
    return any((v.seq, v.number) == made for _, v in cell.values())


def _told_apart(tensor: Tensor, found: Sequence[Value]) -> Value | None:
    """Choose among the values of one layout: autograd's node and its output number tell two views apart."""
    if len(found) < 2:
        return found[0] if found else None
    made = _number(tensor), tensor.output_nr
    return next((v for v in reversed(found) if (v.seq, v.number) == made), found[0])


def _result(call: Call, number: int) -> Value:
    value = call.outputs[number]
    assert value is not None
    return value
