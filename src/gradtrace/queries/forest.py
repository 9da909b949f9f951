"""The forest of winners: for every scalar, the consumer through which its trace goes on.

`plant` runs one reverse pass with backpointers, for the best paths or the greedy ones. Every trace, crossing
and flow is read off its result by gathers. Best paths are found by the compiled kernels where they are there, which
keep winners small (`Best`): integers are made of them when somebody asks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..backward.backpointers import Borrowed
from ..backward.best import Best, OutOfRange, best
from ..backward.elements import reverse
from ..backward.example_labels import Labels
from ..backward.greedy import greedy
from ..backward.several import ask
from ..backward.walk import EDGE_BITS, Edges, offsets
from ..errors import NotANumber, UnknownName
from ..jacobians import rules
from ..kernels import native
from ..recording.layouts import unravelled
from ..recording.record import Again, Call, Record, Saved, Slot, Value
from ..semirings.base import NO_ID, AbsSum, Element, Extreme, Greedy

NONE = -1  # in `winners`: no path
KINDS = ("greedy", "best")  # as they are shown: greedy influence foretells better what ablation does (docs/study.md)
FIRST = KINDS[0]


class Known(Protocol):
    """Local derivatives along paths that were read before."""

    def of(
        self, value: Value, row: int | np.ndarray, flats: np.ndarray, step: tuple[int, int, int], there: np.ndarray
    ) -> np.ndarray:
        """Give those of some scalars, of one row or each of its own.

        Args:
            step: the call, the position of its argument and the number of its result, by which their paths go on.
            there: where in the result.
        """
        ...


@dataclass(eq=False)
class Forest:
    """Winners of one reverse pass.

    Attributes:
        kind: "best" or "greedy".
        labels: example labels, or None where the batch is traced as a whole.
        winners: by value id, batch × shape: the backpointer of each scalar, NONE where it has no path.
        seconds: by operator, the time that the pass spent on its calls.
        log2: by value id, batch × shape: log2 of the best path's weight (best) or of |∂ℓ/∂v| (greedy).
        compact: what the compiled kernels left, where they ran.
        derivatives: of a saved trace, the local derivatives along its paths, by value, row and flat positions.
        leaving: what leaves send, of those that somebody asked about (see `departures`).
    """

    record: Record
    loss: Value
    kind: str
    labels: Labels | None
    edges: Edges
    winners: Mapping[int, Tensor] = field(default_factory=dict)
    log2: Mapping[int, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    compact: Best | None = None
    derivatives: Known | None = None
    leaving: Any = field(default=None, repr=False)

    def batch(self, value: Value) -> int:
        """Give how many elements a value has for each scalar: one for each example, if none reaches it."""
        return self.labels.batch(value) if self.labels is not None else 1

    def consumer(self, value: Value, row: int, flat: int) -> tuple[Call, int, int, int]:
        """Give how a scalar on a trace goes on: (call, argument position, output number, flat index in that output).

        Args:
            row: the example, where each has its own.
        """
        compact = self.compact.winners.get(value.id) if self.compact is not None else None
        if compact is None or (isinstance(compact, Borrowed) and not compact.knows(row, flat)):
            winners = self.winners[value.id]
            return self.step(int(winners[row if len(winners) > 1 else 0].reshape(-1)[flat]))
        edge, there = compact.consumer(row, flat)
        call = edge.target.call
        assert call is not None
        argument = (edge.first >> EDGE_BITS) - self.edges.first[call.index]
        return call, argument, next(i for i, v in enumerate(call.outputs) if v is edge.target), there

    def row(self, value: Value, flat: int) -> int:
        """Give the row (the example, where each has its own) in which one scalar's trace is strongest."""
        if self.batch(value) == 1:
            return 0
        if self.compact is not None and value.id in self.compact.planes:
            return int(self.compact.weights[value.id].data[(slice(None), *unravelled(flat, value.shape))].argmax())
        log2 = self.log2[value.id]
        return int(log2.reshape(len(log2), -1)[:, flat].argmax())

    def traced(self, value: Value, row: int, flat: int) -> bool:
        """Tell whether a scalar has a trace."""
        if self.compact is not None and value.id in self.compact.planes:
            plane = self.compact.planes[value.id].data
            return bool(plane[(row if len(plane) > 1 else 0, *unravelled(flat, value.shape))] > 0)
        winners = self.winners.get(value.id)
        return winners is not None and int(winners[row if len(winners) > 1 else 0].reshape(-1)[flat]) != NONE

    def step(self, pointer: int) -> tuple[Call, int, int, int]:
        """Read a backpointer: (call, argument position, output number, flat index in that output)."""
        edge, flat = pointer >> EDGE_BITS, pointer & ((1 << EDGE_BITS) - 1)
        index = bisect_right(self.edges.first, edge) - 1
        call = self.record.calls[index]
        while not call.inputs:  # calls without arguments share their number with the next
            index -= 1
            call = self.record.calls[index]
        starts = offsets(call)
        output = max(i for i, start in enumerate(starts) if start <= flat and call.outputs[i] is not None)
        return call, edge - self.edges.first[index], output, flat - starts[output]


