"""The matrix can fail: every kind of wrong answer, made on purpose, is reported with program, mode and question."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import judge as judging
from matrix.judge import Tally, judge, off
from matrix.questions import BY_EXAMPLE, QUESTIONS, Asked, Question, same
from matrix.subjects import APART, CONNECTED, Program, Subject, interaction, moved
from torch import nn

from gradtrace import GradtraceError, Trace
from gradtrace.queries.tables import InfluenceTable

F64 = torch.float64
LAYER = ("forest best by example", "forest greedy by example", "influence best by example")
BY_EXAMPLE = tuple(q for q in BY_EXAMPLE if q.name in LAYER)


def layer(relation: str = APART, connect: bool = False, off_by: float = 1.0) -> Subject:
    """A linear layer; `off_by` makes what is said to be an example alone something else."""

    def make(training: bool, dtype: torch.dtype) -> Program:
        model = nn.Linear(3, 2).to(dtype)
        x = torch.randn(4, 3, dtype=dtype)

        def rows() -> torch.Tensor:
            h = model(x)
            return (h * h.amax(0) if connect else h).tanh().sum(1)

        return Program(model, {}, x, lambda: rows().sum(), lambda b: off_by * rows()[b])

    return Subject("layer", make, lambda training: relation)


def asked(subject: Subject, folder: Path, ask: Callable[[Asked], Any] | None = None) -> Tally:
    questions = [Question("odd", (), ask)] if ask is not None else QUESTIONS[:3]
    return judge(subject, True, F64, folder, questions, BY_EXAMPLE)


def test_right_answers_are_right(tmp_path):
    found = asked(layer(), tmp_path)
    assert found.wrong == []
    assert found.cells == {"answered": 9}
    assert found.compared["examples: as alone, best"] == 3
    assert any("9 cells of 1 programs" in line for line in found.lines())


def test_a_refusal_is_right(tmp_path):
    def refuse(a: Asked) -> None:
        raise GradtraceError(f"no, not of call#{id(a)}")

    found = asked(layer(), tmp_path, refuse)
    assert found.wrong == []
    assert found.cells["refused"] == 2


def _raise(a: Asked) -> None:
    raise ValueError("odd")


def _warn(a: Asked) -> None:
    warnings.warn("odd", stacklevel=1)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (_raise, "ValueError: odd"),
        (_warn, "warns: odd"),
        (lambda a: a.tape.record.examples, "other with examples than without: 'None' became '4'"),
        (lambda a: torch.zeros(2) + bool(a.tape.record.examples) * 1e-7, "0.0 became 1.0"),
    ],
)
def test_a_wrong_row_is_reported(tmp_path, ask, words):
    found = asked(layer(), tmp_path, ask)
    assert found.wrong
    for line in found.wrong:
        assert line.startswith("layer, train float64,")
        assert "odd: " in line
        assert words in line
    assert "cells are wrong" in found.report()


def test_a_public_method_that_breaks_is_reported(tmp_path, monkeypatch):
    def broken(self: Trace, *args: Any, **kwargs: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(Trace, "flow", broken)
    flows = [q for q in QUESTIONS if q.name == "flow best"]
    found = judge(layer(), True, F64, tmp_path, flows, ())
    assert [w for w in found.wrong if "flow best: ValueError: broken" in w] == found.wrong
    assert len(found.wrong) == 2


def test_a_hang_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "PATIENCE", 0.2)
    found = asked(layer(), tmp_path, lambda a: time.sleep(5))
    assert "no end in 0.2 s" in found.wrong[0]


def test_an_example_that_is_not_itself_alone_is_reported(tmp_path):
    found = asked(layer(off_by=1.001), tmp_path)
    assert any("example 0 of weight is off by" in w for w in found.wrong)
    assert any("greedy by example" in w for w in found.wrong)


def test_a_connection_that_nothing_names_is_reported(tmp_path, monkeypatch):
    assert asked(layer(CONNECTED, connect=True), tmp_path).wrong == []  # amax is named
    whole = Trace.influence

    def silent(self: Trace, *args: Any, **kwargs: Any) -> InfluenceTable:
        return replace(whole(self, *args, **kwargs), connected=())

    monkeypatch.setattr(Trace, "influence", silent)
    found = asked(layer(CONNECTED, connect=True), tmp_path)
    assert any("examples are connected, and no call is named" in w for w in found.wrong)


def test_cells_that_are_left_out_are_counted(tmp_path):
    found = judge(layer(), True, F64, tmp_path, [replace(QUESTIONS[0], most=1)], ())
    assert found.left_out == {"more than 1 scalars: tape": 2}
    assert any("left out 2 cells: more than 1 scalars: tape" in line for line in found.lines())


def test_the_oracle_of_connections():
    x = torch.randn(4, 3, dtype=F64)
    apart = (lambda x: x.exp().sum(), lambda x: x.flip(0).cumsum(0).sum(), lambda x: x.mean(0).sum())
    connected = (lambda x: x.mean(0).exp().sum(), lambda x: x.amax(0).sum(), lambda x: x.softmax(0)[0].sum())
    assert {interaction(f, x) for f in apart} == {APART}
    assert {interaction(f, x) for f in connected} == {CONNECTED}
    assert torch.equal(moved(x, (1,), 1)[1], moved(x, (0, 1), 1)[1])


def test_sameness_is_bit_for_bit():
    a = torch.tensor([1.0, float("nan")])
    assert same([a, {"b": float("nan")}], [a.clone(), {"b": float("nan")}])
    assert not same(a, a.double())
    assert not same(torch.tensor([0.1]), torch.tensor([0.1]) + 1e-8)
    assert not same((1,), [1])


def test_off_counts_dead_and_alive_apart():
    dead, alive = torch.tensor([-torch.inf]), torch.tensor([0.0])
    assert off(dead, dead, "best") == 0
    assert off(dead, alive, "best") == float("inf")
    assert off(dead, alive, "greedy") == 1
