"""Index maps: operators that only move scalars around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...recording.layouts import Layout, contiguous, positions
from ...recording.record import Call, Input, Value, flat_tensors
from ...recording.storage import layout_of
from ..structure import (
    Chain,
    Contraction,
    Edges,
    Gather,
    Placed,
    Scatter,
    Sparse,
    Strided,
    letters,
    sparse,
)
from .table import Edge, Rule, argument, data, gradient, position, register, rerun, result

ALIASING = {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_reshape_alias"}


@cache
def is_view(op: object, base: str) -> bool:
    """Tell whether an operator's results are windows onto its first argument."""
    inplace = torch.Tag.inplace_view in getattr(op, "tags", ())
    return inplace or getattr(op, "is_view", False) or base in ALIASING


def view(call: Call) -> Sequence[Edge]:
    """Run the view on an argument without data to see which window each result is; once for all that are alike."""
    x = call.inputs[0]
    # the first argument is x; numbers, lists of numbers and dtypes are left
    given = [tuple(a) if type(a) is list else a for a in call.args[1:]]
    key = (call.name, x.shape, x.dtype, *given, *call.kwargs.items())
    known = _SEEN.get(key)
    if known is None:
        if len(_SEEN) > 4096:
            _SEEN.clear()
        shape = x.shape[:-1] if x.dtype.is_complex else x.shape  # on the tape a complex number is a pair
        args, kwargs = call.arguments([torch.empty(shape, dtype=x.dtype, device="meta")])
        found = [layout_of(out) for out in flat_tensors(call.op(*args, **kwargs)) if out is not None]
        known = _SEEN[key] = tuple((0, number, Strided(layout, x.shape)) for number, layout in enumerate(found))
    return known


_SEEN: dict[tuple[Any, ...], tuple[Edge, ...]] = {}


def moves_pairs(call: Call) -> bool:
    """Tell whether a call on complex numbers moves them as they are: a view that neither conjugates nor negates."""
    return is_view(call.op, call.base) and call.base not in ("_conj", "_neg_view", "imag", "as_strided")


def as_strided(call: Call) -> Iterator[Edge]:
    """as_strided reads the storage, not the tensor: find each position in the argument's own layout."""
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None
    offset = argument(call, "storage_offset")
    offset = x.offset if offset is None else offset
    at = Layout(tuple(argument(call, "size")), tuple(argument(call, "stride")), offset)
    own = Layout(x.shape, x.stride, x.offset)
    yield 0, 0, Gather(lambda: _find(at, own), y.shape, x.shape)


def _find(at: Layout, own: Layout) -> Tensor:
    """Give, for each scalar of `at`, its flat index in a tensor laid out as `own`."""
    wanted, have = positions(at), positions(own).flatten()
    reach = max((int(p.max()) for p in (wanted, have) if p.numel()), default=-1)
    index = torch.full((reach + 1,), -1)
    index[have] = torch.arange(len(have))
    return index[wanted]


def overlaid(call: Call) -> Iterator[Edge]:
    """A storage after in-place writes: each part, except where a later one covers it."""
    _, layouts, numel = call.args
    for i, layout in enumerate(layouts):
        yield i, 0, Placed(layout, (numel,), tuple(layouts[i + 1 :]))


def aliased(call: Call) -> Iterator[Edge]:
    """Read a flat storage through a layout."""
    yield 0, 0, Strided(call.args[1], call.inputs[0].shape)


def cat(call: Call) -> Iterator[Edge]:
    """Each argument is a slab of the result; empty 1-d tensors are skipped, as cat does."""
    y = call.outputs[0]
    assert y is not None
    dim = _argument(call, 1, "dim", 0) % max(1, len(y.shape))
    stride, start = contiguous(y.shape), 0
    for number, x in enumerate(call.inputs):
        if x.shape == (0,) and len(y.shape) != 1:
            continue
        yield number, 0, Placed(Layout(x.shape, stride, start * stride[dim]), y.shape)
        start += x.shape[dim]


