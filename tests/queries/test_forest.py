"""The forest of winners: backpointers, ties, best against greedy."""

from __future__ import annotations

import math

import pytest
import torch
from checks import F64, leaf, recorded
from torch import Tensor

from gradtrace import Max, Trace, component, record
from gradtrace.errors import UnknownName
from gradtrace.kernels import native
from gradtrace.queries.forest import NONE, plant


def _trace(program, **leaves: Tensor) -> Trace:
    tape, loss = recorded(program, {n: t.clone().requires_grad_() for n, t in leaves.items()})
    return tape.trace(loss)


def _ways(trace: Trace, key: str, index: int | tuple[int, ...] = (), kind: str = "best") -> list[str]:
    """Give the component blocks that a path crosses."""
    return list(trace.path(key, index, kind=kind).components)


def _through(name: str, x: Tensor, factor: float) -> Tensor:
    with component(name):
        return x * factor


# ---------------------------------------------------------------- ties


def test_of_equally_strong_consumers_the_earliest_recorded_wins():
    trace = _trace(lambda x: _through("first", x, 2.0) - _through("second", x, 2.0), x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["first"]
    trace = _trace(lambda x: -(_through("first", x, -2.0) + _through("second", x, 2.0)), x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["first"]


def test_the_earliest_consumer_wins_whatever_its_argument_position():
    def program(x: Tensor) -> Tensor:
        first = torch.add(torch.zeros((), **F64), x)  # x is argument 1 of the first consumer
        return first + torch.add(x, torch.zeros((), **F64))

    path = _trace(program, x=torch.ones((), **F64)).path("x", ())
    assert [s.argument for s in path.steps][:1] == [1]


def test_of_equally_strong_arguments_of_one_call_the_first_wins():
    path = _trace(lambda x: x * x, x=torch.tensor(3.0, **F64)).path("x", ())
    assert [(s.operator, s.argument) for s in path.steps] == [("aten.mul.Tensor", 0)]


def test_of_equally_strong_results_of_one_call_the_smallest_flat_index_wins():
    weights = torch.tensor([[1.0, 2.0], [2.0, 1.0], [-2.0, 2.0]], **F64)
    trace = _trace(lambda x: (x * weights).sum(), x=torch.ones(2, **F64))
    assert [trace.path("x", i).steps[0].index for i in range(2)] == [(1, 0), (0, 1)]
    trace = _trace(lambda x: (weights @ x).sum(), x=torch.ones(2, **F64))
    assert [trace.path("x", i).steps[0].index for i in range(2)] == [(1,), (0,)]


@pytest.mark.parametrize("shrink", [1.0, 2.0**-40])
def test_ties_stay_ties_however_small_their_weights(shrink):
    """2^-40, thirty times: below the range of floats, where a logarithm would round."""

    def program(x: Tensor) -> Tensor:
        a, b = _through("first", x, 3.0), _through("second", x, 3.0)
        for _ in range(30):
            a = a * shrink
        for _ in range(30):
            b = b * shrink
        return a + b

    trace = _trace(program, x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["first"]
    assert float(trace.strength["x"]) == math.log2(3) + 30 * math.log2(shrink)


def test_a_difference_in_the_last_digit_is_no_tie_however_small_the_weights():
    def program(x: Tensor) -> Tensor:
        a, b = _through("first", x, 1.0), _through("second", x, 1.0 + 2**-52)
        for _ in range(30):
            a, b = a * 2.0**-60, b * 2.0**-60
        return a + b

    assert _ways(_trace(program, x=torch.ones((), **F64)), "x") == ["second"]


# ---------------------------------------------------------------- best and greedy


def _cancelling(x: Tensor) -> Tensor:
    """x reaches the loss by 10 and -9.5, which meet in one vertex, and by 2 through another."""
    inner = _through("inner", x, 1.0)
    strong = _through("strong", inner, 10.0) + _through("counter", inner, -9.5)
    return strong + _through("outer", x, 2.0)


def test_best_and_greedy_differ_where_paths_cancel():
    trace = _trace(_cancelling, x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["inner", "strong"]
    assert _ways(trace, "x", kind="greedy") == ["outer"]  # |1 · 0.5| < |2 · 1|
    assert 2 ** trace.path("x", ()).log2_weight == pytest.approx(10.0)
    assert 2 ** trace.path("x", (), kind="greedy").log2_weight == pytest.approx(2.0)
    assert trace.forest("greedy").log2[trace.tape.leaves["x"].id].item() == pytest.approx(math.log2(2.5))


def test_greedy_steps_by_the_gradient_not_by_the_path_it_takes():
    """Greedy goes through a vertex whose gradient is a sum of many weak paths; no path through it is strong."""

    def program(x: Tensor) -> Tensor:
        hub = _through("hub", x, 1.0)
        many = sum((_through("many", hub, 1.0) for _ in range(5)), start=torch.zeros((), **F64))
        return many + _through("single", x, 3.0)

    trace = _trace(program, x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["single"]
    assert _ways(trace, "x", kind="greedy")[0] == "hub"
    assert trace.path("x", (), kind="greedy").log2_weight == pytest.approx(0.0)


def test_a_gradient_of_exactly_zero_has_a_best_path_and_no_greedy_one():
    trace = _trace(lambda x: _through("a", x, 2.0) + _through("b", x, -2.0), x=torch.ones((), **F64))
    assert _ways(trace, "x") == ["a"]
    table = trace.influence(["a"], kind="greedy").rows[0]
    # each edge from x is strong, |w g| = 2, though x's own gradient is 0
    assert _ways(trace, "x", kind="greedy") == ["a"]
    assert table.dead_share == 0


# ---------------------------------------------------------------- winners


def test_winners_of_scalars_without_a_path_are_none_and_their_strength_is_minus_infinity():
    trace = _trace(
        lambda x, y: (x * torch.tensor([1.0, 0.0], **F64)).sum(), x=torch.ones(2, **F64), y=torch.ones(3, **F64)
    )
    forest = trace.forest()
    winners = forest.winners[trace.tape.leaves["x"].id]
    assert (winners == NONE).tolist() == [[False, True]]
    assert forest.log2[trace.tape.leaves["x"].id].tolist() == [[0.0, -math.inf]]
    assert (forest.winners[trace.tape.leaves["y"].id] == NONE).all()


def test_backpointers_lead_from_every_scalar_to_the_loss():
    leaves = {"x": leaf(3, 4), "w": leaf(4, 2)}
    tape, loss = recorded(lambda x, w: torch.tanh(x @ w).softmax(1).square().sum(), leaves)
    forest = tape.trace(loss).forest()
    for value_id, winners in forest.winners.items():
        for pointer in winners.flatten().tolist():
            if pointer == NONE:
                assert value_id == forest.loss.id
                continue
            call, argument, output, flat = forest.step(pointer)
            made = call.outputs[output]
            assert call.inputs[argument].value.id == value_id
            assert made.id > value_id
            assert 0 <= flat < made.numel
            assert made.id in forest.winners


def test_backpointers_tell_the_results_of_one_call_apart():
    leaves = {"x": leaf(3, 4)}
    w = torch.tensor([[1.0], [2.0], [3.0]], **F64)
    tape, loss = recorded(
        lambda x: sum((p * f).sum() for p, f in zip(x.unbind(1), w.t().expand(4, 3), strict=True)), leaves
    )
    trace = tape.trace(loss)
    for column in range(4):
        first = trace.path("x", (1, column)).steps[0]
        assert (first.operator, first.index) == ("aten.unbind.int", (1,))
        assert trace.path("x", (1, column)).log2_weight == pytest.approx(1.0)
    flats = [trace.forest().step(int(p))[2] for p in trace.forest().winners[tape.leaves["x"].id][0, 1]]
    assert flats == [0, 1, 2, 3]


def test_strength_is_the_plain_maximum_where_floats_hold_it():
    leaves = {"x": leaf(3, 4), "w": leaf(4, 2)}
    tape, loss = recorded(lambda x, w: torch.tanh(x @ w).softmax(1).square().sum(), leaves)
    for name in leaves:
        best = tape.grad(loss, name, Max)[0]
        torch.testing.assert_close(torch.exp2(tape.trace(loss).strength[name]), best, rtol=1e-14, atol=0)


def test_an_unknown_kind_lists_the_known_ones():
    tape, loss = recorded(lambda x: x.sum(), {"x": leaf(2)})
    with pytest.raises(UnknownName, match=r"'strong'.*greedy, best"):
        plant(tape.record, tape.value_of(loss), "strong")


# ---------------------------------------------------------------- compiled kernels


@pytest.mark.parametrize("seed", range(20))
def test_winners_of_a_weight_that_is_used_on_both_sides_are_those_of_the_reference(seed):
    """Two products put into one are merged with a third of another kind: choices are laid out anew for that."""
    w, x = (torch.randint(-2, 4, (2, 2), generator=torch.Generator().manual_seed(seed + i)).double() for i in range(2))
    leaves = {"w": w.requires_grad_(), "x": x.requires_grad_()}
    with record(names=leaves) as tape:
        loss = ((w @ w) @ w + x @ w).sum()
    ours = tape.trace(loss).forest()
    with native.using("reference"):
        reference = tape.trace(loss).forest()
    for value in tape.leaves.values():
        assert torch.equal(ours.winners[value.id], reference.winners[value.id])


def test_windows_of_several_examples_are_merged_with_what_arrives_later():
    w = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2).requires_grad_()
    x = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)
    with record(names={"w": w}, examples=x) as tape:
        half = w * 2
        loss = (x * half[0] + x.flip(1) * half[1] + x @ half).sum()
    ours = tape.trace(loss).forest(per_example=True)
    with native.using("reference"):
        reference = tape.trace(loss).forest(per_example=True)
    value = tape.leaves["w"].id
    assert torch.equal(ours.winners[value], reference.winners[value])
