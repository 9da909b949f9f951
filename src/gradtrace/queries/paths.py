"""Follow backpointers: one path from a leaf scalar to the loss, step by step."""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import NamedTuple, TypeAlias

import numpy as np

from ..backward.backpointers import Rows
from ..errors import BadArgument, GradtraceError, UnknownName
from ..jacobians import rules
from ..jacobians.rules import Edge
from ..jacobians.structure import Structure
from ..kernels.entry import entries
from ..recording.layouts import unravelled
from ..recording.record import Call, Value
from .consumers import Consumers, Part
from .forest import Forest


@dataclass(frozen=True)
class Step:
    """One edge of a path, named by the operator call at its far end.

    Attributes:
        operator: "aten.mm.default"; `argument` is the position at which the path enters it.
        module: the innermost module call or component block, "" at the top.
        source: "file:line".
        index: the scalar of the call's result that the path goes through.
        derivative: the local derivative ∂(this scalar)/∂(the one before).
        log2_weight: log2 of the absolute product of the derivatives so far.
        scopes: all module calls around the call, outermost first.
    """

    operator: str
    argument: int
    module: str
    source: str
    index: tuple[int, ...]
    derivative: float
    log2_weight: float
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """A path from a leaf scalar to the loss.

    Attributes:
        start: the leaf's name; `index`: which scalar of it.
        kind: "best" or "greedy".
        steps: the edges, from the leaf to the loss.
        log2_weight: log2 of the absolute product of all local derivatives; 0 for the loss itself.
    """

    start: str
    index: tuple[int, ...]
    kind: str
    steps: tuple[Step, ...]

    @property
    def log2_weight(self) -> float:
        return self.steps[-1].log2_weight if self.steps else 0.0

    @property
    def weight(self) -> float:
        """The product of all local derivatives, with its sign (0 or inf where a float cannot hold it)."""
        return math.prod(s.derivative for s in self.steps)

    @property
    def components(self) -> tuple[str, ...]:
        """The module calls and component blocks that the path crosses, in order, each once."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.scopes))

    def __str__(self) -> str:
        lines = [
            f"{self.kind} path from {self.start}{list(self.index)}: "
            f"|weight| = 2^{self.log2_weight:.2f}, {len(self.steps)} steps"
        ]
        width = max((len(s.module) for s in self.steps), default=0)
        names = [s.operator.removeprefix("aten.") + (str(list(s.index)) if s.index else "") for s in self.steps]
        wide = max(map(len, names), default=0)
        for step, name in zip(self.steps, names, strict=True):
            at = f"{File(step.source.rsplit(':', 1)[0]).name}:{step.source.rsplit(':', 1)[-1]}"
            product = f"×{step.derivative:<12.5g} 2^{step.log2_weight:<9.2f}"
            lines.append(f"  {step.module:<{width}}  {name:<{wide}}  {product} {at}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def follow(
    forest: Forest,
    value: Value,
    index: tuple[int, ...] | int,
    example: int | None = None,
) -> Path | None:
    """Read the path of one scalar; None where it has none.

    Args:
        forest: the winners.
        value: where the path starts.
        index: which scalar of it.
        example: in a per-example forest, which example; the one with the strongest path by default.
    """
    where = flat_index(value, index)
    path = path_of(forest.kind, value, where, walk(forest, value, where, example))
    return path if path.steps or value is forest.loss else None


END = -1  # instead of a step: the loss
Move: TypeAlias = tuple[Call, int, int, int, float]  # call, argument, output, flat index in the output, derivative


def path_of(kind: str, value: Value, where: int, moves: Iterable[Move]) -> Path:
    """Describe a path, given its steps."""
    start = str(value), unravelled(where, value.shape)
    steps, total = [], 0.0
    for call, argument, output, flat, weight in moves:
        total += math.log2(abs(weight)) if weight else -math.inf
        made = call.outputs[output]
        assert made is not None
        at = unravelled(flat, made.shape)
        scopes = tuple(map(str, call.scopes))
        steps.append(Step(call.name, argument, call.module, call.source, at, weight, total, scopes))
    return Path(*start, kind, tuple(steps))


class Start(NamedTuple):
    """Where a path begins: a scalar (by its flat index) of a value, in a row (the example, where each has its own)."""

    value: Value
    flat: int
    row: int


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of some paths, each once: paths that meet share what follows. A path goes to steps of higher numbers.

    Attributes:
        edges: (call, argument, number of the result), each as often as steps by it were read together.
        edge: of each step the number of its edge.
        flat: the place in the result that it goes to.
        derivative: ∂(that scalar)/∂(the one before).
        then: the number of the step after it; END at the loss.
        first: by path its first step; END where it begins at the loss.
    """

    edges: Sequence[tuple[Call, int, int]]
    edge: np.ndarray
    flat: np.ndarray
    derivative: np.ndarray
    then: np.ndarray
    first: np.ndarray

    def along(self, path: int) -> Iterator[Move]:
        """Go along a path."""
        step = int(self.first[path])
        while step != END:
            yield *self.edges[self.edge[step]], int(self.flat[step]), float(self.derivative[step])
            step = int(self.then[step])