def stack(call: Call) -> Iterator[Edge]:
    """Each argument is a slice of the result."""
    y = call.outputs[0]
    assert y is not None
    dim = _argument(call, 1, "dim", 0) % len(y.shape)
    stride = contiguous(y.shape)
    for number, x in enumerate(call.inputs):
        kept = stride[:dim] + stride[dim + 1 :]
        yield number, 0, Placed(Layout(x.shape, kept, number * stride[dim]), y.shape)


def moved(call: Call, **changed: float) -> Iterator[Edge]:
    """Any operator that copies scalars of its first argument: run it on their positions.

    Args:
        call: the call.
        changed: plain arguments to replace, such as the value that padding fills in.
    """
    yield from _moved(call, (0,), changed)


def moved_each(call: Call) -> Iterator[Edge]:
    """Any operator that copies scalars of all its arguments to places that depend on shapes alone."""
    yield from _moved(call, tuple(range(len(call.inputs))), {})


def filling(name: str) -> Rule:
    """Make the rule of an operator that copies, and fills the rest with the argument `name`."""
    return lambda call: moved(call, **{name: 0})


def _moved(call: Call, sources: tuple[int, ...], changed: dict[str, float]) -> Iterator[Edge]:
    @cache
    def indices(source: int) -> list[Tensor]:
        # positions count from 1, so that what is filled in reads position 0: nothing
        tensors = [i.tensor() for i in call.inputs]
        if len(sources) > 1:
            tensors = [torch.zeros(t.shape, dtype=torch.float64) for t in tensors]
        numel = tensors[source].numel()
        tensors[source] = torch.arange(1, 1 + numel, dtype=torch.float64).reshape(call.inputs[source].shape)
        found = rerun(call, tensors, **changed) if changed else call.run(tensors)
        return [torch.full((0,), -1) if y is None else y.to(torch.int64) - 1 for y in found]

    for source in sources:
        for number, y in enumerate(call.outputs):
            if y is not None:
                index = lambda p=source, n=number: indices(p)[n]  # noqa: E731
                yield source, number, Gather(index, y.shape, call.inputs[source].shape)


def embedding(call: Call) -> Iterator[Edge]:
    """y[t, h] = weight[indices[t], h]; rows at padding_idx get no gradient.

    With `scale_grad_by_freq`, autograd's derivative is one over how often the row is read.
    """
    weight, indices = call.inputs[0], call.inputs[1]
    y = call.outputs[0]
    assert y is not None
    padding = _argument(call, 2, "padding_idx", -1)

    def index() -> Tensor:
        rows = indices.tensor().to(torch.int64)
        return rows.masked_fill(rows == padding, -1) if padding >= 0 else rows

    read = Gather(index, y.shape, weight.shape, weight.shape[1])
    yield 0, 0, Chain(_by_frequency(y, indices), read) if argument(call, "scale_grad_by_freq") else read
    # integers have no derivative; this edge only says which row of y an index chose
    name = letters(len(y.shape))
    yield 1, 0, Contraction(name, name[:-1], y.shape, indices.shape)


def _by_frequency(y: Value, indices: Input) -> Contraction:
    def weight() -> Tensor:
        rows = indices.tensor().to(torch.int64)
        return (1 / torch.bincount(rows.flatten()).to(y.dtype))[rows]

    name = letters(len(y.shape))
    return Contraction(name, name, y.shape, y.shape, name[:-1], weight)


def packed(call: Call) -> Iterator[Edge]:
    """_pack_padded_sequence copies the steps that count, longest sequence first."""
    x, y = call.inputs[0].shape, result(call).shape

    def index() -> Tensor:
        step = torch.arange(prod(x[:2]), dtype=torch.float64).reshape(*x[:2], 1)
        found = call.run([step, call.inputs[1].tensor()])[0]
        assert found is not None
        return found.flatten().to(torch.int64)

    yield 0, 0, Gather(index, y, x, prod(x[2:]))


def embedding_bag(call: Call) -> Iterator[Edge]:
    """y[bag, h] adds up, averages or maximises the rows of the table that the bag names."""
    table, y, mode = call.inputs[0].shape, result(call), argument(call, "mode")
    if mode == 2:
        yield 0, 0, Gather(lambda: _largest(call), y.shape, table)
        return
    width = table[1]
    y_shape, x_shape = (1, y.shape[0], width), (1, table[0], width)
    yield 0, 0, sparse(lambda: _bags(call), y_shape, x_shape)
    at = position(call, "per_sample_weights")
    if at is not None:
        yield at, 0, Sparse(lambda: _samples(call), (1, y.numel, 1), (1, call.inputs[at].shape[0], 1))


