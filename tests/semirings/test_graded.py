"""Gradings on modules, slices, shared and nested components; and what is refused."""

from __future__ import annotations

import pytest
import torch
from checks import F64, leaf, recorded
from torch import nn

import gradtrace
from gradtrace import AbsSum, Max, Slice, Sum
from gradtrace.errors import GradtraceError, UnknownName
from gradtrace.semirings import Entropy, Graded, Power, Through


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.outer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

    def forward(self, x):
        h = self.first(x)
        for _ in range(2):
            h = h + self.outer(h)  # called twice, and gone around twice
        return h.square().sum()


@pytest.fixture(scope="module")
def nested():
    torch.manual_seed(0)
    model = Nested().double()
    with gradtrace.record(model) as tape:
        loss = model(torch.randn(2, 3, **F64))
    return tape, loss


def test_a_module_called_twice_is_crossed_once(nested):
    tape, loss = nested
    (gradient,), (whole,), (calls,) = tape.grad(
        loss, "first.weight", [Sum, Graded(by="outer"), Graded(by=("outer:1", "outer:2"))]
    )
    assert (whole.shape[0], calls.shape[0]) == (3, 4)
    for parts in (whole, calls):
        assert (parts.sum(0) - gradient).abs().max() < 1e-12
    assert torch.allclose(whole[0], calls[0])  # around both
    assert torch.allclose(whole[1], calls[1] + calls[2])
    assert not whole[2].any()


def test_nested_components_both_count(nested):
    tape, loss = nested
    (parts,) = tape.grad(loss, "first.weight", Graded(by=("outer", "outer.0")))
    assert parts[2].any()
    assert not parts[1].any()  # who crosses outer crosses outer.0
    assert torch.allclose(parts[0], tape.grad(loss, "first.weight", Through("outer"))[0][1, 0])


def test_what_exceeds_the_degree_is_in_the_last_entry(nested):
    tape, loss = nested
    by = ("first", "outer:1", "outer:2")
    (full,), (cut,) = tape.grad(loss, "first.weight", [Graded(by=by), Graded(1, by=by)])
    assert torch.allclose(cut, torch.stack([full[0], full[1], full[2] + full[3]]))


@pytest.mark.parametrize("semiring", [AbsSum, Max, Power(4)])
def test_parts_merge_to_the_base_semiring(nested, semiring):
    tape, loss = nested
    (whole,), (parts,) = tape.grad(loss, "first.weight", [semiring, Graded(by="outer", semiring=semiring)])
    merged = {"abssum": parts.sum(0), "max": parts.amax(0)}.get(semiring.name, (parts**4).sum(0) ** 0.25)
    assert torch.allclose(merged, whole)


def test_heads_are_components():
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, batch_first=True)}).double()
    x = torch.randn(2, 3, 4, **F64)
    with gradtrace.record(model) as tape:
        loss = model["attn"](x, x, x)[0].square().sum()
    name = "attn.in_proj_weight"
    head = [Slice("attn", "head", 2, index=i) for i in range(2)]
    (gradient,), (through,), (parts,) = tape.grad(loss, name, [Sum, Through(head), Graded(by=head)])
    assert (through.sum(0) - gradient).abs().max() < 1e-10
    assert torch.allclose(through[0].sum(0), gradient)  # every path goes through one head
    assert torch.allclose(parts[1], gradient)
    assert not through[0][0].equal(through[0][1])


def test_a_leaf_may_be_sliced():
    w = leaf(2, 3)
    with gradtrace.record(names={"w": w}) as tape:
        loss = w.exp().sum()
    (parts,) = tape.grad(loss, "w", Graded(by=Slice("w", 0, 2, index=1)))
    assert torch.allclose(parts[1][1], w.detach().exp()[1])
    assert not parts[1][0].any()
    assert torch.allclose(parts[0][0], w.detach().exp()[0])


def test_the_loss_may_be_in_a_component():
    x = leaf(3)
    with gradtrace.record(names={"x": x}) as tape:
        h = x.exp()
        with gradtrace.component("end"):
            loss = h.sum()
    (parts,) = tape.grad(loss, "x", Graded(by="end"))
    assert torch.allclose(parts[1], x.detach().exp())
    assert not parts[0].any()


def test_far_weights_keep_their_parts():
    tape, loss = recorded(lambda x: (x * 1e-200 * 1e-200).sum() * 1e-200, {"x": leaf(2)})
    with pytest.raises(GradtraceError, match="no components"):
        tape.grad(loss, "x", Graded())
    x = leaf(2)
    with gradtrace.record(names={"x": x}) as tape:
        with gradtrace.component("small"):
            h = x * 1e-200 * 1e-200
        loss = h.sum() * 1e-200
    (found,) = tape.grad(loss, "x", Graded(), log2=True)
    assert found[1].tolist() == pytest.approx([-600 * 3.321928094887362] * 2)


def test_unknown_components_list_those_there_are(nested):
    tape, loss = nested
    for wrong in (Graded(by="outr"), Through("outr")):
        with pytest.raises(UnknownName, match="unknown component 'outr'; there are first, outer"):
            tape.grad(loss, "first.weight", wrong)


def test_too_many_components_to_remember_are_refused():
    x = leaf(2)
    with gradtrace.record(names={"x": x}) as tape:
        h = x
        for name in "abcdefghi" * 2:
            with gradtrace.component(name):
                h = h.sin()
        loss = h.sum()
    with pytest.raises(GradtraceError, match=r"a path may leave a, b, .* and come back.*name single calls"):
        tape.grad(loss, "x", Graded(by=tuple("abcdefghi")))
    (parts,) = tape.grad(loss, "x", Graded(by=tuple(f"{n}:1" for n in "abcdefghi")))
    assert parts[9].all()


def test_several_in_one_walk_are_what_each_gives_alone(nested):
    tape, loss = nested
    several = [Sum, Graded(by="outer"), "entropy", "topk:2", Through("first"), Entropy, "power:3"]
    together = tape.grad(loss, ["first.weight", "outer.0.bias"], several)
    for semiring, found in zip(several, together, strict=True):
        alone = tape.grad(loss, ["first.weight", "outer.0.bias"], semiring)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(found, alone, strict=True))
    assert tape.grad(loss, "first.weight", []) == ()
    assert tape.grad(loss, "first.weight", ["sum"])[0][0].shape == (3, 3)
