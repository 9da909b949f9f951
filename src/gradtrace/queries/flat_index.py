"""Places: one row of memory for every scalar of every call's results, so that backpointers are indices into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backward.walk import EDGE_BITS
from ..recording.record import Call, Value
from .forest import NONE, Forest

MASK = (1 << EDGE_BITS) - 1


@dataclass(eq=False)
class Places:
    """A row of memory with a place for every scalar of every call's results (one for each example, if free).

    Attributes:
        base: by edge, where the consumer call's results begin.
        stride: by edge, how far one example's results are from the next one's.
        spans: by call index, (where its results begin, how many places they take).
    """

    base: Tensor
    stride: Tensor
    spans: list[tuple[int, int]]
    total: int

    @classmethod
    def of(cls, forest: Forest) -> Places:
        """Lay the results of a tape's calls out one after another."""
        base, stride, spans, total = [], [], [], 0
        for call in forest.record.calls:
            made = [v for v in call.outputs if v is not None]
            batch = max((forest.batch(v) for v in made if v.id in forest.winners), default=1)
            numel = sum(v.numel for v in made)
            base += [total] * len(call.inputs)
            stride += [numel if batch > 1 else 0] * len(call.inputs)
            spans.append((total, batch * numel))
            total += batch * numel
        return cls(torch.tensor(base, dtype=torch.int64), torch.tensor(stride, dtype=torch.int64), spans, total)

    def consumers(self, winners: Tensor) -> tuple[Tensor, Tensor]:
        """Give, for batch × shape backpointers, (whether there is one, the place of the winning consumer or 0)."""
        live = winners != NONE
        edge = (winners >> EDGE_BITS).clamp_(min=0)
        place = self.base[edge].add_(winners & MASK)
        if len(winners) > 1:
            rows = torch.arange(len(winners)).reshape(-1, *[1] * (winners.dim() - 1))
            place += rows * self.stride[edge]
        return live, place.masked_fill_(~live, 0)

    def results(self, call: Call) -> list[tuple[Value, slice, int]]:
        """Give (value, its place for the first example, how far the next example's is) for each result."""
        start, _ = self.spans[call.index]
        numel = sum(v.numel for v in call.outputs if v is not None)
        out = []
        for value in call.outputs:
            if value is not None:
                out.append((value, slice(start, start + value.numel), numel))
                start += value.numel
        return out
