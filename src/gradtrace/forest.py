"""The forest of winners: for every scalar, the consumer through which its trace goes on.

`plant` runs one reverse pass with backpointers, for the best paths or the greedy ones. Every trace, crossing
and flow is read off its result by gathers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .engine import EDGE_BITS, Edges, offsets, reverse
from .errors import NotANumber, UnknownName
from .labels import Labels
from .semiring import NO_ID, Element, Extreme, Greedy
from .tape import Call, Record, Value

NONE = -1  # in `winners`: no path
KINDS = ("best", "greedy")


@dataclass(eq=False)
class Forest:
    """Winners of one reverse pass.

    Attributes:
        kind: "best" or "greedy".
        labels: example labels, or None where the batch is traced as a whole.
        winners: by value id, batch × shape: the backpointer of each scalar, NONE where it has no path.
        seconds: by operator, the time that the pass spent on its calls.
        log2: by value id, batch × shape: log2 of the best path's weight (best) or of |∂ℓ/∂v| (greedy).
    """

    record: Record
    loss: Value
    kind: str
    labels: Labels | None
    edges: Edges
    winners: dict[int, Tensor] = field(default_factory=dict)
    log2: dict[int, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def batch(self, value: Value) -> int:
        """Give how many elements a value has for each scalar: one for each example, if none reaches it."""
        free = self.labels is not None and self.labels.free(value)
        return self.labels.count if free and self.labels is not None else 1

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
) -> Forest:
    """Run the reverse pass of a trace.

    Raises:
        UnknownName: `kind` is neither "best" nor "greedy".
        NotANumber: a forward value or a local derivative is NaN.
    """
    if kind not in KINDS:
        raise UnknownName(f"unknown kind of trace {kind!r}; one of {', '.join(KINDS)}")
    forest = Forest(record, loss, kind, labels, Edges.of(record))

    def keep(value: Value, g: Element) -> None:
        forest.log2[value.id] = g[0].abs().log2() + g[1]
        if forest.log2[value.id].isnan().any():  # the ordinary gradient, where infinite terms cancel
            raise NotANumber(f"the gradient of {value} is NaN")
        *_, strongest, _, ids = g
        forest.winners[value.id] = ids.masked_fill((strongest == 0) | (ids == NO_ID), NONE)

    reverse(record, loss, Extreme() if kind == "best" else Greedy(), keep, labels, track, forest.seconds)
    for value in (loss, *record.leaves.values()):
        forest.log2.setdefault(value.id, torch.full((forest.batch(value), *value.shape), -torch.inf).double())
        forest.winners.setdefault(value.id, torch.full((forest.batch(value), *value.shape), NONE))
    return forest


def check_numbers(record: Record, loss: Value) -> None:
    """Look for NaN among the forward values that the loss is computed from.

    Raises:
        NotANumber: names the first operator that made one.
    """
    for call in record.before(loss):
        for given in call.inputs:
            if given.value is None or given.saved is None or not given.dtype.is_floating_point:
                continue
            if given.tensor().isnan().any():
                made = given.value.call
                what = f"the result of {made.where}" if made else f"the leaf {given.value.name!r}"
                raise NotANumber(f"NaN in {what}")
