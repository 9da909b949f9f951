"""PyTorch's own operators along structures, against the reference carrier in float64, and where numbers give out.

Every formula is a sum of products, so that in a precision of unit u it may be off by a small multiple of u times the
sum of its terms' absolute values: those of the weights before they cancel, where a weight is a difference itself.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_jacobians import convolutions, jacobian, recorded_convolution, seeds
from torch import Tensor, nn

import gradtrace
from gradtrace.jacobians.structure import (
    FORMS,
    UNCANCELLED,
    Closed,
    ClosedRows,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Scatter,
    Sliding,
    Sparse,
    Strided,
    Structure,
)
from gradtrace.kernels import additive
from gradtrace.kernels.gradient import gradient
from gradtrace.kernels.reference import pull
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.recording.layouts import Layout
from gradtrace.semirings.base import Linear, Sum

KINDS = [torch.float32, torch.float64]
LOOSE = 40  # roundings on the way of one number, its sums included: most of these have a few dozen terms

some = settings(deadline=None, max_examples=60)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_near(found: Tensor, exact: Tensor, size: Tensor) -> None:
    """`size`: the sum of all terms' absolute values."""
    assert found.shape == exact.shape
    unit = torch.finfo(found.dtype).eps
    assert ((found.double() - exact).abs() <= LOOSE * unit * size).all()


def assert_like_the_reference(s: Structure, g: Tensor) -> None:
    """In both precisions, for weights that say all there is to round."""
    exact = pull(s, Sum.carrier, (g.double(),))[0]
    size = pull(s, Linear(torch.abs), (g.double().abs(),))[0]
    for kind in KINDS:
        assert_near(additive.pull(s, g.to(kind)), exact, size)


# ---------------------------------------------------------------- closed forms


@given(st.sampled_from(list(FORMS)), st.sampled_from(KINDS), seeds)
@some
def test_closed_pointwise_forms(form, kind, seed):
    y = drawn(seed, 3, 4).tanh().to(kind)
    g = drawn(seed + 1, 2, 3, 4)
    s = Contraction("ab", "ab", (3, 4), (3, 4), "ab", Closed(form, lambda: y))
    exact = FORMS[form](y.double()) * g.to(kind).double()
    size = UNCANCELLED[form](y.double().abs()) * g.abs()
    assert_near(additive.pull(s, g.to(kind)), exact, size)


def softmaxes(seed: int, shape: tuple[int, ...], dim: int, kind: torch.dtype, spread: float) -> tuple[Tensor, Tensor]:
    x = (drawn(seed, *shape) * spread).to(kind)
    return x.softmax(dim), x.log_softmax(dim)


@given(st.sampled_from([((5,), 0), ((3, 5), 1), ((3, 5), 0), ((2, 3, 4), 1)]), st.sampled_from(KINDS), seeds)
@some
def test_softmaxes(where, kind, seed):
    (shape, dim), batch = where, 2
    p, y = softmaxes(seed, shape, dim, kind, 5.0)
    g = drawn(seed + 1, batch, *shape)
    exactly = g.to(kind).double()
    for log in (False, True):
        rows = ClosedRows("log_softmax" if log else "softmax", lambda log=log: (y.exp() if log else p,), lambda: y)
        found = additive.pull(LowRank(shape, (dim,), rows), g.to(kind))
        q = y.double().exp() if log else p.double()
        total = (exactly if log else exactly * q).sum(1 + dim, keepdim=True)
        exact = exactly - q * total if log else q * (exactly - total)
        size = g.abs() * (1 if log else q) + q * (g.abs() * (1 if log else q)).sum(1 + dim, keepdim=True)
        assert_near(found, exact, size)


NORMS = [
    ((4, 6), (1,), (1, 6)),  # layer norm
    ((2, 3, 4), (1, 2), (1, 3, 4)),
    ((6,), (0,), (6,)),
    ((4, 3, 5), (0, 2), (1, 3, 1)),  # batch norm
    ((4, 3), (0,), (1, 3)),
    ((4, 3, 2, 3), (0, 2, 3), (1, 3, 1, 1)),
    ((2, 3, 2, 5), (2, 3), (1, 3, 2, 1)),  # group norm
]


@pytest.mark.parametrize("affine", [True, False])
@given(st.sampled_from(NORMS), st.sampled_from(KINDS), st.integers(1, 2), seeds)
@some
def test_norms(affine, where, kind, batch, seed):
    shape, dims, aligned = where
    count = math.prod(shape[d] for d in dims)
    x = drawn(seed, *shape) + 1
    centred = x - x.mean(dims, keepdim=True)
    scale = (centred.square().mean(dims, keepdim=True) + 1e-5).rsqrt()
    hat, scale = (centred * scale).to(kind), scale.to(kind)
    gamma = drawn(seed + 1, *aligned).to(kind) if affine else None
    g = drawn(seed + 2, batch, *shape).to(kind)
    found = additive.pull(LowRank(shape, dims, ClosedRows("standard", lambda: (hat, gamma, scale, count))), g)
    along = tuple(1 + d for d in dims)

    def formula(h: Tensor, hat: Tensor, sign: int) -> Tensor:
        rest = h.mean(along, keepdim=True) + hat * (h * hat).mean(along, keepdim=True)
        return (h + sign * rest) * scale.double()

    h = g.double() if gamma is None else g.double() * gamma.double()
    assert_near(found, formula(h, hat.double(), -1), formula(h.abs(), hat.double().abs(), 1))