def plant(
    record: Record,
    loss: Value,
    kind: str,
    labels: Labels | None = None,
    track: Callable[[list[Call]], Iterable[Call]] = iter,
    leaves: Iterable[Value] | None = None,
) -> Forest:
    """Run the reverse pass of a trace.

    Args:
        record, loss, kind, labels: of the forest.
        track: as for `walk`.
        leaves: the only ones that are asked about; None: all.

    Raises:
        UnknownName: `kind` is neither "best" nor "greedy".
        NotANumber: a forward value or a local derivative is NaN.
    """
    if kind not in KINDS:
        raise UnknownName(f"unknown kind of trace {kind!r}; one of {', '.join(KINDS)}")
    forest = Forest(record, loss, kind, labels, Edges.of(record))
    among = None if leaves is None else record.after(leaves)
    if native.available():
        run = best if kind == "best" else greedy
        try:
            found = run(record, loss, labels, track, among=among)
        except OutOfRange:
            pass
        else:
            return over(forest, found, run)
    return _planted(forest, track, among)


def over(forest: Forest, found: Best, run: Callable[..., Best]) -> Forest:
    """Let a forest read what the compiled kernels left; `run` makes the pass once more, for what they did not leave."""
    forest.compact, forest.seconds = found, found.seconds
    lazy = _Lazy(forest.record, forest.loss, forest.labels, found, run)
    forest.winners, forest.log2 = _Read(lazy, lazy.winners), _Read(lazy, lazy.log2)
    return forest


def _planted(forest: Forest, track: Callable[[list[Call]], Iterable[Call]], among: Container[int] | None) -> Forest:
    """Run the reference pass, which serves every kind and every range."""
    winners: dict[int, Tensor] = {}
    log2: dict[int, Tensor] = {}

    def keep(value: Value, g: Element) -> None:
        log2[value.id] = g[0].abs().log2() + g[1]
        if log2[value.id].isnan().any():
            raise NotANumber(_cancelling(forest.record, value))
        *_, strongest, _, ids = g
        winners[value.id] = ids.masked_fill((strongest == 0) | (ids == NO_ID), NONE)

    carrier = Extreme() if forest.kind == "best" else Greedy()
    reverse(forest.record, forest.loss, carrier, keep, forest.labels, track, forest.seconds, among=among)
    for value in (forest.loss, *forest.record.leaves.values()):
        log2.setdefault(value.id, _nowhere(forest.labels, value))
        winners.setdefault(value.id, torch.full((forest.batch(value), *value.shape), NONE))
    forest.winners, forest.log2 = winners, log2
    return forest


