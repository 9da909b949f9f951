"""Jacobians of structures, written out as loops from the definitions, and structures to try."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

import gradtrace
from gradtrace.jacobians.rules import structures
from gradtrace.jacobians.structure import (
    Chain,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sliding,
    Sparse,
    Strided,
    Structure,
)
from gradtrace.recording.layouts import Layout
from gradtrace.semirings.base import NO_ID

Jacobian = dict[tuple[int, int], float]  # (flat index of y, flat index of x) → weight; absent is 0


# ---------------------------------------------------------------- definitions, as loops


def flat(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    out = 0
    for i, n in zip(index, shape, strict=True):
        out = out * n + i
    return out


def indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*map(range, shape)))


def place(layout: Layout, index: tuple[int, ...]) -> int:
    return layout.offset + sum(i * s for i, s in zip(index, layout.stride, strict=True))


def of_contraction(s: Contraction) -> Jacobian:
    """y[Y] depends on x[X] with weight[W], for every assignment of the letters."""
    sizes = dict(zip(s.y + s.x, s.y_shape + s.x_shape, strict=True))
    weight = s.weight() if s.weight is not None else None
    out: Jacobian = {}
    for values in product(*(range(sizes[c]) for c in sizes)):
        at = dict(zip(sizes, values, strict=True))
        w = 1.0 if weight is None else float(weight.reshape([sizes[c] for c in s.w])[tuple(at[c] for c in s.w)])
        out[flat(tuple(at[c] for c in s.y), s.y_shape), flat(tuple(at[c] for c in s.x), s.x_shape)] = w
    return out


def of_strided(s: Strided) -> Jacobian:
    return {(flat(i, s.layout.size), place(s.layout, i)): 1.0 for i in indices(s.layout.size)}


def of_placed(s: Placed) -> Jacobian:
    covered = {place(h, i) for h in s.hidden for i in indices(h.size)}
    at = {flat(i, s.layout.size): place(s.layout, i) for i in indices(s.layout.size)}
    return {(y, x): 1.0 for x, y in at.items() if y not in covered}


def of_gather(s: Gather) -> Jacobian:
    return {(y, x): 1.0 for y, x in enumerate(s.scalars().flatten().tolist()) if x >= 0}


def of_scatter(s: Scatter) -> Jacobian:
    return {(y, x): 1.0 for x, y in enumerate(s.index().flatten().tolist()) if y >= 0}


def of_low_rank(s: LowRank) -> Jacobian:
    own, left, right = s.factors()
    out: Jacobian = {}
    for i, j in product(indices(s.shape), repeat=2):
        if all(a == b for d, (a, b) in enumerate(zip(i, j, strict=True)) if d not in s.dims):
            w = float(own[i]) if i == j else sum(float(a[i] * b[j]) for a, b in zip(left, right, strict=True))
            out[flat(i, s.shape), flat(j, s.shape)] = w
    return out


def of_sparse(s: Sparse) -> Jacobian:
    i, j, w = s.edges()
    weights = [1.0] * len(i) if w is None else w.tolist()
    (outer, _, inner), out = s.y_shape, {}
    for o, k in product(range(outer), range(inner)):
        for a, b, value in zip(i.tolist(), j.tolist(), weights, strict=True):
            out[flat((o, a, k), s.y_shape), flat((o, b, k), s.x_shape)] = value
    return out


def of_chain(s: Chain) -> Jacobian:
    first, second, out = jacobian(s.first), jacobian(s.second), {}
    for (y, v), w in first.items():
        for (u, x), z in second.items():
            if u == v:
                assert (y, x) not in out, "two ways"
                out[y, x] = w * z
    return out


def of_convolved(s: Convolved) -> Jacobian:
    """y[b, o, p] = Σ kernel[o, c, k] x[b, c', q] with p·stride + k·dilation - padding = q, c' being c of o's group."""
    sizes, other, out = s.sizes, s.other(), {}
    if sizes.transposed:
        raise NotImplementedError
    for b, o, c in product(range(sizes.output[0]), range(sizes.kernel[0]), range(sizes.kernel[1])):
        group = o // (sizes.kernel[0] // sizes.groups)
        for p, k in product(indices(sizes.output[2:]), indices(sizes.kernel[2:])):
            q = tuple(
                i * step + j * apart - pad
                for i, j, step, apart, pad in zip(p, k, sizes.stride, sizes.dilation, sizes.padding, strict=True)
            )
            if all(0 <= at < n for at, n in zip(q, sizes.input[2:], strict=True)):
                x, w = (b, group * sizes.kernel[1] + c, *q), (o, c, *k)
                to, weight = (flat(x, sizes.input), other[w]) if s.to_input else (flat(w, sizes.kernel), other[x])
                out[flat((b, o, *p), sizes.output), to] = float(weight)
    return out


DEFINITIONS: dict[type, Callable[..., Jacobian]] = {
    Contraction: of_contraction,
    Strided: of_strided,
    Placed: of_placed,
    Gather: of_gather,
    Scatter: of_scatter,
    LowRank: of_low_rank,
    Sparse: of_sparse,
    Chain: of_chain,
    Convolved: of_convolved,
}


def jacobian(s: Structure) -> Jacobian:
    return DEFINITIONS[type(s)](s)


def strongest(found: list[tuple[Any, int]]) -> tuple[Any, int]:
    value = max((v for v, _ in found), default=0.0)
    return value, min(i for v, i in found if v == value) if value else NO_ID


# ---------------------------------------------------------------- structures to try

seeds = st.integers(0, 10_000)


def integers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def contractions(draw: st.DrawFn) -> Contraction:
    sizes = {c: draw(st.integers(1, 3)) for c in "abcd"}
    y = draw(st.permutations(draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=True))))
    x = draw(st.permutations(draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=True))))
    both = sorted({*y, *x})
    w = draw(st.permutations(draw(st.lists(st.sampled_from(both), unique=True)))) if both else []
    shapes = [tuple(sizes[c] for c in letters) for letters in (y, x, w)]
    weight = integers(shapes[2], draw(seeds)) if draw(st.booleans()) else None
    given_ = None if weight is None else lambda: weight
    return Contraction("".join(y), "".join(x), shapes[0], shapes[1], "".join(w) if weight is not None else "", given_)


