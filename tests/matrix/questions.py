"""Every question that gradtrace answers in public, one a row. A new public method needs a row here, or a test fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor, nn

from gradtrace import (
    AbsSum,
    Count,
    Entropy,
    Graded,
    GradtraceError,
    Max,
    Power,
    SignedMax,
    Sum,
    Tape,
    Through,
    TopK,
    Trace,
    load,
    scalar,
)
from gradtrace.backward.walk import EDGE_BITS
from gradtrace.queries.forest import KINDS, Forest
from gradtrace.queries.summaries import answers
from gradtrace.recording.components import heads
from gradtrace.recording.record import Record, Value

CALL_NUMBER = re.compile(r"#\d+")  # in the name of a call
SEMIRINGS = (Sum, AbsSum, Max, Count, Power(2), Power(8), Power(3), Entropy, TopK(2), SignedMax)
SPLIT = (Graded(2), Graded(1, semiring=Max), Through())
NAMED = ("sum", "count", "power:4", "graded:1:abssum")


@dataclass(eq=False)
class Asked:
    """A recorded program, to which the questions are put; what several of them need is made once."""

    model: nn.Module | None
    tape: Tape
    loss: Tensor
    folder: File

    @cached_property
    def _traced(self) -> Trace | GradtraceError:
        try:
            return self.tape.trace(self.loss)
        except GradtraceError as error:
            return error

    @property
    def trace(self) -> Trace:
        """The trace; whatever needs it is refused in the same words where it is."""
        if isinstance(self._traced, GradtraceError):
            raise self._traced
        return self._traced

    @property
    def leaves(self) -> list[str]:
        return list(self.tape.leaves)

    @cached_property
    def scalar(self) -> tuple[str, tuple[int, ...]]:
        """The strongest scalar of the first leaf that has a path; else the first of the first leaf."""
        for name in self.leaves:
            strength = self.trace.strength[name]
            if strength.numel() and float(strength.max()) > -torch.inf:
                where = torch.unravel_index(strength.argmax(), strength.shape)
                return name, tuple(int(i) for i in where)
        return self.leaves[0], (0,) * len(self.tape.leaves[self.leaves[0]].shape)


@dataclass(frozen=True)
class Question:
    """One row of the matrix.

    Attributes:
        covers: the public names that it asks, as "Trace.path".
        of_batch: whether the answer is about the batch, and so may not depend on what the examples are.
        most: scalars on the tape above which it is left out (and counted).
    """

    name: str
    covers: tuple[str, ...]
    ask: Callable[[Asked], Any]
    of_batch: bool = True
    most: float = float("inf")


def _grad(semiring: Any, name: str | None = None, most: float = float("inf"), **options: bool) -> Question:
    def ask(a: Asked) -> Any:
        return a.tape.grad(a.loss, a.leaves, semiring, **{"allow_unused": True, **options})

    said = name or getattr(semiring, "name", None) or str(semiring)
    return Question(f"grad {said}", ("Tape.grad",), ask, most=most)


def _forest(kind: str, apart: bool) -> Callable[[Asked], Any]:
    def ask(a: Asked) -> Any:
        return planes(a.trace.forest(kind, per_example=apart), a.leaves)

    return ask


def planes(forest: Forest, leaves: list[str]) -> Any:
    """Read backpointers and strengths of all leaves off a forest."""
    ids, number = [forest.record.leaves[name].id for name in leaves], numbers(forest.record, forest.loss)
    return [(_renumbered(forest, forest.winners[i], number), forest.log2[i]) for i in ids]


def numbers(record: Record, root: Value) -> dict[int, int]:
    """Count the calls on paths to the loss: a tape with examples has others between, which carry labels only."""
    reached, found = {root.id}, []
    for call in reversed(record.calls):
        if any(v is not None and v.differentiable and v.id in reached for v in call.outputs):
            reached.update(i.value.id for i in call.inputs if i.value is not None and i.value.differentiable)
            found.append(call.index)
    return {index: n for n, index in enumerate(reversed(found))}


def _renumbered(forest: Forest, winners: Tensor, number: dict[int, int]) -> Tensor:
    """Write backpointers with the calls' numbers of `numbers`."""
    out = winners.clone()
    for edge in (winners >> EDGE_BITS).unique().tolist():
        if edge >= 0:
            call, argument, *_ = forest.step(edge << EDGE_BITS)
            here = winners >> EDGE_BITS == edge
            out[here] += ((number[call.index] << 8) + argument - edge) << EDGE_BITS
    return out


def _influence(kind: str, apart: bool | None) -> Callable[[Asked], Any]:
    return lambda a: _told(a.trace.influence(per_example=apart, kind=kind))


def _told(table: Any) -> Any:
    return table, str(table), table.to_dataframe().to_dict("list")


