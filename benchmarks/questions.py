"""Every public question as a row of a benchmark: how it is asked, and what it may cost next to backpropagation.

What a question may cost is a multiple of `loss.backward()`: a goal, and what it must not exceed. Some limits depend on
what else was measured (`Known`). Questions to a trace are put to one that has been computed, and has answered nothing
yet; what more they need (the passes of other semirings, greedy traces, those of each example) they run themselves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from workloads import Subject

import gradtrace
from gradtrace import (
    AbsSum,
    Count,
    Entropy,
    Graded,
    Max,
    Power,
    SignedMax,
    Sum,
    Tape,
    Through,
    TopK,
    Trace,
)
from gradtrace.queries.summaries import answers
from gradtrace.recording.components import top_level


@dataclass
class Step:
    """One recorded forward pass, to which one question is put."""

    subject: Subject
    tape: Tape
    recorded: Tensor
    traced: Trace | None = None

    @property
    def trace(self) -> Trace:
        """The trace, of which nothing was asked yet."""
        assert self.traced is not None
        return self.traced

    @cached_property
    def components(self) -> list[str]:
        """The outermost modules, which questions split by where they name none."""
        return list(top_level(self.tape.record))

    @cached_property
    def group(self) -> str:
        """A glob over the parameters of the first of the outermost modules that has some."""
        return next(iter(self.tape.leaves)).partition(".")[0] + "*"

    @cached_property
    def scalar(self) -> tuple[str, tuple[int, ...]]:
        """The last leaf's strongest scalar."""
        name = list(self.tape.leaves)[-1]
        strength = self.trace.strength[name]
        return name, tuple(int(i) for i in torch.unravel_index(strength.argmax(), strength.shape))


@dataclass(frozen=True)
class Known:
    """What limits depend on: other rows as multiples of backward, the seconds of backward, the number of components."""

    rows: Mapping[str, float]
    backward: float
    k: int

    def __getitem__(self, name: str) -> float:
        return self.rows[name]


@dataclass(frozen=True)
class Limit:
    """What a row may cost, as a person reads it and as a number."""

    said: str
    of: Callable[[Known], float]