def test_weights_that_were_rounded_to_float32_stay_so_in_float64():
    """A model in float64 that casts down on the way has the weights that its rules give, under every semiring."""
    p = drawn(1, 3, 5).softmax(1).float()
    y = drawn(2, 3, 5).tanh().float()
    g = drawn(3, 1, 3, 5)
    rows = LowRank((3, 5), (1,), ClosedRows("softmax", lambda: (p,)))
    pointwise = Contraction("ab", "ab", (3, 5), (3, 5), "ab", Closed("tanh", lambda: y))
    for s in (rows, pointwise):
        exact, size = pull(s, Sum.carrier, (g,))[0], pull(s, Linear(torch.abs), (g.abs(),))[0]
        assert_near(additive.pull(s, g), exact, size)


@pytest.mark.parametrize("affine", [True, False])
@given(st.sampled_from(NORMS), st.integers(1, 2), seeds)
@some
def test_factors_of_norms_that_were_rounded_to_float32_stay_so_in_float64(affine, where, batch, seed):
    shape, dims, aligned = where
    hat, gamma = drawn(seed, *shape).float(), drawn(seed + 1, *aligned).float() if affine else None
    scale = drawn(seed + 2, *[1 if d in dims else n for d, n in enumerate(shape)]).exp().float()
    rows = ClosedRows("standard", lambda: (hat, gamma, scale, math.prod(shape[d] for d in dims)))
    g, s = drawn(seed + 3, batch, *shape), LowRank(shape, dims, rows)
    exact, size = pull(s, Sum.carrier, (g,))[0], pull(s, Linear(torch.abs), (g.abs(),))[0]
    own, left, right = s.factors()
    terms = LowRank(shape, dims, lambda: (own.abs(), [t.abs() for t in left], [t.abs() for t in right]))
    assert_near(additive.pull(s, g), exact, size + pull(terms, Sum.carrier, (g.abs(),))[0])


def test_weights_of_half_a_precision_are_worked_out_in_the_gradients():
    p = drawn(1, 3, 5).softmax(1).half()
    g = drawn(3, 1, 3, 5).float()
    found = additive.pull(LowRank((3, 5), (1,), ClosedRows("softmax", lambda: (p,))), g)
    q = p.double()
    exact = q * (g.double() - (g * q).sum(-1, keepdim=True))
    assert found.dtype is torch.float32
    assert_near(found, exact, q * (g.abs() + (g * q).abs().sum(-1, keepdim=True)))


# ---------------------------------------------------------------- what stands in the other structures


@given(convolutions(), st.booleans(), st.integers(1, 2), seeds)
@settings(deadline=None, max_examples=120)
def test_convolutions(sizes, to_input, batch, seed):
    """Against the structures of patches that say the same."""
    s = recorded_convolution(sizes, to_input, seed)
    assert s.sizes == sizes
    assert_like_the_reference(s, drawn(seed + 2, batch, *sizes.output))


@given(st.lists(st.integers(-1, 3), min_size=6, max_size=6), st.sampled_from([1, 3]), st.booleans(), seeds)
@some
def test_rows_that_are_read(index, width, expanded, seed):
    s = Gather(lambda: torch.tensor(index), (6, width), (4, width), width)
    g = drawn(seed, 2, 1, 1).expand(2, 6, width) if expanded else drawn(seed, 2, width, 6).transpose(1, 2)
    assert_like_the_reference(s, g)


@pytest.mark.parametrize("index", [[-1, -1], [1, -1], [0, 1]])
def test_what_goes_somewhere_or_nowhere(index):
    assert_like_the_reference(Scatter(lambda: torch.tensor(index), (3,), (2,)), drawn(1, 2, 3))


def test_nothing_at_all():
    none = torch.zeros(0, dtype=torch.int64)
    empty = torch.zeros(2, 0)
    assert additive.pull(Gather(lambda: none, (0,), (3,)), empty).tolist() == [[0] * 3] * 2
    assert additive.pull(Scatter(lambda: none, (3,), (0,)), torch.ones(2, 3)).shape == (2, 0)
    s = Sparse(lambda: (none, none, None), (1, 2, 1), (1, 3, 1))
    assert additive.pull(s, torch.ones(2, 1, 2, 1)).tolist() == [[[[0]] * 3]] * 2
    assert additive.pull(LowRank((0, 3), (1,), lambda: (none, (), ())), torch.ones(2, 0, 3)).shape == (2, 0, 3)
    assert (
        additive.pull(
            Contraction("ij", "ik", (2, 0), (2, 3), "jk", lambda: torch.ones(0, 3)), empty[:, None].expand(2, 2, 0)
        ).tolist()
        == [[[0] * 3] * 2] * 2
    )


