"""Recurrent layers that ran as one call: what they come apart into, against PyTorch's own cell by cell."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import _disable_current_modes

from gradtrace import Max, Sum, Trace, record
from gradtrace.errors import StaleTensor
from gradtrace.recording import fused_recurrent as recurrent
from gradtrace.recording.fused_recurrent import FUSED, LSTM
from gradtrace.scalar import backpropagate, from_tape

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN, tanh": nn.RNN,
    "RNN, relu": lambda *sizes, **how: nn.RNN(*sizes, nonlinearity="relu", **how),
}
if not torch.backends.mkldnn.is_available():  # LSTM layers are fused by oneDNN
    del KINDS["LSTM"]


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent, "SMALL", -1)
        yield


@contextmanager
def cell_by_cell() -> Iterator[None]:
    """Have PyTorch run layers cell by cell, and the recording see it."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent, "_ordinary", lambda args: False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(enabled)


def both(model: nn.Module, run: Callable[[], Tensor], **how: Any) -> tuple[Any, Any, Tensor, Tensor]:
    """Record layers as one call and cell by cell: the tapes and their losses."""
    torch.manual_seed(1)  # of dropout
    with record(model, **how) as fused:
        loss = run()
    assert any(c.base in FUSED for c in fused._record.calls)
    torch.manual_seed(1)
    with cell_by_cell(), record(model, **how) as apart:
        other = run()
    assert not any(c.base in FUSED for c in apart._record.calls)
    return fused, apart, loss, other


class Layers(NamedTuple):
    """A recurrent model, some of its parameters frozen, and a loss that reads all it gives."""

    kind: str
    model: nn.RNNBase
    run: Callable[[], Tensor]
    names: dict[str, Tensor]


@st.composite
def layers(
    draw: st.DrawFn, most: int = 4, kinds: tuple[str, ...] = tuple(KINDS), *, packed: bool = True, coarse: bool = False
) -> Layers:
    """Draw a recurrent model; of coarse ones and their inputs, so that much is equally strong."""
    size = st.integers(1, most)
    torch.manual_seed(draw(st.integers(0, 1 << 20)))
    features, hidden, steps, batch = (draw(size) for _ in range(4))
    count, kind = draw(st.integers(1, 3)), draw(st.sampled_from(kinds))
    flags = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    dropout = draw(st.sampled_from([0.0, 0.5, 1.0])) if count > 1 else 0.0
    model = KINDS[kind](features, hidden, count, dropout=dropout, **flags).train(draw(st.booleans()))
    model.to(torch.float64 if kind != "LSTM" and draw(st.booleans()) else torch.float32)
    numbers = next(model.parameters()).dtype
    frozen = draw(st.sets(st.sampled_from([n for n, _ in model.named_parameters()]), max_size=3))
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen or name == f"weight_hh_l{count - 1}")
    directions = count * (1 + flags["bidirectional"])
    given_state = [torch.randn(directions, batch, hidden, dtype=numbers) for _ in range(2)]
    if kind != "LSTM" and packed and draw(st.booleans()):
        lengths = sorted((draw(size) for _ in range(batch)), reverse=True)
        sequences = [torch.randn(n, features, dtype=numbers) for n in lengths]
        x: Any = pack_sequence(sequences)
        leaf = x.data
    else:
        x = leaf = torch.randn(*((batch, steps) if flags["batch_first"] else (steps, batch)), features, dtype=numbers)
    if coarse:
        for tensor in (*model.parameters(), leaf, *given_state):
            tensor.data.mul_(2).round_().div_(4)
    for tensor in (leaf, *given_state):
        tensor.requires_grad_(draw(st.booleans()))
    state: Any = (given_state[0] if kind != "LSTM" else tuple(given_state)) if draw(st.booleans()) else None

    def run() -> Tensor:
        y, ends = model(x, state)
        y = y.data if isinstance(y, PackedSequence) else y
        h, c = ends if isinstance(ends, tuple) else (ends, ends)
        return y.sin().sum() + (h * 2).exp().sum() + (c.tanh() * 3).sum()

    return Layers(kind, model, run, {"x": leaf, "h": given_state[0], "c": given_state[1]})


