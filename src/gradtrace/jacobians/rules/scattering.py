"""Writes: operators that put the scalars of one argument into another, or into a result of zeros.

Each scalar of the written part goes to one known position of the result. Where that is comes from the
operator's counterpart that reads (scatter ↔ gather, index_put ↔ index, …), run on positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import Scatter, Structure, diagonal, sparse
from .table import Edge, Rule, argument, data, gradient, has, position, register, result

aten = torch.ops.aten
Target = Callable[[Call, Tensor], Tensor]  # (call, positions of the base) → positions of the part, -1 for none


def written(target: Target, part: str, adds: Callable[[Call], bool] = lambda call: False, scale: str = "") -> Rule:
    """Make the rule of y = base with `part` written (or added) at `target`.

    Args:
        target: where the part goes.
        part: the schema's name of the part's argument.
        adds: whether the base stays visible beneath it.
        scale: the name of a factor of the part.
    """

    def rule(call: Call) -> Iterator[Edge]:
        y, base, at = result(call), call.inputs[0], position(call, part)
        yield 0, 0, diagonal(y.shape, base.shape, None) if adds(call) else visible(call, target)
        if at is None:
            return
        factor = argument(call, scale) if scale else 1
        shape = call.inputs[at].shape
        if factor == 1:
            yield at, 0, Scatter(lambda: goes(call, target, shape), y.shape, shape)
        else:
            yield at, 0, routed(call, at, lambda: goes(call, target, shape))

    return rule


def grid(shape: tuple[int, ...]) -> Tensor:
    """Give the flat position of each scalar of a contiguous tensor."""
    return torch.arange(int(torch.Size(shape).numel())).reshape(shape)


def goes(call: Call, target: Target, shape: tuple[int, ...]) -> Tensor:
    """Give the position in y of each scalar of a part of a shape (-1 for those that are not used)."""
    at = target(call, grid(result(call).shape))
    if at.shape == shape:
        return at
    if at.dim() != len(shape):  # a part that is broadcast, or whose first scalars are used
        out = torch.full((int(torch.Size(shape).numel()),), -1)
        out[: at.numel()] = at.flatten()
        return out.reshape(shape)
    out = torch.full(shape, -1)
    out[tuple(slice(n) for n in at.shape)] = at
    return out


def visible(call: Call, target: Target) -> Structure:
    """The base shows where nothing is written."""
    y, base = result(call), call.inputs[0].shape

    def index() -> Tensor:
        flat = grid(y.shape).flatten()
        at = target(call, grid(y.shape)).flatten()
        flat[at[at >= 0]] = -1
        return flat

    if base == y.shape:
        return Scatter(index, y.shape, base)
    return diagonal(y.shape, base, lambda: (index() >= 0).reshape(y.shape).to(y.dtype))


def routed(call: Call, at: int, target: Callable[[], Tensor], number: int = 0) -> Structure:
    """Each scalar of argument `at` goes to the known position `target` of a result, with autograd's weight."""
    x, y = int(torch.Size(call.inputs[at].shape).numel()), result(call, number).numel

    def edges() -> tuple[Tensor, Tensor, Tensor]:
        i = target().flatten()
        live = i >= 0
        return i[live], torch.arange(x)[live], gradient(call, number, at).flatten()[live]

    return sparse(edges, (1, y, 1), (1, x, 1))


def reduced(target: Target, part: str) -> Rule:
    """Make the rule of scatter_reduce and index_reduce: autograd says with which weight each scalar counts."""

    def rule(call: Call) -> Iterator[Edge]:
        y, base, at = result(call), call.inputs[0], position(call, part)
        yield 0, 0, diagonal(y.shape, base.shape, lambda: gradient(call))
        if at is not None:
            yield at, 0, routed(call, at, lambda: goes(call, target, call.inputs[at].shape))

    return rule


def _dim(call: Call) -> int:
    return argument(call, "dim")


def _index(call: Call, name: str = "index") -> Tensor:
    index = data(call, name)
    assert index is not None
    return index


def at_gather(call: Call, p: Tensor) -> Tensor:
    """Scatter writes where gather reads."""
    index = _index(call)
    return p.gather(_dim(call), index) if p.dim() or index.dim() else p


def at_index_select(call: Call, p: Tensor) -> Tensor:
    """index_add, index_copy, … write where index_select reads."""
    p = p if p.dim() else p.reshape(1)  # a scalar may be named several times
    return p.index_select(_dim(call), _index(call).flatten())


