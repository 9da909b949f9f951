"""Gradings on plain numbers: the same answers as with exponents, and how few planes are worked out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gradtrace
from gradtrace.backward import several
from gradtrace.components import heads
from gradtrace.kernels import native
from gradtrace.kernels.gradient import gradient
from gradtrace.kernels.lanes import Lanes, lanes
from gradtrace.semirings import AbsSum, Graded, Power, Sum, Through
from gradtrace.semirings.states import Pairs, States

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")


class Residual(nn.Module):
    """Blocks around which paths may go, one of them called twice, and heads, which are parts of an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for _ in range(2):
            x = x + self.up(self.norm(x)).tanh()
        x = x + self.attend(x, x, x, need_weights=False)[0]
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return nn.functional.cross_entropy((x @ self.embed.weight.t()).flatten(0, 1), words.roll(1, 1).flatten())


def tape_of(dtype: torch.dtype) -> tuple[gradtrace.Tape, Tensor, nn.Module]:
    torch.manual_seed(0)
    model = Residual().to(dtype)
    with gradtrace.record(model) as tape:
        loss = model(torch.randint(7, (3, 5)))
    return tape, loss, model


FAMILIES = {
    "through": Through(),
    "through some": Through(("up", "attend", "up:2")),
    "through absolute": Through(("up", "conv"), AbsSum),
    "graded": Graded(2),
    "graded by": Graded(by=("up:1", "up:2", "attend", "conv")),
    "graded power": Graded(1, ("attend", "conv"), Power(2)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*FAMILIES, "heads"])
def test_parts_are_those_with_exponents(name, dtype):
    tape, loss, model = tape_of(dtype)
    family = FAMILIES.get(name) or Through(tuple(heads(model)))
    leaves = list(tape.leaves)
    ours = tape.grad(loss, leaves, family)
    with native.using("reference"):
        expected, sizes = tape.grad(loss, leaves, [family, replace(family, semiring=AbsSum)])
    for leaf, a, b, size in zip(leaves, ours, expected, sizes, strict=True):
        # where no path goes there is nothing, not a rounding
        assert ((a - b).abs() <= 100 * torch.finfo(dtype).eps * size).all(), leaf


def test_parts_add_up_to_the_gradient_and_a_logarithm_does_not_underflow():
    tape, loss, _ = tape_of(torch.float64)
    (parts,), (whole,) = tape.grad(loss, "conv.weight", Through()), tape.grad(loss, "conv.weight")
    assert torch.allclose(parts.sum(0), whole.expand(parts.shape[1:]), rtol=1e-10, atol=1e-15)
    x = torch.ones(2, requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        with gradtrace.component("small"):
            y = x * 1e-30
        loss = (y * 1e-30).sum()
    (found,) = tape.grad(loss, "x", Through(("small",)), log2=True)
    assert found[0, 0].tolist() == pytest.approx([-199.3] * 2, abs=0.1)


def test_an_infinite_part_is_left_to_carriers_with_exponents():
    x = torch.full((2,), 1e30, requires_grad=True)
    with gradtrace.record(names={"x": x}) as tape:
        with gradtrace.component("large"):
            y = x * 1e30
        loss = (y.double() * 1e-60).sum()
    (found,) = tape.grad(loss, "x", Through(("large",)))
    assert found[1].tolist() == [[0.0, 0.0]]
    assert found[0, 0].tolist() == pytest.approx([1e-30] * 2, rel=1e-5)


def test_states_that_hold_the_same_or_nothing_are_pulled_once():
    carrier = lanes(Pairs(Sum.carrier, 6), gradient(torch.float32))
    g = carrier.one(torch.ones(1, 3))
    assert [p.tolist() for p in g] == [[[1.0] * 3], [[0.0] * 3]] * 3
    assert len({p.data_ptr() for p in g}) == 2
    moved = carrier.moved(g, [1, 1, 2, 3, 4, 5], mask=True)
    assert [p.data_ptr() for p in moved] == [g[i].data_ptr() for i in (1, 0, 2, 3, 4, 5)]
    both = carrier.plus(moved, g)
    assert [p[0, 0].item() for p in both] == [1, 1, 2, 0, 2, 0]
    assert both[2] is both[4]
    some = carrier.moved(g, [1, 1, 2, 3, 4, 5], mask=torch.tensor([True, False, False]))
    assert [p.tolist() for p in some[:2]] == [[[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]]
    assert isinstance(lanes(States(Sum.carrier, 2), gradient(torch.float32)), Lanes)


def test_only_sums_and_norms_have_lanes():
    tape, loss, _ = tape_of(torch.float32)
    value = tape.value_of(loss)
    families = [Through(), Graded(1, ("up:1",), gradtrace.Max)]
    asked = several.gradings(tape.record, value, families)
    assert [isinstance(a.carrier, Lanes) for a in several.quick(tape.record, value, asked)] == [True, False]
    assert not any(isinstance(a.carrier, Lanes) for a in several.quick(tape.record, value, asked, log2=True))
