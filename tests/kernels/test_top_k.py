"""The carrier of values alone: the same answers as the one with backpointers, by the compiled kernels or without them.

Each structure is tested in test_reference.py, against the definition; whole programs against the enumeration of all
paths in tests/semirings/test_enumeration.py. Here: memory that is used again, and when the other carrier takes over.
"""

from __future__ import annotations

import pytest
import torch
from checks import leaf, recorded
from torch import nn

import gradtrace
from gradtrace.backward import several as asking
from gradtrace.errors import NotANumber
from gradtrace.kernels import native
from gradtrace.kernels.shared_exponent import OutOfRange
from gradtrace.kernels.top_k import Largest
from gradtrace.semirings import TopK

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")


ROUNDINGS = 40 * torch.finfo(torch.float32).eps  # of a path of so many edges in float32


class Block(nn.Module):
    """Attention, a norm and a gated layer, with a residual path around each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        x = x + self.attend(*[self.norm(x)] * 3, need_weights=False)[0]
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return nn.functional.cross_entropy((x @ self.embed.weight.t()).flatten(0, 1), words.roll(1, 1).flatten())


def block(dtype: torch.dtype) -> tuple[gradtrace.Tape, torch.Tensor]:
    torch.manual_seed(0)
    model = Block().to(dtype)
    with gradtrace.record(model) as tape:
        loss = model(torch.tensor([[1, 5, 3, 1], [2, 5, 0, 9]]))
    return tape, loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 6, 8, 20])
def test_a_transformer_block_as_by_the_carrier_with_backpointers(dtype, k):
    tape, loss = block(dtype)
    names = list(tape.leaves)
    ours = tape.grad(loss, names, TopK(k))
    with native.using("reference"):
        expected = tape.grad(loss, names, TopK(k))
    for name, a, b in zip(names, ours, expected, strict=True):
        assert a.dtype is dtype
        assert torch.ops.aten.is_non_overlapping_and_dense(a)
        assert torch.allclose(a, b, rtol=1e-12 if dtype is torch.float64 else ROUNDINGS, atol=0), name


def test_values_of_the_fast_carrier_are_those_of_paths():
    tape, loss = block(torch.float64)
    (found,) = tape.grad(loss, "up.weight", TopK(4))
    paths = tape.trace(loss).paths("up.weight", (2, 3), k=4)
    assert found[:, 2, 3].tolist() == pytest.approx([abs(p.weight) for p in paths], rel=1e-12)


@pytest.mark.parametrize("program", [lambda x, w: _fans_out(x, w), lambda x, w: _looks_up(x, w)])
def test_intermediate_answers_are_not_written_over(program):
    """A value's answer shares memory with what its consumers' merges might take for their own."""
    tape, loss = recorded(program, {"x": leaf(3, 4), "w": leaf(4, 4)})
    values = [v for call in tape.calls for v in call.outputs if v is not None and v.differentiable]
    together = asking.ask(tape.record, tape.value_of(loss), values, [TopK(3)])[0]
    for value in values:
        (alone,) = asking.ask(tape.record, tape.value_of(loss), [value], [TopK(3)])
        with native.using("reference"):
            (expected,) = asking.ask(tape.record, tape.value_of(loss), [value], [TopK(3)])
        assert torch.allclose(together[value.id], expected[value.id], rtol=1e-12, atol=0)
        assert torch.equal(together[value.id], alone[value.id])


def _fans_out(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = x @ w
    views = [y.t(), y.view(4, 3), y + y, y.expand(2, 3, 4), y[1:]]
    return sum((v * v).sum() + v.sum() for v in views) + (y @ w).exp().sum()


def _looks_up(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    rows = x.index_select(0, torch.tensor([0, 2, 0]))
    return ((rows @ w).tanh() @ x.t()).exp().sum()


def test_what_float32_would_lose_is_kept_in_float64_and_comes_back():
    carrier = Largest(torch.float32, 3)
    one = carrier.one(torch.ones(1, 2, 4))
    tiny = carrier.weigh(torch.tensor(1e-30), carrier.weigh(torch.tensor(1e-30), one))
    assert [p.dtype for p in (*one, *tiny)] == [torch.float32, torch.float64]
    assert carrier.seed(tiny, torch.empty(0)) is tiny
    both = carrier.plus_over(carrier.plus(one, one), tiny)
    assert carrier.plain(both)[0, :, 0, 0].tolist() == pytest.approx([1.0, 1.0, 1e-60], rel=1e-6)
    assert carrier.seed(both, torch.empty(0)) is both
    for narrow in (carrier.reduce(tiny), carrier.contract(torch.full((1, 3, 4), 1e-5), tiny)):
        assert {p.dtype for p in narrow} == {torch.float64}
    back = carrier.seed(carrier.weigh(torch.tensor(1e60, dtype=torch.float64), tiny), torch.empty(0))
    assert back[0].dtype is torch.float32
    assert torch.allclose(back[0], one[0], rtol=1e-6)


def test_a_merge_over_writes_where_there_are_planes_enough():
    carrier = Largest(torch.float64, 2)
    one = carrier.one(torch.ones(1, 3))
    two = carrier.plus_over(one, one)
    assert len(two) == 2
    assert two[0].data_ptr() != one[0].data_ptr()
    three = carrier.weigh(torch.tensor(3.0), one)
    assert carrier.plus_over(two, three)[0].data_ptr() == two[0].data_ptr()
    assert torch.stack(two)[:, 0, 0].tolist() == [3, 1]
    assert carrier.plus(two, three)[0].data_ptr() != two[0].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_out_of_a_floats_range_the_other_carrier_takes_over(dtype):
    def tiny(x):
        for _ in range(60):
            x = x * 1e-30
        return x.sum()

    tape, loss = recorded(tiny, {"x": leaf(3).detach().to(dtype).requires_grad_()})
    with pytest.raises(OutOfRange):
        asking._walk(
            tape.record, tape.value_of(loss), set(), [asking.Ungraded(Largest(dtype, 2))], log2=True, cast=False
        )
    (found,) = tape.grad(loss, "x", TopK(2), log2=True)
    weight = torch.tensor(1e-30, dtype=dtype).double().log2().item()
    assert found[0].tolist() == pytest.approx([60 * weight] * 3, rel=1e-6)
    assert found[1].tolist() == [-torch.inf] * 3


def test_a_nan_names_the_operator():
    tape, loss = recorded(
        lambda x: (x - 1).sqrt().sum(), {"x": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    )
    with pytest.raises(NotANumber, match="sqrt"):
        tape.grad(loss, "x", TopK(2))


def test_among_other_semirings_and_without_the_compiled_module(monkeypatch):
    tape, loss = block(torch.float64)
    gradient, strongest, largest = (one[0] for one in tape.grad(loss, "up.bias", ["sum", "max", TopK(3)]))
    assert torch.equal(gradient, tape.grad(loss, "up.bias")[0])
    assert torch.allclose(largest[0], strongest, rtol=1e-12)
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_state", {"on": False, "said": True})
    assert torch.allclose(tape.grad(loss, "up.bias", TopK(3))[0], largest, rtol=1e-12)


def test_elements_have_no_more_planes_than_paths():
    carrier = Largest(torch.float64, 8)
    one = carrier.one(torch.ones(1, 4, 5))
    assert len(one) == 1
    assert len(carrier.reduce(one)) == 5
    assert len(carrier.plus(one, one)) == 2
    assert len(carrier.contract(torch.eye(5, dtype=torch.float64)[None], one)) == 5  # of a row; each has one of its own
    assert len(carrier.segment(one, torch.tensor([0, 1, 1, 2, 3]), 6)) == 2
    assert carrier.plain(one).shape == (1, 8, 4, 5)
