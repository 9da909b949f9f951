"""The reverse pass: what it computes for every value, in which order, and what it keeps while it runs."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from checks import F64, assert_sum_is_autograd, leaf, recorded
from torch import Tensor
from torch.nn import functional

from gradtrace import AbsSum, Max, Sum, record
from gradtrace.backward import elements as engine
from gradtrace.backward.elements import reverse
from gradtrace.backward.several import gradings, quick
from gradtrace.backward.walk import Edges, offsets
from gradtrace.errors import MissingRule
from gradtrace.jacobians.rules import TABLE, dense
from gradtrace.recording.record import Value
from gradtrace.semirings import named
from gradtrace.semirings.base import Carrier, Count, Element, Linear


def two_ways(x: Tensor, y: Tensor) -> Tensor:
    product = x * y
    x.sin()  # leads nowhere
    return (product + x * x).sum()


LEAVES = {"x": torch.tensor([2.0, -3.0], **F64), "y": torch.tensor([5.0, 7.0], **F64)}


@pytest.mark.parametrize(
    ("semiring", "x", "y"),
    [
        (Sum, [5 + 4, 7 - 6], [2, -3]),
        (AbsSum, [5 + 4, 7 + 6], [2, 3]),
        (Max, [5, 7], [2, 3]),
        (Count, [3, 3], [1, 1]),
    ],
)
def test_every_merge_is_the_semirings_plus(semiring, x, y):
    leaves = {n: t.clone().requires_grad_() for n, t in LEAVES.items()}
    tape, loss = recorded(two_ways, leaves)
    assert [g.tolist() for g in tape.grad(loss, ["x", "y"], semiring)] == [x, y]


def test_values_come_once_each_consumers_first_and_only_those_that_reach_the_loss():
    leaves = {n: t.clone().requires_grad_() for n, t in LEAVES.items()}
    tape, loss = recorded(two_ways, leaves)
    kept: list[Value] = []
    reverse(tape.record, tape.value_of(loss), Sum.carrier, lambda value, g: kept.append(value))
    assert len({v.id for v in kept}) == len(kept) == 6  # two leaves, two products, their sum, the loss
    for value in kept:
        for given in (i.value for i in value.call.inputs if value.call and i.value) if value.call else ():
            assert kept.index(given) > kept.index(value)


def test_a_leaf_comes_as_soon_as_nothing_more_reaches_it():
    """A model's gradients need not all be there at once: who keeps them may make them smaller one by one."""
    leaves = {name: leaf(2, 2, seed=i) for i, name in enumerate(("x", "first", "last"))}
    tape, loss = recorded(lambda x, first, last: ((x @ first).tanh() @ last + x).sum(), leaves)
    kept: list[Value] = []
    reverse(tape.record, tape.value_of(loss), Sum.carrier, lambda value, g: kept.append(value))
    names = [v.name if v.call is None else v.call.name.split(".")[1] for v in kept]
    assert names.index("last") < names.index("tanh") < names.index("first")
    assert {"x", "first"} == set(names[-2:])  # x is read by the first call and by the last
    assert len({v.id for v in kept}) == len(kept)


def test_broadcasting_and_expansion_merge_by_plus_too():
    leaves = {"x": torch.tensor([[2.0], [3.0]], **F64, requires_grad=True)}
    w = torch.tensor([[1.0, -4.0, 2.0], [0.5, 0.0, -0.25]], **F64)
    tape, loss = recorded(lambda x: (x * w).sum() + (x.expand(2, 3) * w).sum(), leaves)
    assert tape.grad(loss, "x", Max)[0].tolist() == [[4.0], [0.5]]
    assert tape.grad(loss, "x", Count)[0].tolist() == [[6.0], [4.0]]


