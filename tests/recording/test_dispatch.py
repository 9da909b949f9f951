"""Recording: what it leaves behind (nothing), what it cuts, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import F64, assert_sum_is_autograd, autograd, leaf, parameters, recorded, run
from hypothesis import given, settings
from programs import programs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, build

import gradtrace
from gradtrace import GradtraceError, record
from gradtrace.errors import NotOnTape, StaleTensor, Unsupported
from gradtrace.recording.dispatch import Capture
from gradtrace.recording.record import Again, Call, Saved, Value


def global_state() -> dict[str, Any]:
    """Give everything outside the program that recording touches."""
    from torch.nn.modules import module

    return {
        "modes": len(_get_current_dispatch_mode_stack()),
        "pre hooks": dict(module._global_forward_pre_hooks),
        "hooks": dict(module._global_forward_hooks),
        "always called": dict(module._global_forward_hooks_always_called),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "cudnn": torch._C._get_cudnn_enabled(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
    }


class Raising(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.inner, self.error = nn.Linear(2, 2), error

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        raise self.error("from inside a module")


def swallowing(model: nn.Module, x: Tensor) -> None:
    with record(model):
        try:
            model(x)
        except RuntimeError:
            (x * 2).sum()


def nested(model: nn.Module, x: Tensor) -> None:
    with record(model), record(model), gradtrace.component("c"):
        model(x)


def abandoned(model: nn.Module, x: Tensor) -> None:
    def generator() -> Any:
        with record(model):
            yield x * 2

    steps = generator()
    next(steps)
    steps.close()


ENDINGS: dict[str, tuple[type[BaseException], Callable[[nn.Module, Tensor], None]]] = {
    "raises": (RuntimeError, lambda m, x: _recorded(m, x)),
    "interrupted": (KeyboardInterrupt, lambda m, x: _recorded(m, x)),
    "exits": (SystemExit, lambda m, x: _recorded(m, x)),
    "swallowed": (RuntimeError, swallowing),
    "nested": (RuntimeError, nested),
    "abandoned": (RuntimeError, abandoned),
}


def _recorded(model: nn.Module, x: Tensor) -> None:
    with record(model):
        model(x)


@pytest.mark.parametrize("ending", ENDINGS)
def test_global_state_is_restored_however_the_block_ends(ending):
    error, go = ENDINGS[ending]
    model, x = Raising(error), torch.ones(1, 2)
    before = global_state()
    if ending in ("swallowed", "abandoned"):
        go(model, x)
    else:
        with pytest.raises(error, match="from inside a module"):
            go(model, x)
    assert global_state() == before
    assert not list(model._forward_hooks) + list(model._forward_pre_hooks) + list(model.inner._forward_hooks)


@pytest.mark.parametrize("flag", [True, False])
def test_backend_flags_come_back_as_they_were_not_as_the_defaults(flag):
    before = torch._C._get_mkldnn_enabled(), torch.backends.cuda.flash_sdp_enabled()
    torch._C._set_mkldnn_enabled(flag)
    torch.backends.cuda.enable_flash_sdp(flag)
    try:
        with record():
            assert torch._C._get_mkldnn_enabled() == flag
            assert not torch.backends.cuda.flash_sdp_enabled()
        assert (torch._C._get_mkldnn_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (flag, flag)
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch.backends.cuda.enable_flash_sdp(before[1])


class Flags(TorchDispatchMode):
    """Below a recording: which backends an operator finds enabled when it runs; may raise instead."""

    def __init__(self, error: str = "") -> None:
        super().__init__()
        self.seen: dict[str, tuple[bool, bool]] = {}
        self.error = error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name] = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
        if self.error and self.error in func._schema.name:
            raise RuntimeError("from inside an operator")
        return func(*args, **(kwargs or {}))


@contextmanager
def backends(mkldnn: bool, cudnn: bool) -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(mkldnn)
    torch._C._set_cudnn_enabled(cudnn)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


@pytest.mark.parametrize("mine", [(True, True), (False, True), (True, False), (False, False)])
def test_operators_run_on_the_users_backends_and_recurrent_layers_still_come_apart(mine):
    convolution, recurrent = nn.Conv2d(1, 2, 3), nn.LSTM(3, 4)
    with backends(*mine), Flags() as flags, record() as tape:
        convolution(torch.ones(1, 1, 4, 4))
        recurrent(torch.ones(2, 1, 3))
        assert (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()) == mine
    layer = "aten::mkldnn_rnn_layer" if mine[0] else "aten::addmm"
    assert flags.seen["aten::convolution"] == mine
    assert flags.seen[layer] == (mine[0], False)  # cuDNN would run a recurrent layer as one operator
    assert {"sigmoid", "tanh"} <= {call.base for call in tape.calls}


def test_backends_are_restored_when_an_operator_raises():
    layer, recurrent = nn.Conv2d(1, 2, 3), nn.LSTM(3, 4)
    before = global_state()
    with Flags("convolution"), record() as tape:
        with pytest.raises(RuntimeError, match="inside an operator"):
            layer(torch.ones(1, 1, 4, 4))
        assert (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()) == (before["mkldnn"], before["cudnn"])
        recurrent(torch.ones(2, 1, 3))
    assert "sigmoid" in {call.base for call in tape.calls}
    assert global_state() == before
    with pytest.raises(RuntimeError, match="inside an operator"), Flags("convolution"), record():
        layer(torch.ones(1, 1, 4, 4))
    assert global_state() == before


def test_a_recorded_convolution_gives_bit_for_bit_what_it_gives_alone():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 32, 3, padding=1), torch.randn(4, 16, 9, 9)
    with record(layer):
        recorded_ = layer(x)
    assert torch.equal(layer(x), recorded_)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_convolutions_and_gates(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()).to(dtype)
    gates = nn.LSTM(5, 4).to(dtype)
    with record(nn.ModuleDict({"model": model, "gates": gates})) as tape:
        loss = gates(model(torch.randn(2, 3, 7, dtype=dtype)))[0].float().square().mean()
    assert {"convolution", "sigmoid"} <= {call.base for call in tape.calls}
    tape.trace(loss, check=True)


def test_an_error_in_the_constructor_leaves_nothing_behind():
    before = global_state()
    with pytest.raises(GradtraceError, match=r"torch\.nn\.Module or None"), record(lambda x: x):  # type: ignore[arg-type]
        pass
    assert global_state() == before


def test_random_numbers_are_those_of_an_unrecorded_run():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    x, outs, states = torch.ones(4, 3), [], []
    for tracing in (False, True):
        torch.manual_seed(0)
        if tracing:
            with record(model) as tape:
                loss = model(x).sum()
            tape.trace(loss, check=True).influence()
        else:
            loss = model(x).sum()
        outs.append(loss.detach())
        states.append(torch.get_rng_state())
    assert torch.equal(*outs)
    assert torch.equal(*states)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "lstm": lambda: (nn.LSTM(3, 4, 2, dropout=0.5), torch.ones(5, 2, 3)),
    "attention": lambda: (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.ones(2, 5, 4)),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(True)),
        torch.ones(2, 1, 5, 5),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_users_own_backward_gives_bit_for_bit_what_it_would_have_given(name):
    results = []
    for tracing in (False, True):
        torch.manual_seed(0)
        model, x = MODELS[name]()
        x = x * torch.linspace(-1, 1, x.numel()).reshape(x.shape)
        if tracing:
            with record(model, examples=x) as tape:
                loss = _loss(model(x))
            before = [p.grad for p in model.parameters()]
            tape.trace(loss, check=True).flow()
            tape.grad(loss, list(model.parameters()))
            assert before == [None] * len(before) == [p.grad for p in model.parameters()]
        else:
            with _as_recorded():
                loss = _loss(model(x))
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _loss(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    y = y[0] if isinstance(y, tuple) else y
    return y.pow(3).mean()


def _as_recorded() -> Any:
    """Run attention as its products; everything else runs as ever."""
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def test_existing_gradients_and_the_graph_survive_a_trace():
    model = nn.Linear(3, 1)
    model.weight.grad = torch.full((1, 3), 7.0)
    with record(model) as tape:
        loss = model(torch.ones(2, 3)).sum()
    tape.trace(loss, check=True)
    loss.backward()
    assert model.weight.grad.tolist() == [[9.0, 9.0, 9.0]]


# ---------------------------------------------------------------- what is cut, and what is followed

CUT: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x * x.detach(),
    "data": lambda x: x * x.data,
    "no_grad": lambda x: x * _without_grad(x),
    "integers": lambda x: x * (x * 3).to(torch.int64),
    "comparison": lambda x: x * (x > 0),
    "selection": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "round": lambda x: x * x.round(),
    "item": lambda x: x * x.sum().item(),
    "numpy": lambda x: x * torch.from_numpy(x.detach().numpy().copy()),
    "control-flow": lambda x: x if x.sum().item() > 1e9 else x * 2,
}


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.exp()


@pytest.mark.parametrize("name", CUT)
def test_what_autograd_cuts_the_tape_cuts(name):
    leaves = {"x": leaf(3, 4)}
    tape, loss = recorded(lambda x: (CUT[name](x) * 2).sum(), leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    counted = run(tape, loss, leaves, gradtrace.Count)["x"]
    assert counted.max() <= 1  # one path, through the factor that is followed


def test_a_loss_without_gradient_is_not_followed():
    with record() as tape:
        constant = torch.ones(2).sum()
        with torch.no_grad():
            silent = leaf(2).sum()
    for loss in (constant, silent):
        with pytest.raises(NotOnTape, match="does not require grad"):
            tape.trace(loss)


def test_a_tensor_made_outside_the_block_is_refused_with_what_made_it():
    x = leaf(3)
    outside = x.exp()
    with pytest.raises(NotOnTape, match=r"ExpBackward.*inside `with record") as error, record():
        (outside * 2).sum()
    assert "(3,)" in str(error.value)


def test_a_detached_tensor_made_outside_is_a_constant():
    x = leaf(3)
    leaves = {"x": x}
    fixed = x.exp().detach()
    tape, loss = recorded(lambda x: (fixed * x).sum(), leaves)
    assert_sum_is_autograd(tape, loss, leaves)


def test_two_recordings_of_one_model_do_not_know_each_others_tensors():
    model, x = nn.Linear(2, 1).double(), torch.ones(1, 2, **F64)
    with record(model) as first:
        one = model(x).sum()
    with record(model) as second:
        two = model(x * 2).sum()
    assert first.grad(one, "weight")[0].tolist() == [[1.0, 1.0]]
    assert second.grad(two, "weight")[0].tolist() == [[2.0, 2.0]]
    with pytest.raises(NotOnTape):
        second.trace(one)


def test_a_training_loop_inside_the_block():
    """Backward and the optimizer are no part of any loss; each loss keeps the parameters that it was made with."""
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x, losses, expected = torch.linspace(-1, 1, 6, **F64).reshape(2, 3), [], []
    steps = [torch.optim.Adam(m.parameters(), 0.1) for m in models]
    with record(models[0]) as tape:
        for _ in range(3):
            losses.append(models[0](x).square().sum())
            losses[-1].backward()
            steps[0].step()
            steps[0].zero_grad()
    for _ in range(3):
        loss = models[1](x).square().sum()
        expected.append(autograd(loss, parameters(models[1])))
        loss.backward()
        steps[1].step()
        steps[1].zero_grad()
    assert list(tape.leaves) == list(parameters(models[0]))
    for loss, gradients in zip(losses, expected, strict=True):
        for name, gradient in gradients.items():
            torch.testing.assert_close(tape.grad(loss, name)[0], gradient)


def test_a_nested_recording_sees_the_inner_calls_and_so_does_the_outer():
    leaves = {"x": leaf(3)}
    with record(names=leaves) as outer:
        y = leaves["x"].exp()
        with record() as inner:
            z = leaves["x"].sin().sum()
        loss = y.sum() + z
    assert_sum_is_autograd(outer, loss, leaves)
    assert torch.equal(inner.grad(z, [leaves["x"]])[0], leaves["x"].detach().cos())


def test_another_threads_work_is_not_recorded():
    x, made = leaf(3), []
    with record(names={"x": x}) as tape:
        thread = threading.Thread(target=lambda: made.append(x.exp().sum()))
        thread.start()
        thread.join()
        loss = x.sin().sum()
    assert tape.grad(loss, "x")[0].tolist() == x.detach().cos().tolist()
    with pytest.raises(NotOnTape):
        tape.trace(made[0])


# ---------------------------------------------------------------- unusual but reasonable programs


def _second_order(x: Tensor, w: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(torch.tanh(x @ w).sum(), x, create_graph=True)
    return g.square().sum()


def _inner_step(x: Tensor, w: Tensor) -> Tensor:
    (g,) = torch.autograd.grad((x @ w).square().mean(), w, create_graph=True)
    return (x @ (w - 0.1 * g)).square().mean()


def _while(x: Tensor) -> Tensor:
    while x.abs().max() > 0.1:
        x = x * 0.5
    return x.square().sum()


def _recursive(x: Tensor, depth: int = 5) -> Tensor:
    return x.sum() if depth == 0 else _recursive(torch.tanh(x), depth - 1) * x.mean()


def _experts(x: Tensor, w: Tensor) -> Tensor:
    weight, chosen = (x @ w).softmax(-1).topk(2, -1)
    out = torch.zeros_like(x)
    for e in range(w.shape[1]):
        row, slot = torch.where(chosen == e)
        out.index_add_(0, row, x[row] * w[:, e] * weight[row, slot, None])
    return out.square().sum()


PROGRAMS: dict[str, Callable[..., Tensor]] = {
    "second-order": _second_order,
    "a-step-through-a-step": lambda x, w: _inner_step(x, w),
    "vmap": lambda x, w: torch.func.vmap(lambda row: (row @ w).sin().sum())(x).sum(),
    "functional-grad": lambda x, w: torch.func.grad(lambda t: (t**3).sum())(x).sum() + w.sum(),
    "forward-mode": lambda x, w: (
        torch.func.jvp(lambda t: t @ w, (x,), (torch.ones_like(x),))[1].square().sum() + x.sum()
    ),
    "while": lambda x, w: _while(x @ w),
    "recursion": lambda x, w: _recursive(x @ w),
    "checkpoint": lambda x, w: checkpoint(lambda t: torch.tanh(t @ w).sum(), x, use_reentrant=False),
    "experts": _experts,
    "tied-and-repeated": lambda x, w: (x @ w @ w.t() @ w).sum() + (w * w).sum(),
    "a-list-of-results": lambda x, w: sum(p.square().sum() for p in (x @ w).unbind(1)),
    "parts-of-an-svd": lambda x, w: torch.linalg.svd(x @ w).S.square().sum() + (w**3).sum(),
    "sorted": lambda x, w: ((x @ w).sort(0).values * torch.arange(3, **F64)[:, None]).sum(),
    "leaf-made-inside": lambda x, w: ((x @ w).detach().requires_grad_() * (x @ w)).sum(),
    "einsum": lambda x, w: torch.einsum("ij,jk,lk->il", x, w, w).square().sum(),
    "dropout-and-noise": lambda x, w: F.dropout(x @ w, 0.5).square().sum() + (torch.randn_like(x) * x).sum() + w.sum(),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # forward mode uses it inside
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_of(name):
    leaves = {"x": leaf(3, 4), "w": leaf(4, 3)}
    tape, loss = recorded(PROGRAMS[name], leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    tape.trace(loss, check=True).flow()


def _scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        return torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double())


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return model


class Called(nn.Module):
    """Calls its inner module with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        doubled = {n: p * 2 for n, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, doubled, (x,))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral-norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    "functional-call": Called,
    "hooks": _hooked,
    "scripted": _scripted,
    "batch-norm": lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)),
    "embedding-with-padding": lambda: nn.Sequential(Rows(), nn.Embedding(9, 3, padding_idx=1)),
    "projected-lstm": lambda: nn.LSTM(4, 3, proj_size=2, bidirectional=True),
    "attention-with-zeros": lambda: Attended(nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True)),
    "adaptive-softmax": lambda: Adaptive(),
    "frozen-half": lambda: _half_frozen(),
}


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * 3).long().clamp(max=8)


