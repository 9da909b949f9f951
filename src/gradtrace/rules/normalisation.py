"""Normalisations: one operator each, with the exact Jacobian, a diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ..structure import LowRank, diagonal
from ..tape import Call
from .table import Edge, register


def _output(call: Call) -> Tensor:
    y = call.run()[0]
    assert y is not None
    return y


def softmax(call: Call) -> Iterator[Edge]:
    """∂p_i/∂x_j = p_i (δ_ij - p_j)."""
    shape = call.inputs[0].shape

    def factors() -> tuple[Tensor, Tensor, Tensor]:
        p = _output(call)
        return p, -p.unsqueeze(-1), p.unsqueeze(-1)

    yield 0, 0, LowRank(shape, (call.args[1] % max(1, len(shape)),) if shape else (), factors)


def log_softmax(call: Call) -> Iterator[Edge]:
    """∂y_i/∂x_j = δ_ij - p_j with p = exp(y)."""
    shape = call.inputs[0].shape

    def factors() -> tuple[Tensor, Tensor, Tensor]:
        p = _output(call).exp()
        ones = torch.ones_like(p)
        return ones, -ones.unsqueeze(-1), p.unsqueeze(-1)

    yield 0, 0, LowRank(shape, (call.args[1] % max(1, len(shape)),) if shape else (), factors)


def layer_norm(call: Call) -> Iterator[Edge]:
    """∂y_i/∂x_j = γ_i/σ (δ_ij - 1/n - x̂_i x̂_j/n); γ scales x̂, β is added."""
    x = call.inputs[0]
    shape, normalised = x.shape, tuple(call.args[1])
    dims = tuple(range(len(shape) - len(normalised), len(shape)))
    n = prod(normalised)
    gamma_at = call.args[2].position if len(call.args) > 2 and call.args[2] is not None else None
    beta_at = call.args[3].position if len(call.args) > 3 and call.args[3] is not None else None

    def parts() -> tuple[Tensor, Tensor]:
        data = x.tensor()
        low = data.dtype in (torch.float16, torch.bfloat16)
        data = data.float() if low else data
        centred = data - data.mean(dims, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(dims, keepdim=True) + call.args[4])
        return centred * scale, scale

    def factors() -> tuple[Tensor, Tensor, Tensor]:
        hat, scale = parts()
        gamma = call.inputs[gamma_at].tensor() if gamma_at is not None else torch.ones_like(hat)
        own = (gamma * scale).expand(shape)
        left = torch.stack([-own / n, -own * hat / n], -1)
        return own, left, torch.stack([torch.ones_like(hat), hat], -1)

    yield 0, 0, LowRank(shape, dims, factors)
    if gamma_at is not None:
        yield gamma_at, 0, diagonal(shape, normalised, lambda: parts()[0])
    if beta_at is not None:
        yield beta_at, 0, diagonal(shape, normalised, None)


register("_softmax _safe_softmax", softmax)
register("_log_softmax", log_softmax)
register("native_layer_norm", layer_norm)
