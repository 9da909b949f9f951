"""Paths: what each step says, how a path prints, and how scalars are indexed."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from checks import F64, leaf, recorded
from torch import Tensor, nn

from gradtrace import Path, Trace, component, record
from gradtrace.backward.backpointers import unravelled
from gradtrace.errors import UnknownName
from gradtrace.queries.paths import NoPath, follow, follow_all


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with component("gate"):
            return torch.relu(self.inner(x))


@pytest.fixture(scope="module")
def trace() -> Trace:
    model = nn.ModuleDict({"net": Net()}).double()
    with torch.no_grad():
        model["net"].inner.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0, 2.0], [0.5, 0.0, -4.0]], **F64)
    with record(model, names={"x": x.requires_grad_()}) as tape:
        loss = model["net"](x).square().sum()
    return tape.trace(loss)


@pytest.fixture
def path(trace: Trace) -> Path:
    return trace.path("net.inner.weight", (0, 2))


def test_steps_run_from_the_leaf_to_the_loss_with_their_derivatives(path):
    # relu(W x)_00 = 5; ∂ℓ/∂W_02 = 2 · 5 · x_02 = 20
    operators = [s.operator.split(".")[1] for s in path.steps]
    assert operators == ["t", "mm", "relu", "pow", "sum"]
    assert [s.derivative for s in path.steps] == [1, 2, 1, 10, 1]
    assert [s.index for s in path.steps] == [(2, 0), (0, 0), (0, 0), (0, 0), ()]
    assert [round(2**s.log2_weight, 9) for s in path.steps] == [1, 2, 2, 20, 20]
    assert (path.start, path.index, path.kind) == ("net.inner.weight", (0, 2), "best")
    assert path.log2_weight == pytest.approx(math.log2(20), rel=1e-15)
    assert path.weight == 20


def test_steps_say_where_they_ran(path):
    assert [s.module for s in path.steps] == ["net.inner", "net.inner", "gate", "", ""]
    assert path.steps[1].scopes == ("net", "gate", "net.inner")
    assert path.components == ("net", "gate", "net.inner")
    assert all(re.fullmatch(rf"{re.escape(__file__)}:\d+", s.source) for s in path.steps)
    assert path.steps[1].argument == 1


def test_a_path_prints_a_line_a_step_with_modules_indices_and_running_products(path):
    head, *lines = str(path).splitlines()
    assert head == "best path from net.inner.weight[0, 2]: |weight| = 2^4.32, 5 steps"
    assert len(lines) == 5
    assert re.search(r"net\.inner +mm\.default\[0, 0\] +×2 +2\^1\.00 +test_paths\.py:\d+$", lines[1])
    assert re.search(r"gate +relu\.default\[0, 0\]", lines[2])
    assert re.search(r"sum\.default +×1 +2\^4\.32", lines[4])
    assert repr(path) == str(path)


def test_paths_from_inputs(trace):
    # relu(W x) is (5, 0) for the first example, (0, 3.5) for the second
    assert trace.path("x", (0, 0)).weight == 2 * 5 * 1
    assert trace.path("x", (0, 1)).weight == 2 * 5 * -2
    assert trace.path("x", (1, 2)).weight == 2 * 3.5 * -1


def test_the_sign_of_a_path_is_the_product_of_its_derivatives():
    tape, loss = recorded(lambda x: (-3 * x.sin()).sum(), {"x": leaf(2)})
    path = tape.trace(loss).path("x", 1)
    assert path.weight == pytest.approx(-3 * leaf(2).detach().cos()[1].item())


def test_paths_start_at_recorded_tensors_too():
    x = leaf(3)
    with record(names={"x": x}) as tape:
        h = x.exp()
        loss = (h * h).sum()
    path = tape.trace(loss).path(h, 2)
    assert [s.operator for s in path.steps] == ["aten.mul.Tensor", "aten.sum.default"]
    assert path.start.startswith("aten.exp.default#")


@pytest.mark.parametrize("index", [(0, 2), (-2, -1), (0, -1), [0, 2], torch.Size([0, 2]), (np.int64(0), np.int64(2))])
def test_indices_count_from_either_end(trace, index):
    assert trace.path("net.inner.weight", index).index == (0, 2)


@pytest.mark.parametrize("index", [(2, 0), (0, 3), (0, -4), (0,), 0, (0, 0, 0), ()])
def test_an_index_that_is_none_says_the_shape(trace, index):
    with pytest.raises(UnknownName, match=r"net\.inner\.weight has shape \(2, 3\)"):
        trace.path("net.inner.weight", index)


def test_scalars_of_vectors_may_be_indexed_by_a_number():
    tape, loss = recorded(lambda x: x.exp().sum(), {"x": leaf(3)})
    assert tape.trace(loss).path("x", -1).index == tape.trace(loss).path("x", (2,)).index == (2,)
    assert tape.trace(loss).path("x", np.int64(1)).index == (1,)


def test_time_steps_and_batch_entries_are_positions_in_the_index():
    torch.manual_seed(0)
    rnn = nn.RNN(2, 3).double()
    x = torch.randn(4, 2, 2, **F64)
    with record(rnn) as tape:
        loss = rnn(x)[0][-1].square().sum()
    path = tape.trace(loss).path("weight_hh_l0", (1, 2))
    unbound = [s for s in path.steps if len(s.index) == 3]
    assert unbound
    for step in unbound:
        time, batch, unit = step.index
        assert (time < 4, batch < 2, unit < 3) == (True, True, True)


def test_a_dead_scalar_has_no_path(trace):
    # unit 1 is negative for the first example and positive for the second
    assert trace.path("net.inner.weight", (1, 0)).steps[1].index == (1, 1)
    with pytest.raises(NoPath, match=r"net\.inner\.weight\(1, 1\)"):
        trace.path("net.inner.weight", (1, 1))  # multiplies x = 0 there


def test_greedy_paths_say_so(trace):
    path = trace.path("net.inner.weight", (0, 2), kind="greedy")
    assert path.kind == "greedy"
    assert str(path).startswith("greedy path from")
    assert path.weight == 20


def test_records_are_frozen(path):
    with pytest.raises(AttributeError):
        path.kind = "other"


@pytest.mark.parametrize("kind", ["best", "greedy"])
@pytest.mark.parametrize("apart", [False, True])
def test_paths_read_together_are_those_read_alone(kind, apart):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0).double()
    x = torch.randn(3, 2, 4, **F64)
    with record(layer, examples=x) as tape:
        loss = layer(x).square().mean()
    forest = tape.trace(loss).forest(kind, per_example=apart)
    scalars = [(leaf, flat) for leaf in tape.leaves.values() for flat in range(0, leaf.numel, 5)]
    alone = [follow(forest, leaf, unravelled(flat, leaf.shape)) for leaf, flat in scalars]
    found = [path for path in alone if path is not None]
    assert follow_all(forest, scalars) == found
    assert len(found) > 20
