"""LSTM layers that ran as one fused operator: what they come apart into, against PyTorch's own cell by cell."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gradtrace import Max, Sum, record
from gradtrace.errors import StaleTensor
from gradtrace.recording import fused_lstm as recurrent
from gradtrace.recording.fused_lstm import LSTM
from gradtrace.scalar import backpropagate, from_tape

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="LSTM layers are fused by oneDNN")


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent, "SMALL", -1)
        yield


def gates(tape: Any) -> Counter[tuple[str, tuple[int, ...]]]:
    """What a cell does with its sums; how those come about, and the views, depend on how the input lies."""
    inside = {"mul", "sigmoid", "tanh", "unsafe_split"}
    return Counter((c.base, c.outputs[0].shape) for c in tape.calls if c.base in inside)


def both(model: nn.Module, run: Callable[[], Tensor], **how: Any) -> tuple[Any, Any, Tensor, Tensor]:
    """Record with oneDNN and without: the tapes and their losses."""
    with record(model, **how) as fused:
        loss = run()
    assert any(c.base == LSTM for c in fused._record.calls)
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with record(model, **how) as apart:
            other = run()
    finally:
        torch._C._set_mkldnn_enabled(enabled)
    assert not any(c.base == LSTM for c in apart._record.calls)
    return fused, apart, loss, other


@st.composite
def layers(draw: st.DrawFn, most: int = 4) -> tuple[nn.LSTM, Callable[[], Tensor]]:
    """An LSTM, some of its parameters frozen, and a loss that reads all it gives."""
    size = st.integers(1, most)
    torch.manual_seed(draw(st.integers(0, 1 << 20)))
    features, hidden, steps, batch, count = (draw(size) for _ in range(5))
    flags = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    model = nn.LSTM(features, hidden, min(count, 3), **flags)
    frozen = draw(st.sets(st.sampled_from([n for n, _ in model.named_parameters()]), max_size=3))
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen or name == "weight_hh_l0")
    directions = min(count, 3) * (1 + flags["bidirectional"])
    x = torch.randn(*((batch, steps) if flags["batch_first"] else (steps, batch)), features)
    x.requires_grad_(draw(st.booleans()))
    state = [torch.randn(directions, batch, hidden, requires_grad=draw(st.booleans())) for _ in range(2)]
    given_state = tuple(state) if draw(st.booleans()) else None

    def run() -> Tensor:
        y, (h, c) = model(x, given_state)
        return y.sin().sum() + (h * 2).exp().sum() + (c.tanh() * 3).sum()

    return model, run


@settings(max_examples=60, deadline=None)
@given(layers())
def test_a_fused_layer_comes_apart_as_pytorch_takes_it_apart(drawn):
    model, run = drawn
    fused, apart, loss, other = both(model, run)
    if all(p.requires_grad for p in model.parameters()):
        assert gates(fused) == gates(apart)
    assert gates(fused) >= gates(apart)  # a layer is followed as a whole
    found, expected = fused.trace(loss, check=True).strength, apart.trace(other, check=True).strength
    # oneDNN rounds otherwise, and a derivative such as 1 - y·y has the absolute error of y, not the relative one
    most = max(2.0 ** float(log2.max()) for log2 in expected.values())
    for name, log2 in expected.items():
        torch.testing.assert_close(found[name].exp2(), log2.exp2(), rtol=1e-5, atol=1e-5 * most)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_what_is_written_down_is_a_tape(drawn):
    model, run = drawn
    with record(model) as tape:
        loss = run()
    for index, call in enumerate(tape.calls):
        assert call.index == index
        made = [v.id for v in call.outputs if v is not None]
        assert made == sorted(set(made))
        assert all(x.value is None or x.value.id < made[0] for x in call.inputs)
        assert all(v.call is call for v in call.outputs if v is not None)
        for kept, again in zip(call.results, call.run(), strict=False):
            if kept is not None:
                torch.testing.assert_close(kept.get(), again)
    ids = [v.id for call in tape.calls for v in call.outputs if v is not None]
    assert ids == sorted(set(ids))
    assert len({*ids, *(v.id for v in tape.leaves.values())}) == len(ids) + len(tape.leaves)
    wanted = list(tape.leaves.values())
    assert tape.grad(loss, [str(v.name) for v in wanted], Max, allow_unused=True)


@settings(max_examples=20, deadline=None)
@given(layers(most=2))
def test_strengths_are_those_of_the_scalar_graph(drawn):
    model, run = drawn
    with record(model) as tape:
        loss = run()
    value = tape.value_of(loss)
    first, last = value.id, dict(tape._record.leaves)
    graph = from_tape(tape, loss, max_edges=10**6)
    assert graph.graph["loss"] == (first, 0)
    for semiring in (Sum, Max):
        expected = backpropagate(graph, (first, 0), semiring)
        for name, leaf in last.items():
            (found,) = tape.grad(loss, [name], semiring, allow_unused=True)
            wanted = torch.tensor([expected.get((leaf.id, i), 0.0) for i in range(leaf.numel)]).reshape(leaf.shape)
            found = torch.zeros(leaf.shape) if found is None else found
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def model_and_input() -> tuple[nn.LSTM, Tensor]:
    torch.manual_seed(0)
    return nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)


def test_a_recorded_layer_runs_fused_and_comes_apart_once():
    model, x = model_and_input()
    with record(model) as tape:
        loss = model(x)[0].sum()
    assert torch.equal(loss, model(x)[0].sum())
    assert len(tape._record.calls) < 20
    first = tape.calls
    assert len(first) > 100
    assert tape.calls is first
    assert all("test_fused_lstm.py" in c.source for c in first)


def test_small_layers_come_apart_at_the_end_of_a_recording(monkeypatch):
    monkeypatch.setattr(recurrent, "SMALL", 5 * 2 * (3 + 4) * 16)
    for layers, fused in ((1, False), (2, True)):
        model, x = nn.LSTM(3, 4, layers), torch.randn(5, 2, 3)
        with record(model) as tape:
            loss = model(x)[0].sum()
            assert any(c.base == LSTM for c in tape._record.calls)
        assert any(c.base == LSTM for c in tape._record.calls) == fused
        tape.trace(loss, check=True)


def test_a_recording_in_which_weights_change_ends_well(monkeypatch):
    monkeypatch.setattr(recurrent, "SMALL", 10**9)
    model, x = model_and_input()
    with record(model) as tape:
        loss = model(x)[0].sum()
        with _disable_current_modes(), torch.no_grad():  # which a recording cannot see
            model.weight_hh_l1.mul_(2)
    with pytest.raises(StaleTensor, match="modified in place"):
        tape.trace(loss)


def test_a_tape_that_is_looked_at_while_it_is_recorded():
    model, x = model_and_input()
    with record(model) as tape:
        y, (h, _) = model(x)
        early = tape.trace(y.sum())
        before = {name: found.clone() for name, found in early.strength.items()}
        y = model(y[..., :3] + h.sum())[0]
        loss = y.sum()
    later = tape.trace(loss, check=True)
    assert all(torch.equal(early.strength[name], found) for name, found in before.items())
    assert early.path("weight_hh_l0", (0, 0)).steps
    assert later.path("weight_hh_l0", (0, 0)).steps


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_function_of_ones_own_reads_what_a_layer_gave(number):
    model, x = model_and_input()
    with record(model) as tape:
        y, (h, c) = model(x)
        made = (y, h, c)[number]
        loss = Twice.apply(made).sum()
    assert tape.calls
    assert tape.trace(loss, check=True).certificate


def test_per_example_results_of_a_fused_layer():
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4, batch_first=True), torch.randn(3, 5, 3)
    fused, apart, loss, other = both(model, lambda: model(x)[0].square().mean(), examples=x)
    found, expected = (
        [t.trace(value).path("weight_hh_l0", (1, 2), example=e).log2_weight for e in range(3)]
        for t, value in ((fused, loss), (apart, other))
    )
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) == 3


def test_weights_that_changed_since_are_noticed_and_nothing_is_lost():
    model, x = model_and_input()
    with record(model) as tape:
        loss = model(x)[0].sum()
    count = len(tape._record.calls)
    with torch.no_grad():
        model.weight_hh_l1.mul_(2)
    with pytest.raises(StaleTensor, match="modified in place"):
        tape.trace(loss)
    assert len(tape._record.calls) == count


@pytest.mark.parametrize("write", [False, True])
def test_an_output_that_is_written_to_was_kept(write):
    model, x = model_and_input()
    with record(model) as tape:
        y, (h, _) = model(x)
        loss = y.sum() + h.sum()
        if write:
            y.detach().zero_()
            h.detach().zero_()
    with record(model) as untouched:
        y, (h, _) = model(x)
        expected = y.sum() + h.sum()
    for name, found in untouched.trace(expected).strength.items():
        assert torch.equal(tape.trace(loss).strength[name], found)