def test_cotangents_are_freed_when_they_have_been_passed_on():
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def keep(value: Value, g: Element) -> None:
        alive.append(sum(ref() is not None for ref in kept))
        kept.append(weakref.ref(g[0]))

    def chain(x: Tensor) -> Tensor:
        for _ in range(40):
            x = x.sin()
        return x.sum()

    tape, loss = recorded(chain, {"x": leaf(3)})
    reverse(tape.record, tape.value_of(loss), Sum.carrier, keep)
    assert len(alive) == 42
    assert max(alive) <= 3


@pytest.mark.parametrize("semiring", [Sum, AbsSum, Max, Count, "entropy", "power:8", "power:3", "topk:3", "signedmax"])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("again", [0, 1])
def test_what_a_lookup_carries_back_goes_into_the_rows_it_read(semiring, compiled, again, monkeypatch):
    """Merged in place, or, where something has to be said of what enters a value, laid out in full: the same."""

    def tied(table, w, bias):
        x = functional.embedding(torch.tensor([0, 2, 0]), table)
        for _ in range(again):
            x = x + functional.embedding(torch.tensor([3, 2, 2]), table)
        return ((x @ w).tanh() @ table.t() + bias).exp().sum()

    tape, loss = recorded(tied, {"table": leaf(5, 4), "w": leaf(4, 4, seed=1), "bias": leaf(5, seed=2)})
    record, value, into = tape.record, tape.value_of(loss), engine.gather_into
    calls = []
    monkeypatch.setattr(engine, "gather_into", lambda *given: calls.append(given) or into(*given))
    (asked,) = gradings(record, value, [named(semiring)])
    if compiled:
        (asked,) = quick(record, value, [asked])
    found: list[list[Tensor]] = [[], []]
    for kept, enter in zip(found, (None, lambda g, value, consumer: g), strict=True):

        def keep(value: Value, g: Element, kept: list[Tensor] = kept) -> None:
            kept.append(asked.carrier.plain(g))

        wanted = {tape.find(name).id for name in tape.leaves}
        reverse(record, value, asked.carrier, keep, enter=enter, wanted=wanted)
    assert asked.carrier.points or len(calls) == 1 + again  # planes of ids are shared
    assert len(found[0]) == len(found[1]) == 3
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*found, strict=True))


def test_edges_are_numbered_by_call_and_argument():
    tape, _ = recorded(lambda x, y: torch.cat([x, y, x * y]).sum(), {"x": leaf(2), "y": leaf(2)})
    assert [c.base for c in tape.calls] == ["mul", "cat", "sum"]
    assert Edges.of(tape.record).first == [0, 2, 5]


def test_results_of_one_call_lie_one_after_another():
    tape, _ = recorded(lambda x: x.topk(2, 1).values.sum(), {"x": leaf(3, 4)})
    assert offsets(tape.calls[0])[0] == 0
    tape, _ = recorded(lambda x: sum(p.sum() for p in x.split([1, 3], 1)), {"x": leaf(3, 4)})
    assert offsets(tape.calls[0]) == [0, 3]


def test_no_gradient_for_results_that_the_loss_leaves_out():
    leaves = {"x": leaf(3, 4)}
    tape, loss = recorded(lambda x: x.split([1, 3], 1)[1].square().sum(), leaves)
    assert tape.grad(loss, "x")[0][:, 0].tolist() == [0, 0, 0]
    assert tape.trace(loss).strength["x"][:, 0].tolist() == [-torch.inf] * 3


def test_a_jacobian_too_large_for_the_fallback_is_refused_with_its_size(monkeypatch):
    monkeypatch.delitem(TABLE, "cumsum")
    leaves = {"x": leaf(4, 4)}
    tape, loss = recorded(lambda x: x.cumsum(1).square().sum(), leaves)
    assert_sum_is_autograd(tape, loss, leaves)
    monkeypatch.setattr(dense, "LIMIT", 255)
    with pytest.raises(MissingRule, match=r"aten\.cumsum\.default#0 \(.*test_walk\.py:\d+\).* 256 entries.*255"):
        tape.grad(loss, "x")


