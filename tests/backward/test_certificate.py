"""The certificate passes where all is well, and catches what is deliberately broken, by name.

That it passes on real models is in test_models.py, and on published architectures in test_architectures.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import F64, leaf, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import Tape, record
from gradtrace.backward.call_check import ENOUGH, beyond, few_slices
from gradtrace.errors import CertificateError, MissingRule
from gradtrace.jacobians.rules import pointwise
from gradtrace.jacobians.rules.table import TABLE, Edge
from gradtrace.jacobians.structure import Chain, Contraction, Strided, Structure, diagonal
from gradtrace.recording.layouts import Layout
from gradtrace.recording.record import Call, Saved

Rule = Callable[[Call], Iterator[Edge]]


def scaled(rule: Rule, factor: float) -> Rule:
    """Give a rule whose weights are off by a factor."""

    def off(s: Structure) -> Structure:
        if isinstance(s, Chain):
            return dataclasses.replace(s, first=off(s.first))
        if isinstance(s, Contraction) and s.weight is not None:
            return dataclasses.replace(s, weight=lambda w=s.weight: factor * w())
        return s

    return lambda call: ((position, number, off(s)) for position, number, s in rule(call))


def silent(rule: Rule, argument: int) -> Rule:
    """Give a rule that leaves one argument out."""
    return lambda call: (edge for edge in rule(call) if edge[0] != argument)


def model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).double(), torch.randn(
        5, 3, **F64
    )


def certify(activation: nn.Module | None = None) -> None:
    net, x = model()
    net[1] = activation or net[1]
    with record(net) as tape:
        loss = F.cross_entropy(net(x), torch.tensor([0, 1, 1, 0, 1]))
    tape.trace(loss, check=True)


def test_all_is_well():
    certify()


@pytest.mark.parametrize("operator", ["addmm", "nll_loss_forward", "native_layer_norm"])
@pytest.mark.parametrize("factor", [-1.0, 1 + 1e-6, 0.0])
def test_a_row_with_wrong_weights_is_named(monkeypatch, operator, factor):
    monkeypatch.setitem(TABLE, operator, scaled(TABLE[operator], factor))
    with pytest.raises(CertificateError, match=rf"the rule of aten\.{operator}\.\w+#\d+ .*test_certificate\.py"):
        certify()


@pytest.mark.parametrize(("operator", "argument"), [("addmm", 0), ("addmm", 2), ("native_layer_norm", 1)])
def test_a_row_that_leaves_an_argument_out_is_named(monkeypatch, operator, argument):
    monkeypatch.setitem(TABLE, operator, silent(TABLE[operator], argument))
    with pytest.raises(CertificateError, match=rf"aten\.{operator}\."):
        certify()


def test_a_row_without_edges_is_a_missing_rule(monkeypatch):
    monkeypatch.setitem(TABLE, "_log_softmax", lambda call: iter(()))
    with pytest.raises(MissingRule, match=r"aten\._log_softmax\.default#\d+ .*says nothing about its result number 0"):
        certify()


def test_the_generic_rule_broken_for_one_operator_is_named_with_its_module(monkeypatch):
    right = pointwise.derivatives

    def wrong(call: Call, shape: tuple[int, ...]) -> Callable[[int], Callable[[], Tensor]]:
        weights = right(call, shape)
        return (lambda p: lambda: weights(p)() * 1.001) if call.base == "gelu" else weights

    monkeypatch.setattr(pointwise, "derivatives", wrong)
    with pytest.raises(CertificateError, match=r"aten\.gelu\.default#\d+ in 1 \("):
        certify(nn.GELU())


def test_the_first_of_several_broken_rules_from_the_loss_is_named(monkeypatch):
    for operator in ("addmm", "native_layer_norm"):
        monkeypatch.setitem(TABLE, operator, scaled(TABLE[operator], 2.0))
    with pytest.raises(CertificateError, match=r"aten\.addmm\.default#\d+ in 3 "):
        certify()


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_an_edge_that_was_lost_is_caught_however_small_its_gradient(scale):
    leaves = {"x": leaf(3), "y": leaf(3, seed=1)}
    tape, loss = recorded(lambda x, y: (x * y).sum() * scale + (x * x).sum() * 10, leaves)
    product = next(c for c in tape.calls if c.base == "mul")
    product.inputs = (product.inputs[0], dataclasses.replace(product.inputs[1], value=None))
    with pytest.raises(CertificateError, match=r"gradient of 'y'.*was not recorded"):
        tape.trace(loss, check=True)


def test_a_call_that_was_lost_is_caught():
    leaves = {"x": leaf(3)}
    tape, loss = recorded(lambda x: (x.exp() + x.sin()).sum(), leaves)
    tape.record.calls = [c for c in tape.calls if c.base != "sin"]
    for i, call in enumerate(tape.record.calls):
        call.index = i
    with pytest.raises(CertificateError, match=r"gradient of 'x'.*was not recorded"):
        tape.trace(loss, check=True)


def test_gradients_that_vanish_analytically_are_rounding_noise_not_errors():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    batch_norm = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).double()
    x = torch.randn(4, 5, 8, **F64)
    with record(attention) as tape:
        loss = attention(x, x, x)[0].pow(3).sum()
    certificate = tape.trace(loss, check=True).certificate
    assert certificate is not None
    assert certificate.difference < 1e-10
    with record(batch_norm) as tape:
        loss = batch_norm(x[:, 0]).pow(3).sum()
    assert tape.grad(loss, "0.bias")[0].abs().max() < 1e-12
    tape.trace(loss, check=True)


def test_a_loss_of_which_all_gradients_vanish_analytically_passes():
    leaves = {"x": leaf(3, 4), "w": leaf(4, 5)}
    tape, loss = recorded(lambda x, w: (x @ w).log_softmax(1).exp().sum(), leaves)
    assert all(g.abs().max() < 1e-14 for g in tape.grad(loss, ["x", "w"]))
    tape.trace(loss, check=True)


def test_where_autograds_own_gradient_is_nan_there_is_nothing_to_compare_with():
    leaves = {"x": torch.tensor([0.0, 4.0], **F64, requires_grad=True)}
    tape, loss = recorded(lambda x: (x * x).sqrt().sum(), leaves)
    assert torch.autograd.grad(loss, leaves["x"], retain_graph=True)[0].isnan().tolist() == [True, False]
    assert tape.trace(loss).strength["x"].tolist() == [-torch.inf, -1.0]  # infinity times an absent edge
    with pytest.raises(CertificateError, match="own gradient of 'x' is NaN"):
        tape.trace(loss, check=True)


def test_a_certificate_after_backward_says_to_trace_before():
    net, x = model()
    with record(net) as tape:
        loss = net(x).square().sum()
    loss.backward()
    with pytest.raises(CertificateError, match=r"trace before backward"):
        tape.trace(loss, check=True)
    tape.trace(loss)  # without a certificate it needs no graph


def test_entries_are_compared_in_units_of_their_own_bounds():
    inf, nan = torch.inf, torch.nan
    ours = torch.tensor([1.0, 1.0, 0.0, inf, inf, -inf, nan, nan, 0.0, 1e-50], **F64)
    autograd = torch.tensor([1.0, 1.5, 0.0, inf, 1.0, inf, nan, 1.0, 1.0, 0.0])
    bound = torch.tensor([0.0, 0.25, 0.0, 0.1, inf, inf, inf, inf, inf, 0.0], **F64)
    expected = [0.0, 2.0, 0.0, 0.0, inf, inf, inf, inf, 0.0, 0.0]  # 1e-50 is 0 in float32
    assert beyond(ours, autograd, bound).tolist() == expected
    assert beyond(torch.zeros(0, **F64), torch.zeros(0), torch.zeros(0, **F64)).tolist() == []


def saturated(kind: torch.dtype, gap: float) -> Tensor:
    return torch.cat((torch.tensor([gap]), torch.zeros(7))).to(kind).requires_grad_()


@pytest.mark.parametrize(("kind", "gap"), [(torch.float32, 16.0), (torch.float32, 60.0), (torch.float64, 40.0)])
@pytest.mark.parametrize("squash", [torch.softmax, lambda x, d: torch.log_softmax(x, d).exp(), lambda x, d: x.tanh()])
def test_where_a_derivative_is_the_difference_of_equal_numbers_rounding_is_no_fault(kind, gap, squash):
    c = torch.randn(8, generator=torch.Generator().manual_seed(0)).to(kind)
    tape, loss = recorded(lambda a: (squash(a, -1) * c).sum(), {"a": saturated(kind, gap)})
    tape.trace(loss, check=True)


class Gated(nn.Module):
    """Attention whose output is multiplied by itself, detached; its key bias has no gradient but rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.softmax(self.query(x) @ self.key(x).mT, -1) @ self.value(x)
        return self.out(h) * h.detach()


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_a_stop_gradient_beside_a_gradient_that_is_noise(kind):
    torch.manual_seed(0)
    net, x = Gated().to(kind), torch.randn(2, 5, 6).to(kind)
    with record(net, examples=x) as tape:
        loss = net(x).square().mean()
    certificate = tape.trace(loss, check=True).certificate
    assert certificate is not None
    assert certificate.difference <= certificate.tolerance
    assert (certificate.leaves, certificate.decided) == (8, 0)
    assert certificate.values > certificate.leaves
    assert 0 < certificate.calls <= len(tape.calls)


