"""Constants made from the examples: what autograd does not follow, and only says what belongs to which example.

They are kept beside the values that autograd follows, in `Record.constants`, so that giving examples changes no answer
about the batch. A constant is known by its tensor as long as nobody has written to its storage, which tells apart the
rows of an expanded tensor too; after a write, or where the tensor is an alias that the recording has not seen being
made, by where it lies in its storage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .identity import Values, nobody
from .record import HERE, Call, Input, Record, Value
from .scopes import source_line
from .storage import Cells, Identities, alias, cell_of, layout_of, read, version_of

LINK, OVERLAY = "gradtrace.link", "gradtrace.overlay"


class Constants:
    """The constants of a record, by tensor.

    Args:
        record: where calls and values are added.
        values: what autograd follows.
        examples: tensors whose first dimension enumerates the examples.
    """

    def __init__(self, record: Record, values: Values, examples: Sequence[Tensor]) -> None:
        self.record, self.values = record, values
        self._known = Identities()
        self._cells: Cells = {}
        self._examples = list(examples)  # alive as long as their cells are looked up
        for tensor in examples:
            value = record.value(tensor, differentiable=False)
            self.note(tensor, value, writes=True, version=version_of(tensor))
            record.example_values.append(value)
            record.examples = tensor.shape[0]
            if id(tensor) in values.leaves:
                self.link(tensor, values.leaves[id(tensor)][1])
        values.told = self.link

    def note(self, tensor: Tensor, value: Value, *, writes: bool, version: int) -> None:
        """Note what a tensor stands for.

        Args:
            writes: whether it was written to its storage; otherwise it is a view of what that held.
            version: of the storage, by which later writes are noticed.
        """
        self._known.note(tensor, version, value)
        cell, at = cell_of(self._cells, tensor), layout_of(tensor)
        if writes:
            cell.write(at, value)
        else:
            cell.views.setdefault(at, []).append(value)

    def wipe(self, tensor: Tensor) -> None:
        """Note that a tensor was overwritten by what says nothing about examples."""
        if tensor.untyped_storage()._cdata in self._cells:
            self.note(
                tensor, self.record.value(tensor, differentiable=False), writes=True, version=version_of(tensor) + 1
            )

    def lookup(self, tensor: Tensor) -> Value | None:
        """Find what a tensor says about examples: as a value that autograd follows, or as a constant."""
        if not tensor.requires_grad:
            return self.constant(tensor)
        found = self.values.peek(tensor) or self.constant(tensor)
        if found is None and not tensor.is_leaf and (cell := self.values.written(tensor)) is not None:
            found = read(self.record, self.record.constants, cell, tensor, layout_of(tensor))
        return found

    def constant(self, tensor: Tensor) -> Value | None:
        """Find the constant that a tensor stands for at this moment."""
        known = self._known.find(tensor)
        if known is not None:
            return known
        cell, at = cell_of(self._cells, tensor), layout_of(tensor)
        found = cell.views.get(at)
        if found:
            return found[-1]
        if tensor.numel() and cell.touches(at):
            return read(self.record, self.record.constants, cell, tensor, at)
        return None

    def link(self, tensor: Tensor, value: Value) -> None:
        """Note that a value that autograd follows from here on holds a constant: a leaf, a result, a whole storage."""
        whole = value.call is not None and value.call.name == OVERLAY
        constant = self._storage(tensor) if whole else self.constant(tensor)
        if constant is None or constant is value:
            return
        given = Input(constant, constant.shape, (), 0, constant.dtype, HERE, None)
        self.record.count += 1  # which says when
        when = (self.record.count - 1,)
        call = Call(len(self.record.constants), alias, LINK, LINK, (given,), when, {}, (), source_line())
        call.outputs = (value,)
        self.record.constants.append(call)

    def _storage(self, tensor: Tensor) -> Value | None:
        """Find what was in the whole of a tensor's storage."""
        cell = cell_of(self._cells, tensor)
        if not cell.writes:
            return None
        read(self.record, self.record.constants, cell, tensor, layout_of(tensor))
        return cell.writes[0][1]

    def close(self) -> None:
        """Forget the tensors: the recording is over."""
        self.values.told = nobody
        self._known.clear()
        self._cells.clear()
        self._examples.clear()


def when(call: Call) -> int:
    """Order calls by the numbers of their results, which count up; those without one are nobody's."""
    if call.name == LINK:
        return call.args[0]
    return min((v.id for v in call.outputs if v is not None), default=-1)