Limits: TypeAlias = tuple[Limit, Limit]


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        covers: the public names that it asks, as "Trace.path".
        prepare: makes ready, untimed, what is no part of the question.
        traced: whether it is put to a trace that has been computed.
        limits: the goal, and what must not be exceeded, as multiples of backward.
    """

    name: str
    covers: tuple[str, ...]
    ask: Callable[[Step], Any]
    limits: Limits | None = None
    traced: bool = False
    prepare: Callable[[Step], Any] = field(default=lambda _: None)


def _times(number: float) -> Limit:
    return Limit(f"{number:g}", lambda _: number)


def _fixed(goal: float, must: float) -> Limits:
    return _times(goal), _times(must)


def _plus(goal: float, must: float) -> Limits:
    return (
        Limit(f"trace + {goal:g}", lambda m: m["trace"] + goal),
        Limit(f"trace + {must:g}", lambda m: m["trace"] + must),
    )


def _by_example(base: str) -> Limits:
    return (
        Limit(f"{base} + 0.5", lambda m: m[base] + 0.5),
        Limit(f"2 × {base}", lambda m: 2 * m[base]),
    )


SPLIT = Limit("k + 1", lambda m: m.k + 1), Limit("3 (k + 1)", lambda m: 3 * (m.k + 1))
AS_TRACE = Limit("trace", lambda m: m["trace"]), Limit("trace", lambda m: m["trace"])
GREEDY = (
    Limit("trace + Sum", lambda m: m["trace"] + m["grad Sum"]),
    Limit("1.5 (trace + Sum)", lambda m: 1.5 * (m["trace"] + m["grad Sum"])),
)
REPORT = (Limit("5, and 0.3 s", lambda m: 5 + 0.3 / m.backward), Limit("20, and 1 s", lambda m: 20 + 1 / m.backward))
LEANT_ON = ("trace", "grad Sum", "trace, greedy")  # rows that limits of others name


def _grad(name: str, semiring: Any, limits: Limits | None = None) -> Row:
    def ask(s: Step) -> Any:
        return s.tape.grad(s.recorded, list(s.tape.leaves), semiring, allow_unused=True)

    return Row(f"grad {name}", ("Tape.grad",), ask, limits)


def _of_trace(name: str, ask: Callable[[Trace], Any], *covers: str, limits: Limits | None = None) -> Row:
    return Row(name, tuple(f"Trace.{c}" for c in covers), lambda s: ask(s.trace), limits, traced=True)


def _of_scalar(name: str, ask: Callable[[Trace, str, tuple[int, ...]], Any], cover: str) -> Row:
    return Row(name, (f"Trace.{cover}",), lambda s: ask(s.trace, *s.scalar), traced=True, prepare=lambda s: s.scalar)


def _influence(name: str, kind: str, *, apart: bool, limits: Limits | None = None) -> Row:
    def ask(s: Step) -> Any:
        return s.trace.influence(of=s.group, per_example=apart, kind=kind)

    return Row(name, ("Trace.influence",), ask, limits, traced=True)


def _greedy(s: Step) -> Any:
    """Trace as `tape.trace` does, with the greedy pass instead of the best one: that one has been run before."""
    return s.trace.forest("greedy")


def _report(trace: Trace) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return trace.report(Path(folder) / "report.html")


def _save(trace: Trace) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return trace.save(Path(folder) / "trace.gradtrace"), trace.origin


def _look_up(s: Step) -> Any:
    return s.tape.value_of(s.recorded), [s.tape.find(name) for name in s.tape.leaves]


ROWS: tuple[Row, ...] = (
    Row("trace", ("Tape.trace",), lambda s: s.tape.trace(s.recorded), limits=_fixed(1.5, 3)),
    Row(
        "trace, check=True",
        ("Tape.trace", "Trace.certificate"),
        lambda s: s.tape.trace(s.recorded, check=True),
        limits=_plus(3, 6),
    ),
    _grad("Sum", Sum, limits=_fixed(1.2, 2.5)),
    _grad("AbsSum", AbsSum, limits=_fixed(1.5, 3)),
    _grad("power:8", Power(8), limits=_fixed(1.5, 3)),
    _grad("Max", Max, limits=AS_TRACE),
    _grad("Count", Count, limits=_fixed(1.5, 3)),
    _grad("entropy", Entropy, limits=_fixed(3, 6)),
    _grad("topk:8", TopK(8), limits=_fixed(8, 16)),
    _grad("SignedMax", SignedMax, limits=_fixed(4, 10)),
    _grad("Through", Through(), limits=SPLIT),
    _grad("Graded:4", Graded(4), limits=SPLIT),
    _grad("Sum, Max and power:8 in one walk", [Sum, Max, Power(8)]),
    Row("trace, greedy", ("Trace.forest",), _greedy, traced=True, limits=GREEDY),
    Row(
        "trace, each example",
        ("Trace.forest",),
        lambda s: s.trace.forest(per_example=True),
        traced=True,
        limits=_by_example("trace"),
    ),
    Row(
        "trace, each example, greedy",
        ("Trace.forest",),
        lambda s: s.trace.forest("greedy", per_example=True),
        traced=True,
        limits=_by_example("trace, greedy"),
    ),
    _influence("influence of one group, whole batch", "best", apart=False),
    _influence("influence of one group, each example", "best", apart=True, limits=_by_example("trace")),
    _influence(
        "influence of one group, each example, greedy", "greedy", apart=True, limits=_by_example("trace, greedy")
    ),
    _of_trace("flow", lambda t: t.flow(), "flow", limits=_fixed(0.5, 1.5)),
    _of_trace("flow, weighted", lambda t: t.flow(weighted=True), "flow"),
    _of_trace("to_dot", lambda t: t.to_dot(), "to_dot"),
    _of_trace("20 strongest paths, whole", lambda t: t.strongest(20), "strongest", "path", limits=_fixed(0.5, 2)),
    _of_trace("paths(k=20) of all parameters", lambda t: t.paths(k=20), "paths"),
    _of_scalar("paths(k=10) of one scalar", lambda t, name, at: t.paths(name, at, k=10), "paths"),
    _of_scalar("path of one scalar", lambda t, name, at: t.path(name, at), "path"),
    _of_scalar("path of one scalar, greedy", lambda t, name, at: t.path(name, at, kind="greedy"), "path"),
    _of_scalar("extremes of one scalar", lambda t, name, at: t.extremes(name, at), "extremes"),
    _of_scalar("bound of one scalar", lambda t, name, at: t.bound(name, at), "bound"),
    _of_trace("strength of all parameters", lambda t: [t.strength[n] for n in t.tape.leaves], "strength"),
    _of_trace("compute, best and greedy", lambda t: t.compute(kinds=("best", "greedy"), per_example=False), "compute"),
    _of_trace("to_dataframe", lambda t: t.to_dataframe(), "to_dataframe"),
    _of_trace(
        "summaries of entropy, power:8, graded:4, through",
        lambda t: answers(t, [Entropy, Power(8), Graded(4), Through()], "*"),
    ),
    _of_trace("_repr_html_", lambda t: t._repr_html_(), "_repr_html_", limits=_fixed(1, 3)),
    _of_trace("report", _report, "report", limits=REPORT),
    _of_trace("widget", lambda t: t.widget(), "widget"),
    _of_trace(
        "repr, fallbacks", lambda t: (repr(t), t.fallbacks, t.root, t.loss, t.tape), "fallbacks", "root", "loss", "tape"
    ),
    _of_trace("why one parameter, unused", lambda t: (t.why(next(iter(t.tape.leaves))), t.unused()), "why", "unused"),
    _of_trace("layers", lambda t: t.layers(), "layers"),
    _of_trace("joins", lambda t: t.joins(), "joins"),
    _of_trace("joins, signed", lambda t: t.joins(signed=True), "joins"),
    _of_trace("summary", lambda t: str(t.summary()), "summary"),
    _of_trace("save", _save, "save", "origin"),
    Row(
        "calls, leaves, record, losses, refused",
        ("Tape.calls", "Tape.leaves", "Tape.record", "Tape.losses", "Tape.refused"),
        lambda s: (s.tape.calls, s.tape.leaves, s.tape.losses(), s.tape.refused),
    ),
    Row("estimate", ("Tape.estimate",), lambda s: s.tape.estimate(s.recorded)),
    Row("jacobian of the last call", ("Tape.jacobian",), lambda s: s.tape.jacobian(len(s.tape.calls) - 1)),
    Row("find, value_of", ("Tape.find", "Tape.value_of"), _look_up),
)


# ---------------------------------------------------------------- what others offer, beside a row


@dataclass(frozen=True)
class Peer:
    """Something of another library that is asked for where one would ask for a row; it answers something else."""

    name: str
    beside: str
    ask: Callable[[Subject, int], Any]


class WithLoss(torch.nn.Module):
    """A model and its loss, as one module."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model, self.of = subject.model, subject.of

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return self.of(self.model, x, y)