@dataclass(eq=False)
class Reader:
    """Reads steps of paths, those through a value together."""

    forest: Forest
    _edges: dict[int, list[Edge]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._consumers = Consumers(self.forest)

    def read(self, starts: Sequence[Start]) -> Steps:
        """Read all steps of the paths of some scalars that have a trace."""
        forest, loss = self.forest, self.forest.loss
        # by value: its scalars, numbered rows × shape, and the steps, or paths from -1 downwards, that lead there
        waiting: dict[int, tuple[Value, list[tuple[np.ndarray, np.ndarray]]]] = {}
        order: list[tuple[int, int]] = []  # a value's consumers come after the call that made it

        def add(value: Value, row: Rows, flat: np.ndarray, before: np.ndarray) -> None:
            if value is loss:
                return
            if value.id not in waiting:
                waiting[value.id] = value, []
                heapq.heappush(order, (-1 if value.call is None else value.call.index, value.id))
            waiting[value.id][1].append((flat + row * value.numel if forest.batch(value) > 1 else flat, before))

        begun: dict[int, list[int]] = {}
        for path, start in enumerate(starts):
            begun.setdefault(start.value.id, []).append(path)
        for paths in begun.values():
            rows, flats = (np.array([getattr(starts[p], of) for p in paths]) for of in ("row", "flat"))
            add(starts[paths[0]].value, rows, flats, -1 - np.array(paths))
        edges: list[tuple[Call, int, int]] = []
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        leads: list[tuple[np.ndarray, np.ndarray]] = []  # steps or paths, and the step after each
        count = 0
        while order:
            value, come = waiting.pop(heapq.heappop(order)[1])
            scalars, number = np.unique(np.concatenate([here for here, _ in come]), return_inverse=True)
            leads.append((np.concatenate([before for _, before in come]), count + number))
            rows, flats = np.divmod(scalars, value.numel)
            edge, there, derivative = np.zeros_like(scalars), np.zeros_like(scalars), np.zeros(len(scalars))
            for part in self._consumers.of(value, rows, flats):
                which = slice(None) if part.which is None else part.which
                edge[which], there[which] = len(edges), part.flat
                derivative[which] = self.along(value, rows[which], flats[which], part)
                edges.append((part.call, part.argument, part.output))
                add(part.target, rows[which], part.flat, np.arange(count, count + len(scalars))[which])
            columns.append((edge, there, derivative))
            count += len(scalars)
        then, first = np.full(count, END), np.full(len(starts), END)
        for before, after in leads:
            steps = before >= 0
            then[before[steps]], first[-1 - before[~steps]] = after[steps], after[~steps]
        none = np.zeros(0, np.int64)
        columns = columns or [(none, none, none.astype(float))]
        edge, flat, derivative = (np.concatenate(c) for c in zip(*columns, strict=True))
        return Steps(edges, edge, flat, derivative, then, first)

    def along(self, value: Value, row: Rows, flats: np.ndarray, part: Part) -> np.ndarray:
        """Give the derivatives of steps from some scalars of a value, by the edge of `part`."""
        if self.forest.derivatives is not None:
            step = part.call.index, part.argument, part.output
            return self.forest.derivatives.of(value, row, flats, step, part.flat)
        found = self.structures(part.call, part.argument, part.output)
        return sum((entries(s, part.flat, flats) for s in found), np.zeros(len(flats)))

    def structures(self, call: Call, argument: int, output: int) -> list[Structure]:
        """Give what a call says of the dependence of a result on an argument; all of it adds up."""
        if call.index not in self._edges:
            self._edges[call.index] = rules.structures(call)
        return [s for position, number, s in self._edges[call.index] if (position, number) == (argument, output)]


def walk(forest: Forest, value: Value, flat: int, example: int | None) -> Iterator[Move]:
    """Step along winners."""
    row = start_row(forest, value, flat, example)
    if row is not None:
        yield from Reader(forest).read([Start(value, flat, row)]).along(0)


def start_row(forest: Forest, value: Value, flat: int, example: int | None = None) -> int | None:
    """Give the row in which a scalar's path starts; None where it has none."""
    if value is forest.loss or value.id not in forest.winners:
        return None
    row = example if example is not None else forest.row(value, flat)
    return row if forest.traced(value, row, flat) else None


def follow_all(forest: Forest, scalars: Sequence[tuple[Value, int]]) -> list[Path]:
    """Read the paths of many scalars (by flat index) together; of those that have one."""
    rows = [0 if value is forest.loss else start_row(forest, value, flat) for value, flat in scalars]
    starts = [Start(*s, row) for s, row in zip(scalars, rows, strict=True) if row is not None]
    steps = Reader(forest).read(starts)
    return [path_of(forest.kind, s.value, s.flat, steps.along(n)) for n, s in enumerate(starts)]


def flat_index(value: Value, index: tuple[int, ...] | int) -> int:
    """Give the flat index of a scalar, or say what would have been one."""
    try:
        given = tuple(operator.index(i) for i in (index if isinstance(index, (tuple, list)) else (index,)))
    except TypeError:
        raise BadArgument(f"an index is a whole number or a tuple of them, not {index!r}") from None
    ok = len(given) == len(value.shape) and all(-n <= i < n for i, n in zip(given, value.shape, strict=True))
    if not ok:
        raise UnknownName(f"{value} has shape {value.shape}: {index} is not an index of one of its scalars")
    flat = 0
    for i, n in zip(given, value.shape, strict=True):
        flat = flat * n + i % n
    return flat


class NoPath(GradtraceError):
    """A scalar from which no path of non-zero weight reaches the loss."""