def _entries(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Give (place in the list, bag, row of the table) of everything that counts."""
    rows, offsets = data(call, "indices"), data(call, "offsets")
    assert rows is not None
    assert offsets is not None
    place = torch.arange(len(rows))
    bag = torch.searchsorted(offsets.to(torch.int64), place, right=True) - 1
    live = rows != argument(call, "padding_idx")
    return place[live], bag[live], rows.to(torch.int64)[live]


def _bags(call: Call) -> Edges:
    place, bag, row = _entries(call)
    given, table = data(call, "per_sample_weights"), call.inputs[0]
    weight = torch.ones(len(place), dtype=table.dtype) if given is None else given[place]
    if argument(call, "mode") == 1:
        weight = weight / torch.bincount(bag)[bag]
    if argument(call, "scale_grad_by_freq"):
        weight = weight * _frequency(call, row, weight)[row]
    return bag, row, weight


def _frequency(call: Call, row: Tensor, weight: Tensor) -> Tensor:
    """Give the factor of each row of the table that autograd puts in; on a CPU it is not one over the row's own count.

    PyTorch's sum over bags counts another row (2.13, `_embedding_bag_dense_backward_cpu_sum_mean`).
    """
    table = call.inputs[0]
    plain = torch.zeros(table.shape[0], dtype=weight.dtype).index_add(0, row, weight)
    return gradient(call)[:, 0] / plain.masked_fill(plain == 0, 1)


def _samples(call: Call) -> Edges:
    place, bag, row = _entries(call)
    table = call.inputs[0].tensor()
    width = table.shape[1]
    i = bag[:, None] * width + torch.arange(width)
    return i.flatten(), place.repeat_interleave(width), table[row].flatten()


def _largest(call: Call) -> Tensor:
    rows, y = call.run()[3], result(call)
    assert rows is not None
    index = rows.to(torch.int64) * y.shape[1] + torch.arange(y.shape[1])
    empty = torch.bincount(_entries(call)[1], minlength=y.shape[0]) == 0
    return index.masked_fill((rows < 0) | empty[:, None], -1)


def as_strided_scatter(call: Call) -> Iterator[Edge]:
    """The second argument is written through a layout; what autograd says of the first (2.13: only what is hidden)."""
    base, part, y = call.inputs[0], call.inputs[1], result(call)
    at = Layout(tuple(argument(call, "size")), tuple(argument(call, "stride")), argument(call, "storage_offset") or 0)

    def seen() -> Tensor:
        index, found = torch.full((y.numel,), -1), positions(at).flatten()
        index[found] = found
        return index

    yield 0, 0, Scatter(seen, y.shape, base.shape)
    yield 1, 0, Scatter(lambda: positions(at), y.shape, part.shape)


def _argument(call: Call, position: int, name: str, default: int) -> int:
    """Read a plain (non-tensor) argument, given by position or by name."""
    return call.args[position] if position < len(call.args) else call.kwargs.get(name, default)


register("as_strided", as_strided)
register("gradtrace.overlay", overlaid)
register("gradtrace.alias", aliased)
register("cat", cat)
register("stack", stack)
register("embedding", embedding)
register("_pack_padded_sequence", packed)
register("_embedding_bag", embedding_bag)
register("as_strided_copy", as_strided)
register("as_strided_scatter", as_strided_scatter)
register("block_diag", moved_each)
register("constant_pad_nd", filling("value"))
register("_unsafe_masked_index", filling("fill"))
register("gather index_select index _unsafe_index roll flip rot90 repeat take masked_select diag_embed", moved)
register("reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d", moved)
register("replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle im2col", moved)
register("alias_copy diagonal_copy expand_copy narrow_copy permute_copy select_copy slice_copy", moved)
register("split_copy split_with_sizes_copy squeeze_copy t_copy transpose_copy unbind_copy unfold_copy", moved)
register("unsqueeze_copy view_copy slice_backward select_backward", moved)