def _heads(a: Asked) -> Any:
    found = heads(a.model) if a.model is not None else []
    return a.trace.influence(found or None, per_example=False)


def _path(kind: str, example: int | None = None) -> Callable[[Asked], Any]:
    def ask(a: Asked) -> Any:
        path = a.trace.path(*a.scalar, kind=kind, example=example)
        return path, str(path), path.weight, path.components

    return ask


def _flow(kind: str, weighted: bool) -> Callable[[Asked], Any]:
    def ask(a: Asked) -> Any:
        flow, number = a.trace.flow(kind=kind, weighted=weighted), numbers(a.tape.record, a.trace.root)
        calls = [replace(row, call=number[row.call]) for row in flow.calls]
        edges = [(number.get(e.source, e.source), number[e.target], e.paths) for e in flow.edges]  # type: ignore[arg-type]
        return calls, edges, flow.links, flow.total, flow.unit, str(flow), len(flow.to_dataframe())

    return ask


def _bound(a: Asked) -> Any:
    bound = a.trace.bound(*a.scalar)
    assert bound.holds, f"the bound does not hold: {bound}"
    return bound, str(bound), bound.gap, bound.best


def _report(a: Asked) -> Any:
    page = a.trace.report(a.folder / "report.html", semirings=("entropy", "power:8"))
    return len(page.read_text("utf-8")) > 1000


def _certificate(a: Asked) -> Any:
    trace = a.tape.trace(a.loss, check=True)
    return trace.certificate, repr(trace)


def _tape(a: Asked) -> Any:
    root, leaves = a.tape.value_of(a.loss), [str(v) for v in a.tape.leaves.values()]
    number = numbers(a.tape.record, root)
    assert a.tape.refused is None
    assert any(t is a.loss for t in a.tape.losses())
    return [(c.name, c.module, c.source) for c in a.tape.calls if c.index in number], leaves, root.shape


def _jacobian(a: Asked) -> Any:
    for call in a.tape.record.before(a.tape.value_of(a.loss)):
        if call.inputs and call.outputs[0] is not None and (value := call.inputs[0].value) is not None:
            shape = call.outputs[0].shape + value.shape
            assert a.tape.jacobian(call).shape == shape


def _attributes(a: Asked) -> Any:
    trace = a.trace
    return trace.tape is a.tape, trace.root.shape, trace.loss, trace.certificate, trace.fallbacks, repr(trace)


def _compute(a: Asked) -> Any:
    return a.trace.compute(kinds=("best", "greedy"), per_example=False) is a.trace


def _join(row: Any) -> Any:
    assert sum(b.paths for b in row.branches) == row.paths, "branches do not add up to their join"
    return row.paths, [(b.name, b.paths, b.share) for b in row.branches]


def _saved(apart: bool) -> Callable[[Asked], Any]:
    """Ask a saved trace what the live one is asked, and see that it says the same."""

    def ask(a: Asked) -> Any:
        kept = load(a.trace.save(a.folder / "saved.gradtrace", per_example=apart))
        said: list[list[Any]] = []
        for trace in (a.trace, kept):
            tables = [trace.influence(per_example=apart, kind=kind) for kind in KINDS]
            flows = [trace.flow(kind=kind, weighted=True) for kind in KINDS]
            said.append([tables, trace.strongest(4), [trace.strength[name] for name in a.leaves], repr(trace), flows])
        assert same(*said), "a saved trace says something else"
        return said[1][:3]

    return ask


def _strength(a: Asked) -> Any:
    return [a.trace.strength[name] for name in a.leaves], len(a.trace.strength)


def _summaries(a: Asked) -> Any:
    return answers(a.trace, [Entropy, Power(8), Graded(2), Through()], "*")


def _scalar_graph(a: Asked) -> Any:
    graph = scalar.from_tape(a.tape, a.loss)
    return graph.number_of_nodes(), graph.number_of_edges()


SMALL, MEDIUM = (
    3_000,
    20_000,
)  # scalars on a tape for which one Python object an edge, and several paths a scalar, are cheap

