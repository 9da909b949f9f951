"""Tables of which a program reads few rows: their planes know which, and all that is read off them stays as defined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradtrace import Trace, record
from gradtrace.kernels import native
from gradtrace.queries.departures import given_by, living
from gradtrace.queries.flow import Flow
from gradtrace.queries.strongest import of_all_strengths, strongest

ROWS = 40


class Rare(nn.Module):
    """Reads a few rows, once or step by step, and all of them for logits where they are tied."""

    def __init__(self, tied: bool, padding: bool) -> None:
        super().__init__()
        self.words, self.cell = nn.Embedding(ROWS, 3, padding_idx=0 if padding else None), nn.Linear(6, 3)
        self.tied = tied

    def forward(self, words: Tensor) -> Tensor:
        """Batch × steps × 2 → batch."""
        read = words.unbind(1) if words.shape[1] < 3 else None  # step by step, or all at once
        h, *steps = self.words(words).sum(2).unbind(1) if read is None else [self.words(w).sum(1) for w in read]
        for step in steps:
            h = torch.tanh(self.cell(torch.cat([h, step], 1)))
        return (h @ self.words.weight.t() if self.tied else h).square().sum(1)


CASES = st.tuples(st.integers(0, 10_000), st.integers(1, 3), *[st.booleans()] * 3, st.integers(1, 9))


def _trace(case: tuple[int, int, bool, bool, bool, int]) -> Trace:
    seed, steps, tied, padding, examples, few = case
    torch.manual_seed(seed)
    model, words = Rare(tied, padding), torch.randint(few, (3, steps, 2)) * (ROWS // few)
    with record(model, examples=words if examples else None) as tape:
        # of equal examples, rounding alone would say which is the stronger
        loss = (model(words) * torch.tensor([1.0, 1.5, 2.25])).mean()
    return tape.trace(loss)


@given(CASES, st.sampled_from(["best", "greedy"]))
@settings(deadline=None, max_examples=40)
def test_what_is_read_off_few_rows_is_what_all_rows_say(case, kind):
    trace, apart = _trace(case), case[4]
    forest = trace.forest(kind, per_example=apart)
    assert forest.compact is not None
    with native.using("reference"):
        slow = _trace(case)
        said = slow.forest(kind, per_example=apart)
        assert said.compact is None
        flow = slow.flow(kind=kind, per_example=apart)
    leaf, there = forest.record.leaves["words.weight"], said.record.leaves["words.weight"]
    assert torch.equal(forest.winners[leaf.id], said.winners[there.id])
    assert torch.allclose(forest.log2[leaf.id], said.log2[there.id], rtol=0, atol=1e-5)
    sent, slowly = given_by(forest, leaf), given_by(said, there)
    assert sent is not None
    assert slowly is not None
    assert torch.equal(sent.alive(), slowly.alive())
    assert sent.top == pytest.approx(slowly.top, abs=1e-5)
    assert living(forest, leaf) == int(slowly.alive().any(0).sum())
    if sent.rows is not None:
        dead = [n for n in range(ROWS) if n not in sent.rows.tolist()]
        assert not any(plane[:, dead].any() for plane in sent.planes if plane is not None)
    _alike(trace.flow(kind=kind, per_example=apart), flow)
    for example in (None, 0) if apart else (None,):
        here, slow_ones = (strongest(f, [v], 500, example) for f, v in ((forest, leaf), (said, there)))
        assert [log2 for log2, *_ in here] == pytest.approx([log2 for log2, *_ in slow_ones], abs=1e-5)
        assert {flat for *_, flat in here} == {flat for *_, flat in slow_ones}
    assert set(of_all_strengths(forest, leaf, 500)) == {flat for *_, flat in strongest(said, [there], 500)}


def _alike(found: Flow, said: Flow) -> None:
    assert {(e.source, e.target): e.paths for e in found.edges} == {(e.source, e.target): e.paths for e in said.edges}


def test_a_large_table_is_known_by_the_rows_that_were_read():
    for examples in (False, True):
        trace = _trace((0, 3, False, False, examples, 3))
        for kind in ("best", "greedy"):
            forest = trace.forest(kind, per_example=examples)
            assert forest.compact is not None
            rows = forest.compact.weights[forest.record.leaves["words.weight"].id].rows
            assert rows is not None
            assert set(rows.tolist()) <= {0, 13, 26}
