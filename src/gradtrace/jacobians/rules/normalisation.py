"""Normalisations: one operator each, with the exact Jacobian, a diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import ClosedRows, Factors, LowRank, Scatter, Shape, Weight, diagonal, reduction
from .table import Edge, argument, data, kept, position, register


def softmax(call: Call) -> Iterator[Edge]:
    """Along one axis."""
    yield 0, 0, LowRank(call.inputs[0].shape, _axis(call), ClosedRows("softmax", lambda: (kept(call),)))


def log_softmax(call: Call) -> Iterator[Edge]:
    """Along one axis; p = exp(y)."""
    factors = ClosedRows("log_softmax", lambda: (kept(call).exp(),), lambda: kept(call))
    yield 0, 0, LowRank(call.inputs[0].shape, _axis(call), factors)


def _axis(call: Call) -> tuple[int, ...]:
    ndim = len(call.inputs[0].shape)
    return (call.args[1] % ndim,) if ndim else ()


@dataclass(frozen=True)
class Standard:
    """x̂ = (x - mean) · scale over the axes `dims` of x viewed in `shape`, then γ x̂ + β.

    Attributes:
        call: takes x first; `shape`: in which x and y are viewed; `dims`: what a mean is taken over.
        affine: the shape of γ and β, aligned with the axes of `shape` (size 1 where they don't depend on it).
        eps: what is added to the variance.
        whole: whether PyTorch's backward adds up x, and takes the mean's part away afterwards; else x - mean.
    """

    call: Call
    shape: Shape
    dims: tuple[int, ...]
    affine: Shape
    eps: float
    whole: bool = True

    @property
    def count(self) -> int:
        """Scalars that share a mean."""
        return prod(self.shape[d] for d in self.dims)

    @property
    def groups(self) -> int:
        """Means, one for each group of scalars that share one."""
        return prod(n for d, n in enumerate(self.shape) if d not in self.dims)

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, scale and mean, which the edges towards x and γ share."""
        x = self.call.inputs[0].tensor().reshape(self.shape)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        found = self.call.results[1:3]
        if len(found) == 2 and all(part is not None and part.get().numel() == self.groups for part in found):
            one = [1 if d in self.dims else n for d, n in enumerate(self.shape)]
            mean, scale = (part.get().to(x.dtype).reshape(one) for part in found if part is not None)
            return (x - mean).mul_(scale), scale, mean
        mean = x.mean(self.dims, keepdim=True)
        centred = x - mean
        scale = torch.rsqrt(centred.square().mean(self.dims, keepdim=True) + self.eps)
        return centred.mul_(scale), scale, mean

    def gamma(self) -> Tensor | None:
        """Give γ, aligned with `shape`; None if there is none."""
        found = data(self.call, "weight")
        return None if found is None else found.reshape(self.affine)

    def arguments(self) -> tuple[Tensor, Tensor | None, Tensor, int]:
        """Give x̂, γ, scale and count."""
        hat, scale, _ = self.parts
        return hat, self.gamma(), scale, self.count

    def sizes(self) -> tuple[Tensor, Tensor | None, Tensor, int, Tensor]:
        """Give those, and the size of what x̂ is without: |mean| · scale."""
        return (*self.arguments(), self.parts[2].abs() * self.parts[1])

    def edges(self) -> Iterator[Edge]:
        """Give the structures towards x, γ and β, and of the statistics, where they are results."""
        rows = ClosedRows("standard", self.arguments, sizes=self.sizes if self.whole else None)
        yield 0, 0, LowRank(self.shape, self.dims, rows)
        yield from affine(self.call, self.shape, self.affine, lambda: self.parts[0])

    def statistics(self) -> Iterator[Edge]:
        """∂mean/∂x = 1/n, ∂scale/∂x_i = -x̂_i scale²/n."""
        n = self.count
        mean = lambda: self.parts[0].new_full(self.shape, 1 / n)  # noqa: E731
        yield 0, 1, reduction(self.shape, self.dims, mean)

        def scale() -> Tensor:
            hat, scale, _ = self.parts
            return -hat * scale.square() / n

        yield 0, 2, reduction(self.shape, self.dims, scale)


def affine(call: Call, shape: Shape, aligned: Shape, hat: Weight) -> Iterator[Edge]:
    """Scale and shift: y = γ x̂ + β, towards γ and β."""
    at, beta = position(call, "weight"), position(call, "bias")
    if at is not None:
        yield at, 0, diagonal(shape, aligned, hat)
    if beta is not None:
        yield beta, 0, diagonal(shape, aligned, None)


def layer_norm(call: Call) -> Iterator[Edge]:
    """Over the last axes; γ and β have their shape."""
    shape, normalised = call.inputs[0].shape, tuple(argument(call, "normalized_shape"))
    first = len(shape) - len(normalised)
    aligned = (*[1] * first, *normalised)
    norm = Standard(call, shape, tuple(range(first, len(shape))), aligned, argument(call, "eps"))
    yield from norm.edges()
    for number, y in enumerate(call.outputs[1:], 1):  # autograd gives the statistics no derivative
        if y is not None:
            yield 0, number, Scatter(lambda: torch.full(shape, -1), y.shape, shape)


def group_norm(call: Call) -> Iterator[Edge]:
    """Over the channels of a group and all pixels: x viewed as N × G × C/G × pixels."""
    n, c, pixels, groups = (argument(call, name) for name in ("N", "C", "HxW", "group"))
    shape = (n, groups, c // groups, pixels)
    norm = Standard(call, shape, (2, 3), (1, groups, c // groups, 1), argument(call, "eps"))
    yield from norm.edges()
    yield from norm.statistics()


def batch_norm(call: Call) -> Iterator[Edge]:
    """Over all examples and pixels in training; with fixed statistics otherwise."""
    shape = call.inputs[0].shape
    aligned = (1, shape[1], *[1] * (len(shape) - 2))
    names = [a.name for a in call.op._schema.arguments]  # type: ignore[attr-defined]
    norm = Standard(call, shape, (0, *range(2, len(shape))), aligned, argument(call, "eps"), whole=False)
    if argument(call, "training") if "training" in names else "with_update" in call.base:
        yield from norm.edges()
        return

    def scale() -> Tensor:
        variance = data(call, "running_var")
        assert variance is not None
        return torch.rsqrt(variance.reshape(aligned) + norm.eps)

    def hat() -> Tensor:
        mean = data(call, "running_mean")
        assert mean is not None
        return (call.inputs[0].tensor() - mean.reshape(aligned)) * scale()

    def weight() -> Tensor:
        gamma = norm.gamma()
        return (scale() if gamma is None else gamma * scale()).expand(shape)

    yield 0, 0, diagonal(shape, shape, weight)
    yield from affine(call, shape, aligned, hat)


def rms_norm(call: Call) -> Iterator[Edge]:
    """∂y_i/∂x_j = γ_i r (δ_ij - x̂_i x̂_j/n) with r = 1/√(mean x² + ε), x̂ = r x."""
    shape, normalised = call.inputs[0].shape, tuple(argument(call, "normalized_shape"))
    dims = tuple(range(len(shape) - len(normalised), len(shape)))

    def parts() -> tuple[Tensor, Tensor]:
        x, eps = call.inputs[0].tensor(), argument(call, "eps")
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scale = torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
        return x * scale, scale

    def factors() -> Factors:
        hat, scale = parts()
        gamma = data(call, "weight")
        own = scale.expand(shape) if gamma is None else gamma * scale
        n = prod(normalised)
        return own * (1 - hat * hat / n), (-own * hat / n,), (hat,)

    yield 0, 0, LowRank(shape, dims, factors)
    at = position(call, "weight")
    if at is not None:
        yield at, 0, diagonal(shape, normalised, lambda: parts()[0])


register("_softmax _safe_softmax", softmax)
register("_log_softmax", log_softmax)
register("native_layer_norm", layer_norm)
register("native_group_norm", group_norm)
register("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training", batch_norm)
register("_batch_norm_with_update _batch_norm_no_update", batch_norm)
register("_fused_rms_norm", rms_norm)
