"""What edges add up to beside autograd's number: what is settled at first sight is within the bound."""

from __future__ import annotations

import math

import pytest
import torch
from checks import leaf, recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtrace.backward.added import SMALL, Added, Part, same
from gradtrace.jacobians import rules


def product(swift: bool) -> Added:
    """What reaches w in x @ w, which is 30 terms of both signs for each scalar."""
    leaves = {"x": leaf(30, 4).detach().float().requires_grad_(), "w": leaf(4, 5).detach().float().requires_grad_()}
    tape, _ = recorded(lambda x, w: (x @ w).sum(), leaves)
    call = tape.calls[0]
    structure = next(s for position, _, s in rules.structures(call) if position == 1)
    found = Added((4, 5), torch.float32, kept=True, swift=swift)
    found.add(Part(structure, call, leaf(30, 5, seed=2).detach().float()))
    return found


@settings(deadline=None)
@given(st.floats(-14, 2), st.integers(0, 19))
def test_what_is_settled_at_first_sight_is_within_the_bound(size, at):
    found = product(swift=True)
    autograd = found.sum().clone()
    autograd.view(-1)[at] += 10**size
    settled = found.fit(autograd).used <= 1
    exact = product(swift=False)
    slack = exact.slack()
    within = ((exact.sum() - autograd).abs() <= slack * (1 + 1e-6)).all()
    assert not settled or within
    assert settled or not ((exact.sum() - autograd).abs() <= slack * (1 - 1e-6)).all()


@pytest.mark.parametrize("n", [3, 2 * SMALL])
def test_numbers_are_the_same_to_the_last_bit_and_nan_as_nothing(n):
    a = torch.randn(n)
    assert same(a, a.clone())
    assert same(a.double(), a)
    assert same(a, a.bfloat16()) == same(a.bfloat16().float(), a.bfloat16())
    b = a.clone()
    b[-1] = torch.nextafter(b[-1], torch.tensor(math.inf))
    assert not same(a, b)
    b[-1] = math.nan
    assert not same(b, b)
