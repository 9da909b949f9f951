"""The carrier of both ends without backpointers: the same answers as the one with them, and when that one takes over.

Each structure is tested in test_reference.py, against the definition; whole programs against the enumeration of all
paths in tests/semirings/test_enumeration.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from checks import leaf, recorded
from torch import nn

import gradtrace
from gradtrace.backward import several
from gradtrace.errors import NotANumber
from gradtrace.kernels import native
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.kernels.signed import Ends
from gradtrace.semirings import SignedMax

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")

ROUNDINGS = 40 * torch.finfo(torch.float32).eps  # of a path of so many edges in float32


class Block(nn.Module):
    """Attention and a norm, and a batch norm in training over more examples than a block of columns has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.batch = nn.Embedding(11, 8), nn.LayerNorm(8), nn.BatchNorm1d(8)
        self.attend, self.down = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        x = x + self.attend(*[self.norm(x)] * 3, need_weights=False)[0]
        x = x + self.down(torch.relu(self.batch(x.transpose(1, 2)).transpose(1, 2)))
        return nn.functional.cross_entropy((x @ self.embed.weight.t()).flatten(0, 1), words.roll(1, 1).flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_block_as_by_the_carrier_with_backpointers(dtype):
    torch.manual_seed(0)
    model = Block().to(dtype)
    with gradtrace.record(model) as tape:
        loss = model(torch.randint(11, (24, 6)))
    names = list(tape.leaves)
    ours = tape.grad(loss, names, SignedMax)
    with native.using("reference"):
        expected = tape.grad(loss, names, SignedMax)
    for name, a, b in zip(names, ours, expected, strict=True):
        assert a.dtype is dtype
        assert torch.allclose(a, b, rtol=1e-12 if dtype is torch.float64 else ROUNDINGS, atol=0), name


def test_products_that_are_equal_are_equal_bit_by_bit():
    x, w = (torch.randint(-3, 4, s, generator=torch.Generator().manual_seed(1)).double() for s in ((5, 70), (70, 6)))
    leaves = {"x": (x / 3).requires_grad_(), "w": (w / 7).requires_grad_()}
    tape, loss = recorded(lambda x, w: ((x @ w).tanh() @ w.t()).exp().mean(), leaves)
    ours = tape.grad(loss, ["x", "w"], SignedMax)
    with native.using("reference"):
        assert all(map(torch.equal, ours, tape.grad(loss, ["x", "w"], SignedMax)))


def test_paths_of_one_sign_alone_end_at_the_one_nearest_to_0():
    tape, loss = recorded(lambda x: (x * torch.tensor([2.0, 3.0, 5.0]).double()).sum(), {"x": leaf(1)})
    (found,) = tape.grad(loss, "x", SignedMax)
    assert found.tolist() == [[5.0], [2.0]]
    tape, loss = recorded(lambda x: (x * torch.tensor([-2.0, -3.0, 0.0]).double()).sum(), {"x": leaf(1)})
    (found,) = tape.grad(loss, "x", SignedMax)
    assert found.tolist() == [[-2.0], [-3.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_out_of_a_floats_range_the_other_carrier_takes_over(dtype):
    def tiny(x):
        for _ in range(60):
            x = x * -1e-30
        return x.sum()

    tape, loss = recorded(tiny, {"x": leaf(3).detach().to(dtype).requires_grad_()})
    asked = [several.Ungraded(Ends(dtype))]
    with pytest.raises(OutOfRange):
        several._walk(tape.record, tape.value_of(loss), set(), asked, log2=True, cast=False)
    (found,) = tape.grad(loss, "x", SignedMax, log2=True)
    weight = torch.tensor(1e-30, dtype=dtype).double().log2().item()
    assert found[0].tolist() == pytest.approx([60 * weight] * 3, rel=1e-6)


def test_what_float32_would_lose_is_kept_in_float64_and_comes_back():
    carrier = Ends(torch.float32)
    one = carrier.one(torch.ones(1, 2, 4))
    tiny = carrier.weigh(torch.tensor(-1e-30), carrier.weigh(torch.tensor(1e-30), one))
    assert [p.dtype for p in (*one, *tiny)] == [torch.float32] * 2 + [torch.float64] * 2
    assert carrier.seed(tiny, torch.empty(0)) is tiny
    assert carrier.plain(carrier.plus_over(one, tiny))[0, :, 0, 0].tolist() == pytest.approx([1.0, -1e-60], rel=1e-6)
    for narrow in (carrier.reduce(tiny), carrier.contract(torch.full((1, 3, 4), 1e-5), tiny)):
        assert {p.dtype for p in narrow} == {torch.float64}
    back = carrier.seed(carrier.weigh(torch.tensor(1e60, dtype=torch.float64), tiny), torch.empty(0))
    assert back[0].dtype is torch.float32
    assert torch.allclose(back[0], -one[0], rtol=1e-6)


def test_a_nan_names_the_operator():
    zeros = {"x": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    tape, loss = recorded(lambda x: (x - 1).sqrt().sum(), zeros)
    with pytest.raises(NotANumber, match="sqrt"):
        tape.grad(loss, "x", SignedMax)


def test_no_path_is_0_and_among_other_semirings_nothing_changes():
    tape, loss = recorded(lambda x, w: (torch.relu(x) @ w).exp().sum(), {"x": leaf(3, 4), "w": leaf(4, 2)})
    ends, gradient = (found[0] for found in tape.grad(loss, "x", [SignedMax, "sum"]))
    assert (ends[:, leaf(3, 4) < 0] == 0).all()
    assert torch.equal(ends, tape.grad(loss, "x", SignedMax)[0])
    assert (ends[0] >= ends[1]).all()
    assert not any(map(math.isnan, gradient.flatten().tolist()))