QUESTIONS: tuple[Question, ...] = (
    Question(
        "tape", ("Tape.record", "Tape.calls", "Tape.leaves", "Tape.value_of", "Tape.losses", "Tape.refused"), _tape
    ),
    Question("jacobian", ("Tape.jacobian",), _jacobian, most=SMALL),
    Question(
        "estimate", ("Tape.estimate",), lambda a: [r.question for r in a.tape.estimate(a.loss).rows], of_batch=False
    ),
    Question("layers", ("Trace.layers",), lambda a: a.trace.layers().rows),
    Question("joins", ("Trace.joins",), lambda a: [_join(row) for row in a.trace.joins(per_example=False).rows]),
    Question("joins greedy", ("Trace.joins",), lambda a: str(a.trace.joins(kind="greedy", per_example=False))),
    Question("summary", ("Trace.summary",), lambda a: str(a.trace.summary(per_example=False)), most=MEDIUM),
    Question("why", ("Trace.why",), lambda a: [str(a.trace.why(name)) for name in a.leaves], most=MEDIUM),
    Question("unused", ("Trace.unused",), lambda a: a.trace.unused(), most=MEDIUM),
    Question("find", ("Tape.find",), lambda a: [str(a.tape.find(name)) for name in a.leaves]),
    *(_grad(s, most=MEDIUM if s in (SignedMax, Power(3), TopK(2)) else float("inf")) for s in SEMIRINGS),
    *(_grad(s, most=MEDIUM) for s in SPLIT),
    _grad(NAMED, "several by name", most=MEDIUM),
    _grad(Max, "max log2", log2=True),
    _grad(Sum, "sum, all used", allow_unused=False),
    Question("trace", ("Tape.trace", "Trace.loss", "Trace.root", "Trace.tape", "Trace.fallbacks"), _attributes),
    Question("check", ("Tape.trace", "Trace.certificate"), _certificate),
    Question("strength", ("Trace.strength",), _strength),
    Question("forest best", ("Trace.forest",), _forest("best", False)),
    Question("forest greedy", ("Trace.forest",), _forest("greedy", False)),
    Question("compute", ("Trace.compute",), _compute),
    Question("saved", ("Trace.save", "Trace.origin"), _saved(False), most=MEDIUM),
    Question("path best", ("Trace.path",), _path("best")),
    Question("path greedy", ("Trace.path",), _path("greedy")),
    Question("strongest", ("Trace.strongest",), lambda a: a.trace.strongest(4)),
    Question("paths", ("Trace.paths",), lambda a: a.trace.paths(k=3), most=MEDIUM),
    Question("paths of a scalar", ("Trace.paths",), lambda a: a.trace.paths(*a.scalar, k=3), most=MEDIUM),
    Question("extremes", ("Trace.extremes",), lambda a: a.trace.extremes(*a.scalar), most=MEDIUM),
    Question("bound", ("Trace.bound",), _bound),
    Question("influence best", ("Trace.influence",), _influence("best", False)),
    Question("influence greedy", ("Trace.influence",), _influence("greedy", False)),
    Question("influence of heads", ("Trace.influence",), _heads),
    Question("flow best", ("Trace.flow",), _flow("best", False)),
    Question("flow weighted", ("Trace.flow",), _flow("best", True)),
    Question("flow greedy", ("Trace.flow",), _flow("greedy", False)),
    Question("frame", ("Trace.to_dataframe",), lambda a: a.trace.to_dataframe().to_dict("list"), False, MEDIUM),
    Question("dot", ("Trace.to_dot",), lambda a: a.trace.to_dot()),
    Question("summaries", ("summaries.answers",), _summaries, most=MEDIUM),
    Question("scalar graph", ("scalar.from_tape",), _scalar_graph, most=SMALL),
    Question("report", ("Trace.report",), _report, of_batch=False, most=MEDIUM),
    Question("widget", ("Trace.widget",), lambda a: len(a.trace.widget().page) > 1000, False, MEDIUM),
    Question("notebook", ("Trace._repr_html_",), lambda a: len(a.trace._repr_html_()) > 1000, False, MEDIUM),
)

BY_EXAMPLE: tuple[Question, ...] = (
    Question("saved by example", ("Trace.save",), _saved(True), False, MEDIUM),
    Question("forest best by example", ("Trace.forest",), _forest("best", True), of_batch=False),
    Question("forest greedy by example", ("Trace.forest",), _forest("greedy", True), of_batch=False),
    Question("influence best by example", ("Trace.influence",), _influence("best", None), of_batch=False),
    Question("influence greedy by example", ("Trace.influence",), _influence("greedy", None), of_batch=False),
    Question("path best of an example", ("Trace.path",), _path("best", 0), of_batch=False),
    Question("path greedy of an example", ("Trace.path",), _path("greedy", 0), of_batch=False),
)


def public(kind: type) -> set[str]:
    """List what users see of a class: names without an underscore, and what notebooks call."""
    return {f"{kind.__name__}.{name}" for name in dir(kind) if not name.startswith("_") or name == "_repr_html_"}


def same(a: Any, b: Any) -> bool:
    """Tell whether two answers are the same bit for bit (and NaN the same as NaN)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, GradtraceError):
        return CALL_NUMBER.sub("", str(a)) == CALL_NUMBER.sub("", str(b))
    return a == b or (a != a and b != b)


__all__ = ["BY_EXAMPLE", "QUESTIONS", "Asked", "Question", "public", "same"]