class Attended(nn.Module):
    def __init__(self, inner: nn.MultiheadAttention) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Adaptive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6], div_value=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, torch.tensor([0, 4, 0, 4, 2])).loss


def _half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_modules(name):
    torch.manual_seed(0)
    model, x = MODULES[name]().double(), torch.randn(5, 4, **F64)
    with record(model) as tape:
        loss = _loss(model(x))
    assert_sum_is_autograd(tape, loss, parameters(model))
    tape.trace(loss, check=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.03)])
def test_other_dtypes(dtype, tolerance):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3), nn.Softmax(-1)).to(dtype)
    with record(model) as tape:
        loss = model(torch.randn(6, 3).to(dtype)).square().mean()
    assert_sum_is_autograd(tape, loss, parameters(model), tolerance)
    assert tape.trace(loss, check=True).strength["0.weight"].dtype == torch.float64


def test_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with record(model) as tape, torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(model(torch.randn(6, 3))), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert_sum_is_autograd(tape, loss, parameters(model), 0.1)
    tape.trace(loss, check=True)


def test_thousands_of_calls_need_no_recursion():
    leaves = {"x": leaf(2)}

    def deep(x: Tensor) -> Tensor:
        h = x
        for _ in range(1500):
            h = torch.tanh(h + x)
        return h.sum()

    tape, loss = recorded(deep, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    assert len(tape.trace(loss).path("x", 0).steps) > 1


# ---------------------------------------------------------------- refusals


def test_reentrant_checkpointing_says_what_to_use():
    with pytest.raises(Unsupported, match="use_reentrant=False"), record():
        checkpoint(lambda t: t.exp(), leaf(3), use_reentrant=True).sum()


def test_complex_leaves_are_refused():
    with pytest.raises(Unsupported, match="complex leaf"), record():
        torch.ones(3, dtype=torch.complex128, requires_grad=True).abs().sum()


@pytest.mark.parametrize(
    "program",
    [
        lambda x: torch.fft.rfft(x).abs().square().sum(),
        lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2j).square().sum(),
        lambda x: torch.view_as_complex(x.view(2, 2)).conj().angle().sum(),
        lambda x: (torch.complex(x, x * x) * torch.complex(x, -x)).real.sum(),
    ],
)
def test_complex_numbers_on_the_way_are_pairs_of_real_ones(program):
    leaves = {"x": leaf(4)}
    tape, loss = recorded(program, leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    trace = tape.trace(loss, check=True)
    assert trace.path("x", 1).log2_weight == pytest.approx(float(trace.strength["x"][1]))


def test_sparse_tensors_are_refused():
    with pytest.raises(Unsupported, match="dense ones only"), record():
        (leaf(3, 3).to_sparse() * 2).to_dense().sum()


def test_a_lazy_module_is_to_be_run_first():
    with pytest.raises(GradtraceError, match="run"), record(nn.LazyLinear(4)):
        pass


def test_sparse_gradients_are_compared_by_the_certificate():
    model = nn.Embedding(5, 3, sparse=True).double()
    with record(model) as tape:
        loss = model(torch.tensor([0, 2, 2])).square().sum()
    expected = autograd(loss, {"weight": model.weight})["weight"].to_dense()
    torch.testing.assert_close(tape.grad(loss, "weight")[0], expected)
    tape.trace(loss, check=True)


# ---------------------------------------------------------------- what is not kept is computed again


@contextmanager
def remembering() -> Iterator[list[tuple[Again, Tensor]]]:
    """Note, of each tensor that recording does not keep, what it was."""
    seen: list[tuple[Again, Tensor]] = []
    decide = Capture._save_if_needed

    def noted(self: Capture, tensor: Tensor, value: Value | None) -> Saved | Again:
        found = decide(self, tensor, value)
        if isinstance(found, Again):
            seen.append((found, tensor.detach().clone()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Capture, "_save_if_needed", noted)
        yield seen


@given(programs(exact=False))
@settings(deadline=None, max_examples=100)
def test_what_a_program_does_not_keep_is_computed_again(program):
    leaves = program.leaves()
    with remembering() as seen, record(names=leaves) as tape:
        program.run(leaves)
    for again, was in seen:
        assert torch.equal(again.get(), was), tape


@pytest.mark.parametrize("name", ZOO)
def test_what_a_model_does_not_keep_is_computed_again(name):
    subject = build(name)
    with remembering() as seen, record(subject.model) as tape:
        subject.loss()
    for again, was in seen:
        assert torch.equal(again.get(), was), tape


def test_in_place_operators_of_a_recurrent_layer_copy_nothing():
    layer = nn.LSTM(3, 4).double()  # which oneDNN does not run
    with remembering() as seen, record(layer) as tape:
        layer(torch.randn(5, 2, 3, dtype=torch.float64))[0].sum()
    assert len(seen) >= 5 * 3  # gates, before they were overwritten
    kept = [i.saved for call in tape.record.calls for i in call.inputs if isinstance(i.saved, Saved)]
    kept += [saved for call in tape.record.calls for saved in call.results if saved is not None]
    assert all(saved._source is not None for saved in kept)


def test_a_long_sum_is_kept_now_and_then():
    x = leaf(2)
    with record(names={"x": x}) as tape:
        total = x * 2
        for _ in range(100):
            before, total = total, total + x
    assert max(v.depth for call in tape.record.calls for v in call.outputs) == 16
    assert torch.equal(tape.record.calls[-1].inputs[0].tensor(), before)


def test_what_is_used_twice_is_computed_again_once():
    x = leaf(2)
    with record(names={"x": x}) as tape:
        total = x * 2
        for _ in range(15):
            before, total = total, total + total
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        run = Call.run
        patch.setattr(Call, "run", lambda self, tensors=None: runs.append(self.index) or run(self, tensors))
        assert torch.equal(tape.record.calls[-1].inputs[0].tensor(), before)
    assert len(runs) == len(set(runs))


def test_what_cannot_be_computed_again_since_somebody_changed_it_is_an_error():
    w = leaf(2)
    with record(names={"w": w}) as tape:
        y = torch.relu(w * 2 + w)
    with torch.no_grad():
        w.mul_(3)
    with pytest.raises(StaleTensor, match="modified in place after recording"):
        next(c for c in tape.calls if c.base == "relu").inputs[0].tensor()
    del y