def _cancelling(record: Record, value: Value) -> str:
    """Say where an ordinary gradient becomes NaN: infinite terms of opposite sign meet."""
    users = [c.where for c in record.calls if any(i.value is value for i in c.inputs)]
    shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
    return f"the gradient of {value} is NaN in the backward pass alone: ∞ − ∞, where the derivatives of {shown} meet"


def _nowhere(labels: Labels | None, value: Value) -> Tensor:
    batch = labels.batch(value) if labels is not None else 1
    return torch.full((batch, *value.shape), -torch.inf, dtype=torch.float64)


class _Lazy:
    """Backpointers and log2 weights, worked out of the compact ones when they are asked for."""

    def __init__(
        self, record: Record, loss: Value, labels: Labels | None, compact: Best, run: Callable[..., Best]
    ) -> None:
        # the parts of a forest, not the forest, which holds this: memory should go with it, without a collector
        self.record, self.loss, self.labels, self.compact, self.run = record, loss, labels, compact, run
        self.leaves = {v.id: v for v in (loss, *record.leaves.values())}
        self.ids = [*self.leaves, *(i for i in self.compact.winners if i not in self.leaves)]

    @cached_property
    def whole(self) -> Best:
        """The pass once more, with the weights of all values: a trace keeps those of the leaves only."""
        return self.run(self.record, self.loss, self.labels, wanted=None)

    def of(self, key: int) -> Best:
        return self.compact if key in self.compact.planes else self.whole

    def log2(self, key: int) -> Tensor:
        if key in self.leaves and key not in self.compact.planes:
            return _nowhere(self.labels, self.leaves[key])
        plane = self.of(key).weights[key]
        return plane.data.to(torch.float64).log2() + plane.exponent

    def winners(self, key: int) -> Tensor:
        found = self.of(key) if key not in self.leaves else self.compact
        if key not in found.winners:  # the loss, or a leaf that does not reach it
            return torch.full(self.log2(key).shape, NONE)
        winners, data = found.winners[key], found.planes[key].data
        positions = torch.arange(prod(winners.shape))
        rows = [winners.pointers(row, positions).reshape(winners.shape) for row in range(len(data))]
        return torch.stack(rows).masked_fill(data == 0, NONE)


class _Read(Mapping[int, Tensor]):
    def __init__(self, lazy: _Lazy, read: Callable[[int], Tensor]) -> None:
        self._lazy, self._read = lazy, read

    def __getitem__(self, key: int) -> Tensor:
        if key not in self._lazy.leaves and key not in self._lazy.compact.winners:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self._lazy.leaves or key in self._lazy.compact.winners

    def __iter__(self) -> Iterator[int]:
        return iter(self._lazy.ids)

    def __len__(self) -> int:
        return len(self._lazy.ids)


def check_numbers(record: Record, loss: Value, parameters: Container[str | None] = ()) -> None:
    """Look for NaN among the forward values that the loss is computed from.

    Args:
        parameters: names of the leaves that are a model's parameters.

    Raises:
        NotANumber: names the leaf that is NaN and where, else the first operator that made one.
    """
    if not any(_suspect(group) for group in _forward(record.calls, (Saved,), _spread(record.calls))):
        return
    calls = record.before(loss)
    found = [(v, data) for group in _forward(calls, (Saved, Again)) for v, data in group if data.isnan().any()]
    leaves = [(v, v.data.get()) for v in _leaves_of(calls) if v.data is not None]
    for value, data in (*((v, data) for v, data in leaves if data.isnan().any()), *sorted(found, key=_order)):
        if value.call is not None:
            if _leads(record, loss, value, data.isnan()):
                raise NotANumber(f"NaN in the result of {value.call.where}")
            continue
        kind, where = "parameter" if value.name in parameters else "the leaf", data.isnan().nonzero()
        more = f", and {len(where) - 1} more of its {value.numel} scalars" if len(where) > 1 else ""
        raise NotANumber(f"{kind} {value.name!r} is NaN at {where[0].tolist()}{more}")


