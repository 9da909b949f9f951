"""One row a module, against Jacobians of whole modules by autograd, multiplied out under max and +."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import gradtrace
from gradtrace.kernels import native

LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "none": None}


class Net(nn.Module):
    """Layers with an activation each, around which the input may go."""

    def __init__(self, kinds: list[tuple[str, bool]], width: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in kinds])
        self.active = nn.ModuleList([made() if (made := LAYERS[kind]) else nn.Identity() for kind, _ in kinds])
        self.around = [skip for _, skip in kinds]
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        for layer, active, skip in zip(self.layers, self.active, self.around, strict=True):
            h = active(layer(x))
            x = x + h if skip else h
        return x


def log2(x: Tensor) -> float:
    return float(x.abs().max().log2())


def against(jacobian: Tensor, g: Tensor) -> Tensor:
    """The strongest products of one row of g with one of a Jacobian (out × in)."""
    return (jacobian.abs() * g.unsqueeze(1)).amax(0)


def expected(net: Net, x: Tensor) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """By module, log2 of its units' strongest path, dead share of its units, and what is gained; batch of one."""
    inputs, hidden = [x], list[Tensor]()
    for layer, active, skip in zip(net.layers, net.active, net.around, strict=True):
        hidden.append(layer(inputs[-1]))
        inputs.append(inputs[-1] + active(hidden[-1]) if skip else active(hidden[-1]))
    top, dead, gained = {}, {}, {}
    g = (2 * inputs[-1] / inputs[-1].numel()).abs().detach()
    for n in reversed(range(len(net.layers))):
        inside = against(torch.autograd.functional.jacobian(net.active[n], hidden[n]), g)
        into = against(net.layers[n].weight.detach(), inside)
        names = [(f"layers.{n}", inside, into)]
        if not isinstance(net.active[n], nn.Identity):
            names.append((f"active.{n}", g, inside))
        for name, out, entering in names:
            top[name], dead[name] = log2(out), float((out == 0).double().mean())
            gained[name] = log2(entering) - log2(out)
        g = torch.maximum(into, g) if net.around[n] else into
    gained["layers.0"] = math.nan  # its input comes from no call
    return top, dead, gained


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(LAYERS)), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 4),
    st.sampled_from([1.0, 0.1, 1e-30]),
    st.integers(0, 2**20),
)
def test_rows_are_those_of_the_modules_jacobians(kinds, width, scale, seed):
    torch.manual_seed(seed)
    net, x = Net(kinds, width, scale).double(), torch.randn(width, dtype=torch.float64)
    with gradtrace.record(net) as tape:
        loss = net(x).square().mean()
    table = {row.module: row for row in tape.trace(loss).layers().rows}
    loss.backward()
    top, dead, gained = expected(net, x)
    for name in top:
        row = table[name]
        assert same(row.log2_unit_strongest, top[name])
        assert row.dead_units == dead[name]
        if top[name] > -math.inf:
            assert same(row.log2_gained, gained[name])
    for name, module in net.named_modules():
        parameters = list(module.parameters())
        if parameters:
            norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
            assert table[name].log2_gradient == pytest.approx(float(norm.log2()), abs=1e-6)
            assert table[name].parameters == sum(p.numel() for p in parameters)


def test_units_gradients_are_autograds():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1)), torch.randn(5, 4)
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: object, y: Tensor) -> None:
        y.retain_grad()
        kept[module] = y

    for module in net.children():
        module.register_forward_hook(keep)
    with gradtrace.record(net) as tape:
        loss = net(x)[:, 0].log().mean()
    table = {row.module: row for row in tape.trace(loss).layers().rows}
    loss.backward()
    for name, module in net.named_children():
        y = kept[module]
        assert table[name].log2_unit_gradient == pytest.approx(float(y.grad.norm().log2()), abs=1e-5)
        assert table[name].units == y.numel()
    assert table["3"].dead_units == pytest.approx(2 / 3)  # one class is looked at
    assert table["1"].dead_units == 0.0


