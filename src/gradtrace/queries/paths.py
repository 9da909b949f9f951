"""Follow backpointers: one path from a leaf scalar to the loss, step by step."""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TypeAlias

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
    reader: Reader | None = None,
) -> Path | None:
    """Read the path of one scalar; None where it has none.

    Args:
        forest: the winners.
        value: where the path starts.
        index: which scalar of it.
        example: in a per-example forest, which example; the one with the strongest path by default.
        reader: knows the steps of the paths that it has read before.
    """
    where = flat_index(value, index)
    path = path_of(forest.kind, value, where, walk(forest, value, where, example, reader))
    return path if path.steps or value is forest.loss else None


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


Start: TypeAlias = tuple[Value, int, int]  # a value, a row of it (the example, where each has its own), a flat index


@dataclass(eq=False)
class Reader:
    """Reads steps of paths, each once: paths that meet share what follows, those through a value step together.

    Attributes:
        moves: those that were read, by value, row (0 where examples have none of their own) and flat position.
    """

    forest: Forest
    moves: dict[tuple[int, int, int], Move] = field(default_factory=dict)
    _read: dict[int, set[int]] = field(default_factory=dict)
    _edges: dict[int, list[Edge]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._consumers = Consumers(self.forest)

    def read(self, starts: Iterable[Start]) -> None:
        """Read all steps of the paths of some scalars that have a trace."""
        waiting: dict[int, tuple[Value, set[int]]] = {}  # by value, its scalars, numbered rows × shape
        order: list[tuple[int, int]] = []  # a value's consumers come after the call that made it

        def add(value: Value, scalars: Iterable[int]) -> None:
            new = set(scalars).difference(self._read.setdefault(value.id, set()))
            if value is self.forest.loss or not new:
                return
            if value.id not in waiting:
                waiting[value.id] = value, set()
                heapq.heappush(order, (-1 if value.call is None else value.call.index, value.id))
            waiting[value.id][1].update(new)

        for value, row, flat in starts:
            add(value, [(row if self.forest.batch(value) > 1 else 0) * value.numel + flat])
        while order:
            value, scalars = waiting.pop(heapq.heappop(order)[1])
            self._read[value.id] |= scalars
            rows, flats = np.divmod(np.array(sorted(scalars)), value.numel)
            for part in self._consumers.of(value, rows, flats):
                which = slice(None) if part.which is None else part.which
                self._note(value, rows[which], flats[which], part)
                there = rows[which] if self.forest.batch(part.target) > 1 else 0
                add(part.target, (there * part.target.numel + part.flat).tolist())

    def _note(self, value: Value, rows: np.ndarray, flats: np.ndarray, part: Part) -> None:
        weights = self.along(value, rows, flats, part)
        every = zip(rows.tolist(), flats.tolist(), part.flat.tolist(), weights.tolist(), strict=True)
        for row, flat, there, weight in every:
            self.moves[value.id, row, flat] = part.call, part.argument, part.output, there, weight

    def move(self, value: Value, row: int, flat: int) -> Move:
        """Give the step from one scalar on a trace (row: the example, where each has its own)."""
        key = value.id, row if self.forest.batch(value) > 1 else 0, flat
        if key not in self.moves:
            self.read([(value, row, flat)])
        return self.moves[key]

    def derivative(self, call: Call, argument: int, x: int, output: int, y: int) -> float:
        """Give ∂(scalar y of a result)/∂(scalar x of an argument), read off the call's structures."""
        return float(self._derivatives(call, argument, np.array([x]), output, np.array([y]))[0])

    def along(self, value: Value, row: Rows, flats: np.ndarray, part: Part) -> np.ndarray:
        """Give the derivatives of steps from some scalars of a value, by the edge of `part`."""
        if self.forest.derivatives is not None:
            step = part.call.index, part.argument, part.output
            return self.forest.derivatives.of(value, row, flats, step, part.flat)
        return self._derivatives(part.call, part.argument, flats, part.output, part.flat)

    def _derivatives(self, call: Call, argument: int, x: np.ndarray, output: int, y: np.ndarray) -> np.ndarray:
        """Do so for pairs of them."""
        found = self.structures(call, argument, output)
        return sum((entries(s, y, x) for s in found), np.zeros(len(y)))

    def structures(self, call: Call, argument: int, output: int) -> list[Structure]:
        """Give what a call says of the dependence of a result on an argument; all of it adds up."""
        if call.index not in self._edges:
            self._edges[call.index] = rules.structures(call)
        return [s for position, number, s in self._edges[call.index] if (position, number) == (argument, output)]


def walk(forest: Forest, value: Value, flat: int, example: int | None, reader: Reader | None = None) -> Iterator[Move]:
    """Step along winners."""
    reader = reader or Reader(forest)
    row = _start(forest, value, flat, example)
    if row is None:
        return
    while value is not forest.loss:
        found = reader.move(value, row, flat)
        yield found
        call, _, output, flat, _ = found
        made = call.outputs[output]
        assert made is not None
        value = made


def _start(forest: Forest, value: Value, flat: int, example: int | None) -> int | None:
    """Give the row in which a scalar's path starts; None where it has none."""
    if value is forest.loss or value.id not in forest.winners:
        return None
    row = example if example is not None else forest.row(value, flat)
    return row if forest.traced(value, row, flat) else None


def follow_all(forest: Forest, scalars: Sequence[tuple[Value, int]]) -> list[Path]:
    """Read the paths of many scalars (by flat index) together; of those that have one."""
    reader, rows = Reader(forest), [_start(forest, value, flat, None) for value, flat in scalars]
    found = [(*s, row) for s, row in zip(scalars, rows, strict=True) if row is not None or s[0] is forest.loss]
    reader.read((value, row, flat) for value, flat, row in found if row is not None)
    return [path_of(forest.kind, value, flat, walk(forest, value, flat, row, reader)) for value, flat, row in found]


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
