"""Custom functions without a row: what is written out of their Jacobian is found by trying."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_samples import Found, check
from torch import Tensor

import gradtrace
from gradtrace.jacobians.rules import structures
from gradtrace.jacobians.structure import Contraction


def function(f: Any) -> Any:
    """Make a custom function whose backward is autograd's of f."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return f(x.detach())

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                return torch.autograd.grad(f(x), x, grads[0])[0]

    return Own.apply


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


# (function, shape, sizes of the axes of what is written out)
FOUND = {
    "elementwise": (torch.sin, (4, 5), [4, 5]),
    "rows": (lambda a: a.softmax(-1), (3, 2, 4), [4, 3, 2, 4]),
    "columns": (lambda a: a.cumsum(1), (3, 4, 2), [4, 3, 4, 2]),
    "a shift by two": (lambda a: a.roll(2, 0), (4, 3), [4, 4, 3]),
    "a shift by one of three": (lambda a: a.roll(1, 0), (3, 2), [3, 3, 2]),
    "rows that get shorter": (lambda a: a.unfold(1, 2, 2).prod(2), (3, 6), [3, 3, 6]),
    "all": (lambda a: a.flatten().softmax(0).reshape(a.shape), (2, 3), [6, 6]),
    "nothing": (torch.sin, (0, 3), [0, 3]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_written_out(name):
    f, shape, sizes = FOUND[name]
    found, apply = Found(), function(f)
    check(lambda a: apply(a * 1) * 1, (x(*shape),), {}, found, name)
    assert not found.wrong
    assert not found.refused
    with gradtrace.record() as tape:
        apply(x(*shape) * 1).sum()
    call = next(call for call in tape.calls if call.name == "autograd.Own")
    ((_, _, structure),) = structures(call)
    assert isinstance(structure, Contraction)
    assert structure.weight is not None
    assert list(structure.weight().shape) == sizes


def test_rows_of_everyday_size_are_no_square_of_the_tensor():
    """A masked softmax of attention, as some models write it: 10^10 entries, if it were written out whole."""
    a = torch.randn(1, 4, 160, 160, requires_grad=True)
    softmax = function(lambda a: a.masked_fill(torch.ones(160, 160).triu(1).bool(), -1e4).softmax(-1))
    with gradtrace.record(names={"a": a}) as tape:
        loss = softmax(a).square().sum()
    tape.trace(loss, check=True)
