"""Storages as cells: a write makes a new version, an alias read later is an index map of that version.

Autograd tells apart aliases that share no history: what is written through `detach()` or `.data` is no part of the
original's, though it lies in the same memory. So a storage has a cell for each root: what others are views of.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, UntypedStorage

from ..errors import Unsupported
from .layouts import Layout, positions
from .record import HERE, Call, Input, Record, Saved, Slot, Value
from .scopes import source_line


def layout_of(tensor: Tensor) -> Layout:
    """Say where a tensor's scalars lie in its storage; a complex number is two of them, as in `view_as_real`."""
    size, stride, offset = tensor.shape, tensor.stride(), int(tensor.storage_offset())
    if tensor.is_complex():
        return Layout((*size, 2), (*(2 * s for s in stride), 1), 2 * offset)
    return Layout(tuple(size), stride, offset)


@lru_cache(maxsize=1 << 14)  # a recurrent layer asks about the same few gates at every step
def disjoint(a: Layout, b: Layout) -> bool:
    """Tell whether two layouts surely share no scalar (False when in doubt)."""
    if 0 in a.size or 0 in b.size:
        return True
    (first, last), (begin, end) = span(a), span(b)
    if last < begin or end < first:
        return True
    if a.stride != b.stride or any(s <= 0 for s in a.stride):
        return False
    ours, theirs = _box(a), _box(b)
    if ours is None or theirs is None:
        return False
    return any(p + n <= q or q + m <= p for (p, n), (q, m) in zip(ours, theirs, strict=True))


@lru_cache(maxsize=1 << 14)
def span(layout: Layout) -> tuple[int, int]:
    """Give the first and the last position of a layout that is not empty."""
    ends = [(n - 1) * step for n, step in zip(layout.size, layout.stride, strict=True)]
    return layout.offset + sum(e for e in ends if e < 0), layout.offset + sum(e for e in ends if e > 0)


def _box(layout: Layout) -> list[tuple[int, int]] | None:
    """Write a layout as (start, length) on the grid of its own strides; None if it wraps around."""
    order = sorted(range(len(layout.size)), key=lambda d: -layout.stride[d])
    rest, box, room = layout.offset, [], None
    for d in order:
        start, rest = divmod(rest, layout.stride[d])
        if room is not None and (start + layout.size[d]) * layout.stride[d] > room:
            return None
        box.append((start, layout.size[d]))
        room = layout.stride[d]
    return [*box, (rest, 1)]


def overlay(parts: Sequence[Tensor], layouts: Sequence[Layout], numel: int) -> Tensor:
    """Lay tensors into a flat storage, later ones over earlier ones (a storage after in-place writes)."""
    flat = parts[0].new_zeros(numel)
    for part, at in zip(parts, layouts, strict=True):
        flat = flat.scatter(0, positions(at, flat.device).flatten(), part.flatten())
    return flat


def alias(flat: Tensor, at: Layout) -> Tensor:
    """Read a flat storage through a layout."""
    return flat.as_strided(at.size, at.stride, at.offset)


@dataclass(eq=False, slots=True)
class Cell:
    """A storage, as views of one root see it: the writes that made its content, and the values that stand for views.

    The storage and the root are held weakly, by their Python objects, which live as long as they do: others may come
    to lie at their addresses.
    """

    ref: weakref.ref[UntypedStorage]
    root: weakref.ref[Tensor] | None = None
    writes: list[tuple[Layout, Value]] = field(default_factory=list)
    views: dict[Layout, list[Value]] = field(default_factory=dict)

    def write(self, at: Layout, value: Value) -> None:
        """Overwrite a layout; views that may overlap it are no longer what they were."""
        if self.views or self.writes:  # most results lie in a storage of their own, which nobody has seen
            self.writes = [(a, v) for a, v in self.writes if a != at]
            self.views = {a: v for a, v in self.views.items() if disjoint(a, at)}
        self.writes.append((at, value))
        self.views[at] = [value]

    def values(self) -> Iterator[tuple[Layout, Value]]:
        """List what lies where: what was written, and views."""
        yield from self.writes
        for at, found in self.views.items():
            for value in found:
                yield at, value

    def touches(self, at: Layout) -> bool:
        """Tell whether something that was written may lie in a layout."""
        return any(not disjoint(at, a) for a, _ in self.writes)


