"""Linear operators on images that weigh a few pixels: pooling by averages, interpolation, grid sampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import Chain, Contraction, Edges, Gather, Shape, Sparse, Structure
from .dense import backward
from .table import Edge, Rule, argument, register, rerun, result

PROBES = 1 << 22  # pixels of probe images held at a time


def separable(spatial: int) -> Rule:
    """Make the rule of an operator whose weights are a product over the last `spatial` axes, alike in all planes.

    One matrix for each axis, found by probing the operator itself: a product of them, times the operator's
    answer at one reference pixel, is its answer to a product image.
    """

    def rule(call: Call) -> Iterator[Edge]:
        x, y = call.inputs[0].shape, result(call).shape
        matrices = cache(lambda: probe(call, spatial))
        planes = prod(x[: len(x) - spatial])
        if 0 in y or 0 in x:
            yield 0, 0, Gather(lambda: torch.full(y, -1), y, x)
            return
        chain: Structure | None = None
        for d in range(spatial):
            # from x on: axes before d are y's already, those after it are x's still
            before = planes * prod(y[-spatial:][:d])
            after = prod(x[-spatial:][d + 1 :])
            m, n = y[-spatial:][d], x[-spatial:][d]
            step = Sparse(lambda d=d: _edges(matrices()[d]), (before, m, after), (before, n, after))
            chain = step if chain is None else Chain(step, chain)
        assert chain is not None
        yield 0, 0, chain

    return rule


def _edges(matrix: Tensor) -> Edges:
    i, j = matrix.nonzero(as_tuple=True)
    return i, j, matrix[i, j]


def probe(call: Call, spatial: int) -> list[Tensor]:
    """Find the matrices, result pixels × argument pixels, one for each axis."""
    x, dtype = call.inputs[0].shape, call.inputs[0].dtype
    size, lead = x[-spatial:], len(x) - spatial
    whole = _answer(call, torch.ones(1, *size, dtype=dtype), lead)[0]
    reference = torch.unravel_index(whole.abs().argmax(), whole.shape)
    matrices = []
    for d in range(spatial):
        basis = torch.eye(size[d], dtype=dtype).reshape(size[d], *[size[d] if e == d else 1 for e in range(spatial)])
        step = max(1, PROBES // prod(size))
        parts = [_answer(call, b.expand(len(b), *size), lead) for b in basis.split(step)]
        at = tuple(slice(None) if e == d else int(reference[e]) for e in range(spatial))
        matrices.append(torch.cat([p[(slice(None), *at)] for p in parts]).T)
    scale = whole[reference] ** (spatial - 1)
    return [matrices[0] / scale, *matrices[1:]] if scale != 0 else matrices


def _answer(call: Call, images: Tensor, lead: int) -> Tensor:
    """Run the operator on images, as one channel of so many examples (or as channels, without a batch axis)."""
    images = images.contiguous()
    shaped = images.unsqueeze(1) if lead == 2 else images
    out = rerun(call, [shaped])[0]
    return out.squeeze(1) if lead == 2 else out


def grid_sample(call: Call) -> Iterator[Edge]:
    """Each result pixel weighs a few pixels of its example's planes, at a place that the grid says."""
    x, grid, y = call.inputs[0].shape, call.inputs[1].shape, result(call).shape
    n, c, size, count = x[0], x[1], prod(x[2:]), prod(y[2:])
    if 0 not in x and 0 not in y:
        # axis order n, c, pixels: edges are listed for n examples of all channels alike
        yield 0, 0, Sparse(lambda: _planes(call, n, c, size, count), (1, n * c * count, 1), (1, n * c * size, 1))
    pixels = (n, count, grid[-1])

    def weight() -> Tensor:
        tensors = [i.tensor() for i in call.inputs]
        with torch.enable_grad():
            tensors[1] = leaf = tensors[1].clone().requires_grad_()
            out = rerun(call, tensors)[0]
        seeds = torch.eye(c, dtype=out.dtype).reshape(c, 1, c, *[1] * (out.dim() - 2)).expand(c, *out.shape)
        return backward(out, leaf, seeds).reshape(c, *pixels)

    yield 1, 0, Contraction("ncp", "npd", (n, c, count), pixels, "cnpd", weight)


def _planes(call: Call, n: int, c: int, size: int, count: int) -> Edges:
    """Find the few pixels that each result pixel weighs, which are the same in all channels.

    Pixels are lit in colours: no window of the operator covers two of one colour. The answer to a colour is
    the weight of the one pixel seen; the answer to the pixels' own numbers, divided by it, says which.
    """
    shape = call.inputs[0].shape[2:]
    lit = _colours(shape, 4 if argument(call, "interpolation_mode") == 2 else 2)
    number = torch.arange(1, 1 + size, dtype=torch.float64).reshape(shape)
    images = torch.cat([lit, lit * number]).expand(n, -1, *shape)
    answer = rerun(call, [images, call.inputs[1].tensor().double()])[0].reshape(n, 2, len(lit), count)
    b, colour, i = answer[:, 0].nonzero(as_tuple=True)
    w = answer[b, 0, colour, i]
    j = (answer[b, 1, colour, i] / w).round().to(torch.int64) - 1
    plane = b[None] * c + torch.arange(c)[:, None]  # channel × edge
    return (plane * count + i).flatten(), (plane * size + j).flatten(), w.repeat(c)


def _colours(shape: Shape, period: int) -> Tensor:
    """Give period^axes images that light every period-th pixel along each axis: colours × shape."""
    lit = torch.ones(1, *[1] * len(shape), dtype=torch.float64)
    for d, size in enumerate(shape):
        axis = (torch.arange(size) % period == torch.arange(period)[:, None]).double()
        view = axis.reshape(period, *[size if e == d else 1 for e in range(len(shape))])
        lit = (lit[:, None] * view[None]).flatten(0, 1)
    return lit


for dims, names in (
    (1, "upsample_linear1d upsample_nearest1d _upsample_nearest_exact1d"),
    (2, "upsample_bilinear2d upsample_bicubic2d upsample_nearest2d _upsample_nearest_exact2d"),
    (2, "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa avg_pool2d _adaptive_avg_pool2d"),
    (3, "upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact3d avg_pool3d _adaptive_avg_pool3d"),
):
    register(names, separable(dims))
register("grid_sampler_2d grid_sampler_3d", grid_sample)