def same(kind: str, found: Tensor, expected: Tensor, *, double: bool) -> None:
    """Compare what does not depend on the form in which a layer is written down."""
    if kind == "LSTM":  # oneDNN rounds otherwise, and a derivative such as 1 - y·y has the absolute error of y
        torch.testing.assert_close(found.exp2(), expected.exp2(), rtol=1e-5, atol=1e-5 * 2.0 ** float(expected.max()))
    else:  # gates are worked out again of h_{t-1}, and rounded as kernels round rows of another length
        atol = (2.0**-48 if double else 2.0**-18) if kind == "GRU" else (2.0**-50 if double else 2.0**-21)
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@settings(max_examples=50, deadline=None)
@given(layers())
def test_a_layer_comes_apart_as_pytorch_takes_it_apart(drawn):
    fused, apart, loss, other = both(drawn.model, drawn.run, names=drawn.names)
    if drawn.kind != "LSTM":
        assert torch.equal(loss, other)
    found, expected = fused.trace(loss, check=True).strength, apart.trace(other, check=True).strength
    assert found.keys() == expected.keys()
    double = next(drawn.model.parameters()).dtype is torch.float64
    for name, log2 in expected.items():
        same(drawn.kind, found[name], log2, double=double)
    leaves, pairs = list(expected), ((fused, loss), (apart, other))
    for one, other_one in zip(*(t.grad(y, leaves, "count", allow_unused=True) for t, y in pairs), strict=True):
        assert one is other_one is None or torch.equal(one, other_one)


def trail(trace: Trace, name: str, index: tuple[int, ...], hidden: int) -> list[tuple[str, tuple[int, ...], float]]:
    """Give the nonlinear steps of a path, and where it leaves the layer; gates may be taken together."""
    found = []
    for step in trace.path(name, index).steps:
        base = step.operator.split(".")[1].rstrip("_")
        if base in ("tanh", "sigmoid", "relu", "sub", "stack"):
            found.append((base, (*step.index[:-1], step.index[-1] % hidden), step.derivative))
    return found


@settings(max_examples=30, deadline=None)
@given(layers(3, tuple(k for k in KINDS if k != "LSTM"), coarse=True), st.randoms())
def test_of_equally_strong_paths_the_same_one_is_found(drawn, random):
    fused, apart, loss, other = both(drawn.model, drawn.run, names=drawn.names)
    found, expected = fused.trace(loss), apart.trace(other)
    hidden = drawn.model.hidden_size
    for name, log2 in expected.strength.items():
        if not torch.equal(found.strength[name], log2):  # what rounds otherwise is tied otherwise
            assert drawn.kind == "GRU"
            continue
        alive = [tuple(i) for i in (log2 > -torch.inf).nonzero().tolist()]
        for index in random.sample(alive, min(4, len(alive))):
            assert trail(found, name, index, hidden) == trail(expected, name, index, hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_few_calls(kind):
    calls = []
    for steps in (3, 4):
        model, x = KINDS[kind](3, 4), torch.randn(steps, 2, 3)
        with record(model) as tape:
            model(x)
        calls.append(len(tape.calls))
    assert calls[1] - calls[0] == {"LSTM": 10, "GRU": 8}.get(kind, 2)


def test_functions_are_left_as_they_were():
    before = {(where, name): getattr(where, name) for where in (torch, torch._VF) for name in recurrent.WHOLE}
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    with record(model):
        model(x)
        assert torch.gru is not before[torch, "gru"]
    assert all(getattr(where, name) is function for (where, name), function in before.items())


def test_the_function_behind_a_layer_is_one_call_too():
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    with record(model) as tape:
        weights: list[Tensor] = [p for _, p in model.named_parameters()]
        y, _ = torch.gru(x, torch.zeros(1, 2, 4), weights, True, 1, 0.0, True, False, False)
        loss = y.sum()
    assert sum(c.base == "gru" for c in tape._record.calls) == 1
    assert tape.trace(loss, check=True).certificate


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "LSTM"])
def test_what_is_not_ordinary_is_recorded_cell_by_cell(kind):
    model, x = KINDS[kind](3, 4), torch.randn(5, 2, 3)
    with record(model) as tape:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x)[0].float().sum()
        with torch.no_grad():
            model(x)
    assert not any(c.base in FUSED for c in tape._record.calls)
    assert tape.trace(loss, check=True).certificate


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "LSTM"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_examples_alone(kind, batch_first):
    torch.manual_seed(0)
    model = KINDS[kind](3, 4, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(3, 5, 3)

    def run() -> Tensor:
        return (model(x) if batch_first else model(x.transpose(0, 1)))[0].square().mean()

    fused, apart, loss, other = both(model, run, examples=x)
    found, expected = fused.trace(loss), apart.trace(other)
    for name in expected.strength:
        log2, expected_log2 = (t.forest(per_example=True).log2[t.tape.leaves[name].id] for t in (found, expected))
        assert len(log2) == 3
        torch.testing.assert_close(log2, expected_log2, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(layers())
def test_what_is_written_down_is_a_tape(drawn):
    _, model, run, _ = drawn
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
    _, model, run, _ = drawn
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
            wanted = torch.tensor([expected.get((leaf.id, i), 0.0) for i in range(leaf.numel)], dtype=torch.float64)
            found = torch.zeros(leaf.shape) if found is None else found
            torch.testing.assert_close(found.double(), wanted.reshape(leaf.shape), rtol=1e-4, atol=1e-5)


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
    assert all("test_fused_recurrent.py" in c.source for c in first)


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