@pytest.mark.parametrize("offset", [0.0, 50.0, 1e4])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.layer_norm(x, (5, 5)),
        lambda x: F.group_norm(x, 2),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.rms_norm(x, (5,)),
        lambda x: x / x.std(-1, keepdim=True),
    ],
)
def test_norms_of_numbers_that_are_nearly_equal(norm, kind, offset):
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=kind) * 1e-3 + offset
    weights = torch.arange(5, dtype=kind)
    tape, loss = recorded(lambda x: (norm(x) * weights).sin().sum(), {"x": x.requires_grad_()})
    tape.trace(loss, check=True)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.layer_norm(x, (2,)),
        lambda x: F.group_norm(x, 1),
        lambda x: F.batch_norm(x.T, None, None, training=True),
        lambda x: F.instance_norm(x[None]),
    ],
)
def test_norms_of_what_was_written_in_place(norm, kind):
    """Autograd shows no gradient of what was overwritten: what rounding did further on is all in the bound."""
    generator = torch.Generator().manual_seed(0)
    for gap in (0.1, 0.03, 0.01, 0.003):
        near = torch.randn(4, 1, generator=generator, dtype=kind) + gap * torch.randn(
            4, 2, generator=generator, dtype=kind
        )

        def program(x: Tensor) -> Tensor:
            y = norm((x * 1).view(4, 2).div_(2.0))
            return (y * torch.linspace(1, 2, 8, dtype=x.dtype).reshape(y.shape)).sum()

        tape, loss = recorded(program, {"x": near.requires_grad_()})
        certificate = tape.trace(loss, check=True).certificate
        assert certificate is not None
        assert certificate.difference <= certificate.tolerance