def per_example(subject: Subject, _: int) -> Any:
    """Give the gradient of each example's loss, by `torch.func`."""
    both = WithLoss(subject)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(both, parameters, (x[None], y[None]))

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")
    return each({name: p.detach() for name, p in both.named_parameters()}, subject.x, subject.y)


def conductance(subject: Subject, k: int) -> Any:
    """Give captum's conductance of k of the outermost modules, each by its default of 50 steps."""
    from captum.attr import LayerConductance

    if not subject.x.is_floating_point():
        raise TypeError("integrates along the input, which is integers here")
    layers = [m for m in subject.model.children() if next(m.parameters(), None) is not None][:k]
    return [LayerConductance(lambda x: subject.model(x).flatten(1).mean(1), m).attribute(subject.x) for m in layers]


PEERS = (
    Peer("torch.func: gradients of each example, vmap(grad)", "influence of one group, each example", per_example),
    Peer("captum: LayerConductance of k modules, 50 steps", "grad Through", conductance),
)


def covered() -> set[str]:
    """Give the public names that some row asks."""
    return {name for row in ROWS for name in row.covers}


def record(subject: Subject) -> Step:
    """Record the forward pass of a step."""
    with gradtrace.record(subject.model, examples=subject.x) as tape:
        loss = subject.loss()
    return Step(subject, tape, loss)