@st.composite
def convolutions(draw: st.DrawFn) -> Sliding:
    dims, groups, transposed = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    size, kernel, stride, padding, dilation, outside = (
        tuple(draw(st.integers(low, high)) for _ in range(dims))
        for low, high in ((1, 5), (1, 3), (1, 2), (0, 2), (1, 2), (0, 1))
    )
    few, many = draw(st.integers(1, 2)) * groups, draw(st.integers(1, 2)) * groups
    examples = draw(st.integers(1, 2))
    out = []
    for n, k, step, pad, apart, more in zip(size, kernel, stride, padding, dilation, outside, strict=True):
        reach = apart * (k - 1) + 1
        rest = min(more, max(step, apart) - 1)
        out.append((n - 1) * step - 2 * pad + reach + rest if transposed else (n + 2 * pad - reach) // step + 1)
    assume(min(out) >= 1)
    channels = (few, many // groups) if transposed else (many, few // groups)
    shapes = (examples, few, *size), (*channels, *kernel), (examples, many, *out)
    return Sliding(*shapes, stride, padding, dilation, groups, transposed)


def recorded_convolution(
    sizes: Sliding, to_input: bool, seed: int, draw: Callable[[tuple[int, ...], int], Tensor] | None = None
) -> Convolved:
    """The structure that the rule gives for a call of some sizes, on operands without zeros, or as `draw` does it."""
    generator = torch.Generator().manual_seed(seed)
    x, kernel = (
        torch.randn(shape, generator=generator).double() if draw is None else draw(shape, seed + k)
        for k, shape in enumerate((sizes.input, sizes.kernel))
    )
    lengths = zip(sizes.input[2:], sizes.kernel[2:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
    reached = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in lengths]
    outside = [m - n if sizes.transposed else 0 for m, n in zip(sizes.output[2:], reached, strict=True)]
    with gradtrace.record() as tape:
        where = sizes.stride, sizes.padding, sizes.dilation, sizes.transposed, outside, sizes.groups
        torch.convolution(x.requires_grad_(), kernel.requires_grad_(), None, *where).sum()
    found = {at: s for at, _, s in structures(tape.record.calls[0])}[0 if to_input else 1]
    assert isinstance(found, Convolved)
    return found


LAYOUTS = {
    "whole": Layout((2, 6), (6, 1), 0),
    "transposed": Layout((4, 3), (1, 4), 0),
    "column": Layout((3,), (4,), 2),
    "expanded": Layout((3, 2, 5), (4, 0, 0), 1),
    "repeated-and-kept": Layout((2, 3), (0, 4), 1),
    "overlapping": Layout((4, 3), (2, 1), 1),
    "overlapping-and-repeated": Layout((2, 3, 2), (1, 1, 0), 1),
    "scalar": Layout((), (), 7),
    "empty": Layout((0, 3), (3, 1), 0),
    "every-other": Layout((2, 2), (8, 2), 0),
}


def low_rank_factors(shape: tuple[int, ...], rank: int, seed: int):
    left, right = (tuple(integers(shape, seed + side + 2 * r) for r in range(rank)) for side in (1, 2))
    return integers(shape, seed), left, right
