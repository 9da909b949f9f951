"""Products of groups in one operator, as for experts: each has rows, columns, or a stretch of the sum, of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from torch import Tensor

from ...recording.layouts import Layout, contiguous
from ...recording.record import Call, Input
from ..structure import Chain, Contraction, Placed, Shape, Strided, Structure
from .contraction import product
from .table import Edge, argument, data, register, result

Window = tuple[slice | int, ...]  # a group's part of a tensor: an int picks the group, a slice a stretch of an axis


def grouped_mm(call: Call) -> Iterator[Edge]:
    """Each group is a matrix product of its own, between windows of the operands and of the result."""
    a, b = call.inputs[:2]
    if argument(call, "offs") is None:
        yield from product("bik,bkj->bij")(call)
        return
    for group, (start, end) in enumerate(pairwise([0, *_ends(call)])):
        if start == end:
            continue
        of_a, of_b, of_y = _windows(len(a.shape), len(b.shape), group, slice(start, end))
        for at, x, letters, other in ((0, a, ("ij", "ik", "kj"), (b, of_b)), (1, b, ("ij", "kj", "ik"), (a, of_a))):
            yield at, 0, _part(result(call).shape, of_y, x.shape, of_b if at else of_a, letters, other)


def _ends(call: Call) -> list[int]:
    """Say where each group's stretch ends."""
    ends = data(call, "offs")
    assert ends is not None
    return ends.tolist()


def _windows(a: int, b: int, group: int, own: slice) -> tuple[Window, Window, Window]:
    """Give a group's windows of a, of b and of the result, by how many axes a and b have."""
    if (a, b) == (2, 3):
        return (own, slice(None)), (group, slice(None), slice(None)), (own, slice(None))
    if (a, b) == (3, 2):
        return (group, slice(None), slice(None)), (slice(None), own), (slice(None), own)
    return (slice(None), own), (own, slice(None)), (group, slice(None), slice(None))


def _part(
    y: Shape, of_y: Window, x: Shape, of_x: Window, letters: tuple[str, ...], other: tuple[Input, Window]
) -> Chain:
    """Give the structure of one group: y's window is a product with x's."""
    to, source = _layout(y, of_y), _layout(x, of_x)
    weight = partial(_read, *other)
    inner = Contraction(letters[0], letters[1], to.size, source.size, letters[2], weight)
    first: Structure = Placed(to, y)
    return Chain(first, Chain(inner, Strided(source, x)))


def _read(x: Input, window: Window) -> Tensor:
    return x.tensor()[window]


def _layout(shape: Shape, window: Window) -> Layout:
    size, stride, offset = [], [], 0
    for part, n, step in zip(window, shape, contiguous(shape), strict=True):
        if isinstance(part, int):
            offset += part * step
            continue
        start, end, _ = part.indices(n)
        offset += start * step
        size.append(end - start)
        stride.append(step)
    return Layout(tuple(size), tuple(stride), offset)


register("_grouped_mm", grouped_mm)