class Saving:
    """Saves tensors without copying them, and copies those that are about to be overwritten."""

    def __init__(self) -> None:
        self._saved: dict[int, list[Saved]] = {}
        self._copies: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def copy(self, tensor: Tensor) -> None:
        """Copy a tensor's storage, to the CPU: what is saved of it from now on lies there."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._copies:
            self._copies[storage._cdata] = storage, storage.clone() if storage.device == HERE else storage.cpu()

    def save(self, tensor: Tensor, *, written: bool = False) -> Saved:
        """Save a tensor, as `Saved` does."""
        key = tensor.untyped_storage()._cdata
        if key in self._copies:
            place = tensor.storage_offset(), tensor.size(), tensor.stride()
            return Saved.own(torch.empty(0, dtype=tensor.dtype).set_(self._copies[key][1], *place))
        saved = Saved(tensor, written=written)
        self._saved.setdefault(key, []).append(saved)
        return saved

    def overwrite(self, tensor: Tensor) -> None:
        """Copy what was saved of a tensor that is about to be overwritten."""
        key = tensor.untyped_storage()._cdata
        there = self._saved.pop(key, None)
        if there is None:
            return
        at, apart = layout_of(tensor), []
        for saved in there:
            # a recurrent cell's gates lie side by side, each with a version of its own: written to one by one
            if not saved.shares_version(tensor) and disjoint(layout_of(saved.data), at):
                apart.append(saved)
            else:
                saved.keep()
        if apart:
            self._saved[key] = apart

    def close(self) -> None:
        """Leave what is written from now on to whoever reads: it will be stale."""
        self._saved.clear()
        self._copies.clear()


class Lazies:
    """Lazy conjugates and negatives, which a recording makes solid, with what they would be views of.

    Tensors that might see each other's writes are a group, each held weakly; their storages find it.
    """

    def __init__(self) -> None:
        self._groups: dict[int, tuple[weakref.ref[UntypedStorage], list[weakref.ref[Tensor]]]] = {}

    def __bool__(self) -> bool:
        """Tell whether there have been any."""
        return bool(self._groups)

    def note(self, of: Tensor, made: Sequence[Tensor]) -> None:
        """Note that tensors are views of another one, or would be."""
        group = self._group(of)
        members = (of, *made) if of._base is None else (of, of._base, *made)
        group += map(weakref.ref, members)
        for tensor in members:
            storage = tensor.untyped_storage()
            self._groups[storage._cdata] = weakref.ref(storage), group

    def _group(self, tensor: Tensor) -> list[weakref.ref[Tensor]]:
        storage = tensor.untyped_storage()
        known = self._groups.get(storage._cdata)
        return known[1] if known is not None and known[0]() is storage else []

    def view(self, of: Tensor, made: Sequence[Tensor]) -> None:
        """Note views of what may be in a group."""
        if self._group(of):
            self.note(of, made)

    def refuse_write(self, name: str, tensor: Tensor) -> None:
        """Refuse a write that would be seen in another tensor which is still there.

        Raises:
            Unsupported: says what to do.
        """
        storage = tensor.untyped_storage()
        others = (ref() for ref in self._group(tensor))
        if any(other is not None and other.untyped_storage() is not storage for other in others):
            raise Unsupported(
                f"{name} writes to a tensor of which there is a lazy conjugate or negative (x.conj(), .imag of one), "
                "or to such a view itself: recording makes copies of these, which would not see the write. Take "
                "x.conj().clone() where the view is made"
            )


class Identities:
    """Values by tensor, as long as nobody has written to its storage since: the quickest way to tell what it is.

    It also spares autograd's nodes: each one that Python has looked at is freed by recursion, and a chain of some ten
    thousand would end the process.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Value]] = {}

    def note(self, tensor: Tensor, version: int, value: Value) -> None:
        """Note what a tensor stands for, while its storage has this version."""
        self._known[id(tensor)] = weakref.ref(tensor), version, value

    def find(self, tensor: Tensor) -> Value | None:
        """Give what a tensor stands for, if that is sure."""
        known = self._known.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != version_of(tensor):
            return None
        return known[2]

    def held(self) -> list[tuple[Value, Tensor]]:
        """List what the program still has, with its values."""
        found = ((value, ref()) for ref, _, value in list(self._known.values()))
        return [(value, tensor) for value, tensor in found if tensor is not None]

    def clear(self) -> None:
        """Forget them all."""
        self._known.clear()


