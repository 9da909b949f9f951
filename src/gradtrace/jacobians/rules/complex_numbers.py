"""Rows of complex numbers: "complex.mul" serves `mul` where complex numbers go in or come out.

Pointwise operators have a block for each number, by one backward pass for each part of the result, so that nothing is
said about which of them are holomorphic. What moves numbers, or multiplies and adds them up, is lifted (`pairs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import Shape, diagonal, reduction
from .pairs import blocked, lifted, numbers
from .reduction import axes
from .table import TABLE, Edge, Rule, differentiable, register, result


def pointwise(call: Call) -> Iterator[Edge]:
    """Give a block for each number of the result and each argument."""
    y = result(call).shape
    shape = y[:-1] if call.gives_complex else y
    derivatives = cache(lambda: _pointwise(call, shape))
    for position, given in enumerate(call.inputs):
        pair = given.dtype.is_complex
        x = given.shape[:-1] if pair else given.shape
        if len(x) <= len(shape):
            one = diagonal(shape, x, lambda: torch.ones(()))
            weight = lambda p=position: derivatives()[p]  # noqa: E731
            yield position, 0, blocked(one, weight, call.gives_complex, pair, whole=True)


def _pointwise(call: Call, shape: Shape) -> dict[int, Tensor]:
    """Give the blocks by position: numbers × parts of y × parts of x."""
    tensors = [i.tensor() for i in call.inputs]
    wanted = differentiable(call)
    with torch.enable_grad():
        for p in wanted:
            pair = [2] if call.inputs[p].dtype.is_complex else []
            tensors[p] = tensors[p].expand((*shape, *pair)).clone().requires_grad_()
        y = call.run(tensors)[0]
    assert y is not None
    return _parts(call, y, {p: tensors[p] for p in wanted}, len(shape))


def _parts(call: Call, y: Tensor, leaves: dict[int, Tensor], ndim: int) -> dict[int, Tensor]:
    """Ask autograd for the gradient of the sum of each part of y: numbers of x × parts of y × parts of x."""
    seeds = [torch.ones_like(y)]
    if call.gives_complex:
        seeds = [torch.zeros_like(y), torch.zeros_like(y)]
        for part, seed in enumerate(seeds):
            seed[..., part] = 1
    found: dict[int, list[Tensor]] = {p: [] for p in leaves}
    for seed in seeds:
        grads = torch.autograd.grad(y, list(leaves.values()), seed, retain_graph=True, allow_unused=True)
        for (p, leaf), grad in zip(leaves.items(), grads, strict=True):
            found[p].append(torch.zeros_like(leaf) if grad is None else grad)
    return {p: torch.stack(rows, ndim) if call.gives_complex else rows[0] for p, rows in found.items()}


def real_row(name: str) -> Rule:
    """Make the rule of a complex-linear operator: its real row, lifted."""
    return lifted(lambda call: TABLE[name](call))


def either(name: str) -> Rule:
    """Make a pointwise rule: the real row lifted where nothing but complex numbers of one precision is involved."""

    def rule(call: Call) -> Iterator[Edge]:
        kinds = {x.dtype for x in call.inputs} | {result(call).dtype.to_complex()}
        factor = any(isinstance(a, complex) for a in (*call.args, *call.kwargs.values()))
        yield from (real_row(name) if len(kinds) == 1 and call.gives_complex and not factor else pointwise)(call)

    return rule


def merged(call: Call) -> Iterator[Edge]:
    """Each number goes into one result along the axes `dim`; autograd gives the blocks."""
    yield from _merged(call, axes(numbers(call)), 0)


def total(call: Call) -> Iterator[Edge]:
    """Every number goes into the one result."""
    for position in differentiable(call):
        yield from _merged(call, tuple(range(len(numbers(call).inputs[position].shape))), position)


def _merged(call: Call, dims: tuple[int, ...], position: int) -> Iterator[Edge]:
    x, pair = numbers(call).inputs[position].shape, call.inputs[position].dtype.is_complex

    def weight() -> Tensor:
        tensors = [i.tensor() for i in call.inputs]
        with torch.enable_grad():
            tensors[position] = leaf = tensors[position].clone().requires_grad_()
            y = call.run(tensors)[0]
        assert y is not None
        return _parts(call, y, {0: leaf}, len(x))[0]

    one = reduction(x, dims, lambda: torch.ones(()))
    yield position, 0, blocked(one, weight, call.gives_complex, pair, whole=True)


# Complex-linear operators whose real rule says all: it moves numbers, adds them up, or multiplies them.
POINTWISE = "clone copy fill zero neg add sub tril triu"
LINEAR = """
cat stack sum mean cumsum as_strided as_strided_copy block_diag
mm bmm mv dot addmm baddbmm addbmm addmv addr
gather index_select index _unsafe_index roll flip rot90 repeat take masked_select diag_embed constant_pad_nd
alias_copy diagonal_copy expand_copy narrow_copy permute_copy
split_copy split_with_sizes_copy squeeze_copy t_copy transpose_copy unbind_copy unfold_copy unsqueeze_copy view_copy
scatter scatter_add index_copy index_fill index_put _unsafe_index_put put masked_scatter masked_fill
diagonal_scatter as_strided_scatter index_add unfold_backward
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
im2col col2im pixel_shuffle pixel_unshuffle
"""
ROWWISE = "cumprod linalg_cross linalg_inv_ex linalg_cholesky_ex linalg_matrix_exp _linalg_solve_ex _linalg_det"


def rows(names: str, rule: Callable[[str], Rule]) -> None:
    """Register rules of complex numbers, made of the names of their operators."""
    for name in names.split():
        register(f"complex.{name}", rule(name))


rows(POINTWISE, either)
rows(LINEAR, real_row)
rows(ROWWISE, lambda name: lambda call: TABLE[name](call))  # which see to pairs themselves
rows("complex polar _to_copy rsub", lambda name: pointwise)
rows("linalg_vector_norm norm prod var std logsumexp", lambda name: merged)
rows("vdot dist", lambda name: total)
