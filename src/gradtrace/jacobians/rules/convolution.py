"""Convolutions of any dimension: strided, padded, dilated, grouped, transposed.

A convolution is an index map to patches, and a contraction of the patches with the kernel. A pair (y, x)
meets in one place of one patch only, so the chain of the two is exact. Kernel offsets are taken in blocks,
so that no more than BLOCK patch scalars exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

import torch
from torch import Tensor

from ...recording.record import Call, Slot, Value
from ..structure import Chain, Contraction, Convolved, Shape, Sliding, Sparse, Structure
from .constant import nothing
from .table import Edge, argument, position, register, result

BLOCK = 1 << 22  # patch scalars held at a time


@dataclass
class Geometry:
    """Sizes of one call. "small" is the side that the kernel slides over to: y, or x if transposed.

    Letters: b batch, g group, o and c channels of y and x in a group, K kernel offset, L place of the kernel.
    """

    call: Call

    @cached_property
    def transposed(self) -> bool:
        return bool(argument(self.call, "transposed"))

    def sliding(self) -> Sliding:
        """Give the sizes as the operator takes them."""
        (x, w), y, dims = (i.shape for i in self.call.inputs[:2]), result(self.call).shape, len(self.large)
        stride, padding, dilation = (
            tuple(_spread(argument(self.call, n), dims)) for n in ("stride", "padding", "dilation")
        )
        return Sliding(x, w, y, stride, padding, dilation, argument(self.call, "groups"), self.transposed)

    @cached_property
    def sizes(self) -> dict[str, int]:
        x, w, y = self.call.inputs[0].shape, self.call.inputs[1].shape, result(self.call).shape
        groups = argument(self.call, "groups")
        small = x if self.transposed else y
        return {
            "b": x[0],
            "g": groups,
            "o": y[1] // groups,
            "c": x[1] // groups,
            "K": prod(w[2:]),
            "L": prod(small[2:]),
        }

    def shape(self, letters: str, **changed: int) -> Shape:
        """Give the sizes of some letters."""
        return tuple({**self.sizes, **changed}[c] for c in letters)

    @cached_property
    def large(self) -> Shape:
        """The spatial shape that patches are taken from: x, or y if transposed."""
        return (result(self.call) if self.transposed else self.call.inputs[0]).shape[2:]

    @cached_property
    def places(self) -> Tensor:
        """K × L: where kernel offset K, at place L, lies in the large side; -1 in the padding."""
        small = (self.call.inputs[0] if self.transposed else result(self.call)).shape[2:]
        kernel, dims = self.call.inputs[1].shape[2:], len(self.large)
        stride, padding, dilation = (_spread(argument(self.call, n), dims) for n in ("stride", "padding", "dilation"))
        out = torch.zeros((), dtype=torch.int64)
        valid = torch.ones((), dtype=torch.bool)
        for d in range(dims):
            at = torch.arange(kernel[d])[:, None] * dilation[d] + torch.arange(small[d]) * stride[d] - padding[d]
            inside = (at >= 0) & (at < self.large[d])
            # kernel axes so far × this one × places so far × this one
            out = out.reshape(-1, 1, out.shape[-1] if out.dim() else 1, 1) * self.large[d] + at[None, :, None, :]
            valid = valid.reshape(-1, 1, valid.shape[-1] if valid.dim() else 1, 1) & inside[None, :, None, :]
            out, valid = (t.reshape(t.shape[0] * t.shape[1], -1) for t in (out, valid))
        return out.masked_fill(~valid, -1)

    def blocks(self) -> Iterator[slice]:
        """Cut the kernel offsets so that patches stay small."""
        one = prod(self.shape("bg" + ("o" if self.transposed else "c") + "L"))
        step = max(1, BLOCK // max(1, one))
        for start in range(0, self.sizes["K"], step):
            yield slice(start, min(self.sizes["K"], start + step))

    def weight(self, block: slice) -> Tensor:
        """Give the kernel as g × o × c × K, or g × c × o × K if transposed."""
        order = "gcoK" if self.transposed else "gocK"
        return self.call.inputs[1].tensor().reshape(self.shape(order))[..., block]

    def patches(self, block: slice) -> Tensor:
        """Give x at each kernel offset and place: b × g × c × K × L."""
        x = self.call.inputs[0].tensor().reshape(*self.shape("bgc"), -1)
        at = self.places[block]
        found = x[..., at.clamp(min=0).flatten()].reshape(*x.shape[:3], *at.shape)
        return found.masked_fill(at < 0, 0)


def _spread(values: object, dims: int) -> list[int]:
    given = [values] if isinstance(values, int) else list(values)  # type: ignore[call-overload]
    return given * dims if len(given) == 1 else given


def convolution(call: Call) -> Iterator[Edge]:
    """Towards x: patches ← x after y ← patches; towards the kernel: a product with the patches."""
    if 0 in result(call).shape:
        yield from nothing(call)
        return
    geometry = Geometry(call)
    sizes = geometry.sliding()
    for at in (0, 1):
        other = call.inputs[1 - at].tensor
        yield at, 0, Convolved(sizes, at == 0, other, partial(_parts, geometry, at))
    bias = position(call, "bias")
    if bias is not None:
        y = result(call).shape
        yield bias, 0, Contraction("boL", "o", (*y[:2], prod(y[2:])), y[1:2])


def _parts(geometry: Geometry, argument: int) -> tuple[Structure, ...]:
    """Give the structures towards one argument."""
    edges = (transposed if geometry.transposed else plain)(geometry)
    return tuple(structure for at, _, structure in edges if at == argument)


def plain(geo: Geometry) -> Iterator[Edge]:
    """y[b,g,o,L] = Σ_{c,K} w[g,o,c,K] x[b,g,c, place(K,L)]."""
    y = geo.shape("bgoL")
    for block in geo.blocks():
        k = block.stop - block.start
        product = Contraction("bgoL", "bgcKL", y, geo.shape("bgcKL", K=k), "gocK", lambda s=block: geo.weight(s))
        yield 0, 0, Chain(product, _patch_edges(geo, block, "bgc", gathers=True))
    yield (
        1,
        0,
        Contraction("bgoL", "gocK", y, geo.shape("gocK"), "bgcKL", lambda: geo.patches(slice(0, geo.sizes["K"]))),
    )


def transposed(geo: Geometry) -> Iterator[Edge]:
    """y[b,g,o, place(K,L)] += Σ_c w[g,c,o,K] x[b,g,c,L]."""
    for block in geo.blocks():
        k = block.stop - block.start
        placed = _patch_edges(geo, block, "bgo", gathers=False)
        columns = geo.shape("bgoKL", K=k)
        product = Contraction("bgoKL", "bgcL", columns, geo.shape("bgcL"), "gcoK", lambda s=block: geo.weight(s))
        yield 0, 0, Chain(placed, product)
    placed = _patch_edges(geo, slice(0, geo.sizes["K"]), "bgo", gathers=False)
    x = lambda: geo.call.inputs[0].tensor().reshape(geo.shape("bgcL"))  # noqa: E731
    product = Contraction("bgoKL", "gcoK", geo.shape("bgoKL"), geo.shape("gcoK"), "bgcL", x)
    yield 1, 0, Chain(placed, product)


def _patch_edges(geo: Geometry, block: slice, rows: str, gathers: bool) -> Sparse:
    """Map patches (K·L) to positions of the large side, or back, alike for every row."""
    outer, size = prod(geo.shape(rows)), prod(geo.large)
    columns = (block.stop - block.start) * geo.sizes["L"]

    def edges() -> tuple[Tensor, Tensor, None]:
        at = geo.places[block].flatten()
        live = (at >= 0).nonzero().squeeze(-1)
        return (live, at[live], None) if gathers else (at[live], live, None)

    many, few = (outer, columns, 1), (outer, size, 1)
    return Sparse(edges, many, few) if gathers else Sparse(edges, few, many)


def conv_tbc(call: Call) -> Iterator[Edge]:
    """Time × batch × channel: y[t,b,o] = Σ_{K,c} x[t+K-pad, b, c] w[K,c,o] + bias[o]."""
    (steps, batch, channels), (k, _, out), y = call.inputs[0].shape, call.inputs[1].shape, result(call).shape
    pad = argument(call, "pad")
    at = torch.arange(k)[:, None] + torch.arange(y[0]) - pad  # K × T
    live = ((at >= 0) & (at < steps)).flatten()
    index = at.flatten()[live], live.nonzero().squeeze(-1)

    def patches() -> Tensor:
        found = call.inputs[0].tensor()[at.clamp(0, max(0, steps - 1)).flatten()]
        return found.masked_fill(~live[:, None, None], 0).reshape(k, y[0], batch, channels)

    shape = (k, y[0], batch, channels)
    product = Contraction("tbo", "Ktbc", y, shape, "Kco", call.inputs[1].tensor)
    gather = Sparse(lambda: (index[1], index[0], None), (1, k * y[0], batch * channels), (1, steps, batch * channels))
    yield 0, 0, Chain(product, gather)
    yield 1, 0, Contraction("tbo", "Kco", y, (k, channels, out), "Ktbc", patches)
    yield 2, 0, Contraction("tbo", "o", y, (out,))


def convolution_backward(call: Call) -> Iterator[Edge]:
    """What a backward pass computes of a convolution, linear in the gradient that came, and in the kernel or in x.

    The gradients of x, kernel and bias are its results. That of x is the convolution the other way round; that of the
    kernel is Σ small · patches of large, where the kernel slides over from large to small.
    """
    of_x, of_kernel, of_bias = (*call.outputs, None, None)[:3]
    if any(y is not None and 0 in y.shape for y in call.outputs) or any(0 in i.shape for i in call.inputs):
        yield from nothing(call)
        return
    turned = bool(argument(call, "transposed"))
    if of_x is not None:
        for at, _, structure in convolution(_as_convolution(call, (0, 2), of_x, not turned)):
            yield (0, 2)[at], 0, structure
    if of_kernel is not None:
        large, small = (0, 1) if turned else (1, 0)
        geo = Geometry(_as_convolution(call, (large, 2), replace(of_kernel, shape=call.inputs[small].shape), False))
        small_of = call.inputs[small].tensor
        shape, whole = geo.shape("gocK"), slice(0, geo.sizes["K"])
        patches = geo.shape("bgcKL")
        yield small, 1, Contraction("gocK", "bgoL", shape, geo.shape("bgoL"), "bgcKL", lambda: geo.patches(whole))
        product = Contraction("gocK", "bgcKL", shape, patches, "bgoL", lambda: small_of().reshape(geo.shape("bgoL")))
        yield large, 1, Chain(product, _patch_edges(geo, whole, "bgc", gathers=True))
    if of_bias is not None:
        g = call.inputs[0].shape
        yield 0, 2, Contraction("o", "boL", g[1:2], (*g[:2], prod(g[2:])))


def _as_convolution(call: Call, positions: tuple[int, int], result: Value, transposed: bool) -> Call:
    """Give the convolution of two of a call's arguments whose result would be this one."""
    sizes = (argument(call, n) for n in ("stride", "padding", "dilation"))
    args = (Slot(0), Slot(1), None, *sizes, transposed, argument(call, "output_padding"), argument(call, "groups"))
    inputs = tuple(call.inputs[p] for p in positions)
    return replace(call, op=_CONVOLUTION, base="convolution", inputs=inputs, args=args, kwargs={}, outputs=(result,))


_CONVOLUTION = torch.ops.aten.convolution.default

register("convolution _convolution", convolution)
register("convolution_backward", convolution_backward)
register("conv_tbc", conv_tbc)
