"""Follow backpointers: one path from a leaf scalar to the loss, step by step."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TypeAlias

from ..backward.backpointers import unravelled
from ..errors import BadArgument, GradtraceError, UnknownName
from ..jacobians import rules
from ..jacobians.rules import Edge
from ..kernels.entry import entry
from ..recording.record import Call, Value
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


@dataclass(eq=False)
class Reader:
    """Reads steps of paths, each once: paths that meet share what follows."""

    forest: Forest
    _moves: dict[tuple[int, int, int], Move] = field(default_factory=dict)
    _edges: dict[int, list[Edge]] = field(default_factory=dict)

    def move(self, value: Value, row: int, flat: int) -> Move:
        """Give the step from one scalar on a trace (row: the example, where each has its own)."""
        row = row if self.forest.batch(value) > 1 else 0
        found = self._moves.get((value.id, row, flat))
        if found is None:
            call, argument, output, there = self.forest.consumer(value, row, flat)
            found = call, argument, output, there, self.derivative(call, argument, flat, output, there)
            self._moves[value.id, row, flat] = found
        return found

    def derivative(self, call: Call, argument: int, x: int, output: int, y: int) -> float:
        """Give ∂(scalar y of a result)/∂(scalar x of an argument), read off the call's structures."""
        if call.index not in self._edges:
            self._edges[call.index] = rules.structures(call)
        found = self._edges[call.index]
        return sum(entry(s, y, x) for position, number, s in found if (position, number) == (argument, output))


def walk(forest: Forest, value: Value, flat: int, example: int | None, reader: Reader | None = None) -> Iterator[Move]:
    """Step along winners."""
    reader = reader or Reader(forest)
    if value is forest.loss or value.id not in forest.winners:
        return
    row = example if example is not None else forest.row(value, flat)
    if not forest.traced(value, row, flat):
        return
    while value is not forest.loss:
        found = reader.move(value, row, flat)
        yield found
        call, _, output, flat, _ = found
        made = call.outputs[output]
        assert made is not None
        value = made


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