def at_index(call: Call, p: Tensor) -> Tensor:
    """index_put writes where index reads; the values are broadcast to that."""
    return aten.index(p, _indices(call))


def _indices(call: Call) -> list[Tensor | None]:
    return [None if s is None else call.inputs[s.position].tensor() for s in argument(call, "indices")]


def at_masked(call: Call, p: Tensor) -> Tensor:
    """masked_scatter writes the first scalars of its source where the mask is true."""
    return p.expand(result(call).shape).masked_select(_index(call, "mask"))


def at_window(reader: Callable[..., Tensor], *names: str) -> Target:
    """Make the target of a write to a window from the view that reads it."""
    return lambda call, p: reader(p, *[argument(call, name) for name in names])


def index_put(call: Call) -> Iterator[Edge]:
    """index_put, which broadcasts its values where they are fewer than the places."""
    y, at = result(call), position(call, "values")
    base = call.inputs[0].shape
    accumulate = argument(call, "accumulate")
    yield 0, 0, diagonal(y.shape, base, None) if accumulate else visible(call, at_index)
    if at is None:
        return
    shape = call.inputs[at].shape
    if at_index(call, torch.zeros(()).expand(base)).shape == shape:
        yield at, 0, Scatter(lambda: at_index(call, grid(base)), y.shape, shape)
    else:
        yield at, 0, broadcast(y.shape, shape, lambda: at_index(call, grid(base)))


def broadcast(y_shape: tuple[int, ...], x_shape: tuple[int, ...], at: Callable[[], Tensor]) -> Structure:
    """X is expanded to the shape of `at` and written there: one scalar may go to several."""

    def edges() -> tuple[Tensor, Tensor, None]:
        i = at()
        j = grid(x_shape).expand(i.shape).flatten()
        live = i.flatten() >= 0
        return i.flatten()[live], j[live], None

    y, x = int(torch.Size(y_shape).numel()), int(torch.Size(x_shape).numel())
    return sparse(edges, (1, y, 1), (1, x, 1))


def masked_fill(call: Call) -> Iterator[Edge]:
    """masked_fill: the base where the mask is false, the one value where it is true."""
    y = result(call)

    def hidden() -> Tensor:
        return _index(call, "mask").expand(y.shape)

    yield 0, 0, diagonal(y.shape, call.inputs[0].shape, lambda: (~hidden()).to(y.dtype))
    at = position(call, "value")
    if at is not None:
        yield at, 0, diagonal(y.shape, (), lambda: hidden().to(y.dtype))


def index_fill(call: Call) -> Iterator[Edge]:
    """index_fill: one value goes to all chosen slices."""
    y, base, at = result(call), call.inputs[0].shape, position(call, "value")
    yield 0, 0, visible(call, at_index_select)
    if at is not None:
        yield at, 0, broadcast(y.shape, (), lambda: at_index_select(call, grid(base)).unique())


def col2im(call: Call) -> Iterator[Edge]:
    """Fold: each column entry is added where im2col reads it."""
    x, y = call.inputs[0], result(call)
    names = ("kernel_size", "dilation", "padding", "stride")

    def index() -> Tensor:
        positions = torch.arange(1, 1 + y.numel, dtype=torch.float64).reshape(y.shape)
        return aten.im2col(positions, *[argument(call, n) for n in names]).to(torch.int64) - 1

    yield 0, 0, Scatter(index, y.shape, x.shape)


def unfold_backward(call: Call) -> Iterator[Edge]:
    """Each window's scalars are added where unfold reads them."""
    y, names = result(call).shape, ("dim", "size", "step")
    windows = lambda: grid(y).unfold(*[argument(call, n) for n in names])  # noqa: E731
    yield 0, 0, Scatter(windows, y, call.inputs[0].shape)


