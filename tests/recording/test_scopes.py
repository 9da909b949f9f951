"""Module calls, component blocks and source lines, as calls and paths carry them."""

from __future__ import annotations

import inspect

import pytest
import torch
from checks import F64, leaf
from torch import Tensor, nn

from gradtrace import Tape, component, record


def scopes_of(tape: Tape, operator: str) -> list[tuple[str, ...]]:
    return [tuple(map(str, call.scopes)) for call in tape.calls if call.base == operator]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x)).exp()


def test_a_module_called_again_is_another_instance():
    model = Twice().double()
    with record(model) as tape:
        model(torch.ones(1, 2, **F64)).sum()
    assert scopes_of(tape, "tanh") == [("inner", "inner.1"), ("inner:2", "inner.1:2")]
    assert scopes_of(tape, "exp") == [()]


def test_instances_count_anew_in_every_recording():
    model = Twice().double()
    for _ in range(2):
        with record(model) as tape:
            model(torch.ones(1, 2, **F64)).sum()
        assert scopes_of(tape, "tanh")[0] == ("inner", "inner.1")


def test_one_module_under_two_names_goes_by_the_first():
    shared = nn.Linear(2, 2).double()
    model = nn.ModuleDict({"a": shared, "b": shared})
    with record(model) as tape:
        model["b"](model["a"](torch.ones(1, 2, **F64))).sum()
    assert scopes_of(tape, "addmm") == [("a",), ("a:2",)]


def test_modules_that_the_model_does_not_know_go_by_their_class():
    with record(names={"x": leaf(2)}) as tape:
        nn.Tanh()(leaf(2))
    assert scopes_of(tape, "tanh") == [("Tanh",)]


def test_component_blocks_nest_among_modules_and_count_their_instances():
    model, x = nn.Sequential(nn.Tanh()), leaf(2)
    with record(model) as tape:
        for _ in range(2):
            with component("outer"):
                x.exp()
                with component("inner"):
                    model(x)
    assert scopes_of(tape, "exp") == [("outer",), ("outer:2",)]
    assert scopes_of(tape, "tanh") == [("outer", "inner", "0"), ("outer:2", "inner:2", "0:2")]


def test_a_block_around_the_recording_counts_too():
    with component("outside"), record() as tape:
        leaf(2).exp()
    assert scopes_of(tape, "exp") == [("outside",)]


def test_a_block_without_a_recording_does_nothing_even_when_it_raises():
    with pytest.raises(ValueError, match="inside"), component("c"):
        raise ValueError("inside")
    with record() as tape:
        leaf(2).exp()
    assert scopes_of(tape, "exp") == [()]


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with component("block"):
            raise RuntimeError("caught by the caller")


class Swallows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fails = Fails()

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.fails(x)
        except RuntimeError:
            return x.exp()


def test_a_module_that_swallows_an_exception_does_not_shift_the_scopes():
    model = nn.Sequential(Swallows(), nn.Tanh())
    with record(model) as tape:
        model(leaf(2)).sin()
    assert scopes_of(tape, "exp") == [("0",)]
    assert scopes_of(tape, "tanh") == [("1",)]
    assert scopes_of(tape, "sin") == [()]


def test_a_hook_that_raises_does_not_shift_the_scopes():
    model = nn.Sequential(nn.Tanh(), nn.Tanh())
    model[0].register_forward_hook(_raise)
    with record(model) as tape:
        with pytest.raises(RuntimeError, match="hook"):
            model(leaf(2))
        leaf(2).exp()
    assert scopes_of(tape, "exp") == [()]


def test_a_pre_hook_that_raises_does_not_shift_the_scopes():
    model = nn.Sequential(nn.Tanh())
    model[0].register_forward_pre_hook(lambda module, inputs: _raise())
    with record(model) as tape:
        with pytest.raises(RuntimeError, match="hook"):
            model(leaf(2))
        leaf(2).exp()
    assert scopes_of(tape, "exp") == [()]


def _raise(*_: object) -> None:
    raise RuntimeError("from a hook")


def test_source_lines_are_the_users_not_torchs():
    with record() as tape:
        leaf(2).exp()
        here = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        nn.functional.cross_entropy(leaf(3, 2), torch.zeros(3, dtype=torch.long))
    lines = {call.base: call.source for call in tape.calls}
    assert lines["exp"] == f"{__file__}:{here}"
    assert lines["_log_softmax"] == f"{__file__}:{here + 2}"


def test_a_call_says_where_it_is():
    model = Twice().double()
    with record(model) as tape:
        model(torch.ones(1, 2, **F64))
    call = [c for c in tape.calls if c.base == "tanh"][1]
    assert call.module == "inner.1:2"
    assert call.where.startswith(f"aten.tanh.default#{call.index} in inner.1:2 ({__file__}:")
