"""Units moved by the compiled kernel, against those moved along backpointers, which is the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import record
from gradtrace.queries.departures import given_by
from gradtrace.queries.forest import Forest
from gradtrace.queries.units import ByPointers, Compiled, Stream


class Mixed(nn.Module):
    """Rows that are read, products, windows, choices among neighbours, and parts that are put together in new order."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.batch_norm = nn.LayerNorm(4), nn.BatchNorm1d(4)
        self.conv, self.cell = nn.Conv1d(4, 4, 2, padding=1, groups=2), nn.GRU(4, 4, batch_first=True)
        self.tiny = nn.Parameter(torch.full((4,), 1e-3))

    def forward(self, words: Tensor) -> Tensor:
        """Batch × time → batch."""
        h = self.words(words) * self.tiny
        h = self.norm(h + self.attention(h, h, h)[0])
        h = torch.nn.functional.max_pool1d(self.batch_norm(self.conv(h.transpose(1, 2))), 2).transpose(1, 2)
        h = torch.cat([h.flip(1), self.cell(h)[0]], 1).cumsum(1)
        return (h * h.softmax(-1)).amax(2).sum(1)


def _forest(seed: int, kind: str, *, examples: bool) -> Forest:
    torch.manual_seed(seed)
    model, words = Mixed(), torch.randint(7, (3, 4))
    with record(model, examples=words) as tape:
        loss = model(words).square().mean()
    return tape.trace(loss).forest(kind, per_example=examples)


def _pushed(forest: Forest, stream: Stream, groups: int, base: float) -> dict[tuple[int, int], np.ndarray]:
    """Send what all leaves do, every n-th in one group."""
    for number, leaf in enumerate(forest.record.leaves.values()):
        units = given_by(forest, leaf)
        if units is not None:
            number -= len(forest.record.leaves)
            stream.leave(leaf, number, units, lambda row, call, group=number % groups: group, base)
    for call in forest.record.calls:
        for value in call.outputs:
            if value is not None and value is not forest.loss:
                stream.send_on(value)
    amounts: dict[tuple[int, int], np.ndarray] = {}
    for source, edge, group, paths, weight in stream.found():
        amounts.setdefault((source, edge), np.zeros((groups, 2)))[group] += paths, weight
    return amounts


@given(st.integers(0, 1000), st.sampled_from(["best", "greedy"]), st.booleans(), st.integers(1, 5))
@settings(deadline=None, max_examples=12)
def test_the_kernel_moves_units_as_the_backpointers_say(seed, kind, examples, groups):
    forest = _forest(seed, kind, examples=examples)
    assert forest.compact is not None
    found = _pushed(forest, Compiled(forest, forest.compact), groups, 0.0)
    said = _pushed(forest, ByPointers(forest), groups, 0.0)
    assert found.keys() == said.keys()
    for hop, amounts in said.items():
        assert found[hop][:, 0].tolist() == amounts[:, 0].tolist()
        assert found[hop][:, 1] == pytest.approx(amounts[:, 1], rel=1e-12)


@pytest.mark.parametrize("base", [-1000.0, 1000.0])
def test_weights_beyond_a_float_are_counted_in_units_far_away(base):
    forest = _forest(0, "best", examples=False)
    assert forest.compact is not None
    near = _pushed(forest, Compiled(forest, forest.compact), 1, 0.0)
    far = _pushed(forest, Compiled(forest, forest.compact), 1, base)
    for hop, amounts in near.items():
        assert far[hop][0, 0] == amounts[0, 0]
        assert far[hop][0, 1] * 2.0 ** (base / 2) * 2.0 ** (base / 2) == pytest.approx(amounts[0, 1], rel=1e-9)
