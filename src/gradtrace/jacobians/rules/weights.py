"""What is done to weights before they are used: weight norm, and quantisation that is simulated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import Factors, LowRank, Weight, diagonal
from .table import Edge, argument, register, result

aten = torch.ops.aten


def weight_norm(call: Call) -> Iterator[Edge]:
    """Weight norm, w = g u, u = v/‖v‖ over all axes but `dim`: ∂w_i/∂v_j = g/‖v‖ (δ_ij - u_i u_j), ∂w_i/∂g = u_i."""
    v, g = call.inputs
    dim = argument(call, "dim") % len(v.shape)
    dims = tuple(d for d in range(len(v.shape)) if d != dim)

    def norm() -> Tensor:
        return torch.linalg.vector_norm(v.tensor(), dim=dims, keepdim=True) if dims else v.tensor().abs()

    def factors() -> Factors:
        n = norm()
        u, scale = v.tensor() / n, (g.tensor() / n).expand(v.shape)
        return scale * (1 - u * u), (-scale * u,), (u,)

    if 0 not in v.shape:
        yield 0, 0, LowRank(v.shape, dims, factors)
    yield 1, 0, diagonal(v.shape, g.shape, lambda: v.tensor() / norm())


def quantised(call: Call) -> Iterator[Edge]:
    """Straight through where nothing is clipped, as the operator's mask says; scale and zero point get nothing."""
    y = result(call)

    def mask() -> Tensor:
        found = call.run()[1]
        assert found is not None
        return found.to(y.dtype)

    yield 0, 0, diagonal(y.shape, call.inputs[0].shape, mask)


def learned(call: Call) -> Iterator[Edge]:
    """Quantisation whose scale and zero point are learned, one for all or one a channel."""
    shape = call.inputs[0].shape
    ndim, axis = len(shape), argument(call, "axis") if "channel" in call.base else None
    aligned = (1,) * ndim if axis is None else (*[1] * axis, shape[axis], *[1] * (ndim - axis - 1))

    def weight(position: int) -> Weight:
        return lambda: _slopes(call, aligned, position)

    for position in range(3):
        yield position, 0, diagonal(shape, aligned if position else shape, weight(position))


def _slopes(call: Call, aligned: tuple[int, ...], position: int) -> Tensor:
    """Give every scalar a channel, with a scale and a zero point of its own, and ask autograd."""
    shape = call.inputs[0].shape
    x, *qparams = (i.tensor() for i in call.inputs[:3])
    own = [x, *[q.reshape(aligned).expand(shape) for q in qparams]]
    with torch.enable_grad():
        leaves = [t.reshape(-1, *[1] * (not n)).clone().requires_grad_() for n, t in enumerate(own)]
        bounds = [argument(call, n) for n in ("quant_min", "quant_max", "grad_factor")]
        y = aten._fake_quantize_learnable_per_channel_affine(*leaves, 0, *bounds)
        (slope,) = torch.autograd.grad(y, [leaves[position]], torch.ones_like(y))
    return slope.reshape(shape)


CACHED = "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask"

register("_weight_norm_interface", weight_norm)
register(f"{CACHED} _fake_quantize_per_tensor_affine_cachemask_tensor_qparams", quantised)
register("_fused_moving_avg_obs_fq_helper", quantised)
register("_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine", learned)
