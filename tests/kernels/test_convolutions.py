"""A convolution as one product over all offsets, against the parts that its rule gives, and what is left to them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradtrace
from gradtrace.jacobians.rules import structures
from gradtrace.jacobians.structure import Convolved
from gradtrace.kernels import convolutions, native
from gradtrace.kernels.convolutions import as_products
from gradtrace.kernels.float_carriers import PlainEntropy, PlainNorm
from gradtrace.kernels.reference import by_definition
from gradtrace.kernels.signed import Ends
from gradtrace.kernels.top_k import Largest

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")

CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


@st.composite
def calls(draw: st.DrawFn) -> tuple[Convolved, Convolved]:
    """Draw a convolution's structures towards its input and its kernel; numbers are small integers."""
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        tuple(draw(st.integers(low, high)) for _ in range(dims)) for low, high in ((1, 3), (1, 3), (0, 3), (1, 2))
    )
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(max(1, r - 2 * p), 6)) for r, p in zip(reach, padding, strict=True)]
    channels, out = draw(st.integers(1, 2)) * groups, draw(st.integers(1, 3)) * groups
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def integers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).double().requires_grad_()

    x, w = integers(draw(st.integers(1, 2)), channels, *size), integers(out, channels // groups, *kernel)
    with gradtrace.record(names={"x": x, "w": w}) as tape:
        CONVOLUTIONS[dims](x, w, None, stride, padding, dilation, groups).sum()
    (call,) = (c for c in tape.calls if "convolution" in c.name)
    first, second = (s for _, _, s in structures(call))
    assert isinstance(first, Convolved)
    assert isinstance(second, Convolved)
    return first, second


def elements(carrier: Any, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    draw = torch.randint(0, 4, (2, 1, *shape), generator=torch.Generator().manual_seed(3)).double()
    if isinstance(carrier, Ends):
        low, high = (draw - 2).sort(0).values
        return tuple(p.masked_fill((low == 0) | (high == 0), math.nan) for p in (high, low))
    if isinstance(carrier, PlainEntropy):
        return draw[0], torch.where(draw[0] > 0, draw[1], 0.0)
    return tuple(draw.sort(0, descending=True).values)[: 2 if isinstance(carrier, Largest) else 1]


@pytest.mark.parametrize("carrier", [Ends(torch.float64), Largest(torch.float64, 3), PlainNorm(torch.float64, 0)])
@given(calls())
@settings(deadline=None, max_examples=120)
def test_products_are_what_the_parts_give(carrier, pair):
    absent = math.nan if isinstance(carrier, Ends) else 0.0
    for s in pair:
        g = elements(carrier, s.sizes.output)
        ours, parts = as_products(s, carrier, g, absent), by_definition(s, carrier, g)
        assert ours is not None
        assert ours[0].shape == (1, *s.x_shape)
        p, q = carrier.plain(ours), carrier.plain(parts)
        assert torch.equal(p, q) or (isinstance(carrier, PlainNorm) and torch.allclose(p, q, rtol=1e-12, atol=0))


@given(calls())
@settings(deadline=None, max_examples=60)
def test_entropies_are_what_the_parts_give(pair):
    carrier = PlainEntropy(torch.float64)
    for s in pair:
        g = elements(carrier, s.sizes.output)
        ours = as_products(s, carrier, g, 0.0)
        assert ours is not None
        for p, q in zip(ours, by_definition(s, carrier, g), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)


def test_what_takes_too_much_room_and_what_is_transposed_is_left_to_the_parts(monkeypatch):
    x, w = torch.ones(1, 2, 5, requires_grad=True), torch.ones(2, 2, 3, requires_grad=True)
    found = []
    for f in (torch.nn.functional.conv1d, torch.nn.functional.conv_transpose1d):
        with gradtrace.record(names={"x": x, "w": w}) as tape:
            f(x, w).sum()
        found += [s for c in tape.calls for _, _, s in structures(c) if isinstance(s, Convolved)]
    carrier = Ends(torch.float32)
    given_ = [as_products(s, carrier, elements(carrier, s.sizes.output), math.nan) for s in found]
    assert [g is None for g in given_] == [False, False, True, True]
    monkeypatch.setattr(convolutions, "ROOM", 3)
    assert as_products(found[0], carrier, elements(carrier, found[0].sizes.output), math.nan) is None