def one_entry_off(rule: Rule, by: float) -> Rule:
    """Give a rule of which the derivatives towards the first scalar of every argument are off by a factor."""

    def off(call: Call) -> Iterator[Edge]:
        for position, number, s in rule(call):
            n = torch.Size(call.inputs[position].shape).numel()
            factors = torch.ones(n, **F64)
            factors[:1] = by
            yield position, number, Chain(s, diagonal((n,), (n,), lambda f=factors: f))

    return off


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", ["addmm", "native_layer_norm", "_log_softmax", "tanh"])
def test_a_thousandth_on_one_entry_is_found_in_every_precision(monkeypatch, operator, kind):
    monkeypatch.setitem(TABLE, operator, one_entry_off(TABLE[operator], 1.001))
    net, x = model()
    with record(net.to(kind)) as tape:
        loss = F.cross_entropy(net(x.to(kind)), torch.tensor([0, 1, 1, 0, 1]))
    with pytest.raises(CertificateError, match=rf"the rule of aten\.{operator}\.\w+#\d+ "):
        tape.trace(loss, check=True)


def test_an_error_that_cancels_in_this_gradient_is_found(monkeypatch):
    # the derivatives of the softmax are added to a constant: whatever they are multiplied by, the gradient is 0
    monkeypatch.setitem(TABLE, "_softmax", one_entry_off(TABLE["_softmax"], 1.5))
    tape, loss = recorded(lambda x: (x.softmax(-1) * 0).sum(), {"x": leaf(3, 4)})
    with pytest.raises(CertificateError, match=r"the rule of aten\._softmax.* random cotangent"):
        tape.trace(loss, check=True)


