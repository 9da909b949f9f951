"""The certificate passes where all is well, and catches what is deliberately broken, by name.

That it passes on real models is in test_models.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from checks import F64, leaf, recorded
from torch import Tensor, nn

from gradtrace import record
from gradtrace.backward.call_check import beyond
from gradtrace.errors import CertificateError, MissingRule
from gradtrace.jacobians.rules import pointwise
from gradtrace.jacobians.rules.table import TABLE, Edge
from gradtrace.jacobians.structure import Chain, Contraction, Structure
from gradtrace.recording.record import Call

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
