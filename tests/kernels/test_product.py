"""Products that wait: turned, split, computed once, and put into one only where they fit."""

from __future__ import annotations

import pytest
import torch
from numeric_jacobians import integers
from planes import drawn, plane

from gradtrace.jacobians.structure import Contraction
from gradtrace.kernels import native
from gradtrace.kernels.fast import pull
from gradtrace.kernels.product import Product, multiply
from gradtrace.kernels.shared_exponent import OutOfRange, joined

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")


def _waiting(batch: int = 1) -> Product:
    s = Contraction("ij", "ik", (2, 3), (2, 4), "jk", lambda: integers((3, 4), 1))
    found = pull(s, plane(drawn(batch, (2, 3), 2, torch.float64)))
    assert isinstance(found, Product)
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_a_turned_product_is_the_product_turned(batch):
    plain, turned = _waiting(batch).realise(), _waiting(batch).turned((1, 0))
    found = turned.realise()
    assert plain.raw is not None
    assert found.raw is not None
    assert turned.shape == (4, 2)
    assert torch.equal(found.plane.data, plain.plane.data.transpose(1, 2))
    assert torch.equal(found.raw, plain.raw.transpose(1, 2))
    twice = turned.turned((1, 0))
    assert (twice.shape, twice.turn) == ((2, 4), (0, 1))
    assert torch.equal(twice.realise().plane.data, plain.plane.data)


def test_a_split_product_has_its_first_axis_for_the_batch():
    plain, product = _waiting().realise(), _waiting()
    product.split = True
    found = product.realise()
    assert product.shape == (4,)
    assert torch.equal(found.plane.data, plain.plane.data.squeeze(0))


def test_a_product_is_computed_once():
    product = _waiting()
    assert product.realise() is product.realise()


def test_products_that_differ_in_size_or_order_are_not_put_into_one():
    split = _waiting()
    split.split = True
    assert _waiting().key == _waiting().key
    assert len({_waiting().key, _waiting(3).key, _waiting().turned((1, 0)).key, split.key}) == 4


def test_products_side_by_side_are_one():
    a, b = (plane(drawn(1, (2, n), n, torch.float64)) for n in (3, 2))
    w, v = (integers((1, 4, n), n + 5) for n in (3, 2))
    both, sizes = joined([a, b], -1)
    found, raw = multiply(both, torch.cat([w, v], -1))
    edges = torch.cat([a.data[:, :, None] * w.abs()[:, None], b.data[:, :, None] * v.abs()[:, None]], -1)
    assert sizes == [3, 2]
    assert torch.equal(found.data * 2.0**found.exponent, edges.amax(-1))
    first = (edges == edges.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    assert torch.equal(raw[found.data > 0].long(), first[found.data > 0])


def test_values_in_several_units_are_joined_in_one():
    a, b = plane(torch.tensor([[1.0, 2.0]]), 3), plane(torch.tensor([[4.0]]), -3)
    both, _ = joined([a, b], -1)
    assert (both.data * 2.0**both.exponent).tolist() == [[8.0, 16.0, 0.5]]
    assert (both.low, both.high) == (float(both.data.min()), float(both.data.max()))
    far, _ = joined([a, plane(torch.tensor([[1.0]]), -120)], -1)
    assert far.dtype is torch.float64
    with pytest.raises(OutOfRange):
        joined([a, plane(torch.tensor([[1.0]]), -1100)], -1)
