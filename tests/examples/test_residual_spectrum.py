"""The spectrum of a residual network against every way through its blocks, and against sampling."""

from __future__ import annotations

from itertools import combinations
from math import comb
from xml.etree import ElementTree

import pytest
import torch
from loading import example
from torch.nn import functional

spectrum = example("residual_spectrum")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = spectrum.Residual(blocks=5, width=6).double()
    return model, torch.rand(4, 64, dtype=torch.float64), torch.randint(10, (4,))


def test_exact_parts_are_sums_over_all_ways_of_their_length(small):
    parts, ways = spectrum.exact_parts(*small), spectrum.Ways(*small)
    assert len(parts) == 6
    for n, part in enumerate(parts):
        expected = sum(ways.gradient(way) for way in combinations(range(5), n))
        assert torch.allclose(part, expected, rtol=1e-10, atol=1e-14), n


def test_parts_add_up_to_autograds_gradient(small):
    model, x, y = small
    h = model.stem(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model.after(h), y), h)
    assert (spectrum.exact_parts(*small).sum(0) - gradient).abs().max() < 1e-10


def test_sampling_estimates_the_exact_parts(small):
    torch.manual_seed(1)
    parts, ways = spectrum.exact_parts(*small), spectrum.Ways(*small)
    for n, part in enumerate(parts):
        estimate, mean = ways.sampled_part(n, 400)
        assert (estimate - part).norm() < 0.25 * comb(5, n) * mean, n
    assert torch.allclose(ways.sampled_part(5, 1)[0], parts[5])  # there is one way of each extreme length
    assert torch.allclose(ways.sampled_part(0, 1)[0], parts[0])


def test_digits_have_the_shape_that_the_network_takes():
    x, y = spectrum.digits()
    assert (x.shape, float(x.min()), float(x.max())) == ((1797, 64), 0, 1)
    assert sorted(set(y.tolist())) == list(range(10))


def test_the_drawing_is_svg_with_a_bar_and_a_ring_for_each_length(small):
    torch.manual_seed(2)
    found = spectrum.measure(*small, samples=3)
    root = ElementTree.fromstring(spectrum.draw(found))
    kinds = [child.tag.split("}")[1] for child in root]
    assert (kinds.count("rect"), kinds.count("circle")) == (1 + 6, 6)
    assert spectrum.mean_length([1.0, 0.0, 1.0]) == 1.0
    assert found.cosine[0] == pytest.approx(1.0)
    assert found.cosine[5] == pytest.approx(1.0)


def test_24_blocks_trained_a_little():
    torch.manual_seed(0)
    model, (x, y) = spectrum.Residual(), spectrum.digits()
    assert spectrum.train(model, x, y, 60) > 0.5
    parts = spectrum.exact_parts(model, x[:32], y[:32])
    h = model.stem(x[:32]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model.after(h), y[:32]), h)
    assert (parts.sum(0) - gradient).abs().max() < 1e-6 * gradient.abs().max()  # float32
    norms = [float(p.norm()) for p in parts]
    assert spectrum.mean_length(norms) < 12  # of all ways the mean length is 12
