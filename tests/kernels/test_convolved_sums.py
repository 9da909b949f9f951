"""Norms and entropies along convolutions, against the structures of patches that say the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numeric_jacobians import convolutions, recorded_convolution, seeds
from torch import Tensor

from gradtrace.errors import NotANumber
from gradtrace.jacobians.structure import Convolved, Sliding
from gradtrace.kernels import convolved_sums, native
from gradtrace.kernels.float_carriers import Plain, PlainEntropy, PlainNorm
from gradtrace.kernels.reference import by_definition, pull
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.semirings.base import Element

if not native.available():
    pytest.skip("no compiled kernels", allow_module_level=True)

EXACT = {torch.float32: 4e-6, torch.float64: 1e-12}


def carrier_of(p: int | None, kind: torch.dtype) -> Plain:
    return PlainEntropy(kind) if p is None else PlainNorm(kind, p.bit_length() - 1)


def drawn(seed: int, shape: tuple[int, ...], spread: float, zeros: float) -> Tensor:
    """Log-normal numbers: of `spread` powers of two."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random).double() * torch.exp2(
        spread * torch.randn(shape, generator=random).double()
    )
    return x.masked_fill(torch.rand(shape, generator=random) < zeros, 0)


def element(seed: int, carrier: Plain, shape: tuple[int, ...], spread: float, zeros: float) -> Element:
    z = drawn(seed, shape, spread, zeros).abs().to(carrier.kind)
    h = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(carrier.kind) * 3
    return (z,) if isinstance(carrier, PlainNorm) else (z, h)


@given(
    convolutions(),
    st.booleans(),
    st.sampled_from([1, 2, 8, 64, None]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([0.0, 3.0, 20.0]),
    st.sampled_from([0.0, 0.4, 0.95]),
    seeds,
)
@settings(deadline=None, max_examples=200)
def test_convolutions(sizes, to_input, p, kind, spread, zeros, seed):
    carrier = carrier_of(p, kind)
    assume(spread < 20 or kind is torch.float64)
    s = recorded_convolution(sizes, to_input, seed, lambda shape, at: drawn(at, shape, spread, zeros))
    g = element(seed + 5, carrier, (2, *sizes.output), spread, zeros)
    found, wanted = pull(s, carrier, g), by_definition(s, carrier, g)
    unit = EXACT[kind]
    assert torch.equal(found[0] > 0, wanted[0] > 0)
    assert ((found[0].double() - wanted[0].double()).abs() <= unit * wanted[0].double()).all()
    if p is None:
        assert ((found[1].double() - wanted[1].double()).abs() <= 64 * unit * (4 + wanted[1].double())).all()


def one_by_one(weight: Tensor) -> Convolved:
    """y[0, 0, i] = w x[0, 0, i], and no other structure says so."""
    sizes = Sliding((1, 1, 3), (1, 1, 1), (1, 1, 3), (1,), (0,), (1,), 1, False)
    return Convolved(sizes, True, lambda: weight.reshape(1, 1, 1), tuple)


@pytest.mark.parametrize("p", [1, 8, None])
def test_what_float32_would_lose_is_kept_in_float64(p):
    carrier = carrier_of(p, torch.float32)
    z = torch.tensor([[[[1e-30, 0.0, 1.0]]]])
    found = pull(one_by_one(torch.tensor(1e-30)), carrier, (z, torch.zeros_like(z))[: 1 + (p is None)])
    assert found[0].dtype is torch.float64
    assert found[0].flatten().tolist() == pytest.approx([1e-60, 0, 1e-30], rel=1e-6)


@pytest.mark.parametrize("p", [1, 8, None])
def test_what_float64_would_lose_is_left_to_the_patches(p):
    carrier = carrier_of(p, torch.float64)
    z = torch.tensor([[[[1e-300, 1.0, 0.0]]]], dtype=torch.float64)
    g = (z, torch.zeros_like(z))[: 1 + (p is None)]
    assert convolved_sums.convolved(one_by_one(torch.tensor(1e-300, dtype=torch.float64)), g, carrier.squarings) is None


@pytest.mark.parametrize("p", [1, 8, None])
def test_no_numbers_and_infinite_ones(p):
    carrier = carrier_of(p, torch.float32)
    g = (torch.ones(1, 1, 1, 3),) * (1 + (p is None))
    with pytest.raises(NotANumber):
        pull(one_by_one(torch.tensor(math.nan)), carrier, g)
    with pytest.raises(OutOfRange):
        pull(one_by_one(torch.tensor(math.inf)), carrier, g)


def test_a_convolution_of_nothing_is_nothing():
    for p in (1, 8, None):
        carrier = carrier_of(p, torch.float32)
        g = (torch.zeros(1, 1, 1, 3),) * (1 + (p is None))
        for weight in (0.0, 1.0):
            assert all(not plane.any() for plane in pull(one_by_one(torch.tensor(weight)), carrier, g))
