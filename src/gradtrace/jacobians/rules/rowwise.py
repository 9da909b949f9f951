"""Row-wise operators: a small dense Jacobian for each row, rows being independent of one another.

A row is what an operator's definition connects: the last two axes of a matrix function, one axis of a
cumulative product. One backward pass for each scalar of a row's result serves all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from ...recording.record import Call
from ..structure import LETTERS, Chain, Contraction, Edges, Scatter, Shape, Sparse, Structure
from .dense import backward
from .table import Edge, Rule, argument, differentiable, register, result

Axes = Callable[[Call], tuple[tuple[int, ...], tuple[int, ...]]]


def rows(call: Call, position: int, number: int, y_row: tuple[int, ...], x_row: tuple[int, ...]) -> Structure:
    """Give the structure towards one argument, given which axes of the result and of the argument form a row.

    The other axes enumerate rows; those of the argument are broadcast to those of the result.
    """
    y, x = result(call, number).shape, call.inputs[position].shape
    if 0 in y or 0 in x:
        return Scatter(lambda: torch.full(x, -1), y, x)
    y_row, x_row = tuple(d % len(y) for d in y_row), tuple(d % len(x) for d in x_row)
    y_batch = [d for d in range(len(y)) if d not in y_row]
    x_batch: list[int | None] = [d for d in range(len(x)) if d not in x_row]
    x_batch = [None] * (len(y_batch) - len(x_batch)) + x_batch
    letter = iter(LETTERS)
    of_y = {d: next(letter) for d in range(len(y))}
    of_x = {d: next(letter) for d in x_row}
    full = dict(zip(x_batch, y_batch, strict=True))  # axis of x → axis of y
    shared = {d: of_y[b] for d, b in full.items() if d is not None and x[d] == y[b]}
    kept = [d for d in range(len(x)) if d in x_row or d in shared]
    letters = {**of_x, **shared}
    expanded = [b for d, b in full.items() if d is None], [y[full[d]] if d in full else x[d] for d in range(len(x))]
    w = "".join(of_y[d] for d in y_row) + "".join(of_y[b] for b in expanded[0])
    w += "".join(of_x[d] if d in of_x else of_y[full[d]] for d in range(len(x)))
    shape = (*[y[b] for b in expanded[0]], *expanded[1])
    return Contraction(
        "".join(of_y.values()),
        "".join(letters[d] for d in kept),
        y,
        tuple(x[d] for d in kept),
        w,
        lambda: jacobians(call, position, number, y_row, shape),
    )


def jacobians(call: Call, position: int, number: int, y_row: tuple[int, ...], shape: Shape) -> Tensor:
    """Give row entries of y × x (expanded to `shape`): the derivatives, all rows at once."""
    tensors = [i.tensor() for i in call.inputs]
    with torch.enable_grad():
        tensors[position] = leaf = tensors[position].expand(shape).clone().requires_grad_()
        y = call.run(tensors)[number]
        assert y is not None
    sizes = [y.shape[d] for d in y_row]
    count = prod(sizes)
    # seeds: entry of the row × y
    seeds = torch.eye(count, dtype=y.dtype, device=y.device)
    view = [1] * y.dim()
    for d in y_row:
        view[d] = y.shape[d]
    ordered = seeds.reshape(count, *sizes).permute(0, *[1 + i for i in _ranks(y_row)])
    seeds = ordered.reshape(count, *view).expand(count, *y.shape)
    return backward(y, leaf, seeds).reshape((*sizes, *shape))


def _ranks(row: tuple[int, ...]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: row[i])


def trailing(results: tuple[int, ...], arguments: tuple[int, ...]) -> Rule:
    """Make the rule of an operator on the last axes: how many, for each result and each tensor argument."""

    def rule(call: Call) -> Iterator[Edge]:
        for position in differentiable(call):
            for number, y in enumerate(call.outputs[: len(results)]):
                if y is not None:
                    m, n = results[number], arguments[position]
                    yield position, number, _trailing(call, position, number, m, n)

    return rule


def _trailing(call: Call, position: int, number: int, m: int, n: int) -> Structure:
    """Give the structure by the last m axes of the result and n of the argument; pairs are one more."""
    pairs = int(call.gives_complex), int(call.inputs[position].dtype.is_complex)
    return rows(call, position, number, _last(m + pairs[0]), _last(n + pairs[1]))


def _last(n: int) -> tuple[int, ...]:
    return tuple(range(-n, 0))


def along(name: str = "dim") -> Rule:
    """Make the rule of an operator that works along one axis, of the same size in every argument."""

    def rule(call: Call) -> Iterator[Edge]:
        dim = argument(call, name)
        for position in differentiable(call):
            shape, pair = call.inputs[position].shape, call.inputs[position].dtype.is_complex
            ndim = len(shape) - pair
            row = ((dim % ndim,) if ndim else ()) + (ndim,) * pair
            yield position, 0, rows(call, position, 0, row, row)

    return rule


def cumsum(call: Call) -> Iterator[Edge]:
    """∂y_i/∂x_j = 1 for j ≤ i."""
    x, y = call.inputs[0].shape, result(call).shape
    if not x:
        yield 0, 0, Contraction("", "", (), ())
        return
    dim = argument(call, "dim") % len(x)
    axes = LETTERS[: len(x)]
    x_axes = axes[:dim] + "Z" + axes[dim + 1 :]
    n, dtype = x[dim], result(call).dtype
    yield 0, 0, Contraction(axes, x_axes, y, x, axes[dim] + "Z", lambda: torch.ones(n, n, dtype=dtype).tril())


def solve(call: Call) -> Iterator[Edge]:
    """linalg.solve: the right side is vectors or matrices."""
    pair = call.gives_complex
    a, b = (x.shape[: len(x.shape) - pair] for x in call.inputs)
    vector = len(b) == 1 or (len(a) - 1 == len(b) and tuple(b) == tuple(a[:-1]))
    columns = 1 if vector else 2
    for position in differentiable(call):
        yield position, 0, _trailing(call, position, 0, columns, 2 if position == 0 else columns)


def renorm(call: Call) -> Iterator[Edge]:
    """Every slice along `dim` is a row."""
    ndim = len(call.inputs[0].shape)
    row = tuple(d for d in range(ndim) if d != argument(call, "dim") % ndim)
    yield 0, 0, rows(call, 0, 0, row, row)


def cdist(call: Call) -> Iterator[Edge]:
    """y[…, p, r] connects row p of the first with row r of the second; each pair is a row here."""
    y = result(call).shape
    *batch, p, r = y
    m = call.inputs[0].shape[-1]
    b = LETTERS[: len(batch)]

    def pairs(position: int) -> Tensor:
        # … × p × r × 1 × m
        left = call.inputs[0].tensor().unsqueeze(-2).unsqueeze(-2).expand(*batch, p, r, 1, m)
        right = call.inputs[1].tensor().unsqueeze(-2).unsqueeze(-4).expand(*batch, p, r, 1, m)
        with torch.enable_grad():
            sides = [t.reshape(prod(y), 1, m).clone().requires_grad_() for t in (left, right)]
            out = call.run(sides)[0]
            assert out is not None
            (grad,) = torch.autograd.grad(out, sides[position], torch.ones_like(out))
        return grad.reshape(*batch, p, r, m)

    for position, axis in ((0, "P"), (1, "R")):
        x = call.inputs[position].shape
        skip = len(batch) - (len(x) - 2)
        kept = [d for d in range(len(batch)) if d >= skip and x[d - skip] == batch[d]]
        letters = "".join(b[d] for d in kept) + axis + "M"
        sizes = (*[batch[d] for d in kept], *x[-2:])
        yield position, 0, Contraction(b + "PR", letters, y, sizes, b + "PRM", lambda q=position: pairs(q))


def pdist(call: Call) -> Iterator[Edge]:
    """Each result is the norm of the difference of two rows: pairs ← differences ← rows."""
    (n, m), pairs = call.inputs[0].shape, result(call).numel
    first, second = torch.triu_indices(n, n, 1)

    def norms() -> Tensor:
        x, p = call.inputs[0].tensor(), argument(call, "p")
        with torch.enable_grad():
            sides = [x[at].unsqueeze(1).requires_grad_() for at in (first, second)]
            out = torch.ops.aten._cdist_forward(*sides, p, None)
            (grad,) = torch.autograd.grad(out, sides[0], torch.ones_like(out))
        return grad.squeeze(1)

    def differences() -> Edges:
        pair, one = torch.arange(pairs).repeat(2), torch.ones(pairs, dtype=result(call).dtype)
        return pair, torch.cat([first, second]), torch.cat([one, -one])

    norm = Contraction("p", "pm", (pairs,), (pairs, m), "pm", norms)
    yield 0, 0, Chain(norm, Sparse(differences, (1, pairs, m), (1, n, m)))


register("autograd._Dirichlet", trailing((1,), (1,)))
register("_pdist_forward", pdist)
register("cumsum", cumsum)
register("cumprod logcumsumexp _softmax_backward_data _log_softmax_backward_data", along())
register("linalg_cross", along())
register("renorm", renorm)
register("_cdist_forward _euclidean_dist", cdist)
register("_linalg_solve_ex", solve)
register("linalg_cholesky_ex cholesky cholesky_inverse linalg_inv_ex linalg_matrix_exp", trailing((2,), (2,)))
register("linalg_pinv", trailing((2,), (2, 0, 0)))
register("cholesky_solve linalg_solve_triangular", trailing((2,), (2, 2)))
register("triangular_solve", trailing((2, 2), (2, 2)))
register("linalg_lstsq", trailing((2, 1), (2, 2)))
register("linalg_qr", trailing((2, 2), (2,)))
register("_linalg_svd", trailing((2, 1, 2), (2,)))
register("_linalg_eigh", trailing((1, 2), (2,)))
register("_linalg_det", trailing((0,), (2,)))
register("_linalg_slogdet", trailing((0, 0), (2,)))
register("linalg_lu_factor_ex", trailing((2,), (2,)))
register("linalg_lu", trailing((2, 2, 2), (2,)))
register("lu_unpack", trailing((2, 2, 2), (2, 1)))
register("linalg_lu_solve", trailing((2,), (2, 1, 2)))
register("linalg_householder_product", trailing((2,), (2, 1)))
register("ormqr", trailing((2,), (2, 1, 2)))