def test_entropy_is_the_mean_over_live_scalars():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(6, 4)
    with torch.no_grad():
        net[0].bias[:3] = -100.0
    with gradtrace.record(net) as tape:
        loss = net(x).square().mean()
    trace = tape.trace(loss)
    row = next(r for r in trace.layers().rows if r.module == "0")
    entropies = tape.grad(loss, ["0.weight", "0.bias"], "entropy")
    live = [trace.strength[n] > -math.inf for n in ("0.weight", "0.bias")]
    found = torch.cat([e[here] for e, here in zip(entropies, live, strict=True)]).double()
    assert row.entropy == pytest.approx(float(found.mean()), rel=1e-6)
    assert row.dead_parameters == 1 - len(found) / 40
    assert row.dead_parameters >= 3 / 8
    assert all(math.isnan(r.entropy) for r in trace.layers(entropy=False).rows)


@pytest.mark.parametrize("compiled", [True, False])
def test_where_autograd_underflows(compiled, monkeypatch):
    """Forty layers, each of which loses eleven powers of two: float32 has 149."""
    monkeypatch.setattr(native, "available", lambda was=native.available: compiled and was())
    torch.manual_seed(0)
    net, x = Net([("tanh", False)] * 40, 3, 0.001), torch.randn(3)
    with gradtrace.record(net) as tape:
        loss = (net(x) + 1).square().mean()
    table = {row.module: row for row in tape.trace(loss).layers().rows}
    loss.backward()
    assert not net.layers[0].weight.grad.any()
    double, y = Net([("tanh", False)] * 40, 3, 1.0).double(), x.double()
    double.load_state_dict(net.state_dict())
    (double(y) + 1).square().mean().backward()
    norm = torch.cat([p.grad.flatten() for p in double.layers[0].parameters()])
    top = norm.abs().max()
    assert table["layers.0"].log2_gradient == pytest.approx(float((norm / top).norm().log2() + top.log2()), abs=1e-3)
    assert table["layers.0"].log2_gradient < -300
    assert table["layers.0"].dead_parameters == 0.0
    assert table["layers.5"].log2_gained < -8


def test_a_module_that_is_called_twice_and_one_whose_result_is_not_used():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.never = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            self.b(x)
            return self.c(self.a(self.a(x)).relu())

    torch.manual_seed(0)
    net = Twice()
    with gradtrace.record(net) as tape:
        loss = net(torch.randn(2, 3)).sum()
    table = {row.module: row for row in tape.trace(loss).layers().rows}
    assert table["a"].units == 6  # its first result goes into itself
    assert (table["b"].units, table["b"].dead_units, table["b"].dead_parameters) == (6, 1.0, 1.0)
    assert table["b"].log2_gradient == table["b"].log2_strongest == -math.inf
    assert (table["never"].calls, table["never"].units, table["never"].dead_parameters) == (0, 0, 1.0)
    assert math.isnan(table["never"].log2_unit_strongest)


def test_tied_weights_are_rows_of_both_and_blocks_have_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.into.weight

        def forward(self, words: Tensor) -> Tensor:
            with gradtrace.component("squash"):
                h = self.into(words).tanh()
            return self.out(h)

    net = Tied()
    with gradtrace.record(net) as tape:
        loss = F.cross_entropy(net(torch.tensor([0, 1])), torch.tensor([2, 3]))
    table = {row.module: row for row in tape.trace(loss).layers().rows}
    assert [table[n].parameters for n in ("", "into", "out", "squash")] == [15, 15, 15, 0]
    assert table["into"].log2_gradient == table["out"].log2_gradient
    assert table["squash"].calls == 2
    assert table["squash"].units == 6


def test_it_prints_on_80_columns_and_escapes_names():
    net = nn.Sequential()
    net.add_module("a_very_long_name_of_a_module_<b>", nn.Linear(3, 300))
    with gradtrace.record(net) as tape:
        loss = net(torch.randn(2, 3)).relu().sum()
    table = tape.trace(loss).layers()
    assert max(map(len, str(table).splitlines())) <= 80
    assert "of_a_module_<b>" in str(table)
    assert "&lt;b&gt;" in table._repr_html_()
    frame = table.to_dataframe()
    assert list(frame["module"]) == ["", "a_very_long_name_of_a_module_<b>"]
    assert frame["parameters"].tolist() == [1200, 1200]


def test_functional_code_has_one_row():
    w = torch.ones(3, requires_grad=True)
    with gradtrace.record(names={"w": w}) as tape:
        loss = (w * 2).sum()
    (row,) = tape.trace(loss).layers().rows
    assert (row.module, row.parameters, row.log2_strongest) == ("", 3, 1.0)
    assert row.log2_gradient == pytest.approx(math.log2(math.sqrt(12)))