def version_of(tensor: Tensor) -> int:
    """Give the number of writes to a tensor's storage; inference tensors do not count them."""
    return -1 if tensor.is_inference() else tensor._version


Cells: TypeAlias = dict[int, list[Cell]]  # by storage


def cell_of(cells: Cells, tensor: Tensor, root: Tensor | None = None) -> Cell:
    """Find or make the cell of a tensor's storage, as views of a root see it; None: whichever there is."""
    storage = tensor.untyped_storage()
    found = cells.get(storage._cdata)
    if found is None or found[0].ref() is not storage:
        found = cells[storage._cdata] = []
    for cell in found:
        if root is None or cell.root is None or cell.root() is root:
            return cell
    found.append(Cell(weakref.ref(storage), None if root is None else weakref.ref(root)))
    return found[-1]


def root_of(tensor: Tensor) -> Tensor | None:
    """Give the tensor that autograd knows this one as a view of, itself if of none.

    None if that one lies elsewhere: a lazy conjugate, which is made solid.
    """
    base = tensor._base
    if base is None:
        return tensor
    return base if base.untyped_storage() is tensor.untyped_storage() else None


def read(
    record: Record,
    calls: list[Call],
    cell: Cell,
    tensor: Tensor,
    at: Layout,
    told: Callable[[Tensor, Value], None] | None = None,
) -> Value:
    """Read a storage through an alias that was made before the last write to it, by calls that no program made.

    Args:
        record: numbers the new values.
        calls: where the calls are added: overlay, which lays all writes over each other, and alias.
        cell: the storage.
        tensor: the alias; `at`: its layout.
        told: is told of the value of the whole storage, where that is new.
    """
    numel = tensor.untyped_storage().nbytes() // tensor.element_size() * (2 if tensor.is_complex() else 1)
    flat = Layout((numel,), (1,), 0)
    if [a for a, _ in cell.writes] != [flat]:
        layouts = tuple(a for a, _ in cell.writes)
        slots = [Slot(i) for i in range(len(layouts))]
        args = slots, layouts, numel
        whole = _pseudo(record, calls, overlay, args, [v for _, v in cell.writes], (numel,), tensor)
        cell.writes = [(flat, whole)]
        if told is not None:
            told(tensor, whole)
    value = _pseudo(record, calls, alias, (Slot(0), at), [cell.writes[0][1]], at.size, tensor)
    cell.views.setdefault(at, []).append(value)
    return value


def _pseudo(
    record: Record,
    calls: list[Call],
    op: Callable[..., Any],
    args: tuple[Any, ...],
    values: list[Value],
    shape: tuple[int, ...],
    like: Tensor,
) -> Value:
    """Add a call that no program made."""
    inputs = tuple(Input(v, v.shape, (), 0, v.dtype, HERE, None) for v in values)
    name = f"gradtrace.{op.__name__}"
    call = Call(len(calls), op, name, name, inputs, args, {}, (), source_line())
    value = record.value(like, differentiable=calls is record.calls)
    value.shape, value.call = shape, call
    call.outputs = (value,)
    calls.append(call)
    return value