def unpooled(call: Call) -> Iterator[Edge]:
    """max_unpool: each value goes to the position, within its plane, that its index names."""
    x, y = call.inputs[0], result(call)
    spatial = {"max_unpool2d": 2, "max_unpool3d": 3}[call.base]

    def index() -> Tensor:
        where = _index(call, "indices")
        size = int(torch.Size(y.shape[-spatial:]).numel())
        plane = torch.arange(y.numel // max(1, size)).reshape(*x.shape[:-spatial], *[1] * spatial)
        return plane * size + where

    yield 0, 0, Scatter(index, y.shape, x.shape)


def pooled_backward(call: Call) -> Iterator[Edge]:
    """max_pool's backward, called directly: each gradient goes to where the indices say."""
    at, y = position(call, "grad_output"), result(call)
    if at is None:
        return
    x, spatial = call.inputs[at], 2 if "2d" in call.base else 3

    def index() -> Tensor:
        size = int(torch.Size(y.shape[-spatial:]).numel())
        plane = torch.arange(y.numel // max(1, size)).reshape(*x.shape[:-spatial], *[1] * spatial)
        return plane * size + _index(call, "indices")

    yield at, 0, Scatter(index, y.shape, x.shape)


def segments(call: Call) -> Iterator[Edge]:
    """segment_reduce: each slice of the data goes to its segment."""
    x, y, axis = call.inputs[0], result(call), argument(call, "axis")

    def target() -> Tensor:
        lengths = data(call, "lengths")
        lengths = _index(call, "offsets").diff(dim=-1) if lengths is None else lengths
        rows = lengths.reshape(-1, lengths.shape[-1])  # outer × segments
        ids = torch.full((len(rows), x.shape[axis]), -1)
        for row, sizes in zip(ids, rows, strict=True):
            found = torch.repeat_interleave(sizes)
            row[: len(found)] = found + 0
        ids = ids.reshape(*x.shape[: axis + 1], *[1] * (len(x.shape) - axis - 1)).expand(x.shape)
        flat = grid(y.shape).gather(axis, ids.clamp(min=0))
        return flat.masked_fill(ids < 0, -1)

    yield 0, 0, routed(call, 0, target)


def glu(call: Call) -> Iterator[Edge]:
    """Both halves of x meet position by position."""
    y, dim = result(call), argument(call, "dim")
    yield 0, 0, routed(call, 0, lambda: torch.cat([grid(y.shape)] * 2, dim))


def masked_put(call: Call) -> Iterator[Edge]:
    """_unsafe_masked_index_put_accumulate: values are added where the mask is true."""
    y, at = result(call), position(call, "values")
    yield 0, 0, diagonal(y.shape, call.inputs[0].shape, None)
    if at is None:
        return

    def target() -> Tensor:
        mask, p = _index(call, "mask"), grid(y.shape)
        sizes = [None if i is None else i for i in _indices(call)]
        clamped = [i if i is None else i.clamp(-p.shape[d], p.shape[d] - 1) for d, i in enumerate(sizes)]
        return aten.index(p, clamped).masked_fill(~mask, -1)

    yield at, 0, broadcast(y.shape, call.inputs[at].shape, target)


def _accumulates(call: Call) -> bool:
    return bool(argument(call, "accumulate"))


def _always(call: Call) -> bool:
    del call
    return True


def _scatter(call: Call) -> Iterator[Edge]:
    """Scatter: with a reduction, it is scatter_reduce; without, a write."""
    if has(call, "reduce"):
        yield from reduced(at_gather, "src")(call)
    else:
        yield from written(at_gather, "src" if has(call, "src") else "value")(call)


register("scatter", _scatter)
register("scatter_add", written(at_gather, "src", _always))
register("scatter_reduce", reduced(at_gather, "src"))
register("index_add", written(at_index_select, "source", _always, "alpha"))
register("index_copy", written(at_index_select, "source"))
register("index_reduce", reduced(at_index_select, "source"))
register("index_fill", index_fill)
register("index_put _index_put_impl _unsafe_index_put", index_put)
register("_unsafe_masked_index_put_accumulate", masked_put)
register("put", written(lambda call, p: p.take(_index(call)), "source", _accumulates))
register("masked_scatter", written(at_masked, "source"))
register("masked_fill", masked_fill)
register("slice_scatter", written(at_window(aten.slice, "dim", "start", "end", "step"), "src"))
register("select_scatter", written(at_window(aten.select, "dim", "index"), "src"))
register("diagonal_scatter", written(at_window(aten.diagonal, "offset", "dim1", "dim2"), "src"))
register("col2im", col2im)
register("unfold_backward", unfold_backward)
register("max_unpool2d max_unpool3d", unpooled)
register("max_pool2d_with_indices_backward max_pool3d_with_indices_backward", pooled_backward)
register("segment_reduce", segments)
register("glu", glu)
