"""What ordinary gradients do along rows of low rank: softmaxes and norms by autograd's own operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..jacobians.structure import ClosedRows, LowRank
from . import native
from .grid import grid_of
from .sums import added

aten = torch.ops.aten


def low_rank(s: LowRank, g: Tensor) -> Tensor:
    """Multiply by own on the diagonal, and by left · right beside it: O(n · rank)."""
    if g.numel() == 0:
        return g
    g = g.reshape(g.shape[0], *s.shape)
    found = ROWS[s.factors.form](s, g, s.factors) if isinstance(s.factors, ClosedRows) and s.dims else None
    return written_out(s, g) if found is None else found


def written_out(s: LowRank, g: Tensor) -> Tensor:
    """Take the factors as they are: what own is beside left · right is rounding, and counts."""
    dims = tuple(1 + d for d in s.dims)
    own, lefts, rights = s.factors()
    out = own.to(g.dtype) * g
    for left, right in zip(lefts, rights, strict=True):
        near = left.to(g.dtype) * g
        total = near.sum(dims, keepdim=True) if dims else near
        out = torch.addcmul(out, right.to(g.dtype), total - near)
    return out


def alike(t: Tensor, g: Tensor) -> bool:
    """Tell whether weights of t are as precise in g's precision as written out.

    Those of float32 are weights rounded to float32, for every semiring, and stay so where g is float64.
    """
    return t.dtype is g.dtype or t.dtype in (torch.float16, torch.bfloat16)


def _softmax(s: LowRank, g: Tensor, factors: ClosedRows) -> Tensor | None:
    p = factors.of()[0].reshape(s.shape)
    if not alike(p, g):
        return None
    return aten._softmax_backward_data.default(g, p.to(g.dtype).expand(g.shape), 1 + s.dims[0], g.dtype)


def _log_softmax(s: LowRank, g: Tensor, factors: ClosedRows) -> Tensor | None:
    if factors.log is None:
        return None
    y = factors.log()
    if not alike(y, g):
        return None
    y = y.to(g.dtype).reshape(s.shape)
    return aten._log_softmax_backward_data.default(g, y.expand(g.shape), 1 + s.dims[0], g.dtype)


def _standard(s: LowRank, g: Tensor, factors: ClosedRows) -> Tensor | None:
    """With h = γ g: (h - mean h - x̂ mean(h x̂)) / σ, the means being over the axes `dims`."""
    hat, gamma, scale, count = factors.of()
    if g.dtype is torch.float64 and all(t is None or t.dtype is torch.float32 for t in (hat, gamma, scale)):
        return _rounded(s, g, (hat, gamma, scale), count)
    if not alike(hat, g) or not (gamma is None or alike(gamma, g)):
        return None
    hat, scale = hat.to(g.dtype), scale.to(g.dtype)
    gamma = None if gamma is None else gamma.to(g.dtype)
    if g.shape[0] == 1 and hat.is_contiguous():
        fused = _fused(s, g[0].contiguous(), hat, gamma, scale)
        if fused is not None:
            return fused.unsqueeze(0)
    dims = tuple(1 + d for d in s.dims)
    h = g if gamma is None else g * gamma
    level, slope = h.sum(dims, keepdim=True), (h * hat).sum(dims, keepdim=True)
    return (h - (level + hat * slope) / count).mul_(scale)


def _rounded(s: LowRank, g: Tensor, factors: tuple[Tensor | None, ...], count: int) -> Tensor | None:
    """Take factors as they are in float32, by the compiled kernels; None where there are none."""
    if not native.available() or g.device.type != "cpu":
        return None
    grid = grid_of(s.shape, tuple(s.dims))
    given = [None if t is None else grid.view(t.expand(s.shape)) for t in factors]
    out, rows = grid.room(len(g), g.dtype)
    for one, to in zip(g, rows, strict=True):
        added(given, count, grid.view(one), to)
    return out


def _fused(s: LowRank, g: Tensor, hat: Tensor, gamma: Tensor | None, scale: Tensor) -> Tensor | None:
    """Let one operator do it, with x̂ in the place of x: of mean 0 and deviation 1."""
    ndim, dims = len(s.shape), tuple(s.dims)
    if dims == tuple(range(dims[0], ndim)) and (gamma is None or set(gamma.shape[: dims[0]]) <= {1}):
        shape = s.shape[dims[0] :]
        weight = None if gamma is None else gamma.expand(*[1] * dims[0], *shape).reshape(shape)
        given = torch.zeros_like(scale), torch.ones_like(scale), weight, None, [True, False, False]
        return aten.native_layer_norm_backward.default(g, hat, shape, *given)[0].mul_(scale)
    if dims == (0, *range(2, ndim)) and ndim > 1:
        channel = (scale if gamma is None else scale * gamma).reshape(-1).contiguous()
        given = None, None, torch.zeros_like(channel), torch.ones_like(channel), True, 0.0, [True, False, False]
        return aten.native_batch_norm_backward.default(g, hat, channel, *given)[0]
    return None


ROWS: dict[str, Callable[[LowRank, Tensor, ClosedRows], Tensor | None]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "standard": _standard,
}