def test_an_operator_without_a_rule_is_named_with_its_module_and_where_a_rule_goes():
    leaves = {"x": leaf(3, low=1.0)}
    tape, loss = recorded(lambda x: torch._sample_dirichlet(x).sum(), leaves)
    with pytest.raises(MissingRule, match=r"aten\._sample_dirichlet\.default#0 \(.*gradtrace/rules"):
        tape.trace(loss)


@dataclasses.dataclass(frozen=True)
class Parity(Linear):
    """Counts paths modulo 2; no kernel knows of it."""

    def weigh(self, weight: Tensor, g: Element) -> Element:
        return ((weight != 0) * g[0],)

    def reduce(self, g: Element) -> Element:
        return (g[0].sum(-1) % 2,)

    def plus(self, a: Element, b: Element) -> Element:
        return ((a[0] + b[0]) % 2,)

    contract = Carrier.contract


def test_any_carrier_will_do():
    found: dict[str | None, list[float]] = {}
    leaves = {"x": leaf(2, 3), "w": leaf(3, 3)}
    tape, loss = recorded(lambda x, w: (x @ w).sum() + x.sum(), leaves)
    carrier = Parity(lambda w: w)
    reverse(tape.record, tape.value_of(loss), carrier, lambda v, g: found.__setitem__(v.name, g[0].flatten().tolist()))
    assert found["x"] == [0.0] * 6  # three ways through the product, one past it
    assert found["w"] == [0.0] * 9  # one way for each of two rows


def test_a_float32_rnn_over_2000_steps_against_a_computation_in_the_log_domain():
    """strength = max over index sequences of Σ log2 |W_ij (1 - h²)|, by a loop over time in float64."""
    steps, hidden = 2000, 4
    torch.manual_seed(0)
    rnn = torch.nn.RNN(3, hidden)
    x = torch.randn(steps, 1, 3)
    x.requires_grad_()
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(1.3)
    with record(rnn, names={"x": x}) as tape:
        states, last = rnn(x)
        loss = last[0, 0, 1]
    strength = tape.trace(loss).strength

    h = torch.cat([torch.zeros(1, hidden), states[:, 0].detach()]).double()
    w_hh, w_ih = rnn.weight_hh_l0.detach().double(), rnn.weight_ih_l0.detach().double()
    g = torch.full((hidden,), -torch.inf, **F64)
    g[1] = 0.0
    best_hh = torch.full_like(w_hh, -torch.inf)
    for t in range(steps, 0, -1):
        a = g + (1 - h[t] ** 2).log2()  # strength at the pre-activation of step t
        best_hh = torch.maximum(best_hh, a[:, None] + h[t - 1].abs().log2()[None])
        at_x = (a[:, None] + w_ih.abs().log2()).amax(0)
        g = (a[:, None] + w_hh.abs().log2()).amax(0)
    assert float(at_x.max()) < -1100  # below the range of float64
    assert strength["x"].isfinite().all()
    torch.testing.assert_close(strength["x"][0, 0], at_x, rtol=1e-6, atol=0)
    torch.testing.assert_close(strength["weight_hh_l0"], best_hh, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exponent", [200, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_far_below_the_range_of_floats(exponent, dtype):
    x = torch.tensor([1.0, 3.0], dtype=dtype, requires_grad=True)

    def shrink(x: Tensor) -> Tensor:
        h = x * x
        for _ in range(exponent // 20):
            h = h * 1e-20
            h = h + 1.0  # keeps the forward pass away from zero
        return h.sum()

    tape, loss = recorded(shrink, {"x": x})
    expected = torch.tensor([1.0, 3.0], **F64).log2() - exponent * torch.tensor(10.0, **F64).log2()
    torch.testing.assert_close(
        tape.trace(loss).strength["x"], expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0
    )
    assert tape.trace(loss).path("x", 1).log2_weight == pytest.approx(float(expected[1]), rel=1e-6)
