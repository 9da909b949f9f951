"""Consumers of many scalars, read at once, against backpointers read one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradtrace import record
from gradtrace.backward.backpointers import Borrowed
from gradtrace.kernels import native
from gradtrace.queries.consumers import Consumers
from gradtrace.queries.forest import NONE, Forest
from gradtrace.recording.record import Value


def _forest(kind: str, *, examples: bool) -> Forest:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0)
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, batch_first=True), "layer": layer, "out": nn.Conv1d(4, 2, 2)}).double()
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    with native.using(kind):
        with record(model, examples=x) as tape:
            h = model["layer"](model["rnn"](x)[0]).transpose(1, 2)
            loss = model["out"](torch.cat([h, h.flip(0)], 2)).square().mean()
        return tape.trace(loss).forest(per_example=examples)


def _traced(forest: Forest) -> list[tuple[Value, int, np.ndarray]]:
    """Give (value, row, flat positions of the scalars that have a trace) for all values."""
    made = [v for c in forest.record.calls for v in c.outputs if v is not None and v is not forest.loss]
    found = []
    for value in [*forest.record.leaves.values(), *made]:
        for row, pointers in enumerate(forest.winners.get(value.id, ())):
            live = (pointers.flatten() != NONE).numpy().nonzero()[0]
            compact = forest.compact.winners.get(value.id) if forest.compact is not None else None
            if isinstance(compact, Borrowed):
                live = np.array([i for i in live.tolist() if compact.knows(row, i)], dtype=np.int64)
            found.append((value, row, live))
    return found


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("kind", ["native", "reference"])
def test_all_are_those_of_the_backpointers(kind, examples):
    forest = _forest(kind, examples=examples)
    consumers, compared = Consumers(forest), 0
    for value, row, live in _traced(forest):
        for part in consumers.of(value, row, live):
            which = live if part.which is None else live[part.which]
            for flat, there in zip(which.tolist(), part.flat.tolist(), strict=True):
                call, argument, output, at = forest.step(int(forest.winners[value.id][row].flatten()[flat]))
                assert (part.call, part.argument, part.output, there) == (call, argument, output, at)
                assert part.target is call.outputs[output]
                assert forest.consumer(value, row, flat) == (call, argument, output, at)
                compared += 1
    assert compared > 1000