def test_a_rule_that_is_wrong_for_some_numbers_only_is_found_where_they_are(monkeypatch):
    right = TABLE["tanh"]
    monkeypatch.setitem(TABLE, "tanh", lambda call: (scaled(right, 2.0) if call.index == 0 else right)(call))
    tape, loss = recorded(lambda x: x.tanh().tanh().tanh().sum(), {"x": leaf(3)})
    with pytest.raises(CertificateError, match=r"gradient of 'x' differs .* the rule of aten\.tanh\.default#0 "):
        tape.trace(loss, check=True)


def deep(layers: int = 12, width: int = 64) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]), torch.randn(
        3, width
    )


def test_an_edge_lost_behind_many_layers_is_found_although_paths_without_sign_are_many():
    net, x = deep()
    w = torch.full((64,), 1e-3, requires_grad=True)
    with record(net, names={"w": w}) as tape:
        loss = net(x * w + w.sin() * 1e-4).square().mean()
    added = next(c for c in tape.calls if c.base == "sin")
    tape.record.calls.remove(added)
    for i, call in enumerate(tape.record.calls):
        call.index = i
    with pytest.raises(CertificateError, match=r"gradient of 'w' differs .*was not recorded"):
        tape.trace(loss, check=True)


def test_a_value_that_lost_a_consumer_is_named_not_the_leaves_behind_it():
    leaves = {"x": leaf(3)}
    tape, loss = recorded(lambda x: (y := x.exp()).sin().sum() + y.cos().sum(), leaves)
    tape.record.calls = [c for c in tape.calls if c.base != "cos"]
    for i, call in enumerate(tape.record.calls):
        call.index = i
    with pytest.raises(CertificateError, match=r"gradient of 'x' differs: .*the result of aten\.exp\.default#0"):
        tape.trace(loss, check=True)


def hooked(net: nn.Module, x: Tensor) -> Tape:
    with record(net) as tape:
        loss = net(x).square().sum()
    tape.trace(loss, check=True)
    return tape


def test_a_hook_on_a_parameter_is_named():
    net, x = model()
    net[0].weight.register_hook(lambda g: g * 2)
    with pytest.raises(CertificateError, match=r"a hook on '0\.weight' changes its gradient"):
        hooked(net, x)


def test_a_hook_on_a_tensor_on_the_way_is_named():
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin()
            y.register_hook(lambda g: g * 2)
            return y

    net, x = model()
    net[1] = Doubled()
    with pytest.raises(CertificateError, match=r"a hook on the result of aten\.sin\.default#\d+ in 1 .*changes"):
        hooked(net, x)


@pytest.mark.parametrize("pre", [False, True])
def test_a_full_backward_hook_that_returns_something_is_named(pre):
    net, x = model()
    if pre:
        net[2].register_full_backward_pre_hook(lambda module, g: (g[0] * 2,))
    else:
        net[2].register_full_backward_hook(lambda module, g, _: (g[0] * 2,))
    with pytest.raises(CertificateError, match=r"a full backward hook of module '2' changes the gradient"):
        hooked(net, x)


