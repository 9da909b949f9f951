"""What nobody should ask: every public method answers a wrong argument with one line, never with a traceback."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtrace import Graded, GradtraceError, Power, Slice, Tape, Through, TopK, Trace, record
from gradtrace.errors import NotSaved

Case = Callable[[Tape, Trace, Tensor], Any]


@pytest.fixture(scope="module")
def asked() -> tuple[Tape, Trace, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(2, 3)
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    return tape, tape.trace(loss), loss


def _record(*args: Any, **kwargs: Any) -> Case:
    def enter(tape: Tape, trace: Trace, loss: Tensor) -> None:
        with record(*args, **kwargs):
            pass

    return enter


WRONG: dict[str, Case] = {
    "record, a class for a model": _record(nn.Linear),
    "record, a tensor for a model": _record(torch.ones(2)),
    "record, a number of examples": _record(examples=3),
    "record, scalar examples": _record(examples=torch.tensor(1.0)),
    "record, examples that disagree": _record(examples=[torch.ones(2), torch.ones(3)]),
    "record, text for examples": _record(examples="x"),
    "record, a list of names": _record(names=["w"]),
    "record, names of numbers": _record(names={"w": 1.0}),
    "record, a number for a name": _record(names={1: torch.ones(2)}),
    "grad, no input": lambda tape, trace, loss: tape.grad(loss, []),
    "grad, a number for an input": lambda tape, trace, loss: tape.grad(loss, 3),
    "grad, None": lambda tape, trace, loss: tape.grad(loss, None),
    "grad, an unknown semiring": lambda tape, trace, loss: tape.grad(loss, "0.weight", "least"),
    "grad, a number for a semiring": lambda tape, trace, loss: tape.grad(loss, "0.weight", 3),
    "grad, a class for a semiring": lambda tape, trace, loss: tape.grad(loss, "0.weight", [Power]),
    "grad, the loss as text": lambda tape, trace, loss: tape.grad("loss", "0.weight"),
    "grad, by an unknown component": lambda tape, trace, loss: tape.grad(loss, "0.weight", Through("9")),
    "grad, by a number": lambda tape, trace, loss: tape.grad(loss, "0.weight", Through((3,))),
    "grad, by nothing": lambda tape, trace, loss: tape.grad(loss, "0.weight", Graded(by=())),
    "trace, no loss": lambda tape, trace, loss: tape.trace(None),
    "trace, a vector": lambda tape, trace, loss: tape.trace(torch.ones(2)),
    "find, a number": lambda tape, trace, loss: tape.find(3),
    "value_of, a name": lambda tape, trace, loss: tape.value_of("0.weight"),
    "strength, a number": lambda tape, trace, loss: trace.strength[3],
    "strength, an unknown name": lambda tape, trace, loss: trace.strength["weight"],
    "forest, a list of kinds": lambda tape, trace, loss: trace.forest(["best"]),
    "forest, an unknown kind": lambda tape, trace, loss: trace.forest("worst"),
    "compute, no kind": lambda tape, trace, loss: trace.compute(kinds=[]),
    "compute, an unknown kind": lambda tape, trace, loss: trace.compute(kinds="worst"),
    "path, an index beyond": lambda tape, trace, loss: trace.path("0.weight", (4, 0)),
    "path, too few indices": lambda tape, trace, loss: trace.path("0.weight", 0),
    "path, text for an index": lambda tape, trace, loss: trace.path("0.weight", "0"),
    "path, a fraction": lambda tape, trace, loss: trace.path("0.weight", (0.5, 0)),
    "path, no index": lambda tape, trace, loss: trace.path("0.weight", None),
    "path, an example beyond": lambda tape, trace, loss: trace.path("0.weight", (0, 0), example=2),
    "path, a negative example": lambda tape, trace, loss: trace.path("0.weight", (0, 0), example=-1),
    "path, an example by name": lambda tape, trace, loss: trace.path("0.weight", (0, 0), example="first"),
    "path, True for an example": lambda tape, trace, loss: trace.path("0.weight", (0, 0), example=True),
    "path, an unknown kind": lambda tape, trace, loss: trace.path("0.weight", (0, 0), kind=None),
    "strongest, a negative k": lambda tape, trace, loss: trace.strongest(-1),
    "strongest, text for k": lambda tape, trace, loss: trace.strongest("ten"),
    "strongest, of nothing": lambda tape, trace, loss: trace.strongest(1, of=[]),
    "strongest, of a number": lambda tape, trace, loss: trace.strongest(1, of=3),
    "paths, no k": lambda tape, trace, loss: trace.paths("0.weight", k=0),
    "paths, half a path": lambda tape, trace, loss: trace.paths("0.weight", k=1.5),
    "paths, of a number": lambda tape, trace, loss: trace.paths(3),
    "paths, an index of a group": lambda tape, trace, loss: trace.paths(["0.weight"], (0, 0)),
    "paths, an index of a glob": lambda tape, trace, loss: trace.paths("0.*", (0, 0)),
    "extremes, text": lambda tape, trace, loss: trace.extremes("0.weight", "a"),
    "bound, p below one": lambda tape, trace, loss: trace.bound("0.weight", (0, 0), p=0.5),
    "bound, text for p": lambda tape, trace, loss: trace.bound("0.weight", (0, 0), p="8"),
    "bound, text for a path": lambda tape, trace, loss: trace.bound("0.weight", (0, 0), path="best"),
    "influence, of no component": lambda tape, trace, loss: trace.influence([]),
    "influence, of a number": lambda tape, trace, loss: trace.influence(3),
    "influence, of None": lambda tape, trace, loss: trace.influence([None]),
    "influence, an unknown component": lambda tape, trace, loss: trace.influence(["3"]),
    "influence, an unknown call": lambda tape, trace, loss: trace.influence(["0:2"]),
    "influence, an unknown operator": lambda tape, trace, loss: trace.influence(["aten::conv"]),
    "influence, a module": lambda tape, trace, loss: trace.influence([nn.Linear(1, 1)]),
    "influence, an unknown kind": lambda tape, trace, loss: trace.influence(kind="worst"),
    "influence, of an unknown parameter": lambda tape, trace, loss: trace.influence(of="3.*"),
    "influence, of bytes": lambda tape, trace, loss: trace.influence(of=[b"0.weight"]),
    "flow, an unknown kind": lambda tape, trace, loss: trace.flow(kind="worst"),
    "flow, of nothing": lambda tape, trace, loss: trace.flow(of=()),
    "report, to a folder": lambda tape, trace, loss: trace.report("."),
    "report, to no folder": lambda tape, trace, loss: trace.report("there/is/none.html"),
    "report, to a number": lambda tape, trace, loss: trace.report(3),
    "report, an unknown field": lambda tape, trace, loss: trace.report("page.html", colour="red"),
    "report, an unknown kind": lambda tape, trace, loss: trace.report("page.html", kinds=["worst"]),
    "report, no component": lambda tape, trace, loss: trace.report("page.html", components=[]),
    "report, negative paths": lambda tape, trace, loss: trace.report("page.html", paths=-1),
    "report, a number of tokens": lambda tape, trace, loss: trace.report("page.html", tokens=[3, 4]),
    "report, a list of groups": lambda tape, trace, loss: trace.report("page.html", groups=["0.*"]),
    "report, an unknown semiring": lambda tape, trace, loss: trace.report("page.html", semirings=["least"]),
    "to_dataframe, of a number": lambda tape, trace, loss: trace.to_dataframe(3),
    "to_dot, an unknown kind": lambda tape, trace, loss: trace.to_dot(kind="worst"),
    "TopK, no path": lambda tape, trace, loss: TopK(0),
    "TopK, text": lambda tape, trace, loss: TopK("3"),  # type: ignore[arg-type]
    "Power, text": lambda tape, trace, loss: Power("8"),  # type: ignore[arg-type]
    "Slice, text for a size": lambda tape, trace, loss: Slice("0", 1, "4"),  # type: ignore[arg-type]
    "Slice, a number for a module": lambda tape, trace, loss: Slice(0, 1, 4),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_clear_line(asked, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradtraceError) as error:
        WRONG[name](*asked)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_other_kinds_are_numbers(asked):
    _, trace, _ = asked
    path = trace.path("0.weight", (torch.tensor(1), 0), example=torch.tensor(1))
    assert path == trace.path("0.weight", [1, 0], example=1)
    assert trace.path("0.weight", (-1, 0)) == trace.path("0.weight", (3, 0))


@pytest.mark.parametrize("save", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_tape_and_a_trace_say_what_can_be_saved_instead(asked, save, tmp_path):
    for thing in asked[:2]:
        with pytest.raises(NotSaved, match=r"trace\.save\(path\) writes"):
            save(thing)
        with pytest.raises(NotSaved):
            torch.save(thing, tmp_path / "file.pt")
    for thing in (asked[1].influence(), asked[1].flow(), asked[1].strongest(1)[0]):
        assert pickle.loads(pickle.dumps(thing)) == thing
