"""A pass on plain numbers against the same with an exponent for each, and where the first has to give way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from programs import programs
from test_brute_force import record as recorded
from torch import nn

import gradtrace
from gradtrace import AbsSum
from gradtrace.backward import several as ask
from gradtrace.kernels import native
from gradtrace.semirings import Entropy, Power

if not native.available():
    pytest.skip("no compiled kernels", allow_module_level=True)

ASKED = [Power(1), Power(2), Power(8), Power(64), Entropy]


@pytest.fixture
def walks(monkeypatch):
    """The carriers of every walk."""
    seen = []

    def reverse(record, loss, carrier, *args, **kwargs):
        seen.append(type(carrier).__name__)
        return walk(record, loss, carrier, *args, **kwargs)

    walk = ask.reverse
    monkeypatch.setattr(ask, "reverse", reverse)
    return seen


@given(st.booleans().flatmap(programs))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_plain_numbers_give_what_exponents_give(program):
    assume(not any("norm" in step[0] for step in program.steps))  # of two numbers: weights that are all rounding
    tape, loss, leaves = recorded(program)
    inputs = list(leaves.values())
    together = tape.grad(loss, inputs, ASKED, allow_unused=True)
    for number, semiring in enumerate(ASKED):
        quick = tape.grad(loss, inputs, semiring, allow_unused=True)
        with native.using("reference"):
            wanted = tape.grad(loss, inputs, semiring, allow_unused=True)
        for a, b, c in zip(quick, wanted, together[number], strict=True):
            assert (a is None) == (b is None) == (c is None)
            if a is not None:
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-12 * (semiring is Entropy))
                assert torch.allclose(a, c, rtol=1e-12, atol=1e-12 * (semiring is Entropy))


class Block(nn.Module):
    """Embedding, attention, layer norm and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(40, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mix = nn.Linear(16, 16)

    def forward(self, ids):
        x = self.words(ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + torch.tanh(self.mix(self.norm(x)))
        return nn.functional.cross_entropy((self.norm(x) @ self.words.weight.t()).flatten(0, 1), ids.flatten())


@pytest.mark.parametrize("semiring", [*ASKED, AbsSum], ids=lambda k: k.name)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_transformer(semiring, kind, walks):
    torch.manual_seed(0)
    model, ids = Block().to(kind), torch.randint(40, (3, 7))
    with gradtrace.record(model) as tape:
        loss = model(ids)
    quick = tape.grad(loss, list(tape.leaves), semiring)
    with native.using("reference"):
        wanted = tape.grad(loss, list(tape.leaves), semiring)
    exact = 1e-5 if kind is torch.float32 else 1e-11
    for a, b in zip(quick, wanted, strict=True):
        assert a.dtype is kind
        assert ((a - b).abs() <= exact * (b + (semiring is Entropy))).all()
    assert [walk.startswith("Plain") for walk in walks] == [True, False]


@pytest.mark.parametrize("semiring", ASKED, ids=lambda k: k.name)
@pytest.mark.parametrize(
    ("factor", "steps", "plain"),
    [(1e-30, 1, True), (1e-30, 3, True), (1e-30, 12, False), (1e30, 3, True), (1e30, 12, False)],
)
def test_far_from_one(semiring, factor, steps, plain, walks):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    with gradtrace.record() as tape:
        y = x @ torch.tensor([[1.0, 1.0], [2.0, 0.0]])
        for _ in range(steps):
            y = y * factor
        loss = y.sum()
    (found,) = tape.grad(loss, x, semiring, log2=True)
    p = float(semiring.name[6:]) if semiring is not Entropy else 1
    sums = [2.0, 2.0**p]  # of the powers of the weights of paths from each column, but for the steps
    want = [math.log2(s) / p + steps * math.log2(float(torch.tensor(factor))) for s in sums]
    if semiring is Entropy:
        assert found.exp2().tolist() == [pytest.approx([1.0, 0.0], abs=1e-6)] * 2
    else:
        assert torch.allclose(found, torch.tensor([want] * 2, dtype=torch.float64), rtol=1e-6)
    assert (len(walks) == 1) == plain


def test_an_infinite_weight_is_left_to_exponents(walks):
    x = torch.zeros(2, requires_grad=True)
    with gradtrace.record() as tape:
        loss = x.sqrt().sum()
    (found,) = tape.grad(loss, x, Power(8))
    assert found.tolist() == [math.inf, math.inf]
    assert walks == ["PlainNorm", "Norm"]


def test_without_compiled_kernels_the_pass_keeps_exponents(walks):
    x = torch.ones(2, requires_grad=True)
    with gradtrace.record() as tape:
        loss = (x * x).sum()
    with native.using("reference"):
        assert tape.grad(loss, x, Power(2))[0].tolist() == pytest.approx([math.sqrt(2)] * 2)
    assert walks == ["Norm"]
