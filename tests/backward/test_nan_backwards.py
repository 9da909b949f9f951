"""Where a gradient becomes NaN although no forward value is."""

from __future__ import annotations

import re

import pytest
import torch
from checks import F64, recorded

from gradtrace.backward.nan_backwards import nan_in_backward
from gradtrace.errors import NotANumber


def points(*numbers: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(numbers, **F64, requires_grad=True)}


BROKEN = {
    "sqrt, cut afterwards": (lambda x: torch.where(x > 0, x.sqrt(), 0.0).sum(), r"0 · ∞ .*aten\.sqrt\.default#1 "),
    "times 0": (lambda x: (x.sqrt() * torch.tensor([0.0, 1.0], **F64)).sum(), r"0 · ∞ .*aten\.sqrt\.default#0 "),
    "a power": (lambda x: (x**0.5 * 0).sum(), r"0 · ∞ .*aten\.pow\.Tensor_Scalar#0 "),
    "two roots": (lambda x: (x.sqrt() - x.sqrt()).sum(), r"∞ − ∞ .*aten\.sqrt\.default#0 .* x "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_operator_and_its_line(name):
    program, expected = BROKEN[name]
    leaves = points(0.0, 4.0)
    tape, loss = recorded(program, leaves)
    assert torch.autograd.grad(loss, leaves["x"], retain_graph=True)[0].isnan().any()
    said = nan_in_backward(tape.record, tape.value_of(loss))
    assert said is not None
    assert re.search(expected, said), said
    assert "test_nan_backwards.py:" in said


def test_nothing_where_the_gradient_is_a_number():
    tape, loss = recorded(lambda x: (x.sqrt() + x.std() + x.softmax(0)[0]).sum(), points(1.0, 4.0))
    assert nan_in_backward(tape.record, tape.value_of(loss)) is None


def test_a_greedy_trace_names_the_operators_whose_derivatives_meet():
    tape, loss = recorded(BROKEN["two roots"][0], points(0.0, 4.0))
    with pytest.raises(NotANumber, match=r"gradient of x is NaN in the backward pass alone: ∞ − ∞.*sqrt.*#0.*sqrt.*#1"):
        tape.trace(loss).forest("greedy")