def test_hooks_that_change_nothing_run_once_and_are_no_fault():
    net, x = model()
    seen: list[str] = []
    net[0].weight.register_hook(lambda g: seen.append("tensor"))
    net[0].bias.register_hook(lambda g: g.clone())
    net[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    net[2].register_full_backward_hook(lambda *_: seen.append("module"))
    net[2].register_full_backward_pre_hook(lambda *_: seen.append("before"))
    hooked(net, x)
    assert sorted(seen) == ["before", "module", "tensor"]
    assert all(p.grad is None for p in net.parameters())


def test_nan_on_both_sides_is_no_agreement():
    tape, loss = recorded(lambda x: (x * 0).sqrt().sum() + x.sum(), {"x": leaf(3)})
    with pytest.raises(CertificateError, match=r"gradient of 'x' is NaN .*aten\.mul"):
        tape.trace(loss, check=True)


def test_infinities_of_one_sign_agree():
    x = torch.tensor([0.0, 4.0], **F64, requires_grad=True)
    tape, loss = recorded(lambda x: x.sqrt().sum(), {"x": x})
    tape.trace(loss, check=True)


def test_no_derivative_is_asked_alone_that_pytorch_gives_with_others_only():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 1))
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    hooked(net, x)


def test_random_numbers_are_not_drawn_again():
    net, x = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.RReLU()).double(), torch.randn(5, 3, **F64)
    with record(net) as tape:
        loss = net(x).square().sum()
    state = torch.get_rng_state()
    tape.trace(loss, check=True)
    assert torch.equal(torch.get_rng_state(), state)


Step = Callable[[Tensor, Tensor], Tensor]


def _written(x: Tensor, y: Tensor) -> Tensor:
    out = x * 1
    row = out[1]
    early = row.clone()
    row.mul_(y[0])
    out.transpose_(0, 1)
    out[2] = out[0] + early[0]
    return out.t().contiguous()


ROUNDED: dict[str, Step] = {
    "sharp softmax": lambda x, y: (x * 30).softmax(-1),
    "log softmax": lambda x, y: (x * 10).log_softmax(0),
    "tanh": lambda x, y: (x * 5).tanh(),
    "sigmoid": lambda x, y: (y * 8).sigmoid() * x,
    "silu": lambda x, y: F.silu(x),
    "stopped": lambda x, y: x * y.detach(),
    "cancels": lambda x, y: (x + 1000) - (x - y),
    "shifted": lambda x, y: x - x.mean(-1, keepdim=True),
    "layer norm": lambda x, y: F.layer_norm(x * 1e-3 + 3, (6,)),
    "group norm": lambda x, y: F.group_norm(x, 2),
    "batch norm": lambda x, y: F.batch_norm(x, None, None, training=True) + y,
    "rms norm": lambda x, y: F.rms_norm(y, (6,)),
    "std": lambda x, y: x / (y.std() + 1),
    "var": lambda x, y: x * y.var(0, correction=0),
    "attention": lambda x, y: ((x @ (y + 1).mT) * 4).softmax(-1) @ x,
    "product": lambda x, y: x * y,
    "rows": lambda x, y: x[torch.tensor([0, 0, 0, 3])] + y,
    "cumsum": lambda x, y: x.cumsum(1) / 6,
    "norm": lambda x, y: x / (x.norm(dim=-1, keepdim=True) + 1),
    "expanded": lambda x, y: x[:1].expand(4, 6) * y,
    "split": lambda x, y: torch.cat([a * b for a, b in zip(x.split(2, 1), y.split(2, 1), strict=True)], 1),
    "written": _written,
}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(ROUNDED)), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_a_right_tape_is_never_refused(steps, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(4, 6, generator=generator).to(kind).requires_grad_() for _ in range(2))
    pool = [x, w]
    with record(names={"x": x, "w": w}) as tape:
        for name, a, b in steps:
            pool.append(ROUNDED[name](pool[-1 - a % len(pool)], pool[-1 - b % len(pool)]))
        loss = (pool[-1] * torch.linspace(-1, 1, 6).to(kind)).sum()
    if loss.requires_grad and loss.isfinite():
        certificate = tape.trace(loss, check=True).certificate
        assert certificate is not None
        assert certificate.difference <= certificate.tolerance


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(ROUNDED)), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_a_lost_edge_is_never_certified(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(4, 6, generator=generator, **F64).requires_grad_() for _ in range(2))
    pool = [x, w]
    with record(names={"x": x, "w": w}) as tape:
        for name, a, b in steps:
            pool.append(ROUNDED[name](pool[-1 - a % len(pool)], pool[-1 - b % len(pool)]))
        loss = (pool[-1] * torch.linspace(-1, 1, 6, **F64)).sum()
    if not loss.requires_grad:
        return
    before = tape.grad(loss, ["x", "w"], allow_unused=True)
    followed = [(c, p, i) for c in tape.calls for p, i in enumerate(c.inputs) if i.value and i.value.differentiable]
    edges = [(c, p) for c, p, i in followed if i.saved is not None]  # a view's argument has no data of its own
    call, position = edges[seed % len(edges)]
    given_ = call.inputs[position]
    assert given_.saved is not None
    lost = dataclasses.replace(given_, value=None, saved=Saved.own(given_.saved.get()))
    call.inputs = (*call.inputs[:position], lost, *call.inputs[position + 1 :])
    after = tape.grad(loss, ["x", "w"], allow_unused=True)
    zero = torch.zeros(4, 6, **F64)
    off = max(
        float(((zero if a is None else a) - (zero if b is None else b)).abs().max())
        for a, b in zip(after, before, strict=True)
    )
    if off > 1e-9:  # else what is lost carries nothing
        with pytest.raises(CertificateError, match="was not recorded"):
            tape.trace(loss, check=True)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_to_eight_bits(kind):
    net, x = model()
    with record(net) as tape:
        loss = net(x).float().to(kind).float().sum()
    assert tape.trace(loss, check=True).certificate is not None


