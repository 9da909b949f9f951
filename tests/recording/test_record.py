"""What a tape holds on to: values as they were, for as long as they are needed, and not longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from checks import F64, autograd, leaf, parameters, recorded, run
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import gradtrace
from gradtrace import record
from gradtrace.errors import NotANumber, StaleTensor
from gradtrace.recording.record import Saved, flat_tensors


def make() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return model, torch.linspace(-1, 1, 6, **F64).reshape(2, 3)


def test_a_step_of_the_optimizer_before_tracing_is_an_error():
    model, x = make()
    with record(model) as tape:
        loss = model(x).sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    with pytest.raises(StaleTensor, match=r"modified in place after recording.*trace before"):
        tape.trace(loss)
    with pytest.raises(StaleTensor):
        tape.grad(loss, "0.weight")


def test_changes_inside_the_block_are_not_stale():
    model, x = make()
    expected = autograd(model(x).sum(), parameters(model))
    with record(model) as tape:
        loss = model(x).sum()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
    found = run(tape, loss, parameters(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_an_input_changed_after_recording_is_stale_too():
    model, x = make()
    with record(model) as tape:
        loss = model(x).sum()
    x.zero_()
    with pytest.raises(StaleTensor, match=r"shape \(2, 3\)"):
        tape.trace(loss)


def test_a_trace_that_was_taken_survives_the_step():
    model, x = make()
    with record(model) as tape:
        loss = model(x).sum()
    trace = tape.trace(loss)
    before = trace.strength["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(trace.strength["0.weight"], before)


def test_saved_data_is_shared_until_it_is_kept():
    source = torch.ones(3)
    saved = Saved(source)
    assert saved.get().data_ptr() == source.data_ptr()
    saved.keep()
    source.zero_()
    assert saved.get().tolist() == [1, 1, 1]


def test_tensors_are_freed_with_the_tape():
    x = leaf(3, 4)
    with record(names={"x": x}) as tape:
        h = x.exp()
        loss = (h * h).sum()
    trace = tape.trace(loss)
    trace.influence()
    data, alive = StorageWeakRef(h.untyped_storage()), [weakref.ref(tape), weakref.ref(tape.record)]
    del h, loss, tape, trace
    gc.collect()
    assert data.expired()
    assert [ref() for ref in alive] == [None, None]


def test_a_tape_does_not_outlive_a_failed_recording():
    kept: list[weakref.ref] = []
    try:
        with record() as tape:
            kept.append(weakref.ref(tape.record))
            leaf(3).exp()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    del tape
    gc.collect()
    assert kept[0]() is None


_POINTWISE = ("tanh", "sigmoid", "relu", "exp", "exp2", "expm1", "sqrt", "rsqrt", "reciprocal", "tan")
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in _POINTWISE},
    **{f"{name}_": lambda x, name=name: getattr(x * 1, f"{name}_")() for name in _POINTWISE},
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "safe_softmax": lambda x: torch.ops.aten._safe_softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max": lambda x: x.max(-1).values,
    "min": lambda x: x.min(-1).values,
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(2, -1).values,
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(4, **F64), torch.ones(4, **F64), training=True),
    "batch_norm in evaluation": lambda x: F.batch_norm(x, torch.zeros(4, **F64), torch.ones(4, **F64)),
    "rrelu_": lambda x: F.rrelu_(x * 1 - 1, training=True),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_results_cost_no_memory_since_autograd_saves_them_too(name):
    x = leaf(2, 4, 6, 6)
    with record(names={"x": x}) as tape:
        y = KEPT[name](x.abs() + 0.5)
        loss = y.sum()
    (call,) = [c for c in tape.calls if c.results]
    saved = [getattr(y.grad_fn, a) for a in dir(y.grad_fn) if a.startswith("_saved_")]
    memory = {t.data_ptr() for t in saved if isinstance(t, Tensor)}
    kept = [r.get() for r in call.results if r is not None]
    assert kept
    assert {t.data_ptr() for t in kept} <= memory
    tape.trace(loss, check=True)


@pytest.mark.parametrize("name", ["tanh", "tanh_", "softmax", "rrelu_"])
def test_kept_results_survive_what_overwrites_them(name):
    x = leaf(2, 4, 6, 6)
    with record(names={"x": x}) as tape:
        y = KEPT[name](x)
        expected = y.detach().clone()
        y[0].mul_(3)  # through a view
        loss = y.sum()
    (call,) = [c for c in tape.calls if c.results]
    assert call.results[0] is not None
    assert torch.equal(call.results[0].get(), expected)
    y.detach().zero_()  # what was kept is a copy by now
    assert torch.equal(call.results[0].get(), expected)
    tape.grad(loss, "x")


@pytest.mark.parametrize("name", ["tanh", "tanh_"])
def test_kept_results_that_are_overwritten_after_the_recording_are_stale(name):
    with record() as tape:
        y = KEPT[name](leaf(3))
    (call,) = [c for c in tape.calls if c.results]
    assert call.results[0] is not None
    assert torch.equal(call.results[0].get(), y)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(StaleTensor):
        call.results[0].get()


def test_nothing_is_kept_of_what_autograd_does_not_follow():
    x = torch.ones(2, 3, **F64)
    with record(examples=x) as tape:
        x.tanh()
    assert tape.calls == []
    (constant,) = tape.record.constants
    assert (constant.base, constant.results) == ("tanh", ())


def test_calls_before_a_loss_leave_out_what_it_does_not_depend_on():
    def program(x: Tensor) -> Tensor:
        (x.sin() * 2).sum()
        return x.exp().sum()

    tape, loss = recorded(program, {"x": leaf(3)})
    assert [c.base for c in tape.record.before(tape.value_of(loss))] == ["exp", "sum"]
    assert len(tape.calls) > 2


def test_results_are_flattened_in_order():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert list(flat_tensors((a, [b, None], (c,), 3))) == [a, b, None, c]


def test_a_call_runs_again_on_other_tensors():
    tape, _ = recorded(lambda x: (x * 2).sum(), {"x": leaf(3)})
    call = tape.calls[0]
    other = torch.ones(3, **F64)
    assert call.run([other, *(i.tensor() for i in call.inputs[1:])])[0].tolist() == [2, 2, 2]


def test_an_in_place_call_runs_again_without_writing():
    def program(x: Tensor) -> Tensor:
        h = x * 1
        h.mul_(3)
        return h.sum()

    tape, _ = recorded(program, {"x": leaf(3)})
    (call,) = [c for c in tape.calls if c.inplace]
    data = torch.ones(3, **F64)
    assert call.run([data, *(i.tensor() for i in call.inputs[1:])])[0].tolist() == [3, 3, 3]
    assert data.tolist() == [1, 1, 1]


def test_activations_are_freed_without_the_cyclic_collector():
    x = leaf(3, 4)
    gc.collect()
    gc.disable()
    try:
        with record(names={"x": x}) as tape:
            h = x.exp()
            loss = (h * h).sum()
        trace = tape.trace(loss)
        data = StorageWeakRef(h.untyped_storage())
        assert trace.strength["x"].shape == (3, 4)
        del h, loss, tape, trace
        assert data.expired()
    finally:
        gc.enable()


def test_memory_that_is_overwritten_before_it_is_used_may_hold_anything():
    x = leaf(1, 1, 2, 3)
    with record(names={"x": x}) as tape:
        out = torch.full((1, 1, 4, 3), torch.nan, **F64)
        out[:, :, 1:3] = x
        out[..., :1] = out[..., 1:2]  # rows that nobody has written to are moved as well
        out[:, :, :1], out[:, :, 3:] = x[:, :, :1], x[:, :, 1:]
        loss = out.square().sum()
    trace = tape.trace(loss, check=True)
    assert (trace.strength["x"] > -torch.inf).all()
    assert gradtrace.scalar.from_tape(tape, loss).number_of_nodes() > 0
    with record(names={"x": x}) as tape:
        out = torch.full((1, 1, 4, 3), torch.nan, **F64)
        out[:, :, 1:3] = x
        loss = (out * out).sum()
    with pytest.raises(NotANumber):
        tape.trace(loss)