@pytest.mark.parametrize(
    "layout",
    [Layout((4, 3), (1, 4), 0), Layout((3, 2), (4, 1), 1), Layout((3, 4), (1, 1), 0), Layout((2, 12), (0, 1), 0)],
)
def test_views_of_what_lies_in_any_order(layout):
    g = drawn(1, 2, *reversed(layout.size)).transpose(1, 2)
    assert_like_the_reference(Strided(layout, (3, 4)), g)


def test_a_view_of_all_takes_no_memory():
    g = drawn(1, 1, 4, 3)
    found = additive.pull(Strided(Layout((4, 3), (1, 4), 0), (3, 4)), g)
    assert found.untyped_storage().data_ptr() == g.untyped_storage().data_ptr()
    assert found.tolist() == g.transpose(1, 2).tolist()


def test_a_low_rank_is_never_written_out():
    """Its Jacobian would have 10^12 entries."""
    n = 1_000_000
    own, left, right = (drawn(seed, n) for seed in range(3))
    g = drawn(4, 1, n)
    found = additive.pull(LowRank((n,), (0,), lambda: (own, (left,), (right,))), g)
    near = left * g[0]
    exact = own * g[0] + right * (near.sum() - near)
    assert_near(found[0], exact, own.abs() * g[0].abs() + right.abs() * near.abs().sum())


# ---------------------------------------------------------------- the carrier


def test_an_infinite_gradient_beside_an_absent_edge_is_left_to_the_reference():
    """0 · inf is no number, and an absent edge is absent."""
    carrier = gradient(torch.float32)
    weight = torch.tensor([0.0, 2.0])
    s = Contraction("a", "a", (2,), (2,), "a", lambda: weight)
    g = (torch.tensor([[math.inf, 1.0]]),)
    with pytest.raises(OutOfRange):
        carrier.plain(pull(s, carrier, g))
    assert pull(s, Sum.carrier, g)[0].tolist() == [[0, 2]]


def test_a_tape_with_an_infinite_derivative_answers_as_the_definition_does():
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    w = torch.tensor([0.0, 3.0], requires_grad=True)
    with gradtrace.record() as tape:
        loss = (x.sqrt() * w).sum()  # ∂√x/∂x is infinite at 0, where w is 0
    assert tape.grad(loss, [x, w])[0].tolist() == [0, 0.75]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_models_own_precision_or_float32(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)).to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    with gradtrace.record(model) as tape:
        loss = model(x).log_softmax(-1)[:, 0].mean()
    found = tape.grad(loss, list(tape.leaves))
    size = tape.grad(loss, list(tape.leaves), gradtrace.AbsSum)
    exact = torch.autograd.grad(loss, list(model.parameters()))
    for one, its, other in zip(found, size, exact, strict=True):
        assert one.dtype is dtype
        bound = LOOSE * torch.finfo(dtype).eps * its.double()
        assert ((one.double() - other.double()).abs() <= bound).all()


def test_log2_reaches_where_float32_does_not():
    x = torch.tensor(1.0, requires_grad=True)
    y = x
    with gradtrace.record() as tape:
        for _ in range(5):
            y = y * 1e-30
    (found,) = tape.grad(y, [x], log2=True)
    assert found == pytest.approx(5 * math.log2(1e-30), rel=1e-6)
    assert tape.grad(y, [x])[0] == 0  # as autograd's


def test_every_structure_has_a_kernel():
    from typing import get_args

    from gradtrace.jacobians import structure

    assert set(additive.KERNELS) == set(get_args(structure.Structure))
    with pytest.raises(KeyError):
        additive.pull(object(), torch.ones(1))


def test_definitions_of_convolutions_hold():
    """The loops of `numeric_jacobians`, exactly, on small integers."""
    sizes = Sliding((2, 2, 4), (4, 1, 2), (2, 4, 3), (1,), (0,), (1,), 2, False)
    generator = torch.Generator().manual_seed(1)
    x, w, g = (
        torch.randint(-2, 3, shape, generator=generator).double() for shape in (sizes.input, sizes.kernel, sizes.output)
    )
    for to_input, other in ((True, w), (False, x)):
        s = Convolved(sizes, to_input, lambda other=other: other, tuple)
        want = torch.zeros(s.x_shape).double().flatten()
        for (i, k), weight in jacobian(s).items():
            want[k] += weight * g.flatten()[i]
        assert additive.pull(s, g[None])[0].flatten().tolist() == want.tolist()