@torch.library.custom_op("gradtrace_tests::power_of", mutates_args=())
def power_of(x: Tensor, n: int) -> Tensor:
    return x**n


def _power_backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    return g * ctx.n * ctx.saved_tensors[0] ** (ctx.n - 1), None


def _power_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.n = inputs[1]


power_of.register_autograd(_power_backward, setup_context=_power_context)


class PowerOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, n):
        _power_context(ctx, (x, n), x)
        return x**n

    @staticmethod
    def backward(ctx, g):
        return _power_backward(ctx, g)


POWERS = {"gradtrace_tests.power_of": power_of, "autograd.PowerOf": PowerOf.apply}


@pytest.mark.parametrize("name", POWERS)
def test_a_users_row_that_is_right_at_first_only_is_refused(monkeypatch, name):
    """Both are compared when they first serve a call; the certificate compares every kind of call."""

    def squared(call: Call) -> Any:
        shape, x = call.inputs[0].shape, call.inputs[0].value.call.inputs[0].tensor
        yield 0, 0, diagonal(shape, shape, lambda: 2 * 3 * x())

    monkeypatch.setitem(TABLE, name, squared)
    x = torch.randn(3, 4, **F64, requires_grad=True)
    with record(names={"x": x}) as tape:
        right, wrong = POWERS[name](3 * x, 2).sum(), POWERS[name](3 * x, 3).sum()
    assert tape.trace(right, check=True).certificate is not None
    with pytest.raises(CertificateError, match=f"the rule of {name}"):
        tape.trace(wrong, check=True)


def test_a_derivative_that_is_nan_by_autograd_as_well_is_no_fault_of_a_rule():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    with record(names={"x": x}) as tape:
        loss = torch.xlogy(x, x).sum()
    with pytest.raises(CertificateError, match=r"NaN.*nothing to compare with"):
        tape.trace(loss, check=True)


def test_a_gradient_that_is_nan_names_the_derivative_that_makes_it():
    w = torch.tensor([0.0, 1.0, 2.0], **F64).requires_grad_()
    with record(names={"w": w}) as tape:
        loss = (w.sqrt() * torch.tensor([0.0, 1.0, 1.0])).sum()
    with pytest.raises(CertificateError, match=r"0 · ∞ in the derivative of aten\.sqrt\.default#0 \(.*:\d+\)"):
        tape.trace(loss, check=True)