def _leads(record: Record, loss: Value, value: Value, where: Tensor) -> bool:
    """Tell whether paths lead from some scalars to the loss; none do from memory that is overwritten later."""
    try:
        weight = ask(record, loss, [value], [AbsSum])[0].get(value.id)
    except NotANumber:
        return True
    where = where.unsqueeze(-1) if where.dim() < len(value.shape) else where  # of a complex number, either part
    return weight is not None and bool((weight[where.expand(value.shape)] != 0).any())


def _order(found: tuple[Value, Tensor]) -> int:
    return found[0].id


def _leaves_of(calls: Iterable[Call]) -> list[Value]:
    """Give the leaves that calls take, each once."""
    given = {i.value.id: i.value for call in calls for i in call.inputs if i.value is not None}
    return [v for v in given.values() if v.call is None and v.name is not None]


def check_loss(loss: Value, number: float) -> None:
    """Refuse a loss that is NaN or infinite, whose derivatives mean nothing.

    Raises:
        NotANumber: names the operator that made it so out of finite numbers.
    """
    if math.isfinite(number):
        return
    call = _first_not_finite(loss).call
    why = ", which divides by zero" if call is not None and _divides_by_zero(call) else ""
    raise NotANumber(f"the loss is {number} (from {'a leaf' if call is None else call.where}{why})")


def _first_not_finite(value: Value) -> Value:
    """Follow what is not finite back to where it came up."""
    while value.call is not None:
        given = [i for i in value.call.inputs if i.value is not None and i.value.differentiable]
        worse = [i.value for i in given if i.saved is None or not i.tensor().isfinite().all()]  # a view keeps no data
        if not worse or worse[0] is None:
            break
        value = worse[0]
    return value


def _divides_by_zero(call: Call) -> bool:
    if call.base != "div":
        return False
    by = call.args[1]
    return bool((call.inputs[by.position].tensor() == 0).any()) if isinstance(by, Slot) else by == 0


def _spread(calls: Sequence[Call]) -> set[int]:
    """Find the values in which a NaN would be seen in another value as well: the result of a call that spreads it."""
    read: set[int] = set()
    out: set[int] = set()
    for call in reversed(calls):
        first = call.outputs[0] if call.outputs else None
        if first is not None and first.id in read and rules.spreads_nan(call):
            out.update(given.value.id for given in call.inputs if given.value is not None)
        for given in call.inputs:
            if given.value is not None and type(given.saved) is Saved:
                read.add(given.value.id)
    return out


def _forward(
    calls: Iterable[Call], kinds: tuple[type, ...], skip: Container[int] = ()
) -> Iterable[list[tuple[Value, Tensor]]]:
    """Give the forward values that calls take, each once, by dtype and device."""
    seen: set[int] = set()
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[Value, Tensor]]] = {}
    for call in calls:
        for given in call.inputs:
            value, saved = given.value, given.saved
            if value is None or type(saved) not in kinds or value.id in skip or value.id in seen:
                continue
            if value.differentiable and given.dtype.is_floating_point and saved is not None:
                seen.add(value.id)
                data = _telling(value, saved.get())
                groups.setdefault((given.dtype, given.device), []).append((value, data))
    return groups.values()


def _telling(value: Value, data: Tensor) -> Tensor:
    """Give as much of a value's data as a NaN anywhere in it is in."""
    maker = value.call
    axis = rules.nan_fills(maker) if maker is not None and maker.outputs[0] is value else None
    return data if axis is None or data.shape != value.shape else data.narrow(axis, 0, 1)


def _suspect(group: list[tuple[Value, Tensor]]) -> bool:
    """Tell whether any of some tensors may hold a NaN."""
    first = group[0][1]
    if native.available() and first.dtype in (torch.float32, torch.float64) and first.device.type == "cpu":
        return native.any_nan([data for _, data in group])
    return any(bool(data.isnan().any()) for _, data in group)
