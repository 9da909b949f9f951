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
                call, _, output, at = forest.step(int(forest.winners[value.id][row].flatten()[flat]))
                assert part.hops[0][1] == call.index
                assert part.target is call.outputs[output]
                assert there == at
                assert forest.consumer(value, row, flat)[::3] == (call, at)
                compared += 1
    assert compared > 1000


@pytest.mark.parametrize("examples", [False, True])
def test_all_scalars_of_a_value_lead_where_some_do(examples):
    forest = _forest("native", examples=examples)
    consumers, compared = Consumers(forest), 0
    for value, row, live in _traced(forest):
        sections = consumers.sections(value)
        if not sections or not len(live):
            continue
        numbers = np.concatenate([found for *_, found in consumers.numbers(value, row)])[live]
        begins = np.array([section.begin for section in sections])
        for flat, number in zip(live.tolist(), numbers.tolist(), strict=True):
            section = sections[int(np.searchsorted(begins, number, side="right")) - 1]
            at, there = value, flat
            for _ in section.hops:
                call, _, output, there = forest.consumer(at, row if forest.batch(at) > 1 else 0, there)
                made = call.outputs[output]
                assert made is not None
                at = made
            assert at is section.target
            assert there == number - section.begin
            compared += 1
    assert compared > 1000


def test_values_are_straight_that_lead_on_by_one_edge_after_another():
    forest = _forest("native", examples=False)
    straight = Consumers(forest).straight()
    assert forest.loss.id in straight
    assert 1 < len(straight) < len(forest.record.calls)
    for call in forest.record.calls:
        for value in call.outputs:
            if value is not None and value.id in straight and value is not forest.loss:
                pointers = forest.winners[value.id].flatten().tolist()
                went = {forest.step(p)[0].index for p in pointers if p != NONE}
                assert len(went) == 1