def many_rows(kind: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    return net.to(kind), torch.randn(5000, 3, dtype=kind)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", ["addmm", "native_layer_norm", "_log_softmax", "tanh"])
def test_what_is_compared_on_some_of_its_rows_is_compared_in_float64(monkeypatch, operator, kind):
    net, x = many_rows(kind)
    with record(net) as tape:
        loss = F.cross_entropy(net(x), torch.zeros(len(x), dtype=torch.int64))
    tape.trace(loss, check=True)
    monkeypatch.setitem(TABLE, operator, one_entry_off(TABLE[operator], 1 + 1e-6))
    with pytest.raises(CertificateError, match=rf"the rule of aten\.{operator}\.\w+#\d+ "):
        tape.trace(loss, check=True)


def test_a_rule_that_is_wrong_in_its_last_row_alone_is_found_by_what_reaches_its_argument(monkeypatch):
    def last_off(call: Call) -> Iterator[Edge]:
        factors = torch.ones(call.inputs[0].shape)
        factors[4999:] = 1.1
        for position, number, s in right(call):
            yield position, number, Chain(s, diagonal(factors.shape, factors.shape, lambda: factors))

    right = TABLE["tanh"]
    net, x = many_rows(torch.float32)
    monkeypatch.setitem(TABLE, "tanh", last_off)
    with record(net) as tape:
        loss = F.cross_entropy(net(x), torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(CertificateError, match=r"differs from autograd's at \[4999, \d\].* the rule of aten\.tanh"):
        tape.trace(loss, check=True)


def test_a_view_that_is_said_to_lie_elsewhere_is_found_where_all_gradients_are_alike(monkeypatch):
    plain = Strided(Layout((3, 3), (3, 1), 0), (3, 3))
    monkeypatch.setitem(TABLE, "transpose", lambda call: iter([(0, 0, plain)]))
    tape, loss = recorded(lambda x: x.transpose(0, 1).sum(), {"x": leaf(3, 3)})
    assert tape.grad(loss, "x")[0].eq(1).all()
    with pytest.raises(CertificateError, match=r"the rule of aten\.transpose\.int#0 "):
        tape.trace(loss, check=True)


def large_calls() -> tuple[Tape, dict[str, Call]]:
    a, b, c = leaf(70, 90), leaf(90, 300), leaf(300)
    t, words = leaf(6, 40, 50), torch.randint(900, (500,))

    def program(a: Tensor, b: Tensor, c: Tensor, t: Tensor, w: Tensor) -> Tensor:
        y = torch.addmm(c, a, b).tanh() + a @ b
        z = F.layer_norm(t * 2, (50,)).softmax(-1)
        return y.square().sum() + z.square().sum() + F.embedding(words, w).square().sum()

    tape, _ = recorded(program, {"a": a, "b": b, "c": c, "t": t, "w": leaf(900, 60)})
    return tape, {call.base: call for call in tape.record.calls}


@pytest.mark.parametrize("name", ["addmm", "mm", "tanh", "mul", "native_layer_norm", "_softmax", "embedding"])
def test_a_large_call_is_compared_on_a_few_slices_of_what_it_is(name):
    tape, calls = large_calls()
    call = calls[name]
    few = few_slices(call)
    assert len(tape.record.calls) >= len(calls)
    assert few is not None
    made, whole = few.run()[0], call.run()[0]
    assert made is not None
    assert whole is not None
    assert made.numel() <= 2 * ENOUGH < whole.numel()
    assert torch.allclose(made, whole[tuple(slice(n) for n in made.shape)], rtol=1e-12)


@pytest.mark.parametrize("name", ["addmm", "mm", "tanh", "native_layer_norm"])
def test_a_wrong_rule_of_a_large_call_is_found(name, monkeypatch):
    monkeypatch.setitem(TABLE, name, scaled(TABLE[name], 1.001)) if name in TABLE else pytest.skip("no row")
    a, b, c = leaf(70, 90), leaf(90, 300), leaf(300)
    with record(names={"a": a, "b": b, "c": c}) as tape:
        loss = (F.layer_norm(torch.addmm(c, a, b), (300,), c, c).tanh() + a @ b).square().sum()
    with pytest.raises(CertificateError, match=name):
        tape.trace(loss, check=True)
