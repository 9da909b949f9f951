"""Index maps: operators that only move scalars around."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..storage import layout_of
from ..structure import Contraction, Gather, Layout, Placed, Scatter, Shape, Strided, letters, positions
from ..tape import Call, flat_tensors
from .table import Edge, register

ALIASING = {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_reshape_alias"}


def is_view(call: Call) -> bool:
    """Tell whether the results are windows onto the first argument."""
    inplace = torch.Tag.inplace_view in getattr(call.op, "tags", ())
    return inplace or getattr(call.op, "is_view", False) or call.base in ALIASING


def view(call: Call) -> Iterator[Edge]:
    """Run the view on an argument without data to see which window each result is."""
    x = call.inputs[0]
    args, kwargs = call.arguments([torch.empty(x.shape, dtype=x.dtype, device="meta")])
    for number, out in enumerate(flat_tensors(call.op(*args, **kwargs))):
        assert out is not None
        yield 0, number, Strided(layout_of(out), x.shape)


def as_strided(call: Call) -> Iterator[Edge]:
    """as_strided reads the storage, not the tensor: find each position in the argument's own layout."""
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None
    args, kwargs = call.arguments()
    offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
    at = Layout(tuple(args[1]), tuple(args[2]), x.offset if offset is None else offset)
    own = Layout(x.shape, x.stride, x.offset)
    yield 0, 0, Gather(lambda: _find(at, own), y.shape, x.shape)


def _find(at: Layout, own: Layout) -> Tensor:
    """Give, for each scalar of `at`, its flat index in a tensor laid out as `own`."""
    wanted, have = positions(at), positions(own).flatten()
    index = torch.full((int(max(wanted.max(), have.max())) + 1,), -1)
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


def _contiguous(shape: Shape) -> Shape:
    stride, step = [], 1
    for n in reversed(shape):
        stride.append(step)
        step *= n
    return tuple(reversed(stride))


def cat(call: Call) -> Iterator[Edge]:
    """Each argument is a slab of the result; empty 1-d tensors are skipped, as cat does."""
    y = call.outputs[0]
    assert y is not None
    dim = _argument(call, 1, "dim", 0) % max(1, len(y.shape))
    stride, start = _contiguous(y.shape), 0
    for position, x in enumerate(call.inputs):
        if x.shape == (0,) and len(y.shape) != 1:
            continue
        yield position, 0, Placed(Layout(x.shape, stride, start * stride[dim]), y.shape)
        start += x.shape[dim]


def stack(call: Call) -> Iterator[Edge]:
    """Each argument is a slice of the result."""
    y = call.outputs[0]
    assert y is not None
    dim = _argument(call, 1, "dim", 0) % len(y.shape)
    stride = _contiguous(y.shape)
    for position, x in enumerate(call.inputs):
        kept = stride[:dim] + stride[dim + 1 :]
        yield position, 0, Placed(Layout(x.shape, kept, position * stride[dim]), y.shape)


def moved(call: Call) -> Iterator[Edge]:
    """Any operator that copies scalars of its first argument: run it on their positions."""
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None

    def index() -> Tensor:
        # positions count from 1, so that what is filled in (padding) reads position 0: nothing
        tensors = [i.tensor() for i in call.inputs]
        tensors[0] = torch.arange(1, 1 + x.tensor().numel(), dtype=torch.float64).reshape(x.shape)
        out = call.run(tensors)[0]
        assert out is not None
        return out.to(torch.int64) - 1

    yield 0, 0, Gather(index, y.shape, x.shape)


def embedding(call: Call) -> Iterator[Edge]:
    """y[t, h] = weight[indices[t], h]; rows at padding_idx get no gradient."""
    weight, indices = call.inputs[0], call.inputs[1]
    y = call.outputs[0]
    assert y is not None
    width = weight.shape[1]
    padding = _argument(call, 2, "padding_idx", -1)

    def index() -> Tensor:
        rows = indices.tensor().to(torch.int64)
        flat = rows.unsqueeze(-1) * width + torch.arange(width, device=rows.device)
        return flat.masked_fill((rows == padding).unsqueeze(-1), -1) if padding >= 0 else flat

    yield 0, 0, Gather(index, y.shape, weight.shape)
    # integers have no derivative; this edge only says which row of y an index chose
    name = letters(len(y.shape))
    yield 1, 0, Contraction(name, name[:-1], y.shape, indices.shape)


def written(call: Call) -> Iterator[Edge]:
    """slice_scatter and its kind: the second argument is written into a window of the first."""
    base, part = call.inputs[0], call.inputs[1]
    y = call.outputs[0]
    assert y is not None

    def from_base() -> Tensor:
        tensors = [torch.arange(y.numel, dtype=torch.float64).reshape(y.shape), -torch.ones(part.shape).double()]
        out = call.run(tensors)[0]
        assert out is not None
        index = torch.full((y.numel,), -1)
        flat = out.to(torch.int64).flatten()
        index[flat[flat >= 0]] = flat[flat >= 0]
        return index

    def from_part() -> Tensor:
        numel = int(torch.Size(part.shape).numel())
        tensors = [-torch.ones(base.shape).double(), torch.arange(numel, dtype=torch.float64).reshape(part.shape)]
        out = call.run(tensors)[0]
        assert out is not None
        flat = out.to(torch.int64).flatten()
        index = torch.full((numel,), -1)
        index[flat[flat >= 0]] = (flat >= 0).nonzero().squeeze(-1)
        return index

    yield 0, 0, Scatter(from_base, y.shape, base.shape)
    yield 1, 0, Scatter(from_part, y.shape, part.shape)


def _argument(call: Call, position: int, name: str, default: int) -> int:
    """Read a plain (non-tensor) argument, given by position or by name."""
    return call.args[position] if position < len(call.args) else call.kwargs.get(name, default)


register("as_strided", as_strided)
register("gradtrace.overlay", overlaid)
register("gradtrace.alias", aliased)
register("cat", cat)
register("stack", stack)
register("embedding", embedding)
register("gather index_select roll flip repeat take constant_pad_nd reflection_pad1d replication_pad1d", moved)
register("slice_scatter select_scatter diagonal_scatter as_strided_scatter", written)
